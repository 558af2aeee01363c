/* The timer queue: order, moving, cancelling, re-arming from the callback. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdatomic.h>
#include <time.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/timer.h"

struct probe {
    struct timer timer;
    _Atomic int *order;
    _Atomic int at;    /* place in the order of firing */
    _Atomic int again; /* how often the callback re-arms */
};

static void fired(void *opaque)
{
    struct probe *probe = opaque;

    probe->at = ++*probe->order;
    if (probe->again-- > 0)
        timer_arm(&probe->timer, clock_now());
}

static void wait_for(_Atomic int *value, int want)
{
    struct timespec ms = {.tv_nsec = 1000000};

    for (int i = 0; i < 5000 && *value < want; i++)
        nanosleep(&ms, NULL);
    assert_int_equal(*value, want);
}

static void test_queue(void **state)
{
    struct timer_queue *queue;
    _Atomic int order = 0;
    struct probe probe[4];
    uint64_t now;

    (void)state;
    assert_int_equal(timer_queue_create(&queue), 0);
    for (int i = 0; i < 4; i++) {
        probe[i].order = &order;
        probe[i].at = probe[i].again = 0;
        timer_init(&probe[i].timer, queue, fired, &probe[i]);
    }
    now = clock_now();
    timer_arm(&probe[0].timer, now + 60 * NSEC_PER_MSEC);
    timer_arm(&probe[1].timer, now + 20 * NSEC_PER_MSEC);
    timer_arm(&probe[2].timer, now + 3600 * NSEC_PER_SEC);
    timer_arm(&probe[3].timer, now + 10 * NSEC_PER_MSEC);
    timer_arm(&probe[2].timer, now + 40 * NSEC_PER_MSEC); /* moved */
    timer_cancel(&probe[3].timer);
    wait_for(&order, 3);
    assert_int_equal(probe[1].at, 1);
    assert_int_equal(probe[2].at, 2);
    assert_int_equal(probe[0].at, 3);
    assert_int_equal(probe[3].at, 0);

    probe[3].again = 9;
    timer_arm(&probe[3].timer, 0);
    wait_for(&order, 13);
    for (int i = 0; i < 4; i++)
        timer_release(&probe[i].timer);
    timer_queue_destroy(queue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queue),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
