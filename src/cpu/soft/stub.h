/*
 * Native stubs: one guest instruction as a host function.
 *
 * The instruction's own bytes run on the host with as little changed as possible: its memory
 * operand becomes [rsi], its general registers become RAX (ModRM.reg) and RCX (ModRM.rm), loaded
 * from and stored to s.gpr around it; vector, mask and x87 registers are the guest's already,
 * since they live in the host's (fpu.h). Arithmetic flags go from and to s.rflags.
 */
#ifndef CPU_SOFT_STUB_H
#define CPU_SOFT_STUB_H

#include "cpu/soft/code.h"
#include "cpu/soft/insn.h"

/* `memory`: host address of the memory operand, or of whatever the stub's maker says. */
typedef void stub_fn(struct soft_vcpu *cpu, void *memory);

/* Bytes being put together; more than fits sets `overflow`. */
struct stub {
    uint8_t bytes[SOFT_CODE_PIECE_MAX];
    unsigned len;
    bool overflow;
};

void stub_byte(struct stub *stub, uint8_t byte);
void stub_bytes(struct stub *stub, const uint8_t *bytes, unsigned len);
/* Pads with INT3 up to offset. */
void stub_pad(struct stub *stub, unsigned offset);

/* MOVDQU/VMOVDQU/VMOVDQU64 between a vector register and [rsi + 64 * slot]; size 8 (MMX), 16
 * (legacy encoding), 32 (VEX), 64 (EVEX) bytes. */
void stub_move(struct stub *stub, bool load, unsigned size, unsigned reg, unsigned slot);
/* KMOVQ between a mask register and [rsi + 64 * slot]. */
void stub_move_mask(struct stub *stub, bool load, unsigned reg, unsigned slot);

/* The whole function for the instruction; false when it cannot be re-encoded. */
bool stub_instruction(struct stub *stub, const struct insn_decode *d);

/* The operand in memory that is not an address only (LEA); NULL when there is none. */
const ZydisDecodedOperand *stub_memory_operand(const struct insn_decode *d);

#endif
