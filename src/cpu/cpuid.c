#include "cpu/cpuid.h"

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "cpu/engine.h"
#include "x86/arch.h"

#define BIT(n) (1u << (n))

/* Leaf 1 EDX */
#define L1D_APIC BIT(9)
#define L1D_HTT  BIT(28)
/* FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2 */
#define L1D_BASE 0x078bfbffu
/* Leaf 1 ECX */
#define L1C_SSE3       BIT(0)
#define L1C_SSSE3      BIT(9)
#define L1C_FMA        BIT(12)
#define L1C_CX16       BIT(13)
#define L1C_PCID       BIT(17)
#define L1C_SSE41      BIT(19)
#define L1C_SSE42      BIT(20)
#define L1C_X2APIC     BIT(21)
#define L1C_MOVBE      BIT(22)
#define L1C_POPCNT     BIT(23)
#define L1C_DEADLINE   BIT(24)
#define L1C_XSAVE      BIT(26)
#define L1C_OSXSAVE    BIT(27)
#define L1C_AVX        BIT(28)
#define L1C_F16C       BIT(29)
#define L1C_HYPERVISOR BIT(31)
/* Leaf 7 */
#define L7B_FSGSBASE   BIT(0)
#define L7B_TSC_ADJUST BIT(1)
#define L7B_BMI1       BIT(3)
#define L7B_AVX2       BIT(5)
#define L7B_SMEP       BIT(7)
#define L7B_BMI2       BIT(8)
#define L7B_ERMS       BIT(9)
#define L7B_INVPCID    BIT(10)
#define L7B_SMAP       BIT(20)
#define L7B_AVX512     (BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31))
#define L7B_AVX512_V4  (BIT(16) | BIT(17) | BIT(28) | BIT(30) | BIT(31))
#define L7C_UMIP       BIT(2)
#define L7C_PKU        (BIT(3) | BIT(4))
#define L7C_RDPID      BIT(22)
#define L7C_AVX        (BIT(9) | BIT(10))
#define L7C_AVX512     (BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14))
#define L7D_AVX512     (BIT(2) | BIT(3) | BIT(8) | BIT(23))
#define L7_1A_AVX      (BIT(4) | BIT(23))
#define L7_1A_AVX512   BIT(5)
/* Leaf 0x80000001 */
#define X1C_LAHF       BIT(0)
#define X1C_CMP_LEGACY BIT(1)
#define X1C_LZCNT      BIT(5)
#define X1C_TOPOEXT    BIT(22)
#define X1C_AVX        (BIT(11) | BIT(16)) /* XOP FMA4 */
#define X1D_SYSCALL    BIT(11)
#define X1D_NX         BIT(20)
#define X1D_RDTSCP     BIT(27)
#define X1D_LM         BIT(29)
/* On AMD bits 9:0, 17:12 and 24:23 repeat leaf 1 EDX (APM vol. 3 E.4.2). */
#define X1D_REPEATED   0x0183f3ffu
#define X7D_INVARIANT_TSC BIT(8)
#define X21A_LFENCE_SERIALIZES BIT(2)
#define X21A_NULL_CLEARS_BASE  BIT(6)
#define X21A_NO_SMM_CTL        BIT(9)
#define X21C_TSA_NO            (BIT(1) | BIT(2))

#define KVM_FEATURE_NOP_IO_DELAY     BIT(1)
#define KVM_FEATURE_CLOCKSOURCE2     BIT(3)
#define KVM_FEATURE_CLOCKSOURCE_STABLE BIT(24)

/* One answer for each feature register, from the host, a named model or a mask. */
struct cpuid_features {
    uint32_t l1c, l1d, l7b, l7c, l7d, l7_1a, ld_1a, x1c, x1d, x7d, x8b, x21a, x21c;
    uint64_t xcr0;
};

/* What a named model must have; the rest of its features it has when the engine and host do. */
struct cpuid_named {
    const char *name;
    struct cpuid_features need;
};

#define V1_L1D L1D_BASE
#define V2_L1C (L1C_SSE3 | L1C_SSSE3 | L1C_CX16 | L1C_SSE41 | L1C_SSE42 | L1C_POPCNT)
#define V3_L1C (V2_L1C | L1C_FMA | L1C_MOVBE | L1C_XSAVE | L1C_AVX | L1C_F16C)
#define V3_L7B (L7B_BMI1 | L7B_AVX2 | L7B_BMI2)
#define VX_X1D (X1D_SYSCALL | X1D_NX | X1D_LM)
#define V3_XCR0 (XCR0_X87 | XCR0_SSE | XCR0_AVX)

/* The levels of the x86-64 psABI, 3.1.1. */
static const struct cpuid_named cpuid_named[] = {
    {"x86-64-v1", {.l1d = V1_L1D, .x1d = VX_X1D}},
    {"x86-64-v2", {.l1c = V2_L1C, .l1d = V1_L1D, .x1c = X1C_LAHF, .x1d = VX_X1D}},
    {"x86-64-v3",
     {.l1c = V3_L1C, .l1d = V1_L1D, .l7b = V3_L7B, .x1c = X1C_LAHF | X1C_LZCNT, .x1d = VX_X1D,
      .xcr0 = V3_XCR0}},
    {"x86-64-v4",
     {.l1c = V3_L1C, .l1d = V1_L1D, .l7b = V3_L7B | L7B_AVX512_V4, .x1c = X1C_LAHF | X1C_LZCNT,
      .x1d = VX_X1D, .xcr0 = V3_XCR0 | XCR0_AVX512}},
};

/* What named models also show when it is there: system features that no user program depends on. */
static const struct cpuid_features cpuid_optional = {
    .l1c = L1C_PCID | L1C_X2APIC | L1C_DEADLINE | L1C_HYPERVISOR,
    .l1d = L1D_HTT,
    .l7b = L7B_FSGSBASE | L7B_TSC_ADJUST | L7B_SMEP | L7B_INVPCID | L7B_SMAP,
    .ld_1a = BIT(0) | BIT(1) | BIT(2),
    .x1c = X1C_CMP_LEGACY | X1C_TOPOEXT,
    .x1d = ~0u,
    .x7d = ~0u,
    .x21a = ~0u,
    .x21c = ~0u,
};

static const char *const cpuid_names[] = {
    "host", "x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4", NULL,
};

/* Everything read from the host, each leaf once: CPUID may be slow (it leaves a host's own guest). */
struct cpuid_host {
    struct cpuid_regs basic0, basic1, ext0, ext1, ext5, ext6, ext8;
    struct cpuid_regs brand[3];
    struct cpuid_features has;
    bool amd, intel;
};

struct cpuid_build {
    struct cpu_model *model;
    const struct cpu_topology *topology;
    const struct cpuid_support *support;
    struct cpuid_host host;
    struct cpuid_features has;
    bool named;
};

const char *const *cpu_model_names(void)
{
    return cpuid_names;
}

static struct cpuid_regs cpuid_read(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_regs r;

    __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
    return r;
}

/* Zeroes past the vendor's last leaf, where Intel would repeat the last one. */
static struct cpuid_regs cpuid_read_limited(uint32_t last, uint32_t leaf, uint32_t subleaf)
{
    return leaf <= last ? cpuid_read(leaf, subleaf) : (struct cpuid_regs){0};
}

static uint64_t cpuid_host_xcr0(uint32_t last)
{
    struct cpuid_regs r = cpuid_read_limited(last, 0xd, 0);

    return r.eax | (uint64_t)r.edx << 32;
}

static void cpuid_host_read(struct cpuid_host *h)
{
    struct cpuid_regs r;
    uint32_t last, last_ext;

    h->basic0 = cpuid_read(0, 0);
    h->basic1 = cpuid_read(1, 0);
    h->ext0 = cpuid_read(0x80000000, 0);
    last = h->basic0.eax;
    last_ext = h->ext0.eax;
    h->amd = h->basic0.ebx == 0x68747541 || h->basic0.ebx == 0x6f677948; /* AuthenticAMD, HygonGenuine */
    h->intel = h->basic0.ebx == 0x756e6547;
    for (unsigned i = 0; i < 3; i++)
        h->brand[i] = cpuid_read_limited(last_ext, 0x80000002 + i, 0);
    h->ext1 = cpuid_read_limited(last_ext, 0x80000001, 0);
    h->ext5 = cpuid_read_limited(last_ext, 0x80000005, 0);
    h->ext6 = cpuid_read_limited(last_ext, 0x80000006, 0);
    h->ext8 = cpuid_read_limited(last_ext, 0x80000008, 0);
    h->has.l1c = h->basic1.ecx;
    h->has.l1d = h->basic1.edx;
    r = cpuid_read_limited(last, 7, 0);
    h->has.l7b = r.ebx;
    h->has.l7c = r.ecx;
    h->has.l7d = r.edx;
    h->has.l7_1a = r.eax >= 1 ? cpuid_read(7, 1).eax : 0;
    h->has.xcr0 = cpuid_host_xcr0(last);
    h->has.ld_1a = cpuid_read_limited(last, 0xd, 1).eax;
    h->has.x1c = h->ext1.ecx;
    h->has.x1d = h->ext1.edx;
    h->has.x7d = cpuid_read_limited(last_ext, 0x80000007, 0).edx;
    h->has.x8b = h->ext8.ebx;
    r = cpuid_read_limited(last_ext, 0x80000021, 0);
    h->has.x21a = r.eax;
    h->has.x21c = r.ecx;
}

/*
 * What Lodge itself can provide whatever the host has: the local APIC with x2APIC and the deadline
 * timer, TSC_ADJUST, a constant TSC, NX, and what an engine that makes its own paging and system
 * instructions has in them (PCIDs, RDTSCP ...); the engine's support mask still decides.
 */
static void cpuid_add_provided(struct cpuid_features *f)
{
    f->l1c |= L1C_PCID | L1C_X2APIC | L1C_DEADLINE | L1C_HYPERVISOR;
    f->l1d |= L1D_APIC | BIT(5) | BIT(7) | BIT(12) | BIT(14) | BIT(16);
    f->l7b |= L7B_FSGSBASE | L7B_TSC_ADJUST | L7B_SMEP | L7B_ERMS | L7B_INVPCID | L7B_SMAP;
    f->l7c |= L7C_UMIP | L7C_RDPID;
    f->x7d |= X7D_INVARIANT_TSC;
    f->x1d |= X1D_NX | X1D_RDTSCP;
}

static void cpuid_mask(struct cpuid_features *f, const struct cpuid_features *m)
{
    f->l1c &= m->l1c;
    f->l1d &= m->l1d;
    f->l7b &= m->l7b;
    f->l7c &= m->l7c;
    f->l7d &= m->l7d;
    f->l7_1a &= m->l7_1a;
    f->ld_1a &= m->ld_1a;
    f->x1c &= m->x1c;
    f->x1d &= m->x1d;
    f->x7d &= m->x7d;
    f->x8b &= m->x8b;
    f->x21a &= m->x21a;
    f->x21c &= m->x21c;
    f->xcr0 &= m->xcr0;
}

static void cpuid_merge(struct cpuid_features *f, const struct cpuid_features *m)
{
    f->l1c |= m->l1c;
    f->l1d |= m->l1d;
    f->l7b |= m->l7b;
    f->l7c |= m->l7c;
    f->l7d |= m->l7d;
    f->l7_1a |= m->l7_1a;
    f->ld_1a |= m->ld_1a;
    f->x1c |= m->x1c;
    f->x1d |= m->x1d;
    f->x7d |= m->x7d;
    f->x8b |= m->x8b;
    f->x21a |= m->x21a;
    f->x21c |= m->x21c;
    f->xcr0 |= m->xcr0;
}

/* The engine's mask in the shape of a feature set. */
static struct cpuid_features cpuid_support_features(const struct cpuid_support *s)
{
    return (struct cpuid_features){
        .l1c = s->leaf1_ecx | L1C_HYPERVISOR,
        .l1d = s->leaf1_edx,
        .l7b = s->leaf7_ebx,
        .l7c = s->leaf7_ecx,
        .l7d = s->leaf7_edx,
        .l7_1a = s->leaf7_1_eax,
        .ld_1a = s->leafd_1_eax,
        .x1c = s->ext1_ecx,
        .x1d = s->ext1_edx,
        .x7d = s->ext7_edx,
        .x8b = s->ext8_ebx,
        .x21a = X21A_LFENCE_SERIALIZES | X21A_NULL_CLEARS_BASE | X21A_NO_SMM_CTL,
        .x21c = X21C_TSA_NO,
        .xcr0 = s->xcr0,
    };
}

/* Takes away what depends on state that the guest cannot enable. */
static void cpuid_drop_dependent(struct cpuid_features *f)
{
    if (!(f->l1c & L1C_XSAVE))
        f->xcr0 = 0;
    if ((f->xcr0 & XCR0_AVX512) != XCR0_AVX512 || !(f->xcr0 & XCR0_AVX))
        f->xcr0 &= ~(uint64_t)XCR0_AVX512;
    if (!(f->xcr0 & XCR0_AVX)) {
        f->l1c &= ~(L1C_AVX | L1C_FMA | L1C_F16C);
        f->l7b &= ~L7B_AVX2;
        f->l7c &= ~L7C_AVX;
        f->l7_1a &= ~L7_1A_AVX;
        f->x1c &= ~X1C_AVX;
    }
    if (!(f->xcr0 & XCR0_AVX512) || !(f->l7b & BIT(16))) {
        f->xcr0 &= ~(uint64_t)XCR0_AVX512;
        f->l7b &= ~L7B_AVX512;
        f->l7c &= ~L7C_AVX512;
        f->l7d &= ~L7D_AVX512;
        f->l7_1a &= ~L7_1A_AVX512;
    }
    if (!(f->l7c & BIT(3)))
        f->xcr0 &= ~(uint64_t)XCR0_PKRU;
    if (!(f->xcr0 & XCR0_PKRU))
        f->l7c &= ~L7C_PKU;
    if (!(f->l1c & L1C_XSAVE))
        f->ld_1a = 0;
    f->l1c &= ~L1C_OSXSAVE; /* the engine shows it by CR4.OSXSAVE */
    f->l7c &= ~BIT(4);      /* OSPKE likewise */
}

/* Features that need a part of the machine that Lodge does not have. */
static void cpuid_drop_absent(struct cpuid_features *f)
{
    f->l1c &= ~(BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(10) | BIT(11) |
                BIT(14) | BIT(15) | BIT(18));
    f->l1d &= ~(BIT(18) | BIT(21) | BIT(22) | BIT(27) | BIT(28) | BIT(29) | BIT(31));
    f->l7b &= ~(BIT(2) | BIT(4) | BIT(11) | BIT(12) | BIT(14) | BIT(15) | BIT(25));
    f->x1c &= ~(BIT(2) | BIT(3) | BIT(9) | BIT(10) | BIT(12) | BIT(13) | BIT(15) | BIT(17) | BIT(23) |
                BIT(24) | BIT(26) | BIT(27) | BIT(28) | BIT(29));
}

static void cpuid_add_topology(struct cpuid_build *b)
{
    b->has.l1d &= ~L1D_HTT;
    b->has.x1c &= ~(X1C_CMP_LEGACY | X1C_TOPOEXT);
    if (b->topology->cpus > 1) {
        b->has.l1d |= L1D_HTT;
        if (b->host.amd)
            b->has.x1c |= X1C_CMP_LEGACY;
    }
    if (b->host.amd)
        b->has.x1c |= X1C_TOPOEXT;
}

static void cpuid_add_immunities(struct cpuid_build *b)
{
    if (b->host.intel)
        b->has.l7d |= b->support->immune.leaf7_edx;
    if (!b->host.amd)
        return;
    b->has.x8b |= b->support->immune.ext8_ebx;
    b->has.x21a |= b->support->immune.ext21_eax;
    b->has.x21c |= b->support->immune.ext21_ecx;
}

static void cpuid_finish_features(struct cpuid_build *b)
{
    cpuid_drop_absent(&b->has);
    cpuid_add_topology(b);
    cpuid_drop_dependent(&b->has);
    b->has.x1d &= ~X1D_REPEATED;
    if (b->host.amd) {
        b->has.x1d |= b->has.l1d & X1D_REPEATED;
        b->has.x21a |= X21A_NULL_CLEARS_BASE; /* engines do, see soft/segment.c */
    } else {
        b->has.x21a = 0;
        b->has.x21c = 0;
    }
    cpuid_add_immunities(b);
}

static void cpuid_put(struct cpuid_build *b, uint32_t leaf, struct cpuid_regs regs)
{
    struct cpu_model *m = b->model;

    BUG_ON(m->count >= CPUID_ENTRIES_MAX);
    m->entries[m->count++] = (struct cpuid_entry){.leaf = leaf, .regs = regs};
}

static void cpuid_put_sub(struct cpuid_build *b, uint32_t leaf, uint32_t subleaf,
                          struct cpuid_regs regs)
{
    cpuid_put(b, leaf, regs);
    b->model->entries[b->model->count - 1].subleaf = subleaf;
    b->model->entries[b->model->count - 1].has_subleaf = true;
}

/* Bits of an APIC id that number the cores. */
static uint32_t cpuid_core_bits(const struct cpuid_build *b)
{
    uint32_t bits = 0;

    while ((1u << bits) < b->topology->cpus)
        bits++;
    return bits;
}

/* Family and model a portable CPU shows: family 6 or 15 with no model-specific work-arounds. */
static uint32_t cpuid_signature(const struct cpuid_build *b)
{
    if (!b->named)
        return b->host.basic1.eax;
    return b->host.amd ? 0x00800f12 : 0x000306d4;
}

static void cpuid_put_basic(struct cpuid_build *b)
{
    const struct cpuid_features *f = &b->has;
    uint32_t cpus = b->topology->cpus > 255 ? 255 : b->topology->cpus;
    uint32_t last = b->host.intel ? 0x16 : 0xd;
    const struct cpuid_regs *v = &b->host.basic0;

    cpuid_put(b, 0, (struct cpuid_regs){last, v->ebx, v->ecx, v->edx});
    cpuid_put(b, 1, (struct cpuid_regs){cpuid_signature(b), 8u << 8 | (cpus > 1 ? cpus : 1) << 16,
                                        f->l1c, f->l1d});
    cpuid_put(b, 2, b->host.intel ? (struct cpuid_regs){0x00feff01, 0, 0, 0}
                                  : (struct cpuid_regs){0});
    cpuid_put(b, 5, (struct cpuid_regs){0});
    cpuid_put(b, 6, (struct cpuid_regs){BIT(2), 0, 0, 0}); /* ARAT: the APIC timer never stops */
    cpuid_put_sub(b, 7, 0, (struct cpuid_regs){f->l7_1a ? 1 : 0, f->l7b, f->l7c, f->l7d});
    cpuid_put_sub(b, 7, 1, (struct cpuid_regs){f->l7_1a, 0, 0, 0});
}

struct cpuid_cache {
    uint32_t type, level, ways, sets; /* line: 64 bytes */
    bool shared;
};

/* A plausible mid-size part: 32K + 32K, 1M, and 16M shared. */
static const struct cpuid_cache cpuid_caches[] = {
    {1, 1, 8, 64, false},
    {2, 1, 8, 64, false},
    {3, 2, 16, 1024, false},
    {3, 3, 16, 16384, true},
};

/* Deterministic cache parameters: leaf 4 on Intel, 0x8000001d on AMD, same layout in EAX-ECX. */
static void cpuid_put_caches(struct cpuid_build *b, uint32_t leaf)
{
    uint32_t cores = 1u << cpuid_core_bits(b);

    for (uint32_t i = 0; i < ARRAY_SIZE(cpuid_caches); i++) {
        const struct cpuid_cache *c = &cpuid_caches[i];
        uint32_t sharing = c->shared ? cores - 1 : 0;
        struct cpuid_regs r = {
            .eax = c->type | c->level << 5 | BIT(8) | sharing << 14,
            .ebx = 63 | (c->ways - 1) << 22,
            .ecx = c->sets - 1,
            .edx = 0,
        };

        if (leaf == 4)
            r.eax |= (cores - 1) << 26;
        cpuid_put_sub(b, leaf, i, r);
    }
    cpuid_put_sub(b, leaf, ARRAY_SIZE(cpuid_caches), (struct cpuid_regs){0});
}

/* Extended topology: one thread a core; EDX is the vCPU's x2APIC id, filled in by the engine. */
static void cpuid_put_topology(struct cpuid_build *b)
{
    cpuid_put_sub(b, 0xb, 0, (struct cpuid_regs){0, 1, 1u << 8, 0});
    cpuid_put_sub(b, 0xb, 1,
                  (struct cpuid_regs){cpuid_core_bits(b), b->topology->cpus, 2u << 8 | 1, 0});
    cpuid_put_sub(b, 0xb, 2, (struct cpuid_regs){0, 0, 2, 0});
}

/* Offset and size of each extended component in standard format, as the host has them. */
static void cpuid_put_xsave(struct cpuid_build *b)
{
    uint64_t xcr0 = b->has.xcr0;
    uint32_t size = 576;
    unsigned at = b->model->count;

    if (!xcr0)
        return;
    cpuid_put_sub(b, 0xd, 0, (struct cpuid_regs){(uint32_t)xcr0, 576, 0, (uint32_t)(xcr0 >> 32)});
    cpuid_put_sub(b, 0xd, 1, (struct cpuid_regs){b->has.ld_1a, 576, 0, 0});
    for (uint32_t i = 2; i < 63; i++) {
        struct cpuid_regs r;

        if (!(xcr0 >> i & 1))
            continue;
        r = cpuid_read(0xd, i);
        cpuid_put_sub(b, 0xd, i, (struct cpuid_regs){r.eax, r.ebx, r.ecx & 2, 0});
        if (r.eax + r.ebx > size)
            size = r.eax + r.ebx;
    }
    b->model->entries[at].regs.ecx = size;
}

static void cpuid_put_clock(struct cpuid_build *b)
{
    uint32_t mhz = b->model->tsc_khz / 1000;

    if (!b->host.intel)
        return;
    /* TSC = crystal * EBX / EAX, to the kHz; the crystal also drives the APIC timer. */
    cpuid_put(b, 0x15, (struct cpuid_regs){LOCAL_APIC_TIMER_HZ / 1000, b->model->tsc_khz,
                                           LOCAL_APIC_TIMER_HZ, 0});
    cpuid_put(b, 0x16, (struct cpuid_regs){mhz, mhz, 100, 0});
}

static void cpuid_put_hypervisor(struct cpuid_build *b)
{
    const uint32_t features =
        KVM_FEATURE_NOP_IO_DELAY | KVM_FEATURE_CLOCKSOURCE2 | KVM_FEATURE_CLOCKSOURCE_STABLE;

    if (!b->support->kvm_clock)
        return;
    /* "KVMKVMKVM": the ABI of Linux's Documentation/virt/kvm/x86/cpuid.rst */
    cpuid_put(b, 0x40000000, (struct cpuid_regs){0x40000010, 0x4b4d564b, 0x564b4d56, 0x4d});
    cpuid_put(b, 0x40000001, (struct cpuid_regs){features, 0, 0, 0});
    /* TSC and APIC timer frequency in kHz, as VMware gave them and others followed */
    cpuid_put(b, 0x40000010, (struct cpuid_regs){b->model->tsc_khz,
                                               LOCAL_APIC_TIMER_HZ / 1000, 0, 0});
}

static void cpuid_put_brand(struct cpuid_build *b)
{
    struct cpuid_regs brand[3];
    char text[48] = {0};

    memcpy(brand, b->host.brand, sizeof(brand));
    if (b->named) {
        snprintf(text, sizeof(text), "Lodge %s", b->model->name);
        memcpy(brand, text, sizeof(brand));
    }
    for (unsigned i = 0; i < 3; i++)
        cpuid_put(b, 0x80000002 + i, brand[i]);
}

static void cpuid_put_amd(struct cpuid_build *b)
{
    cpuid_put_caches(b, 0x8000001d);
    cpuid_put(b, 0x8000001e, (struct cpuid_regs){0}); /* EAX, EBX: the vCPU's, by the engine */
    cpuid_put(b, 0x80000021, (struct cpuid_regs){b->has.x21a, 0, b->has.x21c, 0});
}

static void cpuid_put_extended(struct cpuid_build *b)
{
    const struct cpuid_features *f = &b->has;
    const struct cpuid_regs *v = &b->host.basic0;
    struct cpuid_regs vendor = {b->host.amd ? 0x80000021 : 0x80000008, 0, 0, 0};
    uint32_t cores = 0;

    if (b->host.amd) {
        vendor = (struct cpuid_regs){vendor.eax, v->ebx, v->ecx, v->edx};
        cores = (b->topology->cpus - 1) | cpuid_core_bits(b) << 12;
    }
    cpuid_put(b, 0x80000000, vendor);
    cpuid_put(b, 0x80000001, (struct cpuid_regs){b->host.amd ? cpuid_signature(b) : 0, 0, f->x1c,
                                                 f->x1d});
    cpuid_put_brand(b);
    if (b->host.amd)
        cpuid_put(b, 0x80000005,
                  (struct cpuid_regs){0xff40ff40, 0xff40ff40, 0x20080140, 0x20080140});
    cpuid_put(b, 0x80000006, b->host.amd
                                 ? (struct cpuid_regs){0x5c002200, 0x6c004200, 0x04006140, 0x00809140}
                                 : (struct cpuid_regs){0, 0, 0x04006040, 0});
    cpuid_put(b, 0x80000007, (struct cpuid_regs){0, 0, 0, f->x7d});
    cpuid_put(b, 0x80000008, (struct cpuid_regs){b->model->phys_bits | 48u << 8, f->x8b, cores, 0});
    if (b->host.amd)
        cpuid_put_amd(b);
}

/* Edit distance of two short names, for "did you mean". */
static unsigned cpuid_distance(const char *a, const char *b)
{
    unsigned row[64], diagonal, above;
    unsigned lb = (unsigned)strnlen(b, ARRAY_SIZE(row) - 1);

    for (unsigned j = 0; j <= lb; j++)
        row[j] = j;
    for (unsigned i = 1; a[i - 1] && i < 64; i++) {
        diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= lb; j++) {
            above = row[j];
            row[j] = diagonal + (a[i - 1] != b[j - 1]);
            if (above + 1 < row[j])
                row[j] = above + 1;
            if (row[j - 1] + 1 < row[j])
                row[j] = row[j - 1] + 1;
            diagonal = above;
        }
    }
    return row[lb];
}

static int cpuid_unknown_name(const char *name, struct error *err)
{
    const char *nearest = cpuid_names[0];

    for (unsigned i = 1; cpuid_names[i]; i++) {
        if (cpuid_distance(name, cpuid_names[i]) < cpuid_distance(name, nearest))
            nearest = cpuid_names[i];
    }
    return error_set(err, -EINVAL, "unknown CPU model '%s' (did you mean '%s'?)", name, nearest);
}

/* Bits of `need` that are not in `has`; register names for the message. */
static const char *cpuid_missing(const struct cpuid_features *need,
                                 const struct cpuid_features *has)
{
    if (need->l7b & ~has->l7b & L7B_AVX512_V4)
        return "AVX-512";
    if ((need->l7b & ~has->l7b) || (need->l1c & ~has->l1c & (L1C_AVX | L1C_FMA | L1C_F16C)))
        return "AVX2, BMI and FMA";
    if ((need->l1c & ~has->l1c) || (need->x1c & ~has->x1c))
        return "SSE4.2 and CMPXCHG16B";
    if ((need->l1d & ~has->l1d) || (need->x1d & ~has->x1d))
        return "the x86-64 baseline";
    return need->xcr0 & ~has->xcr0 ? "XSAVE state" : NULL;
}

static int cpuid_choose_features(struct cpuid_build *b, const char *name, struct error *err)
{
    struct cpuid_features mask = cpuid_support_features(b->support);
    const char *missing;

    b->has = b->host.has;
    cpuid_add_provided(&b->has);
    cpuid_mask(&b->has, &mask);
    b->named = strcmp(name, "host") != 0;
    if (!b->named)
        return 0;
    for (unsigned i = 0; i < ARRAY_SIZE(cpuid_named); i++) {
        if (strcmp(cpuid_named[i].name, name) != 0)
            continue;
        missing = cpuid_missing(&cpuid_named[i].need, &b->has);
        if (missing)
            return error_set(err, -ENOTSUP, "CPU model '%s' needs %s, which is not to be had here "
                             "(use 'host')", name, missing);
        mask = cpuid_optional;
        mask.x1d &= ~X1D_REPEATED & (VX_X1D | BIT(26) | X1D_RDTSCP); /* and 1 GiB pages */
        cpuid_merge(&mask, &cpuid_named[i].need);
        cpuid_mask(&b->has, &mask);
        return 0;
    }
    return cpuid_unknown_name(name, err);
}

/* 40 bits hold any guest of ours; more only when the host has plenty (46: Linux's usual server). */
static uint32_t cpuid_phys_bits(const struct cpuid_host *h)
{
    uint32_t bits = h->ext8.eax & 0xff;

    if (bits < 36)
        return 36;
    return bits >= 46 ? 46 : bits < 40 ? bits : 40;
}

int cpu_model_init(struct cpu_model *model, const char *name, const struct cpuid_support *support,
                   const struct cpu_topology *topology, struct error *err)
{
    struct cpuid_build b = {.model = model, .topology = topology, .support = support};
    int ret;

    memset(model, 0, sizeof(*model));
    cpuid_host_read(&b.host);
    ret = cpuid_choose_features(&b, name, err);
    if (ret)
        return ret;
    cpuid_finish_features(&b);
    snprintf(model->name, sizeof(model->name), "%s", name);
    model->tsc_khz = clock_host_tsc_khz();
    model->phys_bits = cpuid_phys_bits(&b.host);
    if (topology->phys_bits_max && model->phys_bits > topology->phys_bits_max)
        model->phys_bits = topology->phys_bits_max;
    model->xcr0_mask = b.has.xcr0 ? b.has.xcr0 : XCR0_X87;
    cpuid_put_basic(&b);
    if (b.host.intel)
        cpuid_put_caches(&b, 4);
    cpuid_put_topology(&b);
    cpuid_put_xsave(&b);
    cpuid_put_clock(&b);
    cpuid_put_hypervisor(&b);
    cpuid_put_extended(&b);
    return 0;
}

struct cpuid_regs cpu_model_lookup(const struct cpu_model *model, uint32_t leaf, uint32_t subleaf)
{
    for (unsigned i = 0; i < model->count; i++) {
        const struct cpuid_entry *e = &model->entries[i];

        if (e->leaf == leaf && (!e->has_subleaf || e->subleaf == subleaf))
            return e->regs;
    }
    /* SDM vol. 2A CPUID: an invalid sub-leaf of leaf 0xb still tells ECX[7:0] and EDX. */
    if (leaf == 0xb)
        return (struct cpuid_regs){0, 0, subleaf & 0xff, 0};
    return (struct cpuid_regs){0};
}

bool cpu_model_has(const struct cpu_model *model, uint32_t leaf, char reg, unsigned bit)
{
    struct cpuid_regs r = cpu_model_lookup(model, leaf, 0);
    uint32_t value = reg == 'a' ? r.eax : reg == 'b' ? r.ebx : reg == 'c' ? r.ecx : r.edx;

    return value >> bit & 1;
}
