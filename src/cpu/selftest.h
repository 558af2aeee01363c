/*
 * The self-test guest: what proves that an engine can run a real kernel on this host.
 *
 * A guest of a few hundred bytes does once each thing that has been seen to fail on hosts whose
 * virtualization is incomplete: real to protected to long mode, paging, INT3 through an IDT, SSE,
 * CMPXCHG16B, XSAVE and XRSTOR (when the model has them), port and memory-mapped I/O, HLT. It says
 * by port writes how far it came and leaves its results in memory, where they are compared.
 *
 * Works with any engine, through struct engine_ops alone. Takes milliseconds; bounded by
 * SELFTEST_SECONDS. Any thread.
 */
#ifndef CPU_SELFTEST_H
#define CPU_SELFTEST_H

#include <stdbool.h>

#include "cpu/engine.h"

#define SELFTEST_SECONDS 5

struct selftest_result {
    bool passed;
    bool engine_error;   /* the engine itself gave up, rather than the guest going astray */
    const char *step;    /* what was being done when it failed: static text */
    char detail[256];    /* why */
};

void selftest_run(const struct engine_ops *ops, struct selftest_result *result);

#endif
