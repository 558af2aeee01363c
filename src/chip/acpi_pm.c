#include "chip/acpi_pm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

#define ACPI_PM_HZ 3579545u

/* PM1 status and enable (ACPI 6.4 tables 4.11, 4.12) */
#define ACPI_PM1_TMR    (1u << 0)
#define ACPI_PM1_GBL    (1u << 5)
#define ACPI_PM1_PWRBTN (1u << 8)
#define ACPI_PM1_SLPBTN (1u << 9)
#define ACPI_PM1_RTC    (1u << 10)
#define ACPI_PM1_WAK    (1u << 15)
#define ACPI_PM1_EVENTS (ACPI_PM1_TMR | ACPI_PM1_GBL | ACPI_PM1_PWRBTN | ACPI_PM1_SLPBTN | ACPI_PM1_RTC)

/* PM1 control (table 4.13) */
#define ACPI_SCI_EN     (1u << 0)
#define ACPI_SLP_TYP(v) (((v) >> 10) & 7u)
#define ACPI_SLP_EN     (1u << 13)

#define ACPI_GPE_BYTES 8u

/* SMI_EN: writes to the APM command port raise SMIs already, so firmware does not set SMM up; but
 * nothing does. */
#define ACPI_SMI_APMC_EN (1u << 5)

/* TMR_STS is set when bit 23 of the timer changes, so a 24-bit reader misses no wrap. */
#define ACPI_PM_TOGGLE 23u

struct acpi_pm {
    struct device dev;
    struct machine *machine; /* borrowed */
    struct irq_line sci;
    struct timer timer; /* the next change of bit 23, while TMR_EN */
    uint16_t pm1_status, pm1_enable, pm1_control;
    uint8_t gpe0_status[ACPI_GPE_BYTES], gpe0_enable[ACPI_GPE_BYTES];
    uint64_t start;       /* clock_now() at which the PM timer was 0 */
    uint64_t toggles;     /* changes of bit 23 already reported in TMR_STS */
    uint64_t pm_timer;    /* saved form of start */
    uint16_t base; /* where the ports are; 0: nowhere; only acpi_pm_set_base's callers' lock */
};

static uint64_t acpi_pm_ticks(const struct acpi_pm *pm)
{
    return (uint64_t)((unsigned __int128)(clock_now() - pm->start) * ACPI_PM_HZ / NSEC_PER_SEC);
}

static uint64_t acpi_pm_ns(uint64_t ticks)
{
    return (uint64_t)((unsigned __int128)ticks * NSEC_PER_SEC / ACPI_PM_HZ) + 1;
}

static bool acpi_pm_sci(const struct acpi_pm *pm)
{
    if (pm->pm1_status & pm->pm1_enable & ACPI_PM1_EVENTS)
        return true;
    for (unsigned i = 0; i < ACPI_GPE_BYTES; i++) {
        if (pm->gpe0_status[i] & pm->gpe0_enable[i])
            return true;
    }
    return false;
}

static void acpi_pm_update(struct acpi_pm *pm)
{
    uint64_t toggles = acpi_pm_ticks(pm) >> ACPI_PM_TOGGLE;

    if (toggles != pm->toggles) {
        pm->toggles = toggles;
        pm->pm1_status |= ACPI_PM1_TMR;
    }
    irq_line_set(&pm->sci, acpi_pm_sci(pm));
    if ((pm->pm1_enable & ACPI_PM1_TMR) && !(pm->pm1_status & ACPI_PM1_TMR))
        timer_arm(&pm->timer, pm->start + acpi_pm_ns((toggles + 1) << ACPI_PM_TOGGLE));
    else
        timer_cancel(&pm->timer);
}

static void acpi_pm_expired(void *opaque)
{
    struct acpi_pm *pm = opaque;

    device_lock(&pm->dev);
    acpi_pm_update(pm);
    device_unlock(&pm->dev);
}

bool acpi_pm_power_button(struct acpi_pm *pm)
{
    bool listens;

    device_lock(&pm->dev);
    listens = pm->pm1_enable & ACPI_PM1_PWRBTN;
    pm->pm1_status |= ACPI_PM1_PWRBTN;
    acpi_pm_update(pm);
    device_unlock(&pm->dev);
    return listens;
}

static uint8_t acpi_pm_read_byte(const struct acpi_pm *pm, uint64_t offset, uint32_t timer)
{
    switch (offset) {
    case ACPI_PM1_EVENT: return (uint8_t)pm->pm1_status;
    case ACPI_PM1_EVENT + 1: return (uint8_t)(pm->pm1_status >> 8);
    case ACPI_PM1_EVENT + 2: return (uint8_t)pm->pm1_enable;
    case ACPI_PM1_EVENT + 3: return (uint8_t)(pm->pm1_enable >> 8);
    case ACPI_PM1_CONTROL: return (uint8_t)pm->pm1_control;
    case ACPI_PM1_CONTROL + 1: return (uint8_t)(pm->pm1_control >> 8);
    case ACPI_PM_TIMER ... ACPI_PM_TIMER + 3:
        return (uint8_t)(timer >> (offset - ACPI_PM_TIMER) * 8);
    case ACPI_GPE0 ... ACPI_GPE0 + ACPI_GPE_BYTES - 1: return pm->gpe0_status[offset - ACPI_GPE0];
    case ACPI_GPE0 + ACPI_GPE_BYTES ... ACPI_GPE0 + 2 * ACPI_GPE_BYTES - 1:
        return pm->gpe0_enable[offset - ACPI_GPE0 - ACPI_GPE_BYTES];
    case ACPI_SMI_EN: return ACPI_SMI_APMC_EN;
    default: return 0;
    }
}

static uint64_t acpi_pm_read(void *opaque, uint64_t offset, unsigned size)
{
    struct acpi_pm *pm = opaque;
    uint32_t timer = (uint32_t)acpi_pm_ticks(pm);
    uint64_t value = 0;

    if (offset != ACPI_PM_TIMER) /* the timer is read often, and changes nothing */
        acpi_pm_update(pm);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)acpi_pm_read_byte(pm, offset + i, timer) << i * 8;
    return value;
}

static void acpi_pm_sleep(struct acpi_pm *pm)
{
    if (ACPI_SLP_TYP(pm->pm1_control) == ACPI_S5_TYPE)
        machine_request(pm->machine, MACHINE_POWER_OFF, 0, NULL);
    else
        log_guest("ACPI: sleep type %u is not supported", ACPI_SLP_TYP(pm->pm1_control));
}

static void acpi_pm_write_control(struct acpi_pm *pm, unsigned high, uint8_t byte)
{
    uint16_t value = pm->pm1_control;

    value = (uint16_t)(high ? (value & 0x00ff) | byte << 8 : (value & 0xff00) | byte);
    /* There is no legacy mode to go back to: SCI_EN stays. */
    pm->pm1_control = (uint16_t)((value & ~ACPI_SLP_EN) | ACPI_SCI_EN);
    if (value & ACPI_SLP_EN)
        acpi_pm_sleep(pm);
}

static void acpi_pm_write_byte(struct acpi_pm *pm, uint64_t offset, uint8_t byte)
{
    switch (offset) {
    case ACPI_PM1_EVENT: pm->pm1_status &= (uint16_t)~byte; break; /* write 1 to clear */
    case ACPI_PM1_EVENT + 1: pm->pm1_status &= (uint16_t)~(byte << 8); break;
    case ACPI_PM1_EVENT + 2: pm->pm1_enable = (uint16_t)((pm->pm1_enable & 0xff00) | byte); break;
    case ACPI_PM1_EVENT + 3:
        pm->pm1_enable = (uint16_t)((pm->pm1_enable & 0x00ff) | byte << 8);
        break;
    case ACPI_PM1_CONTROL: acpi_pm_write_control(pm, 0, byte); break;
    case ACPI_PM1_CONTROL + 1: acpi_pm_write_control(pm, 1, byte); break;
    case ACPI_GPE0 ... ACPI_GPE0 + ACPI_GPE_BYTES - 1:
        pm->gpe0_status[offset - ACPI_GPE0] &= (uint8_t)~byte;
        break;
    case ACPI_GPE0 + ACPI_GPE_BYTES ... ACPI_GPE0 + 2 * ACPI_GPE_BYTES - 1:
        pm->gpe0_enable[offset - ACPI_GPE0 - ACPI_GPE_BYTES] = byte;
        break;
    default: break;
    }
}

static void acpi_pm_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct acpi_pm *pm = opaque;

    acpi_pm_update(pm);
    for (unsigned i = 0; i < size; i++)
        acpi_pm_write_byte(pm, offset + i, (uint8_t)(value >> i * 8));
    acpi_pm_update(pm);
}

static void acpi_pm_reset(struct device *dev)
{
    struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

    pm->pm1_status = 0;
    pm->pm1_enable = 0;
    pm->pm1_control = ACPI_SCI_EN;
    memset(pm->gpe0_status, 0, sizeof(pm->gpe0_status));
    memset(pm->gpe0_enable, 0, sizeof(pm->gpe0_enable));
    pm->start = clock_now();
    pm->toggles = 0;
    acpi_pm_update(pm);
}

static void acpi_pm_destroy(struct device *dev)
{
    struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

    timer_release(&pm->timer);
    device_release(dev);
    free(pm);
}

static void acpi_pm_saving(struct device *dev)
{
    struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

    acpi_pm_update(pm);
    pm->pm_timer = acpi_pm_ticks(pm);
}

static int acpi_pm_loaded(struct device *dev)
{
    struct acpi_pm *pm = container_of(dev, struct acpi_pm, dev);

    pm->start = clock_now() - acpi_pm_ns(pm->pm_timer);
    pm->toggles = pm->pm_timer >> ACPI_PM_TOGGLE;
    acpi_pm_update(pm);
    return 0;
}

static const struct state_field acpi_pm_fields[] = {
    STATE_UINT(struct acpi_pm, pm1_status),
    STATE_UINT(struct acpi_pm, pm1_enable),
    STATE_UINT(struct acpi_pm, pm1_control),
    STATE_UINT_ARRAY(struct acpi_pm, gpe0_status),
    STATE_UINT_ARRAY(struct acpi_pm, gpe0_enable),
    STATE_UINT(struct acpi_pm, pm_timer),
    STATE_FIELDS_END,
};

static const struct state_table acpi_pm_state = {"acpi_pm", 1, acpi_pm_fields};

static const struct device_ops acpi_pm_device_ops = {
    .type = "acpi_pm",
    .reset = acpi_pm_reset,
    .destroy = acpi_pm_destroy,
    .state = &acpi_pm_state,
    .saving = acpi_pm_saving,
    .loaded = acpi_pm_loaded,
};

static const struct bus_ops acpi_pm_bus_ops = {acpi_pm_read, acpi_pm_write};

static int acpi_pm_map(struct acpi_pm *pm, uint16_t base)
{
    const struct bus_region block = {base, ACPI_PM_SIZE, &acpi_pm_bus_ops, pm, &pm->dev};
    int rc = bus_add(pm->machine->bus, BUS_PORT, &block);

    pm->base = rc == 0 ? base : 0;
    return rc;
}

void acpi_pm_set_base(struct acpi_pm *pm, uint16_t base)
{
    if (base == pm->base)
        return;
    if (pm->base)
        bus_remove(pm->machine->bus, BUS_PORT, pm->base);
    pm->base = 0;
    if (base && acpi_pm_map(pm, base))
        log_guest("ACPI: the ports at 0x%x overlap another device's; not decoded", base);
}

int acpi_pm_create(struct machine *machine, uint16_t base, struct irq_line sci,
                   struct acpi_pm **out)
{
    struct acpi_pm *pm = calloc(1, sizeof(*pm));
    int rc;

    if (!pm)
        return -ENOMEM;
    device_init(&pm->dev, &acpi_pm_device_ops, "acpi_pm");
    timer_init(&pm->timer, machine->timers, acpi_pm_expired, pm);
    pm->machine = machine;
    pm->sci = sci;
    acpi_pm_reset(&pm->dev);
    rc = acpi_pm_map(pm, base);
    if (rc) {
        acpi_pm_destroy(&pm->dev);
        return rc;
    }
    machine_add_device(machine, &pm->dev);
    *out = pm;
    return 0;
}
