/* Software interrupts, far transfers, fast system calls. References: SDM vol. 2; APM vol. 3. */
#include "cpu/soft/descriptor.h"
#include "cpu/soft/exec_system.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

static void transfer_interrupt(struct soft_vcpu *cpu, unsigned vector, enum soft_event_type type)
{
    const struct soft_event event = {.vector = (uint8_t)vector, .type = (uint8_t)type};

    soft_event_deliver(cpu, &event);
}

void exec_int(struct soft_vcpu *cpu, const struct insn *in)
{
    transfer_interrupt(cpu, in->imm & 0xff, SOFT_EVENT_INT);
}

void exec_int3(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    transfer_interrupt(cpu, VECTOR_BP, SOFT_EVENT_INT3_INTO);
}

void exec_into(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    if (cpu->s.rflags & RFLAGS_OF)
        transfer_interrupt(cpu, VECTOR_OF, SOFT_EVENT_INT3_INTO);
}

void exec_int1(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    transfer_interrupt(cpu, VECTOR_DB, SOFT_EVENT_ICEBP);
}

void exec_iret(struct soft_vcpu *cpu, const struct insn *in)
{
    soft_iret(cpu, in->opsize);
}

/* The far pointer in memory: offset, then selector. */
static uint16_t transfer_load_pointer(struct soft_vcpu *cpu, const struct insn *in, uint64_t *offset)
{
    gva_t gva = soft_operand(cpu, in, in->opsize + 2u, SOFT_READ);

    *offset = soft_load(cpu, in->seg, gva, in->opsize);
    return (uint16_t)soft_load(cpu, in->seg, gva + in->opsize, 2);
}

void exec_jump_far_pointer(struct soft_vcpu *cpu, const struct insn *in)
{
    soft_far_jump(cpu, (uint16_t)in->disp, in->imm, in->opsize);
}

void exec_call_far_pointer(struct soft_vcpu *cpu, const struct insn *in)
{
    soft_far_call(cpu, (uint16_t)in->disp, in->imm, in->opsize);
}

void exec_jump_far_memory(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t offset;
    uint16_t selector = transfer_load_pointer(cpu, in, &offset);

    soft_far_jump(cpu, selector, offset, in->opsize);
}

void exec_call_far_memory(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t offset;
    uint16_t selector = transfer_load_pointer(cpu, in, &offset);

    soft_far_call(cpu, selector, offset, in->opsize);
}

void exec_return_far(struct soft_vcpu *cpu, const struct insn *in)
{
    soft_far_return(cpu, in->opsize, (uint16_t)in->imm);
}

static void transfer_flat(struct soft_vcpu *cpu, unsigned cs, uint32_t cs_attr, unsigned ss,
                          uint32_t dpl_bits)
{
    cpu->s.seg[SEG_CS] = (struct cpu_segment){
        .limit = 0xffffffff, .selector = (uint16_t)cs, .attr = cs_attr | dpl_bits};
    cpu->s.seg[SEG_SS] = (struct cpu_segment){
        .limit = 0xffffffff, .selector = (uint16_t)ss, .attr = SOFT_FLAT_DATA | dpl_bits};
}

/* APM vol. 3 SYSCALL, legacy mode: EIP from STAR, no mask. */
static void transfer_syscall_legacy(struct soft_vcpu *cpu)
{
    unsigned cs = (unsigned)(cpu->s.msr.star >> 32) & 0xfffc;

    cpu->s.gpr[GPR_RCX] = (uint32_t)cpu->next_rip;
    cpu->next_rip = (uint32_t)cpu->s.msr.star;
    cpu->s.rflags &= ~(uint64_t)(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF);
    transfer_flat(cpu, cs, SOFT_FLAT_CODE32, cs + 8, 0);
    soft_mode_update(cpu);
}

void exec_syscall(struct soft_vcpu *cpu, const struct insn *in)
{
    bool wide = soft_code64(cpu);
    unsigned cs = (unsigned)(cpu->s.msr.star >> 32) & 0xfffc;

    (void)in;
    if (unlikely(!(cpu->s.efer & EFER_SCE)))
        soft_raise_ud(cpu);
    if (unlikely(!wide)) {
        if (!soft_is_amd(cpu) || !(cpu->mode & SOFT_MODE_PE))
            soft_raise_ud(cpu);
        if (!soft_long_mode(cpu)) {
            transfer_syscall_legacy(cpu);
            return;
        }
    }
    cpu->s.gpr[GPR_RCX] = cpu->next_rip;
    cpu->s.gpr[GPR_R11] = cpu->s.rflags & ~(uint64_t)RFLAGS_RF;
    cpu->next_rip = wide ? cpu->s.msr.lstar : cpu->s.msr.cstar;
    cpu->s.rflags = (cpu->s.rflags & ~(cpu->s.msr.sfmask | RFLAGS_RF)) | RFLAGS_ONE;
    transfer_flat(cpu, cs, SOFT_FLAT_CODE64, (uint16_t)(cs + 8), 0);
    cpu->single_step = cpu->s.rflags & RFLAGS_TF; /* the new TF decides */
    soft_mode_update(cpu);
}

static void transfer_sysret_legacy(struct soft_vcpu *cpu)
{
    unsigned base = (unsigned)(cpu->s.msr.star >> 48);

    cpu->next_rip = (uint32_t)cpu->s.gpr[GPR_RCX];
    cpu->s.rflags |= RFLAGS_IF;
    transfer_flat(cpu, base | 3, SOFT_FLAT_CODE32, (base + 8) | 3, SOFT_FLAT_USER);
    soft_mode_update(cpu);
}

void exec_sysret(struct soft_vcpu *cpu, const struct insn *in)
{
    unsigned base = (unsigned)(cpu->s.msr.star >> 48);
    bool wide = in->opsize == 8;
    uint64_t rip = cpu->s.gpr[GPR_RCX];

    if (!(cpu->s.efer & EFER_SCE) || !(cpu->mode & SOFT_MODE_PE) ||
        (!soft_code64(cpu) && !soft_is_amd(cpu)))
        soft_raise_ud(cpu);
    exec_require_cpl0(cpu);
    if (!soft_long_mode(cpu)) {
        transfer_sysret_legacy(cpu);
        return;
    }
    /* AMD takes the fault at the target, in user mode; Intel here. */
    if (wide && unlikely(!soft_canonical(rip)) && !soft_is_amd(cpu))
        soft_raise_gp(cpu, 0);
    cpu->next_rip = wide ? rip : (uint32_t)rip;
    cpu->s.rflags = (cpu->s.gpr[GPR_R11] & SOFT_SYSRET_FLAGS) | RFLAGS_ONE;
    if (wide)
        transfer_flat(cpu, (base + 16) | 3, SOFT_FLAT_CODE64, (base + 8) | 3, SOFT_FLAT_USER);
    else
        transfer_flat(cpu, base | 3, SOFT_FLAT_CODE32, (base + 8) | 3, SOFT_FLAT_USER);
    soft_mode_update(cpu);
}

void exec_sysenter(struct soft_vcpu *cpu, const struct insn *in)
{
    unsigned cs = (unsigned)cpu->s.msr.sysenter_cs & 0xfffc;
    bool wide = soft_long_mode(cpu);

    (void)in;
    if (wide && soft_is_amd(cpu))
        soft_raise_ud(cpu);
    if (!(cpu->mode & SOFT_MODE_PE) || cs == 0)
        soft_raise_gp(cpu, 0);
    cpu->s.rflags &= ~(uint64_t)(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF);
    cpu->s.gpr[GPR_RSP] = wide ? cpu->s.msr.sysenter_esp : (uint32_t)cpu->s.msr.sysenter_esp;
    cpu->next_rip = wide ? cpu->s.msr.sysenter_eip : (uint32_t)cpu->s.msr.sysenter_eip;
    transfer_flat(cpu, cs, wide ? SOFT_FLAT_CODE64 : SOFT_FLAT_CODE32, cs + 8, 0);
    soft_mode_update(cpu);
}

void exec_sysexit(struct soft_vcpu *cpu, const struct insn *in)
{
    unsigned cs = (unsigned)cpu->s.msr.sysenter_cs & 0xfffc;
    uint64_t rip = cpu->s.gpr[GPR_RDX], rsp = cpu->s.gpr[GPR_RCX];
    bool wide = in->opsize == 8;

    if (soft_long_mode(cpu) && soft_is_amd(cpu))
        soft_raise_ud(cpu);
    if (!(cpu->mode & SOFT_MODE_PE) || cs == 0 || cpu->cpl != 0)
        soft_raise_gp(cpu, 0);
    if (wide && (!soft_canonical(rip) || !soft_canonical(rsp)))
        soft_raise_gp(cpu, 0);
    cpu->next_rip = wide ? rip : (uint32_t)rip;
    cpu->s.gpr[GPR_RSP] = wide ? rsp : (uint32_t)rsp;
    cs += wide ? 32 : 16;
    transfer_flat(cpu, cs | 3, wide ? SOFT_FLAT_CODE64 : SOFT_FLAT_CODE32, (cs + 8) | 3, SOFT_FLAT_USER);
    soft_mode_update(cpu);
}
