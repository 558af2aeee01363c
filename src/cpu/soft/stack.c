/* Stacks as events, gates and returns use them (descriptor.h), and where a TSS says they are. */
#include "cpu/soft/descriptor.h"
#include "cpu/soft/mmu.h"

static uint64_t stack_mask(uint32_t attr)
{
    return attr & CPU_SEG_DB ? 0xffffffffull : 0xffffull;
}

void soft_stack_current(struct soft_stack *st, struct soft_vcpu *cpu, unsigned ext)
{
    const struct cpu_segment *ss = &cpu->s.seg[SEG_SS];

    *st = (struct soft_stack){.cpu = cpu, .sp = cpu->s.gpr[GPR_RSP], .error = ext, .user = true};
    if (soft_code64(cpu)) {
        st->mask = ~0ull;
        return;
    }
    st->base = ss->base;
    st->mask = stack_mask(ss->attr);
    st->limit = ss->limit;
    st->attr = ss->attr;
    st->check = true;
}

void soft_stack_inner(struct soft_stack *st, struct soft_vcpu *cpu,
                      const struct soft_descriptor *ss, uint64_t sp, unsigned ext)
{
    *st = (struct soft_stack){
        .cpu = cpu,
        .base = ss->base,
        .sp = sp,
        .mask = stack_mask(ss->attr),
        .limit = ss->limit,
        .attr = ss->attr,
        .error = (ss->selector & 0xfffcu) | ext,
        .check = true,
    };
}

void soft_stack_inner64(struct soft_stack *st, struct soft_vcpu *cpu, uint64_t sp, unsigned ext)
{
    *st = (struct soft_stack){.cpu = cpu, .sp = sp, .mask = ~0ull, .error = ext};
}

/* SDM vol. 3A 5.3: an access of `size` at `offset` lies inside the segment. */
static bool stack_inside(const struct soft_stack *st, uint64_t offset, unsigned size)
{
    uint64_t last = offset + size - 1;

    if (st->attr & CPU_SEG_UNUSABLE)
        return false;
    if ((st->attr & (CPU_SEG_S | DESC_CODE | DESC_EXPAND)) == (CPU_SEG_S | DESC_EXPAND))
        return offset > st->limit && last <= stack_mask(st->attr);
    return last <= st->limit;
}

/* The linear address of `size` bytes at offset; raises #SS(error). */
static gva_t stack_address(const struct soft_stack *st, uint64_t offset, unsigned size)
{
    if (!st->check) {
        if (!soft_canonical(offset) || !soft_canonical(offset + size - 1))
            soft_raise_error(st->cpu, VECTOR_SS, st->error);
        return offset;
    }
    offset &= st->mask;
    if (!stack_inside(st, offset, size))
        soft_raise_error(st->cpu, VECTOR_SS, st->error);
    return (uint32_t)(st->base + offset);
}

void soft_stack_push(struct soft_stack *st, unsigned size, uint64_t value)
{
    uint64_t sp = (st->sp - size) & st->mask;
    gva_t gva = stack_address(st, sp, size);

    if (st->user)
        soft_store(st->cpu, SEG_SS, gva, size, value);
    else
        soft_system_store(st->cpu, gva, size, value);
    st->sp = sp;
}

uint64_t soft_stack_peek(struct soft_stack *st, uint64_t offset, unsigned size)
{
    gva_t gva = stack_address(st, (st->sp + offset) & st->mask, size);

    return st->user ? soft_load(st->cpu, SEG_SS, gva, size) : soft_system_load(st->cpu, gva, size);
}

uint64_t soft_stack_pop(struct soft_stack *st, unsigned size)
{
    uint64_t value = soft_stack_peek(st, 0, size);

    st->sp = (st->sp + size) & st->mask;
    return value;
}

static bool stack_tss_is_wide(const struct soft_vcpu *cpu)
{
    return CPU_SEG_TYPE(cpu->s.tr.attr) & 8; /* 32-bit, not 16-bit, TSS */
}

/* SDM vol. 3A 7.2.1 (32-bit TSS: ESP0 at 4, SS0 at 8, ...) and 7.6 (16-bit: SP0 at 2, SS0 at 4). */
uint64_t soft_tss_stack(struct soft_vcpu *cpu, unsigned level, uint16_t *ss, unsigned ext)
{
    const struct cpu_segment *tr = &cpu->s.tr;
    bool wide = stack_tss_is_wide(cpu);
    uint32_t at = wide ? 4 + level * 8 : 2 + level * 4;
    uint32_t last = at + (wide ? 5u : 3u);
    uint64_t sp;

    if (last > tr->limit)
        soft_raise_selector(cpu, VECTOR_TS, tr->selector, ext);
    sp = soft_system_load(cpu, (uint32_t)(tr->base + at), wide ? 4 : 2);
    *ss = (uint16_t)soft_system_load(cpu, (uint32_t)(tr->base + at + (wide ? 4 : 2)), 2);
    return sp;
}

/* SDM vol. 3A 7.7: RSP0-2 from offset 4, IST1-7 from 36. */
uint64_t soft_tss_stack64(struct soft_vcpu *cpu, unsigned slot, unsigned ext)
{
    const struct cpu_segment *tr = &cpu->s.tr;
    uint32_t at = 4 + slot * 8;
    uint64_t rsp;

    if (at + 7 > tr->limit)
        soft_raise_selector(cpu, VECTOR_TS, tr->selector, ext);
    rsp = soft_system_load(cpu, tr->base + at, 8);
    if (unlikely(!soft_canonical(rsp)))
        soft_raise_error(cpu, VECTOR_SS, ext);
    return rsp;
}

void soft_stack_segment_check(struct soft_vcpu *cpu, uint16_t selector, unsigned level,
                              unsigned ext, struct soft_descriptor *d)
{
    if (soft_selector_null(selector))
        soft_raise_error(cpu, VECTOR_TS, ext);
    soft_descriptor_load(cpu, selector, VECTOR_TS, ext, d);
    if ((selector & 3u) != level || CPU_SEG_DPL(d->attr) != level ||
        !soft_attr_writable_data(d->attr))
        soft_raise_selector(cpu, VECTOR_TS, selector, ext);
    if (!(d->attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_SS, selector, ext);
}
