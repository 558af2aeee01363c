/* The registers through KVM and back, the memory map, kicks. Needs a /dev/kvm that opens, not one that
 * can run a kernel: skipped where there is none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cpu/kvm/kvm.h"
#include "cpu/kvm/vm.h"
#include "x86/arch.h"

struct fixture {
    struct machine *machine;
    struct cpu_model model;
    struct vm *vm;
    struct vcpu *vcpu;
};

static bool kvm_opens(void)
{
    struct error err = {0};
    int fd = kvm_open(&err);

    if (fd < 0) {
        print_message("skipped: %s\n", err.message);
        return false;
    }
    close(fd);
    return true;
}

static void fixture_create(struct fixture *f)
{
    const struct cpu_topology topology = {.cpus = 2};
    struct cpuid_support support;
    struct error err = {0};
    const uint8_t rom[PAGE_SIZE] = {0xf4};

    kvm_engine.cpuid_support(&support);
    assert_int_equal(cpu_model_init(&f->model, "host", &support, &topology, &err), 0);
    assert_int_equal(machine_create(&f->machine), 0);
    assert_int_equal(mem_add_ram(f->machine->mem, 0, 0x100000, &err), 0);
    assert_int_equal(mem_add_rom(f->machine->mem, 0xfffff000, rom, sizeof(rom), &err), 0);
    if (kvm_engine.vm_create(f->machine, &f->model, 2, &f->vm, &err))
        fail_msg("%s", err.message);
    if (kvm_engine.vcpu_create(f->vm, 0, &f->vcpu, &err))
        fail_msg("%s", err.message);
}

static void fixture_destroy(struct fixture *f)
{
    kvm_engine.vcpu_destroy(f->vcpu);
    kvm_engine.vm_destroy(f->vm);
    machine_destroy(f->machine);
}

/* A state that a 64-bit kernel could be in, each field with a value of its own. */
static void fill(struct cpu_state *s)
{
    cpu_state_reset(s, true);
    for (unsigned i = 0; i < GPR_COUNT; i++)
        s->gpr[i] = 0x1111111111111111ull * i + 7;
    s->rip = 0xffffffff81000000;
    s->rflags = 0x246;
    s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    s->cr2 = 0x1234;
    s->cr3 = 0x5000;
    s->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    s->cr8 = 5;
    s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    s->seg[SEG_CS] = (struct cpu_segment){0, 0xffffffff, 0x10, 0xa09b};
    s->seg[SEG_SS] = (struct cpu_segment){0, 0xffffffff, 0x18, 0xc093};
    s->seg[SEG_GS].base = 0xffff888000001000;
    s->seg[SEG_FS].base = 0x7f0012345000;
    s->tr = (struct cpu_segment){0xfffffe0000003000, 0x4087, 0x40, 0x8b};
    s->gdtr = (struct cpu_table){0xfffffe0000001000, 0x7f};
    s->idtr = (struct cpu_table){0xfffffe0000000000, 0xfff};
    s->dr[0] = 0x1000;
    s->dr[3] = 0x4000;
    s->dr7 = 0x402;
    s->msr.lstar = 0xffffffff81800000;
    s->msr.star = 0x0023001000000000;
    s->msr.sfmask = 0x47700;
    s->msr.kernel_gs_base = 0x7fff0000;
    s->msr.sysenter_cs = 0x10;
    s->msr.pat = 0x0407050600070106;
    s->interrupt_shadow = 1;
    s->nmi_blocked = 1;
    s->activity = CPU_HALTED;
    s->xsave[160] = 0x5a; /* XMM0 */
    s->xsave[512] |= 3;   /* XSTATE_BV */
    s->xsave[0] = 0x7f;
    s->xsave[1] = 3;
    s->xsave[24] = 0x80;
    s->xsave[25] = 0x1f;
}

static void assert_same_segment(const struct cpu_segment *a, const struct cpu_segment *b)
{
    assert_int_equal(a->base, b->base);
    assert_int_equal(a->limit, b->limit);
    assert_int_equal(a->selector, b->selector);
    assert_int_equal(a->attr, b->attr);
}

static void assert_same(const struct cpu_state *a, const struct cpu_state *b)
{
    assert_memory_equal(a->gpr, b->gpr, sizeof(a->gpr));
    assert_int_equal(a->rip, b->rip);
    assert_int_equal(a->rflags, b->rflags);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        assert_same_segment(&a->seg[i], &b->seg[i]);
    assert_same_segment(&a->tr, &b->tr);
    assert_int_equal(a->gdtr.base, b->gdtr.base);
    assert_int_equal(a->idtr.limit, b->idtr.limit);
    assert_int_equal(a->cr0, b->cr0);
    assert_int_equal(a->cr2, b->cr2);
    assert_int_equal(a->cr3, b->cr3);
    assert_int_equal(a->cr4, b->cr4);
    assert_int_equal(a->cr8, b->cr8);
    assert_int_equal(a->efer, b->efer);
    assert_memory_equal(a->dr, b->dr, sizeof(a->dr));
    assert_int_equal(a->dr7, b->dr7);
    assert_int_equal(a->msr.apic_base, b->msr.apic_base);
    assert_int_equal(a->msr.lstar, b->msr.lstar);
    assert_int_equal(a->msr.star, b->msr.star);
    assert_int_equal(a->msr.sfmask, b->msr.sfmask);
    assert_int_equal(a->msr.kernel_gs_base, b->msr.kernel_gs_base);
    assert_int_equal(a->msr.sysenter_cs, b->msr.sysenter_cs);
    assert_int_equal(a->msr.pat, b->msr.pat);
    assert_int_equal(a->interrupt_shadow, b->interrupt_shadow);
    assert_int_equal(a->nmi_blocked, b->nmi_blocked);
    assert_int_equal(a->activity, b->activity);
    assert_int_equal(a->xsave[160], b->xsave[160]);
    assert_int_equal(a->xsave[24], b->xsave[24]);
}

static void test_round_trip(void **state)
{
    struct fixture f;
    struct cpu_state set, got;

    (void)state;
    if (!kvm_opens())
        skip();
    fixture_create(&f);
    fill(&set);
    assert_int_equal(kvm_engine.state_set(f.vcpu, &set), 0);
    assert_int_equal(kvm_engine.state_get(f.vcpu, &got), 0);
    assert_same(&set, &got);
    fixture_destroy(&f);
}

static void test_events(void **state)
{
    struct fixture f;
    struct cpu_state set, got;

    (void)state;
    if (!kvm_opens())
        skip();
    fixture_create(&f);
    fill(&set);
    set.event_valid = 1;
    set.event_type = 3;
    set.event_vector = 14;
    set.event_has_error = 1;
    set.event_error = 2;
    assert_int_equal(kvm_engine.state_set(f.vcpu, &set), 0);
    assert_int_equal(kvm_engine.state_get(f.vcpu, &got), 0);
    assert_int_equal(got.event_valid, 1);
    assert_int_equal(got.event_type, 3);
    assert_int_equal(got.event_vector, 14);
    assert_int_equal(got.event_error, 2);
    set.event_valid = 0;
    set.activity = CPU_WAIT_SIPI;
    assert_int_equal(kvm_engine.state_set(f.vcpu, &set), 0);
    assert_int_equal(kvm_engine.state_get(f.vcpu, &got), 0);
    assert_int_equal(got.event_valid, 0);
    assert_int_equal(got.activity, CPU_WAIT_SIPI);
    fixture_destroy(&f);
}

/* From x2APIC mode with registers in use back to power-on, as a reset of the machine does it. */
static void test_reset(void **state)
{
    struct fixture f;
    struct cpu_state set, got;

    (void)state;
    if (!kvm_opens())
        skip();
    fixture_create(&f);
    fill(&set);
    set.msr.apic_base |= APIC_BASE_X2APIC;
    assert_int_equal(kvm_engine.state_set(f.vcpu, &set), 0);
    machine_reset_devices(f.machine);
    cpu_state_reset(&set, true);
    assert_int_equal(kvm_engine.state_set(f.vcpu, &set), 0);
    assert_int_equal(kvm_engine.state_get(f.vcpu, &got), 0);
    assert_int_equal(got.msr.apic_base, APIC_DEFAULT_PHYS | APIC_BASE_ENABLE | APIC_BASE_BSP);
    assert_int_equal(got.cr0, set.cr0);
    assert_int_equal(got.efer, 0);
    assert_int_equal(got.msr.lstar, 0);
    assert_int_equal(got.seg[SEG_CS].base, set.seg[SEG_CS].base);
    assert_int_equal(got.activity, CPU_RUNNING);
    fixture_destroy(&f);
}

/* A kick that comes before the run is not lost. */
static void test_early_kick(void **state)
{
    struct fixture f;
    struct cpu_state set;
    struct error err = {0};

    (void)state;
    if (!kvm_opens())
        skip();
    fixture_create(&f);
    fill(&set);
    assert_int_equal(kvm_engine.state_set(f.vcpu, &set), 0);
    for (unsigned i = 0; i < 100; i++) {
        kvm_engine.vcpu_kick(f.vcpu);
        assert_int_equal(kvm_engine.vcpu_run(f.vcpu, &err), VCPU_EXIT_KICKED);
    }
    fixture_destroy(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_reset),
        cmocka_unit_test(test_early_kick),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
