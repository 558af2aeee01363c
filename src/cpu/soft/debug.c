/* Debug registers. Reference: SDM vol. 3B chapter 17. */
#include "cpu/soft/descriptor.h"
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
        return;
    }
    if (value >> 32)
        soft_raise_gp(cpu, 0);
    if (dr == 6)
        cpu->s.dr6 = (value & DR6_WRITABLE) | DR6_FIXED;
    else
        cpu->s.dr7 = (value & DR7_WRITABLE) | DR7_FIXED;
    cpu->end_block = true;
}
