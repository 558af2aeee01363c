/*
 * An assembler for the few host instructions that the translator puts around the guest's own.
 *
 * Code is written into the code buffer's writable mapping; positions are offsets from the buffer's
 * start, so that jumps inside it do not care where it is executed. Writing past the end sets
 * `overflow` and drops the bytes. Registers are numbers 0 to 15 (enum cpu_gpr's order, which is the
 * hardware's). Opcodes are those of the SDM, vol. 2; `w` chooses 64-bit operands.
 */
#ifndef CPU_SOFT_JIT_ASM_H
#define CPU_SOFT_JIT_ASM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

#define ASM_NONE 0xffu /* no register in an address */

struct asm_code {
    uint8_t *base;  /* borrowed: the buffer's writable mapping */
    uint32_t at;    /* offset of the next byte */
    uint32_t end;   /* bytes from here on are somebody else's */
    bool overflow;
    bool bmi2;      /* the host has it */
};

/* [base + index << scale + disp]; gs: a field of the vCPU, [gs:disp]. */
struct asm_mem {
    uint8_t base, index, scale;
    bool gs;
    int32_t disp;
};

static inline struct asm_mem asm_gs(uint64_t field)
{
    return (struct asm_mem){ASM_NONE, ASM_NONE, 0, true, (int32_t)field};
}

static inline struct asm_mem asm_base(unsigned base, int32_t disp)
{
    return (struct asm_mem){(uint8_t)base, ASM_NONE, 0, false, disp};
}

static inline struct asm_mem asm_indexed(unsigned base, unsigned index, int32_t disp)
{
    return (struct asm_mem){(uint8_t)base, (uint8_t)index, 0, false, disp};
}

void asm_byte(struct asm_code *a, unsigned byte);
void asm_bytes(struct asm_code *a, const uint8_t *bytes, unsigned len);
void asm_u16(struct asm_code *a, uint16_t value);
void asm_u32(struct asm_code *a, uint32_t value);
void asm_u64(struct asm_code *a, uint64_t value);

/* ModRM, SIB and displacement; reg: bits 2:0 of the ModRM.reg operand. */
void asm_modrm_mem(struct asm_code *a, unsigned reg, const struct asm_mem *m);
/* Always with a 32-bit displacement, as EVEX scales a short one. */
void asm_modrm_mem32(struct asm_code *a, unsigned reg, const struct asm_mem *m);

/* One-byte opcodes; op above 0xff: 0F and the low byte. */
void asm_op_mem(struct asm_code *a, bool w, unsigned op, unsigned reg, struct asm_mem m);
void asm_op_reg(struct asm_code *a, bool w, unsigned op, unsigned reg, unsigned rm);

void asm_load(struct asm_code *a, unsigned reg, struct asm_mem m);  /* 64 bits */
void asm_store(struct asm_code *a, struct asm_mem m, unsigned reg); /* 64 bits */
void asm_store_imm8(struct asm_code *a, struct asm_mem m, unsigned value);
void asm_store_imm32(struct asm_code *a, struct asm_mem m, uint32_t value);
void asm_mov(struct asm_code *a, unsigned to, unsigned from);
void asm_lea(struct asm_code *a, unsigned reg, struct asm_mem m);
void asm_mov_imm(struct asm_code *a, unsigned reg, uint64_t value); /* the shortest form */

/* The /n of opcodes 81 and 83 with a 64-bit or 32-bit register. */
enum asm_alu { ASM_ADD, ASM_OR, ASM_ADC, ASM_SBB, ASM_AND, ASM_SUB, ASM_XOR, ASM_CMP };
void asm_alu_imm(struct asm_code *a, bool w, enum asm_alu op, unsigned reg, int32_t imm);

/* to = from rotated right; clobbers the flags (where the host has BMI2 it need not). */
void asm_ror(struct asm_code *a, unsigned to, unsigned from, unsigned count);

/* Jumps with 32-bit displacements. The offset answered is that of the displacement. */
uint32_t asm_jmp(struct asm_code *a, uint32_t target);
uint32_t asm_jcc(struct asm_code *a, unsigned condition, uint32_t target);
void asm_jmp_mem(struct asm_code *a, struct asm_mem m);
/* Lets the displacement at `site` lead to `target`. */
void asm_patch(struct asm_code *a, uint32_t site, uint32_t target);
/* NOPs until the offset has the remainder `rest` by `align` (a power of two, at most 16). */
void asm_align(struct asm_code *a, unsigned align, unsigned rest);
void asm_nop5(struct asm_code *a);

#define ASM_CC_B  0x2u
#define ASM_CC_AE 0x3u
#define ASM_CC_E  0x4u
#define ASM_CC_NE 0x5u
#define ASM_CC_A  0x7u
#define ASM_CC_S  0x8u
#define ASM_CC_GE 0xdu

#endif
