/* The pair of 8259A interrupt controllers, ports 20h, A0h and ELCR 4D0h. Source: Intel 8259A data sheet. */
#ifndef CHIP_I8259_H
#define CHIP_I8259_H

#include "chip/lapic.h"
#include "core/machine.h"

struct i8259;

/* Adds the device, connects itself to the APICs as their ExtINT source. */
nodiscard int i8259_create(struct machine *machine, struct lapic_group *lapics, struct i8259 **out);
/* IRQ 0-15 input; opaque is the struct i8259: fits struct irq_line.set. */
void i8259_set(void *opaque, unsigned irq, int level);

#endif
