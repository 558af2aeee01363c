/*
 * Loops that are looked up once for many passes.
 *
 * When a translation ends with a jump to its own head, and each address it accesses moves by a constant from pass to pass,
 * a second form of its body follows the first. Before it each range of addresses is looked up, and counted is how many
 * passes stay within the pages found; then so many passes run with no look-up and no poll, their registers where the host's
 * own allow one more for each range. The ranges hold for the reason that windows do (window.c): there is no block edge in
 * between. Each way out puts the registers back; the first form does what the second cannot.
 *
 *   head:  the first form's entries and body; its last jump leads to:
 *   look up, count, move registers        fails: head
 *   again: the second form's body         side exits: registers back, flags, the jump
 *   passes left: again
 *   registers back, flags: head           (it polls, and is where removal is noticed)
 */
#ifndef CPU_SOFT_JIT_LOOP_H
#define CPU_SOFT_JIT_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/soft/jit/translate.h"

/* Whether the instructions decoded so far are such a loop. Fills t->work->loop. */
bool jit_loop_find(struct jit_translation *t);
/* Whether a jump of the current instruction to this offset is the one that closes it; the first form then leaves the
 * jump's displacement to jit_loop_emit(). */
bool jit_loop_closes(const struct jit_translation *t, int64_t to);
void jit_loop_close(struct jit_translation *t, uint32_t site);
/* The second form, after the first. When it cannot be made the jump is linked as any other. */
void jit_loop_emit(struct jit_translation *t);

/* ---- loop_find.c, loop_pass.c: what the files share ---- */

/* The register is the same in all passes; -1: none is. */
bool jit_loop_stays(const struct jit_loop *loop, int gpr);

/* An instruction's operand lacks room for a third register beside base and index: whichever of them stays the same is added
 * to the addend. WITH_BOTH: neither does. */
enum jit_loop_part { WITH_NEITHER, WITH_BASE, WITH_INDEX, WITH_BOTH };
enum jit_loop_part jit_loop_part_of(const struct jit_loop *loop, const struct jit_range *r);

/* The operand as it is, with its registers where they are. */
struct asm_mem jit_loop_operand(const struct jit_loop *loop, const struct jit_insn *i,
                                const ZydisDecodedOperand *op);

/* Where the flags are at the head, after the count of passes has clobbered them. */
struct jit_loop_flags jit_loop_flags_at_head(const struct jit_translation *t);
/* Has the flags in the host's register. T0. */
void jit_loop_flags_live(struct jit_translation *t, struct jit_loop_flags *flags);

/* The instructions; ends with the flags where they are at the head. False: one of them cannot be expressed. */
bool jit_loop_pass(struct jit_translation *t, const struct jit_loop_flags *head);

enum jit_wild_field {
    JIT_WILD_PAGE = offsetof(struct soft_vcpu, loop_wild[0].page),
    JIT_WILD_LIMIT = offsetof(struct soft_vcpu, loop_wild[0].limit),
    JIT_WILD_ADDEND = offsetof(struct soft_vcpu, loop_wild[0].addend),
};

static inline struct asm_mem jit_loop_wild(unsigned k, enum jit_wild_field field)
{
    return asm_gs(field + k * sizeof(((struct soft_vcpu *)NULL)->loop_wild[0]));
}

#endif
