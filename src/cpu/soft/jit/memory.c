/* Operands in memory: their address, and the look-up in the TLB. */
#include "cpu/soft/jit/translate.h"

#define ENTRY_SHIFT 5u /* entries of the TLB are 32 bytes */
#define TLB_OFFSET(member) (JIT_CONTEXT(tlb) + (int32_t)offsetof(struct soft_tlb_entry, member))

static_assert(sizeof(struct soft_tlb_entry) == 1u << ENTRY_SHIFT, "the index below");

const ZydisDecodedOperand *jit_memory_operand(const struct jit_insn *i)
{
    for (unsigned k = 0; k < i->z.operand_count_visible; k++) {
        const ZydisDecodedOperand *op = &i->operand[k];

        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.type == ZYDIS_MEMOP_TYPE_MEM)
            return op;
    }
    return NULL;
}

bool jit_in_segment(const ZydisDecodedOperand *op)
{
    return op->mem.segment == ZYDIS_REGISTER_FS || op->mem.segment == ZYDIS_REGISTER_GS;
}

static bool fits(int64_t value)
{
    return value == (int32_t)value;
}

int64_t jit_displacement(const struct jit_insn *i, const ZydisDecodedOperand *op)
{
    if (op->mem.base == ZYDIS_REGISTER_RIP)
        return op->mem.disp.value + i->offset + i->z.length; /* from the page on */
    return op->mem.disp.value;
}

bool jit_memory_supported(const struct jit_insn *i, const ZydisDecodedOperand *op)
{
    return i->z.address_width == 64 && op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM &&
           fits(jit_displacement(i, op)) && (op->mem.base == ZYDIS_REGISTER_NONE ||
           op->mem.base == ZYDIS_REGISTER_RIP || insn_gpr(op->mem.base) >= 0) &&
           (op->mem.index == ZYDIS_REGISTER_NONE || insn_gpr(op->mem.index) >= 0);
}

void jit_address(struct jit_translation *t, const ZydisDecodedOperand *op, unsigned reg)
{
    int base = insn_gpr(op->mem.base), index = insn_gpr(op->mem.index);
    struct asm_mem m = {ASM_NONE, ASM_NONE, 0, false, (int32_t)jit_displacement(t->i, op)};

    if (op->mem.base == ZYDIS_REGISTER_RIP) {
        asm_load(&t->a, reg, JIT_FIELD(code_page));
        m.base = (uint8_t)reg;
    } else if (base >= 0) {
        m.base = (uint8_t)jit_host((unsigned)base);
        if (jit_in_memory((unsigned)base)) {
            asm_load(&t->a, reg, jit_gpr((unsigned)base));
            m.base = (uint8_t)reg;
        }
    }
    if (index >= 0) {
        m.index = (uint8_t)index;
        m.scale = (uint8_t)__builtin_ctz(op->mem.scale);
        if (jit_in_memory((unsigned)index)) {
            asm_load(&t->a, JIT_T1, jit_gpr((unsigned)index));
            m.index = JIT_T1;
        }
    }
    asm_lea(&t->a, reg, m);
    if (!jit_in_segment(op))
        return;
    asm_load(&t->a, JIT_T1,
             op->mem.segment == ZYDIS_REGISTER_FS ? JIT_FIELD(s.seg[SEG_FS].base)
                                                  : JIT_FIELD(s.seg[SEG_GS].base));
    asm_lea(&t->a, reg, asm_indexed(reg, JIT_T1, 0));
}

bool jit_is_simple(const ZydisDecodedOperand *op)
{
    int base = insn_gpr(op->mem.base);

    return base >= 0 && !jit_in_memory((unsigned)base) && op->mem.index == ZYDIS_REGISTER_NONE &&
           !jit_in_segment(op);
}

uint32_t jit_compare_tag(struct asm_code *a, unsigned host, int32_t disp, unsigned size, bool write)
{
    unsigned address = host;

    if (disp) {
        asm_lea(a, JIT_T0, asm_base(host, disp));
        address = JIT_T0;
    }
    asm_ror(a, JIT_T1, address, PAGE_SHIFT - ENTRY_SHIFT);
    asm_alu_imm(a, false, ASM_AND, JIT_T1, (SOFT_TLB_SIZE - 1) << ENTRY_SHIFT);
    if (size > 1)
        asm_lea(a, JIT_T0, asm_base(address, (int32_t)size - 1));
    else if (address != JIT_T0)
        asm_mov(a, JIT_T0, address);
    asm_alu_imm(a, true, ASM_AND, JIT_T0, -(int32_t)PAGE_SIZE);
    asm_op_mem(a, true, 0x3b, JIT_T0, /* cmp */
               asm_indexed(JIT_CTX, JIT_T1, write ? TLB_OFFSET(write) : TLB_OFFSET(read)));
    return asm_jcc(a, ASM_CC_NE, 0);
}

void jit_load_addend(struct asm_code *a, unsigned reg)
{
    asm_load(a, reg, asm_indexed(JIT_CTX, JIT_T1, TLB_OFFSET(addend)));
}

uint32_t jit_look_up_window(struct jit_translation *t, const struct jit_window *w)
{
    uint32_t miss = jit_compare_tag(&t->a, w->host, w->lo, (unsigned)(w->hi - w->lo), w->write);

    jit_load_addend(&t->a, JIT_T2);
    return miss;
}

struct asm_mem jit_look_up_base(struct jit_translation *t, unsigned host, int32_t disp,
                                unsigned size, bool write, unsigned *cold)
{
    if (jit_window_serves(t, host, disp, size, write)) {
        *cold = JIT_NO_COLD;
        return asm_indexed(host, JIT_T2, disp);
    }
    jit_flags_free(t);
    if (jit_window_open(t, host, disp, size, write)) {
        *cold = jit_cold_call(t, jit_look_up_window(t, &t->window));
        t->work->cold[*cold].window = t->window;
        return asm_indexed(host, JIT_T2, disp);
    }
    *cold = jit_cold_call(t, jit_compare_tag(&t->a, host, disp, size, write));
    jit_load_addend(&t->a, JIT_T1);
    return asm_indexed(host, JIT_T1, disp);
}

/* While a window keeps T2 the address is made again after the look-up, which leaves only T0 for it. */
static bool address_needs_t1(const ZydisDecodedOperand *op)
{
    int index = insn_gpr(op->mem.index);

    return jit_in_segment(op) || (index >= 0 && jit_in_memory((unsigned)index));
}

static struct asm_mem look_up_beside_window(struct jit_translation *t,
                                            const ZydisDecodedOperand *op, bool write,
                                            unsigned *cold)
{
    jit_flags_free(t);
    jit_address(t, op, JIT_T0);
    *cold = jit_cold_call(t, jit_compare_tag(&t->a, JIT_T0, 0, op->size / 8u, write));
    jit_load_addend(&t->a, JIT_T1);
    jit_address(t, op, JIT_T0);
    return asm_indexed(JIT_T0, JIT_T1, 0);
}

struct asm_mem jit_look_up(struct jit_translation *t, const ZydisDecodedOperand *op, bool write,
                           unsigned *cold)
{
    if (jit_is_simple(op))
        return jit_look_up_base(t, jit_host((unsigned)insn_gpr(op->mem.base)),
                                (int32_t)op->mem.disp.value, op->size / 8u, write, cold);
    if (jit_window_active(t) && !address_needs_t1(op) && !t->needs_t0)
        return look_up_beside_window(t, op, write, cold);
    t->window.open = false;
    jit_address(t, op, JIT_T2);
    return jit_look_up_base(t, JIT_T2, 0, op->size / 8u, write, cold);
}
