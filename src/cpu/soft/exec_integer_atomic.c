/* XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B. Memory forms of XCHG are locked with or without the prefix. */
#include "cpu/soft/exec_integer.h"

#define SIZES(M) M(8) M(16) M(32) M(64)
#define ROW(name) {name##_8, name##_16, name##_32, name##_64}

/* ---- XCHG ---- */

#define XCHG_HANDLERS(bits)                                                                        \
    HANDLER(xchg_r_##bits)                                                                         \
    {                                                                                              \
        uint##bits##_t a = GPR(bits, in->dst), b = GPR(bits, in->src);                             \
                                                                                                   \
        gpr_write_##bits(cpu, in->dst, b);                                                         \
        gpr_write_##bits(cpu, in->src, a);                                                         \
    }                                                                                              \
    HANDLER(xchg_m_##bits)                                                                         \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_WRITE);                                                  \
        uint64_t spare;                                                                            \
        uint##bits##_t *host = locked_begin(cpu, in, gva, bits / 8, &spare);                       \
        uint##bits##_t value = GPR(bits, in->src);                                                 \
                                                                                                   \
        __asm__ volatile("xchg %[s],%[d]" : [d] "+m"(*host), [s] "+r"(value) : : "memory");        \
        locked_end(cpu, in, gva, bits / 8, host, &spare);                                          \
        gpr_write_##bits(cpu, in->src, value);                                                     \
    }
SIZES(XCHG_HANDLERS)

bool integer_bind_xchg(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const handlers[2][4] = {ROW(xchg_r), ROW(xchg_m)};
    unsigned mem = bind_is_mem(d, 1) ? 1 : 0; /* either operand may be it */
    unsigned reg = mem ? 0 : 1;
    bool has_mem = bind_is_mem(d, mem);

    if ((in->flags & INSN_LOCK) && !has_mem)
        return false;
    in->dst = insn_gpr_offset(d->operand[mem].reg.value);
    in->src = insn_gpr_offset(d->operand[reg].reg.value);
    in->fn = handlers[has_mem][bind_size_index(bind_bytes(d, reg))];
    return true;
}

bool integer_bind_xchg_r8(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const handlers[4] = ROW(xchg_r);

    (void)d;
    in->dst = GPR_R8 * 8;
    in->src = GPR_RAX * 8;
    in->fn = handlers[bind_size_index(in->opsize)];
    return true;
}

/* ---- XADD: the source register is written first, so that one register for both gets the sum ---- */

#define ASM_XADD(prefix, bits, dc, dst, src, ax)                                                   \
    __asm__ volatile(prefix "xadd" SFX_##bits " %[s],%[d]" FLAGS_SAVE                              \
                     : [d] dc(dst), [s] "+&r"(src), "=&a"(ax)                                      \
                     :                                                                             \
                     : "cc", "memory")

#define XADD_MEM(name, bits, prefix, begin, end)                                                   \
    HANDLER(xadd_##name##_##bits)                                                                  \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_WRITE);                                                  \
        uint64_t spare;                                                                            \
        uint##bits##_t *host = begin(cpu, in, gva, bits / 8, &spare);                              \
        uint##bits##_t value = GPR(bits, in->src);                                                 \
        uint32_t ax;                                                                               \
                                                                                                   \
        ASM_XADD(prefix, bits, "+m", *host, value, ax);                                            \
        end(cpu, in, gva, bits / 8, host, &spare);                                                 \
        gpr_write_##bits(cpu, in->src, value);                                                     \
        flags_put(cpu, ax);                                                                        \
    }

#define XADD_HANDLERS(bits)                                                                        \
    HANDLER(xadd_r_##bits)                                                                         \
    {                                                                                              \
        uint##bits##_t result = GPR(bits, in->dst), value = GPR(bits, in->src);                    \
        uint32_t ax;                                                                               \
                                                                                                   \
        ASM_XADD("", bits, "+&r", result, value, ax);                                              \
        gpr_write_##bits(cpu, in->src, value);                                                     \
        gpr_write_##bits(cpu, in->dst, result);                                                    \
        flags_put(cpu, ax);                                                                        \
    }                                                                                              \
    XADD_MEM(m, bits, "", rmw_begin, rmw_end)                                                      \
    XADD_MEM(l, bits, "lock ", locked_begin, locked_end)
SIZES(XADD_HANDLERS)

/* Register, memory or locked memory; -1 for LOCK with a register. */
static int atomic_form(const struct insn *in, const struct insn_decode *d)
{
    bool lock = in->flags & INSN_LOCK;

    if (bind_is_mem(d, 0))
        return lock ? 2 : 1;
    return lock ? -1 : 0;
}

bool integer_bind_xadd(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const handlers[3][4] = {ROW(xadd_r), ROW(xadd_m), ROW(xadd_l)};
    int form = atomic_form(in, d);

    if (form < 0)
        return false;
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->src = insn_gpr_offset(d->operand[1].reg.value);
    in->fn = handlers[form][bind_size_index(bind_bytes(d, 0))];
    return true;
}

/* ---- CMPXCHG: on the whole of RAX, which only a failed comparison writes ---- */

#define ASM_CMPXCHG(prefix, bits, dc, dst, dst_name, src, rax, old)                                \
    __asm__ volatile(prefix "cmpxchg" SFX_##bits " %[s]," dst_name "\n\tmov %%rax,%[old]"          \
                            FLAGS_SAVE                                                             \
                     : [d] dc(dst), "+&a"(rax), [old] "=&r"(old)                                   \
                     : [s] "r"(src)                                                                \
                     : "cc", "memory")

#define CMPXCHG_MEM(name, bits, prefix, begin, end)                                                \
    HANDLER(cmpxchg_##name##_##bits)                                                               \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_WRITE);                                                  \
        uint64_t spare, old;                                                                       \
        uint##bits##_t *host = begin(cpu, in, gva, bits / 8, &spare);                              \
        uint64_t rax = cpu->s.gpr[GPR_RAX];                                                        \
                                                                                                   \
        ASM_CMPXCHG(prefix, bits, "+m", *host, "%[d]", GPR(bits, in->src), rax, old);              \
        end(cpu, in, gva, bits / 8, host, &spare);                                                 \
        cpu->s.gpr[GPR_RAX] = old;                                                                 \
        flags_put(cpu, (uint32_t)rax);                                                             \
    }

#define CMPXCHG_WRITE_8  GPR(8, in->dst) = (uint8_t)result
#define CMPXCHG_WRITE_16 GPR(16, in->dst) = (uint16_t)result
#define CMPXCHG_WRITE_32 GPR(64, in->dst) = result
#define CMPXCHG_WRITE_64 GPR(64, in->dst) = result
#define CMPXCHG_READ_8   GPR(8, in->dst)
#define CMPXCHG_READ_16  GPR(16, in->dst)
#define CMPXCHG_READ_32  GPR(64, in->dst)
#define CMPXCHG_READ_64  GPR(64, in->dst)
#define CMPXCHG_NAME_8   "%b[d]"
#define CMPXCHG_NAME_16  "%w[d]"
#define CMPXCHG_NAME_32  "%k[d]"
#define CMPXCHG_NAME_64  "%q[d]"

#define CMPXCHG_HANDLERS(bits)                                                                     \
    HANDLER(cmpxchg_r_##bits)                                                                      \
    {                                                                                              \
        uint64_t result = CMPXCHG_READ_##bits;                                                     \
        uint64_t rax = cpu->s.gpr[GPR_RAX], old;                                                   \
                                                                                                   \
        ASM_CMPXCHG("", bits, "+&r", result, CMPXCHG_NAME_##bits, GPR(bits, in->src), rax, old);   \
        cpu->s.gpr[GPR_RAX] = old;                                                                 \
        CMPXCHG_WRITE_##bits;                                                                      \
        flags_put(cpu, (uint32_t)rax);                                                             \
    }                                                                                              \
    CMPXCHG_MEM(m, bits, "", rmw_begin, rmw_end)                                                   \
    CMPXCHG_MEM(l, bits, "lock ", locked_begin, locked_end)
SIZES(CMPXCHG_HANDLERS)

bool integer_bind_cmpxchg(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const handlers[3][4] = {ROW(cmpxchg_r), ROW(cmpxchg_m), ROW(cmpxchg_l)};
    int form = atomic_form(in, d);

    if (form < 0)
        return false;
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->src = insn_gpr_offset(d->operand[1].reg.value);
    in->fn = handlers[form][bind_size_index(bind_bytes(d, 0))];
    return true;
}

/* ---- CMPXCHG8B, CMPXCHG16B: always locked here, which no guest can tell; of the flags only ZF changes ---- */

static void cmpxchg_finish(struct soft_vcpu *cpu, uint64_t rax, uint64_t rdx, bool equal)
{
    uint8_t *f = flags_bytes(cpu);

    cpu->s.gpr[GPR_RAX] = rax;
    cpu->s.gpr[GPR_RDX] = rdx;
    f[0] = (uint8_t)((f[0] & ~RFLAGS_ZF) | (equal ? RFLAGS_ZF : 0));
}

HANDLER(cmpxchg8b)
{
    gva_t gva = ADDR_g(8, SOFT_WRITE);
    uint64_t spare;
    uint64_t *host = locked_begin(cpu, in, gva, 8, &spare);
    uint64_t rax = cpu->s.gpr[GPR_RAX], rdx = cpu->s.gpr[GPR_RDX];
    bool equal;

    __asm__ volatile("lock cmpxchg8b %[d]"
                     : [d] "+m"(*host), "+a"(rax), "+d"(rdx), "=@ccz"(equal)
                     : "b"(cpu->s.gpr[GPR_RBX]), "c"(cpu->s.gpr[GPR_RCX])
                     : "memory");
    locked_end(cpu, in, gva, 8, host, &spare);
    cmpxchg_finish(cpu, rax, rdx, equal);
}

/* Memory-mapped I/O: nothing but this vCPU to be atomic against. */
static void cmpxchg16b_slow(struct soft_vcpu *cpu, const struct insn *in, gva_t gva)
{
    uint64_t low, high;
    bool equal;

    soft_probe_write(cpu, in->seg, gva, 16);
    soft_exclusive_begin(cpu);
    low = soft_load(cpu, in->seg, gva, 8);
    high = soft_load(cpu, in->seg, gva + 8, 8);
    equal = low == cpu->s.gpr[GPR_RAX] && high == cpu->s.gpr[GPR_RDX];
    soft_store(cpu, in->seg, gva, 8, equal ? cpu->s.gpr[GPR_RBX] : low);
    soft_store(cpu, in->seg, gva + 8, 8, equal ? cpu->s.gpr[GPR_RCX] : high);
    soft_exclusive_end(cpu);
    cmpxchg_finish(cpu, low, high, equal);
}

/* Alignment comes before anything else about the address. 64-bit mode only. */
static void cmpxchg16b_check_aligned(struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t base = in->flags & INSN_FS_GS ? cpu->s.seg[in->seg].base : 0;

    if ((insn_ea(cpu, in) + base) & 15)
        soft_raise_gp(cpu, 0);
}

HANDLER(cmpxchg16b)
{
    uint64_t rax = cpu->s.gpr[GPR_RAX], rdx = cpu->s.gpr[GPR_RDX];
    unsigned __int128 *host;
    bool equal;
    gva_t gva;

    cmpxchg16b_check_aligned(cpu, in);
    gva = ADDR_g(16, SOFT_WRITE);
    host = soft_pointer(cpu, in->seg, gva, 16, SOFT_WRITE);
    if (!host) {
        cmpxchg16b_slow(cpu, in, gva);
        return;
    }
    __asm__ volatile("lock cmpxchg16b %[d]"
                     : [d] "+m"(*host), "+a"(rax), "+d"(rdx), "=@ccz"(equal)
                     : "b"(cpu->s.gpr[GPR_RBX]), "c"(cpu->s.gpr[GPR_RCX])
                     : "memory");
    cmpxchg_finish(cpu, rax, rdx, equal);
}

bool integer_bind_cmpxchg_wide(struct insn *in, const struct insn_decode *d)
{
    in->fn = d->z->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B ? cmpxchg16b : cmpxchg8b;
    return bind_is_mem(d, 0);
}
