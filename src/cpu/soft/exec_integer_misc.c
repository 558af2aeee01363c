/* Single flags, decimal adjustment, BOUND, NOP and hints, fences, RDRAND and RDSEED. */
#include <cpuid.h>

#include "cpu/soft/exec_integer.h"

/* ---- CLC STC CMC CLD STD LAHF SAHF SALC ---- */

#define FLAG_HANDLER(name, expression)                                                             \
    HANDLER(name)                                                                                  \
    {                                                                                              \
        uint8_t *f = flags_bytes(cpu);                                                             \
                                                                                                   \
        (void)in;                                                                                  \
        expression;                                                                                \
    }

#define SAHF_MASK (RFLAGS_SF | RFLAGS_ZF | RFLAGS_AF | RFLAGS_PF | RFLAGS_CF)

FLAG_HANDLER(flag_clc, f[0] = (uint8_t)(f[0] & ~RFLAGS_CF))
FLAG_HANDLER(flag_stc, f[0] = (uint8_t)(f[0] | RFLAGS_CF))
FLAG_HANDLER(flag_cmc, f[0] = (uint8_t)(f[0] ^ RFLAGS_CF))
FLAG_HANDLER(flag_cld, f[1] = (uint8_t)(f[1] & ~(RFLAGS_DF >> 8)))
FLAG_HANDLER(flag_std, f[1] = (uint8_t)(f[1] | (RFLAGS_DF >> 8)))
FLAG_HANDLER(flag_lahf, GPR(8, 1) = (uint8_t)((f[0] & SAHF_MASK) | RFLAGS_ONE))
FLAG_HANDLER(flag_sahf, f[0] = (uint8_t)((GPR(8, 1) & SAHF_MASK) | RFLAGS_ONE))
FLAG_HANDLER(flag_salc, GPR(8, 0) = f[0] & RFLAGS_CF ? 0xff : 0)

bool integer_bind_flags(struct insn *in, const struct insn_decode *d)
{
    static const struct {
        ZydisMnemonic mnemonic;
        insn_fn *fn;
    } rows[] = {
        {ZYDIS_MNEMONIC_CLC, flag_clc},   {ZYDIS_MNEMONIC_STC, flag_stc},
        {ZYDIS_MNEMONIC_CMC, flag_cmc},   {ZYDIS_MNEMONIC_CLD, flag_cld},
        {ZYDIS_MNEMONIC_STD, flag_std},   {ZYDIS_MNEMONIC_LAHF, flag_lahf},
        {ZYDIS_MNEMONIC_SAHF, flag_sahf}, {ZYDIS_MNEMONIC_SALC, flag_salc},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        if (rows[i].mnemonic == d->z->mnemonic)
            in->fn = rows[i].fn;
    }
    return in->fn != NULL;
}

/* ---- AAA AAS AAM AAD DAA DAS: not in 64-bit mode, so not for the host. Flags that SDM vol. 2A leaves
 * undefined come from the last addition or from AL. ---- */

/* SF, ZF and PF of AL with the given CF and AF; OF clear. */
static void bcd_flags(struct soft_vcpu *cpu, bool cf, bool af)
{
    uint32_t ax;

    __asm__("testb %[v],%[v]" FLAGS_SAVE : "=a"(ax) : [v] "q"(GPR(8, 0)) : "cc");
    ax &= ~((RFLAGS_CF | RFLAGS_AF) << 8);
    ax |= (uint32_t)((cf ? RFLAGS_CF : 0) | (af ? RFLAGS_AF : 0)) << 8;
    flags_put(cpu, ax);
}

static bool bcd_adjusts_low(struct soft_vcpu *cpu)
{
    return (GPR(8, 0) & 0xf) > 9 || (flags_bytes(cpu)[0] & RFLAGS_AF);
}

HANDLER(bcd_aaa)
{
    bool adjust = bcd_adjusts_low(cpu);

    (void)in;
    if (adjust)
        GPR(16, 0) = (uint16_t)(GPR(16, 0) + 0x106);
    GPR(8, 0) &= 0xf;
    bcd_flags(cpu, adjust, adjust);
}

HANDLER(bcd_aas)
{
    bool adjust = bcd_adjusts_low(cpu);

    (void)in;
    if (adjust)
        GPR(16, 0) = (uint16_t)(GPR(16, 0) - 0x106);
    GPR(8, 0) &= 0xf;
    bcd_flags(cpu, adjust, adjust);
}

HANDLER(bcd_aam)
{
    uint8_t base = (uint8_t)in->imm, al = GPR(8, 0);

    if (base == 0)
        soft_raise(cpu, VECTOR_DE);
    GPR(8, 1) = (uint8_t)(al / base);
    GPR(8, 0) = (uint8_t)(al % base);
    bcd_flags(cpu, false, false);
}

HANDLER(bcd_aad)
{
    uint8_t sum = GPR(8, 0), add = (uint8_t)(GPR(8, 1) * (uint8_t)in->imm);
    uint32_t ax;

    __asm__("addb %[b],%[a]" FLAGS_SAVE : [a] "+&q"(sum), "=&a"(ax) : [b] "q"(add) : "cc");
    GPR(16, 0) = sum;
    flags_put(cpu, ax);
}

static void bcd_decimal(struct soft_vcpu *cpu, bool subtract)
{
    uint8_t al = GPR(8, 0);
    bool cf = flags_bytes(cpu)[0] & RFLAGS_CF, low = bcd_adjusts_low(cpu);
    bool high = al > 0x99 || cf;
    unsigned adjust = (low ? 6u : 0) + (high ? 0x60u : 0);
    bool borrow = subtract && low && al < 6;

    GPR(8, 0) = (uint8_t)(subtract ? al - adjust : al + adjust);
    bcd_flags(cpu, high || borrow, low);
}

HANDLER(bcd_daa)
{
    (void)in;
    bcd_decimal(cpu, false);
}

HANDLER(bcd_das)
{
    (void)in;
    bcd_decimal(cpu, true);
}

bool integer_bind_bcd(struct insn *in, const struct insn_decode *d)
{
    static const struct {
        ZydisMnemonic mnemonic;
        insn_fn *fn;
    } rows[] = {
        {ZYDIS_MNEMONIC_AAA, bcd_aaa}, {ZYDIS_MNEMONIC_AAS, bcd_aas},
        {ZYDIS_MNEMONIC_AAM, bcd_aam}, {ZYDIS_MNEMONIC_AAD, bcd_aad},
        {ZYDIS_MNEMONIC_DAA, bcd_daa}, {ZYDIS_MNEMONIC_DAS, bcd_das},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        if (rows[i].mnemonic == d->z->mnemonic)
            in->fn = rows[i].fn;
    }
    return in->fn != NULL;
}

/* ---- BOUND ---- */

HANDLER(bound)
{
    unsigned size = in->opsize;
    gva_t gva = soft_operand(cpu, in, size * 2, SOFT_READ);
    uint64_t low = soft_load(cpu, in->seg, gva, size);
    uint64_t high = soft_load(cpu, in->seg, gva + size, size);
    int32_t index = size == 2 ? (int16_t)GPR(16, in->dst) : (int32_t)GPR(32, in->dst);
    int32_t first = size == 2 ? (int16_t)low : (int32_t)low;
    int32_t last = size == 2 ? (int16_t)high : (int32_t)high;

    if (index < first || index > last)
        soft_raise(cpu, VECTOR_BR);
}

bool integer_bind_bound(struct insn *in, const struct insn_decode *d)
{
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->fn = bound;
    return bind_is_mem(d, 1);
}

/* ---- NOP, PREFETCHx, ENDBRx, PAUSE, fences, cache line write-back ---- */

HANDLER(nop)
{
    (void)cpu;
    (void)in;
}

HANDLER(pause)
{
    (void)in;
    soft_pause(cpu);
}

/* Other vCPUs are host threads: a guest's barrier is the host's. */
HANDLER(fence)
{
    (void)cpu;
    (void)in;
    __asm__ volatile("mfence" : : : "memory");
}

/* Guest memory is coherent, so only the checks of a byte read remain (SDM vol. 2A, CLFLUSH). */
HANDLER(cache_line)
{
    gva_t gva = soft_operand(cpu, in, 1, SOFT_READ);

    (void)soft_pointer(cpu, in->seg, gva, 1, SOFT_READ);
}

bool integer_bind_nop(struct insn *in, const struct insn_decode *d)
{
    switch (d->z->mnemonic) {
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB:
        in->fn = cache_line;
        return true;
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_SFENCE:
        in->fn = fence;
        return true;
    case ZYDIS_MNEMONIC_PAUSE:
        if (d->z->raw.rex.B) /* F3 90 with REX.B is no PAUSE to the CPU */
            return integer_bind_xchg_r8(in, d);
        in->fn = pause;
        return true;
    default:
        /* 0F 0D, the prefetches, has no register form. */
        if (d->z->opcode_map == ZYDIS_OPCODE_MAP_0F && d->z->opcode == 0x0d &&
            d->z->raw.modrm.mod == 3)
            return false;
        in->fn = nop;
        return true;
    }
}

/* ---- RDRAND, RDSEED ---- */

#define RANDOM_HANDLER(op, bits)                                                                   \
    HANDLER(op##_##bits)                                                                           \
    {                                                                                              \
        uint##bits##_t value;                                                                      \
        uint32_t ax;                                                                               \
                                                                                                   \
        __asm__ volatile(#op " %[d]" FLAGS_SAVE : [d] "=&r"(value), "=&a"(ax) : : "cc");           \
        gpr_write_##bits(cpu, in->dst, value);                                                     \
        flags_put(cpu, ax);                                                                        \
    }
RANDOM_HANDLER(rdrand, 16)
RANDOM_HANDLER(rdrand, 32)
RANDOM_HANDLER(rdrand, 64)
RANDOM_HANDLER(rdseed, 16)
RANDOM_HANDLER(rdseed, 32)
RANDOM_HANDLER(rdseed, 64)

bool integer_bind_random(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const handlers[2][4] = {{NULL, rdrand_16, rdrand_32, rdrand_64},
                                            {NULL, rdseed_16, rdseed_32, rdseed_64}};
    bool seed = d->z->mnemonic == ZYDIS_MNEMONIC_RDSEED;
    unsigned eax, ebx = 0, ecx = 0, edx;
    bool has;

    if (seed)
        has = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & bit_RDSEED);
    else
        has = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_RDRND);
    if (!has)
        return false;
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->fn = handlers[seed][bind_size_index(bind_bytes(d, 0))];
    return in->fn != NULL;
}
