/* Handlers of the system family, and the operand they share. Operands as exec_system.c binds them:
 * dst, src: GPR numbers (or a segment, control or debug register's number); INSN_HAS_MEM: memory. */
#ifndef CPU_SOFT_EXEC_SYSTEM_H
#define CPU_SOFT_EXEC_SYSTEM_H

#include "cpu/soft/insn.h"

/* exec_transfer.c */
insn_fn exec_int, exec_int3, exec_into, exec_int1;
insn_fn exec_iret, exec_jump_far_pointer, exec_jump_far_memory, exec_call_far_pointer,
    exec_call_far_memory, exec_return_far;
insn_fn exec_syscall, exec_sysret, exec_sysenter, exec_sysexit;

/* exec_selector.c */
insn_fn exec_mov_from_segment, exec_mov_to_segment, exec_pop_segment, exec_load_far_pointer;
insn_fn exec_lldt, exec_ltr, exec_sldt, exec_str, exec_lar, exec_lsl, exec_verr, exec_verw,
    exec_arpl;
insn_fn exec_lgdt, exec_lidt, exec_sgdt, exec_sidt;

/* exec_privileged.c */
insn_fn exec_mov_from_cr, exec_mov_to_cr, exec_mov_from_dr, exec_mov_to_dr, exec_clts, exec_lmsw,
    exec_smsw;
insn_fn exec_cli, exec_sti, exec_pushf, exec_popf, exec_stac, exec_clac;
insn_fn exec_swapgs, exec_rdfsbase, exec_rdgsbase, exec_wrfsbase, exec_wrgsbase;
insn_fn exec_rdmsr, exec_wrmsr, exec_rdtsc, exec_rdtscp, exec_rdpid, exec_rdpmc, exec_cpuid;
insn_fn exec_invlpg, exec_invpcid, exec_cache_nop, exec_hlt, exec_hypercall, exec_ud;
insn_fn exec_xgetbv, exec_xsetbv;

/* Writes a GPR as an instruction of that operand size does: 4 clears the upper half, 2 keeps the rest. */
static inline void exec_write_gpr(struct soft_vcpu *cpu, unsigned reg, unsigned size, uint64_t value)
{
    if (size == 2)
        cpu->s.gpr[reg] = (cpu->s.gpr[reg] & ~0xffffull) | (value & 0xffff);
    else
        cpu->s.gpr[reg] = size == 4 ? (uint32_t)value : value;
}

static inline void exec_require_cpl0(struct soft_vcpu *cpu)
{
    if (unlikely(cpu->cpl != 0))
        soft_raise_gp(cpu, 0);
}

#endif
