#include "chip/i8259.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define I8259_ICW1       0x10u
#define I8259_ICW1_IC4   0x01u /* ICW4 follows */
#define I8259_ICW1_SNGL  0x02u /* no ICW3 */
#define I8259_ICW1_LTIM  0x08u /* all inputs level triggered */
#define I8259_ICW4_AEOI  0x02u
#define I8259_ICW4_SFNM  0x10u /* special fully nested mode */
#define I8259_OCW3       0x08u
#define I8259_CASCADE    2u    /* the master's input that the slave drives */
#define I8259_SPURIOUS   7

/* ELCR bits that can't be set: IRQ 0, 1, 2, 8, 13 are always edges (ICH9 data sheet 13.4.10). */
static const uint8_t i8259_elcr_writable[2] = {0xf8, 0xde};

/* One 8259A. Registers as the data sheet names them. */
struct i8259_chip {
    uint8_t irr, imr, isr;
    uint8_t lines; /* levels of the inputs */
    uint8_t elcr;
    uint8_t icw1, icw2, icw3, icw4;
    uint8_t icw_next;   /* the ICW expected at the odd port: 2, 3, 4; 0: none */
    uint8_t lowest;     /* input of lowest priority */
    uint8_t read_isr;   /* OCW3 RR, RIS: even port reads ISR rather than IRR */
    uint8_t poll;       /* OCW3 P: the next read is an acknowledge */
    uint8_t smm;        /* special mask mode */
    uint8_t rotate_aeoi;
};

struct i8259 {
    struct device dev;
    struct lapic_group *lapics; /* borrowed */
    struct i8259_chip chip[2];  /* master, slave */
    uint8_t intr;               /* the master's INT output */
    _Atomic bool intr_now;      /* the same, for i8259_pending() without the lock */
};

static bool i8259_is_level(const struct i8259_chip *chip, unsigned irq)
{
    return (chip->icw1 & I8259_ICW1_LTIM) || (chip->elcr >> irq & 1);
}

/* Rank of an input, 0 is the highest; `lowest` comes last. */
static unsigned i8259_rank(const struct i8259_chip *chip, unsigned irq)
{
    return (irq - chip->lowest - 1) & 7;
}

/* The input of highest priority among `bits`; -1: none. */
static int i8259_first(const struct i8259_chip *chip, uint8_t bits)
{
    for (unsigned rank = 0; rank < 8; rank++) {
        unsigned irq = (chip->lowest + 1 + rank) & 7;

        if (bits >> irq & 1)
            return (int)irq;
    }
    return -1;
}

/* The input that drives INT: unmasked and above what is in service; -1: none. */
static int i8259_requesting(const struct i8259_chip *chip, bool master)
{
    int irq = i8259_first(chip, chip->irr & (uint8_t)~chip->imr);
    uint8_t in_service = chip->isr;
    int serving;

    if (irq < 0)
        return -1;
    if (chip->smm)
        in_service &= (uint8_t)~chip->imr;
    if (master && (chip->icw4 & I8259_ICW4_SFNM))
        in_service &= (uint8_t)~(1u << I8259_CASCADE); /* more from the slave may come through */
    serving = i8259_first(chip, in_service);
    if (serving >= 0 && i8259_rank(chip, (unsigned)irq) >= i8259_rank(chip, (unsigned)serving))
        return -1;
    return irq;
}

static void i8259_chip_set(struct i8259_chip *chip, unsigned irq, bool level)
{
    uint8_t bit = (uint8_t)(1u << irq);

    if (i8259_is_level(chip, irq)) {
        chip->irr = level ? chip->irr | bit : chip->irr & (uint8_t)~bit;
    } else if (level && !(chip->lines & bit)) {
        chip->irr |= bit;
    }
    chip->lines = level ? chip->lines | bit : chip->lines & (uint8_t)~bit;
}

/* The slave's INT drives the master's cascade input, and the master's the CPUs' INTR. */
static void i8259_update(struct i8259 *pic)
{
    bool slave = i8259_requesting(&pic->chip[1], false) >= 0;
    struct i8259_chip *master = &pic->chip[0];
    bool intr;

    /* The cascade follows the slave's output in both directions. */
    if (slave)
        master->irr |= 1u << I8259_CASCADE;
    else
        master->irr &= (uint8_t) ~(1u << I8259_CASCADE);
    intr = i8259_requesting(master, true) >= 0;
    if (intr == pic->intr)
        return;
    pic->intr = intr;
    atomic_store(&pic->intr_now, intr);
    lapic_group_extint_changed(pic->lapics, intr);
}

void i8259_set(void *opaque, unsigned irq, int level)
{
    struct i8259 *pic = opaque;

    BUG_ON(irq > 15);
    if (irq == I8259_CASCADE)
        return; /* not an input from outside */
    device_lock(&pic->dev);
    i8259_chip_set(&pic->chip[irq >> 3], irq & 7, level != 0);
    i8259_update(pic);
    device_unlock(&pic->dev);
}

static void i8259_end(struct i8259_chip *chip, unsigned irq, bool rotate)
{
    chip->isr &= (uint8_t)~(1u << irq);
    if (rotate)
        chip->lowest = (uint8_t)irq;
}

/* An INTA cycle of one chip: the input acknowledged, IRQ 7 when there is none (spurious). */
static unsigned i8259_chip_acknowledge(struct i8259_chip *chip, bool master)
{
    int irq = i8259_requesting(chip, master);
    uint8_t bit;

    if (irq < 0)
        return I8259_SPURIOUS;
    bit = (uint8_t)(1u << irq);
    if (!i8259_is_level(chip, (unsigned)irq))
        chip->irr &= (uint8_t)~bit;
    chip->isr |= bit;
    if (chip->icw4 & I8259_ICW4_AEOI)
        i8259_end(chip, (unsigned)irq, chip->rotate_aeoi);
    return (unsigned)irq;
}

static int i8259_acknowledge(void *opaque)
{
    struct i8259 *pic = opaque;
    struct i8259_chip *chip = &pic->chip[0];
    unsigned irq;
    int vector;

    device_lock(&pic->dev);
    irq = i8259_chip_acknowledge(chip, true);
    if (irq == I8259_CASCADE) {
        chip = &pic->chip[1];
        irq = i8259_chip_acknowledge(chip, false);
    }
    vector = (chip->icw2 & 0xf8) | (int)irq;
    i8259_update(pic);
    device_unlock(&pic->dev);
    return vector;
}

static bool i8259_pending(void *opaque)
{
    return atomic_load(&((struct i8259 *)opaque)->intr_now);
}

static void i8259_write_icw1(struct i8259_chip *chip, uint8_t value)
{
    chip->icw1 = value;
    chip->icw_next = 2;
    chip->imr = 0;
    chip->isr = 0;
    chip->irr = 0; /* the edge detectors start afresh; level inputs come back below */
    chip->lowest = 7;
    chip->smm = 0;
    chip->read_isr = 0;
    chip->poll = 0;
    chip->rotate_aeoi = 0;
    if (!(value & I8259_ICW1_IC4))
        chip->icw4 = 0;
    for (unsigned irq = 0; irq < 8; irq++) {
        if (i8259_is_level(chip, irq))
            chip->irr = (uint8_t)(chip->irr | (chip->lines & (1u << irq)));
    }
}

/* OCW2: end of interrupt and rotation; bits 7:5 are R, SL, EOI. */
static void i8259_write_ocw2(struct i8259_chip *chip, uint8_t value)
{
    unsigned level = value & 7;
    int serving;

    switch (value >> 5) {
    case 0: chip->rotate_aeoi = 0; break;
    case 4: chip->rotate_aeoi = 1; break;
    case 1:
    case 5:
        serving = i8259_first(chip, chip->smm ? chip->isr & (uint8_t)~chip->imr : chip->isr);
        if (serving >= 0)
            i8259_end(chip, (unsigned)serving, value >> 5 == 5);
        break;
    case 3:
    case 7: i8259_end(chip, level, value >> 5 == 7); break;
    case 6: chip->lowest = (uint8_t)level; break;
    default: break;
    }
}

static void i8259_write_ocw3(struct i8259_chip *chip, uint8_t value)
{
    if (value & 0x40) /* ESMM */
        chip->smm = value >> 5 & 1;
    if (value & 0x02) /* RR */
        chip->read_isr = value & 1;
    chip->poll = value >> 2 & 1;
}

static void i8259_write_odd(struct i8259_chip *chip, uint8_t value)
{
    switch (chip->icw_next) {
    case 2:
        chip->icw2 = value;
        if (!(chip->icw1 & I8259_ICW1_SNGL))
            chip->icw_next = 3;
        else
            chip->icw_next = chip->icw1 & I8259_ICW1_IC4 ? 4 : 0;
        break;
    case 3:
        chip->icw3 = value;
        chip->icw_next = chip->icw1 & I8259_ICW1_IC4 ? 4 : 0;
        break;
    case 4:
        chip->icw4 = value;
        chip->icw_next = 0;
        break;
    default: chip->imr = value; break; /* OCW1 */
    }
}

static uint8_t i8259_chip_read(struct i8259_chip *chip, unsigned odd, bool master)
{
    if (chip->poll) {
        bool any = i8259_requesting(chip, master) >= 0;

        chip->poll = 0;
        return any ? (uint8_t)(0x80 | i8259_chip_acknowledge(chip, master)) : 0;
    }
    if (odd)
        return chip->imr;
    return chip->read_isr ? chip->isr : chip->irr;
}

static uint64_t i8259_read(struct i8259 *pic, unsigned index, uint64_t offset)
{
    uint8_t value = i8259_chip_read(&pic->chip[index], offset & 1, index == 0);

    i8259_update(pic); /* a poll acknowledges */
    return value;
}

static void i8259_write(struct i8259 *pic, unsigned index, uint64_t offset, uint8_t value)
{
    struct i8259_chip *chip = &pic->chip[index];

    if (offset & 1)
        i8259_write_odd(chip, value);
    else if (value & I8259_ICW1)
        i8259_write_icw1(chip, value);
    else if (value & I8259_OCW3)
        i8259_write_ocw3(chip, value);
    else
        i8259_write_ocw2(chip, value);
    i8259_update(pic);
}

static uint64_t i8259_master_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)size;
    return i8259_read(opaque, 0, offset);
}

static uint64_t i8259_slave_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)size;
    return i8259_read(opaque, 1, offset);
}

static void i8259_master_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    i8259_write(opaque, 0, offset, (uint8_t)value);
    if (size == 2)
        i8259_write(opaque, 0, offset + 1, (uint8_t)(value >> 8));
}

static void i8259_slave_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    i8259_write(opaque, 1, offset, (uint8_t)value);
    if (size == 2)
        i8259_write(opaque, 1, offset + 1, (uint8_t)(value >> 8));
}

static uint64_t i8259_elcr_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8259 *pic = opaque;
    uint64_t value = (uint64_t)pic->chip[1].elcr << 8 | pic->chip[0].elcr;

    (void)size;
    return value >> offset * 8;
}

static void i8259_elcr_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8259 *pic = opaque;

    for (unsigned i = 0; i < size && offset + i < 2; i++)
        pic->chip[offset + i].elcr =
            (uint8_t)(value >> i * 8) & i8259_elcr_writable[offset + i];
}

static void i8259_reset(struct device *dev)
{
    struct i8259 *pic = container_of(dev, struct i8259, dev);

    for (unsigned i = 0; i < 2; i++) {
        uint8_t lines = pic->chip[i].lines;

        memset(&pic->chip[i], 0, sizeof(pic->chip[i]));
        pic->chip[i].lines = lines;
        pic->chip[i].lowest = 7;
        pic->chip[i].imr = 0xff; /* nothing gets through before it is initialised */
    }
    i8259_update(pic);
}

static void i8259_destroy(struct device *dev)
{
    device_release(dev);
    free(container_of(dev, struct i8259, dev));
}

static int i8259_loaded(struct device *dev)
{
    struct i8259 *pic = container_of(dev, struct i8259, dev);

    atomic_store(&pic->intr_now, pic->intr != 0);
    return 0;
}

static const struct state_field i8259_chip_fields[] = {
    STATE_UINT(struct i8259_chip, irr),      STATE_UINT(struct i8259_chip, imr),
    STATE_UINT(struct i8259_chip, isr),      STATE_UINT(struct i8259_chip, lines),
    STATE_UINT(struct i8259_chip, elcr),     STATE_UINT(struct i8259_chip, icw1),
    STATE_UINT(struct i8259_chip, icw2),     STATE_UINT(struct i8259_chip, icw3),
    STATE_UINT(struct i8259_chip, icw4),     STATE_UINT(struct i8259_chip, icw_next),
    STATE_UINT(struct i8259_chip, lowest),   STATE_UINT(struct i8259_chip, read_isr),
    STATE_UINT(struct i8259_chip, poll),     STATE_UINT(struct i8259_chip, smm),
    STATE_UINT(struct i8259_chip, rotate_aeoi), STATE_FIELDS_END,
};

static const struct state_field i8259_fields[] = {
    STATE_STRUCT_ARRAY(struct i8259, chip, i8259_chip_fields),
    STATE_UINT(struct i8259, intr),
    STATE_FIELDS_END,
};

static const struct state_table i8259_state = {"i8259", 1, i8259_fields};

static const struct device_ops i8259_device_ops = {
    .type = "i8259",
    .reset = i8259_reset,
    .destroy = i8259_destroy,
    .state = &i8259_state,
    .loaded = i8259_loaded,
};

static const struct bus_ops i8259_master_ops = {i8259_master_read, i8259_master_write};
static const struct bus_ops i8259_slave_ops = {i8259_slave_read, i8259_slave_write};
static const struct bus_ops i8259_elcr_ops = {i8259_elcr_read, i8259_elcr_write};

static int i8259_add_ports(struct i8259 *pic, struct bus *bus)
{
    const struct bus_region regions[] = {
        {0x20, 2, &i8259_master_ops, pic, &pic->dev},
        {0xa0, 2, &i8259_slave_ops, pic, &pic->dev},
        {0x4d0, 2, &i8259_elcr_ops, pic, &pic->dev},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(regions); i++) {
        int rc = bus_add(bus, BUS_PORT, &regions[i]);

        if (rc) {
            while (i--)
                bus_remove(bus, BUS_PORT, regions[i].base);
            return rc;
        }
    }
    return 0;
}

int i8259_create(struct machine *machine, struct lapic_group *lapics, struct i8259 **out)
{
    struct i8259 *pic = calloc(1, sizeof(*pic));
    struct extint_source source = {i8259_pending, i8259_acknowledge, pic};
    int rc;

    if (!pic)
        return -ENOMEM;
    device_init(&pic->dev, &i8259_device_ops, "i8259");
    pic->lapics = lapics;
    i8259_reset(&pic->dev);
    rc = i8259_add_ports(pic, machine->bus);
    if (rc) {
        i8259_destroy(&pic->dev);
        return rc;
    }
    lapic_group_set_extint(lapics, &source);
    machine_add_device(machine, &pic->dev);
    *out = pic;
    return 0;
}
