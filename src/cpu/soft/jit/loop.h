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

#endif
