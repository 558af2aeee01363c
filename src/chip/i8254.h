/* 8254 programmable interval timer, ports 40h-43h, and port 61h (gate 2, speaker). Source: Intel 8254 data sheet. */
#ifndef CHIP_I8254_H
#define CHIP_I8254_H

#include "core/machine.h"

/* Channel 0 drives `irq` (ISA IRQ 0). */
nodiscard int i8254_create(struct machine *machine, struct irq_line irq);

#endif
