/* The local APIC's timer (SDM vol. 3A 11.5.4), kept as the host time of its next expiry. */
#include "base/clock.h"
#include "chip/lapic_internal.h"

/* A guest that asks for more periodic interrupts than this is given this many. */
#define LAPIC_MIN_PERIOD (50 * NSEC_PER_USEC)

_Static_assert(LOCAL_APIC_TIMER_HZ == NSEC_PER_SEC, "a tick is a nanosecond");

static unsigned lapic_timer_mode(const struct lapic *apic)
{
    return LAPIC_TIMER_MODE(
        atomic_load_explicit(&apic->lvt[LAPIC_LVT_TIMER], memory_order_relaxed));
}

/* Divide configuration: bits 3, 1, 0 are 0 for /2 up to 6 for /128, 7 for /1. */
static unsigned lapic_timer_shift(uint32_t tdcr)
{
    return (((tdcr & 3) | ((tdcr >> 1) & 4)) + 1) & 7;
}

static uint64_t lapic_timer_period(const struct lapic *apic)
{
    return (uint64_t)apic->tmict << lapic_timer_shift(apic->tdcr);
}

static uint64_t lapic_timer_repeat(const struct lapic *apic)
{
    uint64_t period = lapic_timer_period(apic);

    return period < LAPIC_MIN_PERIOD ? LAPIC_MIN_PERIOD : period;
}

static void lapic_timer_set(struct lapic *apic, uint64_t deadline)
{
    if (apic->timer_deadline == deadline)
        return;
    apic->timer_deadline = deadline;
    lapic_post(apic, VCPU_EVENT_TIMER, 0);
}

void lapic_timer_stop(struct lapic *apic)
{
    apic->tsc_deadline = 0;
    lapic_timer_set(apic, CLOCK_NEVER);
}

/* Nanoseconds to the next expiry, 0 when there is none to come. */
static uint64_t lapic_timer_remaining(const struct lapic *apic, uint64_t now)
{
    uint64_t period;

    if (apic->timer_deadline == CLOCK_NEVER)
        return 0;
    if (now < apic->timer_deadline)
        return apic->timer_deadline - now;
    if (lapic_timer_mode(apic) != LAPIC_TIMER_PERIODIC)
        return 0;
    period = lapic_timer_repeat(apic);
    return period - (now - apic->timer_deadline) % period;
}

uint32_t lapic_timer_count(const struct lapic *apic)
{
    unsigned shift = lapic_timer_shift(apic->tdcr);
    uint64_t left, count;

    if (lapic_timer_mode(apic) == LAPIC_TIMER_DEADLINE)
        return 0;
    left = lapic_timer_remaining(apic, clock_now());
    count = (left + (1u << shift) - 1) >> shift;
    return count > apic->tmict ? apic->tmict : (uint32_t)count;
}

void lapic_timer_write_initial(struct lapic *apic, uint32_t count)
{
    if (lapic_timer_mode(apic) == LAPIC_TIMER_DEADLINE)
        return;
    apic->tmict = count;
    lapic_timer_set(apic, count ? clock_now() + lapic_timer_period(apic) : CLOCK_NEVER);
}

void lapic_timer_write_divide(struct lapic *apic, uint32_t value)
{
    uint32_t count = lapic_timer_count(apic);

    apic->tdcr = value & 0xb;
    if (count)
        lapic_timer_set(apic, clock_now() + ((uint64_t)count << lapic_timer_shift(apic->tdcr)));
}

/* Going into or out of TSC-deadline mode disarms the timer (SDM 11.5.4.1). */
void lapic_timer_write_lvt(struct lapic *apic, uint32_t value)
{
    bool was = lapic_timer_mode(apic) == LAPIC_TIMER_DEADLINE;
    bool is = LAPIC_TIMER_MODE(value) == LAPIC_TIMER_DEADLINE;

    atomic_store(&apic->lvt[LAPIC_LVT_TIMER], value);
    if (was == is)
        return;
    apic->tmict = 0;
    lapic_timer_stop(apic);
}

static uint64_t lapic_tsc(const struct lapic *apic)
{
    struct vcpu *vcpu = apic->vcpu;

    if (vcpu && vcpu->vm->ops->tsc)
        return vcpu->vm->ops->tsc(vcpu);
    return __builtin_ia32_rdtsc();
}

/* The host time when the guest's TSC reaches the deadline, rounded up; CLOCK_NEVER - 1 at most. */
static uint64_t lapic_tsc_to_clock(const struct lapic *apic, uint64_t tsc)
{
    uint64_t now = clock_now();
    uint32_t khz = apic->group->tsc_khz;
    unsigned __int128 delta = (unsigned __int128)(apic->tsc_deadline - tsc) * 1000000u;

    delta = (delta + khz - 1) / khz;
    if (delta >= CLOCK_NEVER - now)
        return CLOCK_NEVER - 1;
    return now + (uint64_t)delta;
}

/* True when the deadline has been reached; arms for the rest of the way otherwise. */
static bool lapic_timer_tsc_reached(struct lapic *apic)
{
    uint64_t tsc = lapic_tsc(apic);

    if (apic->tsc_deadline && tsc < apic->tsc_deadline) {
        lapic_timer_set(apic, lapic_tsc_to_clock(apic, tsc));
        return false;
    }
    lapic_timer_set(apic, CLOCK_NEVER);
    if (!apic->tsc_deadline)
        return false;
    apic->tsc_deadline = 0;
    return true;
}

void lapic_timer_write_deadline(struct lapic *apic, uint64_t tsc)
{
    if (lapic_timer_mode(apic) != LAPIC_TIMER_DEADLINE)
        return;
    apic->tsc_deadline = tsc;
    if (lapic_timer_tsc_reached(apic))
        lapic_lvt_fire(apic, LAPIC_LVT_TIMER);
}

static void lapic_timer_advance(struct lapic *apic, uint64_t now)
{
    uint64_t period = lapic_timer_repeat(apic);
    uint64_t late = (now - apic->timer_deadline) % period;

    lapic_timer_set(apic, now + period - late); /* periods missed are lost, as in one IRR bit */
}

void lapic_timer_poll(struct lapic *apic)
{
    uint64_t now = clock_now();

    if (now < apic->timer_deadline)
        return;
    switch (lapic_timer_mode(apic)) {
    case LAPIC_TIMER_DEADLINE:
        if (!lapic_timer_tsc_reached(apic))
            return;
        break;
    case LAPIC_TIMER_PERIODIC: lapic_timer_advance(apic, now); break;
    default: lapic_timer_set(apic, CLOCK_NEVER); break;
    }
    lapic_lvt_fire(apic, LAPIC_LVT_TIMER);
}

/* The guest's TSC may not be there yet, so a deadline in it is looked at by the vCPU's thread. */
void lapic_timer_loaded(struct lapic *apic)
{
    uint64_t deadline = CLOCK_NEVER;

    if (lapic_timer_mode(apic) == LAPIC_TIMER_DEADLINE && apic->tsc_deadline)
        deadline = 0;
    else if (apic->tmcct)
        deadline = clock_now() + ((uint64_t)apic->tmcct << lapic_timer_shift(apic->tdcr));
    apic->timer_deadline = CLOCK_NEVER - 1; /* differs from any: the vCPU is told */
    lapic_timer_set(apic, deadline);
}
