/*
 * A split virtqueue, device side (virtio 1.2, 2.7), with indirect descriptors and event indices.
 *
 * The rings and everything they point to are the guest's and may be anything: each descriptor is copied
 * once, checked, then used; a broken ring stops the queue (vq->broken) until the device is reset.
 *
 * Threads: the caller holds vq->lock around every call below, unless said otherwise.
 */
#ifndef DEVICE_VIRTIO_VIRTQUEUE_H
#define DEVICE_VIRTIO_VIRTQUEUE_H

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#include "core/memory.h"
#include "core/state.h"

#define VIRTQUEUE_SIZE_MAX 256u
#define VIRTQUEUE_SEGMENTS 256u /* descriptors of one chain, without the indirect ones */

struct virtq_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};
static_assert(sizeof(struct virtq_desc) == 16, "virtio 1.2, 2.7.5");

struct virtqueue {
    pthread_mutex_t lock;
    struct mem *mem; /* borrowed */

    /* As the driver programmed it; device lock, constant while `running`. */
    uint16_t size;
    bool enabled;
    uint64_t desc_gpa, avail_gpa, used_gpa;
    _Atomic uint16_t vector; /* MSI-X; written under the device lock */

    /* Queue lock. */
    bool running;   /* rings are pinned, driver is ready */
    bool broken;    /* the driver broke the rings' rules */
    bool indirect, event_idx;
    uint16_t last_avail; /* next entry of the available ring to take */
    uint16_t used_idx;   /* next entry of the used ring to fill */
    uint16_t signalled;  /* used_idx when the driver was last interrupted */
    bool signalled_valid;
    unsigned inflight;   /* chains taken and not yet returned */
    const struct virtq_desc *desc; /* pinned, `size` entries */
    uint8_t *avail, *used;         /* pinned, virtqueue_*_bytes(size) */
};

/* One buffer of the driver: first `out` segments to read, then `in` segments to write. */
struct virtqueue_chain {
    uint16_t head;
    unsigned out, in;
    uint64_t out_bytes, in_bytes;
    struct iovec iov[VIRTQUEUE_SEGMENTS]; /* pinned guest memory */
    gpa_t gpa[VIRTQUEUE_SEGMENTS];        /* of each segment */
};

extern const struct state_field virtqueue_state_fields[];

void virtqueue_init(struct virtqueue *vq, struct mem *mem);
void virtqueue_release(struct virtqueue *vq);

/* To power-on. Nothing may be in flight. */
void virtqueue_reset(struct virtqueue *vq);

/* Pins the rings; -EINVAL when their addresses are wrong. */
nodiscard int virtqueue_start(struct virtqueue *vq, bool indirect, bool event_idx);

/*
 * Takes the next chain. 1: chain filled in; 0: none; negative: the rings are broken, now and until
 * reset. Buffers are bounded by guest memory, the number of segments by VIRTQUEUE_SEGMENTS.
 */
nodiscard int virtqueue_pop(struct virtqueue *vq, struct virtqueue_chain *chain);

/* Gives the last `count` popped chains back as if they had not been taken. */
void virtqueue_unpop(struct virtqueue *vq, unsigned count);

/* Returns a buffer; `written` bytes of its in-segments were filled (from the first on). */
void virtqueue_push(struct virtqueue *vq, const struct virtqueue_chain *chain, uint32_t written);

/* The same in two steps, so that several buffers appear at once: fill entry `ahead`, then publish. */
void virtqueue_fill(struct virtqueue *vq, uint16_t head, uint32_t written, unsigned ahead);
void virtqueue_publish(struct virtqueue *vq, unsigned count);

/* True when the driver wants an interrupt for what was published. */
bool virtqueue_should_interrupt(struct virtqueue *vq);

/* Asks the driver not to ring while the queue is served (a hint). */
void virtqueue_quiet(struct virtqueue *vq);
/* Asks for a doorbell with the next buffer; true when there is one already. */
bool virtqueue_rearm(struct virtqueue *vq);
/* The same when the buffers that wait are too few: asks for a doorbell with the next one after them. */
void virtqueue_rearm_more(struct virtqueue *vq);

/* Marks the first `bytes` of the chain's in-segments as written by the device. No lock. */
void virtqueue_mark_written(struct mem *mem, const struct virtqueue_chain *chain, uint64_t bytes);

/* Copies between a linear buffer and segments; return the bytes copied. No lock. */
size_t iov_to_buf(const struct iovec *iov, unsigned count, size_t skip, void *buf, size_t len);
size_t iov_from_buf(const struct iovec *iov, unsigned count, size_t skip, const void *buf,
                    size_t len);

#endif
