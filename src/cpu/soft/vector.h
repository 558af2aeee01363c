/*
 * What the files of the vector family share: exec_vector.c (whole operands), exec_masked.c (memory
 * operands of which only some elements are touched), exec_xstate.c (saving and restoring).
 */
#ifndef CPU_SOFT_VECTOR_H
#define CPU_SOFT_VECTOR_H

#include "cpu/soft/fpu.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/stub.h"

#define VECTOR_BYTES_MAX 64u /* the longest ordinary memory operand */

enum vector_class {
    VECTOR_NONE,  /* not of this family */
    VECTOR_PLAIN, /* general registers only: no control bit matters */
    VECTOR_X87,
    VECTOR_WAIT,  /* FWAIT */
    VECTOR_MMX,
    VECTOR_SSE,
    VECTOR_AVX,
    VECTOR_AVX512,
    VECTOR_XSAVE,
};

/* Use of a class of instructions in the mode of the block (SDM vol. 3A 2.5, 13.1). GATE_UD: bind
 * refuses. GATE_NM: in->fn is set to raise #NM. */
enum vector_gate { GATE_OPEN, GATE_UD, GATE_NM };
enum vector_gate vector_gate(struct insn *in, const struct insn_decode *d, enum vector_class class);

/* What the translator may do with a bound instruction: run it on the host as it is, given its operand's address
 * there; for x87 the last instruction's pointers are to be noted. OTHER: only its handler can. */
enum vector_form { VECTOR_FORM_OTHER, VECTOR_FORM_NATIVE, VECTOR_FORM_X87 };
enum vector_form vector_form(const struct insn *in);

/* Gives the instruction its code (in->aux) and handler; when the code buffer is full, a handler that
 * has it emptied and tries again. False: no buffer at all. */
bool vector_bind_stub(struct insn *in, const struct insn_decode *d, const struct stub *stub,
                      insn_fn *fn);

/* The same for an instruction that touches its whole memory operand, aligned as in->src says. */
bool vector_bind_whole(struct insn *in, const struct insn_decode *d, const struct stub *stub,
                       const ZydisDecodedOperand *memory);

/* #GP(0) when the address has a bit of in->src set; MXCSR.MM may forgive it. Comes before anything else
 * about the address. */
void vector_misaligned(struct soft_vcpu *cpu, const struct insn *in);
static inline void vector_check_aligned(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t base;

    if (!in->src)
        return;
    base = cpu->mode & SOFT_MODE_CODE64 && !(in->flags & INSN_FS_GS) ? 0 : cpu->s.seg[in->seg].base;
    if (unlikely((insn_ea(cpu, in) + base) & in->src))
        vector_misaligned(cpu, in);
}

/* Runs the instruction's code at a byte offset of it. The state must be live. */
static inline void vector_run(struct soft_vcpu *cpu, const struct insn *in, unsigned entry,
                              void *memory)
{
    ((stub_fn *)(uintptr_t)(cpu->code_exec + in->aux + entry))(cpu, memory);
}

/* exec_masked.c */
bool vector_bind_masked(struct insn *in, const struct insn_decode *d);  /* EVEX {k} with memory */
bool vector_bind_maskmov(struct insn *in, const struct insn_decode *d); /* V(P)MASKMOV */
bool vector_bind_maskmovq(struct insn *in, const struct insn_decode *d); /* (V)MASKMOVDQU, MASKMOVQ */
/* exec_gather.c */
bool vector_bind_gather(struct insn *in, const struct insn_decode *d);  /* gathers and scatters */
/* exec_xstate.c, exec_x87env.c */
bool vector_bind_fxsave(struct insn *in, const struct insn_decode *d);
bool vector_bind_xsave(struct insn *in, const struct insn_decode *d);
bool vector_bind_x87env(struct insn *in, const struct insn_decode *d);

#endif
