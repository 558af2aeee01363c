/*
 * A bound on how long something may take: unless it is stopped in time, a thread of its own calls `fn`.
 */
#ifndef VM_WATCHDOG_H
#define VM_WATCHDOG_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

struct watchdog {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stopped; /* lock */
    bool started;
    uint64_t deadline; /* clock_now() */
    void (*fn)(void *opaque);
    void *opaque;
    pthread_t thread;
};

/* Where no thread is to be had there is no bound. */
void watchdog_start(struct watchdog *dog, uint64_t ns, void (*fn)(void *opaque), void *opaque);
/* Afterwards fn has been called, or never will be. */
void watchdog_stop(struct watchdog *dog);

#endif
