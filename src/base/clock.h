/* Host time. All in nanoseconds of CLOCK_MONOTONIC unless said otherwise. Any thread. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

#define NSEC_PER_SEC  1000000000ull
#define NSEC_PER_MSEC 1000000ull
#define NSEC_PER_USEC 1000ull

#define CLOCK_NEVER UINT64_MAX /* a deadline that does not come */

uint64_t clock_now(void);

/* Wall clock, nanoseconds since 1970 UTC (CLOCK_REALTIME). */
uint64_t clock_wall(void);

/* Host time-stamp counter frequency in kHz: from the kernel if it says, else measured once. */
uint32_t clock_host_tsc_khz(void);

#endif
