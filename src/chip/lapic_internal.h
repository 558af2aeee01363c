/* Inside the local APIC: its registers, and what its files share. Source: Intel SDM vol. 3A chapter 11. */
#ifndef CHIP_LAPIC_INTERNAL_H
#define CHIP_LAPIC_INTERNAL_H

#include <stdatomic.h>

#include "chip/lapic.h"

/* Register numbers: MMIO offset / 16, x2APIC MSR - 0x800 (SDM tables 11-1 and 11-6). */
enum lapic_register {
    LAPIC_ID = 0x02,
    LAPIC_VERSION = 0x03,
    LAPIC_TPR = 0x08,
    LAPIC_APR = 0x09,
    LAPIC_PPR = 0x0a,
    LAPIC_EOI = 0x0b,
    LAPIC_RRD = 0x0c,
    LAPIC_LDR = 0x0d,
    LAPIC_DFR = 0x0e,
    LAPIC_SVR = 0x0f,
    LAPIC_ISR = 0x10, /* eight registers each */
    LAPIC_TMR = 0x18,
    LAPIC_IRR = 0x20,
    LAPIC_ESR = 0x28,
    LAPIC_ICR = 0x30,
    LAPIC_ICR_HIGH = 0x31, /* xAPIC only */
    LAPIC_LVT = 0x32,      /* LAPIC_LVT_COUNT registers, enum lapic_lvt */
    LAPIC_TMICT = 0x38,
    LAPIC_TMCCT = 0x39,
    LAPIC_TDCR = 0x3e,
    LAPIC_SELF_IPI = 0x3f, /* x2APIC only */
};

enum lapic_lvt {
    LAPIC_LVT_TIMER,
    LAPIC_LVT_THERMAL,
    LAPIC_LVT_PERF,
    LAPIC_LVT_LINT0,
    LAPIC_LVT_LINT1,
    LAPIC_LVT_ERROR,
    LAPIC_LVT_COUNT
};

/* Delivery modes of LVT, ICR, MSI data and I/O APIC entries, bits 10:8 */
enum lapic_delivery {
    LAPIC_FIXED = 0,
    LAPIC_LOWEST = 1,
    LAPIC_SMI = 2,
    LAPIC_NMI = 4,
    LAPIC_INIT = 5,
    LAPIC_SIPI = 6,
    LAPIC_EXTINT = 7,
};

#define LAPIC_MODE(value)      (((value) >> 8) & 7u)
#define LAPIC_LVT_MASKED       (1u << 16)
#define LAPIC_TIMER_MODE(lvt)  (((lvt) >> 17) & 3u)
#define LAPIC_TIMER_ONE_SHOT   0u
#define LAPIC_TIMER_PERIODIC   1u
#define LAPIC_TIMER_DEADLINE   2u

#define LAPIC_SVR_ENABLE       (1u << 8)
#define LAPIC_SVR_NO_BROADCAST (1u << 12) /* suppress EOI broadcasts */

#define LAPIC_ESR_SEND_VECTOR    (1u << 5)
#define LAPIC_ESR_RECEIVE_VECTOR (1u << 6)
#define LAPIC_ESR_REGISTER       (1u << 7)

/* Version 14h, LAPIC_LVT_COUNT entries, can suppress EOI broadcasts */
#define LAPIC_VERSION_VALUE (0x14u | (LAPIC_LVT_COUNT - 1) << 16 | 1u << 24)

/* 256 vectors, one bit each. summary has a bit for each word that may be non-zero. */
struct lapic_vectors {
    _Atomic uint32_t word[8];
    _Atomic uint32_t summary;
};

/* Why the 8259's interrupt wants in: its INTR wire is up, or an ExtINT message came. */
#define LAPIC_EXTINT_WIRE    1u
#define LAPIC_EXTINT_MESSAGE 2u

struct lapic {
    struct device dev;
    struct lapic_group *group; /* owns this */
    struct vcpu *vcpu;         /* borrowed; NULL until attached */
    uint32_t id;

    /* Written by the vCPU's thread, read by any. */
    _Atomic uint64_t apic_base;
    _Atomic uint32_t tpr, ldr, dfr, svr;
    _Atomic uint32_t lvt[LAPIC_LVT_COUNT];

    /* Written by any thread. */
    struct lapic_vectors irr, tmr;
    _Atomic uint32_t esr_pending; /* errors since ESR was last written */
    _Atomic uint32_t extint;

    /* The vCPU's thread only. */
    struct lapic_vectors isr;
    uint32_t esr;
    uint64_t icr;
    uint32_t tmict, tdcr;
    uint32_t tmcct;          /* valid only in saved state */
    uint64_t tsc_deadline;   /* IA32_TSC_DEADLINE; 0: disarmed */
    uint64_t timer_deadline; /* clock_now() time at which timer_poll has something to do */
} __attribute__((aligned(128)));

struct lapic_group {
    unsigned cpus;
    unsigned alive; /* devices not destroyed yet; the last one frees the group */
    uint32_t tsc_khz;
    struct extint_source extint;
    void (*eoi)(void *opaque, uint8_t vector);
    void *eoi_opaque;
    struct lapic apic[];
};

/* A message on the bus between APICs. */
struct lapic_message {
    uint32_t dest;
    bool logical;
    bool broadcast; /* physical, to everyone */
    bool level;     /* trigger mode */
    bool assert;
    uint8_t mode; /* enum lapic_delivery */
    uint8_t vector;
};

/* lapic.c */
void lapic_post(struct lapic *apic, enum vcpu_event event, uint8_t vector);
bool lapic_has_interrupt(struct lapic *apic);
/* To IRR, and wakes the vCPU. Any thread. */
void lapic_accept_fixed(struct lapic *apic, uint8_t vector, bool level);
/* A local interrupt source fires: as its LVT entry says. Any thread. */
void lapic_lvt_fire(struct lapic *apic, enum lapic_lvt entry);
void lapic_error(struct lapic *apic, uint32_t bits);
void lapic_end_of_interrupt(struct lapic *apic);
uint32_t lapic_ppr(struct lapic *apic);
void lapic_reset(struct lapic *apic, bool init);

/* lapic_vectors.c */
void lapic_vectors_set(struct lapic_vectors *v, uint8_t vector);
void lapic_vectors_clear(struct lapic_vectors *v, uint8_t vector);
bool lapic_vectors_test(const struct lapic_vectors *v, uint8_t vector);
int lapic_vectors_highest(const struct lapic_vectors *v); /* -1: none */
void lapic_vectors_zero(struct lapic_vectors *v);
void lapic_vectors_loaded(struct lapic_vectors *v); /* rebuilds the summary */

/* lapic_route.c. Any thread. */
uint32_t lapic_logical_id(const struct lapic *apic);
void lapic_deliver(struct lapic *apic, const struct lapic_message *msg);
void lapic_route(struct lapic_group *group, const struct lapic_message *msg);
void lapic_send_ipi(struct lapic *apic, uint64_t icr);

/* lapic_regs.c */
uint64_t lapic_mmio_read(struct lapic *apic, uint32_t offset, unsigned size);
void lapic_mmio_write(struct lapic *apic, uint32_t offset, unsigned size, uint64_t value);
int lapic_msr_read(struct lapic *apic, uint32_t msr, uint64_t *value);
int lapic_msr_write(struct lapic *apic, uint32_t msr, uint64_t value);

/* lapic_timer.c. The vCPU's thread. */
uint32_t lapic_timer_count(const struct lapic *apic);
void lapic_timer_write_initial(struct lapic *apic, uint32_t count);
void lapic_timer_write_divide(struct lapic *apic, uint32_t value);
void lapic_timer_write_lvt(struct lapic *apic, uint32_t value);
void lapic_timer_write_deadline(struct lapic *apic, uint64_t tsc);
void lapic_timer_poll(struct lapic *apic);
void lapic_timer_stop(struct lapic *apic);
void lapic_timer_loaded(struct lapic *apic);

static inline uint64_t lapic_base_read(const struct lapic *apic)
{
    return atomic_load_explicit(&apic->apic_base, memory_order_relaxed);
}

static inline bool lapic_hw_enabled(const struct lapic *apic)
{
    return (lapic_base_read(apic) & (1u << 11)) != 0;
}

static inline bool lapic_x2apic(const struct lapic *apic)
{
    return (lapic_base_read(apic) & (1u << 10)) != 0;
}

static inline bool lapic_sw_enabled(const struct lapic *apic)
{
    return (atomic_load_explicit(&apic->svr, memory_order_relaxed) & LAPIC_SVR_ENABLE) != 0;
}

#endif
