#include "device/virtio/virtqueue.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"

#define DESC_NEXT     1u
#define DESC_WRITE    2u
#define DESC_INDIRECT 4u

#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY     1u

#define VECTOR_NONE 0xffffu

const struct state_field virtqueue_state_fields[] = {
    STATE_UINT(struct virtqueue, size),       STATE_UINT(struct virtqueue, enabled),
    STATE_UINT(struct virtqueue, desc_gpa),   STATE_UINT(struct virtqueue, avail_gpa),
    STATE_UINT(struct virtqueue, used_gpa),   STATE_UINT(struct virtqueue, vector),
    STATE_UINT(struct virtqueue, running),    STATE_UINT(struct virtqueue, broken),
    STATE_UINT(struct virtqueue, indirect),   STATE_UINT(struct virtqueue, event_idx),
    STATE_UINT(struct virtqueue, last_avail), STATE_UINT(struct virtqueue, used_idx),
    STATE_UINT(struct virtqueue, signalled),  STATE_UINT(struct virtqueue, signalled_valid),
    STATE_FIELDS_END,
};

void virtqueue_init(struct virtqueue *vq, struct mem *mem)
{
    pthread_mutex_init(&vq->lock, NULL);
    vq->mem = mem;
    virtqueue_reset(vq);
}

void virtqueue_release(struct virtqueue *vq)
{
    pthread_mutex_destroy(&vq->lock);
}

void virtqueue_reset(struct virtqueue *vq)
{
    vq->size = VIRTQUEUE_SIZE_MAX;
    vq->enabled = vq->running = vq->broken = false;
    vq->desc_gpa = vq->avail_gpa = vq->used_gpa = 0;
    atomic_store(&vq->vector, VECTOR_NONE);
    vq->last_avail = vq->used_idx = vq->signalled = 0;
    vq->signalled_valid = false;
    vq->desc = NULL;
    vq->avail = vq->used = NULL;
}

/* flags, idx, ring[size], used_event (2.7.6) */
static size_t avail_bytes(const struct virtqueue *vq)
{
    return 6u + 2u * vq->size;
}

/* flags, idx, ring[size] of 8 bytes, avail_event (2.7.8) */
static size_t used_bytes(const struct virtqueue *vq)
{
    return 6u + 8u * vq->size;
}

/* The 16-bit words that both sides touch while the other may be writing. All are aligned: start checks. */
static _Atomic uint16_t *ring_word(uint8_t *ring, size_t offset)
{
    return (_Atomic uint16_t *)(ring + offset);
}

static uint16_t avail_word(const struct virtqueue *vq, size_t offset, memory_order order)
{
    return atomic_load_explicit(ring_word(vq->avail, offset), order);
}

static void used_word_set(struct virtqueue *vq, size_t offset, uint16_t value, memory_order order)
{
    atomic_store_explicit(ring_word(vq->used, offset), value, order);
    mem_mark_written(vq->mem, vq->used_gpa + offset, 2);
}

static int queue_break(struct virtqueue *vq, const char *why)
{
    log_guest("virtqueue broken by the guest: %s", why);
    vq->broken = true;
    return -EINVAL;
}

int virtqueue_start(struct virtqueue *vq, bool indirect, bool event_idx)
{
    if (vq->desc_gpa & 15 || vq->avail_gpa & 1 || vq->used_gpa & 3)
        return queue_break(vq, "misaligned ring");
    vq->desc = mem_pin(vq->mem, vq->desc_gpa, vq->size * sizeof(*vq->desc), false);
    vq->avail = mem_pin(vq->mem, vq->avail_gpa, avail_bytes(vq), false);
    vq->used = mem_pin(vq->mem, vq->used_gpa, used_bytes(vq), true);
    if (!vq->desc || !vq->avail || !vq->used)
        return queue_break(vq, "ring outside memory");
    vq->indirect = indirect;
    vq->event_idx = event_idx;
    vq->running = true;
    return 0;
}

/* Where the descriptors of a chain come from: the ring's table, or an indirect one. */
struct desc_table {
    const struct virtq_desc *desc; /* pinned */
    uint32_t count;
};

/* The guest may be changing the descriptor while it is read: the copy is what counts. */
static struct virtq_desc desc_copy(const struct desc_table *table, uint32_t index)
{
    struct virtq_desc copy;

    memcpy(&copy, &table->desc[index], sizeof(copy));
    atomic_signal_fence(memory_order_seq_cst); /* no re-read of guest memory after the checks */
    return copy;
}

static int chain_add(struct virtqueue *vq, struct virtqueue_chain *chain,
                     const struct virtq_desc *desc)
{
    bool write = desc->flags & DESC_WRITE;
    unsigned at = chain->out + chain->in;
    void *host;

    if (at == VIRTQUEUE_SEGMENTS)
        return queue_break(vq, "chain too long");
    if (!write && chain->in)
        return queue_break(vq, "readable after writable descriptor");
    if (desc->len == 0)
        return 0; /* allowed, and nothing to transfer */
    host = mem_pin(vq->mem, desc->addr, desc->len, write);
    if (!host)
        return queue_break(vq, "buffer outside memory");
    chain->iov[at] = (struct iovec){.iov_base = host, .iov_len = desc->len};
    chain->gpa[at] = desc->addr;
    if (write) {
        chain->in++;
        chain->in_bytes += desc->len;
    } else {
        chain->out++;
        chain->out_bytes += desc->len;
    }
    return 0;
}

static int indirect_table(struct virtqueue *vq, const struct virtq_desc *desc,
                          struct desc_table *table)
{
    if (!vq->indirect || desc->flags & DESC_NEXT)
        return queue_break(vq, "indirect descriptor where none may be");
    if (desc->len == 0 || desc->len % sizeof(*table->desc) || desc->addr & 15)
        return queue_break(vq, "bad size of an indirect table");
    table->count = desc->len / sizeof(*table->desc);
    table->desc = mem_pin(vq->mem, desc->addr, desc->len, false);
    return table->desc ? 0 : queue_break(vq, "indirect table outside memory");
}

/* A chain longer than its table has a loop. */
static int chain_walk(struct virtqueue *vq, struct virtqueue_chain *chain)
{
    struct desc_table table = {.desc = vq->desc, .count = vq->size};
    bool in_indirect = false;
    uint32_t index = chain->head, steps = 0;
    int ret;

    for (;;) {
        struct virtq_desc desc;

        if (index >= table.count)
            return queue_break(vq, "descriptor index out of range");
        if (steps++ >= table.count || steps > VIRTQUEUE_SEGMENTS)
            return queue_break(vq, "descriptor loop or chain too long");
        desc = desc_copy(&table, index);
        if (desc.flags & DESC_INDIRECT) {
            if (in_indirect)
                return queue_break(vq, "nested indirect table");
            ret = indirect_table(vq, &desc, &table);
            if (ret)
                return ret;
            in_indirect = true;
            index = steps = 0;
            continue;
        }
        ret = chain_add(vq, chain, &desc);
        if (ret)
            return ret;
        if (!(desc.flags & DESC_NEXT))
            return 0;
        index = desc.next;
    }
}

int virtqueue_pop(struct virtqueue *vq, struct virtqueue_chain *chain)
{
    uint16_t avail, waiting;
    int ret;

    if (!vq->running || vq->broken)
        return 0;
    /* Partner: the driver's write barrier between filling the ring entry and raising idx. */
    avail = avail_word(vq, 2, memory_order_acquire);
    waiting = (uint16_t)(avail - vq->last_avail);
    if (waiting == 0)
        return 0;
    if (waiting > vq->size)
        return queue_break(vq, "available index ran away");
    if (vq->inflight >= vq->size)
        return queue_break(vq, "more buffers in flight than the queue holds");
    chain->out = chain->in = 0;
    chain->out_bytes = chain->in_bytes = 0;
    chain->head = avail_word(vq, 4 + 2u * (vq->last_avail & (vq->size - 1u)), memory_order_relaxed);
    ret = chain_walk(vq, chain);
    if (ret)
        return ret;
    vq->last_avail++;
    vq->inflight++;
    return 1;
}

void virtqueue_unpop(struct virtqueue *vq, unsigned count)
{
    vq->last_avail = (uint16_t)(vq->last_avail - count);
    vq->inflight -= count;
}

void virtqueue_fill(struct virtqueue *vq, uint16_t head, uint32_t written, unsigned ahead)
{
    struct {
        uint32_t id, len;
    } element = {.id = head, .len = written};
    size_t at = 4 + 8u * ((vq->used_idx + ahead) & (vq->size - 1u));

    if (!vq->running)
        return;
    memcpy(vq->used + at, &element, sizeof(element));
    mem_mark_written(vq->mem, vq->used_gpa + at, sizeof(element));
}

void virtqueue_publish(struct virtqueue *vq, unsigned count)
{
    vq->inflight -= count;
    if (!vq->running)
        return;
    vq->used_idx = (uint16_t)(vq->used_idx + count);
    /* Partner: the driver's read barrier after it sees idx and before it reads the entries. */
    used_word_set(vq, 2, vq->used_idx, memory_order_release);
}

void virtqueue_push(struct virtqueue *vq, const struct virtqueue_chain *chain, uint32_t written)
{
    virtqueue_mark_written(vq->mem, chain, written);
    virtqueue_fill(vq, chain->head, written, 0);
    virtqueue_publish(vq, 1);
}

bool virtqueue_should_interrupt(struct virtqueue *vq)
{
    uint16_t event, old = vq->signalled;
    bool valid = vq->signalled_valid;

    if (!vq->running)
        return false;
    /* Partner: the driver's full barrier between writing used_event (or flags) and its last look at used idx. */
    atomic_thread_fence(memory_order_seq_cst);
    if (!vq->event_idx)
        return !(avail_word(vq, 0, memory_order_relaxed) & AVAIL_NO_INTERRUPT);
    event = avail_word(vq, 4 + 2u * vq->size, memory_order_relaxed);
    vq->signalled = vq->used_idx;
    vq->signalled_valid = true;
    /* 2.7.7.2: only when idx has passed the event since the last time. */
    return !valid || (uint16_t)(vq->used_idx - event - 1) < (uint16_t)(vq->used_idx - old);
}

void virtqueue_quiet(struct virtqueue *vq)
{
    if (vq->running && !vq->event_idx)
        used_word_set(vq, 0, USED_NO_NOTIFY, memory_order_relaxed);
}

static bool rearm_after(struct virtqueue *vq, uint16_t seen)
{
    if (vq->event_idx)
        used_word_set(vq, 4 + 8u * vq->size, seen, memory_order_relaxed);
    else
        used_word_set(vq, 0, 0, memory_order_relaxed);
    /* Partner: the driver's full barrier between raising avail idx and reading avail_event (or flags). */
    atomic_thread_fence(memory_order_seq_cst);
    return avail_word(vq, 2, memory_order_relaxed) != seen;
}

bool virtqueue_rearm(struct virtqueue *vq)
{
    return vq->running && !vq->broken && rearm_after(vq, vq->last_avail);
}

void virtqueue_rearm_more(struct virtqueue *vq)
{
    if (vq->running && !vq->broken)
        (void)rearm_after(vq, avail_word(vq, 2, memory_order_relaxed));
}

void virtqueue_mark_written(struct mem *mem, const struct virtqueue_chain *chain, uint64_t bytes)
{
    for (unsigned i = chain->out; i < chain->out + chain->in && bytes; i++) {
        uint64_t len = chain->iov[i].iov_len < bytes ? chain->iov[i].iov_len : bytes;

        mem_mark_written(mem, chain->gpa[i], len);
        bytes -= len;
    }
}

static size_t iov_copy(const struct iovec *iov, unsigned count, size_t skip, uint8_t *buf,
                       size_t len, bool to_buf)
{
    size_t done = 0;

    for (unsigned i = 0; i < count && done < len; i++) {
        size_t part = iov[i].iov_len;
        uint8_t *base = iov[i].iov_base;

        if (skip >= part) {
            skip -= part;
            continue;
        }
        base += skip;
        part -= skip;
        skip = 0;
        if (part > len - done)
            part = len - done;
        memcpy(to_buf ? buf + done : base, to_buf ? base : buf + done, part);
        done += part;
    }
    return done;
}

size_t iov_to_buf(const struct iovec *iov, unsigned count, size_t skip, void *buf, size_t len)
{
    return iov_copy(iov, count, skip, buf, len, true);
}

size_t iov_from_buf(const struct iovec *iov, unsigned count, size_t skip, const void *buf,
                    size_t len)
{
    return iov_copy(iov, count, skip, (uint8_t *)buf, len, false);
}
