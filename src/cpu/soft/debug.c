/* Debug registers. Reference: SDM vol. 3B chapter 17. */
#include "cpu/soft/descriptor.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

#define DR6_FIXED    0xffff0ff0ull
#define DR6_BD       (1u << 13)
#define DR6_WRITABLE 0xe00full
#define DR7_FIXED    0x400ull
#define DR7_GD       (1u << 13)
#define DR7_WRITABLE 0xffff2bffull

void soft_debug_trap(struct soft_vcpu *cpu, uint64_t dr6_bits)
{
    cpu->s.dr6 |= dr6_bits;
    soft_raise(cpu, VECTOR_DB);
}

/* Length in bytes of data breakpoint i, 0 when it is off, for instructions or for I/O. */
static unsigned watch_length(const struct soft_vcpu *cpu, unsigned i)
{
    static const uint8_t lengths[4] = {1, 2, 8, 4};
    uint64_t dr7 = cpu->s.dr7;
    unsigned control = (unsigned)(dr7 >> (16 + 4 * i)) & 0xf;

    if (!(dr7 >> (2 * i) & 3) || !(control & 1))
        return 0;
    return lengths[control >> 2];
}

static gva_t watch_start(const struct soft_vcpu *cpu, unsigned i, unsigned length)
{
    return cpu->s.dr[i] & ~(gva_t)(length - 1);
}

bool soft_debug_watched(const struct soft_vcpu *cpu, gva_t gva)
{
    if (likely(!(cpu->s.dr7 & 0xff)))
        return false;
    for (unsigned i = 0; i < 4; i++) {
        unsigned length = watch_length(cpu, i);

        if (length && ((watch_start(cpu, i, length) ^ gva) & PAGE_MASK) == 0)
            return true;
    }
    return false;
}

void soft_debug_note(struct soft_vcpu *cpu, gva_t gva, unsigned len, bool write)
{
    if (likely(!(cpu->s.dr7 & 0xff)))
        return;
    for (unsigned i = 0; i < 4; i++) {
        unsigned length = watch_length(cpu, i);
        gva_t start = watch_start(cpu, i, length ? length : 1);
        bool only_writes = (cpu->s.dr7 >> (16 + 4 * i) & 3) == 1;

        if (length && (write || !only_writes) && gva < start + length && start < gva + len)
            cpu->watch_hits |= (uint8_t)(1u << i);
    }
}

/* DR4 and DR5 are DR6 and DR7 unless CR4.DE; then #UD. GD guards every access. */
static unsigned debug_check(struct soft_vcpu *cpu, unsigned dr)
{
    if (dr > 7 || ((dr == 4 || dr == 5) && (cpu->s.cr4 & CR4_DE)))
        soft_raise_ud(cpu);
    if (cpu->cpl != 0)
        soft_raise_gp(cpu, 0);
    if (cpu->s.dr7 & DR7_GD)
        soft_debug_trap(cpu, DR6_BD);
    return dr == 4 || dr == 5 ? dr + 2 : dr;
}

uint64_t soft_dr_read(struct soft_vcpu *cpu, unsigned dr)
{
    dr = debug_check(cpu, dr);
    if (dr < 4)
        return cpu->s.dr[dr];
    return dr == 6 ? cpu->s.dr6 : cpu->s.dr7;
}

void soft_dr_write(struct soft_vcpu *cpu, unsigned dr, uint64_t value)
{
    dr = debug_check(cpu, dr);
    if (dr < 4) {
        cpu->s.dr[dr] = value;
        cpu->end_block = true;
        if (cpu->s.dr7 & 0xff)
            soft_tlb_flush(cpu);
        return;
    }
    if (value >> 32)
        soft_raise_gp(cpu, 0);
    if (dr == 6)
        cpu->s.dr6 = (value & DR6_WRITABLE) | DR6_FIXED;
    else
        cpu->s.dr7 = (value & DR7_WRITABLE) | DR7_FIXED;
    if (dr == 7 && (value & 0xff))
        soft_tlb_flush(cpu); /* watched pages must go (soft_debug_watched) */
    cpu->end_block = true;
}
