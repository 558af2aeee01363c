#include "chip/ioapic.h"

#include <errno.h>
#include <stdlib.h>

#define IOAPIC_SIZE    0x1000u
#define IOAPIC_VERSION (0x20u | (GSI_COUNT - 1) << 16)

/* Memory registers */
#define IOAPIC_REGSEL 0x00u
#define IOAPIC_WIN    0x10u
#define IOAPIC_EOI    0x40u

/* Indirect registers */
#define IOAPIC_REG_ID    0x00u
#define IOAPIC_REG_VER   0x01u
#define IOAPIC_REG_ARB   0x02u
#define IOAPIC_REG_REDTBL 0x10u

/* Redirection table entries */
#define IOAPIC_LOGICAL    (1ull << 11)
#define IOAPIC_STATUS     (1ull << 12)
#define IOAPIC_REMOTE_IRR (1ull << 14)
#define IOAPIC_LEVEL      (1ull << 15)
#define IOAPIC_MASKED     (1ull << 16)
#define IOAPIC_WRITABLE   0xff0000000001afffull

struct ioapic {
    struct device dev;
    struct lapic_group *lapics; /* borrowed */
    uint32_t ioregsel;
    uint32_t id;
    uint32_t lines; /* a bit for each pin: asserted */
    uint64_t redtbl[GSI_COUNT];
};

/* The entry's message, in MSI form. */
static void ioapic_send(struct ioapic *ioapic, uint64_t entry)
{
    uint64_t addr = 0xfee00000u | (entry >> 56) << 12 | (entry & IOAPIC_LOGICAL ? 4 : 0);
    uint32_t data = (uint32_t)(entry & 0x7ff) | 1u << 14 | (uint32_t)(entry & IOAPIC_LEVEL);

    lapic_group_msi(ioapic->lapics, addr, data);
}

/* A level-triggered pin asks again until it is served; an edge is sent when it comes. */
static void ioapic_check_level(struct ioapic *ioapic, unsigned pin)
{
    uint64_t *entry = &ioapic->redtbl[pin];

    if (!(*entry & IOAPIC_LEVEL) || (*entry & (IOAPIC_MASKED | IOAPIC_REMOTE_IRR)))
        return;
    if (!(ioapic->lines >> pin & 1))
        return;
    *entry |= IOAPIC_REMOTE_IRR;
    ioapic_send(ioapic, *entry);
}

void ioapic_set(void *opaque, unsigned pin, int level)
{
    struct ioapic *ioapic = opaque;
    uint32_t bit = 1u << pin;

    BUG_ON(pin >= GSI_COUNT);
    device_lock(&ioapic->dev);
    if (!level) {
        ioapic->lines &= ~bit;
    } else if (!(ioapic->lines & bit)) {
        ioapic->lines |= bit;
        if (ioapic->redtbl[pin] & IOAPIC_LEVEL)
            ioapic_check_level(ioapic, pin);
        else if (!(ioapic->redtbl[pin] & IOAPIC_MASKED))
            ioapic_send(ioapic, ioapic->redtbl[pin]);
    }
    device_unlock(&ioapic->dev);
}

static void ioapic_eoi_locked(struct ioapic *ioapic, uint8_t vector)
{
    for (unsigned pin = 0; pin < GSI_COUNT; pin++) {
        uint64_t *entry = &ioapic->redtbl[pin];

        if (!(*entry & IOAPIC_LEVEL) || (uint8_t)*entry != vector)
            continue;
        *entry &= ~IOAPIC_REMOTE_IRR;
        ioapic_check_level(ioapic, pin);
    }
}

static void ioapic_eoi(void *opaque, uint8_t vector)
{
    struct ioapic *ioapic = opaque;

    device_lock(&ioapic->dev);
    ioapic_eoi_locked(ioapic, vector);
    device_unlock(&ioapic->dev);
}

static uint32_t ioapic_reg_read(const struct ioapic *ioapic, uint32_t reg)
{
    switch (reg) {
    case IOAPIC_REG_ID:
    case IOAPIC_REG_ARB: return ioapic->id << 24;
    case IOAPIC_REG_VER: return IOAPIC_VERSION;
    default: break;
    }
    reg -= IOAPIC_REG_REDTBL;
    if (reg >= 2 * GSI_COUNT)
        return 0;
    return (uint32_t)(ioapic->redtbl[reg / 2] >> (reg & 1) * 32);
}

static void ioapic_redtbl_write(struct ioapic *ioapic, unsigned reg, uint32_t value)
{
    unsigned shift = (reg & 1) * 32;
    uint64_t mask = IOAPIC_WRITABLE & (uint64_t)UINT32_MAX << shift;
    uint64_t *entry = &ioapic->redtbl[reg / 2];

    *entry = (*entry & ~mask) | ((uint64_t)value << shift & mask);
    if (!(*entry & IOAPIC_LEVEL))
        *entry &= ~IOAPIC_REMOTE_IRR; /* remote IRR has no meaning for an edge */
    ioapic_check_level(ioapic, reg / 2);
}

static void ioapic_reg_write(struct ioapic *ioapic, uint32_t reg, uint32_t value)
{
    if (reg == IOAPIC_REG_ID)
        ioapic->id = value >> 24 & 0xf;
    else if (reg >= IOAPIC_REG_REDTBL && reg - IOAPIC_REG_REDTBL < 2 * GSI_COUNT)
        ioapic_redtbl_write(ioapic, reg - IOAPIC_REG_REDTBL, value);
}

static uint64_t ioapic_read(void *opaque, uint64_t offset, unsigned size)
{
    struct ioapic *ioapic = opaque;
    uint32_t value = 0;

    if ((offset & ~3ull) == IOAPIC_REGSEL)
        value = ioapic->ioregsel;
    else if ((offset & ~3ull) == IOAPIC_WIN)
        value = ioapic_reg_read(ioapic, ioapic->ioregsel);
    (void)size; /* the bus cuts the answer to size */
    return value >> (offset & 3) * 8;
}

static void ioapic_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ioapic *ioapic = opaque;

    if (offset == IOAPIC_REGSEL)
        ioapic->ioregsel = value & 0xff;
    else if (offset == IOAPIC_WIN && size >= 4)
        ioapic_reg_write(ioapic, ioapic->ioregsel, (uint32_t)value);
    else if (offset == IOAPIC_EOI)
        ioapic_eoi_locked(ioapic, (uint8_t)value);
}

static const struct bus_ops ioapic_bus_ops = {ioapic_read, ioapic_write};

static void ioapic_reset(struct device *dev)
{
    struct ioapic *ioapic = container_of(dev, struct ioapic, dev);

    ioapic->ioregsel = 0;
    ioapic->id = 0;
    for (unsigned pin = 0; pin < GSI_COUNT; pin++)
        ioapic->redtbl[pin] = IOAPIC_MASKED;
}

static void ioapic_destroy(struct device *dev)
{
    device_release(dev);
    free(container_of(dev, struct ioapic, dev));
}

static const struct state_field ioapic_fields[] = {
    STATE_UINT(struct ioapic, ioregsel),
    STATE_UINT(struct ioapic, id),
    STATE_UINT(struct ioapic, lines),
    STATE_UINT_ARRAY(struct ioapic, redtbl),
    STATE_FIELDS_END,
};

static const struct state_table ioapic_state = {"ioapic", 1, ioapic_fields};

static const struct device_ops ioapic_device_ops = {
    .type = "ioapic", .reset = ioapic_reset, .destroy = ioapic_destroy, .state = &ioapic_state};

int ioapic_create(struct machine *machine, struct lapic_group *lapics, struct ioapic **out)
{
    struct ioapic *ioapic = calloc(1, sizeof(*ioapic));
    struct bus_region region = {
        .base = IOAPIC_BASE, .len = IOAPIC_SIZE, .ops = &ioapic_bus_ops, .opaque = ioapic};
    int rc;

    if (!ioapic)
        return -ENOMEM;
    device_init(&ioapic->dev, &ioapic_device_ops, "ioapic");
    ioapic->lapics = lapics;
    ioapic_reset(&ioapic->dev);
    region.dev = &ioapic->dev;
    rc = bus_add(machine->bus, BUS_MEMORY, &region);
    if (rc) {
        ioapic_destroy(&ioapic->dev);
        return rc;
    }
    lapic_group_set_eoi(lapics, ioapic_eoi, ioapic);
    machine_add_device(machine, &ioapic->dev);
    *out = ioapic;
    return 0;
}
