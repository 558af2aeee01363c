#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>

#include "cpu/soft/tuning.h"

static void test_defaults(void **state)
{
    struct soft_tuning t, empty;

    (void)state;
    assert_int_equal(soft_tuning_parse(NULL, &t), 0);
    assert_int_equal(soft_tuning_parse("", &empty), 0);
    assert_memory_equal(&t, &empty, sizeof(t));
    assert_false(t.interpret || t.slow || t.lockstep || t.forget);
    assert_int_equal(t.runs, 8);
    assert_int_equal(t.block_insns, 64);
    assert_int_equal(t.code_size, 0);
    assert_int_equal(t.flush, 0);
}

static void test_words(void **state)
{
    struct soft_tuning t;

    (void)state;
    assert_int_equal(soft_tuning_parse("slow,runs=3,block=1,code=512,flush=50", &t), 0);
    assert_true(t.slow);
    assert_false(t.interpret);
    assert_int_equal(t.runs, 3);
    assert_int_equal(t.block_insns, 1);
    assert_int_equal(t.code_size, 512u << 10);
    assert_int_equal(t.flush, 50);
    assert_int_equal(soft_tuning_parse("forget", &t), 0);
    assert_true(t.forget);
    assert_int_equal(soft_tuning_parse("interpret", &t), 0);
    assert_true(t.interpret);
    assert_int_equal(soft_tuning_parse("lockstep,runs=1", &t), 0);
    assert_true(t.lockstep);
    assert_int_equal(soft_tuning_parse("runs=1,runs=2", &t), 0); /* the last counts */
    assert_int_equal(t.runs, 2);
}

static void test_limits(void **state)
{
    static const char *const good[] = {"runs=1",  "runs=60000",  "block=1", "block=64",
                                       "code=256", "code=1048576", "flush=1", "flush=4294967295"};
    static const char *const bad[] = {
        "runs=0",   "runs=60001",   "runs=",    "runs",      "runs=x",      "runs=1x",   "block=0",
        "block=65", "code=255",     "code=1048577", "flush=0", "flush=4294967296", "fast",
        "slow ",    " slow",        "Slow",     "slowly",    ",,",          ",slow",     "slow,,runs=1",
        "runs=1;slow", "interpretinterpretinterpretinterpret"};
    struct soft_tuning t;

    (void)state;
    for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(soft_tuning_parse(good[i], &t), 0);
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (soft_tuning_parse(bad[i], &t) != -EINVAL)
            fail_msg("'%s' was accepted", bad[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
