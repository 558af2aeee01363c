/*
 * The chassis that devices are put into: guest memory, bus, timers, interrupt pins, and the
 * requests a device may make of the machine as a whole (power off, reset).
 *
 * Wired by src/board, run by src/vm. Two machines fit in one process.
 */
#ifndef CORE_MACHINE_H
#define CORE_MACHINE_H

#include <stdatomic.h>

#include "base/timer.h"
#include "core/bus.h"
#include "core/device.h"
#include "core/irq.h"
#include "core/memory.h"

enum machine_request {
    MACHINE_POWER_OFF,   /* the guest switched itself off */
    MACHINE_RESET,       /* the guest asked for a reset, or a triple fault */
    MACHINE_DEBUG_EXIT,  /* isa-debug-exit: code is the exit status */
    MACHINE_STOP,        /* the operator or an engine error ends it: code is the exit status */
};

struct machine {
    struct mem *mem;              /* owned */
    struct bus *bus;              /* owned */
    struct timer_queue *timers;   /* owned */
    struct device *devices;       /* owned list, destroyed last to first */
    struct irq_line gsi[GSI_COUNT]; /* set by the board before devices are created */
    struct msi_sink msi;
    uint64_t code_cache; /* set by the board: bytes an engine may take for translated code; 0: its own choice */

    /* Set by src/vm. Any thread, also a vCPU's; returns at once. `reason` is static text or NULL. */
    void (*request)(void *opaque, enum machine_request what, int code, const char *reason);
    void *request_opaque;
};

nodiscard int machine_create(struct machine **out);

/* Destroys the devices alone: after it, no thread of theirs raises an interrupt. No vCPU may run, but
 * what interrupts reach (the engine's vCPUs) must still be there. */
void machine_destroy_devices(struct machine *machine);

/* Destroys devices, bus, timers, memory. No vCPU may run. */
void machine_destroy(struct machine *machine);

/* Takes ownership of dev. */
void machine_add_device(struct machine *machine, struct device *dev);

/* Resets every device to power-on state. vCPUs are stopped. */
void machine_reset_devices(struct machine *machine);

void machine_request(struct machine *machine, enum machine_request what, int code,
                     const char *reason);

#endif
