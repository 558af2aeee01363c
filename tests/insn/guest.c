#include <stdlib.h>
#include <string.h>

#include "base/compiler.h"
#include "core/machine.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/soft.h"
#include "tests/insn/diff.h"

/* Supervisor memory: physical below 2 MiB, linear from GUEST_HIGH, so that low addresses are holes. */
#define GUEST_HIGH     0xffff800000000000ull
#define GUEST_RAM      (8u << 20)
#define GUEST_GDT      0x1000u
#define GUEST_IDT      0x2000u
#define GUEST_TSS      0x3000u
#define GUEST_HANDLERS 0x4000u /* one HLT for each vector, 16 bytes apart */
#define GUEST_STACK    0x8000u
#define GUEST_TABLES   0x10000u

#define GUEST_KERNEL_CS 0x08u
#define GUEST_USER_CS   0x33u /* Linux's selectors, since FNSTENV shows them */
#define GUEST_USER_SS   0x2bu

struct diff_guest {
    struct machine *machine;
    struct cpu_model model;
    struct vm *vm;
    struct vcpu *vcpu;
    uint8_t *ram;
    struct cpu_state state; /* what every case starts from */
};

static bool guest_no_interrupt(void *apic)
{
    (void)apic;
    return false;
}

static int guest_accept(void *apic)
{
    (void)apic;
    return -1;
}

static uint64_t guest_apic_base(void *apic)
{
    (void)apic;
    return 0;
}

/* Asked when the guest halts: that is the end of the case. */
static uint64_t guest_deadline(void *apic)
{
    struct vcpu *vcpu = apic;

    if (container_of(vcpu, struct soft_vcpu, base)->s.activity == CPU_HALTED)
        soft_engine.vcpu_kick(vcpu);
    return UINT64_MAX;
}

static void guest_apic_reset(void *apic, bool init)
{
    (void)apic;
    (void)init;
}

static const struct local_apic_ops guest_apic = {
    .has_interrupt = guest_no_interrupt,
    .accept_interrupt = guest_accept,
    .base = guest_apic_base,
    .timer_deadline = guest_deadline,
    .reset = guest_apic_reset,
};

static void guest_tables(struct diff_guest *g)
{
    uint64_t *pml4 = (uint64_t *)(void *)(g->ram + GUEST_TABLES);
    uint64_t *pdpt = pml4 + 512, *pd = pml4 + 1024, *pt = pml4 + 1536;
    uint64_t *high_pdpt = pml4 + 2048, *high_pd = pml4 + 2560;

    pml4[0] = (GUEST_TABLES + 0x1000) | PTE_P | PTE_W | PTE_U;
    pdpt[0] = (GUEST_TABLES + 0x2000) | PTE_P | PTE_W | PTE_U;
    pml4[256] = (GUEST_TABLES + 0x4000) | PTE_P | PTE_W;
    high_pdpt[0] = (GUEST_TABLES + 0x5000) | PTE_P | PTE_W;
    high_pd[0] = PTE_P | PTE_W | PTE_PS;
    pd[1] = (GUEST_TABLES + 0x3000) | PTE_P | PTE_W | PTE_U;
    pt[0] = DIFF_CODE | PTE_P | PTE_U;
    pt[(DIFF_COUNTER - DIFF_CODE) >> PAGE_SHIFT] = DIFF_COUNTER | PTE_P | PTE_U | PTE_W | PTE_NX;
    for (uint64_t at = DIFF_DATA; at < DIFF_DATA_READONLY; at += PAGE_SIZE)
        pt[(at - DIFF_CODE) >> PAGE_SHIFT] = at | PTE_P | PTE_U | PTE_W | PTE_NX;
    pt[(DIFF_DATA_READONLY - DIFF_CODE) >> PAGE_SHIFT] =
        DIFF_DATA_READONLY | PTE_P | PTE_U | PTE_NX;
}

static void guest_descriptors(struct diff_guest *g)
{
    uint64_t *gdt = (uint64_t *)(void *)(g->ram + GUEST_GDT);
    uint64_t *idt = (uint64_t *)(void *)(g->ram + GUEST_IDT);
    uint64_t stack = GUEST_HIGH + GUEST_STACK;

    gdt[GUEST_KERNEL_CS >> 3] = 0x00af9b000000ffffull;
    gdt[GUEST_USER_CS >> 3] = 0x00affb000000ffffull;
    gdt[GUEST_USER_SS >> 3] = 0x00cff3000000ffffull;
    for (uint64_t i = 0; i < 256; i++) {
        uint64_t handler = GUEST_HIGH + GUEST_HANDLERS + i * 16;

        idt[2 * i] = (handler & 0xffff) | GUEST_KERNEL_CS << 16 | 0xee00ull << 32 |
                     (handler >> 16 & 0xffff) << 48;
        idt[2 * i + 1] = handler >> 32;
        g->ram[GUEST_HANDLERS + i * 16] = 0xf4;
    }
    memcpy(g->ram + GUEST_TSS + 4, &stack, sizeof(stack));
}

static void guest_state(struct diff_guest *g)
{
    struct cpu_state *s = &g->state;
    uint32_t data = 0x3 | CPU_SEG_S | 3u << 5 | CPU_SEG_P | CPU_SEG_G | CPU_SEG_DB;

    cpu_state_reset(s, true);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i] = (struct cpu_segment){.limit = UINT32_MAX, .attr = data};
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i].selector = 0;
    s->seg[SEG_SS].selector = GUEST_USER_SS;
    s->seg[SEG_CS].selector = GUEST_USER_CS;
    s->seg[SEG_CS].attr = 0xb | CPU_SEG_S | 3u << 5 | CPU_SEG_P | CPU_SEG_G | CPU_SEG_L;
    s->tr = (struct cpu_segment){.selector = 0x40, .base = GUEST_HIGH + GUEST_TSS, .limit = 0x67,
                                 .attr = 0xb | CPU_SEG_P};
    s->ldtr = (struct cpu_segment){.attr = CPU_SEG_UNUSABLE}; /* Linux gives a process none unasked */
    s->gdtr = (struct cpu_table){.base = GUEST_HIGH + GUEST_GDT, .limit = 0x7f};
    s->idtr = (struct cpu_table){.base = GUEST_HIGH + GUEST_IDT, .limit = 0xfff};
    s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    s->cr3 = GUEST_TABLES;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
    s->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
    s->xcr0 = diff_host_states();
}

struct diff_guest *diff_guest_create(void)
{
    struct diff_guest *g = aligned_alloc(64, align_up(sizeof(*g), 64));
    struct cpu_topology topology = {.cpus = 1};
    struct cpuid_support support;
    struct error err = {0};

    BUG_ON(!g);
    memset(g, 0, sizeof(*g));
    soft_engine.cpuid_support(&support);
    BUG_ON(cpu_model_init(&g->model, "host", &support, &topology, &err) < 0);
    BUG_ON(machine_create(&g->machine) < 0);
    BUG_ON(mem_add_ram(g->machine->mem, 0, GUEST_RAM, &err) < 0);
    g->ram = g->machine->mem->slots[0].host;
    BUG_ON(soft_engine.vm_create(g->machine, &g->model, 1, &g->vm, &err) < 0);
    BUG_ON(soft_engine.vcpu_create(g->vm, 0, &g->vcpu, &err) < 0);
    g->vcpu->apic = g->vcpu;
    g->vcpu->apic_ops = &guest_apic;
    guest_tables(g);
    guest_descriptors(g);
    guest_state(g);
    diff_memory_fill(g->ram + DIFF_DATA_READONLY, PAGE_SIZE, 1);
    return g;
}

uint64_t diff_guest_loops(const struct diff_guest *g)
{
    return container_of(g->vcpu, struct soft_vcpu, base)->stat_loops;
}

void diff_guest_destroy(struct diff_guest *g)
{
    soft_engine.vcpu_destroy(g->vcpu);
    soft_engine.vm_destroy(g->vm);
    machine_destroy(g->machine);
    free(g);
}

/* What the handler's stack frame says of the end. */
static void guest_outcome(struct diff_guest *g, const struct cpu_state *s, struct diff_outcome *out)
{
    uint64_t stack = s->gpr[GPR_RSP] - GUEST_HIGH;
    const uint64_t *frame;

    memcpy(out->gpr, s->gpr, sizeof(out->gpr));
    memcpy(out->xsave, s->xsave, sizeof(out->xsave));
    memcpy(out->data, g->ram + DIFF_DATA, DIFF_DATA_SIZE);
    out->vector = (s->rip - GUEST_HIGH - GUEST_HANDLERS) / 16;
    if (stack < GUEST_STACK - 48 || stack > GUEST_STACK - 40) {
        out->vector = 999; /* never came to a handler */
        return;
    }
    frame = (const uint64_t *)(const void *)(g->ram + stack);
    out->error = stack == GUEST_STACK - 48 ? *frame++ : 0;
    out->rip = frame[0];
    out->rflags = frame[2];
    out->gpr[GPR_RSP] = frame[3];
    out->address = out->vector == 14 ? s->cr2 : 0;
}

void diff_guest_run(struct diff_guest *g, const struct diff_case *c, struct diff_outcome *out)
{
    uint8_t page[PAGE_SIZE];
    struct soft_vcpu *cpu = container_of(g->vcpu, struct soft_vcpu, base);
    struct cpu_state *s = &g->state;
    struct error err = {0};

    memcpy(s->gpr, c->gpr, sizeof(s->gpr));
    memcpy(s->xsave, c->xsave, sizeof(s->xsave));
    s->rip = DIFF_CODE;
    s->rflags = c->rflags;
    s->seg[SEG_FS].base = c->fs_base;
    s->seg[SEG_GS].base = c->gs_base;
    memcpy(g->ram + DIFF_COUNTER, &c->repeats, sizeof(c->repeats));
    diff_memory_fill(g->ram + DIFF_DATA, DIFF_DATA_SIZE, c->memory_seed);
    memset(page, 0xcc, sizeof(page));
    memcpy(page, c->code, sizeof(c->code));
    BUG_ON(mem_write(g->machine->mem, DIFF_CODE, page, sizeof(page)) < 0);
    BUG_ON(soft_engine.state_set(g->vcpu, s) < 0);
    memset(out, 0, offsetof(struct diff_outcome, xsave));
    if (soft_engine.vcpu_run(g->vcpu, &err) == VCPU_EXIT_KICKED)
        guest_outcome(g, &cpu->s, out);
    else
        out->vector = 998;
}
