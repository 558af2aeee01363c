/*
 * ACPI fixed hardware: PM1a event and control blocks, PM timer and GPE0. The reset register
 * 0xcf9 lies in the ports of the PCI host (device/pci.h), which serves it.
 * Source: ACPI 6.4 section 4.8; Intel ICH9 data sheet 13.8.3. I/O base as the board says.
 */
#ifndef CHIP_ACPI_PM_H
#define CHIP_ACPI_PM_H

#include "core/machine.h"

/* Offsets from the base, for the FADT. */
#define ACPI_PM1_EVENT   0x00u
#define ACPI_PM1_CONTROL 0x04u
#define ACPI_PM_TIMER    0x08u
#define ACPI_GPE0        0x20u /* 16 bytes: status, enable */
#define ACPI_SMI_EN      0x30u /* ICH9 data sheet 13.8.3.8 */
#define ACPI_PM_SIZE     0x80u
#define ACPI_RESET_PORT  0xcf9u
#define ACPI_RESET_VALUE 0x06u
#define ACPI_S5_TYPE     0u    /* SLP_TYP of \_S5 */

struct acpi_pm;

/* Drives `sci`. Power-off goes to machine_request(). SCI_EN is always set: there is no legacy mode.
 * SMI_EN reads as if its owner had set the machine's SMIs up already, which is how firmware is told
 * to leave SMM alone. */
nodiscard int acpi_pm_create(struct machine *machine, uint16_t base, struct irq_line sci,
                             struct acpi_pm **out);
/* Moves the ports, 128-byte aligned; 0: nowhere. Any thread, with another device's lock held but
 * not the timer's. */
void acpi_pm_set_base(struct acpi_pm *pm, uint16_t base);
/* The operator presses the power button. True when the guest has its interrupt enabled. Any thread. */
bool acpi_pm_power_button(struct acpi_pm *pm);

#endif
