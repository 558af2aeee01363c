/* Makes the thunks of enum soft_jit_thunk at a->at. `call`: the address of what JIT_CALL calls,
 * const void *(struct soft_vcpu *, const struct jit_site *). */
#ifndef CPU_SOFT_JIT_THUNK_H
#define CPU_SOFT_JIT_THUNK_H

#include "cpu/soft/jit/asm.h"
#include "cpu/soft/jit/jit.h"

void jit_make_thunks(struct soft_jit *jit, struct asm_code *a, uint64_t call);

#endif
