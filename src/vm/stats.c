#include "vm/stats.h"

#include <stdio.h>
#include <sys/resource.h>

#include "base/clock.h"

#define STATS_COUNTERS 64u

static double stats_seconds(struct timeval tv)
{
    return (double)tv.tv_sec + (double)tv.tv_usec / 1e6;
}

void stats_print(const struct pc *pc, uint64_t elapsed)
{
    struct engine_counter counters[STATS_COUNTERS];
    struct rusage usage = {0};
    unsigned count = 0;

    if (pc->engine->counters)
        count = pc->engine->counters(pc->vm, counters, STATS_COUNTERS);
    getrusage(RUSAGE_SELF, &usage);
    fprintf(stderr, "lodge: %-28s %14.2f s\n", "wall time", (double)elapsed / (double)NSEC_PER_SEC);
    fprintf(stderr, "lodge: %-28s %14.2f s\n", "processor time (user)", stats_seconds(usage.ru_utime));
    fprintf(stderr, "lodge: %-28s %14.2f s\n", "processor time (system)",
            stats_seconds(usage.ru_stime));
    fprintf(stderr, "lodge: %-28s %14ld KiB\n", "peak resident memory", usage.ru_maxrss);
    for (unsigned i = 0; i < count; i++)
        fprintf(stderr, "lodge: %-28s %14llu\n", counters[i].name,
                (unsigned long long)counters[i].value);
}
