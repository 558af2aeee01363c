#include "chip/mc146818.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

/* Registers */
enum mc146818_register {
    RTC_SECONDS = 0,
    RTC_SECONDS_ALARM,
    RTC_MINUTES,
    RTC_MINUTES_ALARM,
    RTC_HOURS,
    RTC_HOURS_ALARM,
    RTC_DAY_OF_WEEK, /* 1: Sunday */
    RTC_DAY,
    RTC_MONTH,
    RTC_YEAR,
    RTC_A,
    RTC_B,
    RTC_C,
    RTC_D,
    RTC_CENTURY = 0x32, /* not the chip's own: the PC convention, named in the FADT */
};

#define RTC_A_UIP 0x80u
#define RTC_A_DV(a) (((a) >> 4) & 7u)
#define RTC_A_RS(a) ((a) & 15u)
#define RTC_B_SET  0x80u
#define RTC_B_PIE  0x40u
#define RTC_B_AIE  0x20u
#define RTC_B_UIE  0x10u
#define RTC_B_DM   0x04u /* binary rather than BCD */
#define RTC_B_24   0x02u
#define RTC_C_IRQF 0x80u
#define RTC_C_PF   0x40u
#define RTC_C_AF   0x20u
#define RTC_C_UF   0x10u
#define RTC_D_VRT  0x80u /* the battery is good */

#define RTC_ALARM_ANY   0xc0u /* an alarm byte that matches any value */
#define RTC_HOUR_PM     0x80u
#define RTC_UIP_NS      (244 * NSEC_PER_USEC)
#define RTC_CRYSTAL_HZ  32768u
#define RTC_DAY_SECONDS 86400u
#define RTC_CMOS_SIZE   256u

struct mc146818 {
    struct device dev;
    struct irq_line irq;
    struct timer timer; /* the next enabled event */
    uint8_t index;      /* as written to port 70h */
    uint8_t index_high; /* port 72h */
    uint8_t cmos[RTC_CMOS_SIZE]; /* the time registers are valid here only while stopped */
    int64_t offset;     /* guest's time of day - clock_wall(), ns */
    uint64_t checked;   /* guest's time up to which events are in register C, ns since 1970 */
};

static uint8_t *rtc_reg(struct mc146818 *rtc, enum mc146818_register reg)
{
    return &rtc->cmos[reg];
}

static uint64_t rtc_now(const struct mc146818 *rtc)
{
    return clock_wall() + (uint64_t)rtc->offset;
}

/* SET, or a divider that is not running: time stands still in the registers. */
static bool rtc_stopped(const struct mc146818 *rtc)
{
    return (rtc->cmos[RTC_B] & RTC_B_SET) || RTC_A_DV(rtc->cmos[RTC_A]) >= 6;
}

static uint8_t rtc_encode(const struct mc146818 *rtc, int value)
{
    return (uint8_t)(rtc->cmos[RTC_B] & RTC_B_DM ? value : value / 10 << 4 | value % 10);
}

static int rtc_decode(const struct mc146818 *rtc, uint8_t value)
{
    return rtc->cmos[RTC_B] & RTC_B_DM ? value : (value >> 4) * 10 + (value & 15);
}

static uint8_t rtc_encode_hour(const struct mc146818 *rtc, int hour)
{
    if (rtc->cmos[RTC_B] & RTC_B_24)
        return rtc_encode(rtc, hour);
    return rtc_encode(rtc, (hour + 11) % 12 + 1) | (hour >= 12 ? RTC_HOUR_PM : 0);
}

static int rtc_decode_hour(const struct mc146818 *rtc, uint8_t value)
{
    if (rtc->cmos[RTC_B] & RTC_B_24)
        return rtc_decode(rtc, value);
    return rtc_decode(rtc, value & 0x7f) % 12 + (value & RTC_HOUR_PM ? 12 : 0);
}

/* Shows the time in the registers. */
static void rtc_store_time(struct mc146818 *rtc, uint64_t now)
{
    time_t seconds = (time_t)(now / NSEC_PER_SEC);
    struct tm tm;

    if (!gmtime_r(&seconds, &tm))
        memset(&tm, 0, sizeof(tm));
    rtc->cmos[RTC_SECONDS] = rtc_encode(rtc, tm.tm_sec);
    rtc->cmos[RTC_MINUTES] = rtc_encode(rtc, tm.tm_min);
    rtc->cmos[RTC_HOURS] = rtc_encode_hour(rtc, tm.tm_hour);
    rtc->cmos[RTC_DAY_OF_WEEK] = rtc_encode(rtc, tm.tm_wday + 1);
    rtc->cmos[RTC_DAY] = rtc_encode(rtc, tm.tm_mday);
    rtc->cmos[RTC_MONTH] = rtc_encode(rtc, tm.tm_mon + 1);
    rtc->cmos[RTC_YEAR] = rtc_encode(rtc, tm.tm_year % 100);
    rtc->cmos[RTC_CENTURY] =
        (uint8_t)((tm.tm_year / 100 + 19) / 10 << 4 | (tm.tm_year / 100 + 19) % 10);
}

/* Goes on from the time in the registers; `phase` is the part of the second that has passed. */
static void rtc_load_time(struct mc146818 *rtc, uint64_t phase)
{
    uint8_t century = rtc->cmos[RTC_CENTURY];
    struct tm tm = {
        .tm_sec = rtc_decode(rtc, rtc->cmos[RTC_SECONDS]),
        .tm_min = rtc_decode(rtc, rtc->cmos[RTC_MINUTES]),
        .tm_hour = rtc_decode_hour(rtc, rtc->cmos[RTC_HOURS]),
        .tm_mday = rtc_decode(rtc, rtc->cmos[RTC_DAY]),
        .tm_mon = rtc_decode(rtc, rtc->cmos[RTC_MONTH]) - 1,
        .tm_year = rtc_decode(rtc, rtc->cmos[RTC_YEAR]) - 1900 +
                   100 * ((century >> 4) * 10 + (century & 15)),
    };
    int64_t seconds = timegm(&tm);

    rtc->offset = (int64_t)((uint64_t)seconds * NSEC_PER_SEC + phase - clock_wall());
    rtc->checked = rtc_now(rtc);
}

/* The period of the square wave chosen by RS (data sheet table 5), as a count of crystal cycles. */
static uint32_t rtc_period_cycles(const struct mc146818 *rtc)
{
    unsigned rs = RTC_A_RS(rtc->cmos[RTC_A]);

    if (rs == 0)
        return 0;
    return 1u << (rs < 3 ? rs + 6 : rs - 1);
}

/* The first periodic event after t; CLOCK_NEVER when off. */
static uint64_t rtc_next_periodic(const struct mc146818 *rtc, uint64_t t)
{
    uint32_t cycles = rtc_period_cycles(rtc);
    uint64_t second = t / NSEC_PER_SEC * NSEC_PER_SEC, tick;

    if (!cycles)
        return CLOCK_NEVER;
    /* Periods divide a second evenly, so they are counted within it. */
    tick = ((t - second) * RTC_CRYSTAL_HZ / NSEC_PER_SEC / cycles + 1) * cycles;
    tick = second + (tick * NSEC_PER_SEC + RTC_CRYSTAL_HZ - 1) / RTC_CRYSTAL_HZ;
    return tick > t ? tick : t + 1;
}

static bool rtc_alarm_matches(uint8_t alarm, int decoded, int value)
{
    return alarm >= RTC_ALARM_ANY || decoded == value;
}

/* The first second after t whose time of day is the alarm's; CLOCK_NEVER when there is none. */
static uint64_t rtc_next_alarm(const struct mc146818 *rtc, uint64_t t)
{
    const uint8_t *cmos = rtc->cmos;
    uint64_t from = t / NSEC_PER_SEC + 1, at = from;
    int hour = rtc_decode_hour(rtc, cmos[RTC_HOURS_ALARM]);
    int minute = rtc_decode(rtc, cmos[RTC_MINUTES_ALARM]);
    int second = rtc_decode(rtc, cmos[RTC_SECONDS_ALARM]);

    while (at - from <= 2 * RTC_DAY_SECONDS) { /* skips by hours, minutes: under 300 rounds */
        uint64_t of_day = at % RTC_DAY_SECONDS;

        if (!rtc_alarm_matches(cmos[RTC_HOURS_ALARM], hour, (int)(of_day / 3600)))
            at += 3600 - of_day % 3600;
        else if (!rtc_alarm_matches(cmos[RTC_MINUTES_ALARM], minute, (int)(of_day / 60 % 60)))
            at += 60 - of_day % 60;
        else if (!rtc_alarm_matches(cmos[RTC_SECONDS_ALARM], second, (int)(of_day % 60)))
            at++;
        else
            return at * NSEC_PER_SEC;
    }
    return CLOCK_NEVER;
}

static uint64_t rtc_next_update(uint64_t t)
{
    return (t / NSEC_PER_SEC + 1) * NSEC_PER_SEC;
}

/* When the flag that `bit` names (of register C; the same bit of B enables it) comes next. */
static uint64_t rtc_next(const struct mc146818 *rtc, uint8_t bit, uint64_t t)
{
    if (bit == RTC_C_PF)
        return rtc_next_periodic(rtc, t);
    return bit == RTC_C_AF ? rtc_next_alarm(rtc, t) : rtc_next_update(t);
}

static const uint8_t rtc_events[] = {RTC_C_PF, RTC_C_AF, RTC_C_UF};

/* Brings register C up to now, drives the interrupt, and arms for the next enabled event. */
static void rtc_update(struct mc146818 *rtc)
{
    uint64_t now = rtc_now(rtc), next = CLOCK_NEVER;
    uint8_t *c = rtc_reg(rtc, RTC_C);
    uint8_t enabled = rtc->cmos[RTC_B] & (RTC_B_PIE | RTC_B_AIE | RTC_B_UIE);

    for (unsigned i = 0; i < ARRAY_SIZE(rtc_events) && !rtc_stopped(rtc); i++) {
        uint8_t bit = rtc_events[i];

        if (!(*c & bit) && now > rtc->checked && rtc_next(rtc, bit, rtc->checked) <= now)
            *c |= bit;
        if ((enabled & bit) && !(*c & bit)) {
            uint64_t at = rtc_next(rtc, bit, now);

            next = at < next ? at : next;
        }
    }
    rtc->checked = now;
    *c = (uint8_t)((*c & ~RTC_C_IRQF) | (*c & enabled ? RTC_C_IRQF : 0));
    irq_line_set(&rtc->irq, *c & RTC_C_IRQF ? 1 : 0);
    if (next == CLOCK_NEVER)
        timer_cancel(&rtc->timer);
    else
        timer_arm(&rtc->timer, clock_now() + (next - now));
}

static void rtc_expired(void *opaque)
{
    struct mc146818 *rtc = opaque;

    device_lock(&rtc->dev);
    rtc_update(rtc);
    device_unlock(&rtc->dev);
}

static bool rtc_is_time(unsigned reg)
{
    return reg == RTC_SECONDS || reg == RTC_MINUTES || reg == RTC_HOURS ||
           (reg >= RTC_DAY_OF_WEEK && reg <= RTC_YEAR) || reg == RTC_CENTURY;
}

static uint8_t rtc_read_a(struct mc146818 *rtc)
{
    uint64_t into = rtc_now(rtc) % NSEC_PER_SEC;
    bool updating = !rtc_stopped(rtc) && into >= NSEC_PER_SEC - RTC_UIP_NS;

    return (uint8_t)(rtc->cmos[RTC_A] | (updating ? RTC_A_UIP : 0));
}

/* Reading C clears it, and with it the interrupt. */
static uint8_t rtc_read_c(struct mc146818 *rtc)
{
    uint8_t value;

    rtc_update(rtc);
    value = rtc->cmos[RTC_C];
    rtc->cmos[RTC_C] = 0;
    rtc_update(rtc);
    return value;
}

static uint8_t rtc_read_reg(struct mc146818 *rtc, unsigned reg)
{
    if (rtc_is_time(reg) && !rtc_stopped(rtc))
        rtc_store_time(rtc, rtc_now(rtc));
    switch (reg) {
    case RTC_A: return rtc_read_a(rtc);
    case RTC_C: return rtc_read_c(rtc);
    case RTC_D: return RTC_D_VRT;
    default: return rtc->cmos[reg];
    }
}

/*
 * A change of A or B may stop or start the clock, or change how the registers show it. Released
 * from reset, the divider has its first update after half a second.
 */
static void rtc_write_control(struct mc146818 *rtc, unsigned reg, uint8_t value)
{
    bool was_stopped = rtc_stopped(rtc), held = RTC_A_DV(rtc->cmos[RTC_A]) >= 6;
    uint64_t now = rtc_now(rtc);

    rtc_update(rtc);
    if (!was_stopped)
        rtc_store_time(rtc, now);
    if (reg == RTC_A) {
        rtc->cmos[RTC_A] = value & (uint8_t)~RTC_A_UIP;
    } else {
        rtc->cmos[RTC_B] = value;
        if (value & RTC_B_SET)
            rtc->cmos[RTC_B] &= (uint8_t)~RTC_B_UIE; /* data sheet, SET */
    }
    held = held && RTC_A_DV(rtc->cmos[RTC_A]) < 6;
    if (was_stopped && !rtc_stopped(rtc))
        rtc_load_time(rtc, held ? NSEC_PER_SEC / 2 : now % NSEC_PER_SEC);
    rtc_update(rtc);
}

static void rtc_write_reg(struct mc146818 *rtc, unsigned reg, uint8_t value)
{
    uint64_t now = rtc_now(rtc);

    switch (reg) {
    case RTC_A:
    case RTC_B: rtc_write_control(rtc, reg, value); return;
    case RTC_C:
    case RTC_D: return; /* read only */
    default: break;
    }
    if (rtc_is_time(reg) && !rtc_stopped(rtc)) {
        rtc_store_time(rtc, now);
        rtc->cmos[reg] = value;
        rtc_load_time(rtc, now % NSEC_PER_SEC);
    } else {
        rtc->cmos[reg] = value;
    }
    rtc_update(rtc);
}

static uint64_t rtc_read(void *opaque, uint64_t offset, unsigned size)
{
    struct mc146818 *rtc = opaque;

    (void)size;
    switch (offset) {
    case 1: return rtc_read_reg(rtc, rtc->index & 0x7f);
    case 3: return rtc->cmos[0x80 | (rtc->index_high & 0x7f)];
    case 2: return rtc->index_high;
    default: return 0xff; /* port 70h is write only */
    }
}

static void rtc_write_byte(struct mc146818 *rtc, uint64_t offset, uint8_t value)
{
    switch (offset) {
    case 0: rtc->index = value; break; /* bit 7 masks NMI, of which there is none to mask */
    case 1: rtc_write_reg(rtc, rtc->index & 0x7f, value); break;
    case 2: rtc->index_high = value; break;
    default: rtc->cmos[0x80 | (rtc->index_high & 0x7f)] = value; break;
    }
}

static void rtc_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        rtc_write_byte(opaque, offset + i, (uint8_t)(value >> i * 8));
}

void mc146818_set_cmos(struct mc146818 *rtc, uint8_t index, uint8_t value)
{
    device_lock(&rtc->dev);
    rtc->cmos[index] = value;
    device_unlock(&rtc->dev);
}

/* The RESET pin: interrupts off; time and memory live on the battery. */
static void rtc_reset(struct device *dev)
{
    struct mc146818 *rtc = container_of(dev, struct mc146818, dev);

    rtc->cmos[RTC_B] &= (uint8_t)~(RTC_B_PIE | RTC_B_AIE | RTC_B_UIE);
    rtc->cmos[RTC_C] = 0;
    rtc->index = 0;
    rtc->index_high = 0;
    rtc_update(rtc);
}

static void rtc_destroy(struct device *dev)
{
    struct mc146818 *rtc = container_of(dev, struct mc146818, dev);

    timer_release(&rtc->timer);
    device_release(dev);
    free(rtc);
}

static int rtc_loaded(struct device *dev)
{
    struct mc146818 *rtc = container_of(dev, struct mc146818, dev);

    if (rtc->checked > rtc_now(rtc)) /* the host's clock went back */
        rtc->checked = rtc_now(rtc);
    rtc_update(rtc);
    return 0;
}

static const struct state_field mc146818_fields[] = {
    STATE_UINT(struct mc146818, index), STATE_UINT(struct mc146818, index_high),
    STATE_BYTES(struct mc146818, cmos), STATE_UINT(struct mc146818, offset),
    STATE_UINT(struct mc146818, checked), STATE_FIELDS_END,
};

static const struct state_table mc146818_state = {"mc146818", 1, mc146818_fields};

static const struct device_ops mc146818_device_ops = {
    .type = "mc146818",
    .reset = rtc_reset,
    .destroy = rtc_destroy,
    .state = &mc146818_state,
    .loaded = rtc_loaded,
};

static const struct bus_ops mc146818_bus_ops = {rtc_read, rtc_write};

int mc146818_create(struct machine *machine, struct irq_line irq, struct mc146818 **out)
{
    struct mc146818 *rtc = calloc(1, sizeof(*rtc));
    struct bus_region ports = {0x70, 4, &mc146818_bus_ops, rtc, NULL};
    int rc;

    if (!rtc)
        return -ENOMEM;
    device_init(&rtc->dev, &mc146818_device_ops, "mc146818");
    timer_init(&rtc->timer, machine->timers, rtc_expired, rtc);
    rtc->irq = irq;
    rtc->cmos[RTC_A] = 0x26; /* as a PC's firmware leaves it: divider running, 1024 Hz */
    rtc->cmos[RTC_B] = RTC_B_24;
    rtc->checked = rtc_now(rtc);
    rtc_reset(&rtc->dev);
    ports.dev = &rtc->dev;
    rc = bus_add(machine->bus, BUS_PORT, &ports);
    if (rc) {
        rtc_destroy(&rtc->dev);
        return rc;
    }
    machine_add_device(machine, &rtc->dev);
    *out = rtc;
    return 0;
}
