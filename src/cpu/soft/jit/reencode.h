/*
 * Writes a guest instruction again as host code, with some of its general registers and its memory
 * operand replaced. Everything else (opcode, vector registers, immediates, masks) stays. 64-bit code only.
 * Encodings: SDM vol. 2A chapter 2.
 */
#ifndef CPU_SOFT_JIT_REENCODE_H
#define CPU_SOFT_JIT_REENCODE_H

#include <Zydis/Zydis.h>

#include "cpu/soft/jit/asm.h"

#define REENCODE_KEEP 0xffu

/* What is put in place of the general register in each field; REENCODE_KEEP: itself. */
struct reencode {
    uint8_t reg;    /* ModRM.reg */
    uint8_t rm;     /* ModRM.rm with mod 3 */
    uint8_t vvvv;   /* VEX.vvvv */
    uint8_t opcode; /* the opcode's low three bits */
    bool memory;    /* ModRM.rm is memory: `mem` takes its place */
    struct asm_mem mem;
};

/* False, with nothing written, when the instruction cannot be expressed: AH to BH beside a register that needs
 * REX, or an encoding unknown here. */
bool reencode(struct asm_code *a, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operand,
              const uint8_t *bytes, const struct reencode *r);

#endif
