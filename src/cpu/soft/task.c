/* Hardware task switches. Reference: SDM vol. 3A chapter 7. */
#include "cpu/soft/descriptor.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

/* The dynamic part of a TSS, 16- or 32-bit. */
struct task_state {
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t seg[SEG_COUNT], ldt;
    bool debug_trap;
};

/* Offsets of the fields, SDM vol. 3A figures 7-2 and 7-10. */
struct task_layout {
    uint8_t word;   /* size of a register slot */
    uint8_t eip, eflags, gpr, seg, ldt;
    uint8_t segments;
    uint8_t least;  /* smallest valid limit */
};

static const struct task_layout task_layout16 = {
    .word = 2, .eip = 14, .eflags = 16, .gpr = 18, .seg = 34, .ldt = 42, .segments = 4, .least = 43};
static const struct task_layout task_layout32 = {
    .word = 4, .eip = 32, .eflags = 36, .gpr = 40, .seg = 72, .ldt = 96, .segments = 6,
    .least = 103};

#define TSS32_CR3   28u
#define TSS32_TRAP 100u

static const struct task_layout *task_layout(uint32_t attr)
{
    return CPU_SEG_TYPE(attr) & 8 ? &task_layout32 : &task_layout16;
}

static gva_t task_at(uint64_t base, uint32_t offset)
{
    return (uint32_t)(base + offset);
}

static void task_save(struct soft_vcpu *cpu, uint32_t rip, uint64_t rflags)
{
    const struct task_layout *l = task_layout(cpu->s.tr.attr);
    uint64_t base = cpu->s.tr.base;

    soft_system_store(cpu, task_at(base, l->eip), l->word, rip);
    soft_system_store(cpu, task_at(base, l->eflags), l->word, rflags);
    for (uint32_t i = 0; i < 8; i++)
        soft_system_store(cpu, task_at(base, l->gpr + i * l->word), l->word, cpu->s.gpr[i]);
    for (uint32_t i = 0; i < l->segments; i++)
        soft_system_store(cpu, task_at(base, l->seg + i * l->word), 2, cpu->s.seg[i].selector);
}

static void task_load(struct soft_vcpu *cpu, const struct soft_descriptor *tss,
                      struct task_state *t)
{
    const struct task_layout *l = task_layout(tss->attr);
    uint64_t base = tss->base;

    *t = (struct task_state){0};
    t->eip = (uint32_t)soft_system_load(cpu, task_at(base, l->eip), l->word);
    t->eflags = (uint32_t)soft_system_load(cpu, task_at(base, l->eflags), l->word);
    for (uint32_t i = 0; i < 8; i++) {
        t->gpr[i] = (uint32_t)soft_system_load(cpu, task_at(base, l->gpr + i * l->word), l->word);
        if (l->word == 2)
            t->gpr[i] |= 0xffff0000u;
    }
    for (uint32_t i = 0; i < l->segments; i++)
        t->seg[i] = (uint16_t)soft_system_load(cpu, task_at(base, l->seg + i * l->word), 2);
    t->ldt = (uint16_t)soft_system_load(cpu, task_at(base, l->ldt), 2);
    if (l->word == 4) {
        t->cr3 = (uint32_t)soft_system_load(cpu, task_at(base, TSS32_CR3), 4);
        t->debug_trap = soft_system_load(cpu, task_at(base, TSS32_TRAP), 2) & 1;
    }
}

static void task_set_busy(struct soft_vcpu *cpu, gva_t descriptor, bool busy)
{
    uint64_t type = soft_system_load(cpu, descriptor + 5, 1);

    soft_system_store(cpu, descriptor + 5, 1, busy ? type | 2 : type & ~2ull);
}

static gva_t task_current_descriptor(const struct soft_vcpu *cpu)
{
    return (uint32_t)(cpu->s.gdtr.base + (cpu->s.tr.selector & 0xfff8u));
}

/* From here faults belong to the new task: SDM vol. 3A table 7-1. */
static void task_load_ldt(struct soft_vcpu *cpu, uint16_t selector, unsigned ext)
{
    struct soft_descriptor d;

    soft_segment_fill_null(&cpu->s.ldtr, selector);
    if (soft_selector_null(selector))
        return;
    if ((selector & 4) || !soft_descriptor_find(cpu, selector, &d) ||
        (d.attr & (CPU_SEG_S | 0xf)) != DESC_LDT || !(d.attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_TS, selector, ext);
    soft_segment_fill(&cpu->s.ldtr, &d, selector & 3u);
}

static void task_load_code(struct soft_vcpu *cpu, uint16_t selector, unsigned ext)
{
    unsigned rpl = selector & 3u, dpl;
    struct soft_descriptor d;

    if (soft_selector_null(selector))
        soft_raise_selector(cpu, VECTOR_TS, selector, ext);
    soft_descriptor_load(cpu, selector, VECTOR_TS, ext, &d);
    dpl = CPU_SEG_DPL(d.attr);
    if (!soft_attr_code(d.attr) || (soft_attr_conforming(d.attr) ? dpl > rpl : dpl != rpl))
        soft_raise_selector(cpu, VECTOR_TS, selector, ext);
    if (!(d.attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_NP, selector, ext);
    soft_descriptor_access(cpu, &d);
    soft_segment_fill(&cpu->s.seg[SEG_CS], &d, rpl);
}

static void task_load_data(struct soft_vcpu *cpu, unsigned seg, uint16_t selector, unsigned ext)
{
    unsigned rpl = selector & 3u, dpl;
    struct soft_descriptor d;

    if (soft_selector_null(selector))
        return;
    soft_descriptor_load(cpu, selector, VECTOR_TS, ext, &d);
    dpl = CPU_SEG_DPL(d.attr);
    if (!(d.attr & CPU_SEG_S) || (soft_attr_code(d.attr) && !(d.attr & DESC_READABLE)))
        soft_raise_selector(cpu, VECTOR_TS, selector, ext);
    if (!(soft_attr_code(d.attr) && soft_attr_conforming(d.attr)) && (rpl > dpl || cpu->cpl > dpl))
        soft_raise_selector(cpu, VECTOR_TS, selector, ext);
    if (!(d.attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_NP, selector, ext);
    soft_descriptor_access(cpu, &d);
    soft_segment_fill(&cpu->s.seg[seg], &d, rpl);
}

static void task_load_segments(struct soft_vcpu *cpu, const struct task_state *t, unsigned ext)
{
    static const uint8_t data_segments[] = {SEG_DS, SEG_ES, SEG_FS, SEG_GS};
    struct soft_descriptor ss;

    task_load_ldt(cpu, t->ldt, ext);
    if (t->eflags & RFLAGS_VM) {
        for (unsigned i = 0; i < SEG_COUNT; i++)
            soft_segment_fill_v86(&cpu->s.seg[i], t->seg[i]);
        soft_mode_update(cpu);
        return;
    }
    for (unsigned i = 0; i < SEG_COUNT; i++)
        soft_segment_fill_null(&cpu->s.seg[i], t->seg[i]);
    /* CPL of the new task from the start, so that a fault is taken at it. */
    cpu->s.seg[SEG_SS].attr |= (t->seg[SEG_CS] & 3u) << 5;
    soft_mode_update(cpu);
    soft_stack_segment_check(cpu, t->seg[SEG_SS], t->seg[SEG_CS] & 3u, ext, &ss);
    soft_descriptor_access(cpu, &ss);
    soft_segment_fill(&cpu->s.seg[SEG_SS], &ss, t->seg[SEG_SS] & 3u);
    for (unsigned i = 0; i < ARRAY_SIZE(data_segments); i++)
        task_load_data(cpu, data_segments[i], t->seg[data_segments[i]], ext);
    task_load_code(cpu, t->seg[SEG_CS], ext);
    soft_mode_update(cpu);
}

#define TASK_FLAGS (RFLAGS_ARITH | RFLAGS_TF | RFLAGS_IF | RFLAGS_DF | RFLAGS_IOPL | RFLAGS_NT | \
                    RFLAGS_RF | RFLAGS_VM | RFLAGS_AC | RFLAGS_VIF | RFLAGS_VIP | RFLAGS_ID)

static void task_commit(struct soft_vcpu *cpu, const struct soft_descriptor *tss,
                        const struct task_state *t)
{
    soft_segment_fill(&cpu->s.tr, tss, tss->selector & 3u);
    cpu->s.tr.attr |= 2; /* busy */
    cpu->s.cr0 |= CR0_TS;
    cpu->s.dr7 &= ~0x155ull; /* L0-L3, LE */
    if ((CPU_SEG_TYPE(tss->attr) & 8) && (cpu->s.cr0 & CR0_PG)) {
        cpu->s.cr3 = t->cr3;
        soft_tlb_flush_nonglobal(cpu);
    }
    cpu->s.rflags = (t->eflags & TASK_FLAGS) | RFLAGS_ONE;
    for (unsigned i = 0; i < 8; i++)
        cpu->s.gpr[i] = t->gpr[i];
    cpu->s.rip = t->eip; /* of the new task, when what follows faults */
    cpu->next_rip = t->eip;
}

static void task_push_error(struct soft_vcpu *cpu, uint32_t error, unsigned ext)
{
    struct soft_stack st;

    soft_stack_current(&st, cpu, ext);
    soft_stack_push(&st, CPU_SEG_TYPE(cpu->s.tr.attr) & 8 ? 4 : 2, error);
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
}

/* The descriptor of the task to enter: SDM vol. 3A 7.3, steps 3 to 5. */
static void task_find(struct soft_vcpu *cpu, uint16_t selector, enum soft_task_reason reason,
                      unsigned ext, struct soft_descriptor *tss)
{
    unsigned vector = reason == SOFT_TASK_IRET ? VECTOR_TS : VECTOR_GP;
    unsigned want = reason == SOFT_TASK_IRET ? DESC_TSS16_BUSY : DESC_TSS16;

    if ((selector & 4) || soft_selector_null(selector))
        soft_raise_selector(cpu, vector, selector, ext);
    soft_descriptor_load(cpu, selector, vector, ext, tss);
    if ((tss->attr & (CPU_SEG_S | 7)) != want)
        soft_raise_selector(cpu, vector, selector, ext);
    if (!(tss->attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_NP, selector, ext);
    if (tss->limit < task_layout(tss->attr)->least)
        soft_raise_selector(cpu, VECTOR_TS, selector, ext);
}

void soft_task_switch(struct soft_vcpu *cpu, uint16_t selector, enum soft_task_reason reason,
                      uint32_t rip, const uint32_t *error, unsigned ext)
{
    bool nests = reason == SOFT_TASK_CALL || reason == SOFT_TASK_GATE;
    const struct task_layout *old = task_layout(cpu->s.tr.attr);
    uint16_t previous = cpu->s.tr.selector;
    uint64_t rflags = cpu->s.rflags;
    struct soft_descriptor tss;
    struct task_state t;

    task_find(cpu, selector, reason, ext, &tss);
    /* Everything that may fault on a page first: both TSSs and the descriptors. */
    if (cpu->s.tr.limit < old->least)
        soft_raise_selector(cpu, VECTOR_TS, previous, ext);
    soft_system_probe_write(cpu, task_at(cpu->s.tr.base, 0), old->least + 1u);
    soft_system_probe_write(cpu, task_current_descriptor(cpu), 8);
    soft_system_probe_write(cpu, tss.addr, 8);
    task_load(cpu, &tss, &t);
    if (nests)
        soft_system_probe_write(cpu, task_at(tss.base, 0), 2);

    if (reason == SOFT_TASK_IRET)
        rflags &= ~(uint64_t)RFLAGS_NT;
    task_save(cpu, rip, rflags);
    if (!nests)
        task_set_busy(cpu, task_current_descriptor(cpu), false);
    if (nests) {
        soft_system_store(cpu, task_at(tss.base, 0), 2, previous);
        t.eflags |= RFLAGS_NT;
    }
    if (reason != SOFT_TASK_IRET)
        task_set_busy(cpu, tss.addr, true);
    task_commit(cpu, &tss, &t);
    task_load_segments(cpu, &t, ext);
    if (error)
        task_push_error(cpu, *error, ext);
    if (cpu->next_rip > cpu->s.seg[SEG_CS].limit)
        soft_raise_gp(cpu, 0);
    cpu->end_block = true;
    if (t.debug_trap)
        soft_debug_trap(cpu, 0x8000); /* BT */
}

void soft_task_gate(struct soft_vcpu *cpu, const struct soft_descriptor *gate,
                    enum soft_task_reason reason, uint32_t rip, const uint32_t *error, unsigned ext)
{
    soft_task_switch(cpu, (uint16_t)(gate->raw >> 16), reason, rip, error, ext);
}
