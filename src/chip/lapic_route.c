/* Messages between APICs: IPIs, MSIs and the I/O APIC's (SDM vol. 3A 11.6, 11.7, 11.11). */
#include "chip/lapic_internal.h"

#define LAPIC_ICR_LOGICAL       (1u << 11)
#define LAPIC_ICR_ASSERT        (1u << 14)
#define LAPIC_ICR_LEVEL         (1u << 15)
#define LAPIC_ICR_SHORTHAND(v)  (((v) >> 18) & 3u)

enum lapic_shorthand { LAPIC_TO_DEST, LAPIC_TO_SELF, LAPIC_TO_ALL, LAPIC_TO_OTHERS };

/* x2APIC: derived from the id (SDM 11.12.10.2). */
uint32_t lapic_logical_id(const struct lapic *apic)
{
    if (lapic_x2apic(apic))
        return (apic->id >> 4) << 16 | 1u << (apic->id & 15);
    return atomic_load_explicit(&apic->ldr, memory_order_relaxed);
}

static bool lapic_match_logical(const struct lapic *apic, uint32_t dest)
{
    uint32_t ldr = lapic_logical_id(apic);

    if (lapic_x2apic(apic))
        return ldr >> 16 == dest >> 16 && (ldr & dest & 0xffff);
    ldr >>= 24;
    if (dest > 0xff)
        return false;
    if (atomic_load_explicit(&apic->dfr, memory_order_relaxed) >> 28 == 0xf) /* flat model */
        return (ldr & dest) != 0;
    return (dest >> 4 == 0xf || dest >> 4 == ldr >> 4) && (ldr & dest & 0xf);
}

static bool lapic_match(const struct lapic *apic, const struct lapic_message *msg)
{
    if (msg->broadcast)
        return true;
    if (msg->logical)
        return lapic_match_logical(apic, msg->dest);
    return apic->id == msg->dest;
}

void lapic_deliver(struct lapic *apic, const struct lapic_message *msg)
{
    if (!lapic_hw_enabled(apic))
        return;
    switch ((enum lapic_delivery)msg->mode) {
    case LAPIC_FIXED:
    case LAPIC_LOWEST: lapic_accept_fixed(apic, msg->vector, msg->level); break;
    case LAPIC_NMI: lapic_post(apic, VCPU_EVENT_NMI, 0); break;
    case LAPIC_INIT:
        /* A de-assert only synchronised arbitration ids, long ago. */
        if (!msg->level || msg->assert)
            lapic_post(apic, VCPU_EVENT_INIT, 0);
        break;
    case LAPIC_SIPI: lapic_post(apic, VCPU_EVENT_SIPI, msg->vector); break;
    case LAPIC_EXTINT:
        atomic_fetch_or(&apic->extint, LAPIC_EXTINT_MESSAGE);
        lapic_post(apic, VCPU_EVENT_INTERRUPT, 0);
        break;
    case LAPIC_SMI: break; /* there is no system management mode */
    }
}

/* The lowest task priority wins; the vector spreads ties, so that one vector stays on one CPU. */
static void lapic_route_lowest(struct lapic_group *group, const struct lapic_message *msg)
{
    struct lapic *best = NULL;
    uint32_t best_tpr = 0;

    for (unsigned i = 0; i < group->cpus; i++) {
        struct lapic *apic = &group->apic[(i + msg->vector) % group->cpus];
        uint32_t tpr = atomic_load_explicit(&apic->tpr, memory_order_relaxed) >> 4;

        if (!lapic_match(apic, msg) || !lapic_hw_enabled(apic) || !lapic_sw_enabled(apic))
            continue;
        if (!best || tpr < best_tpr) {
            best = apic;
            best_tpr = tpr;
        }
    }
    if (best)
        lapic_deliver(best, msg);
}

void lapic_route(struct lapic_group *group, const struct lapic_message *msg)
{
    if (msg->mode == LAPIC_LOWEST) {
        lapic_route_lowest(group, msg);
        return;
    }
    if (!msg->logical && !msg->broadcast) { /* the common case: ids are indices */
        if (msg->dest < group->cpus)
            lapic_deliver(&group->apic[msg->dest], msg);
        return;
    }
    for (unsigned i = 0; i < group->cpus; i++) {
        if (lapic_match(&group->apic[i], msg))
            lapic_deliver(&group->apic[i], msg);
    }
}

static void lapic_route_others(struct lapic *self, const struct lapic_message *msg)
{
    struct lapic_group *group = self->group;

    for (unsigned i = 0; i < group->cpus; i++) {
        if (&group->apic[i] != self)
            lapic_deliver(&group->apic[i], msg);
    }
}

/* `icr` in x2APIC form: destination in bits 63:32. Trigger mode matters for INIT only (11.6.1). */
void lapic_send_ipi(struct lapic *apic, uint64_t icr)
{
    struct lapic_message msg = {
        .dest = (uint32_t)(icr >> 32),
        .logical = icr & LAPIC_ICR_LOGICAL,
        .mode = (uint8_t)LAPIC_MODE(icr),
        .vector = (uint8_t)icr,
        .assert = icr & LAPIC_ICR_ASSERT,
    };

    if ((msg.mode == LAPIC_FIXED || msg.mode == LAPIC_LOWEST) && msg.vector < 16) {
        lapic_error(apic, LAPIC_ESR_SEND_VECTOR);
        return;
    }
    if (msg.mode == LAPIC_INIT)
        msg.level = icr & LAPIC_ICR_LEVEL;
    msg.broadcast = msg.dest == (lapic_x2apic(apic) ? UINT32_MAX : 0xffu) &&
                    (!msg.logical || lapic_x2apic(apic));
    switch ((enum lapic_shorthand)LAPIC_ICR_SHORTHAND(icr)) {
    case LAPIC_TO_SELF: lapic_deliver(apic, &msg); break;
    case LAPIC_TO_OTHERS: lapic_route_others(apic, &msg); break;
    case LAPIC_TO_ALL:
        msg.broadcast = true;
        lapic_route(apic->group, &msg);
        break;
    case LAPIC_TO_DEST: lapic_route(apic->group, &msg); break;
    }
}

void lapic_group_msi(struct lapic_group *group, uint64_t addr, uint32_t data)
{
    struct lapic_message msg = {
        .dest = (uint32_t)(addr >> 12) & 0xff,
        .logical = addr & 4,
        .level = data & LAPIC_ICR_LEVEL,
        .assert = data & LAPIC_ICR_ASSERT,
        .mode = (uint8_t)LAPIC_MODE(data),
        .vector = (uint8_t)data,
    };

    if (addr >> 20 != 0xfee || (msg.level && !msg.assert))
        return;
    if ((addr & 8) && msg.logical && msg.mode == LAPIC_FIXED) /* redirection hint */
        msg.mode = LAPIC_LOWEST;
    msg.broadcast = msg.dest == 0xff && !msg.logical;
    lapic_route(group, &msg);
}
