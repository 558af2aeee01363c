#include "chip/lapic.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chip/lapic_internal.h"
#include "x86/arch.h"

void lapic_post(struct lapic *apic, enum vcpu_event event, uint8_t vector)
{
    struct vcpu *vcpu = apic->vcpu;

    if (vcpu && vcpu->vm->ops->vcpu_post)
        vcpu->vm->ops->vcpu_post(vcpu, event, vector);
}

/* SDM 11.8.3.1: the priority class of the processor, from TPR and the highest vector in service. */
uint32_t lapic_ppr(struct lapic *apic)
{
    uint32_t tpr = atomic_load_explicit(&apic->tpr, memory_order_relaxed);
    int isrv = lapic_vectors_highest(&apic->isr);

    if (isrv < 0 || (tpr >> 4) >= ((uint32_t)isrv >> 4))
        return tpr;
    return (uint32_t)isrv & 0xf0u;
}

/* LINT0 programmed as ExtINT passes the 8259's INTR wire; a disabled APIC is that wire (11.4.3). */
static bool lapic_extint_ready(struct lapic *apic)
{
    uint32_t why = atomic_load(&apic->extint);
    uint32_t lint0 = atomic_load_explicit(&apic->lvt[LAPIC_LVT_LINT0], memory_order_relaxed);

    if (!why)
        return false;
    if ((why & LAPIC_EXTINT_MESSAGE) || !lapic_hw_enabled(apic))
        return true;
    return !(lint0 & LAPIC_LVT_MASKED) && LAPIC_MODE(lint0) == LAPIC_EXTINT;
}

static int lapic_deliverable(struct lapic *apic)
{
    int vector = lapic_vectors_highest(&apic->irr);

    if (vector < 0 || ((uint32_t)vector >> 4) <= (lapic_ppr(apic) >> 4))
        return -1;
    return vector;
}

bool lapic_has_interrupt(struct lapic *apic)
{
    if (lapic_extint_ready(apic))
        return true;
    if (likely(!atomic_load(&apic->irr.summary)))
        return false;
    return lapic_deliverable(apic) >= 0;
}

static int lapic_accept_extint(struct lapic *apic)
{
    const struct extint_source *source = &apic->group->extint;

    atomic_fetch_and(&apic->extint, ~LAPIC_EXTINT_MESSAGE);
    if (!source->pending || !source->pending(source->opaque))
        return -1;
    return source->acknowledge(source->opaque);
}

static int lapic_accept_interrupt(void *opaque)
{
    struct lapic *apic = opaque;
    int vector;

    if (lapic_extint_ready(apic)) {
        vector = lapic_accept_extint(apic);
        if (vector >= 0)
            return vector;
    }
    vector = lapic_deliverable(apic);
    if (vector < 0)
        return -1;
    lapic_vectors_clear(&apic->irr, (uint8_t)vector);
    lapic_vectors_set(&apic->isr, (uint8_t)vector);
    return vector;
}

void lapic_accept_fixed(struct lapic *apic, uint8_t vector, bool level)
{
    if (!lapic_hw_enabled(apic) || !lapic_sw_enabled(apic))
        return;
    if (vector < 16) {
        lapic_error(apic, LAPIC_ESR_RECEIVE_VECTOR);
        return;
    }
    /* TMR first: whoever sees the IRR bit must see how it was triggered. */
    if (level)
        lapic_vectors_set(&apic->tmr, vector);
    else if (lapic_vectors_test(&apic->tmr, vector))
        lapic_vectors_clear(&apic->tmr, vector);
    lapic_vectors_set(&apic->irr, vector);
    lapic_post(apic, VCPU_EVENT_INTERRUPT, vector);
}

void lapic_lvt_fire(struct lapic *apic, enum lapic_lvt entry)
{
    uint32_t lvt = atomic_load_explicit(&apic->lvt[entry], memory_order_relaxed);
    struct lapic_message msg = {
        .mode = (uint8_t)LAPIC_MODE(lvt), .vector = (uint8_t)lvt, .assert = true};

    if (lvt & LAPIC_LVT_MASKED)
        return;
    if (entry == LAPIC_LVT_TIMER || entry == LAPIC_LVT_ERROR)
        msg.mode = LAPIC_FIXED; /* these have no delivery mode field */
    lapic_deliver(apic, &msg);
}

void lapic_error(struct lapic *apic, uint32_t bits)
{
    uint32_t lvt = atomic_load_explicit(&apic->lvt[LAPIC_LVT_ERROR], memory_order_relaxed);

    atomic_fetch_or(&apic->esr_pending, bits);
    if ((lvt & 0xff) >= 16) /* an illegal error vector is not an error about itself */
        lapic_lvt_fire(apic, LAPIC_LVT_ERROR);
}

void lapic_end_of_interrupt(struct lapic *apic)
{
    int vector = lapic_vectors_highest(&apic->isr);
    struct lapic_group *group = apic->group;
    uint32_t svr = atomic_load_explicit(&apic->svr, memory_order_relaxed);

    if (vector < 0)
        return;
    lapic_vectors_clear(&apic->isr, (uint8_t)vector);
    if (lapic_vectors_test(&apic->tmr, (uint8_t)vector) && !(svr & LAPIC_SVR_NO_BROADCAST) &&
        group->eoi)
        group->eoi(group->eoi_opaque, (uint8_t)vector);
    if (lapic_has_interrupt(apic))
        lapic_post(apic, VCPU_EVENT_INTERRUPT, 0);
}

static void lapic_clear_registers(struct lapic *apic)
{
    atomic_store(&apic->tpr, 0);
    atomic_store(&apic->ldr, 0);
    atomic_store(&apic->dfr, UINT32_MAX);
    atomic_store(&apic->svr, 0xff);
    for (unsigned i = 0; i < LAPIC_LVT_COUNT; i++)
        atomic_store(&apic->lvt[i], LAPIC_LVT_MASKED);
    lapic_vectors_zero(&apic->irr);
    lapic_vectors_zero(&apic->isr);
    lapic_vectors_zero(&apic->tmr);
    atomic_store(&apic->esr_pending, 0);
    apic->esr = 0;
    apic->icr = 0;
    apic->tmict = 0;
    apic->tdcr = 0;
    lapic_timer_stop(apic);
}

/*
 * SDM 11.4.7.1 and 11.4.7.3, with one liberty: LINT0 of the bootstrap processor comes up as ExtINT, unmasked,
 * as firmware leaves it (virtual wire mode), because a directly booted kernel has no firmware before it.
 */
void lapic_reset(struct lapic *apic, bool init)
{
    uint64_t bsp = apic->id == 0 ? APIC_BASE_BSP : 0;

    if (!init)
        atomic_store(&apic->apic_base, APIC_DEFAULT_PHYS | APIC_BASE_ENABLE | bsp);
    lapic_clear_registers(apic);
    if (bsp)
        atomic_store(&apic->lvt[LAPIC_LVT_LINT0], LAPIC_EXTINT << 8);
    /* The wire's level is not ours to reset. */
    atomic_fetch_and(&apic->extint, LAPIC_EXTINT_WIRE);
}

static void lapic_device_reset(struct device *dev)
{
    lapic_reset(container_of(dev, struct lapic, dev), false);
}

static void lapic_device_destroy(struct device *dev)
{
    struct lapic_group *group = container_of(dev, struct lapic, dev)->group;

    device_release(dev);
    if (--group->alive == 0)
        free(group);
}

static void lapic_saving(struct device *dev)
{
    struct lapic *apic = container_of(dev, struct lapic, dev);

    apic->tmcct = lapic_timer_count(apic);
}

static int lapic_loaded(struct device *dev)
{
    struct lapic *apic = container_of(dev, struct lapic, dev);

    lapic_vectors_loaded(&apic->irr);
    lapic_vectors_loaded(&apic->isr);
    lapic_vectors_loaded(&apic->tmr);
    lapic_timer_loaded(apic);
    return 0;
}

static const struct state_field lapic_vectors_fields[] = {
    STATE_UINT_ARRAY(struct lapic_vectors, word),
    STATE_FIELDS_END,
};

static const struct state_field lapic_fields[] = {
    STATE_UINT(struct lapic, id),
    STATE_UINT(struct lapic, apic_base),
    STATE_UINT(struct lapic, tpr),
    STATE_UINT(struct lapic, ldr),
    STATE_UINT(struct lapic, dfr),
    STATE_UINT(struct lapic, svr),
    STATE_STRUCT(struct lapic, isr, lapic_vectors_fields),
    STATE_STRUCT(struct lapic, tmr, lapic_vectors_fields),
    STATE_STRUCT(struct lapic, irr, lapic_vectors_fields),
    STATE_UINT(struct lapic, esr),
    STATE_UINT(struct lapic, esr_pending),
    STATE_UINT(struct lapic, icr),
    STATE_UINT_ARRAY(struct lapic, lvt),
    STATE_UINT(struct lapic, tmict),
    STATE_UINT(struct lapic, tmcct),
    STATE_UINT(struct lapic, tdcr),
    STATE_UINT(struct lapic, tsc_deadline),
    STATE_UINT(struct lapic, extint),
    STATE_FIELDS_END,
};

static const struct state_table lapic_state = {"lapic", 1, lapic_fields};

static const struct device_ops lapic_device_ops = {
    .type = "lapic",
    .reset = lapic_device_reset,
    .destroy = lapic_device_destroy,
    .state = &lapic_state,
    .saving = lapic_saving,
    .loaded = lapic_loaded,
};

int lapic_group_create(struct machine *machine, unsigned cpus, uint32_t tsc_khz,
                       struct lapic_group **out)
{
    size_t size = sizeof(struct lapic_group) + cpus * sizeof(struct lapic);
    struct lapic_group *group =
        aligned_alloc(_Alignof(struct lapic), align_up(size, _Alignof(struct lapic)));

    if (!group)
        return -ENOMEM;
    memset(group, 0, size);
    group->cpus = cpus;
    group->alive = cpus;
    group->tsc_khz = tsc_khz ? tsc_khz : clock_host_tsc_khz();
    for (unsigned i = 0; i < cpus; i++) {
        struct lapic *apic = &group->apic[i];
        char name[sizeof(apic->dev.name)];

        snprintf(name, sizeof(name), "lapic%u", i);
        device_init(&apic->dev, &lapic_device_ops, name);
        apic->group = group;
        apic->id = i;
        lapic_reset(apic, false);
        machine_add_device(machine, &apic->dev);
    }
    *out = group;
    return 0;
}

void *lapic_group_apic(struct lapic_group *group, unsigned index)
{
    BUG_ON(index >= group->cpus);
    return &group->apic[index];
}

void lapic_group_attach(struct lapic_group *group, unsigned index, struct vcpu *vcpu)
{
    BUG_ON(index >= group->cpus);
    group->apic[index].vcpu = vcpu;
}

void lapic_group_set_extint(struct lapic_group *group, const struct extint_source *source)
{
    group->extint = *source;
}

/* LINT0 may be programmed as any kind of interrupt; only ExtINT follows the wire's level. */
static void lapic_lint0_changed(struct lapic *apic, bool rising)
{
    uint32_t lint0 = atomic_load_explicit(&apic->lvt[LAPIC_LVT_LINT0], memory_order_relaxed);

    if (!rising)
        return;
    if (lapic_extint_ready(apic))
        lapic_post(apic, VCPU_EVENT_INTERRUPT, 0);
    else if (lapic_hw_enabled(apic) && LAPIC_MODE(lint0) != LAPIC_EXTINT)
        lapic_lvt_fire(apic, LAPIC_LVT_LINT0);
}

void lapic_group_extint_changed(struct lapic_group *group, int level)
{
    for (unsigned i = 0; i < group->cpus; i++) {
        struct lapic *apic = &group->apic[i];
        uint32_t old = level ? atomic_fetch_or(&apic->extint, LAPIC_EXTINT_WIRE)
                             : atomic_fetch_and(&apic->extint, ~LAPIC_EXTINT_WIRE);

        lapic_lint0_changed(apic, level && !(old & LAPIC_EXTINT_WIRE));
    }
}

void lapic_group_set_eoi(struct lapic_group *group, void (*eoi)(void *opaque, uint8_t vector),
                         void *opaque)
{
    group->eoi = eoi;
    group->eoi_opaque = opaque;
}

static bool lapic_op_has_interrupt(void *opaque)
{
    return lapic_has_interrupt(opaque);
}

static uint64_t lapic_op_mmio_read(void *opaque, uint32_t offset, unsigned size)
{
    return lapic_mmio_read(opaque, offset, size);
}

static void lapic_op_mmio_write(void *opaque, uint32_t offset, unsigned size, uint64_t value)
{
    lapic_mmio_write(opaque, offset, size, value);
}

static int lapic_op_msr_read(void *opaque, uint32_t msr, uint64_t *value)
{
    return lapic_msr_read(opaque, msr, value);
}

static int lapic_op_msr_write(void *opaque, uint32_t msr, uint64_t value)
{
    return lapic_msr_write(opaque, msr, value);
}

static uint64_t lapic_op_base(void *opaque)
{
    return lapic_base_read(opaque);
}

static uint64_t lapic_op_cr8_read(void *opaque)
{
    struct lapic *apic = opaque;

    return atomic_load_explicit(&apic->tpr, memory_order_relaxed) >> 4;
}

static void lapic_op_cr8_write(void *opaque, uint64_t value)
{
    struct lapic *apic = opaque;

    atomic_store(&apic->tpr, (uint32_t)(value & 0xf) << 4);
    if (lapic_has_interrupt(apic))
        lapic_post(apic, VCPU_EVENT_INTERRUPT, 0);
}

static uint64_t lapic_op_timer_deadline(void *opaque)
{
    return ((struct lapic *)opaque)->timer_deadline;
}

static void lapic_op_timer_poll(void *opaque)
{
    lapic_timer_poll(opaque);
}

static void lapic_op_reset(void *opaque, bool init)
{
    lapic_reset(opaque, init);
}

const struct local_apic_ops lapic_ops = {
    .has_interrupt = lapic_op_has_interrupt,
    .accept_interrupt = lapic_accept_interrupt,
    .mmio_read = lapic_op_mmio_read,
    .mmio_write = lapic_op_mmio_write,
    .msr_read = lapic_op_msr_read,
    .msr_write = lapic_op_msr_write,
    .base = lapic_op_base,
    .cr8_read = lapic_op_cr8_read,
    .cr8_write = lapic_op_cr8_write,
    .timer_deadline = lapic_op_timer_deadline,
    .timer_poll = lapic_op_timer_poll,
    .reset = lapic_op_reset,
};
