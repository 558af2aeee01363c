/* Registers of the local APIC as the guest reaches them: memory (SDM vol. 3A 11.4.1) and MSRs (11.12.1). */
#include "base/log.h"
#include "chip/lapic_internal.h"
#include "x86/arch.h"

static bool lapic_is_lvt(unsigned reg)
{
    return reg >= LAPIC_LVT && reg < LAPIC_LVT + LAPIC_LVT_COUNT;
}

static uint32_t lapic_id_read(const struct lapic *apic)
{
    return lapic_x2apic(apic) ? apic->id : (apic->id & 0xff) << 24;
}

/* Registers with the same meaning in both modes. -1: there is none of this number. */
static int lapic_reg_read(struct lapic *apic, unsigned reg, uint32_t *value)
{
    switch (reg) {
    case LAPIC_ID: *value = lapic_id_read(apic); return 0;
    case LAPIC_VERSION: *value = LAPIC_VERSION_VALUE; return 0;
    case LAPIC_TPR: *value = atomic_load(&apic->tpr); return 0;
    case LAPIC_PPR: *value = lapic_ppr(apic); return 0;
    case LAPIC_LDR: *value = lapic_logical_id(apic); return 0;
    case LAPIC_SVR: *value = atomic_load(&apic->svr); return 0;
    case LAPIC_ISR ... LAPIC_ISR + 7: *value = atomic_load(&apic->isr.word[reg & 7]); return 0;
    case LAPIC_TMR ... LAPIC_TMR + 7: *value = atomic_load(&apic->tmr.word[reg & 7]); return 0;
    case LAPIC_IRR ... LAPIC_IRR + 7: *value = atomic_load(&apic->irr.word[reg & 7]); return 0;
    case LAPIC_ESR: *value = apic->esr; return 0;
    case LAPIC_ICR: *value = (uint32_t)apic->icr; return 0;
    case LAPIC_TMICT: *value = apic->tmict; return 0;
    case LAPIC_TMCCT: *value = lapic_timer_count(apic); return 0;
    case LAPIC_TDCR: *value = apic->tdcr; return 0;
    default: break;
    }
    if (!lapic_is_lvt(reg))
        return -1;
    *value = atomic_load(&apic->lvt[reg - LAPIC_LVT]);
    return 0;
}

/* Writable bits of each LVT entry (SDM figure 11-8). */
static const uint32_t lapic_lvt_bits[LAPIC_LVT_COUNT] = {
    [LAPIC_LVT_TIMER] = 0x000700ff, [LAPIC_LVT_THERMAL] = 0x000107ff,
    [LAPIC_LVT_PERF] = 0x000107ff,  [LAPIC_LVT_LINT0] = 0x0001a7ff,
    [LAPIC_LVT_LINT1] = 0x0001a7ff, [LAPIC_LVT_ERROR] = 0x000100ff,
};

static void lapic_write_lvt(struct lapic *apic, unsigned entry, uint32_t value)
{
    value &= lapic_lvt_bits[entry];
    if (!lapic_sw_enabled(apic))
        value |= LAPIC_LVT_MASKED;
    if (entry == LAPIC_LVT_TIMER) {
        lapic_timer_write_lvt(apic, value);
        return;
    }
    atomic_store(&apic->lvt[entry], value);
    if (entry == LAPIC_LVT_LINT0 && lapic_has_interrupt(apic))
        lapic_post(apic, VCPU_EVENT_INTERRUPT, 0);
}

/* SDM 11.4.7.2: disabled by software, every LVT entry is masked and stays so. */
static void lapic_write_svr(struct lapic *apic, uint32_t value)
{
    bool was = lapic_sw_enabled(apic);

    atomic_store(&apic->svr, value & 0x13ff);
    if (!was || (value & LAPIC_SVR_ENABLE))
        return;
    for (unsigned i = 0; i < LAPIC_LVT_COUNT; i++)
        atomic_fetch_or(&apic->lvt[i], LAPIC_LVT_MASKED);
}

static void lapic_write_tpr(struct lapic *apic, uint32_t value)
{
    atomic_store(&apic->tpr, value & 0xff);
    if (lapic_has_interrupt(apic))
        lapic_post(apic, VCPU_EVENT_INTERRUPT, 0);
}

/* Registers with the same meaning in both modes. -1: none of this number can be written. */
static int lapic_reg_write(struct lapic *apic, unsigned reg, uint32_t value)
{
    switch (reg) {
    case LAPIC_TPR: lapic_write_tpr(apic, value); return 0;
    case LAPIC_EOI: lapic_end_of_interrupt(apic); return 0;
    case LAPIC_SVR: lapic_write_svr(apic, value); return 0;
    case LAPIC_ESR: apic->esr = atomic_exchange(&apic->esr_pending, 0); return 0;
    case LAPIC_TMICT: lapic_timer_write_initial(apic, value); return 0;
    case LAPIC_TDCR: lapic_timer_write_divide(apic, value); return 0;
    default: break;
    }
    if (!lapic_is_lvt(reg))
        return -1;
    lapic_write_lvt(apic, reg - LAPIC_LVT, value);
    return 0;
}

/* Registers that memory-mapped mode has on top. */
static uint32_t lapic_xapic_read(struct lapic *apic, unsigned reg)
{
    uint32_t value = 0;

    switch (reg) {
    case LAPIC_APR:
    case LAPIC_EOI:
    case LAPIC_RRD: return 0;
    case LAPIC_DFR: return atomic_load(&apic->dfr);
    case LAPIC_ICR_HIGH: return (uint32_t)(apic->icr >> 32) << 24;
    default: break;
    }
    if (lapic_reg_read(apic, reg, &value))
        lapic_error(apic, LAPIC_ESR_REGISTER);
    return value;
}

uint64_t lapic_mmio_read(struct lapic *apic, uint32_t offset, unsigned size)
{
    uint64_t mask = size >= 8 ? UINT64_MAX : (1ull << size * 8) - 1;

    if (!lapic_hw_enabled(apic) || lapic_x2apic(apic))
        return mask;
    if (offset & 0xc) /* each register is the first four bytes of sixteen */
        return 0;
    return (uint64_t)lapic_xapic_read(apic, (offset & 0xfff) >> 4) >> (offset & 3) * 8 & mask;
}

static void lapic_xapic_write(struct lapic *apic, unsigned reg, uint32_t value)
{
    switch (reg) {
    case LAPIC_ID:
    case LAPIC_VERSION:
    case LAPIC_PPR:
    case LAPIC_TMCCT: return; /* read only; the id is the vCPU's index */
    case LAPIC_LDR: atomic_store(&apic->ldr, value & 0xff000000u); return;
    case LAPIC_DFR: atomic_store(&apic->dfr, value | 0x0fffffffu); return;
    case LAPIC_ICR_HIGH: apic->icr = (apic->icr & UINT32_MAX) | (uint64_t)(value >> 24) << 32; return;
    case LAPIC_ICR:
        apic->icr = (apic->icr & ~(uint64_t)UINT32_MAX) | (value & 0x000ccfffu);
        lapic_send_ipi(apic, apic->icr);
        return;
    default: break;
    }
    if (lapic_reg_write(apic, reg, value))
        lapic_error(apic, LAPIC_ESR_REGISTER);
}

void lapic_mmio_write(struct lapic *apic, uint32_t offset, unsigned size, uint64_t value)
{
    if (!lapic_hw_enabled(apic) || lapic_x2apic(apic))
        return;
    if (size < 4 || (offset & 0xf)) { /* SDM 11.4.1: 32-bit and aligned, or undefined */
        log_guest("local APIC %u: %u-byte write at offset 0x%x ignored", apic->id, size, offset);
        return;
    }
    lapic_xapic_write(apic, (offset & 0xfff) >> 4, (uint32_t)value);
}

static int lapic_x2apic_read(struct lapic *apic, unsigned reg, uint64_t *value)
{
    uint32_t low;

    if (reg == LAPIC_ICR) {
        *value = apic->icr;
        return 0;
    }
    if (lapic_reg_read(apic, reg, &low))
        return -1;
    *value = low;
    return 0;
}

/* Bits that may be set without #GP, with the read-only ones (SDM 11.12.1.3). */
static uint64_t lapic_x2apic_bits(unsigned reg)
{
    switch (reg) {
    case LAPIC_TPR:
    case LAPIC_SELF_IPI: return 0xff;
    case LAPIC_SVR: return 0x13ff;
    case LAPIC_ICR: return 0xffffffff000cdfff;
    case LAPIC_TMICT: return UINT32_MAX;
    case LAPIC_TDCR: return 0xb;
    case LAPIC_LVT + LAPIC_LVT_LINT0:
    case LAPIC_LVT + LAPIC_LVT_LINT1: return lapic_lvt_bits[LAPIC_LVT_LINT0] | 0x5000;
    default: break;
    }
    if (lapic_is_lvt(reg))
        return lapic_lvt_bits[reg - LAPIC_LVT] | 0x1000;
    return 0; /* EOI and ESR take only zero */
}

static int lapic_x2apic_write(struct lapic *apic, unsigned reg, uint64_t value)
{
    if (value & ~lapic_x2apic_bits(reg))
        return -1;
    switch (reg) {
    case LAPIC_ICR:
        apic->icr = value & ~0x1000ull;
        lapic_send_ipi(apic, value);
        return 0;
    case LAPIC_SELF_IPI: lapic_send_ipi(apic, 1u << 18 | (uint32_t)value); return 0;
    default: return lapic_reg_write(apic, reg, (uint32_t)value);
    }
}

/* SDM figure 11-27: the allowed ways between disabled, xAPIC and x2APIC. */
static int lapic_write_base(struct lapic *apic, uint64_t value)
{
    const uint64_t modes = APIC_BASE_ENABLE | APIC_BASE_X2APIC;
    uint64_t old = lapic_base_read(apic);
    uint64_t from = old & modes, to = value & modes;
    unsigned bits = apic->vcpu ? apic->vcpu->vm->model->phys_bits : 52;

    if ((value & 0x2ff) || (bits < 64 && value >> bits) || to == APIC_BASE_X2APIC)
        return -1;
    if ((from == modes && to == APIC_BASE_ENABLE) || (from == 0 && to == modes))
        return -1;
    value = (value & ~(uint64_t)APIC_BASE_BSP) | (old & APIC_BASE_BSP);
    if (from && !to)
        lapic_reset(apic, true);
    atomic_store(&apic->apic_base, value);
    return 0;
}

int lapic_msr_read(struct lapic *apic, uint32_t msr, uint64_t *value)
{
    if (msr == MSR_IA32_APIC_BASE) {
        *value = lapic_base_read(apic);
        return 0;
    }
    if (msr == MSR_IA32_TSC_DEADLINE) {
        if (apic->tsc_deadline)
            lapic_timer_poll(apic); /* reads 0 from the moment it expires */
        *value = apic->tsc_deadline;
        return 0;
    }
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !lapic_x2apic(apic))
        return -1;
    return lapic_x2apic_read(apic, msr - MSR_X2APIC_FIRST, value);
}

int lapic_msr_write(struct lapic *apic, uint32_t msr, uint64_t value)
{
    if (msr == MSR_IA32_APIC_BASE)
        return lapic_write_base(apic, value);
    if (msr == MSR_IA32_TSC_DEADLINE) {
        lapic_timer_write_deadline(apic, value);
        return 0;
    }
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !lapic_x2apic(apic))
        return -1;
    return lapic_x2apic_write(apic, msr - MSR_X2APIC_FIRST, value);
}
