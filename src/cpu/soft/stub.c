#include "cpu/soft/stub.h"

#include <stddef.h>

#define STUB_RM_MEMORY 0x06u /* ModRM: mod 00, rm RSI */
#define STUB_REG_GPR   0u    /* the general register in ModRM.reg becomes RAX, in ModRM.rm RCX */
#define STUB_RM_GPR    1u

#define REX   0x40u
#define REX_W 0x08u
#define REX_R 0x04u
#define REX_B 0x01u

/* How one instruction is to be changed. */
struct stub_plan {
    bool memory;            /* ModRM.rm is memory: becomes [rsi] */
    bool reg_gpr, rm_gpr;   /* ModRM.reg / .rm names a general register */
    uint8_t guest[3];       /* guest register behind RAX, RCX, RDX */
    uint8_t used, written;  /* bit masks of RAX, RCX, RDX */
};

void stub_byte(struct stub *stub, uint8_t byte)
{
    if (stub->len >= sizeof(stub->bytes)) {
        stub->overflow = true;
        return;
    }
    stub->bytes[stub->len++] = byte;
}

void stub_bytes(struct stub *stub, const uint8_t *bytes, unsigned len)
{
    for (unsigned i = 0; i < len; i++)
        stub_byte(stub, bytes[i]);
}

void stub_pad(struct stub *stub, unsigned offset)
{
    while (stub->len < offset && !stub->overflow)
        stub_byte(stub, 0xcc);
}

static void stub_u32(struct stub *stub, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        stub_byte(stub, (uint8_t)(value >> (8 * i)));
}

/* ModRM and displacement of [rsi + disp]. */
static void stub_slot(struct stub *stub, unsigned reg, uint32_t disp)
{
    stub_byte(stub, (uint8_t)(0x80u | (reg & 7u) << 3 | 6u));
    stub_u32(stub, disp);
}

void stub_move(struct stub *stub, bool load, unsigned size, unsigned reg, unsigned slot)
{
    uint8_t low = reg & 8u ? 0 : 0x80u; /* inverted R */

    if (size == 8) { /* MOVQ mm */
        stub_byte(stub, 0x0f);
    } else if (size == 16) {
        stub_byte(stub, 0xf3);
        if (reg & 8u)
            stub_byte(stub, REX | REX_R);
        stub_byte(stub, 0x0f);
    } else if (size == 32) {
        stub_byte(stub, 0xc5);
        stub_byte(stub, 0x7eu | low);
    } else {
        stub_byte(stub, 0x62);
        stub_byte(stub, (uint8_t)(low | 0x60u | (reg & 16u ? 0 : 0x10u) | 0x01u));
        stub_byte(stub, 0xfe);
        stub_byte(stub, 0x48);
    }
    stub_byte(stub, load ? 0x6f : 0x7f);
    stub_slot(stub, reg, slot * 64);
}

void stub_move_mask(struct stub *stub, bool load, unsigned reg, unsigned slot)
{
    static const uint8_t prefix[] = {0xc4, 0xe1, 0xf8};

    stub_bytes(stub, prefix, sizeof(prefix));
    stub_byte(stub, load ? 0x90 : 0x91);
    stub_slot(stub, reg, slot * 64);
}

const ZydisDecodedOperand *stub_memory_operand(const struct insn_decode *d)
{
    for (unsigned i = 0; i < d->z->operand_count; i++) {
        const ZydisDecodedOperand *op = &d->operand[i];

        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->mem.type == ZYDIS_MEMOP_TYPE_MEM)
            return op;
    }
    return NULL;
}

static bool stub_plan_register(struct stub_plan *plan, const ZydisDecodedOperand *op)
{
    int gpr = insn_gpr(op->reg.value);
    unsigned host;

    if (gpr < 0)
        return true;
    switch (op->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
        plan->reg_gpr = true;
        host = STUB_REG_GPR;
        break;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
        plan->rm_gpr = true;
        host = STUB_RM_GPR;
        break;
    case ZYDIS_OPERAND_ENCODING_NONE:
        host = (unsigned)gpr;
        break;
    default:
        return false;
    }
    if (host > GPR_RDX || (plan->used & 1u << host && plan->guest[host] != gpr))
        return false;
    plan->guest[host] = (uint8_t)gpr;
    plan->used |= (uint8_t)(1u << host);
    if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
        plan->written |= (uint8_t)(1u << host);
    return true;
}

static bool stub_plan_make(struct stub_plan *plan, const struct insn_decode *d)
{
    *plan = (struct stub_plan){0};
    for (unsigned i = 0; i < d->z->operand_count; i++) {
        const ZydisDecodedOperand *op = &d->operand[i];

        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && !stub_plan_register(plan, op))
            return false;
        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            /* Anything but one plain memory operand in ModRM is somebody else's. */
            if (plan->memory || op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM ||
                op->mem.type != ZYDIS_MEMOP_TYPE_MEM)
                return false;
            plan->memory = true;
        }
    }
    return true;
}

/* mov r64, [rdi + 8 * guest], or back. */
static void stub_gpr(struct stub *stub, bool load, unsigned host, unsigned guest)
{
    stub_byte(stub, REX | REX_W);
    stub_byte(stub, load ? 0x8b : 0x89);
    stub_byte(stub, (uint8_t)(0x47u | host << 3));
    stub_byte(stub, (uint8_t)(guest * 8u));
}

static void stub_gprs(struct stub *stub, const struct stub_plan *plan, bool load)
{
    unsigned mask = load ? plan->used : plan->written;

    for (unsigned host = 0; host < 3; host++) {
        if (mask & 1u << host)
            stub_gpr(stub, load, host, plan->guest[host]);
    }
}

/* Offsets into struct soft_vcpu, whose first member is the state. */
#define STUB_RFLAGS ((uint32_t)offsetof(struct cpu_state, rflags))

static void stub_flags_in(struct stub *stub)
{
    stub_byte(stub, 0x8b); /* mov eax, [rdi + rflags] */
    stub_byte(stub, 0x87);
    stub_u32(stub, STUB_RFLAGS);
    stub_byte(stub, 0x88); /* mov ah, al */
    stub_byte(stub, 0xc4);
    stub_byte(stub, 0x9e); /* sahf */
}

static void stub_flags_out(struct stub *stub)
{
    static const uint8_t gather[] = {
        0x0f, 0x90, 0xc2,             /* seto dl */
        0x9f,                         /* lahf */
        0x0f, 0xb6, 0xc4,             /* movzx eax, ah */
        0x0f, 0xb6, 0xd2,             /* movzx edx, dl */
        0xc1, 0xe2, 0x0b,             /* shl edx, 11 */
        0x09, 0xd0,                   /* or eax, edx */
        0x25, 0xd5, 0x08, 0x00, 0x00, /* and eax, RFLAGS_ARITH */
        0x8b, 0x97,                   /* mov edx, [rdi + rflags] */
    };
    static const uint8_t merge[] = {
        0x81, 0xe2, 0x2a, 0xf7, 0xff, 0xff, /* and edx, ~RFLAGS_ARITH */
        0x09, 0xc2,                         /* or edx, eax */
        0x89, 0x97,                         /* mov [rdi + rflags], edx */
    };

    static_assert(RFLAGS_ARITH == 0x8d5, "the masks above");
    stub_bytes(stub, gather, sizeof(gather));
    stub_u32(stub, STUB_RFLAGS);
    stub_bytes(stub, merge, sizeof(merge));
    stub_u32(stub, STUB_RFLAGS);
}

static unsigned stub_opcode_length(const ZydisDecodedInstruction *z)
{
    switch (z->opcode_map) {
    case ZYDIS_OPCODE_MAP_DEFAULT:
        return 1;
    case ZYDIS_OPCODE_MAP_0F:
        return 2;
    case ZYDIS_OPCODE_MAP_0F38:
    case ZYDIS_OPCODE_MAP_0F3A:
        return 3;
    default:
        return 0;
    }
}

/* First byte after ModRM, SIB and displacement: the immediate. */
static unsigned stub_tail(const ZydisDecodedInstruction *z, bool has_modrm, unsigned after_opcode)
{
    unsigned at = after_opcode;

    if (!has_modrm)
        return at;
    at = z->raw.modrm.offset + 1u;
    if (z->raw.modrm.mod != 3 && z->raw.modrm.rm == 4 && z->address_width != 16)
        at++;
    return at + z->raw.disp.size / 8u;
}

/* The prefixes that choose the instruction stay; those of the address go. */
static void stub_legacy_prefixes(struct stub *stub, const struct insn_decode *d, unsigned opcode,
                                 const struct stub_plan *plan)
{
    uint8_t rex = 0;

    if (d->z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT) {
        for (unsigned i = 0; i < opcode; i++) {
            if (d->bytes[i] == 0x66 || d->bytes[i] == 0xf2 || d->bytes[i] == 0xf3)
                stub_byte(stub, d->bytes[i]);
        }
    }
    if (d->mode & SOFT_MODE_CODE64 && opcode > 0 && (d->bytes[opcode - 1] & 0xf0u) == REX)
        rex = d->bytes[opcode - 1];
    if (plan->reg_gpr)
        rex &= (uint8_t)~REX_R;
    if (plan->rm_gpr || plan->memory)
        rex &= (uint8_t)~REX_B;
    rex &= REX_W | REX_R | REX_B;
    if (rex)
        stub_byte(stub, (uint8_t)(REX | rex));
}

static void stub_vex(struct stub *stub, const struct insn_decode *d, const struct stub_plan *plan)
{
    const uint8_t *vex = d->bytes + d->z->raw.vex.offset;
    bool wide = d->mode & SOFT_MODE_CODE64;

    if (vex[0] == 0xc5) {
        stub_byte(stub, 0xc5);
        /* Outside 64-bit mode R and the top bit of vvvv are 1 or ignored. */
        stub_byte(stub, (uint8_t)(vex[1] | (plan->reg_gpr ? 0x80u : 0) | (wide ? 0 : 0xc0u)));
        return;
    }
    stub_byte(stub, 0xc4);
    stub_byte(stub, (uint8_t)(vex[1] | (plan->reg_gpr ? 0x80u : 0) | 0x40u |
                              (plan->rm_gpr || plan->memory ? 0x20u : 0) | (wide ? 0 : 0xe0u)));
    if (wide)
        stub_byte(stub, vex[2]);
    else /* W is ignored where it would widen a general register */
        stub_byte(stub, (uint8_t)((vex[2] | 0x40u) & (plan->used ? 0x7fu : 0xffu)));
}

static void stub_evex(struct stub *stub, const struct insn_decode *d, const struct stub_plan *plan)
{
    const uint8_t *evex = d->bytes + d->z->raw.evex.offset;
    bool wide = d->mode & SOFT_MODE_CODE64;
    uint8_t p0 = evex[1], p1 = evex[2], p2 = evex[3];

    if (plan->reg_gpr)
        p0 |= 0x90u; /* R, R' */
    if (plan->rm_gpr || plan->memory)
        p0 |= 0x60u; /* X, B */
    if (!wide) {
        p0 |= 0xf0u;
        p1 |= 0x40u;
        p2 |= 0x08u;
        if (plan->used)
            p1 &= 0x7fu;
    }
    stub_byte(stub, 0x62);
    stub_byte(stub, p0);
    stub_byte(stub, p1);
    stub_byte(stub, p2);
}

static void stub_modrm(struct stub *stub, uint8_t modrm, const struct stub_plan *plan)
{
    if (plan->reg_gpr)
        modrm = (uint8_t)((modrm & 0xc7u) | STUB_REG_GPR << 3);
    if (plan->memory)
        modrm = (uint8_t)((modrm & 0x38u) | STUB_RM_MEMORY);
    else if (plan->rm_gpr)
        modrm = (uint8_t)((modrm & 0xf8u) | STUB_RM_GPR);
    stub_byte(stub, modrm);
}

static bool stub_reencode(struct stub *stub, const struct insn_decode *d,
                          const struct stub_plan *plan)
{
    const ZydisDecodedInstruction *z = d->z;
    bool has_modrm = z->attributes & ZYDIS_ATTRIB_HAS_MODRM;
    unsigned oplen = z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY ? stub_opcode_length(z) : 1;
    unsigned opcode = has_modrm ? z->raw.modrm.offset - oplen
                                : z->length - z->raw.imm[0].size / 8u - oplen;
    unsigned tail = stub_tail(z, has_modrm, opcode + oplen);

    if (oplen == 0 || opcode > z->length || tail > z->length || (plan->memory && !has_modrm))
        return false;
    if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY)
        stub_legacy_prefixes(stub, d, opcode, plan);
    else if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
        stub_vex(stub, d, plan);
    else if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
        stub_evex(stub, d, plan);
    else
        return false;
    stub_bytes(stub, d->bytes + opcode, oplen);
    if (has_modrm)
        stub_modrm(stub, d->bytes[z->raw.modrm.offset], plan);
    for (unsigned i = tail; i < z->length; i++) {
        uint8_t byte = d->bytes[i];

        /* A register in the immediate: its top bit is ignored outside 64-bit mode. */
        if (!(d->mode & SOFT_MODE_CODE64) && d->operand[z->operand_count_visible - 1].encoding ==
                                                 ZYDIS_OPERAND_ENCODING_IS4)
            byte &= 0x7f;
        stub_byte(stub, byte);
    }
    return true;
}

bool stub_instruction(struct stub *stub, const struct insn_decode *d)
{
    const ZydisAccessedFlags *flags = d->z->cpu_flags;
    struct stub_plan plan;

    if (!stub_plan_make(&plan, d))
        return false;
    if (flags && flags->tested & RFLAGS_ARITH) {
        if (plan.used)
            return false;
        stub_flags_in(stub);
    }
    stub_gprs(stub, &plan, true);
    if (!stub_reencode(stub, d, &plan))
        return false;
    stub_gprs(stub, &plan, false);
    if (flags && (flags->modified | flags->set_0 | flags->set_1 | flags->undefined) & RFLAGS_ARITH)
        stub_flags_out(stub);
    stub_byte(stub, 0xc3);
    return !stub->overflow;
}
