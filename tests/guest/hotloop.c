/*
 * Loops over arrays, which the translator looks up once for many passes (jit/loop.h): interrupted, with their code changed
 * under them, over pages in any order, and with addresses that depend on data. GUEST: cpus=1
 */
#include "chips.h"

#define V_TICK 0x62
#define TICKS  40u
#define WORDS  (256u << 10)
#define PASSES 3000000u

static volatile unsigned ticks;
static struct frame seen[TICKS];
static uint64_t from[WORDS], to[WORDS];

static bool on_tick(struct frame *frame)
{
    if (ticks < TICKS)
        seen[ticks] = *frame;
    ticks++;
    apic_write(APIC_EOI, 0);
    return true;
}

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

/* Where QEMU's emulation is the processor, all ticks may come at once, before the loop. */
static bool bursts(void)
{
    return guest_option("tcg", 0);
}

static void fill(void)
{
    for (unsigned i = 0; i < WORDS; i++) {
        from[i] = i * 0x9e3779b97f4a7c15ull;
        to[i] = 0;
    }
}

/* Copies in registers of which half are not the host's own, and adds up; what an interrupt sees belongs together. */
static void test_interrupted(void)
{
    uint64_t sum, want = 0, low = 0, high = 0;
    unsigned inside = 0;

    fill();
    for (unsigned i = 0; i < WORDS; i++)
        want += from[i];
    start();
    for (unsigned round = 0; round < 4000 && (ticks < TICKS || round < 4); round++) {
        register uint64_t source __asm__("r8") = (uint64_t)from;
        register uint64_t target __asm__("r9") = (uint64_t)to;
        register uint64_t end __asm__("r10") = (uint64_t)(from + WORDS);

        sum = 0;
        __asm__ volatile("leaq 1f(%%rip), %4\n leaq 2f(%%rip), %5\n"
                         "1: movq (%0), %%r11\n addq $8, %0\n addq %%r11, %3\n movq %%r11, (%1)\n"
                         "addq $8, %1\n cmpq %0, %2\n 2: jne 1b\n"
                         : "+r"(source), "+r"(target), "+r"(end), "+a"(sum), "=&r"(low), "=&r"(high)
                         :: "r11", "memory", "cc");
        CHECK_EQ(sum, want);
        CHECK_EQ(target, (uint64_t)(to + WORDS));
    }
    stop();
    CHECK_EQ(memcmp(from, to, sizeof(from)), 0);
    for (unsigned i = 0; i < TICKS && i < ticks; i++) {
        const struct frame *f = &seen[i];
        uint64_t read = (f->r8 - (uint64_t)from) / 8, written = (f->r9 - (uint64_t)to) / 8;

        if (f->rip < low || f->rip > high)
            continue;
        inside++;
        CHECK(read == written || read == written + 1);
        CHECK_EQ(f->r10, (uint64_t)(from + WORDS));
        if (f->rip == low && read > 0) {
            CHECK_EQ(f->r11, from[read - 1]);
            CHECK_EQ(f->rflags & 0x40, 0); /* ZF: the jump was taken */
        }
    }
    print("%u interrupts inside\n", inside);
    CHECK(inside > TICKS / 4 || bursts());
}

static uint8_t *immediate; /* of the loop's ADD */
static volatile uint64_t left; /* passes, when it was changed */

static bool on_tick_patch(struct frame *frame)
{
    if (ticks++ == 3) {
        *immediate = 3;
        left = frame->rcx;
    }
    apic_write(APIC_EOI, 0);
    return true;
}

/* The interrupt's handler changes what the loop adds: from the next addition on. */
static void test_patched(void)
{
    uint64_t sum = 0, rcx = PASSES, want;

    trap_set_handler(V_TICK, on_tick_patch);
    start();
    __asm__ volatile("leaq 1f+3(%%rip), %%rdx\n movq %%rdx, %2\n"
                     "1: addq $1, %0\n" /* 48 83 c0 01 */
                     "movq (%3), %%rdx\n"
                     "decq %1\n jnz 1b\n"
                     : "+a"(sum), "+c"(rcx), "=m"(immediate)
                     : "S"(from)
                     : "rdx", "memory", "cc");
    stop();
    trap_set_handler(V_TICK, on_tick);
    print("changed with %u passes left\n", (unsigned)left);
    if (left == 0 && bursts())
        return;
    CHECK(left > 0 && left < PASSES);
    want = (PASSES - left) + left * 3;
    CHECK(sum == want || sum == want - 2); /* that pass had added already */
}

/* Pages in an order of their own, words by an index that is read: each address depends on data. */
static void test_wild(void)
{
    uint64_t sum = 0, want = 0, index = 0;

    for (unsigned i = 0; i < WORDS; i++)
        from[i] = (i * 40503u + 12345u) % WORDS;
    for (unsigned i = 0, k = 0; i < 100000; i++) {
        want = want * 3 + from[k];
        k = (unsigned)from[k];
        to[k] = 0;
    }
    for (unsigned round = 0; round < 3; round++) {
        sum = index = 0;
        for (unsigned i = 0; i < WORDS; i++)
            to[i] = 0;
        __asm__ volatile("movl $100000, %%ecx\n"
                         "1: movq (%2,%1,8), %1\n leaq (%0,%0,2), %0\n addq %1, %0\n"
                         "incq (%3,%1,8)\n subq $1, %%rcx\n jnz 1b\n"
                         : "+a"(sum), "+d"(index)
                         : "S"(from), "D"(to)
                         : "rcx", "memory", "cc");
        CHECK_EQ(sum, want);
        sum = 0;
        for (unsigned i = 0; i < WORDS; i++)
            sum += to[i];
        CHECK_EQ(sum, 100000);
    }
}

/* A store that catches up with what the loop reads, byte by byte; and a range that goes down. */
static void test_overlap(void)
{
    uint8_t *bytes = (uint8_t *)to;
    uint64_t count = sizeof(to) - 16, good = 0;

    for (unsigned i = 0; i < 16; i++)
        bytes[i] = (uint8_t)(i * 11 + 1);
    __asm__ volatile("1: movb (%0), %%al\n movb %%al, 16(%0)\n incq %0\n decq %1\n jnz 1b\n"
                     : "+S"(bytes), "+c"(count)::"rax", "memory", "cc");
    bytes = (uint8_t *)to;
    for (unsigned i = 0; i < sizeof(to); i++)
        good += bytes[i] == (uint8_t)((i % 16) * 11 + 1);
    CHECK_EQ(good, sizeof(to));
    bytes += sizeof(to);
    count = sizeof(to);
    good = 0;
    __asm__ volatile("1: movzbl -1(%0), %%edx\n addq %%rdx, %2\n decq %0\n subq $1, %1\n jnz 1b\n"
                     : "+S"(bytes), "+c"(count), "+a"(good)::"rdx", "memory", "cc");
    CHECK_EQ(good, sizeof(to) / 16 * (16 * 1 + 11 * 120));
    CHECK_EQ((uint64_t)bytes, (uint64_t)to);
}

int main(void)
{
    trap_set_handler(V_TICK, on_tick);
    pic_init(0x40, 0xff, 0xff);
    apic_write(APIC_SVR, 0x1ff);
    apic_write(APIC_TPR, 0);
    test_interrupted();
    test_patched();
    test_wild();
    test_overlap();
    return 0;
}
