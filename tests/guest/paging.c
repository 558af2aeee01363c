/*
 * Four-level paging: translation, every kind of page fault and its error code, accessed and dirty
 * bits, NX, WP, SMEP, SMAP, global pages, PCID and INVPCID. (32-bit and PAE paging: realmode.c.)
 * SDM vol. 3A chapter 4. GUEST: cpus=1
 */
#include "guest.h"

#define CR0_WP   (1ull << 16)
#define CR4_PGE  (1ull << 7)
#define CR4_PCIDE (1ull << 17)
#define CR4_SMEP (1ull << 20)
#define CR4_SMAP (1ull << 21)

#define PF_P    1
#define PF_W    2
#define PF_U    4
#define PF_RSVD 8
#define PF_I    16

#define VA 0x40000000000ull /* PML4 slot 8: the test's own */

static uint64_t *pml4, *pdpt, *pd, *pt;
static uint64_t *page_a, *page_b;

static uint64_t phys(const void *p) { return (uint64_t)(uintptr_t)p; }

/* The test's 4 KiB page at VA, with these flags at each level. */
static void map(uint64_t top, uint64_t mid, uint64_t leaf)
{
    pml4[VA >> 39 & 511] = phys(pdpt) | top;
    pdpt[0] = phys(pd) | mid;
    pd[0] = phys(pt) | mid;
    pt[0] = leaf;
    write_cr3(read_cr3());
}

static uint64_t *at(uint64_t va) { return (uint64_t *)(uintptr_t)va; }

static void try_read(uint64_t va) { TRY("movq (%0), %%rax", ::"r"(va) : "rax", "memory"); }
static void try_write(uint64_t va) { TRY("movq %%rax, (%0)", ::"r"(va) : "memory"); }
static void try_fetch(uint64_t va) { TRY("call *%0", ::"r"(va) : "memory"); }

static void expect_fault(uint32_t error, uint64_t va)
{
    if (guest_option("tcg", 0) && (error & PF_RSVD))
        error &= ~PF_P; /* QEMU's emulation leaves it clear */
    CHECK_TRAP(14, error);
    CHECK_EQ(trap_last.cr2, va);
}

static void test_present_write(void)
{
    const uint64_t rw = PTE_P | PTE_W;

    map(rw, rw, phys(page_a) | rw);
    *page_a = 0x1122334455667788;
    CHECK_EQ(*at(VA), 0x1122334455667788);
    *at(VA) = 5;
    CHECK_EQ(*page_a, 5);

    map(rw, rw, phys(page_a) & ~PTE_P);
    try_read(VA + 8);
    expect_fault(0, VA + 8);
    try_write(VA);
    expect_fault(PF_W, VA);
    map(rw, 0, phys(page_a) | rw);
    try_read(VA);
    expect_fault(0, VA);
    map(0, rw, phys(page_a) | rw);
    try_read(VA);
    expect_fault(0, VA);

    map(rw, rw, phys(page_a) | PTE_P); /* read only */
    try_read(VA);
    CHECK_NO_TRAP();
    try_write(VA);
    expect_fault(PF_P | PF_W, VA);
    TRY("lock incl (%0)", ::"r"(VA) : "memory", "cc");
    expect_fault(PF_P | PF_W, VA);
    map(rw, PTE_P, phys(page_a) | rw); /* read only above */
    try_write(VA);
    expect_fault(PF_P | PF_W, VA);
    write_cr0(read_cr0() & ~CR0_WP); /* the supervisor may then write */
    try_write(VA);
    CHECK_NO_TRAP();
    write_cr0(read_cr0() | CR0_WP);
    try_write(VA);
    expect_fault(PF_P | PF_W, VA);
}

static void test_straddle(void)
{
    const uint64_t rw = PTE_P | PTE_W;

    map(rw, rw, phys(page_a) | rw);
    pt[1] = phys(page_b) | rw;
    invlpg(at(VA + 4096));
    page_a[511] = 0x1111111111111111;
    page_b[0] = 0x2222222222222222;
    CHECK_EQ(*at(VA + 4092), 0x2222222211111111);
    *at(VA + 4092) = 0xaaaaaaaabbbbbbbb;
    CHECK_EQ(page_a[511], 0xbbbbbbbb11111111);
    CHECK_EQ(page_b[0], 0x22222222aaaaaaaa);
    pt[1] = 0;
    invlpg(at(VA + 4096));
    page_a[511] = 7;
    try_write(VA + 4092); /* faults on the second page, and the first keeps its bytes */
    expect_fault(PF_W, VA + 4096);
    CHECK_EQ(page_a[511], 7);
}

static void test_accessed_dirty(void)
{
    const uint64_t rw = PTE_P | PTE_W;

    map(rw, rw, phys(page_a) | rw);
    CHECK_EQ(pt[0] & (PTE_A | PTE_D), 0);
    try_read(VA);
    CHECK_EQ(pt[0] & (PTE_A | PTE_D), PTE_A);
    CHECK_EQ(pd[0] & (PTE_A | PTE_D), PTE_A);
    CHECK_EQ(pdpt[0] & (PTE_A | PTE_D), PTE_A);
    CHECK(pml4[VA >> 39 & 511] & PTE_A);
    try_write(VA); /* the translation is cached as clean: the walk must be repeated */
    CHECK_EQ(pt[0] & (PTE_A | PTE_D), PTE_A | PTE_D);
    CHECK_EQ(pd[0] & PTE_D, 0);
    pt[0] &= ~(PTE_A | PTE_D);
    invlpg(at(VA));
    try_read(VA);
    CHECK_EQ(pt[0] & (PTE_A | PTE_D), PTE_A);
    map(rw, rw, phys(page_a) | PTE_P);
    try_write(VA); /* a write that faults makes nothing dirty */
    expect_fault(PF_P | PF_W, VA);
    CHECK_EQ(pt[0] & PTE_D, 0);
}

static void test_large_pages(void)
{
    const uint64_t rw = PTE_P | PTE_W;
    struct cpuid ext = cpuid(0x80000001, 0);

    map(rw, rw, 0);
    pd[0] = rw | PTE_PS; /* physical 0-2 MiB */
    write_cr3(read_cr3());
    CHECK_EQ(*at(VA + 0x100000), *at(0x100000));
    try_write(VA + 0x9000);
    CHECK_NO_TRAP();
    CHECK_EQ(pd[0] & (PTE_A | PTE_D), PTE_A | PTE_D);
    if (ext.edx & 1u << 26) {
        pdpt[0] = rw | PTE_PS; /* 1 GiB */
        write_cr3(read_cr3());
        CHECK_EQ(*at(VA + phys(page_a)), *page_a);
        pdpt[0] = rw | PTE_PS | 1 << 13; /* a reserved bit of a 1 GiB entry */
        write_cr3(read_cr3());
        try_read(VA);
        expect_fault(PF_P | PF_RSVD, VA);
    }
    map(rw, rw, 0);
    pd[0] = rw | PTE_PS | 1 << 13; /* a reserved bit of a 2 MiB entry */
    write_cr3(read_cr3());
    try_write(VA);
    expect_fault(PF_P | PF_W | PF_RSVD, VA);
    map(rw | PTE_PS, rw, phys(page_a) | rw); /* PS is reserved in the PML4 */
    try_read(VA);
    expect_fault(PF_P | PF_RSVD, VA);
    map(rw, rw, phys(page_a) | rw | 1ull << 51); /* above MAXPHYADDR, or not memory at all */
    if ((cpuid(0x80000008, 0).eax & 0xff) < 52) {
        try_read(VA);
        expect_fault(PF_P | PF_RSVD, VA);
    }
}

static void test_nx(void)
{
    const uint64_t rw = PTE_P | PTE_W;

    *(uint8_t *)page_a = 0xc3; /* ret */
    map(rw, rw, phys(page_a) | rw);
    try_fetch(VA);
    CHECK_NO_TRAP();
    map(rw, rw, phys(page_a) | rw | PTE_NX);
    try_fetch(VA);
    expect_fault(PF_P | PF_I, VA);
    CHECK_EQ(trap_last.rip, VA);
    try_read(VA);
    CHECK_NO_TRAP();
    map(rw, rw | PTE_NX, phys(page_a) | rw);
    try_fetch(VA);
    expect_fault(PF_P | PF_I, VA);
    map(rw, rw, 0);
    try_fetch(VA);
    expect_fault(PF_I, VA);
    map(rw, rw, phys(page_a) | rw | PTE_NX);
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~(1ull << 11)); /* without NXE the bit is reserved */
    try_read(VA);
    expect_fault(PF_P | PF_RSVD, VA);
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 1ull << 11);
    try_read(VA);
    CHECK_NO_TRAP();
}

extern const uint8_t user_read[], user_write[], user_call[];
__asm__(".text\n"
        "user_read: movq (%rdi), %rax\n int $0x80\n"
        "user_write: movq %rsi, (%rdi)\n int $0x80\n"
        "user_call: call *%rdi\n int $0x80\n");

static void test_user(void)
{
    const uint64_t rw = PTE_P | PTE_W, rwu = PTE_P | PTE_W | PTE_U;

    map(rwu, rwu, phys(page_a) | rwu);
    *page_a = 0x77;
    user_run(user_read, VA, 0);
    CHECK_EQ(trap_last.vector, 0x80);
    CHECK_EQ(trap_last.rax, 0x77);
    user_run(user_write, VA, 0x78);
    CHECK_EQ(trap_last.vector, 0x80);
    CHECK_EQ(*page_a, 0x78);
    map(rwu, rwu, phys(page_a) | rw); /* supervisor only, at each level */
    user_run(user_read, VA, 0);
    expect_fault(PF_P | PF_U, VA);
    user_run(user_write, VA, 0);
    expect_fault(PF_P | PF_U | PF_W, VA);
    user_run(user_call, VA, 0);
    expect_fault(PF_P | PF_U | PF_I, VA);
    map(rwu, rw, phys(page_a) | rwu);
    user_run(user_read, VA, 0);
    expect_fault(PF_P | PF_U, VA);
    map(rw, rwu, phys(page_a) | rwu);
    user_run(user_read, VA, 0);
    expect_fault(PF_P | PF_U, VA);
    map(rwu, rwu, phys(page_a) | PTE_P | PTE_U);
    user_run(user_write, VA, 0);
    expect_fault(PF_P | PF_U | PF_W, VA);
    write_cr0(read_cr0() & ~CR0_WP); /* WP is for the supervisor alone */
    user_run(user_write, VA, 0);
    expect_fault(PF_P | PF_U | PF_W, VA);
    write_cr0(read_cr0() | CR0_WP);
    map(rwu, rwu, 0);
    user_run(user_read, VA + 16, 0);
    expect_fault(PF_U, VA + 16);
}

static void test_smep_smap(void)
{
    const uint64_t rwu = PTE_P | PTE_W | PTE_U;
    struct cpuid leaf7 = cpuid(7, 0);

    map(rwu, rwu, phys(page_a) | rwu);
    *(uint8_t *)page_a = 0xc3;
    if (leaf7.ebx & 1u << 7) {
        write_cr4(read_cr4() | CR4_SMEP);
        try_fetch(VA);
        expect_fault(PF_P | PF_I, VA);
        try_read(VA);
        CHECK_NO_TRAP();
        write_cr4(read_cr4() & ~CR4_SMEP);
        try_fetch(VA);
        CHECK_NO_TRAP();
    }
    if (leaf7.ebx & 1u << 20) {
        write_cr4(read_cr4() | CR4_SMAP);
        __asm__ volatile("clac");
        try_read(VA);
        expect_fault(PF_P, VA);
        try_write(VA);
        expect_fault(PF_P | PF_W, VA);
        TRY("stac\n movq (%0), %%rax\n clac", ::"r"(VA) : "rax", "memory");
        CHECK_NO_TRAP();
        try_read(VA); /* the access above must not have left a way in */
        expect_fault(PF_P, VA);
        user_run(user_read, VA, 0);
        CHECK_EQ(trap_last.vector, 0x80);
        write_cr4(read_cr4() & ~CR4_SMAP);
        try_read(VA);
        CHECK_NO_TRAP();
    }
}

/* Stale translations are allowed until invalidated; after each kind of invalidation they are gone. */
static void test_invalidation(void)
{
    const uint64_t rw = PTE_P | PTE_W;

    *page_a = 0xa;
    *page_b = 0xb;
    map(rw, rw, phys(page_a) | rw);
    CHECK_EQ(*at(VA), 0xa);
    pt[0] = phys(page_b) | rw;
    invlpg(at(VA));
    CHECK_EQ(*(volatile uint64_t *)at(VA), 0xb);
    pt[0] = phys(page_a) | rw;
    write_cr3(read_cr3());
    CHECK_EQ(*(volatile uint64_t *)at(VA), 0xa);
    write_cr4(read_cr4() | CR4_PGE);
    map(rw, rw, phys(page_a) | rw | PTE_G);
    CHECK_EQ(*(volatile uint64_t *)at(VA), 0xa);
    pt[0] = phys(page_b) | rw | PTE_G;
    invlpg(at(VA)); /* global too */
    CHECK_EQ(*(volatile uint64_t *)at(VA), 0xb);
    pt[0] = phys(page_a) | rw | PTE_G;
    write_cr4(read_cr4() & ~CR4_PGE); /* everything */
    CHECK_EQ(*(volatile uint64_t *)at(VA), 0xa);
    TRY("invlpg (%0)", ::"r"(0x123456789000ull) : "memory"); /* not mapped: nothing happens */
    CHECK_NO_TRAP();
}

static void invpcid(uint64_t type, uint64_t pcid, uint64_t va)
{
    uint64_t descriptor[2] = {pcid, va};

    TRY("invpcid (%0), %1", ::"r"(descriptor), "r"(type) : "memory");
}

static void test_pcid(void)
{
    const uint64_t rw = PTE_P | PTE_W;
    uint64_t cr3 = read_cr3();

    if (!(cpuid(1, 0).ecx & 1u << 17)) {
        TRY("movq %0, %%cr4", ::"r"(read_cr4() | CR4_PCIDE) : "memory");
        if (!guest_option("tcg", 0))
            CHECK_TRAP(13, 0);
        write_cr4(read_cr4() & ~CR4_PCIDE);
        return;
    }
    TRY("movq %0, %%cr3\n movq %1, %%cr4", ::"r"(cr3 | 1), "r"(read_cr4() | CR4_PCIDE) : "memory");
    CHECK_TRAP(13, 0); /* PCIDE may be set only while CR3[11:0] is 0 */
    write_cr3(cr3);
    write_cr4(read_cr4() | CR4_PCIDE);
    map(rw, rw, phys(page_a) | rw);
    CHECK_EQ(*(volatile uint64_t *)at(VA), *page_a);
    write_cr3(cr3 | 1); /* another PCID: may not use PCID 0's translation, changed meanwhile */
    pt[0] = phys(page_b) | rw;
    write_cr3(cr3 | 2);
    CHECK_EQ(*(volatile uint64_t *)at(VA), *page_b);
    CHECK_EQ(read_cr3(), cr3 | 2);
    write_cr3((cr3 | 1) | 1ull << 63);
    CHECK_EQ(read_cr3(), cr3 | 1); /* bit 63 is not stored */
    write_cr3(cr3);
    CHECK_EQ(*(volatile uint64_t *)at(VA), *page_b);
    if (cpuid(7, 0).ebx & 1u << 10) {
        pt[0] = phys(page_a) | rw;
        invpcid(0, 0, VA);
        CHECK_EQ(*(volatile uint64_t *)at(VA), *page_a);
        pt[0] = phys(page_b) | rw;
        invpcid(1, 0, 0);
        CHECK_EQ(*(volatile uint64_t *)at(VA), *page_b);
        pt[0] = phys(page_a) | rw;
        invpcid(2, 0, 0);
        CHECK_EQ(*(volatile uint64_t *)at(VA), *page_a);
        pt[0] = phys(page_b) | rw;
        invpcid(3, 0, 0);
        CHECK_EQ(*(volatile uint64_t *)at(VA), *page_b);
        invpcid(4, 0, 0);
        CHECK_TRAP(13, 0);
        invpcid(1, 0x1000, 0); /* reserved bits of the descriptor */
        CHECK_TRAP(13, 0);
    }
    write_cr4(read_cr4() & ~CR4_PCIDE);
}

static void test_canonical(void)
{
    TRY("movq (%0), %%rax", ::"r"(0x800000000000ull) : "rax");
    CHECK_TRAP(13, 0);
    TRY("movq %%ss:(%0), %%rax", ::"r"(0x800000000000ull) : "rax"); /* SS is ignored in 64-bit mode */
    CHECK_TRAP(13, 0);
    if (!guest_option("tcg", 0)) { /* QEMU's emulation checks neither */
        TRY("jmp *%0", ::"r"(0x800000000000ull));
        CHECK_TRAP(13, 0);
        TRY("movq %0, %%cr3", ::"r"(1ull << 62));
        CHECK_TRAP(13, 0);
    }
}


int main(void)
{
    pml4 = boot_pml4;
    pdpt = page_alloc();
    pd = page_alloc();
    pt = page_alloc();
    page_a = page_alloc();
    page_b = page_alloc();
    test_present_write();
    test_straddle();
    test_accessed_dirty();
    test_large_pages();
    test_nx();
    test_user();
    test_smep_smap();
    test_invalidation();
    test_pcid();
    test_canonical();
    return 0;
}
