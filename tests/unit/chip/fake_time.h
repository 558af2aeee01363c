/*
 * Time that stands still until a test moves it: takes the place of base/clock.c and base/timer.c in
 * a test program. Include it in exactly one .c file. fake_time_to() runs the timers on its way.
 */
#ifndef TESTS_FAKE_TIME_H
#define TESTS_FAKE_TIME_H

#include <stdlib.h>

#include "base/clock.h"
#include "base/timer.h"

#define FAKE_TIMERS 32u

struct timer_queue {
    struct timer *timers[FAKE_TIMERS];
    unsigned count;
};

static struct {
    uint64_t now;
    uint64_t wall; /* wall clock at now == 0 */
    struct timer_queue *queue;
} fake_time = {.now = 1000 * NSEC_PER_SEC};

uint64_t clock_now(void)
{
    return fake_time.now;
}

uint64_t clock_wall(void)
{
    return fake_time.wall + fake_time.now;
}

uint32_t clock_host_tsc_khz(void)
{
    return 2000000;
}

int timer_queue_create(struct timer_queue **out)
{
    *out = fake_time.queue = calloc(1, sizeof(**out));
    return 0;
}

void timer_queue_destroy(struct timer_queue *queue)
{
    BUG_ON(queue->count);
    free(queue);
}

void timer_init(struct timer *timer, struct timer_queue *queue, timer_fn *fn, void *opaque)
{
    *timer = (struct timer){.queue = queue, .fn = fn, .opaque = opaque, .deadline = CLOCK_NEVER};
    BUG_ON(queue->count == FAKE_TIMERS);
    queue->timers[queue->count++] = timer;
}

void timer_release(struct timer *timer)
{
    struct timer_queue *queue = timer->queue;

    for (unsigned i = 0; i < queue->count; i++) {
        if (queue->timers[i] == timer)
            queue->timers[i--] = queue->timers[--queue->count];
    }
}

void timer_arm(struct timer *timer, uint64_t deadline)
{
    timer->deadline = deadline;
}

void timer_cancel(struct timer *timer)
{
    timer->deadline = CLOCK_NEVER;
}

/* The armed timer that is due first. */
static inline struct timer *fake_time_next(void)
{
    struct timer *next = NULL;

    for (unsigned i = 0; i < fake_time.queue->count; i++) {
        struct timer *t = fake_time.queue->timers[i];

        if (t->deadline != CLOCK_NEVER && (!next || t->deadline < next->deadline))
            next = t;
    }
    return next;
}

static inline void fake_time_to(uint64_t when)
{
    struct timer *t;

    while ((t = fake_time_next()) && t->deadline <= when) {
        if (t->deadline > fake_time.now)
            fake_time.now = t->deadline;
        t->deadline = CLOCK_NEVER;
        t->fn(t->opaque);
    }
    fake_time.now = when;
}

static inline void fake_time_pass(uint64_t ns)
{
    fake_time_to(fake_time.now + ns);
}

#endif
