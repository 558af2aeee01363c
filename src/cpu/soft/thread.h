/*
 * What translated code needs of the thread it runs on: GS's base is the vCPU; and since RSP is the guest's, signal
 * handlers have a stack of their own, and no signal comes whose handler does not ask for it (SA_ONSTACK).
 */
#ifndef CPU_SOFT_THREAD_H
#define CPU_SOFT_THREAD_H

#include <signal.h>

#include "base/compiler.h"
#include "cpu/soft/vcpu.h"

struct soft_thread {
    uint8_t *stack;   /* owned mapping; its first page faults */
    stack_t previous; /* what the thread had before */
    sigset_t mask;
};

nodiscard int soft_thread_init(struct soft_thread *thread);
void soft_thread_release(struct soft_thread *thread); /* zeroes are fine */

/* Between the two the thread may run translated code of `cpu`. 0 or negative errno. */
nodiscard int soft_thread_enter(struct soft_thread *thread, struct soft_vcpu *cpu);
void soft_thread_leave(struct soft_thread *thread);

#endif
