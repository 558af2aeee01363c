/* The 8254, the MC146818 and the ACPI timer and events, on a clock that the test moves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "chip/acpi_pm.h"
#include "chip/i8254.h"
#include "chip/mc146818.h"
#include "fake_time.h"

#define PM_BASE 0x600u
#define TICK_NS(n) ((uint64_t)(n) * NSEC_PER_SEC / 1193182 + 1)

struct fixture {
    struct machine *machine;
    struct mc146818 *rtc;
    struct acpi_pm *pm;
    unsigned rises[24];
    int level[24];
    unsigned requests[4];
};

static void line_set(void *opaque, unsigned number, int level)
{
    struct fixture *f = opaque;

    if (level && !f->level[number])
        f->rises[number]++;
    f->level[number] = level;
}

static void requested(void *opaque, enum machine_request what, int code, const char *reason)
{
    (void)code;
    (void)reason;
    ((struct fixture *)opaque)->requests[what]++;
}

static struct irq_line line(struct fixture *f, unsigned number)
{
    return (struct irq_line){.set = line_set, .opaque = f, .number = number};
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    fake_time.now = 1000 * NSEC_PER_SEC;
    /* 2026-12-31 23:59:50 UTC when the machine starts */
    fake_time.wall = 1798761590ull * NSEC_PER_SEC - fake_time.now;
    assert_int_equal(machine_create(&f->machine), 0);
    f->machine->request = requested;
    f->machine->request_opaque = f;
    assert_int_equal(i8254_create(f->machine, line(f, 0)), 0);
    assert_int_equal(mc146818_create(f->machine, line(f, 8), &f->rtc), 0);
    assert_int_equal(acpi_pm_create(f->machine, PM_BASE, line(f, 9), &f->pm), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    machine_destroy(f->machine);
    free(f);
    return 0;
}

static void out(struct fixture *f, uint16_t port, uint8_t value)
{
    bus_write(f->machine->bus, BUS_PORT, port, 1, value);
}

static uint8_t in(struct fixture *f, uint16_t port)
{
    return (uint8_t)bus_read(f->machine->bus, BUS_PORT, port, 1);
}

static uint16_t pit_latched(struct fixture *f, unsigned channel)
{
    uint16_t low;

    out(f, 0x43, (uint8_t)(channel << 6));
    low = in(f, (uint16_t)(0x40 + channel));
    return (uint16_t)(low | in(f, (uint16_t)(0x40 + channel)) << 8);
}

static void pit_program(struct fixture *f, unsigned channel, unsigned mode, uint16_t count)
{
    out(f, 0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
    out(f, (uint16_t)(0x40 + channel), (uint8_t)count);
    out(f, (uint16_t)(0x40 + channel), (uint8_t)(count >> 8));
}

static void test_pit_rate_generator(void **state)
{
    struct fixture *f = *state;
    unsigned before;

    pit_program(f, 0, 2, 11932); /* 100 Hz */
    before = f->rises[0];
    fake_time_pass(NSEC_PER_SEC);
    assert_in_range(f->rises[0] - before, 99, 101);
    pit_program(f, 0, 3, 11932);
    before = f->rises[0];
    fake_time_pass(NSEC_PER_SEC);
    assert_in_range(f->rises[0] - before, 99, 101);
}

static void test_pit_one_shot(void **state)
{
    struct fixture *f = *state;
    unsigned before;

    pit_program(f, 0, 0, 1000);
    assert_int_equal(f->level[0], 0);
    before = f->rises[0];
    fake_time_pass(TICK_NS(999));
    assert_int_equal(f->rises[0], before);
    fake_time_pass(TICK_NS(2));
    assert_int_equal(f->rises[0], before + 1);
    fake_time_pass(NSEC_PER_SEC);
    assert_int_equal(f->rises[0], before + 1);
}

static void test_pit_latch_and_read_back(void **state)
{
    struct fixture *f = *state;
    uint8_t low;

    pit_program(f, 0, 2, 10000);
    fake_time_pass(TICK_NS(100));
    assert_in_range(pit_latched(f, 0), 9899, 9901);
    out(f, 0x43, 0xc2); /* read back: count and status of channel 0 */
    fake_time_pass(TICK_NS(500));
    assert_int_equal(in(f, 0x40) & 0xbf, 0xb4); /* OUT high, both bytes, mode 2, binary */
    low = in(f, 0x40);
    assert_in_range(low | in(f, 0x40) << 8, 9899, 9901); /* as it was then */
    assert_in_range(pit_latched(f, 0), 9398, 9401);
    out(f, 0x43, 0x34);
    out(f, 0x43, 0xe2); /* status only: nothing loaded yet */
    assert_int_equal(in(f, 0x40) & 0x40, 0x40);
}

static void test_pit_bcd(void **state)
{
    struct fixture *f = *state;

    out(f, 0x43, 0x35); /* channel 0, mode 2, BCD */
    out(f, 0x40, 0x00);
    out(f, 0x40, 0x10); /* 1000 */
    fake_time_pass(TICK_NS(1));
    assert_int_equal(pit_latched(f, 0), 0x0999);
}

static void test_pit_speaker_gate(void **state)
{
    struct fixture *f = *state;

    pit_program(f, 2, 0, 2000);
    fake_time_pass(TICK_NS(5000));
    assert_int_equal(in(f, 0x61) & 0x20, 0); /* the gate is low: it does not count */
    out(f, 0x61, 1);
    fake_time_pass(TICK_NS(1000));
    out(f, 0x61, 0);
    fake_time_pass(TICK_NS(5000));
    assert_in_range(pit_latched(f, 2), 998, 1000);
    assert_int_equal(in(f, 0x61) & 0x20, 0);
    out(f, 0x61, 1);
    fake_time_pass(TICK_NS(1001));
    assert_int_equal(in(f, 0x61) & 0x20, 0x20);
}

static void test_pit_hardware_shot(void **state)
{
    struct fixture *f = *state;

    pit_program(f, 2, 1, 100);
    assert_int_equal(in(f, 0x61) & 0x20, 0x20);
    out(f, 0x61, 1); /* triggers */
    fake_time_pass(TICK_NS(50));
    assert_int_equal(in(f, 0x61) & 0x20, 0);
    fake_time_pass(TICK_NS(51));
    assert_int_equal(in(f, 0x61) & 0x20, 0x20);
    pit_program(f, 2, 4, 100); /* strobe */
    fake_time_pass(TICK_NS(100));
    assert_int_equal(in(f, 0x61) & 0x20, 0);
    fake_time_pass(TICK_NS(1));
    assert_int_equal(in(f, 0x61) & 0x20, 0x20);
}

static uint8_t rtc_get(struct fixture *f, uint8_t reg)
{
    out(f, 0x70, reg);
    return in(f, 0x71);
}

static void rtc_put(struct fixture *f, uint8_t reg, uint8_t value)
{
    out(f, 0x70, reg);
    out(f, 0x71, value);
}

static void test_rtc_rolls_over(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(rtc_get(f, 9), 0x26);
    assert_int_equal(rtc_get(f, 0x32), 0x20);
    assert_int_equal(rtc_get(f, 8), 0x12);
    assert_int_equal(rtc_get(f, 7), 0x31);
    assert_int_equal(rtc_get(f, 6), 5); /* Thursday */
    assert_int_equal(rtc_get(f, 4), 0x23);
    assert_int_equal(rtc_get(f, 2), 0x59);
    assert_int_equal(rtc_get(f, 0), 0x50);
    fake_time_pass(10 * NSEC_PER_SEC);
    assert_int_equal(rtc_get(f, 9), 0x27);
    assert_int_equal(rtc_get(f, 8), 1);
    assert_int_equal(rtc_get(f, 7), 1);
    assert_int_equal(rtc_get(f, 4), 0);
    assert_int_equal(rtc_get(f, 0), 0);
}

static void test_rtc_formats(void **state)
{
    struct fixture *f = *state;

    rtc_put(f, 0xb, 0x00); /* 12 hours, BCD */
    assert_int_equal(rtc_get(f, 4), 0x91); /* 11 p.m. */
    rtc_put(f, 0xb, 0x06); /* 24 hours, binary */
    assert_int_equal(rtc_get(f, 4), 23);
    assert_int_equal(rtc_get(f, 2), 59);
    rtc_put(f, 0xb, 0x04);
    fake_time_pass(10 * NSEC_PER_SEC);
    assert_int_equal(rtc_get(f, 4), 12); /* midnight */
}

static void test_rtc_is_set(void **state)
{
    struct fixture *f = *state;
    static const struct { uint8_t reg, value; } date[] = {
        {0, 0x58}, {2, 0x59}, {4, 0x23}, {7, 0x28}, {8, 0x02}, {9, 0x28}};

    rtc_put(f, 0xb, 0x82); /* SET */
    for (unsigned i = 0; i < ARRAY_SIZE(date); i++)
        rtc_put(f, date[i].reg, date[i].value);
    fake_time_pass(5 * NSEC_PER_SEC);
    assert_int_equal(rtc_get(f, 0), 0x58); /* stands still */
    rtc_put(f, 0xb, 0x02);
    fake_time_pass(2 * NSEC_PER_SEC);
    assert_int_equal(rtc_get(f, 8), 0x02); /* 2028 is a leap year */
    assert_int_equal(rtc_get(f, 7), 0x29);
    assert_int_equal(rtc_get(f, 4), 0x00);
    rtc_put(f, 0x40, 0xa5);
    assert_int_equal(rtc_get(f, 0x40), 0xa5);
}

static void test_rtc_update_in_progress(void **state)
{
    struct fixture *f = *state;

    fake_time_pass(NSEC_PER_SEC - 200 * NSEC_PER_USEC);
    assert_int_equal(rtc_get(f, 0xa), 0xa6);
    fake_time_pass(200 * NSEC_PER_USEC);
    assert_int_equal(rtc_get(f, 0xa), 0x26);
    assert_int_equal(rtc_get(f, 0), 0x51);
}

static void test_rtc_interrupts(void **state)
{
    struct fixture *f = *state;
    unsigned seen = 0;

    assert_int_equal(rtc_get(f, 0xc) & 0x80, 0);
    rtc_put(f, 0xa, 0x2f); /* 2 Hz */
    rtc_put(f, 0xb, 0x42);
    for (unsigned i = 0; i < 80; i++) {
        fake_time_pass(50 * NSEC_PER_MSEC);
        if (f->level[8]) {
            assert_int_equal(rtc_get(f, 0xc) & 0xc0, 0xc0);
            seen++;
        }
    }
    assert_in_range(seen, 7, 9);
    rtc_put(f, 0xb, 0x12); /* update ended */
    rtc_get(f, 0xc);
    fake_time_pass(NSEC_PER_SEC);
    assert_int_equal(f->level[8], 1);
    assert_int_equal(rtc_get(f, 0xc) & 0x90, 0x90);
    assert_int_equal(f->level[8], 0);
}

static void test_rtc_alarm(void **state)
{
    struct fixture *f = *state;

    rtc_put(f, 1, 0x00);
    rtc_put(f, 3, 0x01);
    rtc_put(f, 5, 0xff); /* any hour */
    rtc_put(f, 0xb, 0x22);
    rtc_get(f, 0xc);
    fake_time_pass(69 * NSEC_PER_SEC);
    assert_int_equal(f->level[8], 0);
    fake_time_pass(NSEC_PER_SEC); /* 00:01:00 */
    assert_int_equal(f->level[8], 1);
    assert_int_equal(rtc_get(f, 0xc) & 0xa0, 0xa0);
    fake_time_pass(3599 * NSEC_PER_SEC);
    assert_int_equal(f->level[8], 0);
    fake_time_pass(NSEC_PER_SEC);
    assert_int_equal(f->level[8], 1);
    rtc_put(f, 1, 0x77); /* never */
    rtc_get(f, 0xc);
    fake_time_pass(90000 * NSEC_PER_SEC);
    assert_int_equal(f->level[8], 0);
}

static uint32_t pm_read(struct fixture *f, unsigned offset, unsigned size)
{
    return (uint32_t)bus_read(f->machine->bus, BUS_PORT, PM_BASE + offset, size);
}

static void pm_write(struct fixture *f, unsigned offset, unsigned size, uint32_t value)
{
    bus_write(f->machine->bus, BUS_PORT, PM_BASE + offset, size, value);
}

static void test_pm_timer(void **state)
{
    struct fixture *f = *state;
    uint32_t start = pm_read(f, ACPI_PM_TIMER, 4);

    fake_time_pass(NSEC_PER_SEC);
    assert_in_range(pm_read(f, ACPI_PM_TIMER, 4) - start, 3579544, 3579546);
    pm_write(f, ACPI_PM1_EVENT, 2, 0xffff);
    pm_write(f, ACPI_PM1_EVENT + 2, 2, 1); /* TMR_EN */
    fake_time_pass(NSEC_PER_SEC);
    assert_int_equal(f->level[9], 0);
    fake_time_pass(NSEC_PER_SEC); /* past 2^23 ticks, 2.34 s */
    assert_int_equal(f->level[9], 1);
    assert_int_equal(pm_read(f, ACPI_PM1_EVENT, 2) & 1, 1);
    pm_write(f, ACPI_PM1_EVENT, 2, 1);
    assert_int_equal(f->level[9], 0);
    assert_int_equal(pm_read(f, ACPI_PM1_EVENT, 2) & 1, 0);
}

static void test_pm_power(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(pm_read(f, ACPI_PM1_CONTROL, 2) & 1, 1);
    acpi_pm_power_button(f->pm);
    assert_int_equal(f->level[9], 0);
    pm_write(f, ACPI_PM1_EVENT + 2, 2, 0x100);
    assert_int_equal(f->level[9], 1);
    pm_write(f, ACPI_PM1_EVENT, 2, 0x100);
    assert_int_equal(f->level[9], 0);
    pm_write(f, ACPI_PM1_CONTROL, 2, 1u << 13 | 5u << 10); /* a sleep state that is not there */
    assert_int_equal(f->requests[MACHINE_POWER_OFF], 0);
    pm_write(f, ACPI_PM1_CONTROL, 2, 1u << 13 | ACPI_S5_TYPE << 10);
    assert_int_equal(f->requests[MACHINE_POWER_OFF], 1);
    assert_int_equal(pm_read(f, ACPI_PM1_CONTROL, 2) >> 13 & 1, 0); /* SLP_EN reads 0 */
    pm_write(f, ACPI_GPE0 + 8, 1, 0x02);
    assert_int_equal(pm_read(f, ACPI_GPE0 + 8, 4), 2);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(pit_rate_generator), TEST(pit_one_shot), TEST(pit_latch_and_read_back),
        TEST(pit_bcd), TEST(pit_speaker_gate), TEST(pit_hardware_shot), TEST(rtc_rolls_over),
        TEST(rtc_formats), TEST(rtc_is_set), TEST(rtc_update_in_progress), TEST(rtc_interrupts),
        TEST(rtc_alarm), TEST(pm_timer), TEST(pm_power),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
