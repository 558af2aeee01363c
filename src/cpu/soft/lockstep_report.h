/* What came of a block executed twice (lockstep.h), and telling how the two differ. */
#ifndef CPU_SOFT_LOCKSTEP_REPORT_H
#define CPU_SOFT_LOCKSTEP_REPORT_H

#include "core/memory.h"
#include "cpu/soft/block.h"
#include "cpu/soft/vcpu.h"

#define LOCKSTEP_PAGES 64u

struct lockstep_outcome {
    struct cpu_state s;      /* xsave only when the extended state takes part */
    struct soft_x87 x87;
    struct soft_event fault; /* when raised */
    bool raised;
    bool astray;             /* it reached a device, or a page that the interpreter did not store to */
};

struct lockstep_pages {
    uint32_t count;
    uint8_t *host[LOCKSTEP_PAGES];
    uint8_t bytes[LOCKSTEP_PAGES][PAGE_SIZE] __attribute__((aligned(8)));
};

/* All borrowed. The memory is as the translation left it; `pages` holds what the interpreter left. */
struct lockstep_difference {
    const struct soft_native *native;
    const struct lockstep_outcome *start, *interpreter, *translation;
    const struct lockstep_pages *pages;
    bool extended;
};

/* To the log. FPU parked. */
void lockstep_report(struct mem *mem, const struct lockstep_difference *d);

/* The parts of an XSAVE image that the guest can see and that do not depend on who executed: not the x87
 * pointers, which are code addresses of the host, nor XSTATE_BV: the host may track what is in use as it likes. */
bool lockstep_xsave_same(const uint8_t *a, const uint8_t *b);

#endif
