/* MC146818 real-time clock and CMOS RAM, ports 70h-71h (and 72h-73h). Source: Motorola MC146818 data sheet. */
#ifndef CHIP_MC146818_H
#define CHIP_MC146818_H

#include "core/machine.h"

struct mc146818;

/* Shows UTC. */
nodiscard int mc146818_create(struct machine *machine, struct irq_line irq, struct mc146818 **out);
/* Firmware's view of the machine: sets a CMOS byte that survives reset. */
void mc146818_set_cmos(struct mc146818 *rtc, uint8_t index, uint8_t value);

#endif
