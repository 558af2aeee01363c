/*
 * The guest's x87/SSE/AVX state: in the host's registers while `fpu_live`, else in s.xsave.
 *
 * The kernel saves these registers around signal handlers and thread switches by itself.
 */
#ifndef CPU_SOFT_FPU_H
#define CPU_SOFT_FPU_H

#include "cpu/soft/vcpu.h"

/* Makes the guest's state live in the host's registers. Slow part of soft_fpu_use. */
void soft_fpu_load(struct soft_vcpu *cpu);
/* Saves it to s.xsave and gives the host its own defaults (MXCSR, x87 control word, empty stack). */
void soft_fpu_save(struct soft_vcpu *cpu);

static inline void soft_fpu_use(struct soft_vcpu *cpu)
{
    if (unlikely(!cpu->fpu_live))
        soft_fpu_load(cpu);
}

static inline void soft_fpu_park(struct soft_vcpu *cpu)
{
    if (unlikely(cpu->fpu_live))
        soft_fpu_save(cpu);
}

/* XCR0 bits of the host that fit CPU_XSAVE_SIZE in standard format. */
uint64_t soft_fpu_host_xcr0(void);

/* What the guest is told of its last x87 instruction, given the pointers the host recorded: those of
 * a stub stand for the guest's (cpu->x87); anything else the guest loaded itself, or is zero (AMD
 * records only instructions that raise an unmasked exception). In and out through `pointers`. */
void soft_fpu_pointers(const struct soft_vcpu *cpu, struct soft_x87 *pointers);

/* MXCSR bits that may be set on this host. */
uint32_t soft_fpu_mxcsr_mask(void);

#endif
