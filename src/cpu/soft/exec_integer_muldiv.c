/* MUL, IMUL in all its forms, DIV, IDIV, MULX. */
#include "cpu/soft/exec_integer.h"

typedef unsigned __int128 u128;
typedef __int128 i128;

/*
 * One-operand forms on whole registers: the host merges 8- and 16-bit results and clears upper
 * halves as the guest expects. RAX is wanted for the flags too, hence the moves.
 */
#define ASM_WIDE(op, bits, rax, rdx, value, ax)                                                    \
    __asm__ volatile(FLAGS_LOAD "mov %[a],%%rax\n\t" #op SFX_##bits " %[s]\n\t"                    \
                                "mov %%rax,%[a]" FLAGS_SAVE                                        \
                     : [a] "+&r"(rax), "+&a"(ax), "+&d"(rdx)                                       \
                     : [s] "r"(value)                                                              \
                     : "cc")

static void divide_check(struct soft_vcpu *cpu, u128 dividend, uint64_t divisor, unsigned bits)
{
    if (unlikely((uint64_t)(dividend >> bits) >= divisor))
        soft_raise(cpu, VECTOR_DE);
}

/* The quotient fits exactly when |dividend| < |divisor| * (largest magnitude + 1). */
static void divide_check_signed(struct soft_vcpu *cpu, i128 dividend, int64_t divisor,
                                unsigned bits)
{
    u128 a = dividend < 0 ? -(u128)dividend : (u128)dividend;
    u128 b = divisor < 0 ? -(u128)divisor : (u128)divisor;
    u128 bound = b << (bits - 1);

    if ((dividend < 0) != (divisor < 0))
        bound += b;
    if (unlikely(a >= bound))
        soft_raise(cpu, VECTOR_DE);
}

#define DIVIDEND_8    GPR(16, 0)
#define DIVIDEND_16   (((uint32_t)GPR(16, GPR_RDX * 8) << 16) | GPR(16, 0))
#define DIVIDEND_32   (((uint64_t)GPR(32, GPR_RDX * 8) << 32) | GPR(32, 0))
#define DIVIDEND_64   (((u128)GPR(64, GPR_RDX * 8) << 64) | GPR(64, 0))
#define SIGNED_8(v)   (int16_t)(v)
#define SIGNED_16(v)  (int32_t)(v)
#define SIGNED_32(v)  (int64_t)(v)
#define SIGNED_64(v)  (i128)(v)

#define CHECK_mul(bits, value)  (void)0
#define CHECK_imul(bits, value) (void)0
#define CHECK_div(bits, value)  divide_check(cpu, DIVIDEND_##bits, value, bits)
#define CHECK_idiv(bits, value)                                                                    \
    divide_check_signed(cpu, SIGNED_##bits(DIVIDEND_##bits), (int##bits##_t)(value), bits)

#define WIDE_BODY(op, bits, source)                                                                \
    uint##bits##_t value = (source);                                                               \
    uint64_t rax = cpu->s.gpr[GPR_RAX], rdx = cpu->s.gpr[GPR_RDX];                                 \
    uint32_t ax = flags_get(cpu);                                                                  \
                                                                                                   \
    CHECK_##op(bits, value);                                                                       \
    ASM_WIDE(op, bits, rax, rdx, value, ax);                                                       \
    cpu->s.gpr[GPR_RAX] = rax;                                                                     \
    cpu->s.gpr[GPR_RDX] = rdx;                                                                     \
    flags_put(cpu, ax)

#define WIDE_HANDLERS(op, bits)                                                                    \
    HANDLER(op##_r_##bits)                                                                         \
    {                                                                                              \
        WIDE_BODY(op, bits, GPR(bits, in->src));                                                   \
    }                                                                                              \
    HANDLER(op##_m_##bits)                                                                         \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_READ);                                                   \
        WIDE_BODY(op, bits, LOAD(bits, gva));                                                      \
    }

#define SIZES(M, op) M(op, 8) M(op, 16) M(op, 32) M(op, 64)
#define WIDE_CELL(op, bits) {op##_r_##bits, op##_m_##bits},

SIZES(WIDE_HANDLERS, mul)
SIZES(WIDE_HANDLERS, imul)
SIZES(WIDE_HANDLERS, div)
SIZES(WIDE_HANDLERS, idiv)

static const struct wide_row {
    ZydisMnemonic mnemonic;
    insn_fn *fn[4][2];
} wide_rows[] = {
    {ZYDIS_MNEMONIC_MUL, {SIZES(WIDE_CELL, mul)}},
    {ZYDIS_MNEMONIC_IMUL, {SIZES(WIDE_CELL, imul)}},
    {ZYDIS_MNEMONIC_DIV, {SIZES(WIDE_CELL, div)}},
    {ZYDIS_MNEMONIC_IDIV, {SIZES(WIDE_CELL, idiv)}},
};

bool integer_bind_muldiv(struct insn *in, const struct insn_decode *d)
{
    for (unsigned i = 0; i < ARRAY_SIZE(wide_rows); i++) {
        if (wide_rows[i].mnemonic != d->z->mnemonic)
            continue;
        in->src = insn_gpr_offset(d->operand[0].reg.value);
        in->fn = wide_rows[i].fn[bind_size_index(bind_bytes(d, 0))][bind_is_mem(d, 0)];
        return true;
    }
    return false;
}

/* ---- IMUL with two and three operands ---- */

#define IMUL_BODY(bits, first, second)                                                             \
    uint##bits##_t result = (first), value = (second);                                             \
    uint32_t ax = flags_get(cpu);                                                                  \
                                                                                                   \
    __asm__ volatile(FLAGS_LOAD "imul" SFX_##bits " %[s],%[d]" FLAGS_SAVE                          \
                     : [d] "+&r"(result), "+&a"(ax)                                                \
                     : [s] "r"(value)                                                              \
                     : "cc");                                                                      \
    gpr_write_##bits(cpu, in->dst, result);                                                        \
    flags_put(cpu, ax)

#define IMUL_HANDLERS(bits)                                                                        \
    HANDLER(imul_rr_##bits)                                                                        \
    {                                                                                              \
        IMUL_BODY(bits, GPR(bits, in->dst), GPR(bits, in->src));                                   \
    }                                                                                              \
    HANDLER(imul_rm_##bits)                                                                        \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_READ);                                                   \
        IMUL_BODY(bits, GPR(bits, in->dst), LOAD(bits, gva));                                      \
    }                                                                                              \
    HANDLER(imul_rri_##bits)                                                                       \
    {                                                                                              \
        IMUL_BODY(bits, GPR(bits, in->src), (uint##bits##_t)in->imm);                              \
    }                                                                                              \
    HANDLER(imul_rmi_##bits)                                                                       \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_READ);                                                   \
        IMUL_BODY(bits, LOAD(bits, gva), (uint##bits##_t)in->imm);                                 \
    }
IMUL_HANDLERS(16)
IMUL_HANDLERS(32)
IMUL_HANDLERS(64)

#define IMUL_CELL(bits) {imul_rr_##bits, imul_rm_##bits, imul_rri_##bits, imul_rmi_##bits}

bool integer_bind_imul(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const handlers[4][4] = {{NULL}, IMUL_CELL(16), IMUL_CELL(32), IMUL_CELL(64)};
    bool immediate = d->z->operand_count_visible == 3;

    if (d->z->operand_count_visible < 2)
        return integer_bind_muldiv(in, d);
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->src = insn_gpr_offset(d->operand[1].reg.value);
    in->fn = handlers[bind_size_index(bind_bytes(d, 0))][immediate * 2 + bind_is_mem(d, 1)];
    return in->fn != NULL;
}

/* ---- MULX: high half first; one destination for both gets the high half ---- */

#define MULX_BODY(bits, wide, source)                                                              \
    wide product = (wide)GPR(bits, GPR_RDX * 8) * (wide)(source);                                  \
                                                                                                   \
    gpr_write_##bits(cpu, in->src2, (uint##bits##_t)product);                                      \
    gpr_write_##bits(cpu, in->dst, (uint##bits##_t)(product >> bits))

#define MULX_HANDLERS(bits, wide)                                                                  \
    HANDLER(mulx_r_##bits)                                                                         \
    {                                                                                              \
        MULX_BODY(bits, wide, GPR(bits, in->src));                                                 \
    }                                                                                              \
    HANDLER(mulx_m_##bits)                                                                         \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_READ);                                                   \
        MULX_BODY(bits, wide, LOAD(bits, gva));                                                    \
    }
MULX_HANDLERS(32, uint64_t)
MULX_HANDLERS(64, u128)

bool integer_bind_mulx(struct insn *in, const struct insn_decode *d)
{
    bool wide = bind_bytes(d, 0) == 8;

    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->src2 = insn_gpr_offset(d->operand[1].reg.value);
    in->src = insn_gpr_offset(d->operand[2].reg.value);
    if (bind_is_mem(d, 2))
        in->fn = wide ? mulx_m_64 : mulx_m_32;
    else
        in->fn = wide ? mulx_r_64 : mulx_r_32;
    return true;
}
