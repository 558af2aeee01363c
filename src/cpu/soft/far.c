/*
 * Far jumps, calls and returns through segments, call gates, task gates and TSSs.
 * References: SDM vol. 2A JMP, CALL, vol. 2B RET; vol. 3A 5.8.
 */
#include "cpu/soft/descriptor.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

static uint64_t far_truncate(uint64_t rip, unsigned opsize)
{
    return opsize == 8 ? rip : opsize == 4 ? (uint32_t)rip : (uint16_t)rip;
}

static void far_enter_real(struct soft_vcpu *cpu, uint16_t selector, uint64_t rip)
{
    soft_segment_load_real(cpu, SEG_CS, selector);
    cpu->next_rip = rip;
    soft_mode_update(cpu);
}

/* A code segment named by the far pointer itself, entered at the same privilege. */
static void far_check_code(struct soft_vcpu *cpu, const struct soft_descriptor *cs)
{
    unsigned dpl = CPU_SEG_DPL(cs->attr);

    soft_code_check_long(cpu, cs, 0);
    if (soft_attr_conforming(cs->attr) ? dpl > cpu->cpl
                                       : (cs->selector & 3u) > cpu->cpl || dpl != cpu->cpl)
        soft_raise_selector(cpu, VECTOR_GP, cs->selector, 0);
    if (!(cs->attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_NP, cs->selector, 0);
}

/* Gate and TSS descriptors: DPL against CPL and RPL, then presence. */
static void far_check_system(struct soft_vcpu *cpu, const struct soft_descriptor *d)
{
    unsigned dpl = CPU_SEG_DPL(d->attr);

    if (dpl < cpu->cpl || dpl < (d->selector & 3u))
        soft_raise_selector(cpu, VECTOR_GP, d->selector, 0);
    if (!(d->attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_NP, d->selector, 0);
}

struct far_gate {
    struct soft_descriptor cs;
    uint64_t rip;
    unsigned width;  /* of the gate: bytes of a stack slot */
    unsigned params; /* to copy */
};

/* A call gate and the code segment behind it; long mode has only 64-bit gates of 16 bytes. */
static void far_read_gate(struct soft_vcpu *cpu, struct soft_descriptor *d, struct far_gate *g)
{
    bool wide = soft_long_mode(cpu);
    uint16_t selector = (uint16_t)(d->raw >> 16);
    struct soft_descriptor high = *d;

    far_check_system(cpu, d);
    g->rip = d->raw & 0xffff;
    g->width = wide ? 8 : d->attr & 8 ? 4 : 2;
    g->params = wide ? 0 : (unsigned)(d->raw >> 32) & 0x1f;
    if (d->attr & 8)
        g->rip |= (d->raw >> 32) & 0xffff0000;
    if (wide) {
        high.base = 0;
        soft_descriptor_extend(cpu, &high, VECTOR_GP, 0);
        g->rip |= high.base;
    }
    if (soft_selector_null(selector))
        soft_raise_gp(cpu, 0);
    soft_descriptor_load(cpu, selector, VECTOR_GP, 0, &g->cs);
    if (!soft_attr_code(g->cs.attr) || CPU_SEG_DPL(g->cs.attr) > cpu->cpl ||
        (wide && (g->cs.attr & (CPU_SEG_L | CPU_SEG_DB)) != CPU_SEG_L))
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
}

static void far_jump_gate(struct soft_vcpu *cpu, struct soft_descriptor *d)
{
    struct far_gate g;

    far_read_gate(cpu, d, &g);
    if (!soft_attr_conforming(g.cs.attr) && CPU_SEG_DPL(g.cs.attr) != cpu->cpl)
        soft_raise_selector(cpu, VECTOR_GP, g.cs.selector, 0);
    if (!(g.cs.attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_NP, g.cs.selector, 0);
    soft_check_target(cpu, &g.cs, g.rip, 0);
    soft_descriptor_access(cpu, &g.cs);
    soft_enter_code(cpu, &g.cs, cpu->cpl, g.rip);
    soft_mode_update(cpu);
}

/* True when the descriptor was a task gate or TSS and the switch is done. */
static bool far_task(struct soft_vcpu *cpu, const struct soft_descriptor *d,
                     enum soft_task_reason reason)
{
    unsigned type = CPU_SEG_TYPE(d->attr);

    if (soft_long_mode(cpu) || (type != DESC_TASK && type != DESC_TSS16 && type != DESC_TSS32))
        return false;
    far_check_system(cpu, d);
    if (type == DESC_TASK)
        soft_task_gate(cpu, d, reason, (uint32_t)cpu->next_rip, NULL, 0);
    else
        soft_task_switch(cpu, d->selector, reason, (uint32_t)cpu->next_rip, NULL, 0);
    return true;
}

static bool far_is_call_gate(const struct soft_vcpu *cpu, const struct soft_descriptor *d)
{
    unsigned type = CPU_SEG_TYPE(d->attr);

    return type == DESC_CALL32 || (type == DESC_CALL16 && !soft_long_mode(cpu));
}

static void far_load(struct soft_vcpu *cpu, uint16_t selector, struct soft_descriptor *d)
{
    if (soft_selector_null(selector))
        soft_raise_gp(cpu, 0);
    soft_descriptor_load(cpu, selector, VECTOR_GP, 0, d);
}

void soft_far_jump(struct soft_vcpu *cpu, uint16_t selector, uint64_t rip, unsigned opsize)
{
    struct soft_descriptor d;

    rip = far_truncate(rip, opsize);
    if (soft_real_selectors(cpu)) {
        if (rip > cpu->s.seg[SEG_CS].limit)
            soft_raise_gp(cpu, 0);
        far_enter_real(cpu, selector, rip);
        return;
    }
    far_load(cpu, selector, &d);
    if (soft_attr_code(d.attr)) {
        far_check_code(cpu, &d);
        soft_check_target(cpu, &d, rip, 0);
        soft_descriptor_access(cpu, &d);
        soft_enter_code(cpu, &d, cpu->cpl, rip);
        soft_mode_update(cpu);
        return;
    }
    if (d.attr & CPU_SEG_S)
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
    if (far_is_call_gate(cpu, &d))
        far_jump_gate(cpu, &d);
    else if (!far_task(cpu, &d, SOFT_TASK_JUMP))
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
}

/* Pushes the return address on the current stack, then enters cs. */
static void far_call_same(struct soft_vcpu *cpu, struct soft_descriptor *cs, uint64_t rip,
                          unsigned width)
{
    struct soft_stack st;

    soft_stack_current(&st, cpu, 0);
    soft_stack_push(&st, width, cpu->s.seg[SEG_CS].selector);
    soft_stack_push(&st, width, cpu->next_rip);
    soft_check_target(cpu, cs, rip, 0);
    soft_descriptor_access(cpu, cs);

    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
    soft_enter_code(cpu, cs, cpu->cpl, rip);
    soft_mode_update(cpu);
}

/* 64-bit call gate to an inner level: SS becomes null, SDM vol. 3A 5.8.5.1. */
static void far_call_inner64(struct soft_vcpu *cpu, struct far_gate *g, unsigned level)
{
    struct soft_stack st;

    soft_stack_inner64(&st, cpu, soft_tss_stack64(cpu, level, 0), 0);
    soft_check_target(cpu, &g->cs, g->rip, 0);
    soft_stack_push(&st, 8, cpu->s.seg[SEG_SS].selector);
    soft_stack_push(&st, 8, cpu->s.gpr[GPR_RSP]);
    soft_stack_push(&st, 8, cpu->s.seg[SEG_CS].selector);
    soft_stack_push(&st, 8, cpu->next_rip);
    soft_descriptor_access(cpu, &g->cs);

    cpu->s.gpr[GPR_RSP] = st.sp;
    soft_segment_fill_null(&cpu->s.seg[SEG_SS], (uint16_t)level);
    cpu->s.seg[SEG_SS].attr |= level << 5;
}

static void far_call_inner(struct soft_vcpu *cpu, struct far_gate *g, unsigned level)
{
    struct soft_stack st, caller;
    struct soft_descriptor ss;
    uint16_t selector;
    uint64_t sp = soft_tss_stack(cpu, level, &selector, 0);

    soft_stack_segment_check(cpu, selector, level, 0, &ss);
    soft_stack_inner(&st, cpu, &ss, sp, 0);
    soft_stack_current(&caller, cpu, 0);
    soft_check_target(cpu, &g->cs, g->rip, 0);
    soft_stack_push(&st, g->width, cpu->s.seg[SEG_SS].selector);
    soft_stack_push(&st, g->width, cpu->s.gpr[GPR_RSP]);
    for (unsigned i = g->params; i > 0; i--)
        soft_stack_push(&st, g->width, soft_stack_peek(&caller, (i - 1) * g->width, g->width));
    soft_stack_push(&st, g->width, cpu->s.seg[SEG_CS].selector);
    soft_stack_push(&st, g->width, cpu->next_rip);
    soft_descriptor_access(cpu, &g->cs);
    soft_descriptor_access(cpu, &ss);

    soft_segment_fill(&cpu->s.seg[SEG_SS], &ss, level);
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, sp);
}

static void far_call_gate(struct soft_vcpu *cpu, struct soft_descriptor *d)
{
    struct far_gate g;
    unsigned dpl;

    far_read_gate(cpu, d, &g);
    if (!(g.cs.attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_NP, g.cs.selector, 0);
    dpl = CPU_SEG_DPL(g.cs.attr);
    if (soft_attr_conforming(g.cs.attr) || dpl == cpu->cpl) {
        far_call_same(cpu, &g.cs, g.rip, g.width);
        return;
    }
    if (soft_long_mode(cpu))
        far_call_inner64(cpu, &g, dpl);
    else
        far_call_inner(cpu, &g, dpl);
    soft_enter_code(cpu, &g.cs, dpl, g.rip);
    soft_mode_update(cpu);
}

static void far_call_real(struct soft_vcpu *cpu, uint16_t selector, uint64_t rip, unsigned opsize)
{
    struct soft_stack st;

    if (rip > cpu->s.seg[SEG_CS].limit)
        soft_raise_gp(cpu, 0);
    soft_stack_current(&st, cpu, 0);
    soft_stack_push(&st, opsize, cpu->s.seg[SEG_CS].selector);
    soft_stack_push(&st, opsize, cpu->next_rip);
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
    far_enter_real(cpu, selector, rip);
}

void soft_far_call(struct soft_vcpu *cpu, uint16_t selector, uint64_t rip, unsigned opsize)
{
    struct soft_descriptor d;

    rip = far_truncate(rip, opsize);
    if (soft_real_selectors(cpu)) {
        far_call_real(cpu, selector, rip, opsize);
        return;
    }
    far_load(cpu, selector, &d);
    if (soft_attr_code(d.attr)) {
        far_check_code(cpu, &d);
        far_call_same(cpu, &d, rip, opsize);
        return;
    }
    if (d.attr & CPU_SEG_S)
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
    if (far_is_call_gate(cpu, &d))
        far_call_gate(cpu, &d);
    else if (!far_task(cpu, &d, SOFT_TASK_CALL))
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
}

static void far_return_real(struct soft_vcpu *cpu, unsigned opsize, uint16_t release)
{
    struct soft_stack st;
    uint64_t rip;
    uint16_t selector;

    soft_stack_current(&st, cpu, 0);
    rip = soft_stack_pop(&st, opsize);
    selector = (uint16_t)soft_stack_pop(&st, opsize);
    if (rip > cpu->s.seg[SEG_CS].limit)
        soft_raise_gp(cpu, 0);
    st.sp += release;
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
    far_enter_real(cpu, selector, rip);
}

/* To an outer level: SS:RSP lies above the released parameters. */
static void far_return_outer(struct soft_vcpu *cpu, struct soft_stack *st,
                             struct soft_descriptor *cs, uint64_t rip, unsigned opsize,
                             uint16_t release)
{
    unsigned rpl = cs->selector & 3u;
    uint64_t rsp = soft_stack_peek(st, release, opsize);
    uint16_t selector = (uint16_t)soft_stack_peek(st, (uint64_t)release + opsize, opsize);
    struct soft_stack outer;
    struct soft_descriptor ss;

    soft_return_stack(cpu, selector, rpl, cs, &ss);
    soft_check_target(cpu, cs, rip, 0);
    soft_descriptor_access(cpu, cs);
    soft_return_commit(cpu, &ss, rpl);
    soft_enter_code(cpu, cs, rpl, rip);
    soft_mode_update(cpu);
    soft_stack_current(&outer, cpu, 0);
    outer.sp = rsp + release;
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&outer, (uint32_t)cpu->s.gpr[GPR_RSP]);
    soft_drop_inner_segments(cpu);
}

void soft_far_return(struct soft_vcpu *cpu, unsigned opsize, uint16_t release)
{
    struct soft_descriptor cs;
    struct soft_stack st;
    uint16_t selector;
    uint64_t rip;

    if (soft_real_selectors(cpu)) {
        far_return_real(cpu, opsize, release);
        return;
    }
    soft_stack_current(&st, cpu, 0);
    rip = soft_stack_pop(&st, opsize);
    selector = (uint16_t)soft_stack_pop(&st, opsize);
    soft_return_code(cpu, selector, &cs);
    if ((selector & 3u) > cpu->cpl) {
        far_return_outer(cpu, &st, &cs, rip, opsize, release);
        return;
    }
    soft_check_target(cpu, &cs, rip, 0);
    soft_descriptor_access(cpu, &cs);
    st.sp += release;
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
    soft_enter_code(cpu, &cs, cpu->cpl, rip);
    soft_mode_update(cpu);
}
