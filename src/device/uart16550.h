/* 16550A UART. Source: National Semiconductor PC16550D data sheet. */
#ifndef DEVICE_UART16550_H
#define DEVICE_UART16550_H

#include "core/machine.h"

struct uart16550;

/* Bytes the guest sends go to `output` (device lock held: must not block for long). */
struct uart16550_sink {
    void (*output)(void *opaque, const uint8_t *bytes, size_t len);
    void (*input_room)(void *opaque); /* the receive FIFO has room again; device lock held, so
                                         wake the thread that calls uart16550_input() */
    void *opaque;
};

nodiscard int uart16550_create(struct machine *machine, uint16_t port, struct irq_line irq,
                               const struct uart16550_sink *sink, const char *name,
                               struct uart16550 **out);
/* Bytes for the guest; returns how many were taken. Any thread. */
size_t uart16550_input(struct uart16550 *uart, const uint8_t *bytes, size_t len);

#endif
