/* Numbers, sizes, and what a typing error is told. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cli/cli.h"

static void test_sizes(void **state)
{
    static const struct {
        const char *text;
        int ret;
        uint64_t value;
    } cases[] = {
        {"0", 0, 0},
        {"512M", 0, 512ull << 20},
        {"2g", 0, 2ull << 30},
        {"16K", 0, 16384},
        {"1T", 0, 1ull << 40},
        {"18446744073709551615", 0, UINT64_MAX},
        {"18446744073709551616", -ERANGE, 0},
        {"16777216T", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"M", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {"1MB", -EINVAL, 0},
        {"0x10", -EINVAL, 0},
        {" 1", -EINVAL, 0},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t value = 0;

        assert_int_equal(cli_parse_size(cases[i].text, &value), cases[i].ret);
        if (cases[i].ret == 0)
            assert_true(value == cases[i].value);
    }
}

static void test_numbers(void **state)
{
    uint64_t value;

    (void)state;
    assert_int_equal(cli_parse_number("64", 1, 64, &value), 0);
    assert_true(value == 64);
    assert_int_equal(cli_parse_number("65", 1, 64, &value), -ERANGE);
    assert_int_equal(cli_parse_number("0", 1, 64, &value), -ERANGE);
    assert_int_equal(cli_parse_number("4x", 1, 64, &value), -EINVAL);
    assert_int_equal(cli_parse_number("99999999999999999999", 1, 64, &value), -ERANGE);
}

static void test_nearest(void **state)
{
    static const char *const names[] = {"kernel", "memory", "cpus", "disk"};

    (void)state;
    assert_string_equal(cli_nearest("kernal", names, 4), "kernel");
    assert_string_equal(cli_nearest("memry", names, 4), "memory");
    assert_string_equal(cli_nearest("cpu", names, 4), "cpus");
    assert_null(cli_nearest("frobnicate", names, 4));
    assert_null(cli_nearest("a-word-that-is-far-too-long-to-be-a-typing-error", names, 4));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_nearest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
