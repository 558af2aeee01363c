#include "fixture.h"

#include <signal.h>
#include <string.h>

#include "base/compiler.h"
#include "core/machine.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/soft.h"

/* An APIC that kicks its vCPU out when the guest halts: timer_deadline is asked for just then. */
static bool quiet_has_interrupt(void *apic)
{
    (void)apic;
    return false;
}

static int quiet_accept(void *apic)
{
    (void)apic;
    return -1;
}

static uint64_t quiet_base(void *apic)
{
    (void)apic;
    return 0;
}

static uint64_t halted_deadline(void *opaque)
{
    struct vcpu *vcpu = opaque;
    struct soft_vcpu *cpu = container_of(vcpu, struct soft_vcpu, base);

    if (cpu->s.activity == CPU_HALTED)
        soft_engine.vcpu_kick(vcpu);
    return UINT64_MAX;
}

static void quiet_reset(void *apic, bool init)
{
    (void)apic;
    (void)init;
}

static const struct local_apic_ops fixture_apic = {
    .has_interrupt = quiet_has_interrupt,
    .accept_interrupt = quiet_accept,
    .base = quiet_base,
    .timer_deadline = halted_deadline,
    .reset = quiet_reset,
};

/* cmocka puts its own handlers of these signals in place before each test, and the engine installs its own once. */
static void fixture_signals(void)
{
    static const int signals[] = {SIGFPE, SIGILL, SIGSEGV, SIGBUS};
    static struct sigaction installed[ARRAY_SIZE(signals)];

    for (unsigned i = 0; i < ARRAY_SIZE(signals); i++) {
        if (installed[i].sa_sigaction)
            BUG_ON(sigaction(signals[i], &installed[i], NULL) < 0);
        else
            BUG_ON(sigaction(signals[i], NULL, &installed[i]) < 0);
    }
}

void fixture_init(struct fixture *f, unsigned cpus)
{
    struct cpu_topology topology = {.cpus = cpus};
    struct cpuid_support support;
    struct error err = {0};

    memset(f, 0, sizeof(*f));
    f->cpus = cpus;
    soft_engine.cpuid_support(&support);
    BUG_ON(cpu_model_init(&f->model, "host", &support, &topology, &err) < 0);
    BUG_ON(machine_create(&f->machine) < 0);
    BUG_ON(mem_add_ram(f->machine->mem, 0, FIXTURE_RAM, &err) < 0);
    f->ram = f->machine->mem->slots[0].host;
    BUG_ON(soft_engine.vm_create(f->machine, &f->model, cpus, &f->vm, &err) < 0);
    fixture_signals();
    for (unsigned i = 0; i < cpus; i++) {
        BUG_ON(soft_engine.vcpu_create(f->vm, i, &f->vcpu[i], &err) < 0);
        f->vcpu[i]->apic = f->vcpu[i];
        f->vcpu[i]->apic_ops = &fixture_apic;
    }
}

void fixture_release(struct fixture *f)
{
    for (unsigned i = 0; i < f->cpus; i++)
        soft_engine.vcpu_destroy(f->vcpu[i]);
    soft_engine.vm_destroy(f->vm);
    machine_destroy(f->machine);
}

struct soft_vcpu *fixture_cpu(struct fixture *f, unsigned index)
{
    return container_of(f->vcpu[index], struct soft_vcpu, base);
}

struct cpu_state *fixture_state(struct fixture *f, unsigned index)
{
    return &fixture_cpu(f, index)->s;
}

static void flat_segments(struct cpu_state *s, uint32_t code_bits)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i] = (struct cpu_segment){.selector = i == SEG_CS ? 8 : 16, .limit = UINT32_MAX,
                                         .attr = 0x3 | CPU_SEG_S | CPU_SEG_P | CPU_SEG_G |
                                                 CPU_SEG_DB};
    s->seg[SEG_CS].attr = 0xb | CPU_SEG_S | CPU_SEG_P | CPU_SEG_G | code_bits;
}

static void identity_tables(struct fixture *f)
{
    uint64_t *table = (uint64_t *)(f->ram + FIXTURE_TABLES);

    memset(table, 0, 3 * PAGE_SIZE);
    table[0] = (FIXTURE_TABLES + PAGE_SIZE) | PTE_P | PTE_W | PTE_U;
    table[512] = (FIXTURE_TABLES + 2 * PAGE_SIZE) | PTE_P | PTE_W | PTE_U;
    for (uint64_t i = 0; i < FIXTURE_RAM >> 21; i++)
        table[1024 + i] = i << 21 | PTE_P | PTE_W | PTE_U | PTE_PS;
}

void fixture_mode(struct fixture *f, unsigned index, unsigned bits)
{
    struct cpu_state s;

    cpu_state_reset(&s, index == 0);
    s.gpr[GPR_RSP] = FIXTURE_STACK - 0x1000 * index;
    s.rip = FIXTURE_CODE;
    s.xcr0 = XCR0_X87;
    if (bits == 16) {
        s.seg[SEG_CS].selector = FIXTURE_CODE >> 4;
        s.seg[SEG_CS].base = FIXTURE_CODE;
        s.rip = 0;
    } else {
        s.cr0 |= CR0_PE;
        flat_segments(&s, bits == 64 ? CPU_SEG_L : CPU_SEG_DB);
    }
    if (bits == 64) {
        identity_tables(f);
        s.cr0 |= CR0_PG | CR0_WP;
        s.cr3 = FIXTURE_TABLES;
        s.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
        s.efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    }
    s.idtr.limit = bits == 16 ? 0x3ff : 0;
    BUG_ON(soft_engine.state_set(f->vcpu[index], &s) < 0);
}

void fixture_load(struct fixture *f, gpa_t gpa, const void *bytes, size_t len)
{
    BUG_ON(mem_write(f->machine->mem, gpa, bytes, len) < 0);
}

bool fixture_run(struct fixture *f, unsigned index)
{
    struct error err = {0};

    fixture_state(f, index)->activity = CPU_RUNNING;
    return soft_engine.vcpu_run(f->vcpu[index], &err) == VCPU_EXIT_KICKED;
}

bool fixture_execute(struct fixture *f, const void *bytes, size_t len)
{
    fixture_load(f, FIXTURE_CODE, bytes, len);
    fixture_state(f, 0)->rip = fixture_cpu(f, 0)->mode & SOFT_MODE_PE ? FIXTURE_CODE : 0;
    return fixture_run(f, 0);
}
