/* The real-time clock: it runs, in both formats; its three interrupts; CMOS memory. GUEST: cpus=1 */
#include "chips.h"

#define V_RTC 0x58

static volatile unsigned rtc_count, rtc_flags;

static uint8_t rtc_get(uint8_t reg)
{
    outb(0x70, reg);
    return inb(0x71);
}

static void rtc_put(uint8_t reg, uint8_t value)
{
    outb(0x70, reg);
    outb(0x71, value);
}

static bool on_rtc(struct frame *f)
{
    (void)f;
    rtc_flags = rtc_get(0xc);
    rtc_count++;
    apic_write(APIC_EOI, 0);
    return true;
}

/* Seconds since midnight, read between updates. */
static unsigned rtc_time(void)
{
    unsigned s, m, h, again;

    do {
        while (rtc_get(0xa) & 0x80)
            __asm__ volatile("pause");
        s = rtc_get(0);
        m = rtc_get(2);
        h = rtc_get(4);
        again = rtc_get(0);
    } while (again != s);
    return (h * 60 + m) * 60 + s;
}

static void test_runs(void)
{
    unsigned start, now;

    rtc_put(0xb, 0x06); /* binary, 24 hours */
    start = rtc_time();
    pm_wait_ms(1100);
    now = rtc_time();
    CHECK((now - start + 86400) % 86400 >= 1 && (now - start + 86400) % 86400 <= 10);
    CHECK(rtc_get(8) >= 1 && rtc_get(8) <= 12);
    CHECK(rtc_get(9) >= 20);
    CHECK_EQ(rtc_get(0xd) & 0x80, 0x80);
}

static void test_set(void)
{
    rtc_put(0xb, 0x86); /* SET: 2028-02-28 23:59:59 */
    rtc_put(0, 59);
    rtc_put(2, 59);
    rtc_put(4, 23);
    rtc_put(7, 28);
    rtc_put(8, 2);
    rtc_put(9, 28);
    rtc_put(0xb, 0x06);
    pm_wait_ms(1500);
    CHECK(rtc_time() < 10);
    CHECK_EQ(rtc_get(7), 29);
    CHECK_EQ(rtc_get(8), 2);
    rtc_put(0xb, 0x00); /* BCD, 12 hours */
    CHECK_EQ(rtc_get(4), 0x12); /* midnight */
    rtc_put(0xb, 0x06);
}

static void test_interrupts(void)
{
    unsigned before;

    rtc_get(0xc);
    rtc_put(0xa, 0x2a); /* 64 Hz */
    rtc_put(0xb, 0x46);
    before = rtc_count;
    CHECK(irq_wait(&rtc_count, before + 8));
    CHECK_EQ(rtc_flags & 0xc0, 0xc0);
    irq_off();
    rtc_put(0xb, 0x16); /* update ended */
    rtc_get(0xc);
    before = rtc_count;
    CHECK(irq_wait(&rtc_count, before + 1));
    CHECK_EQ(rtc_flags & 0x90, 0x90);
    irq_off();
    rtc_put(1, 0xff); /* alarm: every second */
    rtc_put(3, 0xff);
    rtc_put(5, 0xff);
    rtc_put(0xb, 0x26);
    rtc_get(0xc);
    before = rtc_count;
    CHECK(irq_wait(&rtc_count, before + 1));
    CHECK_EQ(rtc_flags & 0xa0, 0xa0);
    irq_off();
    rtc_put(0xb, 0x06);
}

int main(void)
{
    pic_init(0x40, 0xff, 0xff);
    apic_write(APIC_SVR, 0x1ff);
    trap_set_handler(V_RTC, on_rtc);
    ioapic_route(8, V_RTC, 0);
    /* HLT needs a tick to look at its watch. */
    test_runs();
    test_set();
    test_interrupts();
    rtc_put(0x50, 0x5a);
    CHECK_EQ(rtc_get(0x50), 0x5a);
    return 0;
}
