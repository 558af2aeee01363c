#include "device/virtio/virtio_io.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>
#include <sys/eventfd.h>

#include "base/log.h"

static void event_drain(int fd)
{
    uint64_t count;

    /* Nothing to read is fine: the descriptor does not block. */
    if (read(fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
        log_warning("virtio: cannot read a doorbell: error %d", errno);
}

static void serve_bells(struct virtio_device *dev, const struct pollfd *fds)
{
    for (unsigned i = 0; i < dev->queue_count; i++) {
        if (!(fds[i].revents & POLLIN))
            continue;
        event_drain(fds[i].fd);
        dev->ops->kick(dev, i);
    }
}

static void *io_main(void *opaque)
{
    struct virtio_device *dev = opaque;
    struct pollfd fds[1 + VIRTIO_QUEUES_MAX + VIRTIO_IO_FDS_MAX];
    unsigned own = 1 + dev->queue_count;

    fds[0] = (struct pollfd){.fd = dev->io_wake_fd, .events = POLLIN};
    for (unsigned i = 0; i < dev->queue_count; i++)
        fds[1 + i] = (struct pollfd){.fd = dev->bell[i].event_fd, .events = POLLIN};
    while (!atomic_load(&dev->io_stop)) {
        unsigned extra = dev->ops->io_prepare ? dev->ops->io_prepare(dev, &fds[own]) : 0;

        if (poll(fds, own + extra, -1) < 0)
            continue;
        if (fds[0].revents)
            event_drain(dev->io_wake_fd);
        serve_bells(dev, &fds[1]);
        if (extra)
            dev->ops->io_ready(dev, &fds[own], extra);
    }
    return NULL;
}

int virtio_io_start(struct virtio_device *dev)
{
    sigset_t all, old;
    int ret;

    dev->io_wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (dev->io_wake_fd < 0)
        return -errno;
    /* Signals are for the main thread and the vCPUs' kicks. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    ret = pthread_create(&dev->io_thread, NULL, io_main, dev);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    dev->io_started = ret == 0;
    return -ret;
}

static void event_post(int fd)
{
    uint64_t one = 1;

    if (write(fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        log_warning("virtio: cannot wake an I/O thread: error %d", errno);
}

void virtio_bell_post(struct virtio_bell *bell)
{
    event_post(bell->event_fd);
}

void virtio_io_wake(struct virtio_device *dev)
{
    event_post(dev->io_wake_fd);
}

void virtio_io_stop(struct virtio_device *dev)
{
    if (dev->io_started) {
        atomic_store(&dev->io_stop, true);
        virtio_io_wake(dev);
        pthread_join(dev->io_thread, NULL);
        dev->io_started = false;
    }
    if (dev->io_wake_fd >= 0)
        close(dev->io_wake_fd);
    dev->io_wake_fd = -1;
}
