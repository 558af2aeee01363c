/* The bus: who answers, what nobody answers, and doorbells. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "core/bus.h"

static uint64_t echo_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)size;
    return *(uint64_t *)opaque + offset;
}

static void echo_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)size;
    *(uint64_t *)opaque = value + offset;
}

static const struct bus_ops echo_ops = {.read = echo_read, .write = echo_write};

static void test_regions(void **state)
{
    uint64_t low = 0x11223344, high = 7;
    struct bus_region a = {.base = 0x100, .len = 8, .ops = &echo_ops, .opaque = &low};
    struct bus_region b = {.base = 0x108, .len = 1, .ops = &echo_ops, .opaque = &high};
    struct bus_region overlap = {.base = 0xff, .len = 2, .ops = &echo_ops, .opaque = &low};
    struct bus *bus;

    (void)state;
    assert_int_equal(bus_create(&bus), 0);
    assert_int_equal(bus_add(bus, BUS_PORT, &b), 0);
    assert_int_equal(bus_add(bus, BUS_PORT, &a), 0);
    assert_int_equal(bus_add(bus, BUS_PORT, &overlap), -EEXIST);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x102, 2), 0x3346);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x108, 1), 7);
    bus_write(bus, BUS_PORT, 0x108, 1, 0x1ff);
    assert_true(high == 0xff);
    /* Nobody there, an access that leaves its region, another space. */
    assert_int_equal(bus_read(bus, BUS_PORT, 0x109, 1), 0xff);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x106, 4), 0xffffffff);
    assert_true(bus_read(bus, BUS_MEMORY, 0x100, 8) == UINT64_MAX);
    bus_remove(bus, BUS_PORT, 0x100);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x102, 2), 0xffff);
    bus_destroy(bus);
}

static void ring(void *opaque)
{
    ++*(int *)opaque;
}

static void count_bells(void *opaque, const struct bus_doorbell *bell, bool added)
{
    (void)bell;
    *(int *)opaque += added ? 1 : -1;
}

static void test_doorbells(void **state)
{
    uint64_t reg = 0;
    int rings = 0, watched = 0;
    struct bus_region region = {.base = 0x1000, .len = 16, .ops = &echo_ops, .opaque = &reg};
    struct bus_doorbell bell = {.space = BUS_MEMORY, .addr = 0x1004, .size = 2, .match = true,
                                .value = 3, .ring = ring, .opaque = &rings, .event_fd = -1};
    struct bus *bus;

    (void)state;
    assert_int_equal(bus_create(&bus), 0);
    assert_int_equal(bus_add(bus, BUS_MEMORY, &region), 0);
    assert_int_equal(bus_add_doorbell(bus, &bell), 0);
    bus_watch_doorbells(bus, count_bells, &watched);
    assert_int_equal(watched, 1);
    bus_write(bus, BUS_MEMORY, 0x1004, 2, 3);
    assert_int_equal(rings, 1);
    assert_true(reg == 0);
    bus_write(bus, BUS_MEMORY, 0x1004, 2, 4);
    bus_write(bus, BUS_MEMORY, 0x1004, 4, 3);
    assert_int_equal(rings, 1);
    assert_true(reg == 7);
    bus_remove_doorbell(bus, &bell);
    assert_int_equal(watched, 0);
    bus_destroy(bus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_regions),
        cmocka_unit_test(test_doorbells),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
