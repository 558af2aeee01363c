/*
 * What every device is to the machine: a name, a lock, a reset, and a table of its saved state.
 *
 * A device embeds `struct device` and is created by its own x_create(). The machine's device list
 * (core/machine.h) owns it from machine_add_device() on and calls ops->destroy at the end.
 * Lock: `lock` protects the device's registers; the bus takes it around I/O handlers, everyone
 * else (timers, I/O threads) takes it by hand. Order of locks: docs/architecture.md.
 */
#ifndef CORE_DEVICE_H
#define CORE_DEVICE_H

#include <pthread.h>

#include "core/state.h"

struct device;

struct device_ops {
    const char *type;                      /* "i8259" */
    void (*reset)(struct device *dev);     /* lock held; to power-on state */
    void (*destroy)(struct device *dev);   /* frees the device; no I/O reaches it any more */
    const struct state_table *state;       /* NULL: nothing to save */
    void (*saving)(struct device *dev);    /* optional: lock held, before state save: bring fields
                                              that follow host time into their saved form */
    int (*loaded)(struct device *dev);     /* optional: after state load, re-arm timers and lines */
};

struct device {
    const struct device_ops *ops;
    char name[32]; /* unique in the machine, e.g. "virtio-blk0" */
    pthread_mutex_t lock;
    struct device *next; /* machine's list */
};

void device_init(struct device *dev, const struct device_ops *ops, const char *name);
void device_release(struct device *dev);

static inline void device_lock(struct device *dev)
{
    pthread_mutex_lock(&dev->lock);
}

static inline void device_unlock(struct device *dev)
{
    pthread_mutex_unlock(&dev->lock);
}

#endif
