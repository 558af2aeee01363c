/* Shifts and rotates, SHLD and SHRD, and their BMI2 forms without flags. */
#include "cpu/soft/exec_integer.h"

/* The host masks the count and, for a count of zero, leaves the flags: so they are loaded first. */
#define ASM_SHIFT(op, bits, dc, dst, count, ax)                                                    \
    __asm__ volatile(FLAGS_LOAD #op SFX_##bits " %%cl,%[d]" FLAGS_SAVE                             \
                     : [d] dc(dst), "+&a"(ax)                                                      \
                     : "c"(count)                                                                  \
                     : "cc")

#define SHIFT_HANDLERS(op, bits)                                                                   \
    static always_inline void op##_reg_##bits(struct soft_vcpu *cpu, const struct insn *in,        \
                                              uint8_t count)                                       \
    {                                                                                              \
        uint##bits##_t result = GPR(bits, in->dst);                                                \
        uint32_t ax = flags_get(cpu);                                                              \
                                                                                                   \
        ASM_SHIFT(op, bits, "+r", result, count, ax);                                              \
        gpr_write_##bits(cpu, in->dst, result);                                                    \
        flags_put(cpu, ax);                                                                        \
    }                                                                                              \
    static always_inline void op##_mem_##bits(struct soft_vcpu *cpu, const struct insn *in,        \
                                              uint8_t count)                                       \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_WRITE);                                                  \
        uint64_t spare;                                                                            \
        uint##bits##_t *host = rmw_begin(cpu, in, gva, bits / 8, &spare);                          \
        uint32_t ax = flags_get(cpu);                                                              \
                                                                                                   \
        ASM_SHIFT(op, bits, "+m", *host, count, ax);                                               \
        rmw_end(cpu, in, gva, bits / 8, host, &spare);                                             \
        flags_put(cpu, ax);                                                                        \
    }                                                                                              \
    HANDLER(op##_rc_##bits)                                                                        \
    {                                                                                              \
        op##_reg_##bits(cpu, in, GPR(8, GPR_RCX * 8));                                             \
    }                                                                                              \
    HANDLER(op##_ri_##bits)                                                                        \
    {                                                                                              \
        op##_reg_##bits(cpu, in, (uint8_t)in->imm);                                                \
    }                                                                                              \
    HANDLER(op##_mc_##bits)                                                                        \
    {                                                                                              \
        op##_mem_##bits(cpu, in, GPR(8, GPR_RCX * 8));                                             \
    }                                                                                              \
    HANDLER(op##_mi_##bits)                                                                        \
    {                                                                                              \
        op##_mem_##bits(cpu, in, (uint8_t)in->imm);                                                \
    }

#define SIZES(M, op) M(op, 8) M(op, 16) M(op, 32) M(op, 64)

SIZES(SHIFT_HANDLERS, rol)
SIZES(SHIFT_HANDLERS, ror)
SIZES(SHIFT_HANDLERS, rcl)
SIZES(SHIFT_HANDLERS, rcr)
SIZES(SHIFT_HANDLERS, shl)
SIZES(SHIFT_HANDLERS, shr)
SIZES(SHIFT_HANDLERS, sar)

enum { SHIFT_RC, SHIFT_RI, SHIFT_MC, SHIFT_MI, SHIFT_FORMS };

#define SHIFT_CELL(op, bits) {op##_rc_##bits, op##_ri_##bits, op##_mc_##bits, op##_mi_##bits},
#define SHIFT_ROW(name, op)                                                                        \
    {                                                                                              \
        ZYDIS_MNEMONIC_##name,                                                                     \
        {                                                                                          \
            SIZES(SHIFT_CELL, op)                                                                  \
        }                                                                                          \
    }

static const struct shift_row {
    ZydisMnemonic mnemonic;
    insn_fn *fn[4][SHIFT_FORMS];
} shift_rows[] = {
    SHIFT_ROW(ROL, rol), SHIFT_ROW(ROR, ror), SHIFT_ROW(RCL, rcl), SHIFT_ROW(RCR, rcr),
    SHIFT_ROW(SHL, shl), SHIFT_ROW(SHR, shr), SHIFT_ROW(SAR, sar),
};

bool integer_bind_shift(struct insn *in, const struct insn_decode *d)
{
    unsigned size = bind_size_index(bind_bytes(d, 0));
    unsigned form = bind_is_mem(d, 0) ? SHIFT_MC : SHIFT_RC;

    if (!bind_is_gpr(d, 1)) {
        form++;
        in->imm = d->operand[1].imm.value.u; /* the implied 1, too */
    }
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    for (unsigned i = 0; i < ARRAY_SIZE(shift_rows); i++) {
        if (shift_rows[i].mnemonic == d->z->mnemonic)
            in->fn = shift_rows[i].fn[size][form];
    }
    return in->fn != NULL;
}

/* ---- SHLD, SHRD ---- */

#define ASM_DOUBLE(op, bits, dc, dst, value, count, ax)                                            \
    __asm__ volatile(FLAGS_LOAD #op SFX_##bits " %%cl,%[s],%[d]" FLAGS_SAVE                        \
                     : [d] dc(dst), "+&a"(ax)                                                      \
                     : [s] "r"(value), "c"(count)                                                  \
                     : "cc")

#define DOUBLE_HANDLERS(op, bits, suffix, count)                                                   \
    HANDLER(op##_r##suffix##_##bits)                                                               \
    {                                                                                              \
        uint##bits##_t result = GPR(bits, in->dst);                                                \
        uint32_t ax = flags_get(cpu);                                                              \
                                                                                                   \
        ASM_DOUBLE(op, bits, "+r", result, GPR(bits, in->src), (uint8_t)(count), ax);              \
        gpr_write_##bits(cpu, in->dst, result);                                                    \
        flags_put(cpu, ax);                                                                        \
    }                                                                                              \
    HANDLER(op##_m##suffix##_##bits)                                                               \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_WRITE);                                                  \
        uint64_t spare;                                                                            \
        uint##bits##_t *host = rmw_begin(cpu, in, gva, bits / 8, &spare);                          \
        uint32_t ax = flags_get(cpu);                                                              \
                                                                                                   \
        ASM_DOUBLE(op, bits, "+m", *host, GPR(bits, in->src), (uint8_t)(count), ax);               \
        rmw_end(cpu, in, gva, bits / 8, host, &spare);                                             \
        flags_put(cpu, ax);                                                                        \
    }

#define DOUBLE_FORMS(op, bits)                                                                     \
    DOUBLE_HANDLERS(op, bits, c, GPR(8, GPR_RCX * 8)) DOUBLE_HANDLERS(op, bits, i, in->imm)

DOUBLE_FORMS(shld, 16)
DOUBLE_FORMS(shld, 32)
DOUBLE_FORMS(shld, 64)
DOUBLE_FORMS(shrd, 16)
DOUBLE_FORMS(shrd, 32)
DOUBLE_FORMS(shrd, 64)

#define DOUBLE_ROW(op)                                                                             \
    {                                                                                              \
        {NULL}, SHIFT_CELL(op, 16) SHIFT_CELL(op, 32) SHIFT_CELL(op, 64)                           \
    }

bool integer_bind_double_shift(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const handlers[2][4][SHIFT_FORMS] = {DOUBLE_ROW(shld), DOUBLE_ROW(shrd)};
    unsigned form = bind_is_mem(d, 0) ? SHIFT_MC : SHIFT_RC;

    if (bind_is_imm(d, 2))
        form++;
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->src = insn_gpr_offset(d->operand[1].reg.value);
    in->fn = handlers[d->z->mnemonic == ZYDIS_MNEMONIC_SHRD][bind_size_index(bind_bytes(d, 0))]
                     [form];
    return in->fn != NULL;
}

/* ---- SARX SHLX SHRX RORX ---- */

#define SHIFTX_sarx(bits, value, n) (uint##bits##_t)((int##bits##_t)(value) >> (n))
#define SHIFTX_shlx(bits, value, n) ((value) << (n))
#define SHIFTX_shrx(bits, value, n) ((value) >> (n))
#define SHIFTX_rorx(bits, value, n) (((value) >> (n)) | ((value) << (-(n) & (bits - 1))))

#define SHIFTX_COUNT_r(bits) (unsigned)(GPR(8, in->src2) & (bits - 1))
#define SHIFTX_COUNT_i(bits) (unsigned)(in->imm & (bits - 1))

#define SHIFTX_HANDLERS(op, bits, count)                                                           \
    HANDLER(op##_r_##bits)                                                                         \
    {                                                                                              \
        uint##bits##_t value = GPR(bits, in->src);                                                 \
        unsigned n = SHIFTX_COUNT_##count(bits);                                                   \
                                                                                                   \
        gpr_write_##bits(cpu, in->dst, SHIFTX_##op(bits, value, n));                               \
    }                                                                                              \
    HANDLER(op##_m_##bits)                                                                         \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_READ);                                                   \
        uint##bits##_t value = LOAD(bits, gva);                                                    \
        unsigned n = SHIFTX_COUNT_##count(bits);                                                   \
                                                                                                   \
        gpr_write_##bits(cpu, in->dst, SHIFTX_##op(bits, value, n));                               \
    }
#define SHIFTX_SIZES(op, count) SHIFTX_HANDLERS(op, 32, count) SHIFTX_HANDLERS(op, 64, count)
#define SHIFTX_CELL(op) {{op##_r_32, op##_m_32}, {op##_r_64, op##_m_64}}

SHIFTX_SIZES(sarx, r)
SHIFTX_SIZES(shlx, r)
SHIFTX_SIZES(shrx, r)
SHIFTX_SIZES(rorx, i)

static const struct shiftx_row {
    ZydisMnemonic mnemonic;
    insn_fn *fn[2][2]; /* [64 bits][memory] */
} shiftx_rows[] = {
    {ZYDIS_MNEMONIC_SARX, SHIFTX_CELL(sarx)},
    {ZYDIS_MNEMONIC_SHLX, SHIFTX_CELL(shlx)},
    {ZYDIS_MNEMONIC_SHRX, SHIFTX_CELL(shrx)},
    {ZYDIS_MNEMONIC_RORX, SHIFTX_CELL(rorx)},
};

bool integer_bind_shiftx(struct insn *in, const struct insn_decode *d)
{
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->src = insn_gpr_offset(d->operand[1].reg.value);
    in->src2 = insn_gpr_offset(d->operand[2].reg.value);
    for (unsigned i = 0; i < ARRAY_SIZE(shiftx_rows); i++) {
        if (shiftx_rows[i].mnemonic == d->z->mnemonic)
            in->fn = shiftx_rows[i].fn[bind_bytes(d, 0) == 8][bind_is_mem(d, 1)];
    }
    return in->fn != NULL;
}
