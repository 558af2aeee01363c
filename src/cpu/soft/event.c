/*
 * Delivery of exceptions and interrupts. References: SDM vol. 3A chapter 6 and 20.3 (virtual-8086),
 * vol. 2A INT n; APM vol. 2 chapter 8.
 */
#include "cpu/soft/descriptor.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

/* One delivery under way. */
struct event_delivery {
    const struct soft_event *event;
    unsigned ext;        /* EXT bit of error codes */
    bool software;       /* INT n, INT3, INTO: the gate's DPL counts */
    uint64_t rip;        /* to push */
    uint64_t rflags;     /* to push */
    unsigned width;      /* bytes of a stack slot */
    bool interrupt_gate; /* clears IF */
    uint64_t offset;     /* of the handler */
    struct soft_descriptor cs;
    unsigned cpl;        /* of the handler */
};

static bool event_is_software(const struct soft_event *event)
{
    return event->type == SOFT_EVENT_INT || event->type == SOFT_EVENT_INT3_INTO;
}

/* SDM vol. 3B 17.3.1.1: faults push RF = 1 so that their instruction can be restarted. */
static bool event_sets_rf(const struct soft_event *event)
{
    return event->type == SOFT_EVENT_EXCEPTION && event->vector != VECTOR_DB &&
           event->vector != VECTOR_DF && event->vector != VECTOR_MC;
}

/* Intel: set unless software asked (SDM vol. 3A 6.13); AMD: for sources outside the processor only
 * (APM vol. 2 8.4.1). */
static unsigned event_ext(const struct soft_vcpu *cpu, const struct soft_event *event)
{
    if (event->type == SOFT_EVENT_EXTERNAL || event->type == SOFT_EVENT_NMI)
        return 1;
    return !event_is_software(event) && !soft_is_amd(cpu);
}

static void event_begin(struct soft_vcpu *cpu, struct event_delivery *dl,
                        const struct soft_event *event)
{
    bool after = event_is_software(event) || event->type == SOFT_EVENT_ICEBP;

    dl->event = event;
    dl->software = event_is_software(event);
    dl->ext = event_ext(cpu, event);
    dl->rip = after ? cpu->next_rip : cpu->s.rip;
    dl->rflags = cpu->s.rflags;
    if (event_sets_rf(event))
        dl->rflags |= RFLAGS_RF;
}

/* Common end: nothing here can fault. */
static void event_commit(struct soft_vcpu *cpu, const struct event_delivery *dl, uint64_t clear)
{
    cpu->s.rflags = (cpu->s.rflags & ~clear) | RFLAGS_ONE;
    cpu->s.interrupt_shadow = 0;
    cpu->single_step = false;
    cpu->end_block = true;
    if (dl->event->type == SOFT_EVENT_NMI)
        cpu->s.nmi_blocked = 1;
    if (dl->event->vector == VECTOR_DB)
        cpu->s.dr7 &= ~0x2000ull; /* GD, SDM vol. 3B 17.2.4 */
}

static _Noreturn void event_bad_gate(struct soft_vcpu *cpu, const struct event_delivery *dl,
                                     unsigned vector)
{
    soft_raise_error(cpu, vector, dl->event->vector * 8u + 2u + dl->ext);
}

/* Real mode, and INT n that CR4.VME sends to the 8086 program: SDM vol. 3A 20.1.4. */
static void event_deliver_ivt(struct soft_vcpu *cpu, struct event_delivery *dl, uint64_t flags)
{
    bool real = !(cpu->mode & SOFT_MODE_VM);
    uint64_t at = (real ? cpu->s.idtr.base : 0) + dl->event->vector * 4u;
    struct soft_stack st;
    uint32_t target;

    if (real && dl->event->vector * 4u + 3 > cpu->s.idtr.limit)
        event_bad_gate(cpu, dl, VECTOR_GP);
    target = (uint32_t)soft_load(cpu, SEG_DS, (uint32_t)at, 4);
    soft_stack_current(&st, cpu, dl->ext);
    soft_stack_push(&st, 2, flags & 0xffff);
    soft_stack_push(&st, 2, cpu->s.seg[SEG_CS].selector);
    soft_stack_push(&st, 2, dl->rip & 0xffff);

    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
    soft_segment_load_real(cpu, SEG_CS, (uint16_t)(target >> 16));
    cpu->next_rip = target & 0xffff;
}

static void event_deliver_real(struct soft_vcpu *cpu, struct event_delivery *dl)
{
    event_deliver_ivt(cpu, dl, cpu->s.rflags);
    event_commit(cpu, dl, RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_RF);
    soft_mode_update(cpu);
}

/* SDM vol. 3A table 20-2, methods 2 and 5. */
static void event_deliver_redirected(struct soft_vcpu *cpu, struct event_delivery *dl)
{
    uint64_t flags = cpu->s.rflags;
    uint64_t clear = RFLAGS_TF | RFLAGS_RF;

    if ((flags & RFLAGS_IOPL) == RFLAGS_IOPL) {
        clear |= RFLAGS_IF;
    } else {
        clear |= RFLAGS_VIF;
        flags = (flags & ~(uint64_t)RFLAGS_IF) | RFLAGS_IOPL;
        if (flags & RFLAGS_VIF)
            flags |= RFLAGS_IF;
    }
    event_deliver_ivt(cpu, dl, flags);
    event_commit(cpu, dl, clear);
    soft_mode_update(cpu);
}

/* The code segment of a gate; sets the handler's CPL. SDM vol. 3A 6.12.1. */
static void event_load_code(struct soft_vcpu *cpu, struct event_delivery *dl, uint16_t selector)
{
    struct soft_descriptor *cs = &dl->cs;
    unsigned dpl;

    if (soft_selector_null(selector))
        soft_raise_gp(cpu, dl->ext);
    soft_descriptor_load(cpu, selector, VECTOR_GP, dl->ext, cs);
    dpl = CPU_SEG_DPL(cs->attr);
    if (!soft_attr_code(cs->attr) || dpl > cpu->cpl)
        soft_raise_selector(cpu, VECTOR_GP, selector, dl->ext);
    if (soft_long_mode(cpu) && (cs->attr & (CPU_SEG_L | CPU_SEG_DB)) != CPU_SEG_L)
        soft_raise_selector(cpu, VECTOR_GP, selector, dl->ext);
    if (!(cs->attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_NP, selector, dl->ext);
    dl->cpl = soft_attr_conforming(cs->attr) ? cpu->cpl : dpl;
    if ((cpu->mode & SOFT_MODE_VM) && dl->cpl != 0)
        soft_raise_selector(cpu, VECTOR_GP, selector, dl->ext);
}

static void event_push_frame(const struct event_delivery *dl, struct soft_stack *st)
{
    soft_stack_push(st, dl->width, dl->rflags);
    soft_stack_push(st, dl->width, st->cpu->s.seg[SEG_CS].selector);
    soft_stack_push(st, dl->width, dl->rip);
    if (dl->event->has_error)
        soft_stack_push(st, dl->width, dl->event->error);
}

static uint64_t event_clear_flags(const struct event_delivery *dl)
{
    uint64_t clear = RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM;

    return dl->interrupt_gate ? clear | RFLAGS_IF : clear;
}

/* To a more privileged level, also from virtual-8086 mode. */
static void event_enter_inner(struct soft_vcpu *cpu, struct event_delivery *dl)
{
    static const uint8_t v86_order[] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};
    bool v86 = cpu->mode & SOFT_MODE_VM;
    struct soft_descriptor ss;
    struct soft_stack st;
    uint16_t selector;
    uint64_t sp;

    sp = soft_tss_stack(cpu, dl->cpl, &selector, dl->ext);
    soft_stack_segment_check(cpu, selector, dl->cpl, dl->ext, &ss);
    soft_stack_inner(&st, cpu, &ss, sp, dl->ext);
    soft_check_target(cpu, &dl->cs, dl->offset, dl->ext);
    for (unsigned i = 0; v86 && i < ARRAY_SIZE(v86_order); i++)
        soft_stack_push(&st, dl->width, cpu->s.seg[v86_order[i]].selector);
    soft_stack_push(&st, dl->width, cpu->s.seg[SEG_SS].selector);
    soft_stack_push(&st, dl->width, cpu->s.gpr[GPR_RSP]);
    event_push_frame(dl, &st);
    soft_descriptor_access(cpu, &dl->cs);
    soft_descriptor_access(cpu, &ss);

    for (unsigned i = 0; v86 && i < ARRAY_SIZE(v86_order); i++)
        soft_segment_fill_null(&cpu->s.seg[v86_order[i]], 0);
    soft_segment_fill(&cpu->s.seg[SEG_SS], &ss, dl->cpl);
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, sp);
}

static void event_enter_same(struct soft_vcpu *cpu, struct event_delivery *dl)
{
    struct soft_stack st;

    soft_stack_current(&st, cpu, dl->ext);
    soft_check_target(cpu, &dl->cs, dl->offset, dl->ext);
    event_push_frame(dl, &st);
    soft_descriptor_access(cpu, &dl->cs);
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
}

static void event_task_gate(struct soft_vcpu *cpu, struct event_delivery *dl, uint64_t raw)
{
    const struct soft_descriptor gate = {.raw = raw};
    const struct soft_event event = *dl->event;

    cpu->s.rflags = dl->rflags;
    soft_task_gate(cpu, &gate, SOFT_TASK_GATE, (uint32_t)dl->rip,
                   event.has_error ? &event.error : NULL, dl->ext);
    event_commit(cpu, dl, 0);
}

/* Protected mode: an interrupt, trap or task gate of eight bytes. */
static void event_deliver_protected(struct soft_vcpu *cpu, struct event_delivery *dl)
{
    uint32_t at = dl->event->vector * 8u;
    unsigned type;
    uint64_t raw;

    if (at + 7 > cpu->s.idtr.limit)
        event_bad_gate(cpu, dl, VECTOR_GP);
    raw = soft_system_load(cpu, (uint32_t)(cpu->s.idtr.base + at), 8);
    type = (unsigned)(raw >> 40) & 0x1f;
    if (type != DESC_TASK && (type & 0x17) != DESC_INT16 && (type & 0x17) != DESC_TRAP16)
        event_bad_gate(cpu, dl, VECTOR_GP);
    if (dl->software && ((raw >> 45) & 3) < cpu->cpl)
        event_bad_gate(cpu, dl, VECTOR_GP);
    if (!((raw >> 47) & 1))
        event_bad_gate(cpu, dl, VECTOR_NP);
    if (type == DESC_TASK) {
        event_task_gate(cpu, dl, raw);
        return;
    }
    dl->width = type & 8 ? 4 : 2;
    dl->interrupt_gate = !(type & 1);
    dl->offset = (raw & 0xffff) | (type & 8 ? (raw >> 32) & 0xffff0000 : 0);
    event_load_code(cpu, dl, (uint16_t)(raw >> 16));
    if (dl->cpl < cpu->cpl)
        event_enter_inner(cpu, dl);
    else
        event_enter_same(cpu, dl);
    event_commit(cpu, dl, event_clear_flags(dl));
    soft_enter_code(cpu, &dl->cs, dl->cpl, dl->offset);
    soft_mode_update(cpu);
}

/* SDM vol. 3A 6.14.2-6.14.5: the stack is aligned to 16 bytes; IST, else RSPn when the level changes. */
static void event_stack_long(struct soft_vcpu *cpu, const struct event_delivery *dl, unsigned ist,
                             struct soft_stack *st)
{
    uint64_t rsp = cpu->s.gpr[GPR_RSP];

    if (ist)
        rsp = soft_tss_stack64(cpu, 3 + ist, dl->ext);
    else if (dl->cpl < cpu->cpl)
        rsp = soft_tss_stack64(cpu, dl->cpl, dl->ext);
    soft_stack_inner64(st, cpu, rsp & ~15ull, dl->ext);
    st->user = dl->cpl == cpu->cpl;
}

static void event_deliver_long(struct soft_vcpu *cpu, struct event_delivery *dl)
{
    uint32_t at = dl->event->vector * 16u;
    uint64_t low, high;
    struct soft_stack st;
    unsigned type;

    if (at + 15 > cpu->s.idtr.limit)
        event_bad_gate(cpu, dl, VECTOR_GP);
    low = soft_system_load(cpu, cpu->s.idtr.base + at, 8);
    high = soft_system_load(cpu, cpu->s.idtr.base + at + 8, 8);
    type = (unsigned)(low >> 40) & 0x1f;
    if (type != DESC_INT32 && type != DESC_TRAP32)
        event_bad_gate(cpu, dl, VECTOR_GP);
    if (dl->software && ((low >> 45) & 3) < cpu->cpl)
        event_bad_gate(cpu, dl, VECTOR_GP);
    if (!((low >> 47) & 1))
        event_bad_gate(cpu, dl, VECTOR_NP);
    dl->width = 8;
    dl->interrupt_gate = type == DESC_INT32;
    dl->offset = (low & 0xffff) | ((low >> 32) & 0xffff0000) | high << 32;
    event_load_code(cpu, dl, (uint16_t)(low >> 16));
    event_stack_long(cpu, dl, (unsigned)(low >> 32) & 7, &st);
    soft_check_target(cpu, &dl->cs, dl->offset, dl->ext);
    soft_stack_push(&st, 8, cpu->s.seg[SEG_SS].selector);
    soft_stack_push(&st, 8, cpu->s.gpr[GPR_RSP]);
    event_push_frame(dl, &st);
    soft_descriptor_access(cpu, &dl->cs);

    cpu->s.gpr[GPR_RSP] = st.sp;
    if (dl->cpl < cpu->cpl) {
        soft_segment_fill_null(&cpu->s.seg[SEG_SS], (uint16_t)dl->cpl);
        cpu->s.seg[SEG_SS].attr |= dl->cpl << 5;
    }
    event_commit(cpu, dl, event_clear_flags(dl));
    soft_enter_code(cpu, &dl->cs, dl->cpl, dl->offset);
    soft_mode_update(cpu);
}

/* True when done: INT n in virtual-8086 mode that the protected-mode handler does not see. */
static bool event_virtual8086(struct soft_vcpu *cpu, struct event_delivery *dl)
{
    if (dl->event->type != SOFT_EVENT_INT)
        return false;
    if (soft_vme_redirected(cpu, dl->event->vector)) {
        event_deliver_redirected(cpu, dl);
        return true;
    }
    if ((cpu->s.rflags & RFLAGS_IOPL) != RFLAGS_IOPL)
        soft_raise_gp(cpu, 0);
    return false;
}

void soft_event_deliver(struct soft_vcpu *cpu, const struct soft_event *event)
{
    struct event_delivery dl;

    event_begin(cpu, &dl, event);
    if (cpu->mode & SOFT_MODE_LMA)
        event_deliver_long(cpu, &dl);
    else if (!(cpu->mode & SOFT_MODE_PE))
        event_deliver_real(cpu, &dl);
    else if (!(cpu->mode & SOFT_MODE_VM) || !event_virtual8086(cpu, &dl))
        event_deliver_protected(cpu, &dl);
}

enum event_class { EVENT_BENIGN, EVENT_CONTRIBUTORY, EVENT_PAGE_FAULT, EVENT_DOUBLE_FAULT };

/* SDM vol. 3A table 6-4; interrupts and software events are benign. */
static enum event_class event_classify(const struct soft_event *event)
{
    if (event->type != SOFT_EVENT_EXCEPTION)
        return EVENT_BENIGN;
    switch (event->vector) {
    case VECTOR_DE:
    case VECTOR_TS:
    case VECTOR_NP:
    case VECTOR_SS:
    case VECTOR_GP:
        return EVENT_CONTRIBUTORY;
    case VECTOR_PF:
        return EVENT_PAGE_FAULT;
    case VECTOR_DF:
        return EVENT_DOUBLE_FAULT;
    default:
        return EVENT_BENIGN;
    }
}

bool soft_event_combine(const struct soft_event *first, const struct soft_event *second,
                        struct soft_event *out)
{
    enum event_class a = event_classify(first), b = event_classify(second);

    *out = *second;
    if (a == EVENT_BENIGN || b == EVENT_BENIGN)
        return true;
    if (a == EVENT_DOUBLE_FAULT)
        return false;
    if (a == EVENT_CONTRIBUTORY && b == EVENT_PAGE_FAULT)
        return true;
    *out = (struct soft_event){
        .vector = VECTOR_DF, .type = SOFT_EVENT_EXCEPTION, .has_error = true};
    return true;
}
