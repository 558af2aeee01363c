/* What the vCPUs of one soft VM share, and how they stop each other (sync.c). */
#ifndef CPU_SOFT_VM_H
#define CPU_SOFT_VM_H

#include "cpu/soft/insn.h"
#include "cpu/soft/tuning.h"
#include "cpu/soft/vcpu.h"

#define SOFT_VCPUS_MAX 64u

struct soft_jit; /* jit/jit.h */

struct soft_vm {
    struct vm base;
    struct soft_cache *cache;                    /* owned */
    struct soft_code *code;                      /* owned */
    struct soft_jit *jit;                        /* owned; NULL: everything is interpreted */
    struct soft_vcpu *_Atomic vcpu[SOFT_VCPUS_MAX]; /* borrowed; by index */
    struct soft_tuning tuning;
    _Atomic uint32_t
        map_generation; /* counts changes of what the guest's addresses are (core/memory.h) */
    _Atomic uint32_t exclusive;                  /* index + 1 of the vCPU that runs alone, or 0 */
    uint32_t host_tsc_khz;
    _Atomic int64_t tsc_offset;                  /* the vCPUs' common one (soft_tsc_set) */
    /* Who binds a mnemonic: the families' tables, the first family that lists it. Set at creation. */
    const struct insn_binding *binding[ZYDIS_MNEMONIC_MAX_VALUE + 1];
};

/* decode.c */
void soft_decode_init(struct soft_vm *vm);

/* Enters and leaves the state in which others wait for this vCPU. At a block edge. */
void soft_sync_enter(struct soft_vcpu *cpu);
void soft_sync_leave(struct soft_vcpu *cpu);

/* Does what others asked for: revokes, pause. Only where no pointer from the TLB is in use. What only a block
 * edge can do (soft_cache_edge) stays asked for. */
void soft_sync_service(struct soft_vcpu *cpu);

/* Returns when no vCPU in the set holds a write translation to the page: `writers` is 0 nobody,
 * index + 1, or SOFT_WRITERS_MANY. At a block edge of cpu. */
#define SOFT_WRITERS_MANY 0xffffu
void soft_sync_revoke(struct soft_vcpu *cpu, unsigned writers, uint64_t host_page);

/* Waits until others have brought *count to 0, doing meanwhile what they ask for. At a block edge of cpu. */
void soft_sync_until_zero(struct soft_vcpu *cpu, const _Atomic uint16_t *count);

/* Waits until every vCPU's cache_epoch is at least `epoch` or it is outside. At a block edge of cpu. */
void soft_sync_epoch(struct soft_vcpu *cpu, uint64_t epoch);

/* The guest's addresses are something else now: every vCPU drops its translations at its next block
 * edge. For mem->map_changed; `vm` is the struct soft_vm. Any thread. */
void soft_map_changed(void *vm);

static inline bool soft_map_stale(const struct soft_vcpu *cpu)
{
    return cpu->map_generation !=
           atomic_load_explicit(&cpu->soft_vm->map_generation, memory_order_acquire);
}

/* Drops this vCPU's translations if that is due, and ends the block. After each write to a device.
 */
void soft_map_follow(struct soft_vcpu *cpu);

/* A short lock: spins, then yields. */
void soft_spin_lock(_Atomic uint32_t *lock);
void soft_spin_unlock(_Atomic uint32_t *lock);

#endif
