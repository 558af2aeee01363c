/*
 * virtio-console with one port (virtio 1.2, 5.3): queue 0 to the guest, queue 1 from it.
 *
 * The guest's output is written on the thread that rang as long as the host takes it; when the host's side
 * is full, the I/O thread waits for room and goes on.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "device/virtio/virtio.h"
#include "device/virtio/virtio_pci.h"

#define CONSOLE_RX 0u
#define CONSOLE_TX 1u
#define CONSOLE_CHUNK 4096u /* PIPE_BUF: what poll() promises a pipe takes without waiting */

struct virtio_console {
    struct virtio_device dev;
    int in_fd, out_fd;               /* borrowed; -1: none */
    struct virtqueue_chain rx_chain; /* lock of queue 0 */
    struct virtqueue_chain tx_chain; /* lock of queue 1 */
    size_t tx_done;                  /* bytes of the first waiting buffer already written; queue 1 */
    atomic_bool tx_blocked;          /* the host's side is full */
    atomic_bool rx_ready;            /* the guest has room; cleared when it had none */
    bool in_ended;                   /* I/O thread */
};

static bool out_has_room(const struct virtio_console *con)
{
    struct pollfd pfd = {.fd = con->out_fd, .events = POLLOUT};

    return poll(&pfd, 1, 0) == 1;
}

/* All of the chain written (or nobody there to read it): true. */
static bool console_write(struct virtio_console *con, const struct virtqueue_chain *chain)
{
    uint8_t chunk[CONSOLE_CHUNK];

    while (con->out_fd >= 0) {
        size_t len = iov_to_buf(chain->iov, chain->out, con->tx_done, chunk, sizeof(chunk));
        ssize_t put;

        if (len == 0)
            break;
        if (!out_has_room(con))
            return false;
        put = write(con->out_fd, chunk, len);
        if (put < 0 && (errno == EAGAIN || errno == EINTR))
            return false;
        if (put <= 0)
            break; /* the reader is gone: output is lost, as on a serial line */
        con->tx_done += (size_t)put;
    }
    con->tx_done = 0;
    return true;
}

static bool console_tx(struct virtio_device *dev, struct virtqueue *vq,
                       struct virtqueue_chain *chain)
{
    struct virtio_console *con = container_of(dev, struct virtio_console, dev);

    if (!console_write(con, chain)) {
        atomic_store(&con->tx_blocked, true);
        virtio_io_wake(dev);
        return false;
    }
    virtqueue_push(vq, chain, 0);
    return true;
}

static void console_kick(struct virtio_device *dev, unsigned index)
{
    struct virtio_console *con = container_of(dev, struct virtio_console, dev);

    if (index == CONSOLE_TX) {
        if (!atomic_load(&con->tx_blocked))
            virtio_serve(dev, index, &con->tx_chain, console_tx);
    } else if (!atomic_exchange(&con->rx_ready, true)) {
        virtio_io_wake(dev);
    }
}

static unsigned console_io_prepare(struct virtio_device *dev,
                                   struct pollfd fds[VIRTIO_IO_FDS_MAX])
{
    struct virtio_console *con = container_of(dev, struct virtio_console, dev);
    bool input = con->in_fd >= 0 && !con->in_ended && atomic_load(&con->rx_ready);
    bool output = atomic_load(&con->tx_blocked);

    /* A negative descriptor is passed over by poll(). */
    fds[0] = (struct pollfd){.fd = input ? con->in_fd : -1, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = output ? con->out_fd : -1, .events = POLLOUT};
    return 2;
}

/* Reads what the host has into the guest's next buffer. */
static void console_input(struct virtio_console *con)
{
    struct virtqueue *vq = &con->dev.vq[CONSOLE_RX];
    ssize_t got = 0;
    int ret;

    pthread_mutex_lock(&vq->lock);
    ret = virtqueue_pop(vq, &con->rx_chain);
    if (ret == 0) {
        atomic_store(&con->rx_ready, virtqueue_rearm(vq));
    } else if (ret > 0 && con->rx_chain.in == 0) {
        virtqueue_push(vq, &con->rx_chain, 0);
    } else if (ret > 0) {
        got = readv(con->in_fd, con->rx_chain.iov + con->rx_chain.out, (int)con->rx_chain.in);
        if (got > 0) {
            virtqueue_push(vq, &con->rx_chain, (uint32_t)got);
            virtio_notify(&con->dev, vq);
        } else {
            virtqueue_unpop(vq, 1);
            con->in_ended = got == 0 || (errno != EAGAIN && errno != EINTR);
        }
    }
    pthread_mutex_unlock(&vq->lock);
    if (ret < 0)
        virtio_needs_reset(&con->dev);
}

static void console_io_ready(struct virtio_device *dev, const struct pollfd *fds, unsigned count)
{
    struct virtio_console *con = container_of(dev, struct virtio_console, dev);

    (void)count;
    if (fds[0].revents)
        console_input(con);
    if (fds[1].revents) {
        atomic_store(&con->tx_blocked, false);
        console_kick(dev, CONSOLE_TX);
    }
}

/* Nothing stays in flight between calls: only what was half done is forgotten. */
static void console_quiesce(struct virtio_device *dev)
{
    struct virtio_console *con = container_of(dev, struct virtio_console, dev);

    pthread_mutex_lock(&dev->vq[CONSOLE_TX].lock);
    con->tx_done = 0;
    atomic_store(&con->tx_blocked, false);
    atomic_store(&con->rx_ready, false);
    pthread_mutex_unlock(&dev->vq[CONSOLE_TX].lock);
}

static void console_destroy(struct device *device)
{
    struct virtio_console *con = container_of(device, struct virtio_console, dev.fn.dev);

    virtio_device_release(&con->dev);
    free(con);
}

static const struct state_table console_state = {
    .name = "virtio-console", .version = 1, .fields = virtio_device_state_fields};

static const struct device_ops console_device_ops = {
    .type = "virtio-console",
    .reset = virtio_device_reset,
    .destroy = console_destroy,
    .loaded = virtio_device_loaded,
    .state = &console_state,
};

static const struct virtio_ops console_ops = {
    .kick = console_kick,
    .quiesce = console_quiesce,
    .io_prepare = console_io_prepare,
    .io_ready = console_io_ready,
};

static const struct virtio_info console_info = {
    .type = VIRTIO_CONSOLE,
    .class_code = {0x07, 0x80, 0x00},
    .queue_count = 2,
    .config_len = 12, /* cols, rows, max_nr_ports, emerg_wr: all unused without their features */
    .ops = &console_ops,
    .device_ops = &console_device_ops,
};

int virtio_console_create(struct pci_host *host, int in_fd, int out_fd, const char *name)
{
    struct virtio_console *con = calloc(1, sizeof(*con));
    int ret;

    if (!con)
        return -ENOMEM;
    con->in_fd = in_fd;
    con->out_fd = out_fd;
    ret = virtio_device_init(&con->dev, host, &console_info, name);
    if (ret)
        console_destroy(&con->dev.fn.dev);
    return ret;
}
