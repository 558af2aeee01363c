/*
 * The LPC bridge of the ICH9 as 00:1f.0, as far as firmware and kernels use it: where the power
 * management ports are (PMBASE, ACPI_CNTL), PIRQ routing to the 8259 pair, port 92h (fast A20,
 * INIT), the APM ports B2h and B3h. Source: Intel ICH9 data sheet 13.1, 13.7. The root complex
 * registers (RCBA) have a base, but nothing is at it.
 */
#ifndef DEVICE_ICH9_LPC_H
#define DEVICE_ICH9_LPC_H

#include "chip/acpi_pm.h"
#include "device/pci.h"

#define ICH9_LPC_SLOT  31u
#define ICH9_LPC_PIRQS 8u

struct ich9_lpc;

/* `pic` drives input `number` of the 8259 pair. `pm` (borrowed) is moved as PMBASE says. */
nodiscard int ich9_lpc_create(struct pci_host *host, struct acpi_pm *pm, const struct irq_line *pic,
                              struct ich9_lpc **out);

/* PIRQ 0 (A#) to 7 (H#), the level on GSI 16 + pirq. Any thread; a lock of its own, before the
 * interrupt chips'. */
void ich9_lpc_pirq(struct ich9_lpc *lpc, unsigned pirq, int level);

/* Puts the power management ports at `base`, as firmware does: for direct kernel boot. */
void ich9_lpc_assign(struct ich9_lpc *lpc, uint16_t base);

#endif
