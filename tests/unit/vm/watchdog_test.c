#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <semaphore.h>

#include "base/clock.h"
#include "vm/watchdog.h"

static void bark(void *opaque)
{
    sem_post(opaque);
}

static void test_barks_when_it_takes_too_long(void **state)
{
    struct watchdog dog;
    sem_t barked;

    (void)state;
    sem_init(&barked, 0, 0);
    watchdog_start(&dog, 20 * NSEC_PER_MSEC, bark, &barked);
    assert_int_equal(sem_wait(&barked), 0); /* the test runner's limit catches one that is mute */
    watchdog_stop(&dog);
    sem_destroy(&barked);
}

static void test_is_quiet_when_stopped(void **state)
{
    struct watchdog dog;
    sem_t barked;

    (void)state;
    sem_init(&barked, 0, 0);
    for (unsigned i = 0; i < 100; i++) {
        watchdog_start(&dog, 3600 * NSEC_PER_SEC, bark, &barked);
        watchdog_stop(&dog);
    }
    assert_int_equal(sem_trywait(&barked), -1);
    sem_destroy(&barked);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_barks_when_it_takes_too_long),
        cmocka_unit_test(test_is_quiet_when_stopped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
