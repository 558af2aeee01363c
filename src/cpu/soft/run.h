/* Between the run loop (vcpu.c), the engine's face (soft.c) and the host timer (alarm.c). */
#ifndef CPU_SOFT_RUN_H
#define CPU_SOFT_RUN_H

#include "cpu/soft/block.h"
#include "cpu/soft/vcpu.h"

/* On the vCPU's thread, until it must be looked at. */
enum vcpu_exit soft_run(struct soft_vcpu *cpu);

/* Nothing but 64-bit guest code is to be executed next: no request, event, single step or breakpoint. */
bool soft_undisturbed(const struct soft_vcpu *cpu);

/* Interprets a block: to its end, or until end_block. May raise. */
void soft_run_block(struct soft_vcpu *cpu, const struct soft_block *block);

/* Instruction breakpoints at linear: raises #DB (SDM vol. 3B 17.3.1.1). */
void soft_debug_fetch(struct soft_vcpu *cpu, gva_t linear);

/*
 * alarm.c: a POSIX timer of the vCPU's thread whose signal only sets SOFT_ATTN_TIMER. Setting it
 * to a later time is put off: the signal then finds the deadline not reached and sets it again.
 */
int soft_timer_signal(void);
nodiscard int soft_timer_install(void);               /* the signal handler; safe to repeat */
nodiscard int soft_timer_attach(struct soft_vcpu *cpu); /* to this thread */
void soft_timer_release(struct soft_vcpu *cpu);
void soft_timer_arm(struct soft_vcpu *cpu, uint64_t deadline);

#endif
