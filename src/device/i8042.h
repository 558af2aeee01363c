/*
 * 8042 keyboard controller, ports 60h and 64h, with nothing plugged into its two ports: it answers
 * commands and tests, resets the machine (command FEh), gates A20 with its output port, and tells a
 * driver that talks to a keyboard or mouse at once that none answers. Source: IBM PS/2 Technical
 * Reference, keyboard/auxiliary device controller.
 */
#ifndef DEVICE_I8042_H
#define DEVICE_I8042_H

#include "core/machine.h"

/* Drives ISA IRQs 1 (keyboard port) and 12 (auxiliary port). */
nodiscard int i8042_create(struct machine *machine, struct irq_line irq1, struct irq_line irq12);

#endif
