#include "chip/i8254.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define I8254_HZ       1193182u
#define I8254_CHANNELS 3u
#define I8254_SPEAKER  2u /* the channel whose gate and output are at port 61h */

/* Control word */
#define I8254_SELECT(v)    ((v) >> 6)
#define I8254_READ_BACK    3u
#define I8254_RW(v)        (((v) >> 4) & 3u)
#define I8254_BCD          0x01u

enum i8254_rw { I8254_LATCH, I8254_LSB, I8254_MSB, I8254_BOTH };

/* Port 61h */
#define I8254_P61_GATE    0x01u
#define I8254_P61_SPEAKER 0x02u
#define I8254_P61_REFRESH 0x10u /* toggles every 15.085 us */
#define I8254_P61_OUT     0x20u
#define I8254_REFRESH_NS  15085u

/*
 * A counter is kept as the moment its current count was loaded; its value and output follow from
 * the time that has passed since.
 */
struct i8254_channel {
    uint8_t mode;     /* 0-5 */
    uint8_t bcd;
    uint8_t rw;       /* enum i8254_rw: LSB, MSB or BOTH */
    uint8_t gate;
    uint8_t null_count; /* written, not loaded yet */
    uint8_t armed;    /* has a count; modes 1 and 5: has been triggered */
    uint8_t write_high, read_high; /* BOTH: the next byte is the high one */
    uint8_t write_low;
    uint8_t latch_bytes; /* bytes of `latched` still to be read */
    uint8_t status_latched, status;
    uint16_t latched;
    uint32_t count;   /* initial count in ticks, 1 to 65536 (BCD: 10000); as loaded */
    uint32_t next_count; /* modes 2, 3: a count written while counting, for the next period */
    uint32_t held;    /* ticks counted when the gate stopped it */
    uint64_t start;   /* clock_now() when counting began, or as if it had */
    uint64_t elapsed; /* saved form of start */
};

struct i8254 {
    struct device dev;
    struct irq_line irq;
    struct timer timer; /* the next rising edge of channel 0's output */
    struct i8254_channel channel[I8254_CHANNELS];
    uint8_t port61;
};

static uint64_t i8254_ticks(uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * I8254_HZ / NSEC_PER_SEC);
}

/* Rounded up, so that the tick has happened at the time given. */
static uint64_t i8254_ns(uint64_t ticks)
{
    return (uint64_t)(((unsigned __int128)ticks * NSEC_PER_SEC + I8254_HZ - 1) / I8254_HZ);
}

static bool i8254_repeats(const struct i8254_channel *ch)
{
    return ch->mode == 2 || ch->mode == 3;
}

/* Modes 1 and 5 count whatever the gate's level; the others while it is high. */
static bool i8254_counting(const struct i8254_channel *ch)
{
    return ch->armed && (ch->gate || ch->mode == 1 || ch->mode == 5);
}

static uint64_t i8254_passed(const struct i8254_channel *ch, uint64_t now)
{
    if (!ch->armed)
        return 0;
    return i8254_counting(ch) ? i8254_ticks(now - ch->start) : ch->held;
}

/* A new count written in mode 2 or 3 takes effect at the end of the period (data sheet, mode 2). */
static void i8254_catch_up(struct i8254_channel *ch, uint64_t now)
{
    uint64_t passed;

    if (!ch->next_count || !i8254_counting(ch))
        return;
    passed = i8254_passed(ch, now);
    if (passed < ch->count)
        return;
    ch->start += i8254_ns(ch->count);
    ch->count = ch->next_count;
    ch->next_count = 0;
    ch->null_count = 0;
}

static uint32_t i8254_modulus(const struct i8254_channel *ch)
{
    return ch->bcd ? 10000 : 65536;
}

/* The counting element, in ticks. */
static uint32_t i8254_value(const struct i8254_channel *ch, uint64_t now)
{
    uint64_t passed = i8254_passed(ch, now);
    uint32_t modulus = i8254_modulus(ch);

    switch (ch->mode) {
    case 2: return ch->count - (uint32_t)(passed % ch->count);
    case 3: return (ch->count - (uint32_t)(2 * passed % ch->count)) & ~1u; /* counts by two */
    default: return (uint32_t)((ch->count + modulus - passed % modulus) % modulus);
    }
}

static bool i8254_out(const struct i8254_channel *ch, uint64_t now)
{
    uint64_t passed = i8254_passed(ch, now);

    switch (ch->mode) {
    case 0: return ch->armed && passed >= ch->count;
    case 1: return !ch->armed || passed >= ch->count;
    case 2: return !i8254_counting(ch) || passed % ch->count != ch->count - 1;
    case 3: return !i8254_counting(ch) || passed % ch->count < (ch->count + 1) / 2;
    default: return !ch->armed || passed != ch->count; /* a strobe of one tick */
    }
}

/* When OUT next rises, after `now`. */
static uint64_t i8254_next_rise(const struct i8254_channel *ch, uint64_t now)
{
    uint64_t passed = i8254_passed(ch, now);
    uint64_t edge = ch->mode >= 4 ? ch->count + 1 : ch->count;

    if (!i8254_counting(ch))
        return CLOCK_NEVER;
    if (i8254_repeats(ch))
        edge = (passed / ch->count + 1) * ch->count;
    else if (passed >= edge)
        return CLOCK_NEVER;
    return ch->start + i8254_ns(edge);
}

static void i8254_rearm(struct i8254 *pit, uint64_t now)
{
    uint64_t next = i8254_next_rise(&pit->channel[0], now);

    if (next == CLOCK_NEVER)
        timer_cancel(&pit->timer);
    else
        timer_arm(&pit->timer, next);
}

/* OUT of channel 0 has risen (its low phase is not worth waking up for). */
static void i8254_expired(void *opaque)
{
    struct i8254 *pit = opaque;
    struct i8254_channel *ch = &pit->channel[0];
    uint64_t now;

    device_lock(&pit->dev);
    now = clock_now();
    if (i8254_counting(ch) && i8254_passed(ch, now) >= ch->count) {
        i8254_catch_up(ch, now);
        irq_line_set(&pit->irq, 0);
        irq_line_set(&pit->irq, 1);
    }
    i8254_rearm(pit, now);
    device_unlock(&pit->dev);
}

static void i8254_changed(struct i8254 *pit, unsigned index, uint64_t now)
{
    if (index != 0)
        return;
    irq_line_set(&pit->irq, i8254_out(&pit->channel[0], now));
    i8254_rearm(pit, now);
}

static uint16_t i8254_to_bcd(uint32_t v)
{
    return (uint16_t)(v / 1000 % 10 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10);
}

static uint32_t i8254_from_bcd(uint16_t v)
{
    return (v >> 12 & 15u) * 1000 + (v >> 8 & 15u) * 100 + (v >> 4 & 15u) * 10 + (v & 15u);
}

static uint16_t i8254_shown(const struct i8254_channel *ch, uint64_t now)
{
    uint32_t value = i8254_value(ch, now) % i8254_modulus(ch);

    return ch->bcd ? i8254_to_bcd(value) : (uint16_t)value;
}

static void i8254_load(struct i8254_channel *ch, uint16_t written, uint64_t now)
{
    uint32_t count = ch->bcd ? i8254_from_bcd(written) : written;

    if (count == 0)
        count = i8254_modulus(ch);
    if (i8254_repeats(ch)) {
        if (count == 1)
            count = 2; /* 1 is illegal in these modes */
        if (ch->armed && i8254_counting(ch)) {
            ch->next_count = count;
            ch->null_count = 1;
            return;
        }
    }
    ch->count = count;
    ch->null_count = 0;
    if (ch->mode == 1 || ch->mode == 5) /* waits for the gate's rising edge */
        return;
    ch->armed = 1;
    ch->start = now;
    ch->held = 0;
}

static void i8254_write_count(struct i8254 *pit, unsigned index, uint8_t value, uint64_t now)
{
    struct i8254_channel *ch = &pit->channel[index];

    i8254_catch_up(ch, now);
    switch (ch->rw) {
    case I8254_LSB: i8254_load(ch, value, now); break;
    case I8254_MSB: i8254_load(ch, (uint16_t)(value << 8), now); break;
    default:
        ch->write_high = !ch->write_high;
        if (ch->write_high) {
            ch->write_low = value;
            if (ch->mode == 0)
                ch->armed = 0; /* the first byte stops the count; OUT goes low */
            break;
        }
        i8254_load(ch, (uint16_t)(value << 8 | ch->write_low), now);
        break;
    }
    i8254_changed(pit, index, now);
}

static void i8254_latch_count(struct i8254_channel *ch, uint64_t now)
{
    if (ch->latch_bytes)
        return; /* the first latch stays until it is read */
    ch->latched = i8254_shown(ch, now);
    ch->latch_bytes = ch->rw == I8254_BOTH ? 2 : 1;
}

static void i8254_latch_status(struct i8254_channel *ch, uint64_t now)
{
    if (ch->status_latched)
        return;
    ch->status_latched = 1;
    ch->status = (uint8_t)(i8254_out(ch, now) << 7 | ch->null_count << 6 | ch->rw << 4 |
                           ch->mode << 1 | ch->bcd);
}

static void i8254_read_back(struct i8254 *pit, uint8_t value, uint64_t now)
{
    for (unsigned i = 0; i < I8254_CHANNELS; i++) {
        struct i8254_channel *ch = &pit->channel[i];

        if (!(value >> (i + 1) & 1))
            continue;
        i8254_catch_up(ch, now);
        if (!(value & 0x20))
            i8254_latch_count(ch, now);
        if (!(value & 0x10))
            i8254_latch_status(ch, now);
    }
}

static void i8254_write_control(struct i8254 *pit, uint8_t value, uint64_t now)
{
    struct i8254_channel *ch;

    if (I8254_SELECT(value) == I8254_READ_BACK) {
        i8254_read_back(pit, value, now);
        return;
    }
    ch = &pit->channel[I8254_SELECT(value)];
    i8254_catch_up(ch, now);
    if (I8254_RW(value) == I8254_LATCH) {
        i8254_latch_count(ch, now);
        return;
    }
    ch->mode = value >> 1 & 7;
    if (ch->mode > 5)
        ch->mode &= 3; /* 6 and 7 are 2 and 3 */
    ch->bcd = value & I8254_BCD;
    ch->rw = (uint8_t)I8254_RW(value);
    ch->armed = 0;
    ch->null_count = 1;
    ch->next_count = 0;
    ch->held = 0;
    ch->write_high = ch->read_high = 0;
    ch->latch_bytes = 0;
    ch->status_latched = 0;
    i8254_changed(pit, I8254_SELECT(value), now);
}

static uint8_t i8254_read_count(struct i8254_channel *ch, uint64_t now)
{
    uint16_t value;

    i8254_catch_up(ch, now);
    if (ch->status_latched) {
        ch->status_latched = 0;
        return ch->status;
    }
    value = ch->latch_bytes ? ch->latched : i8254_shown(ch, now);
    if (ch->latch_bytes)
        ch->latch_bytes--;
    if (ch->rw == I8254_LSB)
        return (uint8_t)value;
    if (ch->rw == I8254_MSB)
        return (uint8_t)(value >> 8);
    ch->read_high = !ch->read_high;
    return ch->read_high ? (uint8_t)value : (uint8_t)(value >> 8);
}

static void i8254_set_gate(struct i8254_channel *ch, uint8_t gate, uint64_t now)
{
    bool rising = gate && !ch->gate;
    bool falling = !gate && ch->gate;

    i8254_catch_up(ch, now);
    if (falling && i8254_counting(ch))
        ch->held = (uint32_t)i8254_passed(ch, now);
    ch->gate = gate;
    if (!rising)
        return;
    if (ch->mode == 0 || ch->mode == 4) { /* goes on where it stopped */
        ch->start = now - i8254_ns(ch->held);
        return;
    }
    if (ch->mode == 1 || ch->mode == 5)
        ch->armed = ch->count != 0;
    ch->start = now;
    ch->held = 0;
}

static uint64_t i8254_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8254 *pit = opaque;

    (void)size;
    if (offset == 3)
        return 0xff; /* the control register can't be read */
    return i8254_read_count(&pit->channel[offset], clock_now());
}

static void i8254_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8254 *pit = opaque;

    (void)size;
    if (offset == 3)
        i8254_write_control(pit, (uint8_t)value, clock_now());
    else
        i8254_write_count(pit, (unsigned)offset, (uint8_t)value, clock_now());
}

static uint64_t i8254_port61_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8254 *pit = opaque;
    uint64_t now = clock_now();
    uint8_t value = pit->port61;

    (void)offset;
    (void)size;
    i8254_catch_up(&pit->channel[I8254_SPEAKER], now);
    if (now / I8254_REFRESH_NS & 1)
        value |= I8254_P61_REFRESH;
    if (i8254_out(&pit->channel[I8254_SPEAKER], now))
        value |= I8254_P61_OUT;
    return value;
}

static void i8254_port61_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8254 *pit = opaque;

    (void)offset;
    (void)size;
    pit->port61 = value & (I8254_P61_GATE | I8254_P61_SPEAKER);
    i8254_set_gate(&pit->channel[I8254_SPEAKER], value & I8254_P61_GATE, clock_now());
}

static void i8254_reset(struct device *dev)
{
    struct i8254 *pit = container_of(dev, struct i8254, dev);

    timer_cancel(&pit->timer);
    memset(pit->channel, 0, sizeof(pit->channel));
    for (unsigned i = 0; i < I8254_CHANNELS; i++) {
        pit->channel[i].mode = 3; /* OUT high, not counting until programmed */
        pit->channel[i].rw = I8254_BOTH;
        pit->channel[i].count = 65536;
        pit->channel[i].gate = i != I8254_SPEAKER;
    }
    pit->port61 = 0;
}

static void i8254_destroy(struct device *dev)
{
    struct i8254 *pit = container_of(dev, struct i8254, dev);

    timer_release(&pit->timer);
    device_release(dev);
    free(pit);
}

static void i8254_saving(struct device *dev)
{
    struct i8254 *pit = container_of(dev, struct i8254, dev);
    uint64_t now = clock_now();

    for (unsigned i = 0; i < I8254_CHANNELS; i++)
        pit->channel[i].elapsed = now - pit->channel[i].start;
}

/* What was loaded may come from a hostile file: counts in range, or the arithmetic breaks. */
static int i8254_loaded(struct device *dev)
{
    struct i8254 *pit = container_of(dev, struct i8254, dev);
    uint64_t now = clock_now();

    for (unsigned i = 0; i < I8254_CHANNELS; i++) {
        struct i8254_channel *ch = &pit->channel[i];

        if (ch->mode > 5 || ch->rw < I8254_LSB || ch->rw > I8254_BOTH || ch->count == 0 ||
            ch->count > 65536 || ch->next_count > 65536 || ch->latch_bytes > 2)
            return -EINVAL;
        ch->start = now - ch->elapsed;
    }
    i8254_rearm(pit, now);
    return 0;
}

static const struct state_field i8254_channel_fields[] = {
    STATE_UINT(struct i8254_channel, mode),
    STATE_UINT(struct i8254_channel, bcd),
    STATE_UINT(struct i8254_channel, rw),
    STATE_UINT(struct i8254_channel, gate),
    STATE_UINT(struct i8254_channel, null_count),
    STATE_UINT(struct i8254_channel, armed),
    STATE_UINT(struct i8254_channel, write_high),
    STATE_UINT(struct i8254_channel, read_high),
    STATE_UINT(struct i8254_channel, write_low),
    STATE_UINT(struct i8254_channel, latch_bytes),
    STATE_UINT(struct i8254_channel, status_latched),
    STATE_UINT(struct i8254_channel, status),
    STATE_UINT(struct i8254_channel, latched),
    STATE_UINT(struct i8254_channel, count),
    STATE_UINT(struct i8254_channel, next_count),
    STATE_UINT(struct i8254_channel, held),
    STATE_UINT(struct i8254_channel, elapsed),
    STATE_FIELDS_END,
};

static const struct state_field i8254_fields[] = {
    STATE_STRUCT_ARRAY(struct i8254, channel, i8254_channel_fields),
    STATE_UINT(struct i8254, port61),
    STATE_FIELDS_END,
};

static const struct state_table i8254_state = {"i8254", 1, i8254_fields};

static const struct device_ops i8254_device_ops = {
    .type = "i8254",
    .reset = i8254_reset,
    .destroy = i8254_destroy,
    .state = &i8254_state,
    .saving = i8254_saving,
    .loaded = i8254_loaded,
};

static const struct bus_ops i8254_bus_ops = {i8254_read, i8254_write};
static const struct bus_ops i8254_port61_ops = {i8254_port61_read, i8254_port61_write};

int i8254_create(struct machine *machine, struct irq_line irq)
{
    struct i8254 *pit = calloc(1, sizeof(*pit));
    struct bus_region ports = {0x40, 4, &i8254_bus_ops, pit, NULL};
    struct bus_region port61 = {0x61, 1, &i8254_port61_ops, pit, NULL};
    int rc;

    if (!pit)
        return -ENOMEM;
    device_init(&pit->dev, &i8254_device_ops, "i8254");
    timer_init(&pit->timer, machine->timers, i8254_expired, pit);
    pit->irq = irq;
    i8254_reset(&pit->dev);
    ports.dev = port61.dev = &pit->dev;
    rc = bus_add(machine->bus, BUS_PORT, &ports);
    if (rc)
        goto err_destroy;
    rc = bus_add(machine->bus, BUS_PORT, &port61);
    if (rc)
        goto err_remove_ports;
    machine_add_device(machine, &pit->dev);
    return 0;

err_remove_ports:
    bus_remove(machine->bus, BUS_PORT, ports.base);
err_destroy:
    i8254_destroy(&pit->dev);
    return rc;
}
