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
    return insn_gpr(op->mem.base) >= 0 && op->mem.index == ZYDIS_REGISTER_NONE && !jit_in_segment(op);
}

unsigned jit_simple_base(const ZydisDecodedOperand *op)
{
    unsigned base = (unsigned)insn_gpr(op->mem.base);

    return jit_in_memory(base) ? JIT_FAR_BASE(base) : jit_host(base);
}

/* The register itself, loaded into `scratch` if it is in memory. */
static unsigned at_hand(struct jit_translation *t, unsigned host, unsigned scratch)
{
    if (!jit_is_far(host))
        return host;
    asm_load(&t->a, scratch, jit_gpr(host - 8));
    return scratch;
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
    unsigned host = at_hand(t, w->host, JIT_T0);
    uint32_t miss = jit_compare_tag(&t->a, host, w->lo, (unsigned)(w->hi - w->lo), w->write);

    jit_load_addend(&t->a, JIT_T2);
    return miss;
}

/* By a window that has the access, or is opened for it; false: there is none. T1, and T0 if one is opened. */
static bool look_up_in_window(struct jit_translation *t, unsigned host, int32_t disp, unsigned size,
                              bool write, struct asm_mem *out, unsigned *cold)
{
    *cold = JIT_NO_COLD;
    if (!jit_window_serves(t, host, disp, size, write)) {
        if (!jit_window_open(t, host, disp, size, write))
            return false;
        jit_flags_free(t);
        *cold = jit_cold_call(t, jit_look_up_window(t, &t->window));
        t->work->cold[*cold].window = t->window;
    }
    *out = asm_indexed(at_hand(t, host, JIT_T1), JIT_T2, disp);
    return true;
}

struct asm_mem jit_look_up_base(struct jit_translation *t, unsigned host, int32_t disp,
                                unsigned size, bool write, unsigned *cold)
{
    struct asm_mem m;

    if (look_up_in_window(t, host, disp, size, write, &m, cold))
        return m;
    jit_flags_free(t);
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
    unsigned base = jit_is_simple(op) ? jit_simple_base(op) : JIT_T2;
    struct asm_mem m;

    if (jit_is_simple(op) && !jit_is_far(base))
        return jit_look_up_base(t, base, (int32_t)op->mem.disp.value, op->size / 8u, write, cold);
    if (jit_is_simple(op) && look_up_in_window(t, base, (int32_t)op->mem.disp.value, op->size / 8u,
                                               write, &m, cold))
        return m;
    if (jit_window_active(t) && !address_needs_t1(op) && !t->needs_t0)
        return look_up_beside_window(t, op, write, cold);
    t->window.open = false;
    jit_address(t, op, JIT_T2);
    return jit_look_up_base(t, JIT_T2, 0, op->size / 8u, write, cold);
}
