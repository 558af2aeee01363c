/* What a machine cost: the engine's counters and the host's time, for --stats. */
#ifndef VM_STATS_H
#define VM_STATS_H

#include "board/pc.h"

/* On standard error. vCPUs are paused. `elapsed`: wall time in nanoseconds. */
void stats_print(const struct pc *pc, uint64_t elapsed);

#endif
