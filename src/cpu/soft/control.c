/* Control registers, RFLAGS, I/O permission. References: SDM vol. 3A 2.5, 4.10.4, 9.9, 20.3, 20.4. */
#include "cpu/soft/descriptor.h"
#include "cpu/soft/fpu.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

#define CR0_DEFINED (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | \
                     CR0_NW | CR0_CD | CR0_PG)

/* Feature flag of the model without leaving the folder (vcpu.h: vector registers are the guest's). */
bool soft_has_feature(const struct soft_vcpu *cpu, uint32_t leaf, char reg, unsigned bit)
{
    const struct cpu_model *model = cpu->base.vm->model;

    for (unsigned i = 0; i < model->count; i++) {
        const struct cpuid_regs *r = &model->entries[i].regs;

        if (model->entries[i].leaf != leaf || model->entries[i].subleaf)
            continue;
        return (reg == 'a' ? r->eax : reg == 'b' ? r->ebx : reg == 'c' ? r->ecx : r->edx) >> bit & 1;
    }
    return false;
}

bool soft_is_amd(const struct soft_vcpu *cpu)
{
    uint32_t ebx = cpu->base.vm->model->entries[0].regs.ebx;

    return ebx == 0x68747541 || ebx == 0x6f677948; /* AuthenticAMD, HygonGenuine */
}

uint32_t soft_signature(const struct soft_vcpu *cpu)
{
    const struct cpu_model *model = cpu->base.vm->model;

    for (unsigned i = 0; i < model->count; i++) {
        if (model->entries[i].leaf == 1)
            return model->entries[i].regs.eax;
    }
    return 0;
}

static uint64_t control_phys_mask(const struct soft_vcpu *cpu)
{
    return (1ull << cpu->base.vm->model->phys_bits) - 1;
}

struct control_feature {
    uint32_t cr4, leaf;
    char reg;
    uint8_t bit;
};

static const struct control_feature control_features[] = {
    {CR4_VME | CR4_PVI, 1, 'd', 1}, {CR4_DE, 1, 'd', 2},          {CR4_PSE, 1, 'd', 3},
    {CR4_TSD, 1, 'd', 4},           {CR4_PAE, 1, 'd', 6},         {CR4_MCE, 1, 'd', 7},
    {CR4_PGE, 1, 'd', 13},          {CR4_OSFXSR, 1, 'd', 24},     {CR4_OSXMMEXCPT, 1, 'd', 25},
    {CR4_PCIDE, 1, 'c', 17},        {CR4_OSXSAVE, 1, 'c', 26},    {CR4_FSGSBASE, 7, 'b', 0},
    {CR4_SMEP, 7, 'b', 7},          {CR4_SMAP, 7, 'b', 20},       {CR4_UMIP, 7, 'c', 2},
    {CR4_PKE, 7, 'c', 3},
};

static uint64_t control_cr4_allowed(const struct soft_vcpu *cpu)
{
    uint64_t allowed = CR4_PCE;

    for (unsigned i = 0; i < ARRAY_SIZE(control_features); i++) {
        const struct control_feature *f = &control_features[i];

        if (soft_has_feature(cpu, f->leaf, f->reg, f->bit))
            allowed |= f->cr4;
    }
    return allowed;
}

/* PAE paging outside long mode: reserved bits of the four PDPTEs, SDM vol. 3A 4.4.1. */
static void control_check_pdptes(struct soft_vcpu *cpu, uint64_t cr0, uint64_t cr3, uint64_t cr4)
{
    const uint64_t reserved = ~control_phys_mask(cpu) | 0x1e6;
    uint64_t pdpte[4];

    if (!(cr0 & CR0_PG) || !(cr4 & CR4_PAE) || (cpu->s.efer & EFER_LME))
        return;
    soft_fpu_park(cpu);
    if (mem_read(cpu->base.vm->machine->mem, cr3 & 0xffffffe0, pdpte, sizeof(pdpte)))
        return; /* not memory: reads as all ones on the bus; let the walk find out */
    for (unsigned i = 0; i < 4; i++) {
        if ((pdpte[i] & PTE_P) && (pdpte[i] & reserved))
            soft_raise_gp(cpu, 0);
    }
}

/* SDM vol. 3A 2.5 and 9.8.5: what may change together with paging. */
static void control_check_paging(struct soft_vcpu *cpu, uint64_t value)
{
    const struct cpu_segment *cs = &cpu->s.seg[SEG_CS];
    bool lme = cpu->s.efer & EFER_LME;

    if (!((cpu->s.cr0 ^ value) & CR0_PG))
        return;
    if (!(value & CR0_PG)) {
        if (soft_code64(cpu) || (cpu->s.cr4 & CR4_PCIDE))
            soft_raise_gp(cpu, 0);
        return;
    }
    if (lme && (!(cpu->s.cr4 & CR4_PAE) || (cs->attr & CPU_SEG_L) ||
                !(CPU_SEG_TYPE(cpu->s.tr.attr) & 8)))
        soft_raise_gp(cpu, 0);
}

static void control_cr0_write(struct soft_vcpu *cpu, uint64_t value)
{
    uint64_t changed;

    if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) ||
        ((value & CR0_NW) && !(value & CR0_CD)))
        soft_raise_gp(cpu, 0);
    value = (value & CR0_DEFINED) | CR0_ET;
    control_check_paging(cpu, value);
    changed = cpu->s.cr0 ^ value;
    if (changed & (CR0_PG | CR0_CD | CR0_NW))
        control_check_pdptes(cpu, value, cpu->s.cr3, cpu->s.cr4);

    cpu->s.cr0 = value;
    if (changed & CR0_PG) {
        cpu->s.efer &= ~(uint64_t)EFER_LMA;
        if ((value & CR0_PG) && (cpu->s.efer & EFER_LME))
            cpu->s.efer |= EFER_LMA;
    }
    if (changed & (CR0_PG | CR0_PE | CR0_WP))
        soft_tlb_flush(cpu);
    if (changed)
        soft_mode_update(cpu);
}

static void control_cr3_write(struct soft_vcpu *cpu, uint64_t value)
{
    bool keep = (cpu->s.cr4 & CR4_PCIDE) && (value & CR3_NOFLUSH);

    if (cpu->s.cr4 & CR4_PCIDE)
        value &= ~CR3_NOFLUSH;
    if (soft_long_mode(cpu) && (value & ~control_phys_mask(cpu)))
        soft_raise_gp(cpu, 0);
    control_check_pdptes(cpu, cpu->s.cr0, value, cpu->s.cr4);
    cpu->s.cr3 = value;
    if (keep)
        soft_tlb_switch(cpu);
    else
        soft_tlb_flush_nonglobal(cpu);
}

#define CR4_TLB (CR4_PGE | CR4_PAE | CR4_PSE | CR4_SMEP | CR4_SMAP | CR4_PKE | CR4_PCIDE)

static void control_cr4_write(struct soft_vcpu *cpu, uint64_t value)
{
    uint64_t changed = cpu->s.cr4 ^ value;

    if (value & ~control_cr4_allowed(cpu))
        soft_raise_gp(cpu, 0);
    if (soft_long_mode(cpu) && !(value & CR4_PAE))
        soft_raise_gp(cpu, 0);
    if ((changed & value & CR4_PCIDE) &&
        (!soft_long_mode(cpu) || (cpu->s.cr3 & CR3_PCID_MASK)))
        soft_raise_gp(cpu, 0);
    if (changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP))
        control_check_pdptes(cpu, cpu->s.cr0, cpu->s.cr3, value);
    cpu->s.cr4 = value;
    if (changed & CR4_TLB)
        soft_tlb_flush(cpu);
    if (changed)
        soft_mode_update(cpu);
}

static void control_cr8_write(struct soft_vcpu *cpu, uint64_t value)
{
    if (value > 15)
        soft_raise_gp(cpu, 0);
    cpu->s.cr8 = value;
    if (!cpu->base.apic_ops)
        return;
    soft_fpu_park(cpu);
    cpu->base.apic_ops->cr8_write(cpu->base.apic, value);
    cpu->end_block = true; /* an interrupt may have become deliverable */
}

void soft_cr_write(struct soft_vcpu *cpu, unsigned cr, uint64_t value)
{
    switch (cr) {
    case 0:
        control_cr0_write(cpu, value);
        break;
    case 2:
        cpu->s.cr2 = value;
        break;
    case 3:
        control_cr3_write(cpu, value);
        break;
    case 4:
        control_cr4_write(cpu, value);
        break;
    case 8:
        control_cr8_write(cpu, value);
        break;
    default:
        soft_raise_ud(cpu);
    }
}

uint64_t soft_cr_read(struct soft_vcpu *cpu, unsigned cr)
{
    switch (cr) {
    case 0:
        return cpu->s.cr0;
    case 2:
        return cpu->s.cr2;
    case 3:
        return cpu->s.cr3;
    case 4:
        return cpu->s.cr4;
    case 8:
        if (!cpu->base.apic_ops)
            return cpu->s.cr8;
        soft_fpu_park(cpu);
        return cpu->base.apic_ops->cr8_read(cpu->base.apic);
    default:
        soft_raise_ud(cpu);
    }
}

/* LMSW: PE, MP, EM and TS; PE cannot be cleared. */
void soft_lmsw(struct soft_vcpu *cpu, uint16_t value)
{
    uint64_t bits = value & (CR0_PE | CR0_MP | CR0_EM | CR0_TS);

    bits |= cpu->s.cr0 & CR0_PE;
    soft_cr_write(cpu, 0, (cpu->s.cr0 & ~(uint64_t)(CR0_MP | CR0_EM | CR0_TS)) | bits);
}

/* SDM vol. 1 13.3, vol. 2 XSETBV. */
void soft_xcr0_write(struct soft_vcpu *cpu, uint64_t value)
{
    uint64_t avx512 = value & XCR0_AVX512;

    if ((value & ~cpu->base.vm->model->xcr0_mask) || !(value & XCR0_X87) ||
        ((value & XCR0_AVX) && !(value & XCR0_SSE)) ||
        (avx512 && (avx512 != XCR0_AVX512 || !(value & XCR0_AVX))))
        soft_raise_gp(cpu, 0);
    cpu->s.xcr0 = value;
    soft_mode_update(cpu);
}

/* 0, or -1 for #GP(0). SDM vol. 3A 2.2.1; APM vol. 2 3.1.7. */
int soft_efer_write(struct soft_vcpu *cpu, uint64_t value)
{
    uint64_t allowed = EFER_LMA;
    uint64_t changed;

    if (soft_has_feature(cpu, 0x80000001, 'd', 11))
        allowed |= EFER_SCE;
    if (soft_has_feature(cpu, 0x80000001, 'd', 20))
        allowed |= EFER_NXE;
    if (soft_has_feature(cpu, 0x80000001, 'd', 25))
        allowed |= EFER_FFXSR;
    if (soft_has_feature(cpu, 0x80000001, 'd', 29))
        allowed |= EFER_LME;
    if (soft_has_feature(cpu, 0x80000021, 'a', 8))
        allowed |= EFER_AUTOIBRS;
    if (value & ~allowed)
        return -1;
    value = (value & ~(uint64_t)EFER_LMA) | (cpu->s.efer & EFER_LMA);
    changed = cpu->s.efer ^ value;
    if ((changed & EFER_LME) && (cpu->s.cr0 & CR0_PG))
        return -1;
    cpu->s.efer = value;
    if (changed & EFER_NXE)
        soft_tlb_flush(cpu);
    if (changed)
        soft_mode_update(cpu);
    return 0;
}

void soft_rflags_write(struct soft_vcpu *cpu, uint64_t value, uint64_t mask)
{
    uint64_t flags = (cpu->s.rflags & ~mask) | (value & mask) | RFLAGS_ONE;
    uint64_t changed = cpu->s.rflags ^ flags;

    cpu->s.rflags = flags;
    if (changed & (RFLAGS_TF | RFLAGS_AC | RFLAGS_VM))
        soft_mode_update(cpu);
    if (changed & (RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_VM))
        cpu->end_block = true;
}

static unsigned control_iopl(const struct soft_vcpu *cpu)
{
    return (unsigned)(cpu->s.rflags >> RFLAGS_IOPL_SHIFT) & 3;
}

/* In virtual-8086 mode below IOPL 3: #GP(0) unless CR4.VME provides a virtual IF for 16-bit operands. */
static bool control_virtual_if(struct soft_vcpu *cpu, unsigned opsize)
{
    if (!(cpu->mode & SOFT_MODE_VM) || control_iopl(cpu) == 3)
        return false;
    if (!(cpu->s.cr4 & CR4_VME) || opsize != 2)
        soft_raise_gp(cpu, 0);
    return true;
}

void soft_pushf(struct soft_vcpu *cpu, unsigned opsize)
{
    uint64_t flags = cpu->s.rflags & ~(uint64_t)(RFLAGS_RF | RFLAGS_VM);
    struct soft_stack st;

    if (likely(soft_code64(cpu) && opsize == 8)) {
        uint64_t rsp = cpu->s.gpr[GPR_RSP] - 8;

        soft_store(cpu, SEG_SS, rsp, 8, flags);
        cpu->s.gpr[GPR_RSP] = rsp;
        return;
    }
    if (control_virtual_if(cpu, opsize)) {
        flags = (flags & ~(uint64_t)RFLAGS_IF) | RFLAGS_IOPL;
        if (flags & RFLAGS_VIF)
            flags |= RFLAGS_IF;
    }
    soft_stack_current(&st, cpu, 0);
    soft_stack_push(&st, opsize, flags);
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
}

#define POPF_FLAGS (RFLAGS_ARITH | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT)

/* SDM vol. 2B POPF, table 4-21: what may change. */
static uint64_t control_popf_mask(const struct soft_vcpu *cpu, unsigned opsize)
{
    uint64_t mask = POPF_FLAGS;

    if (opsize > 2)
        mask |= RFLAGS_AC | RFLAGS_ID | RFLAGS_RF;
    if (cpu->cpl == 0)
        mask |= RFLAGS_IOPL;
    if (cpu->cpl <= control_iopl(cpu))
        mask |= RFLAGS_IF;
    return mask;
}

void soft_popf(struct soft_vcpu *cpu, unsigned opsize)
{
    uint64_t flags, mask;
    struct soft_stack st;
    bool virtual_if;

    if (likely(soft_code64(cpu) && opsize == 8)) {
        flags = soft_load(cpu, SEG_SS, cpu->s.gpr[GPR_RSP], 8);
        cpu->s.gpr[GPR_RSP] += 8;
        soft_rflags_write(cpu, flags & ~(uint64_t)RFLAGS_RF, control_popf_mask(cpu, 8));
        return;
    }
    virtual_if = control_virtual_if(cpu, opsize);
    soft_stack_current(&st, cpu, 0);
    flags = soft_stack_pop(&st, opsize);
    mask = control_popf_mask(cpu, opsize);
    if (virtual_if) {
        if ((flags & RFLAGS_TF) || ((flags & RFLAGS_IF) && (cpu->s.rflags & RFLAGS_VIP)))
            soft_raise_gp(cpu, 0);
        mask = POPF_FLAGS | RFLAGS_VIF;
        flags = (flags & ~(uint64_t)RFLAGS_VIF) | (flags & RFLAGS_IF ? RFLAGS_VIF : 0);
    }
    cpu->s.gpr[GPR_RSP] = soft_stack_rsp(&st, cpu->s.gpr[GPR_RSP]);
    soft_rflags_write(cpu, flags & ~(uint64_t)RFLAGS_RF, mask);
}

/* Which flag CLI and STI act on, SDM vol. 2A CLI; #GP(0) when neither. */
static uint64_t control_interrupt_flag(struct soft_vcpu *cpu)
{
    if (cpu->cpl <= control_iopl(cpu))
        return RFLAGS_IF;
    if (cpu->mode & SOFT_MODE_VM ? cpu->s.cr4 & CR4_VME
                                 : cpu->cpl == 3 && (cpu->s.cr4 & CR4_PVI))
        return RFLAGS_VIF;
    soft_raise_gp(cpu, 0);
}

void soft_cli(struct soft_vcpu *cpu)
{
    cpu->s.rflags &= ~control_interrupt_flag(cpu);
}

void soft_sti(struct soft_vcpu *cpu)
{
    uint64_t flag = control_interrupt_flag(cpu);

    if (flag == RFLAGS_VIF && (cpu->s.rflags & RFLAGS_VIP))
        soft_raise_gp(cpu, 0);
    if (flag == RFLAGS_IF && !(cpu->s.rflags & RFLAGS_IF)) {
        cpu->s.interrupt_shadow |= 1;
        cpu->end_block = true;
    }
    cpu->s.rflags |= flag;
}

#define TSS_IO_BASE 0x66u

static bool control_tss_has_bitmap(const struct cpu_segment *tr)
{
    return !(tr->attr & (CPU_SEG_S | CPU_SEG_UNUSABLE)) && (CPU_SEG_TYPE(tr->attr) & 8) &&
           tr->limit >= TSS_IO_BASE + 1;
}

/* SDM vol. 1 19.5.2: two bytes are always read. */
static bool control_io_allowed(struct soft_vcpu *cpu, uint16_t port, unsigned size)
{
    const struct cpu_segment *tr = &cpu->s.tr;
    uint32_t offset, bits;

    if (!control_tss_has_bitmap(tr))
        return false;
    offset = (uint32_t)soft_system_load(cpu, tr->base + TSS_IO_BASE, 2) + port / 8u;
    if (offset + 1 > tr->limit)
        return false;
    bits = (uint32_t)soft_system_load(cpu, tr->base + offset, 2);
    return !((bits >> (port & 7)) & ((1u << size) - 1));
}

void soft_io_check(struct soft_vcpu *cpu, uint16_t port, unsigned size)
{
    if (likely(!(cpu->mode & SOFT_MODE_VM) && cpu->cpl <= control_iopl(cpu)))
        return;
    if (!control_io_allowed(cpu, port, size))
        soft_raise_gp(cpu, 0);
}

/* The redirection bitmap is the 32 bytes below the I/O bitmap, SDM vol. 3A 20.3.3. */
bool soft_vme_redirected(struct soft_vcpu *cpu, unsigned vector)
{
    const struct cpu_segment *tr = &cpu->s.tr;
    uint32_t offset;

    if (!(cpu->s.cr4 & CR4_VME) || !control_tss_has_bitmap(tr))
        return false;
    offset = (uint32_t)soft_system_load(cpu, tr->base + TSS_IO_BASE, 2);
    if (offset < 32 || offset - 1 > tr->limit)
        return false;
    return !(soft_system_load(cpu, tr->base + offset - 32 + vector / 8, 1) >> (vector & 7) & 1);
}
