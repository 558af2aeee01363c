#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "chip/i8259.h"
#include "chip/ioapic.h"
#include "chip/lapic.h"
#include "fake_time.h"
#include "x86/arch.h"

#define CPUS 20u
#define TSC_KHZ 2000000u

struct fixture {
    struct machine *machine;
    struct lapic_group *group;
    struct ioapic *ioapic;
    struct i8259 *pic;
    struct vm vm;
    struct vcpu vcpu[CPUS];
    unsigned posted[CPUS][5];
    uint8_t sipi[CPUS];
};

static void fake_post(struct vcpu *vcpu, enum vcpu_event event, uint8_t vector)
{
    struct fixture *f = container_of(vcpu->vm, struct fixture, vm);

    f->posted[vcpu->index][event]++;
    if (event == VCPU_EVENT_SIPI)
        f->sipi[vcpu->index] = vector;
}

static uint64_t fake_tsc(struct vcpu *vcpu)
{
    (void)vcpu;
    return fake_time.now * 2 + 5000;
}

static const struct engine_ops fake_engine = {.name = "fake", .vcpu_post = fake_post, .tsc = fake_tsc};

static struct cpu_model model = {.phys_bits = 40};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->vm = (struct vm){.ops = &fake_engine, .model = &model, .cpus = CPUS};
    assert_int_equal(machine_create(&f->machine), 0);
    assert_int_equal(lapic_group_create(f->machine, CPUS, TSC_KHZ, &f->group), 0);
    assert_int_equal(ioapic_create(f->machine, f->group, &f->ioapic), 0);
    assert_int_equal(i8259_create(f->machine, f->group, &f->pic), 0);
    for (unsigned i = 0; i < CPUS; i++) {
        f->vcpu[i] = (struct vcpu){.vm = &f->vm, .index = i};
        lapic_group_attach(f->group, i, &f->vcpu[i]);
        lapic_ops.mmio_write(lapic_group_apic(f->group, i), 0xf0, 4, 0x1ff);
    }
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    machine_destroy(f->machine);
    free(f);
    return 0;
}

static void *apic(struct fixture *f, unsigned i)
{
    return lapic_group_apic(f->group, i);
}

static void wr(struct fixture *f, unsigned i, uint32_t offset, uint32_t value)
{
    lapic_ops.mmio_write(apic(f, i), offset, 4, value);
}

static uint32_t rd(struct fixture *f, unsigned i, uint32_t offset)
{
    return (uint32_t)lapic_ops.mmio_read(apic(f, i), offset, 4);
}

static int take(struct fixture *f, unsigned i)
{
    return lapic_ops.has_interrupt(apic(f, i)) ? lapic_ops.accept_interrupt(apic(f, i)) : -1;
}

static void eoi(struct fixture *f, unsigned i)
{
    wr(f, i, 0xb0, 0);
}

static void msi(struct fixture *f, unsigned dest, uint32_t data)
{
    lapic_group_msi(f->group, 0xfee00000u | dest << 12, data);
}

static void to_x2apic(struct fixture *f, unsigned i)
{
    uint64_t base = lapic_ops.base(apic(f, i));

    assert_int_equal(lapic_ops.msr_write(apic(f, i), MSR_IA32_APIC_BASE, base | APIC_BASE_X2APIC), 0);
}

static void test_priorities(void **state)
{
    struct fixture *f = *state;

    msi(f, 0, 0x41);
    assert_int_equal(take(f, 0), 0x41);
    msi(f, 0, 0x45); /* same class: waits */
    assert_int_equal(take(f, 0), -1);
    msi(f, 0, 0x61); /* a higher class nests */
    assert_int_equal(take(f, 0), 0x61);
    assert_int_equal(rd(f, 0, 0xa0), 0x60);
    eoi(f, 0);
    assert_int_equal(take(f, 0), -1);
    eoi(f, 0);
    assert_int_equal(take(f, 0), 0x45);
    eoi(f, 0);
    assert_int_equal(rd(f, 0, 0x100 + 0x20), 0); /* ISR empty */
}

static void test_tpr_holds_back(void **state)
{
    struct fixture *f = *state;

    wr(f, 0, 0x80, 0x50);
    assert_int_equal(lapic_ops.cr8_read(apic(f, 0)), 5);
    msi(f, 0, 0x5f);
    assert_int_equal(take(f, 0), -1);
    assert_int_equal(rd(f, 0, 0x220) >> 31, 1); /* IRR bit 5fh */
    f->posted[0][VCPU_EVENT_INTERRUPT] = 0;
    lapic_ops.cr8_write(apic(f, 0), 4);
    assert_int_equal(f->posted[0][VCPU_EVENT_INTERRUPT], 1); /* told to look again */
    assert_int_equal(take(f, 0), 0x5f);
}

static void test_illegal_vectors(void **state)
{
    struct fixture *f = *state;

    wr(f, 0, 0x370, 0xfe); /* LVT error */
    msi(f, 0, 0x0f);
    assert_int_equal(take(f, 0), 0xfe);
    eoi(f, 0);
    assert_int_equal(rd(f, 0, 0x280), 0); /* ESR shows errors once written */
    wr(f, 0, 0x280, 0);
    assert_int_equal(rd(f, 0, 0x280), 0x40);
    wr(f, 0, 0x310, 1u << 24);
    wr(f, 0, 0x300, 0x4003);
    wr(f, 0, 0x280, 0);
    assert_int_equal(rd(f, 0, 0x280), 0x20);
    assert_int_equal(take(f, 1), -1);
    rd(f, 0, 0x3f0);
    wr(f, 0, 0x280, 0);
    assert_int_equal(rd(f, 0, 0x280), 0x80);
}

static void test_shorthands(void **state)
{
    struct fixture *f = *state;

    wr(f, 3, 0x300, 0x40000 | 0x31); /* self */
    assert_int_equal(take(f, 3), 0x31);
    assert_int_equal(take(f, 2), -1);
    wr(f, 3, 0x300, 0xc0000 | 0x51); /* all but self */
    assert_int_equal(take(f, 3), -1);
    assert_int_equal(take(f, 0), 0x51);
    assert_int_equal(take(f, 19), 0x51);
    wr(f, 3, 0x300, 0x80000 | 0x61); /* all */
    assert_int_equal(take(f, 3), 0x61);
    assert_int_equal(take(f, 0), 0x61);
}

static void test_startup(void **state)
{
    struct fixture *f = *state;

    wr(f, 0, 0x310, 5u << 24);
    wr(f, 0, 0x300, 0xc500); /* INIT, level, assert */
    assert_int_equal(f->posted[5][VCPU_EVENT_INIT], 1);
    wr(f, 0, 0x300, 0x8500); /* de-assert */
    assert_int_equal(f->posted[5][VCPU_EVENT_INIT], 1);
    wr(f, 0, 0x300, 0x4699); /* start-up */
    assert_int_equal(f->posted[5][VCPU_EVENT_SIPI], 1);
    assert_int_equal(f->sipi[5], 0x99);
    wr(f, 0, 0x300, 0xc4400); /* NMI to the others */
    assert_int_equal(f->posted[0][VCPU_EVENT_NMI], 0);
    assert_int_equal(f->posted[7][VCPU_EVENT_NMI], 1);
}

static void test_logical_flat_and_cluster(void **state)
{
    struct fixture *f = *state;

    wr(f, 1, 0xd0, 0x02000000);
    wr(f, 2, 0xd0, 0x04000000);
    lapic_group_msi(f->group, 0xfee06004, 0x71); /* logical 06h */
    assert_int_equal(take(f, 1), 0x71);
    assert_int_equal(take(f, 2), 0x71);
    assert_int_equal(take(f, 0), -1);
    for (unsigned i = 0; i < 3; i++)
        wr(f, i, 0xe0, 0x0fffffff); /* cluster model */
    wr(f, 1, 0xd0, 0x12000000); /* cluster 1, member 2 */
    wr(f, 2, 0xd0, 0x22000000);
    lapic_group_msi(f->group, 0xfee12004, 0x81);
    assert_int_equal(take(f, 1), 0x81);
    assert_int_equal(take(f, 2), -1);
    lapic_group_msi(f->group, 0xfeef2004, 0x91); /* all clusters */
    assert_int_equal(take(f, 1), 0x91);
    assert_int_equal(take(f, 2), 0x91);
}

static void test_lowest_priority(void **state)
{
    struct fixture *f = *state;
    unsigned got = 0;

    wr(f, 1, 0xd0, 0x02000000);
    wr(f, 2, 0xd0, 0x04000000);
    wr(f, 1, 0x80, 0x30);
    lapic_group_msi(f->group, 0xfee06004, 0x171);
    assert_int_equal(take(f, 1), -1);
    assert_int_equal(take(f, 2), 0x71);
    wr(f, 2, 0x80, 0x40);
    lapic_group_msi(f->group, 0xfee06004, 0x181);
    assert_int_equal(take(f, 1), 0x81);
    lapic_group_msi(f->group, 0xfeeff000, 0x1a1); /* physical broadcast: still only one */
    for (unsigned i = 0; i < CPUS; i++)
        got += take(f, i) == 0xa1;
    assert_int_equal(got, 1);
}

static void test_x2apic(void **state)
{
    struct fixture *f = *state;
    uint64_t v;

    assert_int_equal(lapic_ops.msr_read(apic(f, 17), 0x802, &v), -1); /* not in x2APIC mode */
    for (unsigned i = 0; i < CPUS; i++)
        to_x2apic(f, i);
    assert_int_equal(lapic_ops.msr_read(apic(f, 17), 0x802, &v), 0);
    assert_int_equal(v, 17);
    assert_int_equal(lapic_ops.msr_read(apic(f, 17), 0x80d, &v), 0);
    assert_int_equal(v, 0x10002); /* cluster 1, bit 1 */
    assert_int_equal(lapic_ops.msr_read(apic(f, 17), 0x80e, &v), -1); /* no DFR */
    assert_int_equal(lapic_ops.msr_write(apic(f, 0), 0x830, 0x0001000300000841ull), 0);
    assert_int_equal(take(f, 16), 0x41);
    assert_int_equal(take(f, 17), 0x41);
    assert_int_equal(take(f, 18), -1);
    assert_int_equal(take(f, 0), -1);
    assert_int_equal(lapic_ops.msr_write(apic(f, 4), 0x83f, 0x55), 0); /* self IPI */
    assert_int_equal(take(f, 4), 0x55);
    assert_int_equal(lapic_ops.msr_write(apic(f, 4), 0x80b, 1), -1); /* EOI takes zero */
    assert_int_equal(lapic_ops.msr_write(apic(f, 4), 0x80b, 0), 0);
    assert_int_equal(lapic_ops.msr_write(apic(f, 4), 0x808, 0x100), -1);
    assert_int_equal(lapic_ops.msr_write(apic(f, 4), 0x830, 0xffffffff00000066ull), 0);
    assert_int_equal(take(f, 0), 0x66);
    assert_int_equal(take(f, 19), 0x66);
    assert_int_equal(lapic_ops.mmio_read(apic(f, 4), 0x20, 4), 0xffffffff);
}

static void test_base_transitions(void **state)
{
    struct fixture *f = *state;
    uint64_t base = lapic_ops.base(apic(f, 0));

    assert_int_equal(base, 0xfee00900);
    assert_int_equal(lapic_ops.base(apic(f, 1)), 0xfee00800);
    assert_int_equal(lapic_ops.msr_write(apic(f, 0), MSR_IA32_APIC_BASE, base | 1), -1);
    assert_int_equal(lapic_ops.msr_write(apic(f, 0), MSR_IA32_APIC_BASE, base | 1ull << 40), -1);
    assert_int_equal(lapic_ops.msr_write(apic(f, 0), MSR_IA32_APIC_BASE, 0xfee00400), -1);
    to_x2apic(f, 0);
    assert_int_equal(lapic_ops.msr_write(apic(f, 0), MSR_IA32_APIC_BASE, base), -1);
    assert_int_equal(lapic_ops.msr_write(apic(f, 0), MSR_IA32_APIC_BASE, 0xfee00000), 0);
    assert_int_equal(lapic_ops.base(apic(f, 0)), 0xfee00100);
    assert_int_equal(lapic_ops.msr_write(apic(f, 0), MSR_IA32_APIC_BASE, base | 0x400), -1);
    msi(f, 0, 0x41);
    assert_int_equal(take(f, 0), -1); /* disabled: hears nothing */
    assert_int_equal(lapic_ops.msr_write(apic(f, 0), MSR_IA32_APIC_BASE, base), 0);
    assert_int_equal(rd(f, 0, 0xf0), 0xff); /* and comes back as after reset */
}

static void test_software_disable(void **state)
{
    struct fixture *f = *state;

    wr(f, 0, 0x320, 0x30);
    wr(f, 0, 0xf0, 0xff);
    assert_int_equal(rd(f, 0, 0x320), 0x10030);
    wr(f, 0, 0x320, 0x31);
    assert_int_equal(rd(f, 0, 0x320), 0x10031); /* stays masked */
    msi(f, 0, 0x41);
    assert_int_equal(take(f, 0), -1);
    wr(f, 1, 0x310, 0);
    wr(f, 1, 0x300, 0x4400);
    assert_int_equal(f->posted[0][VCPU_EVENT_NMI], 1); /* NMI comes through */
}

static void test_timer_one_shot(void **state)
{
    struct fixture *f = *state;
    uint64_t start = fake_time.now;

    wr(f, 0, 0x320, 0x30);
    wr(f, 0, 0x3e0, 0x3); /* divide by 16 */
    wr(f, 0, 0x380, 1000);
    assert_int_equal(lapic_ops.timer_deadline(apic(f, 0)), start + 16000);
    fake_time_pass(4000);
    assert_int_equal(rd(f, 0, 0x390), 750);
    wr(f, 0, 0x3e0, 0xb); /* divide by 1: the count goes on faster */
    assert_int_equal(lapic_ops.timer_deadline(apic(f, 0)), start + 4000 + 750);
    fake_time_pass(749);
    lapic_ops.timer_poll(apic(f, 0));
    assert_int_equal(take(f, 0), -1);
    fake_time_pass(1);
    lapic_ops.timer_poll(apic(f, 0));
    assert_int_equal(take(f, 0), 0x30);
    assert_int_equal(rd(f, 0, 0x390), 0);
    assert_true(lapic_ops.timer_deadline(apic(f, 0)) == CLOCK_NEVER);
}

static void test_timer_periodic(void **state)
{
    struct fixture *f = *state;
    uint64_t start = fake_time.now;

    wr(f, 0, 0x320, 0x20030);
    wr(f, 0, 0x3e0, 0xb);
    wr(f, 0, 0x380, 1000000);
    for (unsigned i = 1; i <= 3; i++) {
        fake_time_to(start + i * 1000000);
        lapic_ops.timer_poll(apic(f, 0));
        assert_int_equal(take(f, 0), 0x30);
        eoi(f, 0);
    }
    fake_time_to(start + 5500000); /* late: one interrupt, then in step again */
    lapic_ops.timer_poll(apic(f, 0));
    assert_int_equal(take(f, 0), 0x30);
    eoi(f, 0);
    assert_int_equal(take(f, 0), -1);
    assert_int_equal(lapic_ops.timer_deadline(apic(f, 0)), start + 6000000);
    assert_int_equal(rd(f, 0, 0x390), 500000);
    wr(f, 0, 0x320, 0x30030); /* masked: counts silently */
    fake_time_to(start + 6000000);
    lapic_ops.timer_poll(apic(f, 0));
    assert_int_equal(take(f, 0), -1);
    wr(f, 0, 0x380, 0);
    assert_true(lapic_ops.timer_deadline(apic(f, 0)) == CLOCK_NEVER);
}

static void test_timer_tsc_deadline(void **state)
{
    struct fixture *f = *state;
    uint64_t v;

    assert_int_equal(lapic_ops.msr_write(apic(f, 0), MSR_IA32_TSC_DEADLINE, 99), 0);
    assert_int_equal(lapic_ops.msr_read(apic(f, 0), MSR_IA32_TSC_DEADLINE, &v), 0);
    assert_int_equal(v, 0); /* not in that mode: ignored */
    wr(f, 0, 0x320, 0x40030);
    v = fake_tsc(NULL) + 2001;
    assert_int_equal(lapic_ops.msr_write(apic(f, 0), MSR_IA32_TSC_DEADLINE, v), 0);
    assert_int_equal(lapic_ops.timer_deadline(apic(f, 0)), fake_time.now + 1001); /* rounded up */
    fake_time_pass(1000);
    lapic_ops.timer_poll(apic(f, 0));
    assert_int_equal(take(f, 0), -1);
    fake_time_pass(1);
    lapic_ops.timer_poll(apic(f, 0));
    assert_int_equal(take(f, 0), 0x30);
    eoi(f, 0);
    assert_int_equal(lapic_ops.msr_read(apic(f, 0), MSR_IA32_TSC_DEADLINE, &v), 0);
    assert_int_equal(v, 0);
    assert_int_equal(lapic_ops.msr_write(apic(f, 0), MSR_IA32_TSC_DEADLINE, 1), 0);
    assert_int_equal(take(f, 0), 0x30); /* in the past: at once */
    eoi(f, 0);
    assert_int_equal(lapic_ops.msr_write(apic(f, 0), MSR_IA32_TSC_DEADLINE, UINT64_MAX), 0);
    wr(f, 0, 0x320, 0x30); /* leaving the mode disarms */
    assert_true(lapic_ops.timer_deadline(apic(f, 0)) == CLOCK_NEVER);
}

static void io_write(struct fixture *f, unsigned reg, uint32_t value)
{
    bus_write(f->machine->bus, BUS_MEMORY, IOAPIC_BASE, 4, reg);
    bus_write(f->machine->bus, BUS_MEMORY, IOAPIC_BASE + 0x10, 4, value);
}

static uint32_t io_read(struct fixture *f, unsigned reg)
{
    bus_write(f->machine->bus, BUS_MEMORY, IOAPIC_BASE, 4, reg);
    return (uint32_t)bus_read(f->machine->bus, BUS_MEMORY, IOAPIC_BASE + 0x10, 4);
}

static void test_ioapic_edge(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(io_read(f, 1), 0x00170020);
    io_write(f, 0x11 + 2 * 4, 2u << 24);
    io_write(f, 0x10 + 2 * 4, 0x44);
    ioapic_set(f->ioapic, 4, 1);
    ioapic_set(f->ioapic, 4, 1);
    assert_int_equal(take(f, 2), 0x44);
    eoi(f, 2);
    assert_int_equal(take(f, 2), -1); /* one edge, one interrupt */
    ioapic_set(f->ioapic, 4, 0);
    io_write(f, 0x10 + 2 * 4, 0x10044);
    ioapic_set(f->ioapic, 4, 1); /* masked: lost */
    io_write(f, 0x10 + 2 * 4, 0x44);
    assert_int_equal(take(f, 2), -1);
}

static void test_ioapic_level(void **state)
{
    struct fixture *f = *state;

    io_write(f, 0x10 + 2 * 9, 0x8049);
    ioapic_set(f->ioapic, 9, 1);
    assert_int_equal(io_read(f, 0x10 + 2 * 9), 0xc049); /* remote IRR */
    assert_int_equal(take(f, 0), 0x49);
    ioapic_set(f->ioapic, 9, 0);
    ioapic_set(f->ioapic, 9, 1); /* again before the EOI: nothing new yet */
    assert_int_equal(take(f, 0), -1);
    eoi(f, 0);
    assert_int_equal(take(f, 0), 0x49); /* still asserted: delivered again */
    ioapic_set(f->ioapic, 9, 0);
    eoi(f, 0);
    assert_int_equal(take(f, 0), -1);
    assert_int_equal(io_read(f, 0x10 + 2 * 9), 0x8049);
    io_write(f, 0x10 + 2 * 9, 0x18049);
    ioapic_set(f->ioapic, 9, 1);
    assert_int_equal(take(f, 0), -1);
    io_write(f, 0x10 + 2 * 9, 0x8049); /* unmasking a level that is up */
    assert_int_equal(take(f, 0), 0x49);
}

static void test_eoi_suppression(void **state)
{
    struct fixture *f = *state;

    wr(f, 0, 0xf0, 0x11ff);
    io_write(f, 0x10 + 2 * 9, 0x8049);
    ioapic_set(f->ioapic, 9, 1);
    assert_int_equal(take(f, 0), 0x49);
    eoi(f, 0);
    assert_int_equal(io_read(f, 0x10 + 2 * 9), 0xc049);
    assert_int_equal(take(f, 0), -1);
    bus_write(f->machine->bus, BUS_MEMORY, IOAPIC_BASE + 0x40, 4, 0x49); /* directed EOI */
    assert_int_equal(take(f, 0), 0x49);
}

static void out(struct fixture *f, uint16_t port, uint8_t value)
{
    bus_write(f->machine->bus, BUS_PORT, port, 1, value);
}

static uint8_t in(struct fixture *f, uint16_t port)
{
    return (uint8_t)bus_read(f->machine->bus, BUS_PORT, port, 1);
}

static void pic_init(struct fixture *f, uint8_t icw4)
{
    static const uint8_t base[2] = {0x20, 0x28}, wiring[2] = {4, 2};

    for (unsigned i = 0; i < 2; i++) {
        uint16_t port = i ? 0xa0 : 0x20;

        out(f, port, 0x11);
        out(f, port + 1, base[i]);
        out(f, port + 1, wiring[i]);
        out(f, port + 1, icw4);
        out(f, port + 1, 0);
    }
}

static void test_extint(void **state)
{
    struct fixture *f = *state;

    pic_init(f, 1);
    wr(f, 0, 0x350, 0x700); /* virtual wire */
    i8259_set(f->pic, 0, 1);
    assert_int_equal(f->posted[0][VCPU_EVENT_INTERRUPT], 1);
    assert_int_equal(take(f, 1), -1); /* LINT0 of the others is masked */
    wr(f, 0, 0x80, 0xf0);             /* TPR does not stop ExtINT */
    assert_int_equal(take(f, 0), 0x20);
    assert_int_equal(take(f, 0), -1);
    assert_int_equal(rd(f, 0, 0x110), 0); /* not in the APIC's ISR */
    i8259_set(f->pic, 3, 1);              /* lower than what is in service */
    assert_int_equal(take(f, 0), -1);
    out(f, 0x20, 0x20);
    wr(f, 0, 0x350, 0x10700);
    assert_int_equal(take(f, 0), -1);
    wr(f, 0, 0x350, 0x700);
    assert_int_equal(take(f, 0), 0x23);
}

static void test_pic_cascade(void **state)
{
    struct fixture *f = *state;

    pic_init(f, 1);
    i8259_set(f->pic, 12, 1);
    i8259_set(f->pic, 5, 1);
    assert_int_equal(take(f, 0), 0x2c); /* the slave ranks as IRQ 2, above 5 */
    i8259_set(f->pic, 8, 1);
    assert_int_equal(take(f, 0), -1); /* not specially nested: the cascade is in service */
    out(f, 0xa0, 0x20);
    out(f, 0x20, 0x62); /* specific EOI of IRQ 2 */
    assert_int_equal(take(f, 0), 0x28);
    out(f, 0xa0, 0x20);
    out(f, 0x20, 0x20);
    assert_int_equal(take(f, 0), 0x25);
    out(f, 0x20, 0x0b);
    assert_int_equal(in(f, 0x20), 0x20); /* ISR */
}

static void test_pic_modes(void **state)
{
    struct fixture *f = *state;

    pic_init(f, 3); /* automatic EOI */
    i8259_set(f->pic, 1, 1);
    assert_int_equal(take(f, 0), 0x21);
    out(f, 0x20, 0x0b);
    assert_int_equal(in(f, 0x20), 0);
    pic_init(f, 1);
    i8259_set(f->pic, 1, 0);
    out(f, 0x20, 0xc3); /* IRQ 3 lowest, so 4 highest */
    i8259_set(f->pic, 1, 1);
    i8259_set(f->pic, 6, 1);
    assert_int_equal(take(f, 0), 0x26);
    out(f, 0x20, 0xa0); /* rotate on EOI: 7 is highest now */
    assert_int_equal(take(f, 0), 0x21);
    i8259_set(f->pic, 4, 1);
    assert_int_equal(take(f, 0), -1);
    out(f, 0x21, 0x02); /* special mask mode lets lower ones in past a masked one in service */
    out(f, 0x20, 0x68);
    assert_int_equal(take(f, 0), 0x24);
    out(f, 0x20, 0x0c); /* poll */
    assert_int_equal(in(f, 0x20), 0);
}

static void test_pic_level_and_spurious(void **state)
{
    struct fixture *f = *state;

    pic_init(f, 1);
    out(f, 0x4d0, 0xff);
    assert_int_equal(in(f, 0x4d0), 0xf8);
    i8259_set(f->pic, 5, 1);
    assert_int_equal(take(f, 0), 0x25);
    out(f, 0x20, 0x20);
    assert_int_equal(take(f, 0), 0x25); /* level: still there */
    out(f, 0x20, 0x20);
    assert_true(lapic_ops.has_interrupt(apic(f, 0)));
    i8259_set(f->pic, 5, 0);
    assert_int_equal(take(f, 0), -1);
    out(f, 0x21, 0xff);
    out(f, 0xa1, 0xff);
    i8259_set(f->pic, 1, 1);
    assert_int_equal(take(f, 0), -1);
}

/* One section of a device, saved and loaded into a machine of the same kind. */
static void move_state(struct fixture *from, struct fixture *to)
{
    struct device *a = from->machine->devices, *b = to->machine->devices;

    for (; a && b; a = a->next, b = b->next) {
        struct state_buf buf;
        struct error err = {0};
        size_t pos = 0;

        assert_string_equal(a->name, b->name);
        state_buf_init(&buf);
        if (a->ops->saving)
            a->ops->saving(a);
        /* `dev` is the first member of every chip here */
        assert_int_equal(state_save(&buf, a->ops->state, a->name, a), 0);
        assert_int_equal(state_load(buf.data, buf.len, &pos, b->ops->state, b->name, b, &err), 0);
        if (b->ops->loaded)
            assert_int_equal(b->ops->loaded(b), 0);
        state_buf_release(&buf);
    }
}

static void test_state_moves(void **state)
{
    struct fixture *f = *state, *to;
    void *other;

    wr(f, 0, 0x320, 0x20030);
    wr(f, 0, 0x3e0, 0xb);
    wr(f, 0, 0x380, 1000000);
    fake_time_pass(400000);
    wr(f, 0, 0x80, 0x20);
    msi(f, 0, 0x99);
    io_write(f, 0x10 + 2 * 9, 0x8049);
    ioapic_set(f->ioapic, 9, 1);
    assert_int_equal(take(f, 0), 0x99);
    assert_int_equal(setup(&other), 0);
    to = other;
    move_state(f, to);
    fake_time.now += 5000; /* while it moved; the count stood still */
    assert_int_equal(lapic_ops.timer_deadline(apic(to, 0)), fake_time.now - 5000 + 600000);
    assert_int_equal(rd(to, 0, 0x80), 0x20);
    assert_int_equal(take(to, 0), -1);
    eoi(to, 0);
    assert_int_equal(take(to, 0), 0x49);
    assert_int_equal(io_read(to, 0x10 + 2 * 9), 0xc049);
    teardown(&other);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(priorities), TEST(tpr_holds_back), TEST(illegal_vectors), TEST(shorthands),
        TEST(startup), TEST(logical_flat_and_cluster), TEST(lowest_priority), TEST(x2apic),
        TEST(base_transitions), TEST(software_disable), TEST(timer_one_shot),
        TEST(timer_periodic), TEST(timer_tsc_deadline), TEST(ioapic_edge), TEST(ioapic_level),
        TEST(eoi_suppression), TEST(extint), TEST(pic_cascade), TEST(pic_modes),
        TEST(pic_level_and_spurious), TEST(state_moves),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
