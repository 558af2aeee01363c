/* Control and debug registers, flags, MSRs, CPUID, TLB and cache maintenance, HLT, hypercalls. */
#include "cpu/soft/descriptor.h"
#include "cpu/soft/exec_system.h"
#include "cpu/soft/fpu.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

#define EAX(cpu) ((uint32_t)(cpu)->s.gpr[GPR_RAX])
#define ECX(cpu) ((uint32_t)(cpu)->s.gpr[GPR_RCX])
#define EDX(cpu) ((uint32_t)(cpu)->s.gpr[GPR_RDX])

/* MOV to and from CR, DR: always the full register width of the mode. */
void exec_mov_from_cr(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t value;

    exec_require_cpl0(cpu);
    value = soft_cr_read(cpu, in->src);
    cpu->s.gpr[in->dst] = soft_code64(cpu) ? value : (uint32_t)value;
}

void exec_mov_to_cr(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t value = cpu->s.gpr[in->src];

    exec_require_cpl0(cpu);
    soft_cr_write(cpu, in->dst, soft_code64(cpu) ? value : (uint32_t)value);
}

void exec_mov_from_dr(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t value = soft_dr_read(cpu, in->src);

    cpu->s.gpr[in->dst] = soft_code64(cpu) ? value : (uint32_t)value;
}

void exec_mov_to_dr(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t value = cpu->s.gpr[in->src];

    soft_dr_write(cpu, in->dst, soft_code64(cpu) ? value : (uint32_t)value);
}

void exec_clts(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    exec_require_cpl0(cpu);
    if (!(cpu->s.cr0 & CR0_TS))
        return;
    cpu->s.cr0 &= ~(uint64_t)CR0_TS;
    soft_mode_update(cpu);
}

void exec_lmsw(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t value = cpu->s.gpr[in->src];

    exec_require_cpl0(cpu);
    if (in->flags & INSN_HAS_MEM)
        value = soft_load(cpu, in->seg, soft_operand(cpu, in, 2, SOFT_READ), 2);
    soft_lmsw(cpu, (uint16_t)value);
}

void exec_smsw(struct soft_vcpu *cpu, const struct insn *in)
{
    if ((cpu->s.cr4 & CR4_UMIP) && cpu->cpl != 0)
        soft_raise_gp(cpu, 0);
    if (in->flags & INSN_HAS_MEM)
        soft_store(cpu, in->seg, soft_operand(cpu, in, 2, SOFT_WRITE), 2, cpu->s.cr0 & 0xffff);
    else
        exec_write_gpr(cpu, in->dst, in->opsize, cpu->s.cr0);
}

void exec_cli(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    soft_cli(cpu);
}

void exec_sti(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    soft_sti(cpu);
}

void exec_pushf(struct soft_vcpu *cpu, const struct insn *in)
{
    soft_pushf(cpu, in->opsize);
}

void exec_popf(struct soft_vcpu *cpu, const struct insn *in)
{
    soft_popf(cpu, in->opsize);
}

/* On every copy to and from user space: at CPL 0 AC only chooses the context, so the block goes on. */
static void privileged_set_ac(struct soft_vcpu *cpu, uint64_t ac)
{
    if (cpu->cpl != 0)
        soft_raise_ud(cpu);
    cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)RFLAGS_AC) | ac;
    cpu->mmu_index = ac ? SOFT_MMU_KERNEL_AC : SOFT_MMU_KERNEL;
    soft_context_select(cpu);
}

void exec_stac(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    privileged_set_ac(cpu, RFLAGS_AC);
}

void exec_clac(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    privileged_set_ac(cpu, 0);
}

void exec_swapgs(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t base = cpu->s.seg[SEG_GS].base;

    (void)in;
    exec_require_cpl0(cpu);
    cpu->s.seg[SEG_GS].base = cpu->s.msr.kernel_gs_base;
    cpu->s.msr.kernel_gs_base = base;
}

static void privileged_read_base(struct soft_vcpu *cpu, const struct insn *in, unsigned seg)
{
    if (!(cpu->s.cr4 & CR4_FSGSBASE))
        soft_raise_ud(cpu);
    exec_write_gpr(cpu, in->dst, in->opsize, cpu->s.seg[seg].base);
}

static void privileged_write_base(struct soft_vcpu *cpu, const struct insn *in, unsigned seg)
{
    uint64_t base = cpu->s.gpr[in->dst];

    if (!(cpu->s.cr4 & CR4_FSGSBASE))
        soft_raise_ud(cpu);
    if (in->opsize == 4)
        base = (uint32_t)base;
    if (!soft_canonical(base))
        soft_raise_gp(cpu, 0);
    cpu->s.seg[seg].base = base;
}

void exec_rdfsbase(struct soft_vcpu *cpu, const struct insn *in)
{
    privileged_read_base(cpu, in, SEG_FS);
}

void exec_rdgsbase(struct soft_vcpu *cpu, const struct insn *in)
{
    privileged_read_base(cpu, in, SEG_GS);
}

void exec_wrfsbase(struct soft_vcpu *cpu, const struct insn *in)
{
    privileged_write_base(cpu, in, SEG_FS);
}

void exec_wrgsbase(struct soft_vcpu *cpu, const struct insn *in)
{
    privileged_write_base(cpu, in, SEG_GS);
}

static void privileged_write_pair(struct soft_vcpu *cpu, uint64_t value)
{
    cpu->s.gpr[GPR_RAX] = (uint32_t)value;
    cpu->s.gpr[GPR_RDX] = value >> 32;
}

static uint64_t privileged_read_pair(const struct soft_vcpu *cpu)
{
    return EAX(cpu) | (uint64_t)EDX(cpu) << 32;
}

void exec_rdmsr(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t value = 0;

    (void)in;
    exec_require_cpl0(cpu);
    if (soft_msr_read(cpu, ECX(cpu), &value))
        soft_raise_gp(cpu, 0);
    privileged_write_pair(cpu, value);
}

void exec_wrmsr(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    exec_require_cpl0(cpu);
    if (soft_msr_write(cpu, ECX(cpu), privileged_read_pair(cpu)))
        soft_raise_gp(cpu, 0);
}

static void privileged_check_tsd(struct soft_vcpu *cpu)
{
    if ((cpu->s.cr4 & CR4_TSD) && cpu->cpl != 0)
        soft_raise_gp(cpu, 0);
}

void exec_rdtsc(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    privileged_check_tsd(cpu);
    privileged_write_pair(cpu, soft_tsc(cpu));
}

void exec_rdtscp(struct soft_vcpu *cpu, const struct insn *in)
{
    exec_rdtsc(cpu, in);
    cpu->s.gpr[GPR_RCX] = (uint32_t)cpu->s.msr.tsc_aux;
}

void exec_rdpid(struct soft_vcpu *cpu, const struct insn *in)
{
    cpu->s.gpr[in->dst] = (uint32_t)cpu->s.msr.tsc_aux;
}

/* No performance counters: every index is out of range. */
void exec_rdpmc(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    soft_raise_gp(cpu, 0);
}

static const struct cpuid_entry *privileged_cpuid_find(const struct soft_vcpu *cpu, uint32_t leaf,
                                                       uint32_t subleaf)
{
    const struct cpu_model *model = cpu->base.vm->model;

    for (unsigned i = 0; i < model->count; i++) {
        const struct cpuid_entry *e = &model->entries[i];

        if (e->leaf == leaf && (!e->has_subleaf || e->subleaf == subleaf))
            return e;
    }
    return NULL;
}

/* XSAVE area size for the components in xcr0: standard format. */
static uint32_t privileged_xsave_size(const struct soft_vcpu *cpu, bool compacted)
{
    uint32_t size = 576;

    for (uint32_t i = 2; i < 63; i++) {
        const struct cpuid_entry *e;

        if (!(cpu->s.xcr0 >> i & 1))
            continue;
        e = privileged_cpuid_find(cpu, 0xd, i);
        if (!e)
            continue;
        if (compacted)
            size = (e->regs.ecx & 2 ? (size + 63) & ~63u : size) + e->regs.eax;
        else if (e->regs.ebx + e->regs.eax > size)
            size = e->regs.ebx + e->regs.eax;
    }
    return size;
}

/* What depends on the vCPU and its state. */
static void privileged_cpuid_fill(const struct soft_vcpu *cpu, uint32_t leaf, uint32_t subleaf,
                                  struct cpuid_regs *r)
{
    uint32_t id = cpu->base.index;

    switch (leaf) {
    case 1:
        r->ebx |= id << 24;
        if (cpu->s.cr4 & CR4_OSXSAVE)
            r->ecx |= 1u << 27;
        break;
    case 7:
        if (subleaf == 0 && (cpu->s.cr4 & CR4_PKE))
            r->ecx |= 1u << 4;
        break;
    case 0xb:
        r->edx = id;
        break;
    case 0xd:
        if (subleaf < 2)
            r->ebx = privileged_xsave_size(cpu, subleaf == 1);
        break;
    case 0x80000001:
        /* Intel shows SYSCALL only in 64-bit mode. */
        if (!soft_is_amd(cpu) && !soft_code64(cpu))
            r->edx &= ~(1u << 11);
        break;
    case 0x8000001e:
        r->eax = id;
        r->ebx = id & 0xff;
        break;
    default:
        break;
    }
}

void exec_cpuid(struct soft_vcpu *cpu, const struct insn *in)
{
    uint32_t leaf = EAX(cpu), subleaf = ECX(cpu);
    const struct cpuid_entry *e = privileged_cpuid_find(cpu, leaf, subleaf);
    struct cpuid_regs r = {0, 0, leaf == 0xb ? subleaf & 0xff : 0, 0};

    (void)in;
    if (e)
        r = e->regs;
    if (e || leaf == 0xb)
        privileged_cpuid_fill(cpu, leaf, subleaf, &r);
    cpu->s.gpr[GPR_RAX] = r.eax;
    cpu->s.gpr[GPR_RBX] = r.ebx;
    cpu->s.gpr[GPR_RCX] = r.ecx;
    cpu->s.gpr[GPR_RDX] = r.edx;
}

/* The address is not accessed: no limit, no canonical fault (SDM vol. 2A INVLPG). */
void exec_invlpg(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t gva = insn_ea(cpu, in);

    exec_require_cpl0(cpu);
    if (!soft_code64(cpu))
        gva = (uint32_t)(gva + cpu->s.seg[in->seg].base);
    else if (in->flags & INSN_FS_GS)
        gva += cpu->s.seg[in->seg].base;
    if (soft_canonical(gva))
        soft_tlb_flush_page(cpu, gva);
}

void exec_invpcid(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t type = cpu->s.gpr[in->dst], pcid, address;
    gva_t gva;

    exec_require_cpl0(cpu);
    if (!soft_code64(cpu))
        type = (uint32_t)type;
    gva = soft_operand(cpu, in, 16, SOFT_READ);
    pcid = soft_load(cpu, in->seg, gva, 8);
    address = soft_load(cpu, in->seg, gva + 8, 8);
    if (type > 3 || (type < 2 && pcid > 0xfff) ||
        (type < 2 && pcid && !(cpu->s.cr4 & CR4_PCIDE)) || (type == 0 && !soft_canonical(address)))
        soft_raise_gp(cpu, 0);
    if (type == 0)
        soft_tlb_flush_pcid_page(cpu, (unsigned)pcid, address);
    else if (type == 1)
        soft_tlb_flush_pcid(cpu, (unsigned)pcid);
    else
        soft_tlb_flush(cpu);
}

/* INVD, WBINVD, WBNOINVD: guest memory is coherent. */
void exec_cache_nop(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    exec_require_cpl0(cpu);
}

void exec_hlt(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    exec_require_cpl0(cpu);
    cpu->s.activity = CPU_HALTED;
    cpu->end_block = true;
}

#define KVM_ENOSYS 1000
#define KVM_EPERM  1

/* VMCALL, VMMCALL: Linux Documentation/virt/kvm/x86/hypercalls.rst; no hypercall is offered. */
void exec_hypercall(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    if (!privileged_cpuid_find(cpu, 0x40000000, 0))
        soft_raise_ud(cpu);
    cpu->s.gpr[GPR_RAX] = (uint64_t)(cpu->cpl == 0 ? -KVM_ENOSYS : -KVM_EPERM);
}

void exec_ud(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    soft_raise_ud(cpu);
}

void exec_xgetbv(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    if (!(cpu->s.cr4 & CR4_OSXSAVE))
        soft_raise_ud(cpu);
    /* 1: XINUSE. Every enabled component may be in use. */
    if (ECX(cpu) > 1)
        soft_raise_gp(cpu, 0);
    privileged_write_pair(cpu, cpu->s.xcr0);
}

void exec_xsetbv(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    if (!(cpu->s.cr4 & CR4_OSXSAVE))
        soft_raise_ud(cpu);
    exec_require_cpl0(cpu);
    if (ECX(cpu) != 0)
        soft_raise_gp(cpu, 0);
    soft_xcr0_write(cpu, privileged_read_pair(cpu));
}
