/*
 * Interrupt wires and messages. A device never knows what is behind its pin.
 *
 * Levels: 1 asserted, 0 deasserted. irq_line_set() may be called from any thread, with the
 * caller's device lock held; what is behind it takes only locks later in the lock order.
 */
#ifndef CORE_IRQ_H
#define CORE_IRQ_H

#include <stdint.h>

#define GSI_COUNT 24u /* global system interrupts: the pins of one I/O APIC */

struct irq_line {
    void (*set)(void *opaque, unsigned number, int level);
    void *opaque;    /* borrowed */
    unsigned number; /* pin number for the one behind it */
};

static inline void irq_line_set(const struct irq_line *line, int level)
{
    if (line->set)
        line->set(line->opaque, line->number, level);
}

/* An edge: up and down again. */
static inline void irq_line_pulse(const struct irq_line *line)
{
    irq_line_set(line, 1);
    irq_line_set(line, 0);
}

/* Message-signalled interrupts (Intel SDM vol. 3A 11.11): address 0xfeexxxxx and data. */
struct msi_sink {
    void (*send)(void *opaque, uint64_t addr, uint32_t data);
    void *opaque;
};

static inline void msi_send(const struct msi_sink *sink, uint64_t addr, uint32_t data)
{
    if (sink->send)
        sink->send(sink->opaque, addr, data);
}

#endif
