/* 16550A UART. Source: National Semiconductor PC16550D data sheet. */
#ifndef DEVICE_UART16550_H
#define DEVICE_UART16550_H

#include "core/machine.h"

struct uart16550;

/* Bytes the guest sends go to `output` (device lock held: must not block for long). */
struct uart16550_sink {
    void (*output)(void *opaque, const uint8_t *bytes, size_t len);
    void (*input_room)(void *opaque); /* uart16550_input() took less than it was given, and takes
                                         more now; device lock held, so wake its thread */
    void *opaque;
};

nodiscard int uart16550_create(struct machine *machine, uint16_t port, struct irq_line irq,
                               const struct uart16550_sink *sink, const char *name,
                               struct uart16550 **out);
/*
 * Bytes for the guest, to the end of a line that holds more than the chip: they come into the chip
 * as the guest reads, and stay on the line when it clears or resets the chip. Returns how many were
 * taken. Any thread.
 */
size_t uart16550_input(struct uart16550 *uart, const uint8_t *bytes, size_t len);

#endif
