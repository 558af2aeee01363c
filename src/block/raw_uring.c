/*
 * Raw images through io_uring.
 *
 * What the page cache can answer at once completes on the thread that submitted, without waking anybody.
 * The rest completes later and signals an eventfd (only the late ones do: EVENTFD_ASYNC), for which a
 * thread waits.
 */
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/eventfd.h>

#include "block/raw.h"

#define RING_ENTRIES 256u
#define REAP_BATCH   32u

struct raw_uring {
    struct block block;
    int fd, event_fd; /* owned */
    struct io_uring ring;
    pthread_mutex_t submit_lock;   /* ring's submission side */
    pthread_mutex_t complete_lock; /* ring's completion side; never held while `done` runs */
    pthread_t thread;
    atomic_bool stop;
};

struct completion {
    struct block_request *request;
    int result;
};

static unsigned uring_take(struct raw_uring *raw, struct completion batch[REAP_BATCH])
{
    struct io_uring_cqe *cqe;
    unsigned n = 0;

    pthread_mutex_lock(&raw->complete_lock);
    while (n < REAP_BATCH && io_uring_peek_cqe(&raw->ring, &cqe) == 0) {
        batch[n].request = io_uring_cqe_get_data(cqe);
        batch[n++].result = cqe->res;
        io_uring_cqe_seen(&raw->ring, cqe);
    }
    pthread_mutex_unlock(&raw->complete_lock);
    return n;
}

static int uring_result(struct raw_uring *raw, const struct block_request *request, int result)
{
    bool transfer = request->op == BLOCK_READ || request->op == BLOCK_WRITE;

    if (!transfer && request->op != BLOCK_FLUSH)
        return raw_range_result(raw->fd, request, result);
    if (result == -EINTR || result == -EAGAIN)
        return raw_execute(raw->fd, request, 0);
    if (result < 0 || !transfer)
        return result;
    /* A short transfer is rare (signal, end of space): finish it here. */
    return (uint64_t)result < request->length ? raw_execute(raw->fd, request, (uint64_t)result) : 0;
}

static void uring_reap(struct raw_uring *raw)
{
    struct completion batch[REAP_BATCH];
    unsigned n;

    do {
        n = uring_take(raw, batch);
        for (unsigned i = 0; i < n; i++) {
            struct block_request *request = batch[i].request;

            request->done(request, uring_result(raw, request, batch[i].result));
        }
    } while (n == REAP_BATCH);
}

static void uring_prepare(struct raw_uring *raw, struct io_uring_sqe *sqe,
                          struct block_request *request)
{
    switch (request->op) {
    case BLOCK_READ:
        io_uring_prep_readv(sqe, raw->fd, request->iov, request->iov_count, request->offset);
        break;
    case BLOCK_WRITE:
        io_uring_prep_writev(sqe, raw->fd, request->iov, request->iov_count, request->offset);
        break;
    case BLOCK_FLUSH:
        io_uring_prep_fsync(sqe, raw->fd, IORING_FSYNC_DATASYNC);
        break;
    case BLOCK_DISCARD:
    case BLOCK_WRITE_ZEROES:
        io_uring_prep_fallocate(sqe, raw->fd, raw_fallocate_mode(request->op),
                                (off_t)request->offset, (off_t)request->length);
        break;
    }
    io_uring_sqe_set_data(sqe, request);
}

/* False when the ring cannot take it: the caller does the request itself. */
static bool uring_enter(struct raw_uring *raw, struct block_request *request)
{
    struct io_uring_sqe *sqe;
    int ret;

    pthread_mutex_lock(&raw->submit_lock);
    sqe = io_uring_get_sqe(&raw->ring);
    if (sqe) {
        uring_prepare(raw, sqe, request);
        do
            ret = io_uring_submit(&raw->ring);
        while (ret == -EINTR);
        /* An entry that was not taken stays in the ring: make it harmless. */
        if (ret < 0 && io_uring_sq_ready(&raw->ring) > 0) {
            raw->ring.sq.sqe_tail--;
            sqe = NULL;
        }
    }
    pthread_mutex_unlock(&raw->submit_lock);
    return sqe != NULL;
}

static void uring_submit(struct block *block, struct block_request *request)
{
    struct raw_uring *raw = container_of(block, struct raw_uring, block);
    int ret = raw_check(block, request);

    if (ret || (request->op != BLOCK_FLUSH && request->length == 0)) {
        request->done(request, ret);
        return;
    }
    if (uring_enter(raw, request))
        uring_reap(raw);
    else
        request->done(request, raw_execute(raw->fd, request, 0));
}

static void *uring_main(void *opaque)
{
    struct raw_uring *raw = opaque;
    uint64_t count;

    while (!atomic_load(&raw->stop)) {
        if (read(raw->event_fd, &count, sizeof(count)) == sizeof(count))
            uring_reap(raw);
    }
    return NULL;
}

static void uring_close(struct block *block)
{
    struct raw_uring *raw = container_of(block, struct raw_uring, block);
    uint64_t one = 1;

    atomic_store(&raw->stop, true);
    while (write(raw->event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
    pthread_join(raw->thread, NULL);
    io_uring_queue_exit(&raw->ring);
    close(raw->event_fd);
    close(raw->fd);
    pthread_mutex_destroy(&raw->submit_lock);
    pthread_mutex_destroy(&raw->complete_lock);
    free(raw);
}

static const struct block_ops uring_ops = {.submit = uring_submit, .close = uring_close};

static int uring_thread_start(struct raw_uring *raw)
{
    sigset_t all, old;
    int ret;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    ret = pthread_create(&raw->thread, NULL, uring_main, raw);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -ret;
}

int raw_uring_create(int fd, struct block **out)
{
    struct raw_uring *raw = calloc(1, sizeof(*raw));
    int ret;

    if (!raw)
        return -ENOMEM;
    raw->block.ops = &uring_ops;
    raw->fd = fd;
    ret = io_uring_queue_init(RING_ENTRIES, &raw->ring, 0);
    if (ret)
        goto err_free;
    raw->event_fd = eventfd(0, EFD_CLOEXEC);
    if (raw->event_fd < 0) {
        ret = -errno;
        goto err_ring;
    }
    ret = io_uring_register_eventfd(&raw->ring, raw->event_fd);
    if (ret)
        goto err_event;
    pthread_mutex_init(&raw->submit_lock, NULL);
    pthread_mutex_init(&raw->complete_lock, NULL);
    ret = uring_thread_start(raw);
    if (ret)
        goto err_event;
    *out = &raw->block;
    return 0;

err_event:
    close(raw->event_fd);
err_ring:
    io_uring_queue_exit(&raw->ring);
err_free:
    free(raw);
    return ret;
}
