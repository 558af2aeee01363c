/* Segment registers, descriptor-table registers and the instructions that look at descriptors. */
#include "cpu/soft/descriptor.h"
#include "cpu/soft/exec_system.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

/* r/m16 source: the register in `src`. */
static uint16_t selector_operand(struct soft_vcpu *cpu, const struct insn *in)
{
    if (!(in->flags & INSN_HAS_MEM))
        return (uint16_t)cpu->s.gpr[in->src];
    return (uint16_t)soft_load(cpu, in->seg, soft_operand(cpu, in, 2, SOFT_READ), 2);
}

/* Memory takes 16 bits; a register the operand size. */
static void selector_store(struct soft_vcpu *cpu, const struct insn *in, uint64_t value)
{
    if (in->flags & INSN_HAS_MEM)
        soft_store(cpu, in->seg, soft_operand(cpu, in, 2, SOFT_WRITE), 2, value & 0xffff);
    else
        exec_write_gpr(cpu, in->dst, in->opsize, value);
}

static void selector_require_protected(struct soft_vcpu *cpu)
{
    if (soft_real_selectors(cpu))
        soft_raise_ud(cpu);
}

static void selector_require_umip(struct soft_vcpu *cpu)
{
    if ((cpu->s.cr4 & CR4_UMIP) && cpu->cpl != 0)
        soft_raise_gp(cpu, 0);
}

void exec_mov_from_segment(struct soft_vcpu *cpu, const struct insn *in)
{
    selector_store(cpu, in, cpu->s.seg[in->src].selector);
}

/* Interrupts wait until the instruction after a load of SS, SDM vol. 3A 6.8.3. */
static void selector_shadow(struct soft_vcpu *cpu, unsigned seg)
{
    if (seg != SEG_SS)
        return;
    cpu->s.interrupt_shadow |= 2;
    cpu->end_block = true;
}

void exec_mov_to_segment(struct soft_vcpu *cpu, const struct insn *in)
{
    soft_segment_load(cpu, in->dst, selector_operand(cpu, in));
    selector_shadow(cpu, in->dst);
}

void exec_pop_segment(struct soft_vcpu *cpu, const struct insn *in)
{
    struct soft_stack st;
    uint64_t rsp;
    uint16_t selector;

    soft_stack_current(&st, cpu, 0);
    selector = (uint16_t)soft_stack_pop(&st, in->opsize);
    rsp = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
    soft_segment_load(cpu, in->dst, selector);
    cpu->s.gpr[GPR_RSP] = rsp;
    selector_shadow(cpu, in->dst);
}

/* LDS, LES, LSS, LFS, LGS: dst is the segment, src the general register. */
void exec_load_far_pointer(struct soft_vcpu *cpu, const struct insn *in)
{
    gva_t gva = soft_operand(cpu, in, in->opsize + 2u, SOFT_READ);
    uint64_t offset = soft_load(cpu, in->seg, gva, in->opsize);
    uint16_t selector = (uint16_t)soft_load(cpu, in->seg, gva + in->opsize, 2);

    soft_segment_load(cpu, in->dst, selector);
    exec_write_gpr(cpu, in->src, in->opsize, offset);
}

/* LLDT and LTR: in the GDT, of the type wanted, present; 16 bytes in long mode. */
static void selector_load_system(struct soft_vcpu *cpu, uint16_t selector, unsigned type,
                                 struct soft_descriptor *d)
{
    if (selector & 4)
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
    soft_descriptor_load(cpu, selector, VECTOR_GP, 0, d);
    if ((d->attr & (CPU_SEG_S | 0xf)) != type)
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
    if (!(d->attr & CPU_SEG_P))
        soft_raise_selector(cpu, VECTOR_NP, selector, 0);
    if (!soft_long_mode(cpu))
        return;
    soft_descriptor_extend(cpu, d, VECTOR_GP, 0);
    if (!soft_canonical(d->base))
        soft_raise_selector(cpu, VECTOR_GP, selector, 0);
}

void exec_lldt(struct soft_vcpu *cpu, const struct insn *in)
{
    struct soft_descriptor d;
    uint16_t selector;

    selector_require_protected(cpu);
    exec_require_cpl0(cpu);
    selector = selector_operand(cpu, in);
    if (soft_selector_null(selector)) {
        soft_segment_fill_null(&cpu->s.ldtr, selector);
        return;
    }
    selector_load_system(cpu, selector, DESC_LDT, &d);
    soft_segment_fill(&cpu->s.ldtr, &d, selector & 3u);
}

void exec_ltr(struct soft_vcpu *cpu, const struct insn *in)
{
    struct soft_descriptor d;
    uint16_t selector;
    unsigned type;

    selector_require_protected(cpu);
    exec_require_cpl0(cpu);
    selector = selector_operand(cpu, in);
    if (soft_selector_null(selector))
        soft_raise_gp(cpu, 0);
    type = DESC_TSS32;
    if (!soft_long_mode(cpu) && soft_descriptor_find(cpu, selector, &d) &&
        CPU_SEG_TYPE(d.attr) == DESC_TSS16)
        type = DESC_TSS16;
    selector_load_system(cpu, selector, type, &d);
    d.attr |= 2; /* busy */
    soft_system_store(cpu, d.addr + 5, 1, d.attr & 0xff);
    soft_segment_fill(&cpu->s.tr, &d, selector & 3u);
}

void exec_sldt(struct soft_vcpu *cpu, const struct insn *in)
{
    selector_require_protected(cpu);
    selector_require_umip(cpu);
    selector_store(cpu, in, cpu->s.ldtr.selector);
}

void exec_str(struct soft_vcpu *cpu, const struct insn *in)
{
    selector_require_protected(cpu);
    selector_require_umip(cpu);
    selector_store(cpu, in, cpu->s.tr.selector);
}

/* Bit n: system type n is valid for LAR resp. LSL (SDM vol. 2A tables 3-53, 3-56). */
#define LAR_TYPES      0x1a3eu
#define LAR_TYPES_LONG 0x1a04u
#define LSL_TYPES      0x0a0eu
#define LSL_TYPES_LONG 0x0a04u

/* A descriptor that this CPL and the selector's RPL may look at; `types`: system types allowed. */
static bool selector_visible(struct soft_vcpu *cpu, uint16_t selector, uint32_t types,
                             struct soft_descriptor *d)
{
    unsigned dpl;

    if (soft_selector_null(selector) || !soft_descriptor_find(cpu, selector, d))
        return false;
    dpl = CPU_SEG_DPL(d->attr);
    if (!(d->attr & CPU_SEG_S) && !(types >> CPU_SEG_TYPE(d->attr) & 1))
        return false;
    if (soft_attr_code(d->attr) && soft_attr_conforming(d->attr))
        return true;
    return cpu->cpl <= dpl && (selector & 3u) <= dpl;
}

static void selector_set_zf(struct soft_vcpu *cpu, bool set)
{
    cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)RFLAGS_ZF) | (set ? RFLAGS_ZF : 0);
}

void exec_lar(struct soft_vcpu *cpu, const struct insn *in)
{
    uint32_t types = soft_long_mode(cpu) ? LAR_TYPES_LONG : LAR_TYPES;
    struct soft_descriptor d;
    uint16_t selector;
    bool ok;

    selector_require_protected(cpu);
    selector = selector_operand(cpu, in);
    ok = selector_visible(cpu, selector, types, &d);
    if (ok)
        exec_write_gpr(cpu, in->dst, in->opsize, (d.raw >> 32) & 0x00ffff00);
    selector_set_zf(cpu, ok);
}

void exec_lsl(struct soft_vcpu *cpu, const struct insn *in)
{
    uint32_t types = soft_long_mode(cpu) ? LSL_TYPES_LONG : LSL_TYPES;
    struct soft_descriptor d;
    uint16_t selector;
    bool ok;

    selector_require_protected(cpu);
    selector = selector_operand(cpu, in);
    ok = selector_visible(cpu, selector, types, &d);
    if (ok)
        exec_write_gpr(cpu, in->dst, in->opsize, d.limit);
    selector_set_zf(cpu, ok);
}

void exec_verr(struct soft_vcpu *cpu, const struct insn *in)
{
    struct soft_descriptor d;
    uint16_t selector;

    selector_require_protected(cpu);
    selector = selector_operand(cpu, in);
    selector_set_zf(cpu, selector_visible(cpu, selector, 0, &d) &&
                             (!soft_attr_code(d.attr) || (d.attr & DESC_READABLE)));
}

void exec_verw(struct soft_vcpu *cpu, const struct insn *in)
{
    struct soft_descriptor d;
    uint16_t selector;

    selector_require_protected(cpu);
    selector = selector_operand(cpu, in);
    selector_set_zf(cpu, selector_visible(cpu, selector, 0, &d) && soft_attr_writable_data(d.attr));
}

/* ARPL r/m16, r16: the destination is dst or memory, the source src2. */
void exec_arpl(struct soft_vcpu *cpu, const struct insn *in)
{
    bool memory = in->flags & INSN_HAS_MEM;
    unsigned rpl = cpu->s.gpr[in->src2] & 3;
    uint64_t value;
    gva_t gva = 0;

    selector_require_protected(cpu);
    if (memory)
        gva = soft_operand(cpu, in, 2, SOFT_WRITE);
    value = memory ? soft_load(cpu, in->seg, gva, 2) : cpu->s.gpr[in->dst] & 0xffff;
    if ((value & 3) >= rpl) {
        selector_set_zf(cpu, false);
        return;
    }
    value = (value & ~3ull) | rpl;
    if (memory)
        soft_store(cpu, in->seg, gva, 2, value);
    else
        exec_write_gpr(cpu, in->dst, 2, value);
    selector_set_zf(cpu, true);
}

/* LGDT, LIDT: 16-bit operands take 24 bits of the base; 64-bit mode always takes 64. */
static void selector_load_table(struct soft_vcpu *cpu, const struct insn *in, struct cpu_table *t)
{
    unsigned size = soft_code64(cpu) ? 8 : 4;
    uint64_t base;
    uint16_t limit;
    gva_t gva;

    exec_require_cpl0(cpu);
    gva = soft_operand(cpu, in, size + 2, SOFT_READ);
    limit = (uint16_t)soft_load(cpu, in->seg, gva, 2);
    base = soft_load(cpu, in->seg, gva + 2, size);
    if (size == 8 && !soft_canonical(base))
        soft_raise_gp(cpu, 0);
    if (size == 4 && in->opsize == 2)
        base &= 0xffffff;
    t->limit = limit;
    t->base = base;
}

static void selector_store_table(struct soft_vcpu *cpu, const struct insn *in,
                                 const struct cpu_table *t)
{
    unsigned size = soft_code64(cpu) ? 8 : 4;
    gva_t gva;

    selector_require_umip(cpu);
    gva = soft_operand(cpu, in, size + 2, SOFT_WRITE);
    soft_probe_write(cpu, in->seg, gva, size + 2);
    soft_store(cpu, in->seg, gva, 2, t->limit);
    soft_store(cpu, in->seg, gva + 2, size, t->base);
}

void exec_lgdt(struct soft_vcpu *cpu, const struct insn *in)
{
    selector_load_table(cpu, in, &cpu->s.gdtr);
}

void exec_lidt(struct soft_vcpu *cpu, const struct insn *in)
{
    selector_load_table(cpu, in, &cpu->s.idtr);
}

void exec_sgdt(struct soft_vcpu *cpu, const struct insn *in)
{
    selector_store_table(cpu, in, &cpu->s.gdtr);
}

void exec_sidt(struct soft_vcpu *cpu, const struct insn *in)
{
    selector_store_table(cpu, in, &cpu->s.idtr);
}
