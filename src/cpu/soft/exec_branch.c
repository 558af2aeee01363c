/*
 * Near control transfer: JMP, CALL, RET, Jcc, LOOPcc, JCXZ.
 *
 * In 64-bit mode these are 64-bit whatever the prefixes (SDM vol. 1 6.3.7). AMD takes an operand size prefix
 * as 16 bits there; compilers emit it nowhere, and the decoder reads lengths as Intel does.
 */
#include "cpu/soft/exec_integer.h"

/* ---- targets ---- */

static always_inline bool branch_is_canonical(uint64_t rip)
{
    return (uint64_t)((int64_t)(rip << 16) >> 16) == rip;
}

static always_inline uint64_t branch_check_64(struct soft_vcpu *cpu, uint64_t rip)
{
    if (unlikely(!branch_is_canonical(rip)))
        soft_raise_gp(cpu, 0);
    return rip;
}

/* Outside 64-bit mode: truncated to the operand size, within CS's limit. */
static uint64_t branch_check_legacy(struct soft_vcpu *cpu, const struct insn *in, uint64_t rip)
{
    rip = in->opsize == 2 ? (uint16_t)rip : (uint32_t)rip;
    if (unlikely(rip > cpu->s.seg[SEG_CS].limit))
        soft_raise_gp(cpu, 0);
    return rip;
}

static uint64_t branch_check(struct soft_vcpu *cpu, const struct insn *in, uint64_t rip)
{
    if (cpu->mode & SOFT_MODE_CODE64)
        return branch_check_64(cpu, rip);
    return branch_check_legacy(cpu, in, rip);
}

/* Two variants of each: l in 64-bit code, s elsewhere. */
#define CHECK_l(rip) branch_check_64(cpu, rip)
#define CHECK_s(rip) branch_check_legacy(cpu, in, rip)
#define SIZE_l       8u
#define SIZE_s       in->opsize
#define PUSH_l(value) branch_push_64(cpu, value)
#define PUSH_s(value) stack_push(cpu, in->opsize, value)

static always_inline void branch_push_64(struct soft_vcpu *cpu, uint64_t value)
{
    gva_t sp = cpu->s.gpr[GPR_RSP] - 8;

    soft_store(cpu, SEG_SS, sp, 8, value);
    cpu->s.gpr[GPR_RSP] = sp;
}

/* ---- JMP, CALL ---- */

#define TRANSFER_HANDLERS(v)                                                                       \
    HANDLER(jmp_rel_##v)                                                                           \
    {                                                                                              \
        cpu->next_rip = CHECK_##v(cpu->next_rip + in->imm);                                        \
    }                                                                                              \
    HANDLER(jmp_reg_##v)                                                                           \
    {                                                                                              \
        cpu->next_rip = CHECK_##v(GPR(64, in->src));                                               \
    }                                                                                              \
    HANDLER(jmp_mem_##v)                                                                           \
    {                                                                                              \
        gva_t gva = soft_operand(cpu, in, SIZE_##v, SOFT_READ);                                    \
                                                                                                   \
        cpu->next_rip = CHECK_##v(soft_load(cpu, in->seg, gva, SIZE_##v));                         \
    }                                                                                              \
    HANDLER(call_rel_##v)                                                                          \
    {                                                                                              \
        uint64_t target = CHECK_##v(cpu->next_rip + in->imm);                                      \
                                                                                                   \
        PUSH_##v(cpu->next_rip);                                                                   \
        cpu->next_rip = target;                                                                    \
    }                                                                                              \
    HANDLER(call_reg_##v)                                                                          \
    {                                                                                              \
        uint64_t target = CHECK_##v(GPR(64, in->src));                                             \
                                                                                                   \
        PUSH_##v(cpu->next_rip);                                                                   \
        cpu->next_rip = target;                                                                    \
    }                                                                                              \
    HANDLER(call_mem_##v)                                                                          \
    {                                                                                              \
        gva_t gva = soft_operand(cpu, in, SIZE_##v, SOFT_READ);                                    \
        uint64_t target = CHECK_##v(soft_load(cpu, in->seg, gva, SIZE_##v));                       \
                                                                                                   \
        PUSH_##v(cpu->next_rip);                                                                   \
        cpu->next_rip = target;                                                                    \
    }
TRANSFER_HANDLERS(l)
TRANSFER_HANDLERS(s)

enum { BRANCH_REL, BRANCH_REG, BRANCH_MEM, BRANCH_FORMS };

/* -1: far, or not ours. */
static int branch_form(const struct insn_decode *d)
{
    if (d->z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return -1;
    if (bind_is_imm(d, 0))
        return BRANCH_REL;
    if (bind_is_gpr(d, 0))
        return BRANCH_REG;
    return bind_is_mem(d, 0) ? BRANCH_MEM : -1;
}

static bool branch_bind_transfer(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const handlers[2][2][BRANCH_FORMS] = {
        {{jmp_rel_s, jmp_reg_s, jmp_mem_s}, {jmp_rel_l, jmp_reg_l, jmp_mem_l}},
        {{call_rel_s, call_reg_s, call_mem_s}, {call_rel_l, call_reg_l, call_mem_l}},
    };
    bool wide = d->mode & SOFT_MODE_CODE64;
    int form = branch_form(d);

    if (form < 0)
        return false;
    in->src = insn_gpr_offset(d->operand[0].reg.value);
    in->flags |= INSN_ENDS_BLOCK;
    in->fn = handlers[d->z->mnemonic == ZYDIS_MNEMONIC_CALL][wide][form];
    return true;
}

/* ---- RET, with imm16 bytes to drop ---- */

HANDLER(ret_l)
{
    uint64_t sp = cpu->s.gpr[GPR_RSP];
    uint64_t target = CHECK_l(soft_load(cpu, SEG_SS, sp, 8));

    cpu->s.gpr[GPR_RSP] = sp + 8 + in->imm;
    cpu->next_rip = target;
}

HANDLER(ret_s)
{
    uint64_t sp = cpu->s.gpr[GPR_RSP];
    uint64_t target = CHECK_s(stack_load(cpu, sp, in->opsize));

    stack_set(cpu, sp + in->opsize + in->imm);
    cpu->next_rip = target;
}

static bool branch_bind_ret(struct insn *in, const struct insn_decode *d)
{
    if (d->z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR || (d->z->opcode & 0xfe) != 0xc2)
        return false;
    in->imm = d->z->opcode == 0xc2 ? d->operand[0].imm.value.u & 0xffff : 0;
    in->flags |= INSN_ENDS_BLOCK;
    in->fn = d->mode & SOFT_MODE_CODE64 ? ret_l : ret_s;
    return true;
}

/* ---- Jcc ---- */

#define JCC_HANDLERS(name, cc)                                                                     \
    HANDLER(j##cc##_l)                                                                             \
    {                                                                                              \
        if (CONDITION_##cc)                                                                        \
            cpu->next_rip = CHECK_l(cpu->next_rip + in->imm);                                      \
    }                                                                                              \
    HANDLER(j##cc##_s)                                                                             \
    {                                                                                              \
        if (CONDITION_##cc)                                                                        \
            cpu->next_rip = CHECK_s(cpu->next_rip + in->imm);                                      \
    }
CONDITIONS(JCC_HANDLERS)

#define JCC_ROW(name, cc) {ZYDIS_MNEMONIC_J##name, {j##cc##_s, j##cc##_l}},

static bool branch_bind_jcc(struct insn *in, const struct insn_decode *d)
{
    static const struct {
        ZydisMnemonic mnemonic;
        insn_fn *fn[2];
    } rows[] = {CONDITIONS(JCC_ROW)};

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        if (rows[i].mnemonic != d->z->mnemonic)
            continue;
        in->flags |= INSN_ENDS_BLOCK;
        in->fn = rows[i].fn[(d->mode & SOFT_MODE_CODE64) != 0];
        return true;
    }
    return false;
}

/* ---- LOOP, LOOPE, LOOPNE, JCXZ: the counter has the address size ---- */

static uint64_t branch_count(const struct soft_vcpu *cpu, const struct insn *in)
{
    return cpu->s.gpr[GPR_RCX] & size_mask(in->addrsize);
}

static void branch_loop(struct soft_vcpu *cpu, const struct insn *in, bool wanted)
{
    uint64_t count = (branch_count(cpu, in) - 1) & size_mask(in->addrsize);

    if (count != 0 && wanted)
        cpu->next_rip = branch_check(cpu, in, cpu->next_rip + in->imm);
    gpr_write_sized(cpu, GPR_RCX, in->addrsize, count);
}

HANDLER(loop)
{
    branch_loop(cpu, in, true);
}
HANDLER(loope)
{
    branch_loop(cpu, in, CONDITION_z);
}
HANDLER(loopne)
{
    branch_loop(cpu, in, !CONDITION_z);
}
HANDLER(jcxz)
{
    if (branch_count(cpu, in) == 0)
        cpu->next_rip = branch_check(cpu, in, cpu->next_rip + in->imm);
}

/* The repeat prefix that counts (the last), or 0. */
static uint8_t branch_repeat(const struct insn_decode *d)
{
    uint8_t repeat = 0;

    for (unsigned i = 0; i < d->z->raw.prefix_count; i++) {
        if (d->z->raw.prefixes[i].value == 0xf2 || d->z->raw.prefixes[i].value == 0xf3)
            repeat = d->z->raw.prefixes[i].value;
    }
    return repeat;
}

static bool branch_bind_loop(struct insn *in, const struct insn_decode *d)
{
    in->flags |= INSN_ENDS_BLOCK;
    switch (d->z->mnemonic) {
    case ZYDIS_MNEMONIC_LOOP:
        in->fn = loop;
        return true;
    /* A contrary repeat prefix overrides the condition of the opcode (found on the hardware). */
    case ZYDIS_MNEMONIC_LOOPE:
        in->fn = branch_repeat(d) == 0xf2 ? loopne : loope;
        return true;
    case ZYDIS_MNEMONIC_LOOPNE:
        in->fn = branch_repeat(d) == 0xf3 ? loope : loopne;
        return true;
    default:
        in->fn = jcxz;
        return true;
    }
}

#define BIND_JCC(name, cc) {ZYDIS_MNEMONIC_J##name, branch_bind_jcc},

static const struct insn_binding branch_bindings[] = {
    CONDITIONS(BIND_JCC)
    {ZYDIS_MNEMONIC_JMP, branch_bind_transfer},
    {ZYDIS_MNEMONIC_CALL, branch_bind_transfer},
    {ZYDIS_MNEMONIC_RET, branch_bind_ret},
    {ZYDIS_MNEMONIC_LOOP, branch_bind_loop},
    {ZYDIS_MNEMONIC_LOOPE, branch_bind_loop},
    {ZYDIS_MNEMONIC_LOOPNE, branch_bind_loop},
    {ZYDIS_MNEMONIC_JCXZ, branch_bind_loop},
    {ZYDIS_MNEMONIC_JECXZ, branch_bind_loop},
    {ZYDIS_MNEMONIC_JRCXZ, branch_bind_loop},
    {ZYDIS_MNEMONIC_INVALID, NULL},
};

const struct insn_family insn_family_branch = {
    .name = "branch",
    .bindings = branch_bindings,
};
