/* BT, BTS, BTR and BTC of a bit string in memory, the bit's number in a register: the word that has the bit is found first. */
#include "cpu/soft/jit/translate.h"

bool jit_bit_supported(const struct jit_insn *i)
{
    return i->operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
           i->operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER && i->operand[0].size >= 32 &&
           jit_memory_supported(i, &i->operand[0]);
}

/* T2: the address of the word, which the number, of any sign, leads to. T0, T1. */
static void word_address(struct jit_translation *t, unsigned gpr)
{
    const ZydisDecodedOperand *op = &t->i->operand[0];
    bool wide = op->size == 64;
    struct asm_code *a = &t->a;

    jit_address(t, op, JIT_T2);
    jit_read_gpr(a, JIT_T0, gpr, wide);
    if (!wide)
        asm_op_reg(a, true, 0x63, JIT_T0, JIT_T0); /* movsxd */
    asm_op_reg(a, true, 0xc1, 7, JIT_T0);          /* sar */
    asm_byte(a, wide ? 6 : 5);
    asm_lea(a, JIT_T2, (struct asm_mem){JIT_T2, JIT_T0, wide ? 3 : 2, false, 0});
}

/* With the flags live, as all but CF stay. T2: host address; T1: the number, its bits above the word's clear. */
static void on_word(struct jit_translation *t)
{
    bool wide = t->i->operand[0].size == 64, locked = t->i->in->flags & INSN_LOCK;
    unsigned opcode = 0x100u | t->i->z.opcode;
    struct asm_code *a = &t->a;

    if (locked) {
        asm_byte(a, 0xf0);
        asm_op_mem(a, wide, opcode, JIT_T1, asm_base(JIT_T2, 0));
        return;
    }
    asm_op_mem(a, wide, 0x8b, JIT_T0, asm_base(JIT_T2, 0));
    asm_op_reg(a, wide, opcode, JIT_T1, JIT_T0);
    if (t->i->z.mnemonic != ZYDIS_MNEMONIC_BT)
        asm_op_mem(a, wide, 0x89, JIT_T0, asm_base(JIT_T2, 0));
}

void jit_bit(struct jit_translation *t)
{
    unsigned gpr = (unsigned)insn_gpr(t->i->operand[1].reg.value), cold;
    unsigned size = t->i->operand[0].size;
    struct asm_code *a = &t->a;

    t->window.open = false;
    t->holds_t2 = true;
    jit_flags_free(t);
    word_address(t, gpr);
    asm_lea(a, JIT_T2, jit_look_up_base(t, JIT_T2, 0, size / 8,
                                        t->i->z.mnemonic != ZYDIS_MNEMONIC_BT, &cold));
    jit_read_gpr(a, JIT_T1, gpr, size == 64);
    asm_alu_imm(a, false, ASM_AND, JIT_T1, (int32_t)size - 1);
    jit_flags_load(t);
    on_word(t);
    jit_cold_resume(t, cold);
}
