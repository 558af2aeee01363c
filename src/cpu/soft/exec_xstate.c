/*
 * FXSAVE, FXRSTOR; XSAVE, XSAVEOPT, XSAVEC, XRSTOR (SDM vol. 1 chapters 10.5 and 13).
 *
 * The host saves and restores in an area of our own, always the parts that live in its registers;
 * what of it the guest's instruction may see or change is copied here, component by component.
 */
#include <cpuid.h>
#include <stddef.h>

#include "cpu/soft/vector.h"

#define XSTATE_HEADER  512u
#define XSTATE_HEADER_SIZE 64u
#define XSTATE_EXTENDED (XSTATE_HEADER + XSTATE_HEADER_SIZE)
#define XSTATE_COMPACT (1ull << 63)
#define XSTATE_FIRST   2u /* components before are in the legacy region */
#define XSTATE_COUNT   8u
#define XSTATE_PKRU_PLUS (~0xffull)

#define FX_SIZE   512u
#define FX_MXCSR  24u
#define FX_ST     32u
#define FX_XMM    160u
#define FX_XMM_END 416u

/* in->dst */
enum xstate_kind { XSTATE_XSAVE, XSTATE_XSAVEOPT, XSTATE_XSAVEC };

struct xstate_area {
    uint16_t fcw, fsw;
    uint8_t ftw, reserved;
    uint16_t fop;
    uint32_t fip, fip_high; /* without REX.W: FIP and FCS */
    uint32_t fdp, fdp_high; /* FDP and FDS */
    uint32_t mxcsr, mxcsr_mask;
    uint8_t registers[480];
    uint64_t bv, comp_bv, header[6];
    uint8_t rest[CPU_XSAVE_SIZE - XSTATE_EXTENDED];
} __attribute__((aligned(64)));

static_assert(sizeof(struct xstate_area) == CPU_XSAVE_SIZE, "the standard format");
static_assert(offsetof(struct xstate_area, bv) == XSTATE_HEADER, "the standard format");

static const uint16_t xstate_size[XSTATE_COUNT] = {[2] = 256, [5] = 64, [6] = 512, [7] = 1024};

/* The area is as the host's 64-bit form left it; afterwards as the guest's form has it. */
static void xstate_put_pointers(const struct soft_vcpu *cpu, struct xstate_area *area, bool wide)
{
    struct soft_x87 x = {.fop = area->fop,
                         .fip = area->fip | (uint64_t)area->fip_high << 32,
                         .fdp = area->fdp | (uint64_t)area->fdp_high << 32};

    soft_fpu_pointers(cpu, &x);
    area->fop = x.fop;
    area->fip = (uint32_t)x.fip;
    area->fdp = (uint32_t)x.fdp;
    area->fip_high = wide ? (uint32_t)(x.fip >> 32) : x.fcs;
    area->fdp_high = wide ? (uint32_t)(x.fdp >> 32) : x.fds;
}

/* For the host to load in 64-bit form; FCS and FDS are not kept. */
static void xstate_get_pointers(struct xstate_area *area, bool wide)
{
    if (!wide)
        area->fip_high = area->fdp_high = 0;
}

static bool xstate_code64(const struct soft_vcpu *cpu)
{
    return cpu->mode & SOFT_MODE_CODE64;
}

/* XMM registers that FXSAVE and FXRSTOR move. EFER.FFXSR: APM vol. 2 11.4.4. */
static unsigned fxsave_registers(const struct soft_vcpu *cpu)
{
    if (!xstate_code64(cpu))
        return 8;
    return cpu->cpl == 0 && cpu->s.efer & EFER_FFXSR ? 0 : 16;
}

static gva_t xstate_address(struct soft_vcpu *cpu, const struct insn *in, unsigned size,
                            unsigned alignment, enum soft_access access)
{
    gva_t gva = soft_operand(cpu, in, size, access);

    if (gva & (alignment - 1))
        soft_raise_gp(cpu, 0);
    return gva;
}

static void xstate_fxsave(struct soft_vcpu *cpu, const struct insn *in)
{
    gva_t gva = xstate_address(cpu, in, FX_SIZE, 16, SOFT_WRITE);
    struct xstate_area area;

    soft_probe_write(cpu, in->seg, gva, FX_SIZE);
    soft_fpu_use(cpu);
    __asm__ volatile("fxsave64 %0" : "=m"(area));
    xstate_put_pointers(cpu, &area, in->src);
    soft_store_bytes(cpu, in->seg, gva, &area, FX_XMM + 16 * fxsave_registers(cpu));
}

static void xstate_fxrstor(struct soft_vcpu *cpu, const struct insn *in)
{
    gva_t gva = xstate_address(cpu, in, FX_SIZE, 16, SOFT_READ);
    unsigned keep = FX_XMM + 16 * fxsave_registers(cpu);
    struct xstate_area area, now;

    soft_load_bytes(cpu, in->seg, gva, &area, FX_SIZE);
    if (area.mxcsr & ~soft_fpu_mxcsr_mask())
        soft_raise_gp(cpu, 0);
    soft_fpu_use(cpu);
    if (keep < FX_XMM_END) {
        __asm__ volatile("fxsave64 %0" : "=m"(now));
        soft_copy((uint8_t *)&area + keep, (uint8_t *)&now + keep, FX_XMM_END - keep);
    }
    xstate_get_pointers(&area, in->src);
    __asm__ volatile("fxrstor64 %0" : : "m"(area));
}

/* CPUID is dear under a hypervisor, so the layout is asked for once. */
static void xstate_layout(struct soft_vcpu *cpu)
{
    unsigned a, b, c, d;

    if (cpu->xstate_offset[XSTATE_FIRST])
        return;
    for (unsigned i = XSTATE_FIRST; i < XSTATE_COUNT; i++) {
        if (!xstate_size[i])
            continue;
        __cpuid_count(0xd, i, a, b, c, d);
        if (b >= XSTATE_EXTENDED && b + xstate_size[i] <= CPU_XSAVE_SIZE)
            cpu->xstate_offset[i] = (uint16_t)b;
        (void)a, (void)c, (void)d;
    }
}

/* Offset of component i when `format` (XCOMP_BV) holds; 0 format: standard. */
static unsigned xstate_where(const struct soft_vcpu *cpu, uint64_t format, unsigned i)
{
    unsigned at = XSTATE_EXTENDED;

    if (!format)
        return cpu->xstate_offset[i];
    for (unsigned j = XSTATE_FIRST; j < i; j++) {
        if (format & 1ull << j)
            at += xstate_size[j];
    }
    return at;
}

static unsigned xstate_extent(const struct soft_vcpu *cpu, uint64_t format, uint64_t mask)
{
    unsigned end = XSTATE_EXTENDED;

    for (unsigned i = XSTATE_FIRST; i < XSTATE_COUNT; i++) {
        if (mask & 1ull << i && xstate_size[i]) {
            unsigned at = xstate_where(cpu, format, i) + xstate_size[i];

            end = at > end ? at : end;
        }
    }
    return end;
}

static uint64_t xstate_rfbm(const struct soft_vcpu *cpu)
{
    uint64_t mask = (uint32_t)cpu->s.gpr[GPR_RAX] | cpu->s.gpr[GPR_RDX] << 32;

    return mask & cpu->s.xcr0 & ~XSTATE_PKRU_PLUS;
}

/* Bytes of component i that the current mode moves: outside 64-bit mode registers 8 up stay. */
static unsigned xstate_bytes(const struct soft_vcpu *cpu, unsigned i)
{
    if (xstate_code64(cpu) || i == 5)
        return xstate_size[i];
    return i == 7 ? 0 : xstate_size[i] / 2;
}

static void xstate_store_legacy(struct soft_vcpu *cpu, const struct insn *in, gva_t gva,
                                const struct xstate_area *area, uint64_t which, bool mxcsr)
{
    const uint8_t *from = (const uint8_t *)area;

    if (which & XCR0_X87) {
        soft_store_bytes(cpu, in->seg, gva, from, FX_MXCSR);
        soft_store_bytes(cpu, in->seg, gva + FX_ST, from + FX_ST, FX_XMM - FX_ST);
    }
    if (mxcsr)
        soft_store_bytes(cpu, in->seg, gva + FX_MXCSR, from + FX_MXCSR, FX_ST - FX_MXCSR);
    if (which & XCR0_SSE)
        soft_store_bytes(cpu, in->seg, gva + FX_XMM, from + FX_XMM,
                         xstate_code64(cpu) ? 256 : 128);
}

static void xstate_store_extended(struct soft_vcpu *cpu, const struct insn *in, gva_t gva,
                                  const struct xstate_area *area, uint64_t which, uint64_t format)
{
    for (unsigned i = XSTATE_FIRST; i < XSTATE_COUNT; i++) {
        unsigned len = xstate_bytes(cpu, i);

        if (which & 1ull << i && len)
            soft_store_bytes(cpu, in->seg, gva + xstate_where(cpu, format, i),
                             (const uint8_t *)area + cpu->xstate_offset[i], len);
    }
}

static void xstate_xsave(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t rfbm = xstate_rfbm(cpu);
    uint64_t format = in->dst == XSTATE_XSAVEC ? rfbm | XSTATE_COMPACT : 0;
    unsigned size;
    struct xstate_area area;
    uint64_t which;
    gva_t gva;

    xstate_layout(cpu);
    size = xstate_extent(cpu, format, rfbm);
    gva = xstate_address(cpu, in, size, 64, SOFT_WRITE);
    soft_probe_write(cpu, in->seg, gva, size);
    if (!format) {
        area.comp_bv = 0;
        area.bv = soft_load(cpu, in->seg, gva + XSTATE_HEADER, 8);
    }
    soft_fpu_use(cpu);
    /* XSAVE, not XSAVEOPT: its memory of the last XRSTOR is about our areas, not the guest's. */
    __asm__ volatile("xsave64 %0" : "+m"(area) : "a"((uint32_t)rfbm), "d"(0));
    xstate_put_pointers(cpu, &area, in->src);
    which = in->dst == XSTATE_XSAVE ? rfbm : area.bv & rfbm;
    if (format) {
        /* SDM vol. 1 13.10: the SSE component also counts as in use when MXCSR is not 1F80H. */
        if (rfbm & XCR0_SSE && area.mxcsr != 0x1f80)
            which |= XCR0_SSE;
        area.bv = which;
        area.comp_bv = format;
    }
    xstate_store_legacy(cpu, in, gva, &area, which,
                        format ? which & XCR0_SSE : rfbm & (XCR0_SSE | XCR0_AVX));
    xstate_store_extended(cpu, in, gva, &area, which, format);
    soft_store_bytes(cpu, in->seg, gva + XSTATE_HEADER, &area.bv, format ? 16 : 8);
}

/* The header's rules, SDM vol. 1 13.8.1 and 13.8.2. */
static bool xstate_header_good(const struct soft_vcpu *cpu, const struct xstate_area *area)
{
    uint64_t reserved = 0;

    for (unsigned i = 0; i < 6; i++)
        reserved |= area->header[i];
    if (area->bv & ~cpu->s.xcr0)
        return false;
    if (!(area->comp_bv & XSTATE_COMPACT))
        return !area->comp_bv && !area->header[0];
    return !reserved && !(area->comp_bv & ~XSTATE_COMPACT & ~cpu->s.xcr0) &&
           !(area->bv & ~area->comp_bv);
}

static void xstate_load_mxcsr(struct soft_vcpu *cpu, struct xstate_area *area, uint64_t rfbm)
{
    bool compact = area->comp_bv & XSTATE_COMPACT;
    uint64_t trigger = compact ? XCR0_SSE : XCR0_SSE | XCR0_AVX;

    if (!(rfbm & trigger)) {
        soft_fpu_use(cpu);
        __asm__ volatile("stmxcsr %0" : "=m"(area->mxcsr));
        return;
    }
    if (compact && !(area->bv & XCR0_SSE))
        area->mxcsr = 0x1f80;
    if (area->mxcsr & ~soft_fpu_mxcsr_mask())
        soft_raise_gp(cpu, 0);
}

static void xstate_xrstor(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t rfbm = xstate_rfbm(cpu), format;
    gva_t gva = xstate_address(cpu, in, XSTATE_EXTENDED, 64, SOFT_READ);
    struct xstate_area area;

    xstate_layout(cpu);
    soft_load_bytes(cpu, in->seg, gva, &area, XSTATE_EXTENDED);
    if (!xstate_header_good(cpu, &area))
        soft_raise_gp(cpu, 0);
    format = area.comp_bv;
    for (unsigned i = XSTATE_FIRST; i < XSTATE_COUNT; i++) {
        if (rfbm & area.bv & 1ull << i && xstate_size[i] && cpu->xstate_offset[i])
            soft_load_bytes(cpu, in->seg, gva + xstate_where(cpu, format, i),
                            (uint8_t *)&area + cpu->xstate_offset[i], xstate_size[i]);
    }
    xstate_load_mxcsr(cpu, &area, rfbm);
    soft_fpu_use(cpu);
    xstate_get_pointers(&area, in->src);
    area.bv &= rfbm;
    area.comp_bv = 0;
    for (unsigned i = 0; i < 6; i++)
        area.header[i] = 0;
    __asm__ volatile("xrstor64 %0" : : "m"(area), "a"((uint32_t)rfbm), "d"(0));
}

bool vector_bind_fxsave(struct insn *in, const struct insn_decode *d)
{
    ZydisMnemonic m = d->z->mnemonic;
    bool save = m == ZYDIS_MNEMONIC_FXSAVE || m == ZYDIS_MNEMONIC_FXSAVE64;
    /* CR0.EM raises #NM here (SDM vol. 2A, FXSAVE), CR4.OSFXSR does not matter. */
    enum vector_gate gate = vector_gate(in, d, VECTOR_X87);

    in->src = m == ZYDIS_MNEMONIC_FXSAVE64 || m == ZYDIS_MNEMONIC_FXRSTOR64;
    if (gate != GATE_OPEN)
        return gate == GATE_NM;
    in->fn = save ? xstate_fxsave : xstate_fxrstor;
    return true;
}

bool vector_bind_xsave(struct insn *in, const struct insn_decode *d)
{
    enum vector_gate gate = vector_gate(in, d, VECTOR_XSAVE);

    if (gate != GATE_OPEN)
        return gate == GATE_NM;
    in->fn = xstate_xsave;
    in->src = 0;
    switch (d->z->mnemonic) {
    case ZYDIS_MNEMONIC_XSAVE64:
        in->src = 1; /* fall through */
    case ZYDIS_MNEMONIC_XSAVE:
        in->dst = XSTATE_XSAVE;
        break;
    case ZYDIS_MNEMONIC_XSAVEOPT64:
        in->src = 1; /* fall through */
    case ZYDIS_MNEMONIC_XSAVEOPT:
        in->dst = XSTATE_XSAVEOPT;
        break;
    case ZYDIS_MNEMONIC_XSAVEC64:
        in->src = 1; /* fall through */
    case ZYDIS_MNEMONIC_XSAVEC:
        in->dst = XSTATE_XSAVEC;
        break;
    default:
        in->src = d->z->mnemonic == ZYDIS_MNEMONIC_XRSTOR64;
        in->fn = xstate_xrstor;
        break;
    }
    return true;
}
