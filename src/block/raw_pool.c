/* Raw images through a pool of threads, for hosts that refuse io_uring (many containers do). */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/uio.h>

#include "block/raw.h"

#define POOL_THREADS 4u

struct raw_pool {
    struct block block;
    int fd; /* owned */
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct block_request *first, **last; /* queue, linked by backend[0]; lock */
    bool stop;                           /* lock */
    pthread_t thread[POOL_THREADS];
    unsigned threads;
};

static struct block_request **pool_link(struct block_request *request)
{
    return (struct block_request **)&request->backend[0];
}

static struct block_request *pool_take(struct raw_pool *raw)
{
    struct block_request *request;

    pthread_mutex_lock(&raw->lock);
    while (!raw->first && !raw->stop)
        pthread_cond_wait(&raw->work, &raw->lock);
    request = raw->first;
    if (request) {
        raw->first = *pool_link(request);
        if (!raw->first)
            raw->last = &raw->first;
    }
    pthread_mutex_unlock(&raw->lock);
    return request;
}

static void *pool_main(void *opaque)
{
    struct raw_pool *raw = opaque;
    struct block_request *request;

    while ((request = pool_take(raw)))
        request->done(request, raw_execute(raw->fd, request, 0));
    return NULL;
}

/* Reads that the page cache answers need no other thread. */
static bool pool_read_now(struct raw_pool *raw, const struct block_request *request)
{
    return request->op == BLOCK_READ &&
           preadv2(raw->fd, request->iov, (int)request->iov_count, (off_t)request->offset,
                   RWF_NOWAIT) == (ssize_t)request->length;
}

static void pool_submit(struct block *block, struct block_request *request)
{
    struct raw_pool *raw = container_of(block, struct raw_pool, block);
    int ret = raw_check(block, request);

    if (ret || (request->op != BLOCK_FLUSH && request->length == 0) ||
        pool_read_now(raw, request)) {
        request->done(request, ret);
        return;
    }
    *pool_link(request) = NULL;
    pthread_mutex_lock(&raw->lock);
    *raw->last = request;
    raw->last = pool_link(request);
    pthread_cond_signal(&raw->work);
    pthread_mutex_unlock(&raw->lock);
}

static void pool_close(struct block *block)
{
    struct raw_pool *raw = container_of(block, struct raw_pool, block);

    pthread_mutex_lock(&raw->lock);
    raw->stop = true;
    pthread_cond_broadcast(&raw->work);
    pthread_mutex_unlock(&raw->lock);
    for (unsigned i = 0; i < raw->threads; i++)
        pthread_join(raw->thread[i], NULL);
    if (raw->fd >= 0)
        close(raw->fd);
    pthread_cond_destroy(&raw->work);
    pthread_mutex_destroy(&raw->lock);
    free(raw);
}

static const struct block_ops pool_ops = {.submit = pool_submit, .close = pool_close};

int raw_pool_create(int fd, struct block **out)
{
    struct raw_pool *raw = calloc(1, sizeof(*raw));
    sigset_t all, old;

    if (!raw)
        return -ENOMEM;
    raw->block.ops = &pool_ops;
    raw->fd = fd;
    raw->last = &raw->first;
    pthread_mutex_init(&raw->lock, NULL);
    pthread_cond_init(&raw->work, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (raw->threads < POOL_THREADS &&
           pthread_create(&raw->thread[raw->threads], NULL, pool_main, raw) == 0)
        raw->threads++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (raw->threads == 0) {
        raw->fd = -1; /* stays the caller's */
        pool_close(&raw->block);
        return -EAGAIN;
    }
    *out = &raw->block;
    return 0;
}
