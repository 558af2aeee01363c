/*
 * Interrupts of one processor, from every source: 8254 through the 8259s and through the I/O APIC,
 * the APIC's timer in its three modes, IPIs to itself, priorities, NMI, x2APIC. GUEST: cpus=1
 */
#include "chips.h"

#define V_PIC   0x40 /* to 0x4f */
#define V_PIT   0x51
#define V_TIMER 0x62
#define V_LOW   0x71
#define V_HIGH  0x82
#define V_GUARD 0xe3 /* ends waits: a PIT tick that wakes HLT */

static volatile unsigned count[256];
static volatile unsigned order[8], order_len;
static volatile bool x2apic, nest;

static void eoi(void)
{
    if (x2apic)
        wrmsr(MSR_X2APIC + 0xb, 0);
    else
        apic_write(APIC_EOI, 0);
}

static bool on_apic(struct frame *f)
{
    count[f->vector]++;
    if (order_len < 8)
        order[order_len++] = (unsigned)f->vector;
    if (nest && f->vector == V_LOW) { /* let a higher one in while this is in service */
        nest = false;
        apic_write(APIC_ICR, 0x40000 | V_HIGH);
        apic_write(APIC_ICR, 0x40000 | (V_LOW + 1)); /* same class: has to wait */
        irq_on();
        for (unsigned i = 0; i < 1000; i++)
            __asm__ volatile("pause");
        irq_off();
        order[order_len++] = 0xff;
    }
    eoi();
    return true;
}

static bool on_pic(struct frame *f)
{
    count[f->vector]++;
    if (f->vector >= V_PIC + 8)
        outb(0xa0, 0x20);
    outb(0x20, 0x20);
    return true;
}

static bool on_nmi(struct frame *f)
{
    count[f->vector]++;
    return true;
}

static void setup(void)
{
    for (unsigned v = V_PIC; v < V_PIC + 16; v++)
        trap_set_handler(v, on_pic);
    trap_set_handler(V_PIT, on_apic);
    trap_set_handler(V_TIMER, on_apic);
    trap_set_handler(V_LOW, on_apic);
    trap_set_handler(V_LOW + 1, on_apic);
    trap_set_handler(V_HIGH, on_apic);
    trap_set_handler(2, on_nmi);
    for (unsigned pin = 0; pin < 24; pin++)
        ioapic_write(0x10 + 2 * pin, 0x10000);
    pic_init(V_PIC, 0xff, 0xff);
    apic_write(APIC_SVR, 0x1ff);
    apic_write(APIC_TPR, 0);
}

/* The PIT's ticks through the 8259s and LINT0 as ExtINT. */
static void test_pic(void)
{
    apic_write(APIC_LINT0, 0x700);
    outb(0x21, 0xfe);
    pit_program(0, 2, 11932); /* 100 Hz */
    CHECK(irq_wait(&count[V_PIC], 5));
    irq_off();
    outb(0x21, 0xff);
    apic_write(APIC_LINT0, 0x10700);
}

/* And through pin 2 of the I/O APIC, as the MADT says. */
static void test_ioapic(void)
{
    uint32_t start;
    unsigned before;

    ioapic_route(2, V_PIT, 0);
    before = count[V_PIT];
    CHECK(irq_wait(&count[V_PIT], before + 1));
    start = pm_ticks();
    CHECK(irq_wait(&count[V_PIT], before + 21));
    CHECK(pm_since(start) > PM_HZ / 10); /* 20 ticks take 0.2 s, or more on a busy host */
    pit_program(0, 3, 11932);
    before = count[V_PIT];
    CHECK(irq_wait(&count[V_PIT], before + 3));
    pit_program(0, 0, 11932); /* one shot */
    irq_off();
    before = count[V_PIT];
    CHECK(irq_wait(&count[V_PIT], before + 1));
    before = count[V_PIT];
    pm_wait_ms(50);
    CHECK_EQ(count[V_PIT], before);
    irq_off();
    ioapic_write(0x10 + 2 * 2, 0x10000);
}

static void test_self_ipi(void)
{
    order_len = 0;
    apic_write(APIC_TPR, 0x70);
    irq_on();
    apic_write(APIC_ICR, 0x40000 | V_LOW);
    apic_write(APIC_ICR, 0x40000 | V_HIGH);
    for (unsigned i = 0; i < 1000 && order_len < 1; i++)
        __asm__ volatile("pause");
    CHECK_EQ(order_len, 1);
    CHECK_EQ(order[0], V_HIGH); /* the other is held back by TPR */
    CHECK_EQ(apic_read(APIC_IRR + 0x10 * (V_LOW / 32)) >> (V_LOW & 31) & 1, 1);
    CHECK_EQ(read_cr8(), 7);
    write_cr8(0);
    for (unsigned i = 0; i < 1000 && order_len < 2; i++)
        __asm__ volatile("pause");
    CHECK_EQ(order[1], V_LOW);
    irq_off();
}

static void test_nesting(void)
{
    order_len = 0;
    nest = true;
    irq_on();
    apic_write(APIC_ICR, 0x40000 | V_LOW);
    for (unsigned i = 0; i < 100000 && order_len < 4; i++)
        __asm__ volatile("pause");
    irq_off();
    CHECK_EQ(order_len, 4);
    CHECK_EQ(order[0], V_LOW);
    CHECK_EQ(order[1], V_HIGH);
    CHECK_EQ(order[2], 0xff); /* LOW's handler ends before its class mate comes */
    CHECK_EQ(order[3], V_LOW + 1);
    CHECK_EQ(apic_read(APIC_PPR), 0);
}

static void test_timer(void)
{
    uint32_t first, ticks, start;
    unsigned before = count[V_TIMER];

    apic_write(APIC_TDCR, 0xb);
    apic_write(APIC_TIMER, 0x10000 | V_TIMER);
    apic_write(APIC_TMICT, 0xffffffff);
    start = pm_ticks();
    first = apic_read(APIC_TMCCT);
    while (pm_since(start) < PM_HZ / 20)
        __asm__ volatile("pause");
    ticks = first - apic_read(APIC_TMCCT); /* in 50 ms */
    CHECK(ticks > 100000);
    CHECK_EQ(count[V_TIMER], before);
    apic_write(APIC_TIMER, V_TIMER);
    start = pm_ticks();
    apic_write(APIC_TMICT, ticks);
    CHECK(irq_wait(&count[V_TIMER], before + 1));
    CHECK(pm_since(start) > PM_HZ / 50);
    CHECK_EQ(apic_read(APIC_TMCCT), 0);
    before = count[V_TIMER];
    apic_write(APIC_TIMER, 0x20000 | V_TIMER); /* periodic, 5 ms */
    apic_write(APIC_TMICT, ticks / 10);
    CHECK(irq_wait(&count[V_TIMER], before + 10));
    apic_write(APIC_TMICT, 0);
    irq_off();
}

static void test_deadline(void)
{
    uint64_t start, deadline;
    unsigned before = count[V_TIMER];

    if (!(cpuid(1, 0).ecx & 1u << 24)) {
        print("no TSC-deadline timer\n");
        return;
    }
    apic_write(APIC_TIMER, 0x40000 | V_TIMER);
    for (unsigned i = 1; i <= 5; i++) {
        start = rdtsc();
        deadline = start + 10000000;
        wrmsr(MSR_TSC_DEADLINE, deadline);
        CHECK(irq_wait(&count[V_TIMER], before + i));
        CHECK(rdtsc() >= deadline);
        CHECK_EQ(rdmsr(MSR_TSC_DEADLINE), 0);
    }
    before = count[V_TIMER];
    wrmsr(MSR_TSC_DEADLINE, rdtsc() - 1); /* the past: at once */
    CHECK(irq_wait(&count[V_TIMER], before + 1));
    irq_off();
    apic_write(APIC_TIMER, 0x10000);
}

static void test_nmi(void)
{
    unsigned before = count[2];

    irq_off();
    apic_ipi(apic_read(APIC_ID) >> 24, 0x4400);
    for (unsigned i = 0; i < 100000 && count[2] == before; i++)
        __asm__ volatile("pause");
    CHECK_EQ(count[2], before + 1);
}

/* Whether an interrupt that waits comes after the instruction behind STI, not before it. */
static bool shadow_holds(void)
{
    uint64_t after = 0;
    unsigned before = count[V_LOW];

    apic_write(APIC_ICR, 0x40000 | V_LOW);
    for (unsigned i = 0; i < 1000; i++)
        __asm__ volatile("pause");
    CHECK_EQ(count[V_LOW], before);
    __asm__ volatile("sti\n movl %1, %k0\n cli" : "=r"(after) : "m"(count[V_LOW]) : "memory");
    CHECK_EQ(count[V_LOW], before + 1);
    return after == before;
}

/* QEMU's emulated SVM forgets the shadow when an interrupt of the host falls into it: there, once is enough. */
static void test_shadow(void)
{
    unsigned tries = guest_option("tcg", 0) ? 10 : 1;
    bool holds = false;

    while (!holds && tries--)
        holds = shadow_holds();
    CHECK(holds); /* nothing between STI and MOV */
}

static void test_x2apic(void)
{
    unsigned before = count[V_LOW];

    if (!(cpuid(1, 0).ecx & 1u << 21)) {
        print("no x2APIC\n");
        return;
    }
    TRY("rdmsr", ::"c"(MSR_X2APIC + 2) : "rax", "rdx", "memory");
    CHECK_TRAP(13, 0);
    wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 0x400);
    x2apic = true;
    CHECK_EQ(rdmsr(MSR_X2APIC + 2), cpuid(1, 0).ebx >> 24);
    CHECK_EQ(rdmsr(MSR_X2APIC + 0xf), 0x1ff); /* state is kept */
    CHECK_EQ(rdmsr(MSR_X2APIC + 0xd), 1);
    irq_on();
    wrmsr(MSR_X2APIC + 0x3f, V_LOW);
    CHECK(irq_wait(&count[V_LOW], before + 1));
    wrmsr(MSR_X2APIC + 0x30, 0x0000000100000800ull | V_LOW); /* logical */
    CHECK(irq_wait(&count[V_LOW], before + 2));
    irq_off();
    TRY("wrmsr", ::"c"(MSR_X2APIC + 0xb), "a"(1), "d"(0) : "memory");
    if (!guest_option("kvm", 0)) /* KVM's APIC does not look at the value */
        CHECK_TRAP(13, 0);
    TRY("rdmsr", ::"c"(MSR_X2APIC + 0xe) : "rax", "rdx", "memory");
    CHECK_TRAP(13, 0);
    TRY("wrmsr", ::"c"(MSR_APIC_BASE), "a"(0xfee00900), "d"(0) : "memory"); /* x2APIC to xAPIC */
    CHECK_TRAP(13, 0);
}

int main(void)
{
    setup();
    test_pic();
    test_ioapic();
    test_self_ipi();
    test_nesting();
    test_timer();
    test_deadline();
    test_nmi();
    test_shadow();
    test_x2apic();
    return 0;
}
