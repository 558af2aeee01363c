/*
 * Local APICs of one machine (xAPIC and x2APIC, TSC-deadline timer) and the bus between them.
 * Source: Intel SDM vol. 3A chapter 11 (APIC).
 *
 * One `struct lapic_group` holds the APIC of every vCPU; the APIC id is the vCPU's index.
 *
 * Locks: none. The registers of an APIC have one writer, the thread of its vCPU (or whoever holds
 * the vCPU parked); other threads read the few that routing needs, and deliver by setting bits of
 * IRR, TMR and the error bits atomically and posting an event to the vCPU. So every function for
 * "any thread" may be called with any device lock held.
 */
#ifndef CHIP_LAPIC_H
#define CHIP_LAPIC_H

#include "core/machine.h"
#include "cpu/engine.h"

struct lapic_group;

/* Who answers an ExtINT acknowledge cycle (the 8259 pair). Any thread. */
struct extint_source {
    bool (*pending)(void *opaque);
    int (*acknowledge)(void *opaque); /* vector */
    void *opaque;
};

/* One device per APIC is added to the machine (state sections "lapic0", ...). */
nodiscard int lapic_group_create(struct machine *machine, unsigned cpus, uint32_t tsc_khz,
                                 struct lapic_group **out);

/* What vcpu->apic is set to, with vcpu->apic_ops = &lapic_ops. */
void *lapic_group_apic(struct lapic_group *group, unsigned index);
extern const struct local_apic_ops lapic_ops;
/* The vCPU that APIC `index` posts its events to; before the vCPU first runs. */
void lapic_group_attach(struct lapic_group *group, unsigned index, struct vcpu *vcpu);

void lapic_group_set_extint(struct lapic_group *group, const struct extint_source *source);
/* The 8259's INTR output changed (wired to LINT0 of every APIC in virtual-wire mode). */
void lapic_group_extint_changed(struct lapic_group *group, int level);

/* MSI, and the I/O APIC's messages (same encoding). Any thread. */
void lapic_group_msi(struct lapic_group *group, uint64_t addr, uint32_t data);
/* Told when an EOI for a level-triggered vector is broadcast: the I/O APIC. */
void lapic_group_set_eoi(struct lapic_group *group, void (*eoi)(void *opaque, uint8_t vector),
                         void *opaque);

#endif
