/*
 * The buffer of executable code, one per VM: the interpreter's native stubs, put there by the families'
 * binds, and the translator's blocks. Both under the block cache's decode lock.
 *
 * The pages are a memfd mapped twice: written through one mapping, executed through the other, so
 * no address is ever both. Code is position-independent and never changed once put; equal bytes
 * share one copy, so decoding the same instruction again costs nothing.
 *
 * The buffer is bounded. When it is full, soft_code_put() answers NULL until the block cache, whose
 * insn.aux are the only pointers into it, has dropped every block while no other vCPU executes and
 * called soft_code_reset().
 */
#ifndef CPU_SOFT_CODE_H
#define CPU_SOFT_CODE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

#define SOFT_CODE_PIECE_MAX 192u /* bytes of one piece */

struct soft_code;

/* 0 or negative errno. Also sees to it that faults in the code are caught (trap.h). */
nodiscard int soft_code_create(uint32_t size, struct soft_code **out);
void soft_code_destroy(struct soft_code *code); /* NULL is fine */

/* The offset in the buffer of a copy of the bytes; 0 when it is full. Calls no libc. */
uint32_t soft_code_put(struct soft_code *code, const uint8_t *bytes, unsigned len);

/*
 * Room for `len` more bytes, at offset *at; false, and the buffer counts as full, when there is none. The bytes
 * written from there through the writable mapping count once they are committed up to `end`.
 */
bool soft_code_reserve(struct soft_code *code, uint32_t len, uint32_t *at);
void soft_code_commit(struct soft_code *code, uint32_t end);
uint8_t *soft_code_write_base(const struct soft_code *code);
const uint8_t *soft_code_exec_base(const struct soft_code *code);
/* Counts as full from now on. */
void soft_code_exhaust(struct soft_code *code);
/* What is there now outlives every reset. */
void soft_code_keep(struct soft_code *code);

/* Every address ever answered is void, but for what is kept. */
void soft_code_reset(struct soft_code *code);

bool soft_code_full(const struct soft_code *code);
bool soft_code_contains(const struct soft_code *code, uint64_t addr);
/* The address in the buffer whose low half this is, else just the low half. */
uint64_t soft_code_widen(const struct soft_code *code, uint32_t low);

#endif
