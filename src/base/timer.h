/*
 * One-shot timers, served by one thread of a timer queue.
 *
 * A timer's callback runs on the queue's thread with no lock of the queue held; it may re-arm.
 * timer_arm/timer_cancel are callable from any thread, with device locks held; they never wait
 * for a running callback. timer_release() does wait for it (call it without the locks the
 * callback takes). Ownership: the caller owns struct timer's storage.
 */
#ifndef BASE_TIMER_H
#define BASE_TIMER_H

#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

struct timer_queue;

typedef void timer_fn(void *opaque);

struct timer {
    struct timer_queue *queue; /* borrowed */
    timer_fn *fn;
    void *opaque;
    uint64_t deadline; /* clock_now() time; CLOCK_NEVER when idle; queue lock */
    size_t slot;       /* position in the queue's heap; queue lock */
};

nodiscard int timer_queue_create(struct timer_queue **out);
void timer_queue_destroy(struct timer_queue *queue); /* every timer must have been released */

void timer_init(struct timer *timer, struct timer_queue *queue, timer_fn *fn, void *opaque);
void timer_release(struct timer *timer);
void timer_arm(struct timer *timer, uint64_t deadline); /* moves it when armed already */
void timer_cancel(struct timer *timer);

#endif
