/* Saved state: a round trip, and every way a section can be wrong leaves the object alone. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "core/state.h"

struct pin {
    uint8_t level;
    uint32_t count;
};

struct chip {
    uint16_t control;
    void *not_saved;
    struct pin pin[3];
    uint8_t ram[5];
    bool on;
};

static const struct state_field pin_fields[] = {
    STATE_UINT(struct pin, level),
    STATE_UINT(struct pin, count),
    STATE_FIELDS_END,
};
static const struct state_field chip_fields[] = {
    STATE_UINT(struct chip, control),
    STATE_STRUCT_ARRAY(struct chip, pin, pin_fields),
    STATE_BYTES(struct chip, ram),
    STATE_UINT(struct chip, on),
    STATE_FIELDS_END,
};
static const struct state_table chip_table = {"chip", 3, chip_fields};

static const struct chip sample = {
    .control = 0xbeef,
    .pin = {{1, 100000}, {0, 2}, {1, 0xffffffff}},
    .ram = "abcd",
    .on = true,
};

static void test_round_trip(void **state)
{
    struct chip loaded = {.not_saved = &loaded};
    struct error err = {0};
    struct state_buf buf;
    size_t pos = 0;

    (void)state;
    state_buf_init(&buf);
    assert_int_equal(state_save(&buf, &chip_table, "chip0", &sample), 0);
    assert_int_equal(buf.len, 6 + 8 + 2 + 3 * 5 + 5 + 1);
    assert_int_equal(state_load(buf.data, buf.len, &pos, &chip_table, "chip0", &loaded, &err), 0);
    assert_int_equal(pos, buf.len);
    assert_int_equal(loaded.control, sample.control);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(loaded.pin[i].level, sample.pin[i].level);
        assert_int_equal(loaded.pin[i].count, sample.pin[i].count);
    }
    assert_memory_equal(loaded.ram, sample.ram, 5);
    assert_true(loaded.on);
    assert_ptr_equal(loaded.not_saved, &loaded);
    state_buf_release(&buf);
}

static void test_refusals(void **state)
{
    static const struct state_table newer = {"chip", 4, chip_fields};
    struct chip loaded = {0}, untouched = {0};
    struct state_buf buf;

    (void)state;
    state_buf_init(&buf);
    assert_int_equal(state_save(&buf, &chip_table, "chip0", &sample), 0);
    for (size_t len = 0; len < buf.len; len++) {
        struct error err = {0};
        size_t pos = 0;

        assert_int_equal(state_load(buf.data, len, &pos, &chip_table, "chip0", &loaded, &err),
                         -EINVAL);
        assert_int_equal(pos, 0);
    }
    for (int i = 0; i < 2; i++) {
        struct error err = {0};
        size_t pos = 0;

        assert_int_equal(state_load(buf.data, buf.len, &pos, i ? &newer : &chip_table,
                                    i ? "chip0" : "chip1", &loaded, &err), -EINVAL);
    }
    assert_memory_equal(&loaded, &untouched, sizeof(loaded));
    state_buf_release(&buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
