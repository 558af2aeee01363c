#include "base/timer.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"

#define TIMER_IDLE SIZE_MAX /* slot of a timer that is not in the heap */

struct timer_queue {
    pthread_mutex_t lock;
    pthread_cond_t changed;  /* the earliest deadline or `stop` changed */
    pthread_cond_t finished; /* a callback returned */
    pthread_t thread;
    struct timer **heap; /* min-heap by deadline; the timers are borrowed */
    size_t count;
    size_t capacity;
    struct timer *running; /* its callback runs now */
    bool stop;
};

static void heap_put(struct timer_queue *queue, size_t slot, struct timer *timer)
{
    queue->heap[slot] = timer;
    timer->slot = slot;
}

static void heap_sift_up(struct timer_queue *queue, size_t slot)
{
    struct timer *timer = queue->heap[slot];

    while (slot > 0) {
        size_t parent = (slot - 1) / 2;

        if (queue->heap[parent]->deadline <= timer->deadline)
            break;
        heap_put(queue, slot, queue->heap[parent]);
        slot = parent;
    }
    heap_put(queue, slot, timer);
}

static void heap_sift_down(struct timer_queue *queue, size_t slot)
{
    struct timer *timer = queue->heap[slot];

    for (;;) {
        size_t child = 2 * slot + 1;

        if (child >= queue->count)
            break;
        if (child + 1 < queue->count &&
            queue->heap[child + 1]->deadline < queue->heap[child]->deadline)
            child++;
        if (timer->deadline <= queue->heap[child]->deadline)
            break;
        heap_put(queue, slot, queue->heap[child]);
        slot = child;
    }
    heap_put(queue, slot, timer);
}

static void heap_remove(struct timer_queue *queue, struct timer *timer)
{
    size_t slot = timer->slot;
    struct timer *last;

    if (slot == TIMER_IDLE)
        return;
    last = queue->heap[--queue->count];
    timer->slot = TIMER_IDLE;
    timer->deadline = CLOCK_NEVER;
    if (last == timer)
        return;
    heap_put(queue, slot, last);
    heap_sift_up(queue, slot);
    heap_sift_down(queue, last->slot);
}

static void heap_insert(struct timer_queue *queue, struct timer *timer, uint64_t deadline)
{
    timer->deadline = deadline;
    heap_put(queue, queue->count++, timer);
    heap_sift_up(queue, timer->slot);
}

static void timer_wait(struct timer_queue *queue)
{
    struct timespec until;
    uint64_t deadline;

    if (queue->count == 0) {
        pthread_cond_wait(&queue->changed, &queue->lock);
        return;
    }
    deadline = queue->heap[0]->deadline;
    until.tv_sec = (time_t)(deadline / NSEC_PER_SEC);
    until.tv_nsec = (long)(deadline % NSEC_PER_SEC);
    pthread_cond_timedwait(&queue->changed, &queue->lock, &until);
}

static void *timer_thread(void *opaque)
{
    struct timer_queue *queue = opaque;

    pthread_mutex_lock(&queue->lock);
    while (!queue->stop) {
        struct timer *timer;

        if (queue->count == 0 || queue->heap[0]->deadline > clock_now()) {
            timer_wait(queue);
            continue;
        }
        timer = queue->heap[0];
        heap_remove(queue, timer);
        queue->running = timer;
        pthread_mutex_unlock(&queue->lock);
        timer->fn(timer->opaque);
        pthread_mutex_lock(&queue->lock);
        queue->running = NULL;
        pthread_cond_broadcast(&queue->finished);
    }
    pthread_mutex_unlock(&queue->lock);
    return NULL;
}

int timer_queue_create(struct timer_queue **out)
{
    struct timer_queue *queue = calloc(1, sizeof(*queue));
    pthread_condattr_t attr;
    int ret;

    if (!queue)
        return -ENOMEM;
    pthread_mutex_init(&queue->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&queue->changed, &attr);
    pthread_cond_init(&queue->finished, NULL);
    pthread_condattr_destroy(&attr);
    ret = pthread_create(&queue->thread, NULL, timer_thread, queue);
    if (ret) {
        pthread_cond_destroy(&queue->finished);
        pthread_cond_destroy(&queue->changed);
        pthread_mutex_destroy(&queue->lock);
        free(queue);
        return -ret;
    }
    *out = queue;
    return 0;
}

void timer_queue_destroy(struct timer_queue *queue)
{
    if (!queue)
        return;
    pthread_mutex_lock(&queue->lock);
    queue->stop = true;
    pthread_cond_signal(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
    pthread_join(queue->thread, NULL);
    pthread_cond_destroy(&queue->finished);
    pthread_cond_destroy(&queue->changed);
    pthread_mutex_destroy(&queue->lock);
    free(queue->heap);
    free(queue);
}

/* The heap's room is reserved when a timer is made, so that arming cannot fail. */
void timer_init(struct timer *timer, struct timer_queue *queue, timer_fn *fn, void *opaque)
{
    struct timer **heap;

    timer->queue = queue;
    timer->fn = fn;
    timer->opaque = opaque;
    timer->deadline = CLOCK_NEVER;
    timer->slot = TIMER_IDLE;
    pthread_mutex_lock(&queue->lock);
    heap = realloc(queue->heap, (queue->capacity + 1) * sizeof(*heap));
    if (!heap)
        BUG("out of memory for a timer");
    queue->heap = heap;
    queue->capacity++;
    pthread_mutex_unlock(&queue->lock);
}

void timer_release(struct timer *timer)
{
    struct timer_queue *queue = timer->queue;

    if (!queue)
        return;
    pthread_mutex_lock(&queue->lock);
    /* A running callback may re-arm, so it must have returned before the removal counts. */
    while (queue->running == timer && !pthread_equal(queue->thread, pthread_self()))
        pthread_cond_wait(&queue->finished, &queue->lock);
    heap_remove(queue, timer);
    queue->capacity--;
    pthread_mutex_unlock(&queue->lock);
    timer->queue = NULL;
}

void timer_arm(struct timer *timer, uint64_t deadline)
{
    struct timer_queue *queue = timer->queue;
    bool earliest;

    pthread_mutex_lock(&queue->lock);
    heap_remove(queue, timer);
    if (deadline == CLOCK_NEVER) {
        pthread_mutex_unlock(&queue->lock);
        return;
    }
    heap_insert(queue, timer, deadline);
    earliest = timer->slot == 0;
    pthread_mutex_unlock(&queue->lock);
    if (earliest)
        pthread_cond_signal(&queue->changed);
}

void timer_cancel(struct timer *timer)
{
    timer_arm(timer, CLOCK_NEVER);
}
