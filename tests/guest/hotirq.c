/*
 * Interrupts in loops that touch no memory, with flags live from one instruction to the next: each must be let in,
 * and what it saves must be a state that the loop has between two instructions. The same for repeated string
 * instructions. GUEST: cpus=1
 */
#include "chips.h"

#define V_TICK 0x62
#define ARITH  0x8d5ull
#define CF     0x1ull
#define ZF     0x40ull
#define TICKS  60u

static volatile unsigned ticks;
static struct frame seen[TICKS];

static bool on_tick(struct frame *frame)
{
    if (ticks < TICKS)
        seen[ticks] = *frame;
    ticks++;
    apic_write(APIC_EOI, 0);
    return true;
}

/* Arms the timer: periodic, some 100 microseconds by the host's clock. */
static void start(void)
{
    ticks = 0;
    apic_write(APIC_TDCR, 0xb); /* undivided */
    apic_write(APIC_TIMER, 0x20000 | V_TICK);
    apic_write(APIC_TMICT, 170000);
    irq_on();
}

static void stop(void)
{
    irq_off();
    apic_write(APIC_TIMER, 0x10000 | V_TICK);
    apic_write(APIC_TMICT, 0);
    irq_on();
    __asm__ volatile("nop");
    irq_off();
}

/* The flags that ADD of `value` to a register gave, whose result is `sum`. */
static uint64_t flags_of_add(uint64_t sum, uint64_t value)
{
    uint64_t flags, before = sum - value;

    __asm__ volatile("addq %2, %1\n pushfq\n popq %0" : "=r"(flags), "+r"(before) : "r"(value) : "cc");
    return flags & ARITH;
}

/* high:low % divisor, for a quotient that fits. */
static uint64_t remainder_of(uint64_t high, uint64_t low, uint64_t divisor)
{
    __asm__("divq %2" : "+a"(low), "+d"(high) : "r"(divisor) : "cc");
    return high;
}

/*
 *   1: add rax, rbx      flags of rax
 *   2: adc rdx, 0        of rdx, with the carries of RAX so far
 *   3: dec rcx           its own, CF of adc
 *   4: jnz 1
 */
static void test_carry_loop(void)
{
    uint64_t place[5], rax = 0, rbx = 0x9e3779b97f4a7c15ull, rdx = 0, rcx = 0;
    unsigned each[4] = {0};

    start();
    while (ticks < TICKS) {
        rcx = 1000000;
        __asm__ volatile("leaq 1f(%%rip), %%r8\n movq %%r8, (%4)\n"
                         "leaq 2f(%%rip), %%r8\n movq %%r8, 8(%4)\n"
                         "leaq 3f(%%rip), %%r8\n movq %%r8, 16(%4)\n"
                         "leaq 4f(%%rip), %%r8\n movq %%r8, 24(%4)\n"
                         "1: addq %%rbx, %%rax\n 2: adcq $0, %%rdx\n 3: decq %%rcx\n 4: jnz 1b\n"
                         : "+a"(rax), "+d"(rdx), "+c"(rcx)
                         : "b"(rbx), "r"(place)
                         : "r8", "memory", "cc");
    }
    stop();
    for (unsigned i = 0; i < TICKS; i++) {
        const struct frame *f = &seen[i];

        for (unsigned k = 0; k < 4; k++)
            each[k] += f->rip == place[k];
        if (f->rip < place[0] || f->rip > place[3])
            continue; /* on the way in or out */
        CHECK(f->rip == place[0] || f->rip == place[1] || f->rip == place[2] || f->rip == place[3]);
        CHECK_EQ(f->rbx, rbx);
        CHECK_EQ(f->rcx != 0 || f->rip == place[3], 1);
        if (f->rip == place[1])
            CHECK_EQ(f->rflags & ARITH, flags_of_add(f->rax, rbx));
        if (f->rip == place[2])
            CHECK_EQ(f->rflags & ZF, f->rdx == 0 ? ZF : 0);
        if (f->rip == place[3])
            CHECK_EQ(f->rflags & ZF, f->rcx == 0 ? ZF : 0);
        if (f->rip == place[0])
            CHECK_EQ(f->rflags & ZF, 0); /* the jump was taken */
        /* RDX:RAX counts in whole additions of RBX, but for a carry under way. */
        CHECK_EQ(remainder_of(f->rdx + (f->rip == place[1] && f->rflags & CF), f->rax, rbx), 0);
    }
    CHECK_EQ(remainder_of(rdx, rax, rbx), 0);
    CHECK(each[0] + each[1] + each[2] + each[3] > TICKS / 2);
}

static bool on_self(struct frame *frame)
{
    on_tick(frame);
    if (ticks == 20)
        frame->rflags &= ~0x800ull; /* OF: the loop ends */
    return true;
}

/* One instruction that jumps to itself. */
static void test_self_jump(void)
{
    uint64_t rip;

    trap_set_handler(V_TICK, on_self);
    start();
    irq_off();
    ticks = 0;
    __asm__ volatile("leaq 1f(%%rip), %0\n movl $0x7fffffff, %%eax\n addl $1, %%eax\n sti\n"
                     "1: jo 1b\n cli\n"
                     : "=&r"(rip)::"rax", "cc", "memory");
    CHECK(ticks >= 20); /* one more may come between the handler's return and the jump */
    for (unsigned i = 0; i < 20; i++) {
        CHECK_EQ(seen[i].rip, rip);
        CHECK_EQ(seen[i].rflags & ARITH, 0x894); /* OF, SF, AF, PF */
        CHECK_EQ(seen[i].rax, 0x80000000u);
    }
    stop();
    trap_set_handler(V_TICK, on_tick);
}

/* LOOP and JRCXZ look at no flag and change none. */
static void test_flags_kept(void)
{
    uint64_t low = 0, high = 0;
    unsigned inside = 0;

    start();
    while (ticks < TICKS / 2) {
        uint64_t flags;

        __asm__ volatile("leaq 1f(%%rip), %0\n leaq 2f(%%rip), %1\n movl $3000000, %%ecx\n"
                         "movl $0x80, %%eax\n addb %%al, %%al\n" /* OF, CF, ZF, PF */
                         "1: leaq 1(%%rdx), %%rdx\n movq %%rdx, %%r9\n xchgq %%r9, %%r10\n loop 1b\n"
                         "2: pushfq\n popq %2\n"
                         : "=&r"(low), "=&r"(high), "=&r"(flags)::"rax", "rcx", "rdx", "r9", "r10", "cc");
        CHECK_EQ(flags & ARITH, 0x845);
    }
    stop();
    for (unsigned i = 0; i < TICKS / 2; i++) {
        if (seen[i].rip < low || seen[i].rip > high)
            continue;
        inside++;
        CHECK_EQ(seen[i].rflags & ARITH, 0x845);
    }
    CHECK(inside > TICKS / 8);
}

/* REP MOVSB and REPE CMPSB of some pages, interrupted: RCX, RSI and RDI go together, RIP is the instruction. */
static void test_strings(void)
{
    static uint8_t from[1 << 20], to[1 << 20];
    uint64_t rip = 0;
    unsigned inside = 0;

    for (unsigned i = 0; i < sizeof(from); i++)
        from[i] = (uint8_t)(i * 7 + (i >> 8));
    start();
    for (unsigned round = 0; round < 4000 && (ticks < TICKS || inside == 0); round++) {
        uint64_t si = (uint64_t)from, di = (uint64_t)to, cx = sizeof(from);
        unsigned before = ticks;

        __asm__ volatile("leaq 1f(%%rip), %0\n 1: rep movsb\n"
                         : "=&r"(rip), "+S"(si), "+D"(di), "+c"(cx)::"memory");
        CHECK_EQ(cx, 0);
        CHECK_EQ(si, (uint64_t)from + sizeof(from));
        for (unsigned i = before; i < ticks && i < TICKS; i++)
            inside += seen[i].rip == rip && seen[i].rcx != sizeof(from);
    }
    stop();
    CHECK_EQ(memcmp(from, to, sizeof(from)), 0);
    for (unsigned i = 0; i < TICKS && i < ticks; i++) {
        if (seen[i].rip != rip)
            continue;
        CHECK_EQ(seen[i].rsi - (uint64_t)from, seen[i].rdi - (uint64_t)to);
        CHECK_EQ(seen[i].rsi - (uint64_t)from + seen[i].rcx, sizeof(from));
    }
    print("%u string instructions interrupted half-way\n", inside);
}

int main(void)
{
    trap_set_handler(V_TICK, on_tick);
    pic_init(0x40, 0xff, 0xff);
    apic_write(APIC_SVR, 0x1ff);
    apic_write(APIC_TPR, 0);
    test_carry_loop();
    test_self_jump();
    test_flags_kept();
    test_strings();
    return 0;
}
