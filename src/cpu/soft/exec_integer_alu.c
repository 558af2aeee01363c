/* ADD OR ADC SBB AND SUB XOR CMP TEST, and INC DEC NEG NOT. */
#include "cpu/soft/exec_integer.h"

/*
 * Kernels. N: flags do not matter before; C: CF does. `dc` is the destination's constraint, so that one text
 * serves registers and memory.
 */
#define ASM_N(prefix, op, bits, dc, dst, value, ax)                                                \
    __asm__ volatile(prefix #op SFX_##bits " %[s],%[d]" FLAGS_SAVE                                 \
                     : [d] dc(dst), "=a"(ax)                                                       \
                     : [s] "r"(value)                                                              \
                     : "cc")
#define ASM_C(prefix, op, bits, dc, dst, value, ax)                                                \
    __asm__ volatile("bt $0,%[f]\n\t" prefix #op SFX_##bits " %[s],%[d]" FLAGS_SAVE                \
                     : [d] dc(dst), "=a"(ax)                                                       \
                     : [s] "r"(value), [f] "r"((uint32_t)flags_bytes(cpu)[0])                      \
                     : "cc")
#define ASM_COMPARE(op, bits, first, second, ax)                                                   \
    __asm__ volatile(#op SFX_##bits " %[s],%[d]" FLAGS_SAVE                                        \
                     : "=a"(ax)                                                                    \
                     : [d] "r"(first), [s] "r"(second)                                             \
                     : "cc")

/* Register destination: from a value. */
#define ALU_REG(op, kind, bits, source)                                                            \
    uint##bits##_t value = (source);                                                               \
    uint##bits##_t result = GPR(bits, in->dst);                                                    \
    uint32_t ax;                                                                                   \
    ASM_##kind("", op, bits, "+r", result, value, ax);                                             \
    gpr_write_##bits(cpu, in->dst, result);                                                        \
    flags_put(cpu, ax)

#define ALU_MEM(op, kind, bits, form, source)                                                      \
    gva_t gva = ADDR_##form(bits / 8, SOFT_WRITE);                                                 \
    uint64_t spare;                                                                                \
    uint##bits##_t *host = rmw_begin(cpu, in, gva, bits / 8, &spare);                              \
    uint##bits##_t value = (source);                                                               \
    uint32_t ax;                                                                                   \
    ASM_##kind("", op, bits, "+m", *host, value, ax);                                              \
    rmw_end(cpu, in, gva, bits / 8, host, &spare);                                                 \
    flags_put(cpu, ax)

#define ALU_LOCK(op, kind, bits, source)                                                           \
    gva_t gva = ADDR_g(bits / 8, SOFT_WRITE);                                                      \
    uint64_t spare;                                                                                \
    uint##bits##_t *host = locked_begin(cpu, in, gva, bits / 8, &spare);                           \
    uint##bits##_t value = (source);                                                               \
    uint32_t ax;                                                                                   \
    ASM_##kind("lock ", op, bits, "+m", *host, value, ax);                                         \
    locked_end(cpu, in, gva, bits / 8, host, &spare);                                              \
    flags_put(cpu, ax)

#define COMPARE(op, bits, first, second)                                                           \
    uint##bits##_t a = (first);                                                                    \
    uint##bits##_t b = (second);                                                                   \
    uint32_t ax;                                                                                   \
    ASM_COMPARE(op, bits, a, b, ax);                                                               \
    flags_put(cpu, ax)

#define SRC(bits) GPR(bits, in->src)
#define IMM(bits) (uint##bits##_t) in->imm

#define ALU_MEM_HANDLERS(op, kind, bits, form)                                                     \
    HANDLER(op##_rm_##bits##form)                                                                  \
    {                                                                                              \
        gva_t gva = ADDR_##form(bits / 8, SOFT_READ);                                              \
        ALU_REG(op, kind, bits, LOAD(bits, gva));                                                  \
    }                                                                                              \
    HANDLER(op##_mr_##bits##form)                                                                  \
    {                                                                                              \
        ALU_MEM(op, kind, bits, form, SRC(bits));                                                  \
    }                                                                                              \
    HANDLER(op##_mi_##bits##form)                                                                  \
    {                                                                                              \
        ALU_MEM(op, kind, bits, form, IMM(bits));                                                  \
    }

#define ALU_HANDLERS(op, kind, bits)                                                               \
    HANDLER(op##_rr_##bits)                                                                        \
    {                                                                                              \
        ALU_REG(op, kind, bits, SRC(bits));                                                        \
    }                                                                                              \
    HANDLER(op##_ri_##bits)                                                                        \
    {                                                                                              \
        ALU_REG(op, kind, bits, IMM(bits));                                                        \
    }                                                                                              \
    ALU_MEM_HANDLERS(op, kind, bits, g)                                                            \
    ALU_MEM_HANDLERS(op, kind, bits, b)                                                            \
    ALU_MEM_HANDLERS(op, kind, bits, x)                                                            \
    HANDLER(op##_lr_##bits)                                                                        \
    {                                                                                              \
        ALU_LOCK(op, kind, bits, SRC(bits));                                                       \
    }                                                                                              \
    HANDLER(op##_li_##bits)                                                                        \
    {                                                                                              \
        ALU_LOCK(op, kind, bits, IMM(bits));                                                       \
    }

#define COMPARE_MEM_HANDLERS(op, bits, form)                                                       \
    HANDLER(op##_rm_##bits##form)                                                                  \
    {                                                                                              \
        gva_t gva = ADDR_##form(bits / 8, SOFT_READ);                                              \
        COMPARE(op, bits, GPR(bits, in->dst), LOAD(bits, gva));                                    \
    }                                                                                              \
    HANDLER(op##_mr_##bits##form)                                                                  \
    {                                                                                              \
        gva_t gva = ADDR_##form(bits / 8, SOFT_READ);                                              \
        COMPARE(op, bits, LOAD(bits, gva), SRC(bits));                                             \
    }                                                                                              \
    HANDLER(op##_mi_##bits##form)                                                                  \
    {                                                                                              \
        gva_t gva = ADDR_##form(bits / 8, SOFT_READ);                                              \
        COMPARE(op, bits, LOAD(bits, gva), IMM(bits));                                             \
    }

#define COMPARE_HANDLERS(op, kind, bits)                                                           \
    HANDLER(op##_rr_##bits)                                                                        \
    {                                                                                              \
        COMPARE(op, bits, GPR(bits, in->dst), SRC(bits));                                          \
    }                                                                                              \
    HANDLER(op##_ri_##bits)                                                                        \
    {                                                                                              \
        COMPARE(op, bits, GPR(bits, in->dst), IMM(bits));                                          \
    }                                                                                              \
    COMPARE_MEM_HANDLERS(op, bits, g)                                                              \
    COMPARE_MEM_HANDLERS(op, bits, b)                                                              \
    COMPARE_MEM_HANDLERS(op, bits, x)

#define SIZES(M, op, kind) M(op, kind, 8) M(op, kind, 16) M(op, kind, 32) M(op, kind, 64)

SIZES(ALU_HANDLERS, add, N)
SIZES(ALU_HANDLERS, or, N)
SIZES(ALU_HANDLERS, adc, C)
SIZES(ALU_HANDLERS, sbb, C)
SIZES(ALU_HANDLERS, and, N)
SIZES(ALU_HANDLERS, sub, N)
SIZES(ALU_HANDLERS, xor, N)
SIZES(COMPARE_HANDLERS, cmp, N)
SIZES(COMPARE_HANDLERS, test, N)

/* XOR r,r and SUB r,r of 32 and 64 bits: always zero. */
HANDLER(zero_r)
{
    uint8_t *f = flags_bytes(cpu);

    GPR(64, in->dst) = 0;
    f[0] = RFLAGS_ONE | RFLAGS_ZF | RFLAGS_PF;
    f[1] = (uint8_t)(f[1] & ~8u);
}

/* TEST r,r: most of all tests. */
#define TEST_SAME(bits)                                                                            \
    HANDLER(test_same_##bits)                                                                      \
    {                                                                                              \
        uint##bits##_t value = GPR(bits, in->dst);                                                 \
        uint32_t ax;                                                                               \
        ASM_COMPARE(test, bits, value, value, ax);                                                 \
        flags_put(cpu, ax);                                                                        \
    }
TEST_SAME(32)
TEST_SAME(64)

enum {
    FORM_RR,
    FORM_RI,
    FORM_RM,
    FORM_MR = FORM_RM + EA_FORMS,
    FORM_MI = FORM_MR + EA_FORMS,
    FORM_LR = FORM_MI + EA_FORMS,
    FORM_LI,
    FORMS
};

#define ROW_COMMON(op, bits)                                                                       \
    [FORM_RR] = op##_rr_##bits, [FORM_RI] = op##_ri_##bits,                                        \
    [FORM_RM + EA_G] = op##_rm_##bits##g, [FORM_RM + EA_B] = op##_rm_##bits##b,                    \
    [FORM_RM + EA_X] = op##_rm_##bits##x, [FORM_MR + EA_G] = op##_mr_##bits##g,                    \
    [FORM_MR + EA_B] = op##_mr_##bits##b, [FORM_MR + EA_X] = op##_mr_##bits##x,                    \
    [FORM_MI + EA_G] = op##_mi_##bits##g, [FORM_MI + EA_B] = op##_mi_##bits##b,                    \
    [FORM_MI + EA_X] = op##_mi_##bits##x
#define ROW_ALU(op, bits)                                                                          \
    {                                                                                              \
        ROW_COMMON(op, bits), [FORM_LR] = op##_lr_##bits, [FORM_LI] = op##_li_##bits               \
    }
#define ROW_COMPARE(op, bits)                                                                      \
    {                                                                                              \
        ROW_COMMON(op, bits)                                                                       \
    }
#define ROWS(row, op) {row(op, 8), row(op, 16), row(op, 32), row(op, 64)}

enum alu_op { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP, ALU_TEST };

static insn_fn *const alu_handlers[][4][FORMS] = {
    [ALU_ADD] = ROWS(ROW_ALU, add),     [ALU_OR] = ROWS(ROW_ALU, or),
    [ALU_ADC] = ROWS(ROW_ALU, adc),     [ALU_SBB] = ROWS(ROW_ALU, sbb),
    [ALU_AND] = ROWS(ROW_ALU, and),     [ALU_SUB] = ROWS(ROW_ALU, sub),
    [ALU_XOR] = ROWS(ROW_ALU, xor),     [ALU_CMP] = ROWS(ROW_COMPARE, cmp),
    [ALU_TEST] = ROWS(ROW_COMPARE, test),
};

static int alu_op(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
        return ALU_ADD;
    case ZYDIS_MNEMONIC_OR:
        return ALU_OR;
    case ZYDIS_MNEMONIC_ADC:
        return ALU_ADC;
    case ZYDIS_MNEMONIC_SBB:
        return ALU_SBB;
    case ZYDIS_MNEMONIC_AND:
        return ALU_AND;
    case ZYDIS_MNEMONIC_SUB:
        return ALU_SUB;
    case ZYDIS_MNEMONIC_XOR:
        return ALU_XOR;
    case ZYDIS_MNEMONIC_CMP:
        return ALU_CMP;
    case ZYDIS_MNEMONIC_TEST:
        return ALU_TEST;
    default:
        return -1;
    }
}

/* Register destination; -1 when the operands are none of these. */
static int alu_bind_reg(struct insn *in, const struct insn_decode *d)
{
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    if (bind_is_gpr(d, 1)) {
        in->src = insn_gpr_offset(d->operand[1].reg.value);
        return FORM_RR;
    }
    if (bind_is_imm(d, 1))
        return FORM_RI;
    return bind_is_mem(d, 1) ? (int)(FORM_RM + bind_ea_form(in, d)) : -1;
}

static int alu_bind_mem(struct insn *in, const struct insn_decode *d)
{
    bool lock = in->flags & INSN_LOCK;

    if (bind_is_gpr(d, 1)) {
        in->src = insn_gpr_offset(d->operand[1].reg.value);
        return lock ? FORM_LR : (int)(FORM_MR + bind_ea_form(in, d));
    }
    if (bind_is_imm(d, 1))
        return lock ? FORM_LI : (int)(FORM_MI + bind_ea_form(in, d));
    return -1;
}

static insn_fn *alu_special(const struct insn *in, int op, unsigned size, int form)
{
    if (form != FORM_RR || in->dst != in->src || size < 4)
        return NULL;
    if (op == ALU_XOR || op == ALU_SUB)
        return zero_r;
    if (op == ALU_TEST)
        return size == 4 ? test_same_32 : test_same_64;
    return NULL;
}

bool integer_bind_alu(struct insn *in, const struct insn_decode *d)
{
    int op = alu_op(d->z->mnemonic);
    unsigned size = bind_bytes(d, 0);
    int form;

    if (op < 0)
        return false;
    if (bind_is_mem(d, 0))
        form = alu_bind_mem(in, d);
    else if (bind_is_gpr(d, 0) && !(in->flags & INSN_LOCK))
        form = alu_bind_reg(in, d);
    else
        return false;
    if (form < 0)
        return false;
    in->fn = alu_special(in, op, size, form);
    if (!in->fn)
        in->fn = alu_handlers[op][bind_size_index(size)][form];
    return in->fn != NULL;
}

/* ---- one operand ---- */

#define ASM_UNARY_N(prefix, op, bits, dc, dst, ax)                                                 \
    __asm__ volatile(prefix #op SFX_##bits " %[d]" FLAGS_SAVE : [d] dc(dst), "=a"(ax) : : "cc")
#define ASM_UNARY_C(prefix, op, bits, dc, dst, ax)                                                 \
    __asm__ volatile("bt $0,%[f]\n\t" prefix #op SFX_##bits " %[d]" FLAGS_SAVE                     \
                     : [d] dc(dst), "=a"(ax)                                                       \
                     : [f] "r"((uint32_t)flags_bytes(cpu)[0])                                      \
                     : "cc")
/* NOT leaves the flags alone: hand back what is there. */
#define ASM_UNARY_X(prefix, op, bits, dc, dst, ax)                                                 \
    __asm__ volatile(prefix #op SFX_##bits " %[d]" : [d] dc(dst));                                 \
    (void)ax

#define UNARY_PUT_N flags_put(cpu, ax)
#define UNARY_PUT_C flags_put(cpu, ax)
#define UNARY_PUT_X (void)0

#define UNARY_MEM(op, kind, bits, prefix, begin, end)                                              \
    gva_t gva = ADDR_g(bits / 8, SOFT_WRITE);                                                      \
    uint64_t spare;                                                                                \
    uint##bits##_t *host = begin(cpu, in, gva, bits / 8, &spare);                                  \
    uint32_t ax;                                                                                   \
    ASM_UNARY_##kind(prefix, op, bits, "+m", *host, ax);                                           \
    end(cpu, in, gva, bits / 8, host, &spare);                                                     \
    UNARY_PUT_##kind

#define UNARY_HANDLERS(op, kind, bits)                                                             \
    HANDLER(op##_r_##bits)                                                                         \
    {                                                                                              \
        uint##bits##_t result = GPR(bits, in->dst);                                                \
        uint32_t ax;                                                                               \
        ASM_UNARY_##kind("", op, bits, "+r", result, ax);                                          \
        gpr_write_##bits(cpu, in->dst, result);                                                    \
        UNARY_PUT_##kind;                                                                          \
    }                                                                                              \
    HANDLER(op##_m_##bits)                                                                         \
    {                                                                                              \
        UNARY_MEM(op, kind, bits, "", rmw_begin, rmw_end);                                         \
    }                                                                                              \
    HANDLER(op##_l_##bits)                                                                         \
    {                                                                                              \
        UNARY_MEM(op, kind, bits, "lock ", locked_begin, locked_end);                              \
    }

SIZES(UNARY_HANDLERS, inc, C)
SIZES(UNARY_HANDLERS, dec, C)
SIZES(UNARY_HANDLERS, neg, N)
SIZES(UNARY_HANDLERS, not, X)

#define UNARY_FORM(op, form) {op##_##form##_8, op##_##form##_16, op##_##form##_32, op##_##form##_64}
#define UNARY_ROW(op) {UNARY_FORM(op, r), UNARY_FORM(op, m), UNARY_FORM(op, l)}

enum unary_op { UNARY_INC, UNARY_DEC, UNARY_NEG, UNARY_NOT };

static insn_fn *const unary_handlers[][3][4] = {
    [UNARY_INC] = UNARY_ROW(inc),
    [UNARY_DEC] = UNARY_ROW(dec),
    [UNARY_NEG] = UNARY_ROW(neg),
    [UNARY_NOT] = UNARY_ROW(not),
};

static int unary_op(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_INC:
        return UNARY_INC;
    case ZYDIS_MNEMONIC_DEC:
        return UNARY_DEC;
    case ZYDIS_MNEMONIC_NEG:
        return UNARY_NEG;
    case ZYDIS_MNEMONIC_NOT:
        return UNARY_NOT;
    default:
        return -1;
    }
}

bool integer_bind_unary(struct insn *in, const struct insn_decode *d)
{
    int op = unary_op(d->z->mnemonic);
    unsigned form = 0;

    if (op < 0)
        return false;
    if (bind_is_mem(d, 0))
        form = in->flags & INSN_LOCK ? 2 : 1;
    else if (!bind_is_gpr(d, 0) || (in->flags & INSN_LOCK))
        return false;
    else
        in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->fn = unary_handlers[op][form][bind_size_index(bind_bytes(d, 0))];
    return true;
}
