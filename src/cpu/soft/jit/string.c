/*
 * REP STOS and REP MOVS upwards, when all they touch lies in one page, or one each: the host's own. A longer or
 * downward one, and each page that is not in the TLB, is the interpreter's.
 */
#include "cpu/soft/jit/translate.h"

#define ENTRY_SHIFT 5u
#define TLB_OFFSET(member) (JIT_CONTEXT(tlb) + (int32_t)offsetof(struct soft_tlb_entry, member))
#define DF_SHIFT 32u

static_assert(sizeof(struct soft_tlb_entry) == 1u << ENTRY_SHIFT, "the index below");

static bool moves(const struct jit_insn *i)
{
    switch (i->z.mnemonic) {
    case ZYDIS_MNEMONIC_MOVSB:
    case ZYDIS_MNEMONIC_MOVSW:
    case ZYDIS_MNEMONIC_MOVSD:
    case ZYDIS_MNEMONIC_MOVSQ:
        return true;
    default:
        return false;
    }
}

static bool stores(const struct jit_insn *i)
{
    switch (i->z.mnemonic) {
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ:
        return true;
    default:
        return false;
    }
}

bool jit_string_supported(const struct jit_insn *i)
{
    return i->z.meta.category == ZYDIS_CATEGORY_STRINGOP && (moves(i) || stores(i)) &&
           i->z.address_width == 64 && i->z.attributes & ZYDIS_ATTRIB_HAS_REP &&
           !(i->in->flags & INSN_FS_GS);
}

/* To the interpreter when RFLAGS.DF is set, or RCX is more than fits a page. */
static unsigned check_count(struct jit_translation *t, unsigned size_shift)
{
    struct asm_code *a = &t->a;

    asm_op_mem(a, false, 0x8b, JIT_T0, JIT_FIELD(s.rflags)); /* mov */
    asm_alu_imm(a, false, ASM_AND, JIT_T0, RFLAGS_DF);
    asm_op_reg(a, true, 0xc1, 4, JIT_T0); /* shl */
    asm_byte(a, DF_SHIFT);
    asm_op_reg(a, true, 0x09, GPR_RCX, JIT_T0); /* or */
    asm_alu_imm(a, true, ASM_CMP, JIT_T0, (int32_t)(PAGE_SIZE >> size_shift));
    return jit_cold_call(t, asm_jcc(a, ASM_CC_A, 0));
}

/* Looks RCX elements at [reg] up; what to add to the address into `addend`. T0, T1. A count of zero may miss. */
static unsigned look_up(struct jit_translation *t, unsigned reg, unsigned size_shift, bool write,
                        unsigned addend)
{
    struct asm_code *a = &t->a;
    unsigned cold;

    asm_ror(a, JIT_T1, reg, PAGE_SHIFT - ENTRY_SHIFT);
    asm_alu_imm(a, false, ASM_AND, JIT_T1, (SOFT_TLB_SIZE - 1) << ENTRY_SHIFT);
    asm_lea(a, JIT_T0, (struct asm_mem){(uint8_t)reg, GPR_RCX, (uint8_t)size_shift, false, -1});
    asm_alu_imm(a, true, ASM_AND, JIT_T0, -(int32_t)PAGE_SIZE);
    asm_op_mem(a, true, 0x3b, JIT_T0, /* cmp */
               asm_indexed(JIT_CTX, JIT_T1, write ? TLB_OFFSET(write) : TLB_OFFSET(read)));
    cold = jit_cold_call(t, asm_jcc(a, ASM_CC_NE, 0));
    asm_load(a, addend, asm_indexed(JIT_CTX, JIT_T1, TLB_OFFSET(addend)));
    return cold;
}

static void add(struct asm_code *a, unsigned to, unsigned what)
{
    asm_op_reg(a, true, 0x01, what, to);
}

static void subtract(struct asm_code *a, unsigned from, unsigned what)
{
    asm_op_reg(a, true, 0x29, what, from);
}

/* T2 is what RSI needs, T1 what RDI needs. */
void jit_string(struct jit_translation *t)
{
    unsigned size_shift = (unsigned)__builtin_ctz(t->i->in->opsize);
    unsigned count, source = JIT_NO_COLD, destination;
    struct asm_code *a = &t->a;
    bool move = moves(t->i);

    t->window.open = false;
    jit_flags_free(t);
    count = check_count(t, size_shift);
    if (move)
        source = look_up(t, GPR_RSI, size_shift, false, JIT_T2);
    destination = look_up(t, GPR_RDI, size_shift, true, JIT_T1);
    if (move)
        add(a, GPR_RSI, JIT_T2);
    add(a, GPR_RDI, JIT_T1);
    asm_bytes(a, t->i->bytes, t->i->z.length);
    subtract(a, GPR_RDI, JIT_T1);
    if (move)
        subtract(a, GPR_RSI, JIT_T2);
    jit_cold_resume(t, count);
    jit_cold_resume(t, source);
    jit_cold_resume(t, destination);
}
