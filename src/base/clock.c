#include "base/clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static uint64_t clock_read(clockid_t id)
{
    struct timespec ts;

    (void)clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

uint64_t clock_now(void)
{
    return clock_read(CLOCK_MONOTONIC);
}

uint64_t clock_wall(void)
{
    return clock_read(CLOCK_REALTIME);
}

/* CLOCK_MONOTONIC_RAW against the counter: the raw clock is not slewed while we measure. */
static uint32_t tsc_khz_measure(void)
{
    uint64_t ns0 = clock_read(CLOCK_MONOTONIC_RAW);
    uint64_t tsc0 = __rdtsc();
    uint64_t ns1, tsc1;

    do {
        ns1 = clock_read(CLOCK_MONOTONIC_RAW);
        tsc1 = __rdtsc();
    } while (ns1 - ns0 < 20 * NSEC_PER_MSEC);
    return (uint32_t)((tsc1 - tsc0) * 1000000 / (ns1 - ns0));
}

uint32_t clock_host_tsc_khz(void)
{
    /* Measured once: every machine of the process must agree. */
    static _Atomic uint32_t khz;
    uint32_t value = atomic_load_explicit(&khz, memory_order_acquire);
    uint32_t none = 0;

    if (value)
        return value;
    value = tsc_khz_measure();
    if (atomic_compare_exchange_strong(&khz, &none, value))
        return value;
    return none;
}
