/*
 * virtio-net (virtio 1.2, 5.1): queue 0 receives, queue 1 transmits.
 *
 * Checksums and segmentation are left out of the guest: frames of up to 64 KiB go to the back end whole,
 * with the checksum filled in here, where arithmetic is native.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "device/virtio/checksum.h"
#include "device/virtio/virtio.h"
#include "device/virtio/virtio_io.h"
#include "device/virtio/virtio_pci.h"

#define NET_RX 0u
#define NET_TX 1u

#define NET_F_CSUM       (1ull << 0)
#define NET_F_GUEST_CSUM (1ull << 1)
#define NET_F_MTU        (1ull << 3)
#define NET_F_MAC        (1ull << 5)
#define NET_F_HOST_TSO4  (1ull << 11)
#define NET_F_HOST_TSO6  (1ull << 12)
#define NET_F_MRG_RXBUF  (1ull << 15)
#define NET_F_STATUS     (1ull << 16)

#define NET_HDR_NEEDS_CSUM 1u
#define NET_HDR_DATA_VALID 2u

#define NET_STATUS_LINK_UP 1u
/* Large, for a packet costs a guest far more than its bytes; but several must fit TCP's 64 KiB window
 * (libslirp does not scale it), or sender and receiver wait for each other's timers. */
#define NET_MTU            16000u
#define NET_FRAME_MAX      (65536u + 14u + 4u)
#define NET_RX_BUFFERS_MAX 64u /* of one frame */

struct net_config { /* 5.1.4 */
    uint8_t mac[6];
    uint16_t status, max_virtqueue_pairs, mtu;
};
static_assert(sizeof(struct net_config) == 12, "virtio 1.2, 5.1.4");

struct net_hdr { /* 5.1.6 */
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};
static_assert(sizeof(struct net_hdr) == 12, "virtio 1.2, 5.1.6");

struct virtio_net {
    struct virtio_device dev;
    struct net *net; /* owned */
    struct virtqueue_chain tx_chain;     /* lock of queue 1 */
    uint8_t tx_frame[NET_FRAME_MAX];     /* lock of queue 1 */
    struct virtqueue_chain rx_chain[NET_RX_BUFFERS_MAX]; /* lock of queue 0 */
    bool rx_short; /* a frame found no room: tell the back end when there is; lock of queue 0 */
};

/* Fills in the checksum that the driver left to us (5.1.6.2). False when it lies outside the frame. */
static bool tx_checksum(uint8_t *frame, size_t len, const struct net_hdr *hdr)
{
    size_t start = hdr->csum_start, at = start + hdr->csum_offset;
    uint16_t sum;

    if (at + 2 > len)
        return false;
    sum = checksum_ones(frame + start, len - start);
    /* Zero means "none" in UDP; all ones is its equal, and harmless in TCP. */
    sum = sum == 0xffff ? sum : (uint16_t)~sum;
    memcpy(frame + at, &sum, sizeof(sum));
    return true;
}

static void tx_send(struct virtio_net *card, const struct virtqueue_chain *chain)
{
    struct net_hdr hdr;
    struct iovec iov = {.iov_base = card->tx_frame};

    if (iov_to_buf(chain->iov, chain->out, 0, &hdr, sizeof(hdr)) != sizeof(hdr) ||
        chain->out_bytes - sizeof(hdr) > sizeof(card->tx_frame)) {
        log_guest("%s: frame without header or too long", card->dev.fn.dev.name);
        return;
    }
    iov.iov_len = iov_to_buf(chain->iov, chain->out, sizeof(hdr), card->tx_frame,
                             sizeof(card->tx_frame));
    if ((hdr.flags & NET_HDR_NEEDS_CSUM) && !tx_checksum(card->tx_frame, iov.iov_len, &hdr)) {
        log_guest("%s: checksum outside the frame", card->dev.fn.dev.name);
        return;
    }
    if (iov.iov_len >= 14)
        card->net->ops->send(card->net, &iov, 1);
}

static bool net_tx(struct virtio_device *dev, struct virtqueue *vq, struct virtqueue_chain *chain)
{
    tx_send(container_of(dev, struct virtio_net, dev), chain);
    virtqueue_push(vq, chain, 0);
    return true;
}

/* Takes buffers until `len` bytes fit. Their number; 0: not enough (none taken); negative: broken. */
static int rx_take(struct virtio_net *card, uint64_t len)
{
    struct virtqueue *vq = &card->dev.vq[NET_RX];
    unsigned most = virtio_has(&card->dev, NET_F_MRG_RXBUF) ? NET_RX_BUFFERS_MAX : 1;
    uint64_t room = 0;
    unsigned n = 0;
    int ret = 1;

    while (room < len && n < most) {
        ret = virtqueue_pop(vq, &card->rx_chain[n]);
        if (ret <= 0)
            break;
        room += card->rx_chain[n++].in_bytes;
    }
    if (room >= len)
        return (int)n;
    virtqueue_unpop(vq, n);
    /* As many buffers as there may be, and still no room: the frame can never fit. */
    return ret < 0 ? ret : n == most ? -EMSGSIZE : 0;
}

/* Copies header and frame over the buffers taken, and returns them all at once. */
static void rx_deliver(struct virtio_net *card, unsigned buffers, const struct net_hdr *hdr,
                       const struct iovec *iov, unsigned count)
{
    struct virtqueue *vq = &card->dev.vq[NET_RX];
    struct iovec source[8];
    unsigned parts = 1;
    size_t skip = 0;

    source[0] = (struct iovec){.iov_base = (void *)hdr, .iov_len = sizeof(*hdr)};
    for (unsigned i = 0; i < count && parts < ARRAY_SIZE(source); i++)
        source[parts++] = iov[i];
    for (unsigned i = 0; i < buffers; i++) {
        struct virtqueue_chain *chain = &card->rx_chain[i];
        uint32_t filled = 0;

        for (unsigned s = chain->out; s < chain->out + chain->in; s++) {
            filled += (uint32_t)iov_to_buf(source, parts, skip + filled,
                                           chain->iov[s].iov_base, chain->iov[s].iov_len);
        }
        skip += filled;
        virtqueue_mark_written(card->dev.mem, chain, filled);
        virtqueue_fill(vq, chain->head, filled, i);
    }
    virtqueue_publish(vq, buffers);
    virtio_notify(&card->dev, vq);
}

static bool net_receive(void *opaque, const struct iovec *iov, unsigned count)
{
    struct virtio_net *card = opaque;
    struct virtqueue *vq = &card->dev.vq[NET_RX];
    struct net_hdr hdr = {.num_buffers = 1};
    uint64_t len = sizeof(hdr);
    bool taken = true;
    int n;

    for (unsigned i = 0; i < count; i++)
        len += iov[i].iov_len;
    pthread_mutex_lock(&vq->lock);
    if (virtio_has(&card->dev, NET_F_GUEST_CSUM))
        hdr.flags = NET_HDR_DATA_VALID; /* the back end has made, or checked, the checksums */
    n = vq->running ? rx_take(card, len) : -ENETDOWN;
    if (n == 0) {
        /* No room: ask for a doorbell, then look again: the driver may have added some before that. */
        virtqueue_rearm_more(vq);
        n = rx_take(card, len);
    }
    if (n > 0) {
        hdr.num_buffers = (uint16_t)n;
        rx_deliver(card, (unsigned)n, &hdr, iov, count);
    } else if (n == 0) {
        card->rx_short = true;
        taken = false;
    }
    pthread_mutex_unlock(&vq->lock);
    if (n < 0 && vq->broken)
        virtio_needs_reset(&card->dev);
    return taken; /* a frame that can never be taken is dropped */
}

static void rx_kick(struct virtio_net *card)
{
    struct virtqueue *vq = &card->dev.vq[NET_RX];
    bool waiting;

    pthread_mutex_lock(&vq->lock);
    waiting = card->rx_short;
    card->rx_short = false;
    virtqueue_quiet(vq);
    pthread_mutex_unlock(&vq->lock);
    if (waiting)
        card->net->ops->room(card->net);
}

static void net_kick(struct virtio_device *dev, unsigned index)
{
    struct virtio_net *card = container_of(dev, struct virtio_net, dev);

    if (index == NET_TX)
        virtio_serve(dev, index, &card->tx_chain, net_tx);
    else
        rx_kick(card);
}

static void net_quiesce(struct virtio_device *dev)
{
    struct virtio_net *card = container_of(dev, struct virtio_net, dev);

    /* The back end may keep frames from before: it is told with the first buffers of the next driver. */
    pthread_mutex_lock(&dev->vq[NET_RX].lock);
    card->rx_short = true;
    pthread_mutex_unlock(&dev->vq[NET_RX].lock);
}

static void net_destroy(struct device *device)
{
    struct virtio_net *card = container_of(device, struct virtio_net, dev.fn.dev);

    virtio_io_stop(&card->dev);       /* no more frames out */
    card->net->ops->close(card->net); /* no more frames in */
    virtio_device_release(&card->dev);
    free(card);
}

static const struct state_table net_state = {
    .name = "virtio-net", .version = 1, .fields = virtio_device_state_fields};

static const struct device_ops net_device_ops = {
    .type = "virtio-net",
    .reset = virtio_device_reset,
    .destroy = net_destroy,
    .loaded = virtio_device_loaded,
    .state = &net_state,
};

static const struct virtio_ops net_ops = {.kick = net_kick, .quiesce = net_quiesce};

static const struct virtio_info net_info = {
    .type = VIRTIO_NET,
    .class_code = {0x02, 0x00, 0x00},
    .queue_count = 2,
    .features = NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_MTU | NET_F_MAC | NET_F_HOST_TSO4 |
                NET_F_HOST_TSO6 | NET_F_MRG_RXBUF | NET_F_STATUS,
    .config_len = sizeof(struct net_config),
    .ops = &net_ops,
    .device_ops = &net_device_ops,
};

int virtio_net_create(struct pci_host *host, struct net *net, const uint8_t mac[6],
                      const char *name)
{
    struct virtio_net *card = calloc(1, sizeof(*card));
    struct net_config config = {
        .status = NET_STATUS_LINK_UP, .max_virtqueue_pairs = 1, .mtu = NET_MTU};
    int ret;

    if (!card) {
        net->ops->close(net);
        return -ENOMEM;
    }
    card->net = net;
    memcpy(config.mac, mac, sizeof(config.mac));
    memcpy(card->dev.config, &config, sizeof(config));
    ret = virtio_device_init(&card->dev, host, &net_info, name);
    if (ret) {
        net_destroy(&card->dev.fn.dev);
        return ret;
    }
    net->ops->start(net, &(struct net_peer){.receive = net_receive, .opaque = card});
    return 0;
}
