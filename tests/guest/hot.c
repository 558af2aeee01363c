/*
 * What stops a loop that has run often: page faults, numeric exceptions, #GP, single steps and breakpoints in the
 * middle of it, with exact registers and flags. SDM vol. 3A 6.5, vol. 3B 17. GUEST: cpus=1
 */
#include "guest.h"

#define ROUNDS 3000ull /* of a loop before anything happens */
#define VA     0x50000000000ull
#define TF     0x100ull
#define ARITH  0x8d5ull
#define CF     0x1ull
#define PF     0x4ull
#define AF     0x10ull
#define ZF     0x40ull
#define SF     0x80ull
#define OF     0x800ull

static uint64_t *page_table;
static struct frame seen;   /* at the last exception */
static volatile unsigned events;
static uint64_t steps[32];
static uint64_t skip;       /* bytes that the handler goes on after */
static uint64_t seen_cr2;

static bool remember(struct frame *frame)
{
    seen = *frame;
    seen_cr2 = read_cr2();
    events++;
    return true;
}

/* The fault is repaired: the instruction is executed again. */
static bool map_page(struct frame *frame)
{
    remember(frame);
    page_table[seen_cr2 >> 12 & 511] |= PTE_P | PTE_W;
    invlpg((void *)seen_cr2);
    return true;
}

static bool skip_instruction(struct frame *frame)
{
    remember(frame);
    frame->rip += skip;
    return true;
}

static void map(void)
{
    uint64_t *pdpt = page_alloc(), *pd = page_alloc();

    page_table = page_alloc();
    boot_pml4[VA >> 39 & 511] = (uint64_t)pdpt | PTE_P | PTE_W;
    pdpt[VA >> 30 & 511] = (uint64_t)pd | PTE_P | PTE_W;
    pd[0] = (uint64_t)page_table | PTE_P | PTE_W;
    for (unsigned i = 0; i < 32; i++)
        page_table[i] = (uint64_t)page_alloc();
}

/* ---- page faults ---- */

/* Walks over pages that are absent: each store faults once, with the flags of the ADD before it. */
static void test_store_faults(void)
{
    uint64_t at = VA, sum = 0xfffffffffffffff0ull, fault_rip;
    unsigned faults = 0;

    trap_set_handler(14, map_page);
    events = 0;
    __asm__ volatile("leaq 2f(%%rip), %0" : "=r"(fault_rip));
    for (unsigned round = 0; round < 16 * 512; round++) {
        __asm__ volatile("movq %1, %%r8\n movq %0, %%r9\n movl $0x1234, %%r10d\n"
                         "addq $0x10, %%r9\n" /* 0 at first: ZF, CF, PF; then small numbers */
                         "2: movq %%r9, (%%r8)\n"
                         "movq %%r9, %0\n"
                         : "+r"(sum)
                         : "r"(at)
                         : "r8", "r9", "r10", "memory", "cc");
        if (events != faults) {
            faults = events;
            CHECK_EQ(seen_cr2, at);
            CHECK_EQ(seen.error, 2);
            CHECK_EQ(seen.r8, at);
            CHECK_EQ(seen.r9, sum);
            CHECK_EQ(seen.r10, 0x1234);
            CHECK_EQ(seen.rflags & (CF | ZF), sum == 0 ? CF | ZF : 0);
        }
        CHECK_EQ(*(volatile uint64_t *)at, sum);
        at += 8;
    }
    CHECK_EQ(seen.rip, fault_rip);
    CHECK_EQ(faults, 16);
    trap_set_handler(14, NULL);
}

/* The loop is one block: it is hot before it comes to the page that is absent. */
static void test_loop_fault(void)
{
    volatile uint64_t *p = (uint64_t *)VA;
    uint64_t count, carry = 0, rip, last;

    trap_set_handler(14, map_page);
    for (unsigned i = 0; i < 512 * 4; i++)
        p[i] = ~0ull;
    page_table[3] &= ~PTE_P;
    invlpg((void *)(VA + 0x3000));
    events = 0;
    __asm__ volatile("movq %3, %%rsi\n movl $2048, %%ecx\n xorl %%eax, %%eax\n xorl %%edx, %%edx\n"
                     "leaq 2f(%%rip), %2\n"
                     "movq $-1, %%r11\n"
                     "1: stc\n"
                     "2: adcq (%%rsi), %%rax\n"
                     "adcq $0, %%rdx\n"
                     "leaq 8(%%rsi), %%rsi\n"
                     "decq %%rcx\n jnz 1b\n"
                     "movq %%rdx, %0\n movq %%rax, %1\n"
                     : "=&r"(carry), "=&r"(last), "=&r"(rip)
                     : "r"(VA)
                     : "rax", "rcx", "rdx", "rsi", "r11", "memory", "cc");
    count = events;
    CHECK_EQ(count, 1);
    CHECK_EQ(seen.rip, rip);
    CHECK_EQ(seen_cr2, VA + 0x3000);
    CHECK_EQ(seen.error, 0);
    CHECK_EQ(seen.rsi, VA + 0x3000);
    CHECK_EQ(seen.rcx, 512);
    CHECK_EQ(seen.rdx, 1536);
    CHECK_EQ(seen.rax, 0);
    CHECK_EQ(seen.r11, ~0ull);
    CHECK_EQ(seen.rflags & CF, CF);
    CHECK_EQ(carry, 2048); /* all ones and the carry: nothing is added, and a carry comes of it */
    CHECK_EQ(last, 0);
    trap_set_handler(14, NULL);
}

/* An 8-byte store whose second half is in an absent page stores nothing. */
static void test_crossing(void)
{
    volatile uint8_t *p = (uint8_t *)VA;

    for (unsigned i = 0; i < ROUNDS; i++)
        __asm__ volatile("movq %0, (%1)" ::"r"((uint64_t)i), "r"(VA + 0xff8 - 8 * (i & 7)) : "memory");
    page_table[5] &= ~PTE_P;
    invlpg((void *)(VA + 0x5000));
    for (unsigned i = 0; i < 16; i++)
        p[0x4ff0 + i] = 0x77;
    trap_set_handler(14, skip_instruction);
    for (unsigned round = 0; round < 50; round++) {
        uint64_t at = VA + 0x4ff9 + round % 7;

        skip = 3;
        events = 0;
        __asm__ volatile("movq %%rax, (%%rbx)" ::"a"(0x1122334455667788ull), "b"(at) : "memory");
        CHECK_EQ(events, 1);
        CHECK_EQ(seen_cr2, VA + 0x5000);
        for (unsigned i = 0; i < 16; i++)
            CHECK_EQ(p[0x4ff0 + i], 0x77);
    }
    trap_set_handler(14, NULL);
    page_table[5] |= PTE_P;
    invlpg((void *)(VA + 0x5000));
}

/* Read-only in the middle of a hot loop of read-modify-writes: the flags at the fault are those before. */
static void test_rmw_fault(void)
{
    volatile uint32_t *p = (uint32_t *)(VA + 0x6000);
    uint64_t rip;

    trap_set_handler(14, map_page);
    *p = 0x7fffffff - 2000;
    page_table[6] = (page_table[6] & ~PTE_W) | PTE_P;
    events = 0;
    __asm__ volatile("leaq 2f(%%rip), %0\n movl $4000, %%ecx\n movl $1, %%r8d\n"
                     "1: cmpl $2000, %%ecx\n"
                     "jne 3f\n invlpg (%1)\n"
                     "cmpl $1, %%ecx\n" /* 2000 - 1: PF only of the low byte cfh: two in six */
                     "3: stc\n"
                     "2: incl (%1)\n" /* CF stays */
                     "jnc 4f\n"
                     "decl %%ecx\n jnz 1b\n"
                     "4:\n"
                     : "=&r"(rip)
                     : "r"(p)
                     : "rcx", "r8", "memory", "cc");
    CHECK_EQ(events, 1); /* CR0.WP: at the very first */
    CHECK_EQ(seen.rip, rip);
    CHECK_EQ(seen.error, 3);
    CHECK_EQ(seen.rflags & CF, CF);
    CHECK_EQ(*p, 0x7fffffffu + 2000);
    trap_set_handler(14, NULL);
}

/* ---- arithmetic and alignment ---- */

/* The divisor becomes zero after many rounds. */
static void test_divide(void)
{
    uint64_t rip, rax, rdx;

    trap_set_handler(0, skip_instruction);
    skip = 3;
    events = 0;
    __asm__ volatile("leaq 2f(%%rip), %0\n movl $3000, %%ecx\n movl $0x55, %%r9d\n"
                     "1: movl $1000000, %%eax\n xorl %%edx, %%edx\n decq %%rcx\n"
                     "movq $0x7fffffffffffffff, %%r8\n addq $1, %%r8\n" /* OF, SF, PF, AF */
                     "2: divq %%rcx\n"
                     "cmpq $0, %%rcx\n jne 1b\n"
                     : "=&r"(rip), "=&a"(rax), "=&d"(rdx)::"rcx", "r8", "r9", "cc");
    CHECK_EQ(events, 1);
    CHECK_EQ(seen.rip, rip);
    CHECK_EQ(seen.rcx, 0);
    CHECK_EQ(seen.rax, 1000000);
    CHECK_EQ(seen.rdx, 0);
    CHECK_EQ(seen.r8, 1ull << 63);
    CHECK_EQ(seen.r9, 0x55);
    CHECK_EQ(seen.rflags & ARITH, OF | SF | PF | AF);
    CHECK_EQ(rax, 1000000); /* as the handler left it */
    trap_set_handler(0, NULL);
}

/* MOVAPS whose address loses its alignment: #GP(0), nothing moved. */
static void test_misaligned(void)
{
    static uint8_t bytes[64] __attribute__((aligned(64)));
    uint64_t rip;

    trap_set_handler(13, skip_instruction);
    skip = 3;
    events = 0;
    for (unsigned i = 0; i < 64; i++)
        bytes[i] = (uint8_t)i;
    __asm__ volatile("leaq 2f(%%rip), %0\n movl $3000, %%ecx\n movq %1, %%rsi\n"
                     "1: subl $1, %%ecx\n"
                     "jnz 3f\n incq %%rsi\n orl $-1, %%eax\n" /* SF, PF */
                     "3: pcmpeqd %%xmm0, %%xmm0\n"
                     "2: movaps (%%rsi), %%xmm0\n"
                     "testl %%ecx, %%ecx\n jnz 1b\n"
                     "movups %%xmm0, (%1)\n"
                     : "=&r"(rip)
                     : "r"(bytes)
                     : "rax", "rcx", "rsi", "memory", "cc");
    CHECK_EQ(events, 1);
    CHECK_EQ(seen.rip, rip);
    CHECK_EQ(seen.error, 0);
    CHECK_EQ(seen.rsi, (uint64_t)bytes + 1);
    CHECK_EQ(seen.rflags & ARITH & ~AF, SF | PF);
    CHECK_EQ(bytes[0], 0xff); /* XMM0 was as PCMPEQD left it */
    CHECK_EQ(bytes[15], 0xff);
    trap_set_handler(13, NULL);
}

/* An unmasked division by zero in SSE: #XM at the instruction, its destination unchanged. */
static void test_simd_exception(void)
{
    static double numbers[2] = {1.0, 0.0};
    uint32_t mxcsr = 0x1f80 & ~0x200u, after;
    uint64_t rip, result = 0;

    if (guest_option("tcg", 0)) /* has no #XM */
        return;
    trap_set_handler(19, skip_instruction);
    skip = 4;
    events = 0;
    __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
    __asm__ volatile("leaq 2f(%%rip), %0\n movl $3000, %%ecx\n movsd (%2), %%xmm1\n"
                     "1: movsd (%2), %%xmm0\n"
                     "decl %%ecx\n"
                     "jnz 3f\n movsd 8(%2), %%xmm1\n"
                     "3: cmpl $0x10, %%ecx\n" /* at the end: 0 - 10h: CF, SF, PF */
                     "2: divsd %%xmm1, %%xmm0\n"
                     "testl %%ecx, %%ecx\n jnz 1b\n"
                     "movq %%xmm0, %1\n"
                     : "=&r"(rip), "=&r"(result)
                     : "r"(numbers)
                     : "rcx", "memory", "cc");
    __asm__ volatile("stmxcsr %0" : "=m"(after));
    CHECK_EQ(events, 1);
    CHECK_EQ(seen.rip, rip);
    CHECK_EQ(seen.rcx, 0);
    CHECK_EQ(seen.rflags & ARITH, CF | SF | PF);
    CHECK_EQ(after & 0x3f, 4); /* ZE */
    CHECK_EQ(result, 0x3ff0000000000000ull);
    mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
    trap_set_handler(19, NULL);
}

static bool on_x87(struct frame *frame)
{
    remember(frame);
    __asm__ volatile("fnclex");
    return true;
}

/* An unmasked x87 exception waits until the next instruction that looks, which is executed again. */
static void test_x87_exception(void)
{
    uint16_t control = 0x37f & ~4u;
    uint64_t rip;

    trap_set_handler(16, on_x87);
    events = 0;
    __asm__ volatile("fninit\n fldcw %1\n"
                     "leaq 2f(%%rip), %0\n movl $3000, %%ecx\n fld1\n"
                     "1: fld1\n"
                     "decl %%ecx\n jnz 3f\n fstp %%st(0)\n fldz\n"
                     "3: fdivrp %%st, %%st(1)\n" /* 1 / st: by zero at the end */
                     "addl $0, %%ecx\n"
                     "2: fwait\n"
                     "testl %%ecx, %%ecx\n jnz 1b\n"
                     "fninit\n"
                     : "=&r"(rip)
                     : "m"(control)
                     : "rcx", "memory", "cc");
    CHECK_EQ(events, 1);
    CHECK_EQ(seen.rip, rip);
    CHECK_EQ(seen.rcx, 0);
    CHECK_EQ(seen.rflags & ARITH, ZF | PF);
    trap_set_handler(16, NULL);
}

/* ---- debugging ---- */

static bool on_debug(struct frame *frame)
{
    remember(frame);
    if (events <= 32)
        steps[events - 1] = frame->rip;
    return true;
}

/* Single steps begin and end in code that is hot. */
static void test_steps(void)
{
    uint64_t first, sum = 0;

    trap_set_handler(1, on_debug);
    for (unsigned round = 0; round < 60; round++) {
        bool stepped = round % 20 == 19;

        events = 0;
        __asm__ volatile("leaq 2f(%%rip), %0\n"
                         "movl $50, %%ecx\n"
                         "pushfq\n orq %2, (%%rsp)\n popfq\n"
                         "2: addq $1, %1\n"
                         "decl %%ecx\n"
                         "jnz 2b\n"
                         "pushfq\n andq $~0x100, (%%rsp)\n popfq\n"
                         : "=&r"(first), "+r"(sum)
                         : "r"(stepped ? TF : 0ull)
                         : "rcx", "memory", "cc");
        CHECK_EQ(events, stepped ? 153 : 0);
        CHECK_EQ(sum, 50 * (round + 1));
        if (stepped) {
            CHECK_EQ(steps[0], first + 4);
            CHECK_EQ(steps[2], first);
            CHECK_EQ(read_dr6() & 0x4000, 0x4000);
        }
        write_dr6(0xffff0ff0);
    }
    trap_set_handler(1, NULL);
}

/* A data breakpoint set when the loop is hot: it is told after the store, before the next instruction. */
static void test_watch(void)
{
    static volatile uint64_t cells[4] __attribute__((aligned(32)));
    uint64_t rip = 0;

    trap_set_handler(1, on_debug);
    for (unsigned round = 0; round < 40; round++) {
        bool watch = round % 10 == 8;

        events = 0;
        if (watch) {
            write_dr0((uint64_t)&cells[2]);
            write_dr7(0x402 | 1ull << 16 | 2ull << 18); /* 8-byte writes */
        }
        __asm__ volatile("leaq 2f(%%rip), %0\n movl $100, %%ecx\n"
                         "1: movl %%ecx, %%eax\n andl $3, %%eax\n"
                         "movq %%rcx, (%1, %%rax, 8)\n"
                         "2: movl %%ecx, %%edx\n"
                         "subl $1, %%ecx\n jnz 1b\n"
                         : "=&r"(rip)
                         : "r"(cells)
                         : "rax", "rcx", "rdx", "memory", "cc");
        write_dr7(0x400);
        CHECK_EQ(cells[2], 2);
        if (watch) {
            CHECK_EQ(events, 25);
            CHECK_EQ(seen.rip, rip);
            CHECK_EQ(seen.rcx, 2);
            CHECK_EQ(seen.rflags & ARITH & ~AF, 0); /* of AND: 2 has one bit, odd */
            CHECK_EQ(read_dr6() & 0xf, 1);
        } else {
            CHECK_EQ(events, 0);
        }
        write_dr6(0xffff0ff0);
    }
    trap_set_handler(1, NULL);
}

static bool on_fetch(struct frame *frame)
{
    remember(frame);
    frame->rflags |= 1u << 16; /* RF */
    return true;
}

static void test_fetch_breakpoint(void)
{
    uint64_t rip = 0, sum = 0;

    trap_set_handler(1, on_fetch);
    for (unsigned round = 0; round < 40; round++) {
        bool execute = round % 10 == 9;

        events = 0;
        if (execute) {
            write_dr1(rip);
            write_dr7(0x408);
        }
        __asm__ volatile("leaq 2f(%%rip), %0\n movl $100, %%ecx\n"
                         "1: addq %%rcx, %1\n"
                         "2: leaq (%%rcx, %%rcx), %%rdx\n"
                         "subl $1, %%ecx\n jnz 1b\n"
                         : "=&r"(rip), "+r"(sum)::"rcx", "rdx", "cc");
        write_dr7(0x400);
        CHECK_EQ(events, execute ? 100 : 0);
        CHECK_EQ(sum, 5050 * (round + 1));
        if (execute) {
            CHECK_EQ(seen.rip, rip);
            CHECK_EQ(seen.rcx, 1);
        }
    }
    trap_set_handler(1, NULL);
    write_dr6(0xffff0ff0);
}

int main(void)
{
    map();
    test_store_faults();
    test_loop_fault();
    test_crossing();
    test_rmw_fault();
    test_divide();
    test_misaligned();
    test_simd_exception();
    test_x87_exception();
    test_steps();
    test_watch();
    test_fetch_breakpoint();
    return 0;
}
