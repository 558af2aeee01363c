/*
 * Port and memory-mapped I/O: who answers at an address.
 *
 * Regions of one space never overlap. The handler runs under its device's lock; the bus itself
 * holds no lock while it runs, so a handler may add and remove regions. Reads nobody answers give
 * all ones, writes nobody takes are dropped (as on a PC); both are counted.
 *
 * Doorbells: a write to a doorbell address runs its callback without the device's lock. An engine
 * that can do it in the kernel (ioeventfd) subscribes through `doorbell_changed`.
 *
 * Threads: any. A removed region's handler may still be running on another thread when
 * bus_remove() returns; the device must outlive the bus's users (devices die after vCPUs stop).
 */
#ifndef CORE_BUS_H
#define CORE_BUS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "core/device.h"

enum bus_space { BUS_PORT, BUS_MEMORY, BUS_SPACES };

/* `offset` is from the region's base; `size` is 1, 2, 4 or 8 (8: memory only), within the region. */
struct bus_ops {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size);
    void (*write)(void *opaque, uint64_t offset, unsigned size, uint64_t value);
};

struct bus_region {
    uint64_t base;
    uint64_t len;
    const struct bus_ops *ops;
    void *opaque;       /* borrowed; given to ops */
    struct device *dev; /* borrowed; its lock is held around ops; NULL: ops lock for themselves */
};

struct bus_doorbell {
    enum bus_space space;
    uint64_t addr;
    unsigned size;      /* 0: a write of any size rings */
    bool match;         /* true: only when the value written equals `value` */
    uint64_t value;
    void (*ring)(void *opaque); /* any thread, quick, no device lock held */
    void *opaque;
    int event_fd;       /* -1, or an eventfd that has the same effect as ring(): for ioeventfd */
};

struct bus;

nodiscard int bus_create(struct bus **out);
void bus_destroy(struct bus *bus);

nodiscard int bus_add(struct bus *bus, enum bus_space space, const struct bus_region *region);
void bus_remove(struct bus *bus, enum bus_space space, uint64_t base);

nodiscard int bus_add_doorbell(struct bus *bus, const struct bus_doorbell *bell);
void bus_remove_doorbell(struct bus *bus, const struct bus_doorbell *bell);

/* An engine's subscription: told of every doorbell added (also those there already) and removed. */
typedef void bus_doorbell_fn(void *opaque, const struct bus_doorbell *bell, bool added);
void bus_watch_doorbells(struct bus *bus, bus_doorbell_fn *fn, void *opaque);

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size);
void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size, uint64_t value);

#endif
