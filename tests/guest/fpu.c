/* Vector and x87 state under an operating system: #NM and TS, EM, OSFXSR, FXSAVE, XSAVE and XRSTOR, XCR0,
 * numeric exceptions. SDM vol. 1 chapters 8, 11, 13. GUEST: cpus=1 */
#include "guest.h"

#define CR0_MP (1ull << 1)
#define CR0_EM (1ull << 2)
#define CR0_TS (1ull << 3)
#define CR4_OSFXSR     (1ull << 9)
#define CR4_OSXMMEXCPT (1ull << 10)
#define CR4_OSXSAVE    (1ull << 18)

static uint8_t area[4096] __attribute__((aligned(64))), second[4096] __attribute__((aligned(64)));

static void set_xmm0(uint64_t low, uint64_t high)
{
    uint64_t v[2] = {low, high};

    __asm__ volatile("movups (%0), %%xmm0" ::"r"(v) : "memory");
}

static uint64_t xmm0_low(void)
{
    uint64_t v[2];

    __asm__ volatile("movups %%xmm0, (%0)" ::"r"(v) : "memory");
    return v[0];
}

static bool clear_ts(struct frame *frame)
{
    (void)frame;
    __asm__ volatile("clts");
    return true;
}

static void test_lazy(void)
{
    uint64_t cr0 = read_cr0();

    set_xmm0(0x1234, 0x5678);
    write_cr0(cr0 | CR0_TS);
    TRY("movaps %%xmm0, %%xmm1", ::: "memory");
    CHECK_TRAP(7, 0);
    TRY("fnop", ::: "memory");
    CHECK_TRAP(7, 0);
    TRY("fwait", ::: "memory"); /* with MP */
    CHECK_TRAP(7, 0);
    TRY("fxsave (%0)", ::"r"(area) : "memory");
    CHECK_TRAP(7, 0);
    write_cr0((cr0 | CR0_TS) & ~CR0_MP);
    TRY("fwait", ::: "memory");
    CHECK_NO_TRAP();
    write_cr0(cr0 | CR0_TS);
    TRY("movnti %%eax, (%0)", ::"r"(area) : "memory"); /* general registers: no matter */
    CHECK_NO_TRAP();
    trap_set_handler(7, clear_ts);
    CHECK_EQ(xmm0_low(), 0x1234); /* restarted, the registers as they were */
    CHECK_EQ(read_cr0() & CR0_TS, 0);
    trap_set_handler(7, NULL);
    __asm__ volatile("clts");
    write_cr0((cr0 | CR0_EM) & ~CR0_MP);
    TRY("movaps %%xmm0, %%xmm1", ::: "memory");
    CHECK_TRAP(6, 0);
    TRY("fninit", ::: "memory");
    CHECK_TRAP(7, 0);
    write_cr0(cr0);
    write_cr4(read_cr4() & ~CR4_OSFXSR);
    TRY("movaps %%xmm0, %%xmm1", ::: "memory");
    CHECK_TRAP(6, 0);
    write_cr4(read_cr4() | CR4_OSFXSR);
    TRY("movaps %%xmm0, %%xmm1", ::: "memory");
    CHECK_NO_TRAP();
}

static void test_fxsave(void)
{
    uint32_t mxcsr = 0x1f80;

    __asm__ volatile("fninit\n fldpi\n fld1");
    __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
    set_xmm0(0xabcdef, 1);
    memset(area, 0, 512);
    __asm__ volatile("fxsave64 (%0)" ::"r"(area) : "memory");
    CHECK_EQ(*(uint16_t *)area, 0x37f);
    CHECK_EQ(area[4], 0xc0);                                /* two registers in use */
    CHECK_EQ(*(uint64_t *)(area + 32), 0x8000000000000000); /* ST0 = 1 */
    CHECK_EQ(*(uint64_t *)(area + 48), 0xc90fdaa22168c235); /* ST1 = pi */
    CHECK_EQ(*(uint64_t *)(area + 160), 0xabcdef);
    CHECK_EQ(*(uint32_t *)(area + 24), 0x1f80);
    set_xmm0(0, 0);
    __asm__ volatile("fninit");
    __asm__ volatile("fxrstor64 (%0)" ::"r"(area) : "memory");
    CHECK_EQ(xmm0_low(), 0xabcdef);
    memset(second, 0, 512);
    __asm__ volatile("fxsave64 (%0)" ::"r"(second) : "memory");
    CHECK_EQ(memcmp(area + 32, second + 32, 32), 0);
    if (guest_option("tcg", 0)) /* QEMU's emulation checks neither */
        return;
    *(uint32_t *)(area + 24) = 0xffffffff; /* reserved bits of MXCSR */
    TRY("fxrstor64 (%0)", ::"r"(area) : "memory");
    CHECK_TRAP(13, 0);
    TRY("fxsave64 8(%0)", ::"r"(area) : "memory"); /* misaligned */
    CHECK_TRAP(13, 0);
}

static void test_sse_exceptions(void)
{
    uint32_t mxcsr = 0x1d80; /* divide by zero not masked */

    __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
    TRY("movl $0x3f800000, %%eax\n movd %%eax, %%xmm0\n pxor %%xmm1, %%xmm1\n divss %%xmm1, %%xmm0", ::: "rax", "memory");
    CHECK_TRAP(19, 0);
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    CHECK_EQ(mxcsr & 4, 4);
    write_cr4(read_cr4() & ~CR4_OSXMMEXCPT);
    TRY("divss %%xmm1, %%xmm0", ::: "memory");
    CHECK_TRAP(6, 0);
    write_cr4(read_cr4() | CR4_OSXMMEXCPT);
    mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
    TRY("divss %%xmm1, %%xmm0", ::: "memory");
    CHECK_NO_TRAP();
    mxcsr = 0x10000;
    TRY("ldmxcsr %0", ::"m"(mxcsr) : "memory");
    CHECK_TRAP(13, 0);
}

static void test_x87_exceptions(void)
{
    uint16_t control = 0x37b; /* divide by zero not masked */

    __asm__ volatile("fninit\n fldcw %0" ::"m"(control));
    TRY("fld1\n fldz\n fdivrp\n fwait", ::: "memory"); /* 1/0; CR0.NE: #MF at the next one */
    CHECK_TRAP(16, 0);
    __asm__ volatile("fnclex\n fninit");
}

static uint64_t xgetbv(void)
{
    uint32_t low, high;

    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static void try_xsetbv(uint64_t v)
{
    TRY("xsetbv", ::"a"((uint32_t)v), "d"((uint32_t)(v >> 32)), "c"(0) : "memory");
}

static void test_xcr0(uint64_t all)
{
    try_xsetbv(1);
    CHECK_NO_TRAP();
    CHECK_EQ(xgetbv(), 1);
    CHECK_EQ(cpuid(0xd, 0).ebx, 576);
    try_xsetbv(2);
    CHECK_TRAP(13, 0);
    try_xsetbv(5); /* AVX without SSE */
    CHECK_TRAP(13, 0);
    try_xsetbv(1ull << 62);
    CHECK_TRAP(13, 0);
    CHECK_EQ(xgetbv(), 1);
    try_xsetbv(all);
    CHECK_NO_TRAP();
    CHECK_EQ(xgetbv(), all);
    CHECK(cpuid(0xd, 0).ebx <= cpuid(0xd, 0).ecx);
    CHECK(cpuid(0xd, 0).ecx <= sizeof(area));
}

static void test_avx(uint64_t all)
{
    uint64_t got[4], value[4] = {1, 2, 3, 4};
    struct cpuid avx = cpuid(0xd, 2);

    if (!(all & 4) || !(cpuid(1, 0).ecx & 1u << 28))
        return;
    __asm__ volatile("vmovdqu (%0), %%ymm7" ::"r"(value) : "memory");
    memset(area, 0, sizeof(area));
    __asm__ volatile("xsave64 (%0)" ::"r"(area), "a"(7), "d"(0) : "memory");
    CHECK_EQ(*(uint64_t *)(area + 512) & 7 & ~1ull, 6);
    CHECK_EQ(*(uint64_t *)(area + avx.ebx + 7 * 16), 3);
    __asm__ volatile("vzeroall");
    __asm__ volatile("xrstor64 (%0)" ::"r"(area), "a"(7), "d"(0) : "memory");
    __asm__ volatile("vmovdqu %%ymm7, (%0)" ::"r"(got) : "memory");
    CHECK_EQ(memcmp(got, value, sizeof(got)), 0);
    *(uint64_t *)(area + 512) &= ~4ull; /* AVX in its initial state: upper halves zero */
    __asm__ volatile("xrstor64 (%0)" ::"r"(area), "a"(7), "d"(0) : "memory");
    __asm__ volatile("vmovdqu %%ymm7, (%0)" ::"r"(got) : "memory");
    CHECK_EQ(got[1], 2);
    CHECK_EQ(got[2] | got[3], 0);
    try_xsetbv(3);
    TRY("vmovdqu (%0), %%ymm7", ::"r"(value) : "memory"); /* AVX not enabled */
    CHECK_TRAP(6, 0);
    try_xsetbv(all);
}

static void test_xsave(void)
{
    struct cpuid leaf;
    uint64_t all;

    TRY("xgetbv", ::"c"(0) : "rax", "rdx", "memory"); /* without OSXSAVE */
    CHECK_TRAP(6, 0);
    CHECK_EQ(cpuid(1, 0).ecx >> 27 & 1, 0);
    write_cr4(read_cr4() | CR4_OSXSAVE);
    CHECK_EQ(cpuid(1, 0).ecx >> 27 & 1, 1);
    leaf = cpuid(0xd, 0);
    all = ((uint64_t)leaf.edx << 32 | leaf.eax) & 0x2e7;
    CHECK_EQ(all & 3, 3);
    test_xcr0(all);
    test_avx(all);
    set_xmm0(0x51, 0x52);
    memset(area, 0, sizeof(area));
    __asm__ volatile("xsave64 (%0)" ::"r"(area), "a"(3), "d"(0) : "memory");
    CHECK_EQ(*(uint64_t *)(area + 160), 0x51);
    set_xmm0(0, 0);
    __asm__ volatile("xrstor64 (%0)" ::"r"(area), "a"(1), "d"(0) : "memory"); /* x87 alone */
    CHECK_EQ(xmm0_low(), 0);
    __asm__ volatile("xrstor64 (%0)" ::"r"(area), "a"(3), "d"(0) : "memory");
    CHECK_EQ(xmm0_low(), 0x51);
    *(uint64_t *)(area + 528) = 1; /* the header's reserved bytes */
    TRY("xrstor64 (%0)", ::"r"(area), "a"(3), "d"(0) : "memory");
    CHECK_TRAP(13, 0);
    *(uint64_t *)(area + 528) = 0;
    *(uint64_t *)(area + 512) = 1ull << 60;
    TRY("xrstor64 (%0)", ::"r"(area), "a"(3), "d"(0) : "memory");
    CHECK_TRAP(13, 0);
    TRY("xsave64 32(%0)", ::"r"(area), "a"(3), "d"(0) : "memory"); /* not 64-byte aligned */
    CHECK_TRAP(13, 0);
    if (cpuid(0xd, 1).eax & 1) {
        memset(area, 0, sizeof(area));
        __asm__ volatile("fninit\n xorps %%xmm0, %%xmm0\n xsaveopt64 (%0)" ::"r"(area), "a"(3), "d"(0) : "memory");
    }
}

int main(void)
{
    test_lazy();
    test_fxsave();
    if (!guest_option("tcg", 0)) /* QEMU's emulation never raises #XM */
        test_sse_exceptions();
    test_x87_exceptions();
    if (cpuid(1, 0).ecx & 1u << 26)
        test_xsave();
    return 0;
}
