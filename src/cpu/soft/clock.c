/*
 * KVM's paravirtual clock: pages in guest memory that tell how to turn the TSC into time.
 * ABI: Linux Documentation/virt/kvm/x86/msr.rst (MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW).
 *
 * System time is the guest's TSC without TSC_ADJUST, scaled; so it is the same on every vCPU, never
 * goes back, and stops while the machine is stopped.
 */
#include <assert.h>

#include "base/clock.h"
#include "core/memory.h"
#include "cpu/soft/descriptor.h"
#include "cpu/soft/fpu.h"

#define CLOCK_TSC_STABLE 0x01u

struct clock_system { /* struct pvclock_vcpu_time_info */
    uint32_t version;
    uint32_t pad0;
    uint64_t tsc_timestamp;
    uint64_t system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags;
    uint8_t pad[2];
};
static_assert(sizeof(struct clock_system) == 32, "guest ABI");

struct clock_wall { /* struct pvclock_wall_clock */
    uint32_t version;
    uint32_t sec;
    uint32_t nsec;
};

/* ns = ((tsc << shift) * mul) >> 32, with mul's top bit set for precision. */
static void clock_scale(uint32_t khz, uint32_t *mul, int8_t *shift)
{
    uint64_t num = NSEC_PER_SEC / 1000, den = khz ? khz : 1;

    *shift = 0;
    while (num >= den) {
        den <<= 1;
        (*shift)++;
    }
    while (num * 2 < den) {
        num <<= 1;
        (*shift)--;
    }
    *mul = (uint32_t)((num << 32) / den);
}

static uint64_t clock_system_time(const struct soft_vcpu *cpu)
{
    uint64_t tsc = soft_tsc(cpu) - cpu->s.msr.tsc_adjust;
    uint32_t mul;
    int8_t shift;

    clock_scale(cpu->base.vm->model->tsc_khz, &mul, &shift);
    tsc = shift < 0 ? tsc >> -shift : tsc << shift;
    return (uint64_t)(((unsigned __int128)tsc * mul) >> 32);
}

/* The version is odd while the rest changes; the reader is another vCPU or this one. */
static void clock_publish(struct mem *mem, gpa_t gpa, const void *data, uint32_t len,
                          uint32_t version)
{
    mem_write32(mem, gpa, version | 1);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with the guest's read of version */
    if (mem_write(mem, gpa + 4, (const uint8_t *)data + 4, len - 4))
        return;
    atomic_thread_fence(memory_order_seq_cst);
    mem_write32(mem, gpa, (version | 1) + 1);
}

void soft_clock_write_system(struct soft_vcpu *cpu)
{
    struct mem *mem = cpu->base.vm->machine->mem;
    gpa_t gpa = cpu->s.msr.kvm_system_time & ~1ull;
    struct clock_system info = {
        .tsc_timestamp = cpu->s.msr.tsc_adjust,
        .flags = CLOCK_TSC_STABLE,
    };

    if (!(cpu->s.msr.kvm_system_time & 1))
        return;
    clock_scale(cpu->base.vm->model->tsc_khz, &info.tsc_to_system_mul, &info.tsc_shift);
    soft_fpu_park(cpu);
    clock_publish(mem, gpa, &info, sizeof(info), mem_read32(mem, gpa) & ~1u);
}

void soft_clock_write_wall(struct soft_vcpu *cpu)
{
    struct mem *mem = cpu->base.vm->machine->mem;
    gpa_t gpa = cpu->s.msr.kvm_wall_clock & ~1ull;
    struct clock_wall wall = {0};
    uint64_t boot;

    if (!gpa)
        return;
    soft_fpu_park(cpu);
    boot = clock_wall() - clock_system_time(cpu);
    wall.sec = (uint32_t)(boot / NSEC_PER_SEC);
    wall.nsec = (uint32_t)(boot % NSEC_PER_SEC);
    clock_publish(mem, gpa, &wall, sizeof(wall), mem_read32(mem, gpa) & ~1u);
}
