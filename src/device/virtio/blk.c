/*
 * virtio-blk (virtio 1.2, 5.2): a disk on a block back end.
 *
 * The thread that rings takes all waiting requests under the queue's lock, then submits them without it.
 * Completion, on whichever thread, returns the buffer under the queue's lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "device/virtio/virtio.h"
#include "device/virtio/virtio_io.h"
#include "device/virtio/virtio_pci.h"

#define BLK_F_SEG_MAX      (1ull << 2)
#define BLK_F_RO           (1ull << 5)
#define BLK_F_BLK_SIZE     (1ull << 6)
#define BLK_F_FLUSH        (1ull << 9)
#define BLK_F_DISCARD      (1ull << 13)
#define BLK_F_WRITE_ZEROES (1ull << 14)

#define BLK_T_IN           0u
#define BLK_T_OUT          1u
#define BLK_T_FLUSH        4u
#define BLK_T_GET_ID       8u
#define BLK_T_DISCARD      11u
#define BLK_T_WRITE_ZEROES 13u

#define BLK_S_OK     0u
#define BLK_S_IOERR  1u
#define BLK_S_UNSUPP 2u

#define BLK_ID_BYTES        20u
#define BLK_RANGE_UNMAP     1u
#define BLK_RANGE_SECTORS   (1u << 22) /* of one discard or write-zeroes: 2 GiB */

struct blk_config { /* 5.2.4 */
    uint64_t capacity;
    uint32_t size_max, seg_max;
    uint16_t cylinders;
    uint8_t heads, sectors;
    uint32_t blk_size;
    uint8_t physical_block_exp, alignment_offset;
    uint16_t min_io_size;
    uint32_t opt_io_size;
    uint8_t writeback, unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
    uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap, unused1[3];
};
#define BLK_CONFIG_LEN 60u
static_assert(offsetof(struct blk_config, unused1) + 3 == BLK_CONFIG_LEN, "virtio 1.2, 5.2.4");

struct blk_header { /* 5.2.6 */
    uint32_t type, reserved;
    uint64_t sector;
};

struct blk_range {
    uint64_t sector;
    uint32_t sectors, flags;
};

struct virtio_blk;

struct blk_request {
    struct virtqueue_chain chain;
    struct block_request io;
    struct virtio_blk *blk;
    uint32_t written;         /* bytes of the in-segments, without the status */
    uint8_t *status;          /* last in-byte, pinned */
    gpa_t status_gpa;
    struct blk_request *next; /* free list, queue lock; or the list being submitted */
};

struct virtio_blk {
    struct virtio_device dev;
    struct block *block;         /* owned */
    struct blk_request *request; /* owned, VIRTQUEUE_SIZE_MAX */
    struct blk_request *free;    /* queue lock */
    unsigned busy;               /* requests off the free list; queue lock */
    pthread_cond_t idle;         /* busy became 0 */
    char id[BLK_ID_BYTES];
};

/* Drops the first `bytes` of the out-segments, or in-segments. */
static void segments_drop_front(struct virtqueue_chain *chain, uint64_t bytes)
{
    unsigned i = 0;

    while (bytes && i < chain->out) {
        uint64_t part = chain->iov[i].iov_len < bytes ? chain->iov[i].iov_len : bytes;

        chain->iov[i].iov_base = (uint8_t *)chain->iov[i].iov_base + part;
        chain->iov[i].iov_len -= part;
        chain->gpa[i] += part;
        chain->out_bytes -= part;
        bytes -= part;
        if (chain->iov[i].iov_len == 0)
            i++;
    }
    /* Empty segments stay in front: they transfer nothing. */
}

/* The status is the last byte the driver can read; what is before it is data (any framing: 2.7.4). */
static bool status_take(struct blk_request *req)
{
    struct virtqueue_chain *chain = &req->chain;
    unsigned last;

    if (chain->in == 0)
        return false;
    last = chain->out + chain->in - 1;
    chain->iov[last].iov_len--;
    req->status = (uint8_t *)chain->iov[last].iov_base + chain->iov[last].iov_len;
    req->status_gpa = chain->gpa[last] + chain->iov[last].iov_len;
    chain->in_bytes--;
    return true;
}

static uint8_t status_of(int result)
{
    if (result == 0)
        return BLK_S_OK;
    return result == -EOPNOTSUPP ? BLK_S_UNSUPP : BLK_S_IOERR;
}

/* Returns the request's buffer and the request itself. */
static void blk_complete(struct blk_request *req, int result)
{
    struct virtio_blk *blk = req->blk;
    struct virtqueue *vq = &blk->dev.vq[0];
    uint32_t written = result == 0 ? req->written : 0;

    *req->status = status_of(result);
    virtqueue_mark_written(blk->dev.mem, &req->chain, written);
    mem_mark_written(blk->dev.mem, req->status_gpa, 1);
    pthread_mutex_lock(&vq->lock);
    virtqueue_fill(vq, req->chain.head, written + 1, 0);
    virtqueue_publish(vq, 1);
    virtio_notify(&blk->dev, vq);
    req->next = blk->free;
    blk->free = req;
    if (--blk->busy == 0)
        pthread_cond_broadcast(&blk->idle);
    pthread_mutex_unlock(&vq->lock);
}

static void blk_done(struct block_request *io, int result)
{
    struct blk_request *req = io->opaque;

    if (result)
        log_guest("disk '%s': %s at byte %llu failed: %s", req->blk->block->name,
                  io->op == BLOCK_READ ? "read" : io->op == BLOCK_FLUSH ? "flush" : "write",
                  (unsigned long long)io->offset, strerror(-result));
    blk_complete(req, result);
}

static int blk_transfer(struct blk_request *req, enum block_op op, uint64_t sector)
{
    struct virtqueue_chain *chain = &req->chain;
    bool read = op == BLOCK_READ;

    req->io.op = op;
    req->io.iov = read ? chain->iov + chain->out : chain->iov;
    req->io.iov_count = read ? chain->in : chain->out;
    req->io.length = read ? chain->in_bytes : chain->out_bytes;
    if (mul_overflows(sector, (uint64_t)BLOCK_SECTOR, &req->io.offset) ||
        req->io.length > UINT32_MAX - 1)
        return -EINVAL;
    req->written = read ? (uint32_t)req->io.length : 0;
    return 0;
}

/* One range a request: max_discard_seg and max_write_zeroes_seg say so. */
static int blk_range(struct blk_request *req, enum block_op op)
{
    struct blk_range range;

    if (req->chain.out_bytes != sizeof(range))
        return -EINVAL;
    iov_to_buf(req->chain.iov, req->chain.out, 0, &range, sizeof(range));
    if (range.flags & ~(op == BLOCK_DISCARD ? 0 : BLK_RANGE_UNMAP))
        return -EOPNOTSUPP;
    if (range.sectors > BLK_RANGE_SECTORS ||
        mul_overflows(range.sector, (uint64_t)BLOCK_SECTOR, &req->io.offset))
        return -EINVAL;
    req->io.op = op;
    req->io.length = (uint64_t)range.sectors * BLOCK_SECTOR;
    req->io.iov_count = 0;
    return 0;
}

static int blk_get_id(struct blk_request *req)
{
    struct virtqueue_chain *chain = &req->chain;

    req->written = (uint32_t)iov_from_buf(chain->iov + chain->out, chain->in, 0, req->blk->id,
                                          BLK_ID_BYTES);
    return 0;
}

/* Turns the guest's request into one of the back end. 1: submit it; else: the result. */
static int blk_parse(struct blk_request *req)
{
    struct blk_header header;
    int ret;

    req->written = 0;
    if (iov_to_buf(req->chain.iov, req->chain.out, 0, &header, sizeof(header)) != sizeof(header))
        return -EINVAL;
    segments_drop_front(&req->chain, sizeof(header));
    switch (header.type) {
    case BLK_T_IN: ret = blk_transfer(req, BLOCK_READ, header.sector); break;
    case BLK_T_OUT: ret = blk_transfer(req, BLOCK_WRITE, header.sector); break;
    case BLK_T_DISCARD: ret = blk_range(req, BLOCK_DISCARD); break;
    case BLK_T_WRITE_ZEROES: ret = blk_range(req, BLOCK_WRITE_ZEROES); break;
    case BLK_T_FLUSH:
        req->io.op = BLOCK_FLUSH;
        req->io.offset = req->io.length = req->io.iov_count = 0;
        ret = 0;
        break;
    case BLK_T_GET_ID: return blk_get_id(req);
    default: return -EOPNOTSUPP;
    }
    return ret ? ret : 1;
}

static void blk_submit(struct virtio_blk *blk, struct blk_request *req)
{
    int ret = blk_parse(req);

    if (ret == 1)
        block_submit(blk->block, &req->io);
    else
        blk_complete(req, ret);
}

static int blk_pop(struct virtio_blk *blk, struct virtqueue *vq, struct blk_request **out)
{
    struct blk_request *req = blk->free;
    int ret;

    /* As many requests as queue entries, and virtqueue_pop bounds what is in flight by its size. */
    if (!req)
        return 0;
    ret = virtqueue_pop(vq, &req->chain);
    if (ret <= 0)
        return ret;
    if (!status_take(req)) {
        log_guest("%s: request without room for a status", blk->dev.fn.dev.name);
        vq->broken = true;
        virtqueue_unpop(vq, 1);
        return -EINVAL;
    }
    blk->free = req->next;
    blk->busy++;
    *out = req;
    return 1;
}

/* Takes what waits, in order. Returns the list to submit. */
static struct blk_request *blk_take(struct virtio_blk *blk, bool *broken, bool *more)
{
    struct virtqueue *vq = &blk->dev.vq[0];
    struct blk_request *list = NULL, **tail = &list;
    int ret = 1;

    pthread_mutex_lock(&vq->lock);
    virtqueue_quiet(vq);
    for (unsigned n = 0; ret > 0 && n < VIRTQUEUE_SIZE_MAX; n++) {
        ret = blk_pop(blk, vq, tail);
        if (ret > 0)
            tail = &(*tail)->next;
        else if (ret == 0)
            ret = virtqueue_rearm(vq) && blk->free;
    }
    *tail = NULL;
    pthread_mutex_unlock(&vq->lock);
    *broken = ret < 0;
    *more = ret > 0;
    return list;
}

static void blk_kick(struct virtio_device *dev, unsigned index)
{
    struct virtio_blk *blk = container_of(dev, struct virtio_blk, dev);
    struct blk_request *req, *next;
    bool broken, more;

    for (req = blk_take(blk, &broken, &more); req; req = next) {
        next = req->next; /* before the request is somebody else's */
        blk_submit(blk, req);
    }
    if (broken)
        virtio_needs_reset(dev);
    if (more)
        virtio_bell_post(&dev->bell[index]);
}

static void blk_quiesce(struct virtio_device *dev)
{
    struct virtio_blk *blk = container_of(dev, struct virtio_blk, dev);
    struct virtqueue *vq = &dev->vq[0];

    pthread_mutex_lock(&vq->lock);
    while (blk->busy)
        pthread_cond_wait(&blk->idle, &vq->lock);
    pthread_mutex_unlock(&vq->lock);
}

static void blk_destroy(struct device *device)
{
    struct virtio_blk *blk = container_of(device, struct virtio_blk, dev.fn.dev);

    virtio_device_release(&blk->dev);
    pthread_cond_destroy(&blk->idle);
    block_close(blk->block);
    free(blk->request);
    free(blk);
}

static const struct state_table blk_state = {
    .name = "virtio-blk", .version = 1, .fields = virtio_device_state_fields};

static const struct device_ops blk_device_ops = {
    .type = "virtio-blk",
    .reset = virtio_device_reset,
    .destroy = blk_destroy,
    .loaded = virtio_device_loaded,
    .state = &blk_state,
};

static const struct virtio_ops blk_ops = {.kick = blk_kick, .quiesce = blk_quiesce};

static void blk_config_init(struct virtio_blk *blk)
{
    struct blk_config config = {
        .capacity = blk->block->size / BLOCK_SECTOR,
        .seg_max = VIRTQUEUE_SEGMENTS - 2, /* less header and status */
        .blk_size = BLOCK_SECTOR,
        .num_queues = 1,
        .max_discard_sectors = BLK_RANGE_SECTORS,
        .max_discard_seg = 1,
        .discard_sector_alignment = 4096 / BLOCK_SECTOR,
        .max_write_zeroes_sectors = BLK_RANGE_SECTORS,
        .max_write_zeroes_seg = 1,
        .write_zeroes_may_unmap = 1,
    };

    memcpy(blk->dev.config, &config, sizeof(config));
}

static int blk_requests_init(struct virtio_blk *blk)
{
    blk->request = calloc(VIRTQUEUE_SIZE_MAX, sizeof(*blk->request));
    if (!blk->request)
        return -ENOMEM;
    for (unsigned i = 0; i < VIRTQUEUE_SIZE_MAX; i++) {
        struct blk_request *req = &blk->request[i];

        req->blk = blk;
        req->io.done = blk_done;
        req->io.opaque = req;
        req->next = blk->free;
        blk->free = req;
    }
    return 0;
}

int virtio_blk_create(struct pci_host *host, struct block *block, const char *name)
{
    struct virtio_info info = {
        .type = VIRTIO_BLK,
        .class_code = {0x01, 0x00, 0x00},
        .queue_count = 1,
        .features = BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_FLUSH,
        .config_len = BLK_CONFIG_LEN,
        .ops = &blk_ops,
        .device_ops = &blk_device_ops,
    };
    struct virtio_blk *blk = calloc(1, sizeof(*blk));
    int ret;

    if (!blk || blk_requests_init(blk)) {
        free(blk);
        block_close(block);
        return -ENOMEM;
    }
    blk->block = block;
    pthread_cond_init(&blk->idle, NULL);
    memcpy(blk->id, name, strnlen(name, sizeof(blk->id))); /* need not end with a NUL */
    blk_config_init(blk);
    if (block->readonly)
        info.features |= BLK_F_RO;
    else if (block->can_discard)
        info.features |= BLK_F_DISCARD | BLK_F_WRITE_ZEROES;
    ret = virtio_device_init(&blk->dev, host, &info, name);
    if (ret)
        blk_destroy(&blk->dev.fn.dev);
    return ret;
}
