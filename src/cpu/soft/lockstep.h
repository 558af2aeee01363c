/*
 * Lock-step: every translation is executed twice, by the interpreter and as translated, from the same
 * start, and all state is compared. For tests only (LODGE_SOFT=lockstep, tuning.h); one vCPU.
 *
 * The interpreter goes first, with no write translation in the TLB, so that each of its stores passes
 * soft_lockstep_store(), which keeps the bytes that were there and notes the page. Then registers and the pages stored
 * to are kept, memory and state are put back, and the translation runs with the write translations it would have;
 * its jumps are not linked and the jump cache leads out of it. Registers, segments, control registers, the
 * extended state (of blocks that use it, and of one in 64 others), exceptions and the whole pages must be
 * the same. Other threads (devices) write memory meanwhile: a difference counts when it comes back.
 *
 * What cannot be done twice is not compared: instructions that reach outside or change the mode are blocks of
 * their own (INSN_ALONE); a block that turns out to reach a device or to store into a page of code is
 * put back and interpreted. A device that looks at memory just then may see a store undone and done again.
 *
 * All on the vCPU's own thread.
 */
#ifndef CPU_SOFT_LOCKSTEP_H
#define CPU_SOFT_LOCKSTEP_H

#include "base/error.h"
#include "cpu/soft/block.h"
#include "cpu/soft/context.h"
#include "cpu/soft/vcpu.h"

struct soft_lockstep;

nodiscard int soft_lockstep_create(struct soft_lockstep **out);
/* Logs what was compared. NULL is fine. */
void soft_lockstep_destroy(struct soft_lockstep *ls);

/* Sets INSN_ALONE and INSN_EXTENDED. */
void soft_lockstep_mark(struct insn *in, const ZydisDecodedInstruction *z,
                        const ZydisDecodedOperand *operand);

/* Runs the block and what its translation `native` goes on with, in both forms. May raise, as they do. After a difference
 * the vCPU is shut down and soft_lockstep_failed(). FPU in any state. */
void soft_lockstep_run(struct soft_vcpu *cpu, struct soft_block *block,
                       const struct soft_native *native);

/* A difference was found and reported. */
bool soft_lockstep_failed(const struct soft_vcpu *cpu);

/* From the slow paths of mmu.c and tlb.c, when cpu->lockstep is set: */

/* [host, host + len), inside one page, is about to be written; `direct`: it holds no code. */
void soft_lockstep_store(struct soft_vcpu *cpu, uint8_t *host, unsigned len, bool direct);
/* A device is about to be read or written. */
void soft_lockstep_outside(struct soft_vcpu *cpu);
/* The entry may be written through: its write tag is set only for the translation. */
void soft_lockstep_writable(struct soft_vcpu *cpu, struct soft_tlb_entry *e, uint64_t page);

#endif
