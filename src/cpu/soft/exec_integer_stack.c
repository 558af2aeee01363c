/* PUSH, POP, PUSHA, POPA, ENTER, LEAVE. POP of a segment register, PUSHF and POPF are not here. */
#include "cpu/soft/exec_integer.h"

/* ---- PUSH ---- */

static always_inline void push_64(struct soft_vcpu *cpu, uint64_t value)
{
    gva_t sp = cpu->s.gpr[GPR_RSP] - 8;

    soft_store(cpu, SEG_SS, sp, 8, value);
    cpu->s.gpr[GPR_RSP] = sp;
}

HANDLER(push_r_code64)
{
    push_64(cpu, GPR(64, in->src));
}
HANDLER(push_i_code64)
{
    push_64(cpu, in->imm);
}
HANDLER(push_m_code64)
{
    gva_t gva = ADDR_g(8, SOFT_READ);

    push_64(cpu, LOAD(64, gva));
}
HANDLER(push_r)
{
    stack_push(cpu, in->opsize, GPR(64, in->src));
}
HANDLER(push_i)
{
    stack_push(cpu, in->opsize, in->imm);
}
HANDLER(push_m)
{
    gva_t gva = soft_operand(cpu, in, in->opsize, SOFT_READ);

    stack_push(cpu, in->opsize, soft_load(cpu, in->seg, gva, in->opsize));
}
HANDLER(push_segment)
{
    stack_push(cpu, in->opsize, cpu->s.seg[in->src].selector);
}

bool integer_bind_push(struct insn *in, const struct insn_decode *d)
{
    bool quick = (d->mode & SOFT_MODE_CODE64) && in->opsize == 8;
    ZydisRegister reg = d->operand[0].reg.value;

    if (bind_is_imm(d, 0)) {
        in->fn = quick ? push_i_code64 : push_i;
    } else if (bind_is_mem(d, 0)) {
        in->fn = quick ? push_m_code64 : push_m;
    } else if (bind_is_gpr(d, 0)) {
        in->src = insn_gpr_offset(reg);
        in->fn = quick ? push_r_code64 : push_r;
    } else if (reg >= ZYDIS_REGISTER_ES && reg <= ZYDIS_REGISTER_GS) {
        in->src = (uint8_t)(reg - ZYDIS_REGISTER_ES); /* in the order of enum cpu_segment_name */
        in->fn = push_segment;
    }
    return in->fn != NULL;
}

/* ---- POP: RSP first, so that POP RSP ends with the value read ---- */

HANDLER(pop_r_code64)
{
    gva_t sp = cpu->s.gpr[GPR_RSP];
    uint64_t value = soft_load(cpu, SEG_SS, sp, 8);

    cpu->s.gpr[GPR_RSP] = sp + 8;
    GPR(64, in->dst) = value;
}
HANDLER(pop_r)
{
    uint64_t sp = cpu->s.gpr[GPR_RSP];
    uint64_t value = stack_load(cpu, sp, in->opsize);

    stack_set(cpu, sp + in->opsize);
    gpr_write_sized(cpu, in->dst / 8u, in->opsize, value);
}
/* An address with RSP uses its value after the increment; the bind has added that to disp. */
HANDLER(pop_m)
{
    uint64_t sp = cpu->s.gpr[GPR_RSP];
    uint64_t value = stack_load(cpu, sp, in->opsize);
    gva_t gva = soft_operand(cpu, in, in->opsize, SOFT_WRITE);

    soft_store(cpu, in->seg, gva, in->opsize, value);
    stack_set(cpu, sp + in->opsize);
}

bool integer_bind_pop(struct insn *in, const struct insn_decode *d)
{
    if (bind_is_mem(d, 0)) {
        if (in->base == GPR_RSP)
            in->disp += in->opsize;
        in->fn = pop_m;
        return true;
    }
    if (!bind_is_gpr(d, 0))
        return false;
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->fn = (d->mode & SOFT_MODE_CODE64) && in->opsize == 8 ? pop_r_code64 : pop_r;
    return true;
}

/* ---- PUSHA, POPA ---- */

HANDLER(pusha)
{
    uint64_t sp = cpu->s.gpr[GPR_RSP];

    for (unsigned i = 0; i < 8; i++)
        stack_store(cpu, sp - (uint64_t)(i + 1) * in->opsize, in->opsize, cpu->s.gpr[i]);
    stack_set(cpu, sp - 8ull * in->opsize);
}

HANDLER(popa)
{
    uint64_t sp = cpu->s.gpr[GPR_RSP];
    uint64_t value[8];

    for (unsigned i = 0; i < 8; i++)
        value[i] = stack_load(cpu, sp + (uint64_t)i * in->opsize, in->opsize);
    for (unsigned i = 0; i < 8; i++) {
        if (7 - i != GPR_RSP)
            gpr_write_sized(cpu, 7 - i, in->opsize, value[i]);
    }
    stack_set(cpu, sp + 8ull * in->opsize);
}

bool integer_bind_pusha(struct insn *in, const struct insn_decode *d)
{
    in->opsize = d->z->mnemonic == ZYDIS_MNEMONIC_PUSHAD ? 4 : 2;
    in->fn = pusha;
    return true;
}

bool integer_bind_popa(struct insn *in, const struct insn_decode *d)
{
    in->opsize = d->z->mnemonic == ZYDIS_MNEMONIC_POPAD ? 4 : 2;
    in->fn = popa;
    return true;
}

/* ---- ENTER (imm: bytes in bits 15:0, level in 20:16), LEAVE ---- */

HANDLER(enter)
{
    unsigned size = in->opsize, level = (unsigned)(in->imm >> 16);
    uint64_t sp = cpu->s.gpr[GPR_RSP] - size, bp = cpu->s.gpr[GPR_RBP];
    uint64_t frame = sp;

    stack_store(cpu, sp, size, bp);
    for (unsigned i = 1; i < level; i++) {
        bp -= size;
        sp -= size;
        stack_store(cpu, sp, size, stack_load(cpu, bp, size));
    }
    if (level > 0) {
        sp -= size;
        stack_store(cpu, sp, size, frame & stack_mask(cpu));
    }
    sp -= in->imm & 0xffff;
    /* The new top must be writable (SDM vol. 2A, ENTER). */
    soft_probe_write(cpu, SEG_SS, stack_linear(cpu, sp & stack_mask(cpu), size, SOFT_WRITE), size);
    gpr_write_sized(cpu, GPR_RBP, size, frame & stack_mask(cpu));
    stack_set(cpu, sp);
}

bool integer_bind_enter(struct insn *in, const struct insn_decode *d)
{
    in->imm = (d->operand[0].imm.value.u & 0xffff) | ((d->operand[1].imm.value.u & 31) << 16);
    in->fn = enter;
    return true;
}

HANDLER(leave_code64)
{
    gva_t bp = cpu->s.gpr[GPR_RBP];
    uint64_t value = soft_load(cpu, SEG_SS, bp, 8);

    (void)in;
    cpu->s.gpr[GPR_RBP] = value;
    cpu->s.gpr[GPR_RSP] = bp + 8;
}

HANDLER(leave)
{
    uint64_t bp = cpu->s.gpr[GPR_RBP];
    uint64_t value = stack_load(cpu, bp, in->opsize);

    stack_set(cpu, bp + in->opsize);
    gpr_write_sized(cpu, GPR_RBP, in->opsize, value);
}

bool integer_bind_leave(struct insn *in, const struct insn_decode *d)
{
    in->fn = (d->mode & SOFT_MODE_CODE64) && in->opsize == 8 ? leave_code64 : leave;
    return true;
}
