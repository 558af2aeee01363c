/* I/O APIC, 24 pins at 0xfec00000. Source: Intel 82093AA data sheet; ICH9 data sheet 13.5. */
#ifndef CHIP_IOAPIC_H
#define CHIP_IOAPIC_H

#include "chip/lapic.h"
#include "core/machine.h"

#define IOAPIC_BASE 0xfec00000u

struct ioapic;

/* Adds the device and its memory region; sends through lapic_group_msi and hears its EOIs. */
nodiscard int ioapic_create(struct machine *machine, struct lapic_group *lapics,
                            struct ioapic **out);
/* Pin input; opaque is the struct ioapic: fits struct irq_line.set. */
void ioapic_set(void *opaque, unsigned pin, int level);

#endif
