/*
 * How vCPU threads make each other stop or forget. Each handshake is a Dekker pair: the asker
 * posts its request, then reads `where`; the asked sets `where`, then looks for requests. Both
 * sides use sequentially consistent operations, so at least one sees the other.
 */
#include <sched.h>

#include "cpu/soft/block.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/vm.h"

#define SYNC_SPINS 2000u

static void sync_relax(unsigned *turn)
{
    if (++*turn < SYNC_SPINS)
        __builtin_ia32_pause();
    else
        sched_yield();
}

void soft_spin_lock(_Atomic uint32_t *lock)
{
    unsigned turn = 0;

    while (atomic_exchange_explicit(lock, 1, memory_order_acquire)) {
        while (atomic_load_explicit(lock, memory_order_relaxed))
            sync_relax(&turn);
    }
}

void soft_spin_unlock(_Atomic uint32_t *lock)
{
    atomic_store_explicit(lock, 0, memory_order_release);
}

/* Drops the write translations others asked for, and says so. */
static void sync_revoke_own(struct soft_vcpu *cpu)
{
    uint64_t pages[SOFT_REVOKE_MAX], asked;
    uint32_t count;

    soft_spin_lock(&cpu->revoke_lock);
    count = cpu->revoke_count;
    asked = cpu->revoke_asked;
    cpu->revoke_count = 0;
    for (uint32_t i = 0; i < count && i < SOFT_REVOKE_MAX; i++)
        pages[i] = cpu->revoke_page[i];
    soft_spin_unlock(&cpu->revoke_lock);

    if (count > 0)
        cpu->end_block = true; /* a window of translated code may be open to the page (jit/window.c) */
    if (count > SOFT_REVOKE_MAX) {
        soft_tlb_revoke(cpu, 0);
    } else {
        for (uint32_t i = 0; i < count; i++)
            soft_tlb_revoke(cpu, pages[i]);
    }
    atomic_store(&cpu->revoke_done, asked);
}

void soft_map_changed(void *opaque)
{
    struct soft_vm *vm = opaque;

    atomic_fetch_add(&vm->map_generation, 1);
    for (unsigned i = 0; i < SOFT_VCPUS_MAX; i++) {
        struct soft_vcpu *cpu = atomic_load(&vm->vcpu[i]);

        if (cpu)
            atomic_fetch_or(&cpu->attention, SOFT_ATTN_FLUSH);
    }
}

void soft_map_follow(struct soft_vcpu *cpu)
{
    if (likely(!soft_map_stale(cpu)))
        return;
    cpu->map_generation = atomic_load(&cpu->soft_vm->map_generation);
    soft_tlb_flush(cpu);
    cpu->end_block = true;
}

static void sync_wait_exclusive(struct soft_vcpu *cpu)
{
    _Atomic uint32_t *exclusive = &cpu->soft_vm->exclusive;
    unsigned turn = 0;

    while (atomic_load(exclusive) && atomic_load(exclusive) != cpu->base.index + 1) {
        atomic_store(&cpu->where, SOFT_SUSPENDED);
        while (atomic_load(exclusive))
            sync_relax(&turn);
        atomic_store(&cpu->where, SOFT_IN_GUEST);
        cpu->end_block = true; /* what the rest of the block points to may be gone */
    }
}

void soft_sync_service(struct soft_vcpu *cpu)
{
    uint32_t bits = SOFT_ATTN_FLUSH | SOFT_ATTN_PAUSE;

    if (!(atomic_load(&cpu->attention) & bits))
        return;
    atomic_fetch_and(&cpu->attention, ~bits);
    sync_wait_exclusive(cpu);
    sync_revoke_own(cpu);
    if (soft_cache_edge_due(cpu)) /* this may not be an edge, and somebody waits for one */
        atomic_fetch_or(&cpu->attention, SOFT_ATTN_FLUSH);
}

void soft_sync_enter(struct soft_vcpu *cpu)
{
    atomic_store(&cpu->where, SOFT_IN_GUEST);
    sync_wait_exclusive(cpu);
    sync_revoke_own(cpu);
}

void soft_sync_leave(struct soft_vcpu *cpu)
{
    atomic_store(&cpu->where, SOFT_OUTSIDE);
}

static uint64_t sync_ask(struct soft_vcpu *other, uint64_t host_page)
{
    uint64_t ticket;

    soft_spin_lock(&other->revoke_lock);
    if (other->revoke_count < SOFT_REVOKE_MAX)
        other->revoke_page[other->revoke_count++] = host_page;
    else
        other->revoke_count = SOFT_REVOKE_MAX + 1;
    ticket = ++other->revoke_asked;
    soft_spin_unlock(&other->revoke_lock);
    atomic_fetch_or(&other->attention, SOFT_ATTN_FLUSH);
    return ticket;
}

static void sync_revoke_one(struct soft_vcpu *cpu, struct soft_vcpu *other, uint64_t host_page)
{
    uint64_t ticket;
    unsigned turn = 0;

    if (!other)
        return;
    if (other == cpu) {
        soft_tlb_revoke(cpu, host_page);
        return;
    }
    ticket = sync_ask(other, host_page);
    while (atomic_load(&other->where) == SOFT_IN_GUEST &&
           atomic_load(&other->revoke_done) < ticket) {
        soft_sync_service(cpu);
        sync_relax(&turn);
    }
}

void soft_sync_revoke(struct soft_vcpu *cpu, unsigned writers, uint64_t host_page)
{
    if (writers == 0)
        return;
    if (writers != SOFT_WRITERS_MANY) {
        sync_revoke_one(cpu, atomic_load(&cpu->soft_vm->vcpu[writers - 1]), host_page);
        return;
    }
    for (unsigned i = 0; i < SOFT_VCPUS_MAX; i++)
        sync_revoke_one(cpu, atomic_load(&cpu->soft_vm->vcpu[i]), host_page);
}

void soft_sync_until_zero(struct soft_vcpu *cpu, const _Atomic uint16_t *count)
{
    unsigned turn = 0;

    while (atomic_load(count)) {
        soft_sync_service(cpu);
        sync_relax(&turn);
    }
}

void soft_sync_epoch(struct soft_vcpu *cpu, uint64_t epoch)
{
    unsigned turn = 0;

    for (unsigned i = 0; i < SOFT_VCPUS_MAX; i++) {
        struct soft_vcpu *other = atomic_load(&cpu->soft_vm->vcpu[i]);

        if (!other || other == cpu)
            continue;
        while (atomic_load(&other->where) != SOFT_OUTSIDE &&
               atomic_load(&other->cache_epoch) < epoch) {
            soft_sync_service(cpu);
            sync_relax(&turn);
        }
    }
}

void soft_exclusive_begin(struct soft_vcpu *cpu)
{
    struct soft_vm *vm = cpu->soft_vm;
    uint32_t expected = 0;
    unsigned turn = 0;

    while (!atomic_compare_exchange_strong(&vm->exclusive, &expected, cpu->base.index + 1)) {
        expected = 0;
        sync_wait_exclusive(cpu);
    }
    sync_revoke_own(cpu);
    for (unsigned i = 0; i < SOFT_VCPUS_MAX; i++) {
        struct soft_vcpu *other = atomic_load(&vm->vcpu[i]);

        if (!other || other == cpu)
            continue;
        atomic_fetch_or(&other->attention, SOFT_ATTN_PAUSE);
        while (atomic_load(&other->where) == SOFT_IN_GUEST)
            sync_relax(&turn);
    }
}

void soft_exclusive_end(struct soft_vcpu *cpu)
{
    atomic_store(&cpu->soft_vm->exclusive, 0);
}

void soft_exclusive_abandon(struct soft_vcpu *cpu)
{
    if (unlikely(atomic_load_explicit(&cpu->soft_vm->exclusive, memory_order_relaxed) ==
                 cpu->base.index + 1))
        soft_exclusive_end(cpu);
}
