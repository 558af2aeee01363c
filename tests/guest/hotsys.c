/*
 * What a kernel executes at its entries and exits, in loops that have run often: flags through PUSHF, CLI and STI with
 * its shadow, SWAPGS and the bases, STAC and CLAC, SYSCALL and SYSRET, with what each raises when it is not allowed;
 * string stores inside and across pages, bit strings. SDM vol. 2, APM vol. 3. GUEST: cpus=1
 */
#include "chips.h"

#define ROUNDS     64u /* of a loop before anything happens: it is translated by then */
#define V_SELF     0x61
#define EFER       0xc0000080u
#define STAR       0xc0000081u
#define LSTAR      0xc0000082u
#define SFMASK     0xc0000084u
#define FS_BASE    0xc0000100u
#define GS_BASE    0xc0000101u
#define KERNEL_GS  0xc0000102u
#define CR4_FSGS   (1ull << 16)
#define CR4_SMAP   (1ull << 21)
#define ARITH      0x8d5ull
#define IF         0x200ull
#define DF         0x400ull
#define TF         0x100ull
#define AC         0x40000ull
#define ID         0x200000ull
#define ODD        0x800000000000ull /* not canonical */

/* ---- PUSHF, CLD, STD, CLI, STI ---- */

static void test_pushf(void)
{
    for (uint64_t i = 0; i < ROUNDS * 4; i++) {
        uint64_t want = 2, got, a = i * 0x4081020408102041ull, b = i << 61 | i;
        uint8_t carry, zero, sign, over;

        __asm__ volatile("addq %6, %5\n pushfq\n popq %0\n"
                         "setc %1\n setz %2\n sets %3\n seto %4"
                         : "=&r"(got), "=&q"(carry), "=&q"(zero), "=&q"(sign), "=&q"(over), "+&r"(a)
                         : "r"(b)
                         : "cc");
        want |= carry | (uint64_t)zero << 6 | (uint64_t)sign << 7 | (uint64_t)over << 11;
        CHECK_EQ(got & ~0x14ull, want); /* but AF, PF */
        __asm__ volatile("std\n pushfq\n popq %0\n cld\n pushfq\n popq %1" : "=r"(got), "=r"(want)::"cc");
        CHECK_EQ(got & DF, DF);
        CHECK_EQ(want & DF, 0);
        __asm__ volatile("sti\n nop\n pushfq\n popq %0\n cli\n pushfq\n popq %1" : "=r"(got), "=r"(want)::"cc");
        CHECK_EQ(got & IF, IF);
        CHECK_EQ(want & IF, 0);
    }
}

extern const uint8_t user_cli[], user_sti[], user_swapgs[], user_cr2[], user_stac[], user_clac[];
__asm__(".text\n"
        "user_cli: cli\n int $0x80\n"
        "user_sti: sti\n int $0x80\n"
        "user_swapgs: swapgs\n int $0x80\n"
        "user_cr2: movq %cr2, %rax\n int $0x80\n"
        "user_stac: stac\n int $0x80\n"
        "user_clac: clac\n int $0x80\n");

static void test_not_allowed(void)
{
    bool smap = cpuid(7, 0).ebx >> 20 & 1;

    for (unsigned i = 0; i < ROUNDS; i++) {
        user_run(user_cli, 0, 0);
        CHECK_TRAP(13, 0);
        CHECK_EQ(trap_last.rip, USER(user_cli));
        user_run(user_sti, 0, 0);
        CHECK_TRAP(13, 0);
        user_run(user_swapgs, 0, 0);
        CHECK_TRAP(13, 0);
        user_run(user_cr2, 0, 0);
        CHECK_TRAP(13, 0);
        if (!smap)
            continue;
        user_run(user_stac, 0, 0);
        CHECK_TRAP(6, 0);
        user_run(user_clac, 0, 0);
        CHECK_TRAP(6, 0);
    }
}

static volatile unsigned interrupts;
static uint64_t interrupt_rip;

static bool on_self(struct frame *frame)
{
    interrupt_rip = frame->rip;
    interrupts++;
    apic_write(APIC_EOI, 0);
    return true;
}

/* An interrupt that waits is let in after the instruction that follows STI, whatever that is. */
#define SHADOW(next, then)                                                                         \
    do {                                                                                           \
        uint64_t after;                                                                            \
                                                                                                   \
        interrupts = 0;                                                                            \
        apic_ipi(apic_read(APIC_ID) >> 24, 0x4000 | V_SELF);                                       \
        __asm__ volatile("leaq 1f(%%rip), %0\n sti\n" next "\n 1:" then "\n nop\n cli"             \
                         : "=&r"(after)                                                            \
                         :                                                                         \
                         : "rax", "rcx", "memory", "cc");                                          \
        CHECK_EQ(interrupts, 1);                                                                   \
        CHECK_EQ(interrupt_rip, after);                                                            \
    } while (0)

static void test_shadow(void)
{
    trap_set_handler(V_SELF, on_self);
    apic_write(APIC_SVR, 0x1ff);
    for (unsigned i = 0; i < ROUNDS; i++) {
        SHADOW("incl %%eax", "");
        SHADOW("pushfq", "popq %%rax");
        SHADOW("jmp 1f", "");
        SHADOW("call 1f", "popq %%rax");
        SHADOW("pushq %0\n", "popq %%rax");
        SHADOW("sti", "");
    }
    for (unsigned i = 0; i < ROUNDS; i++) {
        interrupts = 0;
        apic_ipi(apic_read(APIC_ID) >> 24, 0x4000 | V_SELF);
        __asm__ volatile("sti\n cli\n nop" ::: "cc");
        CHECK_EQ(interrupts, 0);
        __asm__ volatile("sti\n nop\n cli" ::: "cc");
        CHECK_EQ(interrupts, 1);
    }
    trap_set_handler(V_SELF, NULL);
}

/* ---- the bases of FS and GS ---- */

static void test_bases(void)
{
    uint64_t a = 0x123456789ab0, b = 0xffff800000001230, got, low;

    if (!(cpuid(7, 0).ebx & 1)) {
        print("no FSGSBASE: the bases are not tested\n");
        return;
    }
    write_cr4(read_cr4() | CR4_FSGS);
    for (unsigned i = 0; i < ROUNDS; i++) {
        wrmsr(KERNEL_GS, b + i);
        __asm__ volatile("wrgsbase %2\n swapgs\n rdgsbase %0\n wrfsbase %0\n rdfsbase %k1" : "=&r"(got), "=&r"(low) : "r"(a));
        CHECK_EQ(got, b + i);
        CHECK_EQ(low, (uint32_t)got);
        CHECK_EQ(rdmsr(KERNEL_GS), a);
        CHECK_EQ(rdmsr(FS_BASE), b + i);
        __asm__ volatile("movq %1, %%r9\n wrfsbase %%r9d\n rdfsbase %%r11\n movq %%r11, %0" : "=r"(got) : "r"(~a) : "r9", "r11");
        CHECK_EQ(got, (uint32_t)~a);
        if (guest_option("tcg", 0)) /* which takes any base */
            continue;
        TRY("wrgsbase %0", ::"r"(i % 8 == 7 ? ODD : a + i));
        if (i % 8 == 7)
            CHECK_TRAP(13, 0);
        else
            CHECK_NO_TRAP();
        CHECK_EQ(rdmsr(GS_BASE), i % 8 == 7 ? b + i : a + i);
    }
    write_cr4(read_cr4() & ~CR4_FSGS);
    TRY("wrgsbase %0", ::"r"(a));
    CHECK_TRAP(6, 0);
    wrmsr(GS_BASE, 0);
    wrmsr(FS_BASE, 0);
}

static void test_moves(void)
{
    uint16_t stored;
    uint64_t got;

    for (unsigned i = 0; i < ROUNDS; i++) {
        __asm__ volatile("movq $-1, %%r8\n movl %%cs, %%r8d\n movq %%r8, %0\n movw %%ss, %1" : "=r"(got), "=m"(stored)::"r8");
        CHECK_EQ(got, SEL_CODE64);
        CHECK_EQ(stored, SEL_DATA);
        write_cr2(i * 0x1001);
        CHECK_EQ(read_cr2(), i * 0x1001);
        __asm__ volatile("movq %%cr3, %%r10\n movq %%r10, %0" : "=r"(got)::"r10");
        CHECK_EQ(got, read_cr3());
        CHECK_EQ(read_cr0() & 0x80000001, 0x80000001);
    }
}

/* ---- STAC, CLAC ---- */

/* The last of the loads, near one that was allowed, faults when the page is a program's. */
static void guarded(const uint64_t *p, uint64_t *flags, uint64_t *sum)
{
    TRY("stac\n pushfq\n popq %0\n movq (%2), %1\n addq 8(%2), %1\n clac\n addq 16(%2), %1",
        : "=&r"(*flags), "=&r"(*sum) : "r"(p) : "memory", "cc");
}

static void test_smap(void)
{
    static uint64_t words[3] = {1, 2, 4};
    uint64_t flags, sum;

    if (!(cpuid(7, 0).ebx >> 20 & 1)) {
        print("no SMAP: STAC and CLAC are not tested\n");
        return;
    }
    write_cr4(read_cr4() | CR4_SMAP);
    for (unsigned i = 0; i < ROUNDS * 2; i++) {
        bool of_user = i % 16 == 15;

        guarded(of_user ? (uint64_t *)USER(words) : words, &flags, &sum);
        CHECK_EQ(flags & AC, AC);
        CHECK_EQ(read_flags() & AC, 0);
        CHECK_EQ(sum, of_user ? 3 : 7);
        if (of_user)
            CHECK_TRAP(14, 1);
        else
            CHECK_NO_TRAP();
        __asm__ volatile("clac\n stac\n stac\n pushfq\n popq %0\n clac" : "=r"(flags)::"memory");
        CHECK_EQ(flags & AC, AC);
    }
    write_cr4(read_cr4() & ~CR4_SMAP);
}

/* ---- SYSCALL, SYSRET ---- */

extern const uint8_t user_calls[], user_call_rip[], user_steps[], system_entry[], system_entry_odd[];
struct call { uint64_t rip, flags, flags_inside, cs, ss, stack, count, set, odd; };
struct call call;
__asm__(".bss\n .balign 16\n .skip 512\n system_stack:\n"
        ".text\n"
        "system_entry:\n"
        "movq %rsp, call+40(%rip)\n leaq system_stack(%rip), %rsp\n"
        "pushfq\n popq call+16(%rip)\n"
        "movq %rcx, call(%rip)\n movq %r11, call+8(%rip)\n"
        "movq %cs, %rcx\n movq %rcx, call+24(%rip)\n movq %ss, %rcx\n movq %rcx, call+32(%rip)\n"
        "incq call+48(%rip)\n"
        "movq call(%rip), %rcx\n orq call+64(%rip), %rcx\n orq call+56(%rip), %r11\n movq call+40(%rip), %rsp\n"
        "sysretq\n"
        /* RDI calls; flags differ from one to the next, and come back; RAX counts those that do not */
        "user_calls: xorl %eax, %eax\n"
        "1: movq %rdi, %rbx\n imulq $0x11111111, %rbx\n addb %bl, %bh\n pushfq\n popq %r12\n"
        "syscall\n"
        "user_call_rip: pushfq\n popq %r13\n xorq %r12, %r13\n andq %rsi, %r13\n negq %r13\n adcq $0, %rax\n"
        "movq %cs, %r14\n cmpq $0x33, %r14\n je 2f\n incq %rax\n 2: movq %ss, %r14\n cmpq $0x2b, %r14\n je 3f\n incq %rax\n"
        "3: decq %rdi\n jnz 1b\n int $0x80\n");

static void calls(uint64_t count, uint64_t mask)
{
    wrmsr(SFMASK, mask);
    call = (struct call){0};
    user_run(user_calls, count, ~0ull);
    CHECK_EQ(trap_last.vector, 0x80);
    CHECK_EQ(trap_last.rax, 0);
    CHECK_EQ(call.count, count);
    CHECK_EQ(call.rip, USER(user_call_rip));
    CHECK_EQ(call.flags & IF, IF);
    if (!guest_option("tcg", 0)) /* which clears the arithmetic flags */
        CHECK_EQ(call.flags_inside, (call.flags & ~mask) | 2);
    CHECK_EQ(call.cs, SEL_CODE64);
    CHECK_EQ(call.ss, SEL_DATA);
}

static bool step_count(struct frame *frame)
{
    interrupts++;
    interrupt_rip = frame->rip;
    frame->rflags &= ~TF;
    return true;
}

static void test_calls(void)
{
    bool amd = cpuid(0, 0).ebx == 0x68747541;

    wrmsr(EFER, rdmsr(EFER) | 1);
    wrmsr(STAR, 0x20ull << 48 | (uint64_t)SEL_CODE64 << 32);
    wrmsr(LSTAR, (uint64_t)system_entry);
    calls(ROUNDS * 4, 0);
    calls(ROUNDS * 4, IF | DF | TF | AC);
    calls(ROUNDS * 4, IF | ARITH | ID);
    calls(1, 0x51);
    /* TF comes back: one trap */
    trap_set_handler(1, step_count);
    interrupts = 0;
    wrmsr(SFMASK, IF);
    call.set = TF;
    user_run(user_calls, 1, ~TF);
    CHECK_EQ(trap_last.vector, 0x80);
    CHECK_EQ(trap_last.rax, 0);
    CHECK_EQ(interrupts, 1);
    trap_set_handler(1, NULL);
    if (amd && !guest_option("tcg", 0)) { /* it returns, and cannot go on; Intel's faults in the kernel */
        call = (struct call){.odd = ODD};
        user_run(user_calls, 1, 0);
        CHECK_TRAP(13, 0);
        CHECK_EQ(trap_last.cs, SEL_USER64);
        CHECK_EQ(trap_last.rip, USER(user_call_rip) | ODD);
    }
    wrmsr(EFER, rdmsr(EFER) & ~1ull);
    user_run(user_calls, 1, 0);
    CHECK_TRAP(6, 0);
    CHECK_EQ(trap_last.rip, USER(user_call_rip) - 2);
}

/* ---- strings and bits ---- */

static uint8_t *strings; /* three pages */

static void check_strings(uint64_t from, uint64_t to, uint64_t count, bool down)
{
    static uint8_t model[3 * 4096];
    uint64_t rdi = to, rsi = from, rcx = count;
    int64_t step = down ? -4 : 4;

    for (unsigned i = 0; i < sizeof(model); i++)
        strings[i] = model[i] = (uint8_t)(i * 7 + (i >> 8));
    for (uint64_t i = 0; i < count; i++) {
        uint32_t one;

        memcpy(&one, model + from + i * (uint64_t)step, 4);
        memcpy(model + to + i * (uint64_t)step, &one, 4);
    }
    rdi += (uint64_t)strings;
    rsi += (uint64_t)strings;
    if (down)
        __asm__ volatile("std\n rep movsl\n cld" : "+D"(rdi), "+S"(rsi), "+c"(rcx)::"memory");
    else
        __asm__ volatile("rep movsl" : "+D"(rdi), "+S"(rsi), "+c"(rcx)::"memory");
    CHECK_EQ(rcx, 0);
    CHECK_EQ(rdi, (uint64_t)strings + to + count * (uint64_t)step);
    CHECK_EQ(rsi, (uint64_t)strings + from + count * (uint64_t)step);
    CHECK_EQ(memcmp(strings, model, sizeof(model)), 0);
}

static void check_fill(uint64_t at, uint64_t count)
{
    uint64_t rdi = (uint64_t)strings + at, rcx = count, wrong = 0;

    for (unsigned i = 0; i < 3 * 4096; i++)
        strings[i] = 1;
    __asm__ volatile("rep stosw" : "+D"(rdi), "+c"(rcx) : "a"(0x7722) : "memory");
    CHECK_EQ(rcx, 0);
    CHECK_EQ(rdi, (uint64_t)strings + at + count * 2);
    for (uint64_t i = 0; i < 3 * 4096; i++) {
        bool inside = i >= at && i < at + 2 * count;

        wrong += strings[i] != (inside ? (i - at) & 1 ? 0x77 : 0x22 : 1);
    }
    CHECK_EQ(wrong, 0);
}

static void test_strings(void)
{
    strings = page_alloc();
    page_alloc();
    page_alloc();
    for (unsigned i = 0; i < ROUNDS / 2; i++) {
        check_fill(i * 31, i * 5);
        check_fill(4096 - i, i);  /* in two pages from i = 3 on */
        check_fill(4096, 2048);   /* a whole one */
        check_fill(0, 6144);      /* all */
        check_strings(i * 8, 4096 + i, i * 9, false);
        check_strings(i, i + 1 + i / 8, 40, false); /* over itself */
        check_strings(5000 + i, 5002, 30, true);
        check_strings(i, 4092 - i, i, false);
        check_strings(0, 4096, 1024, false);
        check_strings(16, 8, 0, false);
    }
}

/* A bit string of 64 words, addressed from its middle; ZF stays. */
#define BITS(op, set)                                                                              \
    do {                                                                                           \
        for (int64_t n = -2048; n < 2048; n += 61) {                                               \
            uint64_t *word = bits + 32 + (n >> 6), bit = 1ull << (n & 63), want;                   \
            uint8_t carry, zero, before = *word & bit ? 1 : 0;                                     \
                                                                                                   \
            want = (set) < 0 ? *word ^ bit : (set) > 1 ? *word : (set) ? *word | bit : *word & ~bit; \
            __asm__ volatile("xorl %%eax, %%eax\n" op "\n setc %0\n setz %1"                        \
                             : "=q"(carry), "=q"(zero)                                             \
                             : "D"(bits + 32), "S"(n)                                              \
                             : "rax", "r8", "memory", "cc");                                       \
            CHECK_EQ(carry, before);                                                               \
            CHECK_EQ(zero, 1);                                                                     \
            CHECK_EQ(*word, want);                                                                 \
        }                                                                                          \
    } while (0)

static void test_bits(void)
{
    static uint64_t bits[64];

    for (unsigned i = 0; i < 64; i++)
        bits[i] = i * 0x9e3779b97f4a7c15;
    for (unsigned i = 0; i < 2; i++) {
        BITS("btq %%rsi, (%%rdi)", 2);
        BITS("movq %%rsi, %%r8\n btsq %%r8, (%%rdi)", 1);
        BITS("lock btrq %%rsi, (%%rdi)", 0);
        BITS("btcl %%esi, (%%rdi)", -1);
        BITS("movl %%esi, %%r8d\n lock btcl %%r8d, (%%rdi)", -1);
        BITS("lock btsq %%rsi, (%%rdi)", 1);
        BITS("btrl %%esi, (%%rdi)", 0);
        BITS("btl %%esi, (%%rdi)", 2);
    }
}

int main(void)
{
    test_pushf();
    test_not_allowed();
    test_shadow();
    test_bases();
    test_moves();
    test_smap();
    test_calls();
    test_strings();
    test_bits();
    return 0;
}
