/*
 * What the integer, string and branch families share: operands, flags, the stack. Private to exec_*.c.
 *
 * Register operands (dst, src, src2 of struct insn) are byte offsets into s.gpr for every size.
 *
 * Arithmetic flags are computed by the host: the real instruction, then LAHF and SETO. LAHF's AH is
 * bits 7:0 of RFLAGS as they are, so the flags are stored as two bytes; readers should read the byte
 * they need, because a wider load right after a byte store is slow. Where a result depends on the flags before it
 * (also by leaving an "undefined" flag as it was), ADD $0x7f,%al and SAHF load all six first. This
 * keeps flags that the manuals leave undefined as the host has them. No PUSHF: the compiler may use
 * the red zone.
 *
 * Handlers of memory operands come in three forms, chosen when an instruction is bound:
 * g: any address; b: [base+disp] and x: [base+index*scale+disp] in 64-bit mode without FS or GS.
 */
#ifndef CPU_SOFT_EXEC_INTEGER_H
#define CPU_SOFT_EXEC_INTEGER_H

#include "base/compiler.h"
#include "cpu/soft/insn.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/vcpu.h"

#define always_inline inline __attribute__((always_inline))

#define SFX_8  "b"
#define SFX_16 "w"
#define SFX_32 "l"
#define SFX_64 "q"

#define HANDLER(name) static void name(struct soft_vcpu *cpu, const struct insn *in)

/* ---- registers ---- */

#define GPR(bits, offset) (*(uint##bits##_t *)((uint8_t *)cpu + (offset)))

static always_inline void gpr_write_8(struct soft_vcpu *cpu, unsigned offset, uint8_t value)
{
    GPR(8, offset) = value;
}
static always_inline void gpr_write_16(struct soft_vcpu *cpu, unsigned offset, uint16_t value)
{
    GPR(16, offset) = value;
}
static always_inline void gpr_write_32(struct soft_vcpu *cpu, unsigned offset, uint32_t value)
{
    GPR(64, offset) = value;
}
static always_inline void gpr_write_64(struct soft_vcpu *cpu, unsigned offset, uint64_t value)
{
    GPR(64, offset) = value;
}

/* By an operand or address size in bytes: 16-bit writes keep the rest, 32-bit ones clear the upper half. */
static inline void gpr_write_sized(struct soft_vcpu *cpu, unsigned number, unsigned size,
                                   uint64_t value)
{
    if (size == 8)
        cpu->s.gpr[number] = value;
    else if (size == 4)
        cpu->s.gpr[number] = (uint32_t)value;
    else
        *(uint16_t *)&cpu->s.gpr[number] = (uint16_t)value;
}

static inline uint64_t size_mask(unsigned size)
{
    return size == 8 ? ~0ull : (1ull << (size * 8)) - 1;
}

/* ---- flags ---- */

#define FLAGS_LOAD "addb $0x7f,%%al\n\tsahf\n\t" /* from flags_get()'s form in EAX */
#define FLAGS_SAVE "\n\tlahf\n\tseto %%al"       /* to flags_put()'s form in EAX */

static always_inline uint8_t *flags_bytes(struct soft_vcpu *cpu)
{
    return (uint8_t *)&cpu->s.rflags;
}

static always_inline uint32_t flags_get(struct soft_vcpu *cpu)
{
    const uint8_t *f = flags_bytes(cpu);

    return ((uint32_t)f[0] << 8) | ((f[1] >> 3) & 1u);
}

static always_inline void flags_put(struct soft_vcpu *cpu, uint32_t ax)
{
    uint8_t *f = flags_bytes(cpu);

    f[0] = (uint8_t)(ax >> 8);
    f[1] = (uint8_t)((f[1] & ~8u) | ((ax & 1u) << 3));
}

/* Conditions in the order of the opcodes' low nibble (SDM vol. 1 appendix B). */
#define CONDITIONS(X)                                                                              \
    X(O, o) X(NO, no) X(B, b) X(NB, nb) X(Z, z) X(NZ, nz) X(BE, be) X(NBE, nbe)                    \
    X(S, s) X(NS, ns) X(P, p) X(NP, np) X(L, l) X(NL, nl) X(LE, le) X(NLE, nle)

#define FLAG_BYTE(n)  (flags_bytes(cpu)[n])
#define CONDITION_o   ((FLAG_BYTE(1) & 8) != 0)
#define CONDITION_b   ((FLAG_BYTE(0) & RFLAGS_CF) != 0)
#define CONDITION_z   ((FLAG_BYTE(0) & RFLAGS_ZF) != 0)
#define CONDITION_be  ((FLAG_BYTE(0) & (RFLAGS_CF | RFLAGS_ZF)) != 0)
#define CONDITION_s   ((FLAG_BYTE(0) & RFLAGS_SF) != 0)
#define CONDITION_p   ((FLAG_BYTE(0) & RFLAGS_PF) != 0)
#define CONDITION_l   ((((FLAG_BYTE(1) << 4) ^ FLAG_BYTE(0)) & RFLAGS_SF) != 0)
#define CONDITION_le                                                                               \
    ((((((FLAG_BYTE(1) << 4) ^ FLAG_BYTE(0)) & RFLAGS_SF) | (FLAG_BYTE(0) & RFLAGS_ZF))) != 0)
#define CONDITION_no  (!CONDITION_o)
#define CONDITION_nb  (!CONDITION_b)
#define CONDITION_nz  (!CONDITION_z)
#define CONDITION_nbe (!CONDITION_be)
#define CONDITION_ns  (!CONDITION_s)
#define CONDITION_np  (!CONDITION_p)
#define CONDITION_nl  (!CONDITION_l)
#define CONDITION_nle (!CONDITION_le)

/* ---- memory operands ---- */

#define ADDR_g(size, access) soft_operand(cpu, in, size, access)
#define ADDR_b(size, access) operand_base(cpu, in)
#define ADDR_x(size, access) operand_base_index(cpu, in)

static always_inline gva_t operand_base(const struct soft_vcpu *cpu, const struct insn *in)
{
    return cpu->s.gpr[in->base] + (uint64_t)in->disp;
}

static always_inline gva_t operand_base_index(const struct soft_vcpu *cpu, const struct insn *in)
{
    return cpu->s.gpr[in->base] + (cpu->s.gpr[in->index] << in->scale) + (uint64_t)in->disp;
}

#define LOAD(bits, gva) ((uint##bits##_t)soft_load(cpu, in->seg, gva, bits / 8))
#define STORE(bits, gva, value) soft_store(cpu, in->seg, gva, bits / 8, value)

/* soft_pointer for writing, with its common case inline. */
static always_inline void *rmw_pointer(struct soft_vcpu *cpu, const struct insn *in, gva_t gva,
                                       unsigned size)
{
    const struct soft_tlb_entry *e = soft_tlb_slot(cpu->context, gva);

    if (likely(soft_tlb_tag(gva, size) == e->write))
        return (void *)(gva + e->addend);
    return soft_pointer(cpu, in->seg, gva, size, SOFT_WRITE);
}

/*
 * Read-modify-write: where the operand may be changed in place. That is guest memory, or `*spare`
 * holding the value, which rmw_end stores. All faults are raised here.
 */
static always_inline void *rmw_begin(struct soft_vcpu *cpu, const struct insn *in, gva_t gva,
                                     unsigned size, uint64_t *spare)
{
    void *host = rmw_pointer(cpu, in, gva, size);

    if (likely(host != NULL))
        return host;
    soft_probe_write(cpu, in->seg, gva, size);
    *spare = soft_load(cpu, in->seg, gva, size);
    return spare;
}

static always_inline void rmw_end(struct soft_vcpu *cpu, const struct insn *in, gva_t gva,
                                  unsigned size, const void *host, const uint64_t *spare)
{
    if (unlikely(host == spare))
        soft_store(cpu, in->seg, gva, size, *spare);
}

/* The same for LOCK: between the two, an operand in *spare is this vCPU's alone. */
static always_inline void *locked_begin(struct soft_vcpu *cpu, const struct insn *in, gva_t gva,
                                        unsigned size, uint64_t *spare)
{
    void *host = rmw_pointer(cpu, in, gva, size);

    if (likely(host != NULL))
        return host;
    soft_probe_write(cpu, in->seg, gva, size);
    soft_exclusive_begin(cpu);
    *spare = soft_load(cpu, in->seg, gva, size);
    return spare;
}

static always_inline void locked_end(struct soft_vcpu *cpu, const struct insn *in, gva_t gva,
                                     unsigned size, const void *host, const uint64_t *spare)
{
    if (unlikely(host == spare)) {
        soft_store(cpu, in->seg, gva, size, *spare);
        soft_exclusive_end(cpu);
    }
}

/* ---- the stack ---- */

static always_inline uint64_t stack_mask(const struct soft_vcpu *cpu)
{
    if (cpu->mode & SOFT_MODE_CODE64)
        return ~0ull;
    return cpu->mode & SOFT_MODE_STACK32 ? 0xffffffffull : 0xffffull;
}

static always_inline gva_t stack_linear(struct soft_vcpu *cpu, uint64_t offset, unsigned size,
                                        enum soft_access access)
{
    if (cpu->mode & SOFT_MODE_CODE64)
        return offset;
    return soft_linear(cpu, SEG_SS, offset, size, access);
}

/* (E)SP, SP: only the part in use changes. */
static always_inline void stack_set(struct soft_vcpu *cpu, uint64_t sp)
{
    uint64_t mask = stack_mask(cpu);

    cpu->s.gpr[GPR_RSP] = mask == 0xffff ? (cpu->s.gpr[GPR_RSP] & ~mask) | (sp & mask) : sp & mask;
}

static inline uint64_t stack_load(struct soft_vcpu *cpu, uint64_t offset, unsigned size)
{
    gva_t gva = stack_linear(cpu, offset & stack_mask(cpu), size, SOFT_READ);

    return soft_load(cpu, SEG_SS, gva, size);
}

static inline void stack_store(struct soft_vcpu *cpu, uint64_t offset, unsigned size,
                               uint64_t value)
{
    gva_t gva = stack_linear(cpu, offset & stack_mask(cpu), size, SOFT_WRITE);

    soft_store(cpu, SEG_SS, gva, size, value);
}

static inline void stack_push(struct soft_vcpu *cpu, unsigned size, uint64_t value)
{
    uint64_t sp = cpu->s.gpr[GPR_RSP] - size;

    stack_store(cpu, sp, size, value);
    stack_set(cpu, sp);
}

/* ---- binding ---- */

enum { EA_G, EA_B, EA_X, EA_FORMS };

static inline unsigned bind_ea_form(const struct insn *in, const struct insn_decode *d)
{
    if (!(d->mode & SOFT_MODE_CODE64) || in->addrsize != 8 || (in->flags & INSN_FS_GS) ||
        in->base == INSN_REG_NONE)
        return EA_G;
    return in->index == INSN_REG_NONE ? EA_B : EA_X;
}

/* Sizes 1, 2, 4, 8 as table indexes 0 to 3. */
static inline unsigned bind_size_index(unsigned bytes)
{
    return bytes == 1 ? 0 : bytes == 2 ? 1 : bytes == 4 ? 2 : 3;
}

static inline bool bind_is_gpr(const struct insn_decode *d, unsigned i)
{
    return d->operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
           insn_gpr(d->operand[i].reg.value) >= 0;
}

static inline bool bind_is_mem(const struct insn_decode *d, unsigned i)
{
    return d->operand[i].type == ZYDIS_OPERAND_TYPE_MEMORY;
}

static inline bool bind_is_imm(const struct insn_decode *d, unsigned i)
{
    return d->operand[i].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

static inline unsigned bind_bytes(const struct insn_decode *d, unsigned i)
{
    return d->operand[i].size / 8u;
}

/* Binds of one file each: false for a mnemonic or operands that are not theirs. exec_integer.c asks them. */
typedef bool bind_fn(struct insn *in, const struct insn_decode *d);

bind_fn integer_bind_alu, integer_bind_unary;
bind_fn integer_bind_mov, integer_bind_extend, integer_bind_lea, integer_bind_cmov,
    integer_bind_setcc, integer_bind_convert, integer_bind_bswap, integer_bind_movbe,
    integer_bind_xlat;
bind_fn integer_bind_shift, integer_bind_double_shift, integer_bind_shiftx;
bind_fn integer_bind_muldiv, integer_bind_imul, integer_bind_mulx;
bind_fn integer_bind_bit_test, integer_bind_bit_count, integer_bind_bmi, integer_bind_adx,
    integer_bind_crc32;
bind_fn integer_bind_xchg, integer_bind_xchg_r8, integer_bind_xadd, integer_bind_cmpxchg, integer_bind_cmpxchg_wide;
bind_fn integer_bind_push, integer_bind_pop, integer_bind_pusha, integer_bind_popa,
    integer_bind_enter, integer_bind_leave;
bind_fn integer_bind_flags, integer_bind_bcd, integer_bind_bound, integer_bind_nop,
    integer_bind_random;

#endif
