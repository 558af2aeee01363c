/*
 * Several processors: start-up by INIT and SIPI, IPIs and NMIs, waking from HLT, atomics, memory order, TLB
 * shoot-down, code changed by another processor, start-up again. GUEST: cpus=4 append=cpus=4 timeout=120
 */
#include "chips.h"

#define CPUS_MAX   16
#define V_CALL     0x61 /* handlers run call_function */
#define V_WAKE     0x62
#define ROUNDS     20000
#define TRAMPOLINE 0x8000

static unsigned cpus;
static uint8_t ap_stacks[CPUS_MAX][16384] __attribute__((aligned(16), used));
static volatile unsigned ap_started, ap_index[CPUS_MAX], calls[CPUS_MAX], wakes[CPUS_MAX], nmis[CPUS_MAX];
static volatile unsigned job, job_done;
static void (*volatile job_function)(unsigned cpu);
static void (*volatile call_function)(unsigned cpu);
static struct { uint16_t limit; uint64_t base; } __attribute__((packed)) idtr, gdtr;

extern uint8_t trampoline[], trampoline_end[], trampoline_cr3[], trampoline_gdtr[];
void ap_main(void);
void ap_entry(void);

/* Real mode at 8000h, protected mode, long mode, ap_entry. Addresses are those of the copy at TRAMPOLINE. */
__asm__(".pushsection .data\n"
        ".global trampoline, trampoline_end, trampoline_cr3, trampoline_gdtr\n"
        ".code16\n"
        "trampoline: cli\n xorw %ax, %ax\n movw %ax, %ds\n"
        "lgdtl 0x8000 + trampoline_gdtr - trampoline\n"
        "movl %cr0, %eax\n orl $1, %eax\n movl %eax, %cr0\n"
        "ljmpl $0x18, $(0x8000 + 1f - trampoline)\n"
        ".code32\n"
        "1: movw $0x10, %ax\n movw %ax, %ds\n movw %ax, %es\n movw %ax, %ss\n"
        "movl 0x8000 + trampoline_cr3 - trampoline, %eax\n movl %eax, %cr3\n"
        "movl $0x620, %eax\n movl %eax, %cr4\n"
        "movl $0xc0000080, %ecx\n rdmsr\n orl $0x901, %eax\n wrmsr\n"
        "movl $0x80010033, %eax\n movl %eax, %cr0\n"
        "ljmp $0x08, $ap_entry\n"
        ".balign 8\n"
        "trampoline_cr3: .quad 0\n"
        "trampoline_gdtr: .word 0\n .long 0\n"
        "trampoline_end:\n"
        ".popsection\n"
        ".pushsection .text\n .code64\n"
        "ap_entry: movl $1, %eax\n lock xaddl %eax, ap_stack_next(%rip)\n"
        "shll $14, %eax\n leaq ap_stacks + 16384(%rip), %rsp\n addq %rax, %rsp\n"
        "call ap_main\n"
        "2: hlt\n jmp 2b\n .popsection\n");

unsigned ap_stack_next __asm__("ap_stack_next") __attribute__((used)) = 1;

static unsigned me(void)
{
    return apic_read(APIC_ID) >> 24;
}

static bool wait_for(volatile unsigned *what, unsigned value)
{
    uint32_t start = pm_ticks();

    while (*what < value) {
        if (pm_since(start) > 4 * PM_HZ)
            return false;
        __asm__ volatile("pause");
    }
    return true;
}

static bool on_call(struct frame *f)
{
    unsigned cpu = me();

    (void)f;
    if (call_function)
        call_function(cpu);
    __atomic_fetch_add(&calls[cpu], 1, __ATOMIC_SEQ_CST);
    apic_write(APIC_EOI, 0);
    return true;
}

static bool on_wake(struct frame *f)
{
    (void)f;
    wakes[me()]++;
    apic_write(APIC_EOI, 0);
    return true;
}

static bool on_nmi(struct frame *f)
{
    (void)f;
    nmis[me()]++;
    return true;
}

/* An AP runs each job once, halted or spinning in between. */
void ap_main(void)
{
    unsigned cpu = me(), seen = __atomic_load_n(&job, __ATOMIC_SEQ_CST);

    __asm__ volatile("lidt %0\n lgdt %1" ::"m"(idtr), "m"(gdtr));
    apic_write(APIC_SVR, 0x1ff);
    ap_index[cpu] = 1;
    __atomic_fetch_add(&ap_started, 1, __ATOMIC_SEQ_CST);
    irq_on();
    for (;;) {
        while (job == seen)
            __asm__ volatile("pause");
        seen = job;
        job_function(cpu);
        __atomic_fetch_add(&job_done, 1, __ATOMIC_SEQ_CST);
    }
}

static void start(unsigned dest)
{
    apic_ipi(dest, 0xc500);
    pm_wait_ms(1);
    apic_ipi(dest, 0x8500);
    pm_wait_ms(10);
    apic_ipi(dest, 0x4600 | TRAMPOLINE >> 12);
    pm_wait_ms(1);
    apic_ipi(dest, 0x4600 | TRAMPOLINE >> 12); /* the second is ignored by one that runs */
}

static void start_all(void)
{
    __asm__ volatile("sidt %0\n sgdt %1" : "=m"(idtr), "=m"(gdtr));
    *(uint64_t *)trampoline_cr3 = read_cr3();
    *(uint16_t *)trampoline_gdtr = gdtr.limit;
    *(uint32_t *)(trampoline_gdtr + 2) = (uint32_t)gdtr.base;
    memcpy((void *)TRAMPOLINE, trampoline, (size_t)(trampoline_end - trampoline));
    for (unsigned i = 1; i < cpus; i++)
        start(i);
    CHECK(wait_for(&ap_started, cpus - 1));
    for (unsigned i = 1; i < cpus; i++)
        CHECK_EQ(ap_index[i], 1);
}

/* Runs `function` on every CPU at once. */
static void everywhere(void (*function)(unsigned cpu))
{
    job_done = 0;
    job_function = function;
    __atomic_fetch_add(&job, 1, __ATOMIC_SEQ_CST);
    function(0);
    CHECK(wait_for(&job_done, cpus - 1));
}

static void test_ipis(void)
{
    for (unsigned i = 1; i < cpus; i++) {
        unsigned before = calls[i], nmi = nmis[i];

        apic_ipi(i, 0x4000 | V_CALL);
        CHECK(wait_for(&calls[i], before + 1));
        apic_ipi(i, 0x4400);
        CHECK(wait_for(&nmis[i], nmi + 1));
        CHECK_EQ(nmis[i], nmi + 1);
    }
    CHECK_EQ(nmis[0], 0);
}

static void nap(unsigned cpu)
{
    unsigned before = wakes[cpu];

    while (cpu && wakes[cpu] == before) {
        irq_off();
        if (wakes[cpu] == before)
            __asm__ volatile("sti\n hlt" ::: "memory");
        irq_on();
    }
    if (!cpu)
        pm_wait_ms(20); /* the others are asleep by now */
    if (!cpu)
        apic_write(APIC_ICR, 0xc4000 | V_WAKE);
}

static volatile uint64_t counter, locked_counter;
static volatile unsigned lock;
static unsigned __int128 wide __attribute__((aligned(16)));

static void spin_lock(void)
{
    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) {
        while (lock)
            __asm__ volatile("pause");
    }
}

static void add_wide(void)
{
    uint64_t low = (uint64_t)wide, high = (uint64_t)(wide >> 64);
    bool done;

    do {
        __asm__ volatile("lock cmpxchg16b %1"
                         : "=@ccz"(done), "+m"(wide), "+a"(low), "+d"(high)
                         : "b"(low + 1), "c"(high + 2)
                         : "memory");
    } while (!done);
}

static void atomics(unsigned cpu)
{
    (void)cpu;
    for (unsigned i = 0; i < ROUNDS; i++) {
        __asm__ volatile("lock incq %0" : "+m"(counter)::"memory");
        if (i % 8 == 0) {
            spin_lock();
            locked_counter++;
            __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
            add_wide();
        }
    }
}

static void test_atomics(void)
{
    everywhere(atomics);
    CHECK_EQ(counter, (uint64_t)ROUNDS * cpus);
    CHECK_EQ(locked_counter, (uint64_t)ROUNDS / 8 * cpus);
    CHECK_EQ((uint64_t)wide, (uint64_t)ROUNDS / 8 * cpus);
    CHECK_EQ((uint64_t)(wide >> 64), (uint64_t)ROUNDS / 4 * cpus);
}

/* Stores become visible in order: who sees `flag` sees `data` (SDM vol. 3A 8.2.3.2). */
static volatile unsigned data __attribute__((aligned(64))), flag __attribute__((aligned(64))), disorder;

static void message(unsigned cpu)
{
    if (cpu == 0) {
        for (unsigned i = 1; i <= ROUNDS; i++) {
            data = i;
            flag = i;
        }
        return;
    }
    for (unsigned seen = 0; seen < ROUNDS;) {
        unsigned f = flag, d = data;

        if (d < f)
            disorder = 1;
        seen = f;
    }
}

/* A page whose mapping BSP changes under the others. */
#define SHOT 0x40000000000ull /* PML4 entry 8 */
static uint64_t *shot_pte;
static volatile unsigned shot_stop, shot_wrong, shot_round;

static void invalidate(unsigned cpu)
{
    (void)cpu;
    invlpg((void *)SHOT);
}

static void shot_map(void)
{
    uint64_t *pdpt = page_alloc(), *pd = page_alloc(), *pt = page_alloc();

    boot_pml4[8] = (uint64_t)pdpt | PTE_P | PTE_W;
    pdpt[0] = (uint64_t)pd | PTE_P | PTE_W;
    pd[0] = (uint64_t)pt | PTE_P | PTE_W;
    shot_pte = pt;
}

static void shoot(void)
{
    static uint8_t *page[2];

    for (unsigned i = 0; i < 2; i++)
        page[i] = page[i] ? page[i] : page_alloc();
    for (unsigned round = 1; round <= 100; round++) {
        unsigned before[CPUS_MAX];

        *(volatile unsigned *)page[round & 1] = round;
        for (unsigned i = 1; i < cpus; i++)
            before[i] = calls[i];
        *(volatile uint64_t *)shot_pte = (uint64_t)page[round & 1] | PTE_P | PTE_W;
        invlpg((void *)SHOT);
        apic_write(APIC_ICR, 0xc4000 | V_CALL);
        for (unsigned i = 1; i < cpus; i++)
            CHECK(wait_for(&calls[i], before[i] + 1));
        shot_round = round; /* from here on nobody may read the old page */
    }
    shot_stop = 1;
}

static void look(unsigned cpu)
{
    if (cpu == 0) {
        shoot();
        return;
    }
    while (!shot_stop) {
        unsigned round = shot_round, value = *(volatile unsigned *)SHOT;

        if (value < round)
            shot_wrong++;
    }
}

static void test_shootdown(void)
{
    uint8_t *first = page_alloc();

    shot_map();
    *shot_pte = (uint64_t)first | PTE_P | PTE_W;
    call_function = invalidate;
    everywhere(look);
    call_function = NULL;
    CHECK_EQ(shot_wrong, 0);
}

/* mov $imm, %eax; ret: the immediate is changed by one processor while the others call it. */
static uint8_t code[64] __attribute__((aligned(64))) = {0x0f, 0x1f, 0x00, 0xb8, 0, 0, 0, 0, 0xc3};
static volatile unsigned code_round, code_seen[CPUS_MAX], code_wrong;

static void serialise(void)
{
    cpuid(0, 0);
}

static void patch(unsigned cpu)
{
    unsigned (*function)(void) = (unsigned (*)(void))(uintptr_t)code;

    if (cpu) {
        while (code_seen[cpu] < 100) {
            unsigned round = code_round;

            serialise();
            if (function() < round)
                code_wrong++;
            code_seen[cpu] = round;
        }
        return;
    }
    for (unsigned round = 1; round <= 100; round++) {
        *(volatile unsigned *)(code + 4) = round;
        code_round = round;
        serialise();
        CHECK_EQ(function(), round);
        for (unsigned i = 1; i < cpus; i++)
            CHECK(wait_for(&code_seen[i], round));
    }
}

static void test_restart(void)
{
    ap_started = 0;
    ap_stack_next = 1;
    for (unsigned i = 1; i < cpus; i++)
        start(i);
    CHECK(wait_for(&ap_started, cpus - 1));
    test_ipis();
}

int main(void)
{
    cpus = (unsigned)guest_option("cpus", 2);
    pic_init(0x40, 0xff, 0xff);
    apic_write(APIC_SVR, 0x1ff);
    trap_set_handler(V_CALL, on_call);
    trap_set_handler(V_WAKE, on_wake);
    trap_set_handler(2, on_nmi);
    start_all();
    print("started\n");
    test_ipis();
    everywhere(nap);
    test_atomics();
    print("atomics\n");
    everywhere(message);
    CHECK_EQ(disorder, 0);
    test_shootdown();
    print("shoot-down\n");
    if (!guest_option("tcg", 0)) { /* QEMU 7.2's emulation runs stale code here, the writer's own too */
        everywhere(patch);
        CHECK_EQ(code_wrong, 0);
    }
    test_restart();
    return 0;
}
