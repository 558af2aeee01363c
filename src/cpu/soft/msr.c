/*
 * Model-specific registers. References: SDM vol. 4; APM vol. 2 appendix A, AMD PPRs for the C001_xxxx
 * ones; Linux Documentation/virt/kvm/x86/msr.rst for the paravirtual clock.
 */
#include "base/log.h"
#include "cpu/soft/descriptor.h"
#include "cpu/soft/fpu.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

#define MSR_IA32_PLATFORM_ID 0x17u
#define MSR_IA32_FLUSH_CMD   0x10bu
#define MSR_MTRR_FIX64K      0x250u
#define MSR_MTRR_FIX16K_0    0x258u
#define MSR_MTRR_FIX16K_1    0x259u
#define MSR_MTRR_FIX4K_0     0x268u
#define MSR_MTRR_FIX4K_7     0x26fu
#define MSR_MTRR_PHYS_LAST   0x20fu

/* MTRR: 8 variable ranges, fixed ranges, write-combining. */
#define MTRRCAP_VALUE 0x508ull

/* Immune to what IA32_ARCH_CAPABILITIES can deny: guest code does not run speculatively as itself. */
#define ARCH_CAP_VALUE 0xd10e17bull

static bool msr_is_apic(uint32_t msr)
{
    return msr == MSR_IA32_APIC_BASE || msr == MSR_IA32_TSC_DEADLINE ||
           (msr >= MSR_X2APIC_FIRST && msr <= MSR_X2APIC_LAST);
}

static int msr_apic_read(struct soft_vcpu *cpu, uint32_t msr, uint64_t *value)
{
    if (!cpu->base.apic_ops) {
        *value = msr == MSR_IA32_APIC_BASE ? cpu->s.msr.apic_base : 0;
        return 0;
    }
    soft_fpu_park(cpu);
    return cpu->base.apic_ops->msr_read(cpu->base.apic, msr, value);
}

static int msr_apic_write(struct soft_vcpu *cpu, uint32_t msr, uint64_t value)
{
    int ret = 0;

    if (cpu->base.apic_ops) {
        soft_fpu_park(cpu);
        ret = cpu->base.apic_ops->msr_write(cpu->base.apic, msr, value);
    }
    if (ret == 0 && msr == MSR_IA32_APIC_BASE) {
        cpu->s.msr.apic_base = value;
        soft_tlb_flush(cpu); /* the APIC's page may have moved */
    }
    cpu->end_block = true;
    return ret;
}

/* The guest's TSC moved by delta: what was computed from it follows. */
static void msr_tsc_moved(struct soft_vcpu *cpu, uint64_t delta)
{
    uint64_t deadline = 0;

    cpu->tsc_offset += (int64_t)delta;
    cpu->s.msr.tsc_adjust += delta;
    soft_clock_write_system(cpu);
    if (msr_apic_read(cpu, MSR_IA32_TSC_DEADLINE, &deadline) == 0 && deadline)
        msr_apic_write(cpu, MSR_IA32_TSC_DEADLINE, deadline);
}

static uint64_t *msr_mtrr_fixed(struct soft_vcpu *cpu, uint32_t msr)
{
    if (msr == MSR_MTRR_FIX64K)
        return &cpu->s.msr.mtrr_fixed[0];
    if (msr == MSR_MTRR_FIX16K_0 || msr == MSR_MTRR_FIX16K_1)
        return &cpu->s.msr.mtrr_fixed[1 + msr - MSR_MTRR_FIX16K_0];
    if (msr >= MSR_MTRR_FIX4K_0 && msr <= MSR_MTRR_FIX4K_7)
        return &cpu->s.msr.mtrr_fixed[3 + msr - MSR_MTRR_FIX4K_0];
    return NULL;
}

static uint64_t *msr_mtrr_variable(struct soft_vcpu *cpu, uint32_t msr)
{
    uint32_t n = (msr - MSR_IA32_MTRR_PHYSBASE0) / 2;

    if (msr < MSR_IA32_MTRR_PHYSBASE0 || msr > MSR_MTRR_PHYS_LAST)
        return NULL;
    return msr & 1 ? &cpu->s.msr.mtrr_phys_mask[n] : &cpu->s.msr.mtrr_phys_base[n];
}

/* Memory types: UC, WC, WT, WP, WB; UC- (7) only in PAT. */
static bool msr_memory_types_ok(uint64_t value, uint32_t allowed)
{
    for (unsigned i = 0; i < 64; i += 8) {
        uint64_t type = (value >> i) & 0xff;

        if (type > 7 || !(allowed >> type & 1))
            return false;
    }
    return true;
}
#define MTRR_TYPES 0x73u
#define PAT_TYPES  0xf3u

static int msr_mtrr_write(uint64_t *field, uint32_t msr, uint64_t value)
{
    bool fixed = msr >= MSR_MTRR_FIX64K;

    if (fixed && !msr_memory_types_ok(value, MTRR_TYPES))
        return -1;
    if (!fixed && !(msr & 1) && !(MTRR_TYPES >> (value & 7) & 1))
        return -1;
    *field = value;
    return 0;
}

static bool msr_has_spec_ctrl(const struct soft_vcpu *cpu)
{
    return soft_has_feature(cpu, 7, 'd', 26) || soft_has_feature(cpu, 0x80000008, 'b', 14) ||
           soft_has_feature(cpu, 0x80000008, 'b', 15) || soft_has_feature(cpu, 0x80000008, 'b', 24);
}

static bool msr_has_pred_cmd(const struct soft_vcpu *cpu)
{
    return soft_has_feature(cpu, 7, 'd', 26) || soft_has_feature(cpu, 0x80000008, 'b', 12);
}

static bool msr_has_tsc_aux(const struct soft_vcpu *cpu)
{
    return soft_has_feature(cpu, 0x80000001, 'd', 27) || soft_has_feature(cpu, 7, 'c', 22);
}

struct msr_constant {
    uint32_t msr;
    uint64_t value;
};

/* Read as given, writes are ignored, on a model of that vendor. */
static const struct msr_constant msr_amd[] = {
    {0xc0010010, 0},          /* SYSCFG */
    {0xc0010015, 1ull << 24}, /* HWCR: TscFreqSel, the TSC counts at P0's frequency */
    {0xc001001a, 0},          /* TOP_MEM */
    {0xc001001d, 0},          /* TOP_MEM2 */
    {0xc001001f, 0},          /* NB_CFG */
    {0xc0010055, 0},          /* interrupt pending message: C1E is off */
    {0xc0010058, 0},          /* MMIO configuration base: not enabled */
    {0xc0010112, 0},          /* TSEG base */
    {0xc0010113, 0},          /* TSEG mask */
    {0xc0010114, 0x10},       /* VM_CR: SVM disabled */
    {0xc0010140, 0},          /* OSVW_ID_LENGTH */
    {0xc0010141, 0},          /* OSVW_STATUS */
    {0xc0011020, 0},          /* LS_CFG */
    {0xc0011022, 0},          /* DC_CFG */
    {0xc0011029, 2},          /* DE_CFG: LFENCE serialises */
    {0xc001102a, 0},          /* BU_CFG2 */
};

static const struct msr_constant msr_intel[] = {
    {MSR_IA32_PLATFORM_ID, 0},
    {0x2a, 0},   /* EBL_CR_POWERON */
    {0x34, 0},   /* SMI_COUNT */
    {MSR_IA32_FEATURE_CONTROL, 1}, /* locked, VMX off */
    {0xce, 0},   /* PLATFORM_INFO */
    {0x140, 0},  /* MISC_FEATURES_ENABLES */
    {0x198, 0},  /* PERF_STATUS */
    {0x19a, 0},  /* CLOCK_MODULATION */
    {0x606, 0},  /* RAPL_POWER_UNIT */
};

static const struct msr_constant msr_common[] = {
    {MSR_IA32_MTRRCAP, MTRRCAP_VALUE},
    {MSR_IA32_MCG_CAP, 0}, /* no banks */
    {MSR_IA32_MCG_STATUS, 0},
};

static const struct msr_constant *msr_find(const struct msr_constant *table, unsigned count,
                                           uint32_t msr)
{
    for (unsigned i = 0; i < count; i++) {
        if (table[i].msr == msr)
            return &table[i];
    }
    return NULL;
}

static const struct msr_constant *msr_find_constant(const struct soft_vcpu *cpu, uint32_t msr)
{
    const struct msr_constant *c = msr_find(msr_common, ARRAY_SIZE(msr_common), msr);

    if (c)
        return c;
    return soft_is_amd(cpu) ? msr_find(msr_amd, ARRAY_SIZE(msr_amd), msr)
                            : msr_find(msr_intel, ARRAY_SIZE(msr_intel), msr);
}

static int msr_unknown(struct soft_vcpu *cpu, uint32_t msr, bool write, uint64_t value)
{
    if (cpu->base.vm->trace_unknown) {
        soft_fpu_park(cpu);
        if (write)
            log_guest("vCPU %u: write of %#llx to unknown MSR %#x", cpu->base.index,
                      (unsigned long long)value, msr);
        else
            log_guest("vCPU %u: read of unknown MSR %#x", cpu->base.index, msr);
    }
    return -1;
}

static int msr_read_rare(struct soft_vcpu *cpu, uint32_t msr, uint64_t *value)
{
    const struct msr_constant *constant;
    uint64_t *field = msr_mtrr_fixed(cpu, msr);

    if (!field)
        field = msr_mtrr_variable(cpu, msr);
    if (field) {
        *value = *field;
        return 0;
    }
    if (msr == MSR_IA32_SPEC_CTRL && msr_has_spec_ctrl(cpu)) {
        *value = cpu->s.msr.spec_ctrl;
        return 0;
    }
    if (msr == MSR_IA32_BIOS_SIGN_ID) { /* a microcode revision no work-around asks for */
        *value = soft_is_amd(cpu) ? 0x01000065 : 0x01000065ull << 32;
        return 0;
    }
    if (msr == MSR_IA32_ARCH_CAPABILITIES && soft_has_feature(cpu, 7, 'd', 29)) {
        *value = ARCH_CAP_VALUE;
        return 0;
    }
    constant = msr_find_constant(cpu, msr);
    if (!constant)
        return msr_unknown(cpu, msr, false, 0);
    *value = constant->value;
    return 0;
}

/* Registers that read back as they were written. NULL: not one of them. */
static uint64_t *msr_plain(struct soft_vcpu *cpu, uint32_t msr)
{
    struct cpu_msrs *m = &cpu->s.msr;

    switch (msr) {
    case MSR_FS_BASE:
        return &cpu->s.seg[SEG_FS].base;
    case MSR_GS_BASE:
        return &cpu->s.seg[SEG_GS].base;
    case MSR_KERNEL_GS_BASE:
        return &m->kernel_gs_base;
    case MSR_STAR:
        return &m->star;
    case MSR_LSTAR:
        return &m->lstar;
    case MSR_CSTAR:
        return &m->cstar;
    case MSR_SFMASK:
        return &m->sfmask;
    case MSR_EFER:
        return &cpu->s.efer;
    case MSR_IA32_SYSENTER_CS:
        return &m->sysenter_cs;
    case MSR_IA32_SYSENTER_ESP:
        return &m->sysenter_esp;
    case MSR_IA32_SYSENTER_EIP:
        return &m->sysenter_eip;
    case MSR_TSC_AUX:
        return msr_has_tsc_aux(cpu) ? &m->tsc_aux : NULL;
    case MSR_IA32_TSC_ADJUST:
        return &m->tsc_adjust;
    case MSR_IA32_PAT:
        return &m->pat;
    case MSR_IA32_MTRR_DEF_TYPE:
        return &m->mtrr_def_type;
    case MSR_IA32_MISC_ENABLE:
        return &m->misc_enable;
    case MSR_IA32_DEBUGCTL:
        return &m->debugctl;
    case MSR_KVM_WALL_CLOCK_NEW:
        return &m->kvm_wall_clock;
    case MSR_KVM_SYSTEM_TIME_NEW:
        return &m->kvm_system_time;
    case MSR_IA32_XSS:
        return soft_has_feature(cpu, 1, 'c', 26) ? &m->xss : NULL;
    default:
        return NULL;
    }
}

int soft_msr_read(struct soft_vcpu *cpu, uint32_t msr, uint64_t *value)
{
    uint64_t *field = msr_plain(cpu, msr);

    if (likely(field)) {
        *value = *field;
        return 0;
    }
    if (msr == MSR_IA32_TSC) {
        *value = soft_tsc(cpu);
        return 0;
    }
    return msr_is_apic(msr) ? msr_apic_read(cpu, msr, value) : msr_read_rare(cpu, msr, value);
}

static int msr_write_rare(struct soft_vcpu *cpu, uint32_t msr, uint64_t value)
{
    uint64_t *field = msr_mtrr_fixed(cpu, msr);

    if (!field)
        field = msr_mtrr_variable(cpu, msr);
    if (field)
        return msr_mtrr_write(field, msr, value);
    if (msr == MSR_IA32_SPEC_CTRL && msr_has_spec_ctrl(cpu)) {
        cpu->s.msr.spec_ctrl = value;
        return 0;
    }
    if ((msr == MSR_IA32_PRED_CMD && msr_has_pred_cmd(cpu)) ||
        (msr == MSR_IA32_FLUSH_CMD && soft_has_feature(cpu, 7, 'd', 28)))
        return value & ~1ull ? -1 : 0;
    if (msr == MSR_IA32_BIOS_SIGN_ID)
        return 0;
    if (msr == MSR_IA32_MTRRCAP || !msr_find_constant(cpu, msr))
        return msr_unknown(cpu, msr, true, value);
    return 0;
}

static int msr_write_canonical(uint64_t *field, uint64_t value)
{
    if (!soft_canonical(value))
        return -1;
    *field = value;
    return 0;
}

/* The plain ones whose value is checked or has an effect. */
static int msr_write_plain(struct soft_vcpu *cpu, uint32_t msr, uint64_t *field, uint64_t value)
{
    switch (msr) {
    case MSR_FS_BASE:
    case MSR_GS_BASE:
    case MSR_KERNEL_GS_BASE:
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_IA32_SYSENTER_ESP:
    case MSR_IA32_SYSENTER_EIP:
        return msr_write_canonical(field, value);
    case MSR_EFER:
        return soft_efer_write(cpu, value);
    case MSR_IA32_TSC_ADJUST:
        msr_tsc_moved(cpu, value - *field);
        return 0;
    case MSR_TSC_AUX:
        if (value >> 32)
            return -1;
        break;
    case MSR_IA32_PAT:
        if (!msr_memory_types_ok(value, PAT_TYPES))
            return -1;
        break;
    case MSR_IA32_XSS:
        if (value)
            return -1;
        break;
    case MSR_SFMASK:
        value &= 0xffffffff;
        break;
    default:
        break;
    }
    *field = value;
    if (msr == MSR_KVM_SYSTEM_TIME_NEW)
        soft_clock_write_system(cpu);
    else if (msr == MSR_KVM_WALL_CLOCK_NEW)
        soft_clock_write_wall(cpu);
    return 0;
}

int soft_msr_write(struct soft_vcpu *cpu, uint32_t msr, uint64_t value)
{
    uint64_t *field = msr_plain(cpu, msr);

    if (likely(field))
        return msr_write_plain(cpu, msr, field, value);
    if (msr == MSR_IA32_TSC) {
        msr_tsc_moved(cpu, value - soft_tsc(cpu));
        return 0;
    }
    return msr_is_apic(msr) ? msr_apic_write(cpu, msr, value) : msr_write_rare(cpu, msr, value);
}
