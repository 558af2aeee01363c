/* IRET in every mode. References: SDM vol. 2A IRET; vol. 3A 6.14.3, 7.4, 20.2.2. */
#include "cpu/soft/descriptor.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

#define IRET_FLAGS16 (RFLAGS_ARITH | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT)
#define IRET_FLAGS32 (RFLAGS_RF | RFLAGS_AC | RFLAGS_ID)
#define IRET_V86_FLAGS (IRET_FLAGS16 | IRET_FLAGS32 | RFLAGS_IF | RFLAGS_IOPL | RFLAGS_VM | \
                        RFLAGS_VIF | RFLAGS_VIP)

/* The code segment a far return or IRET goes back to, SDM vol. 2B RET. */
void soft_return_code(struct soft_vcpu *cpu, uint16_t selector, struct soft_descriptor *cs)
{
    unsigned rpl = selector & 3u, dpl;

    if (soft_selector_null(selector))
        soft_raise_gp(cpu, 0);
    soft_descriptor_load(cpu, selector, VECTOR_GP, 0, cs);
    dpl = CPU_SEG_DPL(cs->attr);
    if (!soft_attr_code(cs->attr) || rpl < cpu->cpl ||
        (soft_attr_conforming(cs->attr) ? dpl > rpl : dpl != rpl))
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
    soft_code_check_long(cpu, cs, 0);
    if (!(cs->attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_NP, selector, 0);
}

void soft_return_stack(struct soft_vcpu *cpu, uint16_t selector, unsigned rpl,
                       const struct soft_descriptor *cs, struct soft_descriptor *ss)
{
    bool wide = soft_long_mode(cpu) && (cs->attr & CPU_SEG_L);

    if (soft_selector_null(selector)) {
        if (!wide || rpl == 3 || (selector & 3u) != rpl)
            soft_raise_gp(cpu, 0);
        *ss = (struct soft_descriptor){
            .selector = selector, .attr = CPU_SEG_UNUSABLE | rpl << 5};
        return;
    }
    soft_descriptor_load(cpu, selector, VECTOR_GP, 0, ss);
    if ((selector & 3u) != rpl || !soft_attr_writable_data(ss->attr) ||
        CPU_SEG_DPL(ss->attr) != rpl)
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
    if (!(ss->attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_SS, selector, 0);
    soft_descriptor_access(cpu, ss);
}

void soft_return_commit(struct soft_vcpu *cpu, const struct soft_descriptor *ss, unsigned rpl)
{
    soft_segment_fill(&cpu->s.seg[SEG_SS], ss, rpl);
}

/* Flags that IRET may change at this CPL and IOPL. */
static uint64_t iret_mask(const struct soft_vcpu *cpu, unsigned opsize)
{
    unsigned iopl = (unsigned)(cpu->s.rflags >> RFLAGS_IOPL_SHIFT) & 3;
    uint64_t mask = IRET_FLAGS16;

    if (opsize > 2)
        mask |= IRET_FLAGS32;
    if (cpu->cpl <= iopl)
        mask |= RFLAGS_IF;
    if (cpu->cpl == 0)
        mask |= opsize > 2 ? RFLAGS_IOPL | RFLAGS_VIF | RFLAGS_VIP : RFLAGS_IOPL;
    return mask;
}

static void iret_real(struct soft_vcpu *cpu, unsigned opsize)
{
    uint64_t rip, flags;
    struct soft_stack st;
    uint16_t selector;

    soft_stack_current(&st, cpu, 0);
    rip = soft_stack_pop(&st, opsize);
    selector = (uint16_t)soft_stack_pop(&st, opsize);
    flags = soft_stack_pop(&st, opsize);
    if (rip > cpu->s.seg[SEG_CS].limit)
        soft_raise_gp(cpu, 0);
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
    soft_segment_load_real(cpu, SEG_CS, selector);
    cpu->next_rip = rip;
    soft_rflags_write(cpu, flags,
                      IRET_FLAGS16 | RFLAGS_IF | RFLAGS_IOPL | (opsize > 2 ? IRET_FLAGS32 : 0));
    soft_mode_update(cpu);
}

/* In virtual-8086 mode with IOPL < 3: only by CR4.VME, only 16-bit, IF is the virtual one. */
static void iret_v86_vme(struct soft_vcpu *cpu, unsigned opsize)
{
    struct soft_stack st;
    uint64_t flags, rip;
    uint16_t selector;

    if (!(cpu->s.cr4 & CR4_VME) || opsize != 2)
        soft_raise_gp(cpu, 0);
    soft_stack_current(&st, cpu, 0);
    rip = soft_stack_pop(&st, 2);
    selector = (uint16_t)soft_stack_pop(&st, 2);
    flags = soft_stack_pop(&st, 2);
    if ((flags & RFLAGS_TF) || ((flags & RFLAGS_IF) && (cpu->s.rflags & RFLAGS_VIP)))
        soft_raise_gp(cpu, 0);
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
    soft_segment_load_real(cpu, SEG_CS, selector);
    cpu->next_rip = rip;
    flags = (flags & ~(uint64_t)RFLAGS_VIF) | (flags & RFLAGS_IF ? RFLAGS_VIF : 0);
    soft_rflags_write(cpu, flags, IRET_FLAGS16 | RFLAGS_VIF);
    soft_mode_update(cpu);
}

static void iret_v86(struct soft_vcpu *cpu, unsigned opsize)
{
    uint64_t rip, flags;
    struct soft_stack st;
    uint16_t selector;

    if ((cpu->s.rflags & RFLAGS_IOPL) != RFLAGS_IOPL) {
        iret_v86_vme(cpu, opsize);
        return;
    }
    soft_stack_current(&st, cpu, 0);
    rip = soft_stack_pop(&st, opsize);
    selector = (uint16_t)soft_stack_pop(&st, opsize);
    flags = soft_stack_pop(&st, opsize);
    if (rip > 0xffff)
        soft_raise_gp(cpu, 0);
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
    soft_segment_load_real(cpu, SEG_CS, selector);
    cpu->next_rip = rip;
    soft_rflags_write(cpu, flags,
                      IRET_FLAGS16 | RFLAGS_IF | (opsize > 2 ? IRET_FLAGS32 : 0));
    soft_mode_update(cpu);
}

/* NT: back to the task whose TSS the link field names. */
static void iret_task(struct soft_vcpu *cpu)
{
    uint16_t link = (uint16_t)soft_system_load(cpu, (uint32_t)cpu->s.tr.base, 2);

    soft_task_switch(cpu, link, SOFT_TASK_IRET, (uint32_t)cpu->next_rip, NULL, 0);
}

static void iret_to_v86(struct soft_vcpu *cpu, struct soft_stack *st, uint64_t rip, uint16_t cs,
                        uint64_t flags)
{
    static const uint8_t order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    uint64_t esp = soft_stack_pop(st, 4);
    uint16_t selector[ARRAY_SIZE(order)];

    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        selector[i] = (uint16_t)soft_stack_pop(st, 4);
    if (rip > 0xffff)
        soft_raise_gp(cpu, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        soft_segment_fill_v86(&cpu->s.seg[order[i]], selector[i]);
    soft_segment_fill_v86(&cpu->s.seg[SEG_CS], cs);
    cpu->s.gpr[GPR_RSP] = esp;
    cpu->next_rip = rip;
    soft_rflags_write(cpu, flags, IRET_V86_FLAGS);
    soft_mode_update(cpu);
}

static void iret_outer(struct soft_vcpu *cpu, struct soft_stack *st, struct soft_descriptor *cs,
                       uint64_t rip, uint64_t flags, unsigned opsize)
{
    uint64_t rsp = soft_stack_pop(st, opsize);
    uint16_t selector = (uint16_t)soft_stack_pop(st, opsize);
    uint64_t mask = iret_mask(cpu, opsize);
    unsigned rpl = cs->selector & 3u;
    struct soft_descriptor ss;

    soft_return_stack(cpu, selector, rpl, cs, &ss);
    soft_check_target(cpu, cs, rip, 0);
    soft_descriptor_access(cpu, cs);

    soft_return_commit(cpu, &ss, rpl);
    soft_enter_code(cpu, cs, rpl, rip);
    if (opsize == 8 || (ss.attr & CPU_SEG_DB))
        cpu->s.gpr[GPR_RSP] = rsp;
    else
        cpu->s.gpr[GPR_RSP] = (cpu->s.gpr[GPR_RSP] & ~0xffffull) | (rsp & 0xffff);
    soft_rflags_write(cpu, flags, mask);
    soft_mode_update(cpu);
    soft_drop_inner_segments(cpu);
}

static void iret_same(struct soft_vcpu *cpu, struct soft_stack *st, struct soft_descriptor *cs,
                      uint64_t rip, uint64_t flags, unsigned opsize)
{
    soft_check_target(cpu, cs, rip, 0);
    soft_descriptor_access(cpu, cs);
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(st, cpu->s.gpr[GPR_RSP]);
    soft_enter_code(cpu, cs, cpu->cpl, rip);
    soft_rflags_write(cpu, flags, iret_mask(cpu, opsize));
    soft_mode_update(cpu);
}

static void iret_protected(struct soft_vcpu *cpu, unsigned opsize)
{
    struct soft_descriptor cs;
    struct soft_stack st;
    uint64_t rip, flags;
    uint16_t selector;

    soft_stack_current(&st, cpu, 0);
    rip = soft_stack_pop(&st, opsize);
    selector = (uint16_t)soft_stack_pop(&st, opsize);
    flags = soft_stack_pop(&st, opsize);
    if ((flags & RFLAGS_VM) && opsize == 4 && cpu->cpl == 0 && !soft_long_mode(cpu)) {
        iret_to_v86(cpu, &st, rip, selector, flags);
        return;
    }
    soft_return_code(cpu, selector, &cs);
    /* In 64-bit mode SS:RSP is popped even when the level stays. */
    if ((selector & 3u) > cpu->cpl || soft_code64(cpu))
        iret_outer(cpu, &st, &cs, rip, flags, opsize);
    else
        iret_same(cpu, &st, &cs, rip, flags, opsize);
}

void soft_iret(struct soft_vcpu *cpu, unsigned opsize)
{
    if (!(cpu->mode & SOFT_MODE_PE)) {
        iret_real(cpu, opsize);
    } else if (cpu->mode & SOFT_MODE_VM) {
        iret_v86(cpu, opsize);
    } else if (cpu->s.rflags & RFLAGS_NT) {
        if (soft_long_mode(cpu))
            soft_raise_gp(cpu, 0);
        iret_task(cpu);
    } else {
        iret_protected(cpu, opsize);
    }
    cpu->s.nmi_blocked = 0;
    cpu->end_block = true;
}
