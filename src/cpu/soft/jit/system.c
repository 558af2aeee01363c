/*
 * Instructions of the system family that a kernel executes in each of its paths. The usual case is done here; what is not
 * allowed, has another meaning in this mode, or must look at pending interrupts, is the interpreter's. None of them
 * lets a window (window.c) live on, as STAC and CLAC change who may access what.
 */
#include "cpu/soft/jit/translate.h"

#define BYTE(value, n) (uint8_t)((value) >> (8 * (n)))

static_assert(SOFT_MMU_KERNEL_AC == SOFT_MMU_KERNEL + 1, "STAC goes to the next context, CLAC back");

static struct asm_mem field_at(struct asm_mem field, unsigned offset)
{
    field.disp += (int32_t)offset;
    return field;
}

static void compare_byte(struct asm_code *a, struct asm_mem m, uint8_t with)
{
    asm_op_mem(a, false, 0x80, ASM_CMP, m);
    asm_byte(a, with);
}

static void test_byte(struct asm_code *a, struct asm_mem m, uint8_t bits)
{
    asm_op_mem(a, false, 0xf6, 0, m);
    asm_byte(a, bits);
}

/* RFLAGS other than the arithmetic flags are in s.rflags at all times. */
static void set_flag(struct asm_code *a, uint32_t flag)
{
    asm_op_mem(a, false, 0x81, ASM_OR, JIT_FIELD(s.rflags));
    asm_u32(a, flag);
}

static void clear_flag(struct asm_code *a, uint32_t flag)
{
    asm_op_mem(a, false, 0x81, ASM_AND, JIT_FIELD(s.rflags));
    asm_u32(a, ~flag);
}

/* Hands the instruction to the interpreter unless CPL is 0. */
static unsigned require_cpl0(struct jit_translation *t)
{
    jit_flags_free(t);
    compare_byte(&t->a, JIT_FIELD(cpl), 0);
    return jit_cold_call(t, asm_jcc(&t->a, ASM_CC_NE, 0));
}

static void write_gpr(struct asm_code *a, unsigned gpr, bool wide, struct asm_mem from)
{
    unsigned reg = jit_in_memory(gpr) ? JIT_T0 : jit_host(gpr);

    asm_op_mem(a, wide, 0x8b, reg, from);
    if (jit_in_memory(gpr))
        asm_store(a, jit_gpr(gpr), JIT_T0);
}

void jit_read_gpr(struct asm_code *a, unsigned to, unsigned gpr, bool wide)
{
    if (jit_in_memory(gpr))
        asm_op_mem(a, wide, 0x8b, to, jit_gpr(gpr));
    else
        asm_op_reg(a, wide, 0x89, jit_host(gpr), to);
}

/* ---- the interrupt flag ---- */

static void cli(struct jit_translation *t)
{
    unsigned cold = require_cpl0(t);

    clear_flag(&t->a, RFLAGS_IF);
    jit_cold_resume(t, cold);
}

/* Whether the vCPU cannot leave before the next instruction, which no interrupt may precede (SDM vol. 2B STI). */
static bool next_never_polls(const struct jit_translation *t)
{
    const struct jit_insn *next = t->i + 1;

    return t->index + 1 < t->insn_count && next->class != JIT_INTERPRET && /* HLT, above all */
           (next->class < JIT_JMP || next->class == JIT_JCC);
}

/* An interrupt that waits already is let in after the next instruction: the interpreter's, as a request is. One that comes
 * later comes, for the guest, after that instruction. */
static void sti(struct jit_translation *t)
{
    struct asm_code *a = &t->a;
    unsigned cold, wanted;
    uint32_t enabled;

    if (!next_never_polls(t)) {
        jit_call_interpreter(t);
        return;
    }
    cold = require_cpl0(t);
    test_byte(a, field_at(JIT_FIELD(s.rflags), 1), BYTE(RFLAGS_IF, 1));
    enabled = asm_jcc(a, ASM_CC_NE, 0);
    asm_op_mem(a, false, 0x1b6, JIT_T0, JIT_FIELD(interrupt_held)); /* movzx */
    asm_op_mem(a, false, 0x0b, JIT_T0, JIT_FIELD(attention));       /* or */
    wanted = jit_cold_call(t, asm_jcc(a, ASM_CC_NE, 0));
    set_flag(a, RFLAGS_IF);
    asm_patch(a, enabled, a->at);
    jit_cold_resume(t, cold);
    jit_cold_resume(t, wanted);
}

/* ---- flags ---- */

void jit_emit_flags_compose(struct asm_code *a, unsigned scratch)
{
    asm_op_mem(a, false, 0x1b7, JIT_T0, JIT_FIELD(jit_flags)); /* movzx */
    asm_op_reg(a, false, 0x89, JIT_T0, scratch);               /* mov */
    asm_op_reg(a, false, 0xc1, 5, scratch);                    /* shr */
    asm_byte(a, 8);
    asm_alu_imm(a, false, ASM_AND, JIT_T0, 1);
    asm_op_reg(a, false, 0xc1, 4, JIT_T0); /* shl */
    asm_byte(a, 11);
    asm_op_reg(a, false, 0x09, scratch, JIT_T0); /* or */
}

/* In 64-bit mode at any CPL. RF and VM are clear here. */
static void pushfq(struct jit_translation *t)
{
    struct asm_code *a = &t->a;
    struct asm_mem slot;
    unsigned cold;

    jit_flags_save(t);
    jit_emit_flags_compose(a, JIT_T1);
    asm_op_mem(a, false, 0x8b, JIT_T1, JIT_FIELD(s.rflags)); /* mov */
    asm_alu_imm(a, false, ASM_AND, JIT_T1, ~(int32_t)RFLAGS_ARITH);
    asm_op_reg(a, false, 0x09, JIT_T1, JIT_T0);
    asm_store(a, JIT_FIELD(jit_target), JIT_T0);
    slot = jit_look_up_base(t, JIT_RSP, -8, 8, true, &cold);
    asm_load(a, JIT_T0, JIT_FIELD(jit_target));
    asm_store(a, slot, JIT_T0);
    asm_lea(a, JIT_RSP, asm_base(JIT_RSP, -8));
    jit_cold_resume(t, cold);
}

static void direction(struct jit_translation *t, bool down)
{
    jit_flags_free(t);
    if (down)
        set_flag(&t->a, RFLAGS_DF);
    else
        clear_flag(&t->a, RFLAGS_DF);
}

/* ---- SMAP ---- */

/* T0: what differs between the context `by` bytes from the one in use and one that is fit for use; and CPL; T1. */
static void examine_context(struct asm_code *a, int32_t by)
{
    asm_op_mem(a, false, 0x8b, JIT_T0, asm_base(JIT_CTX, JIT_CONTEXT(mode) + by)); /* mov */
    asm_op_mem(a, false, 0x33, JIT_T0, JIT_FIELD(mode));                           /* xor */
    asm_load(a, JIT_T1, asm_base(JIT_CTX, JIT_CONTEXT(jump_generation) + by));
    asm_op_mem(a, true, 0x33, JIT_T1, asm_base(JIT_CTX, JIT_CONTEXT(jump_generation)));
    asm_op_reg(a, true, 0x09, JIT_T1, JIT_T0);                     /* or */
    asm_op_mem(a, false, 0x1b6, JIT_T1, JIT_FIELD(cpl));           /* movzx */
    asm_op_reg(a, true, 0x09, JIT_T1, JIT_T0);                     /* or */
}

/* As privileged_set_ac(): at CPL 0 RFLAGS.AC chooses between two contexts. */
static void set_ac(struct jit_translation *t, bool on)
{
    const int32_t by = on ? (int32_t)sizeof(struct soft_context) : -(int32_t)sizeof(struct soft_context);
    struct asm_code *a = &t->a;
    unsigned differs, user;
    uint32_t so_already;

    user = require_cpl0(t);
    test_byte(a, field_at(JIT_FIELD(s.rflags), 2), BYTE(RFLAGS_AC, 2));
    so_already = asm_jcc(a, on ? ASM_CC_NE : ASM_CC_E, 0);
    examine_context(a, by);
    differs = jit_cold_call(t, asm_jcc(a, ASM_CC_NE, 0));
    if (on)
        set_flag(a, RFLAGS_AC);
    else
        clear_flag(a, RFLAGS_AC);
    asm_store_imm8(a, JIT_FIELD(mmu_index), on ? SOFT_MMU_KERNEL_AC : SOFT_MMU_KERNEL);
    asm_lea(a, JIT_CTX, asm_base(JIT_CTX, by));
    asm_lea(a, JIT_T0, asm_base(JIT_CTX, -(int32_t)SOFT_CONTEXT_STACK));
    asm_store(a, JIT_FIELD(context), JIT_T0);
    asm_patch(a, so_already, a->at);
    jit_cold_resume(t, differs);
    jit_cold_resume(t, user);
}

/* ---- segments and control registers ---- */

static void swapgs(struct jit_translation *t)
{
    unsigned cold = require_cpl0(t);
    struct asm_code *a = &t->a;

    asm_load(a, JIT_T0, JIT_FIELD(s.seg[SEG_GS].base));
    asm_load(a, JIT_T1, JIT_FIELD(s.msr.kernel_gs_base));
    asm_store(a, JIT_FIELD(s.msr.kernel_gs_base), JIT_T0);
    asm_store(a, JIT_FIELD(s.seg[SEG_GS].base), JIT_T1);
    jit_cold_resume(t, cold);
}

static struct asm_mem segment_base(const struct jit_insn *i)
{
    bool fs = i->z.mnemonic == ZYDIS_MNEMONIC_RDFSBASE || i->z.mnemonic == ZYDIS_MNEMONIC_WRFSBASE;

    return fs ? JIT_FIELD(s.seg[SEG_FS].base) : JIT_FIELD(s.seg[SEG_GS].base);
}

static unsigned require_fsgsbase(struct jit_translation *t)
{
    jit_flags_free(t);
    test_byte(&t->a, field_at(JIT_FIELD(s.cr4), 2), BYTE(CR4_FSGSBASE, 2));
    return jit_cold_call(t, asm_jcc(&t->a, ASM_CC_E, 0));
}

static void read_base(struct jit_translation *t)
{
    unsigned cold = require_fsgsbase(t);

    write_gpr(&t->a, t->i->in->dst, t->i->in->opsize == 8, segment_base(t->i));
    jit_cold_resume(t, cold);
}

static void write_base(struct jit_translation *t)
{
    unsigned off = require_fsgsbase(t), odd = JIT_NO_COLD;
    bool wide = t->i->in->opsize == 8;
    struct asm_code *a = &t->a;

    jit_read_gpr(a, JIT_T0, t->i->in->dst, wide);
    if (wide) {
        asm_mov(a, JIT_T1, JIT_T0);
        asm_op_reg(a, true, 0xc1, 4, JIT_T1); /* shl */
        asm_byte(a, 16);
        asm_op_reg(a, true, 0xc1, 7, JIT_T1); /* sar */
        asm_byte(a, 16);
        asm_op_reg(a, true, 0x39, JIT_T0, JIT_T1); /* cmp */
        odd = jit_cold_call(t, asm_jcc(a, ASM_CC_NE, 0));
    }
    asm_store(a, segment_base(t->i), JIT_T0);
    jit_cold_resume(t, off);
    jit_cold_resume(t, odd);
}

static struct asm_mem control_register(unsigned number)
{
    switch (number) {
    case 0:
        return JIT_FIELD(s.cr0);
    case 2:
        return JIT_FIELD(s.cr2);
    case 3:
        return JIT_FIELD(s.cr3);
    default:
        return JIT_FIELD(s.cr4);
    }
}

static void move_from_control(struct jit_translation *t)
{
    unsigned cold = require_cpl0(t);

    write_gpr(&t->a, t->i->in->dst, true, control_register(t->i->in->src));
    jit_cold_resume(t, cold);
}

static void store_selector(struct jit_translation *t, struct asm_mem selector)
{
    struct asm_code *a = &t->a;
    struct asm_mem to;
    unsigned cold;

    t->needs_t0 = true;
    to = jit_look_up(t, &t->i->operand[0], true, &cold);
    asm_op_mem(a, false, 0x1b7, JIT_T0, selector); /* movzx */
    asm_byte(a, 0x66);
    asm_op_mem(a, false, 0x89, JIT_T0, to);
    jit_cold_resume(t, cold);
}

static void move_from_segment(struct jit_translation *t)
{
    unsigned gpr = t->i->in->dst, reg = jit_in_memory(gpr) ? JIT_T0 : jit_host(gpr);
    struct asm_mem selector = field_at(JIT_FIELD(s.seg[0].selector),
                                       t->i->in->src * (unsigned)sizeof(struct cpu_segment));

    if (t->i->operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY) {
        store_selector(t, selector);
        return;
    }
    asm_op_mem(&t->a, false, 0x1b7, reg, selector); /* movzx */
    if (jit_in_memory(gpr))
        asm_store(&t->a, jit_gpr(gpr), JIT_T0);
}

static void read_processor_id(struct jit_translation *t)
{
    write_gpr(&t->a, t->i->in->dst, false, JIT_FIELD(s.msr.tsc_aux));
}

/* ---- which ---- */

/* MOV: from a segment register, or from CR0, CR2 to CR4. */
static bool move_supported(const struct jit_insn *i)
{
    const ZydisDecodedOperand *to = &i->operand[0], *from = &i->operand[1];

    if (from->type != ZYDIS_OPERAND_TYPE_REGISTER)
        return false;
    switch (ZydisRegisterGetClass(from->reg.value)) {
    case ZYDIS_REGCLASS_SEGMENT:
        return to->type == ZYDIS_OPERAND_TYPE_MEMORY ? to->size == 16 && jit_memory_supported(i, to)
                                                     : i->in->opsize >= 4;
    case ZYDIS_REGCLASS_CONTROL:
        return i->in->src == 0 || (i->in->src >= 2 && i->in->src <= 4);
    default:
        return false;
    }
}

bool jit_system_supported(const struct jit_insn *i)
{
    switch (i->z.mnemonic) {
    case ZYDIS_MNEMONIC_CLAC:
    case ZYDIS_MNEMONIC_CLD:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_PUSHFQ:
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_STAC:
    case ZYDIS_MNEMONIC_STD:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_SWAPGS:
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
        return true;
    case ZYDIS_MNEMONIC_MOV:
        return move_supported(i);
    default:
        return false;
    }
}

static void move(struct jit_translation *t)
{
    if (ZydisRegisterGetClass(t->i->operand[1].reg.value) == ZYDIS_REGCLASS_SEGMENT)
        move_from_segment(t);
    else
        move_from_control(t);
}

static void translate(struct jit_translation *t)
{
    switch (t->i->z.mnemonic) {
    case ZYDIS_MNEMONIC_CLAC:
    case ZYDIS_MNEMONIC_STAC:
        set_ac(t, t->i->z.mnemonic == ZYDIS_MNEMONIC_STAC);
        break;
    case ZYDIS_MNEMONIC_CLD:
    case ZYDIS_MNEMONIC_STD:
        direction(t, t->i->z.mnemonic == ZYDIS_MNEMONIC_STD);
        break;
    case ZYDIS_MNEMONIC_CLI:
        cli(t);
        break;
    case ZYDIS_MNEMONIC_STI:
        sti(t);
        break;
    case ZYDIS_MNEMONIC_PUSHFQ:
        pushfq(t);
        break;
    case ZYDIS_MNEMONIC_SWAPGS:
        swapgs(t);
        break;
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
        read_base(t);
        break;
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
        write_base(t);
        break;
    case ZYDIS_MNEMONIC_RDPID:
        read_processor_id(t);
        break;
    default:
        move(t);
        break;
    }
}

void jit_system(struct jit_translation *t)
{
    t->window.open = false;
    t->holds_t2 = true;
    t->needs_t0 = false;
    translate(t);
}
