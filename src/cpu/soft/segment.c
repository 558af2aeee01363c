#include "cpu/soft/descriptor.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

#define ATTR_BITS 0xf0ffu /* of descriptor bits 40-55: the limit's top nibble is not kept */

_Noreturn void soft_raise_selector(struct soft_vcpu *cpu, unsigned vector, uint16_t selector,
                                   unsigned ext)
{
    soft_raise_error(cpu, vector, (selector & 0xfffcu) | ext);
}

static void segment_unpack(struct soft_descriptor *d)
{
    uint64_t raw = d->raw;
    uint32_t limit = (uint32_t)((raw & 0xffff) | ((raw >> 32) & 0xf0000));

    d->base = ((raw >> 16) & 0xffffff) | ((raw >> 32) & 0xff000000);
    d->attr = (uint32_t)(raw >> 40) & ATTR_BITS;
    d->limit = d->attr & CPU_SEG_G ? limit << 12 | 0xfff : limit;
}

bool soft_descriptor_find(struct soft_vcpu *cpu, uint16_t selector, struct soft_descriptor *d)
{
    uint32_t offset = selector & 0xfff8u;
    uint64_t base = cpu->s.gdtr.base;
    uint32_t limit = cpu->s.gdtr.limit;

    if (selector & 4) {
        if (cpu->s.ldtr.attr & CPU_SEG_UNUSABLE)
            return false;
        base = cpu->s.ldtr.base;
        limit = cpu->s.ldtr.limit;
    }
    if (offset + 7 > limit)
        return false;
    d->addr = base + offset;
    if (!soft_long_mode(cpu))
        d->addr = (uint32_t)d->addr;
    d->raw = soft_system_load(cpu, d->addr, 8);
    d->selector = selector;
    segment_unpack(d);
    return true;
}

void soft_descriptor_load(struct soft_vcpu *cpu, uint16_t selector, unsigned vector, unsigned ext,
                          struct soft_descriptor *d)
{
    if (unlikely(!soft_descriptor_find(cpu, selector, d)))
        soft_raise_selector(cpu, vector, selector, ext);
}

void soft_descriptor_extend(struct soft_vcpu *cpu, struct soft_descriptor *d, unsigned vector,
                            unsigned ext)
{
    uint32_t limit = d->selector & 4 ? cpu->s.ldtr.limit : cpu->s.gdtr.limit;
    uint64_t high;

    if ((d->selector & 0xfff8u) + 15u > limit)
        soft_raise_selector(cpu, vector, d->selector, ext);
    high = soft_system_load(cpu, d->addr + 8, 8);
    if (high & 0x1f0000000000ull) /* type of the second half must be 0, SDM vol. 3A 3.5.2 */
        soft_raise_selector(cpu, vector, d->selector, ext);
    d->base |= high << 32;
}

void soft_descriptor_access(struct soft_vcpu *cpu, struct soft_descriptor *d)
{
    if (likely(d->attr & DESC_ACCESSED))
        return;
    d->attr |= DESC_ACCESSED;
    soft_system_store(cpu, d->addr + 5, 1, d->attr & 0xff);
}

void soft_code_check_long(struct soft_vcpu *cpu, const struct soft_descriptor *d, unsigned ext)
{
    if (soft_long_mode(cpu) && (d->attr & (CPU_SEG_L | CPU_SEG_DB)) == (CPU_SEG_L | CPU_SEG_DB))
        soft_raise_selector(cpu, VECTOR_GP, d->selector, ext);
}

void soft_segment_fill(struct cpu_segment *seg, const struct soft_descriptor *d, unsigned rpl)
{
    seg->base = d->base;
    seg->limit = d->limit;
    seg->selector = (uint16_t)((d->selector & 0xfffcu) | rpl);
    seg->attr = d->attr;
}

void soft_segment_fill_null(struct cpu_segment *seg, uint16_t selector)
{
    seg->base = 0;
    seg->limit = 0;
    seg->selector = selector;
    seg->attr = CPU_SEG_UNUSABLE;
}

void soft_segment_fill_v86(struct cpu_segment *seg, uint16_t selector)
{
    seg->base = (uint32_t)selector << 4;
    seg->limit = 0xffff;
    seg->selector = selector;
    seg->attr = 0xf3; /* present, DPL 3, read/write data, accessed */
}

void soft_segment_load_real(struct soft_vcpu *cpu, unsigned seg, uint16_t selector)
{
    struct cpu_segment *s = &cpu->s.seg[seg];

    if (cpu->mode & SOFT_MODE_VM) {
        soft_segment_fill_v86(s, selector);
        return;
    }
    /* Real mode: only the base changes; a limit set in protected mode stays ("unreal" mode). */
    if (s->attr & CPU_SEG_UNUSABLE) {
        s->limit = 0xffff;
        s->attr = 0;
    }
    s->base = (uint32_t)selector << 4;
    s->selector = selector;
    s->attr = (s->attr & (CPU_SEG_G | CPU_SEG_DB)) | (seg == SEG_CS ? 0x9b : 0x93);
}

/* SDM vol. 2B MOV: loading SS. */
static void segment_load_stack(struct soft_vcpu *cpu, uint16_t selector)
{
    struct cpu_segment *ss = &cpu->s.seg[SEG_SS];
    unsigned cpl = cpu->cpl;
    struct soft_descriptor d;

    if (soft_selector_null(selector)) {
        if (!soft_code64(cpu) || cpl == 3 || (selector & 3u) != cpl)
            soft_raise_gp(cpu, 0);
        soft_segment_fill_null(ss, selector);
        ss->attr |= cpl << 5;
        return;
    }
    soft_descriptor_load(cpu, selector, VECTOR_GP, 0, &d);
    if ((selector & 3u) != cpl || !soft_attr_writable_data(d.attr) || CPU_SEG_DPL(d.attr) != cpl)
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
    if (!(d.attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_SS, selector, 0);
    soft_descriptor_access(cpu, &d);
    soft_segment_fill(ss, &d, cpl);
}

static void segment_load_data(struct soft_vcpu *cpu, unsigned seg, uint16_t selector)
{
    unsigned rpl = selector & 3u, dpl;
    struct soft_descriptor d;

    if (soft_selector_null(selector)) {
        soft_segment_fill_null(&cpu->s.seg[seg], selector);
        return;
    }
    soft_descriptor_load(cpu, selector, VECTOR_GP, 0, &d);
    dpl = CPU_SEG_DPL(d.attr);
    if (!(d.attr & CPU_SEG_S) || (soft_attr_code(d.attr) && !(d.attr & DESC_READABLE)))
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
    if (!(soft_attr_code(d.attr) && soft_attr_conforming(d.attr)) && (rpl > dpl || cpu->cpl > dpl))
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
    if (!(d.attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_NP, selector, 0);
    soft_descriptor_access(cpu, &d);
    soft_segment_fill(&cpu->s.seg[seg], &d, rpl);
}

void soft_segment_load(struct soft_vcpu *cpu, unsigned seg, uint16_t selector)
{
    if (soft_real_selectors(cpu))
        soft_segment_load_real(cpu, seg, selector);
    else if (seg == SEG_SS)
        segment_load_stack(cpu, selector);
    else
        segment_load_data(cpu, seg, selector);
    if (seg != SEG_FS && seg != SEG_GS)
        soft_mode_update(cpu);
}

void soft_check_target(struct soft_vcpu *cpu, const struct soft_descriptor *cs, uint64_t rip,
                       unsigned ext)
{
    bool wide = soft_long_mode(cpu) && (cs->attr & CPU_SEG_L);

    if (wide ? !soft_canonical(rip) : rip > cs->limit)
        soft_raise_gp(cpu, ext);
}

void soft_enter_code(struct soft_vcpu *cpu, const struct soft_descriptor *cs, unsigned rpl,
                     uint64_t rip)
{
    soft_segment_fill(&cpu->s.seg[SEG_CS], cs, rpl);
    cpu->next_rip = rip;
}

void soft_drop_inner_segments(struct soft_vcpu *cpu)
{
    static const uint8_t data_segments[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

    for (unsigned i = 0; i < ARRAY_SIZE(data_segments); i++) {
        struct cpu_segment *s = &cpu->s.seg[data_segments[i]];
        bool conforming = soft_attr_code(s->attr) && soft_attr_conforming(s->attr);

        if (!(s->attr & CPU_SEG_UNUSABLE) && !conforming && CPU_SEG_DPL(s->attr) < cpu->cpl)
            soft_segment_fill_null(s, 0);
    }
}
