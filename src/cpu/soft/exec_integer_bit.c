/* BT BTS BTR BTC; BSF BSR TZCNT LZCNT POPCNT; BMI1, BMI2, ADX; CRC32. */
#include <cpuid.h>

#include "cpu/soft/exec_integer.h"

/* Modifiers that print a 64-bit operand in the size meant. */
#define MOD_8  "b"
#define MOD_16 "w"
#define MOD_32 "k"
#define MOD_64 "q"

/* ---- BT and friends ---- */

/* A register offset reaches beyond the operand: SDM vol. 2A 3.1.1.9, "bit(BitBase, BitOffset)". */
static gva_t bit_address(struct soft_vcpu *cpu, const struct insn *in, unsigned size,
                         int64_t bit_offset, enum soft_access access)
{
    struct insn at = *in;
    int64_t bits = (int64_t)size * 8;

    at.disp += (bit_offset & -bits) / 8;
    return soft_operand(cpu, &at, size, access);
}

#define ASM_BIT(prefix, op, bits, dc, dst, offset, ax)                                             \
    __asm__ volatile(FLAGS_LOAD prefix #op SFX_##bits " %[s],%[d]" FLAGS_SAVE                      \
                     : [d] dc(dst), "+&a"(ax)                                                      \
                     : [s] "r"(offset)                                                             \
                     : "cc")

#define BIT_OFFSET_r(bits) (int##bits##_t) GPR(bits, in->src)
#define BIT_OFFSET_i(bits) (int##bits##_t)(in->imm & (bits - 1))
#define BIT_INSIDE(bits)   (uint##bits##_t)(offset & (bits - 1))

#define BIT_REG(op, bits, form)                                                                    \
    HANDLER(op##_r##form##_##bits)                                                                 \
    {                                                                                              \
        int##bits##_t offset = BIT_OFFSET_##form(bits);                                            \
        uint##bits##_t result = GPR(bits, in->dst);                                                \
        uint32_t ax = flags_get(cpu);                                                              \
                                                                                                   \
        ASM_BIT("", op, bits, "+r", result, offset, ax);                                           \
        BIT_WRITE_##op(bits);                                                                      \
        flags_put(cpu, ax);                                                                        \
    }
#define BIT_WRITE_bt(bits)  (void)result
#define BIT_WRITE_bts(bits) gpr_write_##bits(cpu, in->dst, result)
#define BIT_WRITE_btr(bits) gpr_write_##bits(cpu, in->dst, result)
#define BIT_WRITE_btc(bits) gpr_write_##bits(cpu, in->dst, result)

#define BIT_LOAD(op, bits, form)                                                                   \
    HANDLER(op##_m##form##_##bits)                                                                 \
    {                                                                                              \
        int##bits##_t offset = BIT_OFFSET_##form(bits);                                            \
        gva_t gva = bit_address(cpu, in, bits / 8, offset, SOFT_READ);                             \
        uint##bits##_t value = LOAD(bits, gva);                                                    \
        uint32_t ax = flags_get(cpu);                                                              \
                                                                                                   \
        ASM_BIT("", op, bits, "+r", value, BIT_INSIDE(bits), ax);                                  \
        flags_put(cpu, ax);                                                                        \
    }

#define BIT_RMW(op, bits, form, name, prefix, begin, end)                                          \
    HANDLER(op##_##name##form##_##bits)                                                            \
    {                                                                                              \
        int##bits##_t offset = BIT_OFFSET_##form(bits);                                            \
        gva_t gva = bit_address(cpu, in, bits / 8, offset, SOFT_WRITE);                            \
        uint64_t spare;                                                                            \
        uint##bits##_t *host = begin(cpu, in, gva, bits / 8, &spare);                              \
        uint32_t ax = flags_get(cpu);                                                              \
                                                                                                   \
        ASM_BIT(prefix, op, bits, "+m", *host, BIT_INSIDE(bits), ax);                              \
        end(cpu, in, gva, bits / 8, host, &spare);                                                 \
        flags_put(cpu, ax);                                                                        \
    }

#define BIT_READERS(op, bits)                                                                      \
    BIT_REG(op, bits, r) BIT_REG(op, bits, i) BIT_LOAD(op, bits, r) BIT_LOAD(op, bits, i)
#define BIT_WRITERS(op, bits)                                                                      \
    BIT_REG(op, bits, r)                                                                           \
    BIT_REG(op, bits, i)                                                                           \
    BIT_RMW(op, bits, r, m, "", rmw_begin, rmw_end)                                                \
    BIT_RMW(op, bits, i, m, "", rmw_begin, rmw_end)                                                \
    BIT_RMW(op, bits, r, l, "lock ", locked_begin, locked_end)                                     \
    BIT_RMW(op, bits, i, l, "lock ", locked_begin, locked_end)

#define SIZES(M, op) M(op, 16) M(op, 32) M(op, 64)

SIZES(BIT_READERS, bt)
SIZES(BIT_WRITERS, bts)
SIZES(BIT_WRITERS, btr)
SIZES(BIT_WRITERS, btc)

enum { BIT_FORM_REG, BIT_FORM_MEM, BIT_FORM_LOCK, BIT_FORMS };

#define BIT_ROW_READ(op, bits)                                                                     \
    {{op##_rr_##bits, op##_ri_##bits}, {op##_mr_##bits, op##_mi_##bits}, {NULL, NULL}},
#define BIT_ROW_WRITE(op, bits)                                                                    \
    {{op##_rr_##bits, op##_ri_##bits},                                                             \
     {op##_mr_##bits, op##_mi_##bits},                                                             \
     {op##_lr_##bits, op##_li_##bits}},

static const struct bit_row {
    ZydisMnemonic mnemonic;
    insn_fn *fn[3][BIT_FORMS][2]; /* [size][form][immediate] */
} bit_rows[] = {
    {ZYDIS_MNEMONIC_BT, {SIZES(BIT_ROW_READ, bt)}},
    {ZYDIS_MNEMONIC_BTS, {SIZES(BIT_ROW_WRITE, bts)}},
    {ZYDIS_MNEMONIC_BTR, {SIZES(BIT_ROW_WRITE, btr)}},
    {ZYDIS_MNEMONIC_BTC, {SIZES(BIT_ROW_WRITE, btc)}},
};

bool integer_bind_bit_test(struct insn *in, const struct insn_decode *d)
{
    unsigned size = bind_size_index(bind_bytes(d, 0)) - 1;
    unsigned form = BIT_FORM_REG;

    if (bind_is_mem(d, 0))
        form = in->flags & INSN_LOCK ? BIT_FORM_LOCK : BIT_FORM_MEM;
    else if (in->flags & INSN_LOCK)
        return false;
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->src = insn_gpr_offset(d->operand[1].reg.value);
    for (unsigned i = 0; i < ARRAY_SIZE(bit_rows); i++) {
        if (bit_rows[i].mnemonic == d->z->mnemonic)
            in->fn = bit_rows[i].fn[size][form][bind_is_imm(d, 1)];
    }
    return in->fn != NULL;
}

/* ---- BSF BSR TZCNT LZCNT POPCNT ADCX ADOX: op source,destination ---- */

/* On the whole destination, because some leave it unchanged. A host without TZCNT or LZCNT runs BSF and
 * BSR in their place, as its guest would expect of such a CPU. */
#define TWO_BODY(op, bits, source)                                                                 \
    uint64_t value = (source);                                                                     \
    uint64_t result = GPR(64, in->dst);                                                            \
    uint32_t ax = flags_get(cpu);                                                                  \
                                                                                                   \
    __asm__ volatile(FLAGS_LOAD #op " %" MOD_##bits "[s],%" MOD_##bits "[d]" FLAGS_SAVE            \
                     : [d] "+&r"(result), "+&a"(ax)                                                \
                     : [s] "r"(value)                                                              \
                     : "cc");                                                                      \
    GPR(64, in->dst) = result;                                                                     \
    flags_put(cpu, ax)

#define TWO_HANDLERS(op, bits)                                                                     \
    HANDLER(op##_r_##bits)                                                                         \
    {                                                                                              \
        TWO_BODY(op, bits, GPR(bits, in->src));                                                    \
    }                                                                                              \
    HANDLER(op##_m_##bits)                                                                         \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_READ);                                                   \
        TWO_BODY(op, bits, LOAD(bits, gva));                                                       \
    }
#define TWO_CELL(op, bits) {op##_r_##bits, op##_m_##bits},

SIZES(TWO_HANDLERS, bsf)
SIZES(TWO_HANDLERS, bsr)
SIZES(TWO_HANDLERS, tzcnt)
SIZES(TWO_HANDLERS, lzcnt)
SIZES(TWO_HANDLERS, popcnt)
TWO_HANDLERS(adcx, 32)
TWO_HANDLERS(adcx, 64)
TWO_HANDLERS(adox, 32)
TWO_HANDLERS(adox, 64)

static const struct two_row {
    ZydisMnemonic mnemonic;
    insn_fn *fn[3][2];
} two_rows[] = {
    {ZYDIS_MNEMONIC_BSF, {SIZES(TWO_CELL, bsf)}},
    {ZYDIS_MNEMONIC_BSR, {SIZES(TWO_CELL, bsr)}},
    {ZYDIS_MNEMONIC_TZCNT, {SIZES(TWO_CELL, tzcnt)}},
    {ZYDIS_MNEMONIC_LZCNT, {SIZES(TWO_CELL, lzcnt)}},
    {ZYDIS_MNEMONIC_POPCNT, {SIZES(TWO_CELL, popcnt)}},
    {ZYDIS_MNEMONIC_ADCX, {{NULL}, TWO_CELL(adcx, 32) TWO_CELL(adcx, 64)}},
    {ZYDIS_MNEMONIC_ADOX, {{NULL}, TWO_CELL(adox, 32) TWO_CELL(adox, 64)}},
};

static bool two_bind(struct insn *in, const struct insn_decode *d)
{
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->src = insn_gpr_offset(d->operand[1].reg.value);
    for (unsigned i = 0; i < ARRAY_SIZE(two_rows); i++) {
        if (two_rows[i].mnemonic == d->z->mnemonic)
            in->fn = two_rows[i].fn[bind_size_index(bind_bytes(d, 0)) - 1][bind_is_mem(d, 1)];
    }
    return in->fn != NULL;
}

bool integer_bind_bit_count(struct insn *in, const struct insn_decode *d)
{
    if (d->z->mnemonic == ZYDIS_MNEMONIC_POPCNT && !__builtin_cpu_supports("popcnt"))
        return false;
    return two_bind(in, d);
}

bool integer_bind_adx(struct insn *in, const struct insn_decode *d)
{
    unsigned eax, ebx = 0, ecx, edx;

    /* CPUID is slow inside a virtual machine, but so rare here that it need not be remembered. */
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(ebx & bit_ADX))
        return false;
    return two_bind(in, d);
}

/* ---- BMI: three operands (destination, first, second), or two ---- */

#define THREE_BODY(op, bits, first, second)                                                        \
    uint##bits##_t a = (first), b = (second), result;                                              \
    uint32_t ax = flags_get(cpu);                                                                  \
                                                                                                   \
    __asm__ volatile(FLAGS_LOAD #op " %[b],%[a],%[d]" FLAGS_SAVE                                   \
                     : [d] "=&r"(result), "+&a"(ax)                                                \
                     : [a] "r"(a), [b] "r"(b)                                                      \
                     : "cc");                                                                      \
    gpr_write_##bits(cpu, in->dst, result);                                                        \
    flags_put(cpu, ax)

/* Intel's order is destination, register, register/memory for one kind (2), the last two swapped for the
 * other (1): the number is the operand that may be in memory. AT&T reverses them. */
#define THREE_MEM_1(op, bits) THREE_BODY(op, bits, LOAD(bits, gva), GPR(bits, in->src2))
#define THREE_MEM_2(op, bits) THREE_BODY(op, bits, GPR(bits, in->src), LOAD(bits, gva))

#define THREE_HANDLERS(op, bits, where)                                                            \
    HANDLER(op##_r_##bits)                                                                         \
    {                                                                                              \
        THREE_BODY(op, bits, GPR(bits, in->src), GPR(bits, in->src2));                             \
    }                                                                                              \
    HANDLER(op##_m_##bits)                                                                         \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_READ);                                                   \
        THREE_MEM_##where(op, bits);                                                               \
    }

#define BLS_BODY(op, bits, source)                                                                 \
    uint##bits##_t a = (source), result;                                                           \
    uint32_t ax = flags_get(cpu);                                                                  \
                                                                                                   \
    __asm__ volatile(FLAGS_LOAD #op " %[a],%[d]" FLAGS_SAVE                                        \
                     : [d] "=&r"(result), "+&a"(ax)                                                \
                     : [a] "r"(a)                                                                  \
                     : "cc");                                                                      \
    gpr_write_##bits(cpu, in->dst, result);                                                        \
    flags_put(cpu, ax)

#define BLS_HANDLERS(op, bits)                                                                     \
    HANDLER(op##_r_##bits)                                                                         \
    {                                                                                              \
        BLS_BODY(op, bits, GPR(bits, in->src));                                                    \
    }                                                                                              \
    HANDLER(op##_m_##bits)                                                                         \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_READ);                                                   \
        BLS_BODY(op, bits, LOAD(bits, gva));                                                       \
    }

#define THREE(op, where) THREE_HANDLERS(op, 32, where) THREE_HANDLERS(op, 64, where)
#define BLS(op)          BLS_HANDLERS(op, 32) BLS_HANDLERS(op, 64)

THREE(andn, 2)
THREE(pdep, 2)
THREE(pext, 2)
THREE(bextr, 1)
THREE(bzhi, 1)
BLS(blsr)
BLS(blsi)
BLS(blsmsk)

#define BMI_CELL(op) {{op##_r_32, op##_m_32}, {op##_r_64, op##_m_64}}

static const struct bmi_row {
    ZydisMnemonic mnemonic;
    bool bmi2;
    uint8_t memory; /* the operand that may be in memory */
    insn_fn *fn[2][2]; /* [64 bits][memory] */
} bmi_rows[] = {
    {ZYDIS_MNEMONIC_ANDN, false, 2, BMI_CELL(andn)},
    {ZYDIS_MNEMONIC_BEXTR, false, 1, BMI_CELL(bextr)},
    {ZYDIS_MNEMONIC_BLSR, false, 1, BMI_CELL(blsr)},
    {ZYDIS_MNEMONIC_BLSI, false, 1, BMI_CELL(blsi)},
    {ZYDIS_MNEMONIC_BLSMSK, false, 1, BMI_CELL(blsmsk)},
    {ZYDIS_MNEMONIC_BZHI, true, 1, BMI_CELL(bzhi)},
    {ZYDIS_MNEMONIC_PDEP, true, 2, BMI_CELL(pdep)},
    {ZYDIS_MNEMONIC_PEXT, true, 2, BMI_CELL(pext)},
};

bool integer_bind_bmi(struct insn *in, const struct insn_decode *d)
{
    for (unsigned i = 0; i < ARRAY_SIZE(bmi_rows); i++) {
        const struct bmi_row *row = &bmi_rows[i];

        if (row->mnemonic != d->z->mnemonic)
            continue;
        if (row->bmi2 ? !__builtin_cpu_supports("bmi2") : !__builtin_cpu_supports("bmi"))
            return false;
        in->dst = insn_gpr_offset(d->operand[0].reg.value);
        in->src = insn_gpr_offset(d->operand[1].reg.value);
        in->src2 = insn_gpr_offset(d->operand[2].reg.value);
        in->fn = row->fn[bind_bytes(d, 0) == 8][bind_is_mem(d, row->memory)];
        return true;
    }
    return false;
}

/* ---- CRC32: the destination is 32 bits, zero-extended, whatever its size ---- */

#define CRC_BODY(bits, source)                                                                     \
    uint64_t value = (source);                                                                     \
    uint64_t result = GPR(32, in->dst);                                                            \
                                                                                                   \
    __asm__("crc32" SFX_##bits " %" MOD_##bits "[s]," CRC_DST_##bits : [d] "+r"(result)            \
            : [s] "r"(value));                                                                     \
    GPR(64, in->dst) = result
#define CRC_DST_8  "%k[d]"
#define CRC_DST_16 "%k[d]"
#define CRC_DST_32 "%k[d]"
#define CRC_DST_64 "%q[d]"

#define CRC_HANDLERS(bits)                                                                         \
    HANDLER(crc32_r_##bits)                                                                        \
    {                                                                                              \
        CRC_BODY(bits, GPR(bits, in->src));                                                        \
    }                                                                                              \
    HANDLER(crc32_m_##bits)                                                                        \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_READ);                                                   \
        CRC_BODY(bits, LOAD(bits, gva));                                                           \
    }
CRC_HANDLERS(8)
CRC_HANDLERS(16)
CRC_HANDLERS(32)
CRC_HANDLERS(64)

bool integer_bind_crc32(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const handlers[4][2] = {{crc32_r_8, crc32_m_8},
                                            {crc32_r_16, crc32_m_16},
                                            {crc32_r_32, crc32_m_32},
                                            {crc32_r_64, crc32_m_64}};

    if (!__builtin_cpu_supports("sse4.2"))
        return false;
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->src = insn_gpr_offset(d->operand[1].reg.value);
    in->fn = handlers[bind_size_index(bind_bytes(d, 1))][bind_is_mem(d, 1)];
    return true;
}
