#include "cpu/soft/jit/reencode.h"

#define REX   0x40u
#define REX_W 0x08u
#define REX_R 0x04u
#define REX_X 0x02u
#define REX_B 0x01u

/* The registers of an instruction after replacement, 0 to 31. */
struct fields {
    unsigned reg, rm, vvvv;
    unsigned opcode; /* register in the opcode, or 0 */
    bool has_modrm, opcode_register;
};

static unsigned replaced(uint8_t with, unsigned was)
{
    return with == REENCODE_KEEP ? was : with;
}

static bool high_byte_register(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operand)
{
    for (unsigned i = 0; i < z->operand_count_visible; i++) {
        ZydisRegister reg = operand[i].reg.value;

        if (operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER && reg >= ZYDIS_REGISTER_AH &&
            reg <= ZYDIS_REGISTER_BH)
            return true;
    }
    return false;
}

static bool opcode_register(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operand)
{
    for (unsigned i = 0; i < z->operand_count_visible; i++) {
        if (operand[i].encoding == ZYDIS_OPERAND_ENCODING_OPCODE)
            return true;
    }
    return false;
}

static unsigned rex_of(const struct reencode *r, const struct fields *f)
{
    unsigned rex = f->reg & 8u ? REX_R : 0;

    if (f->opcode_register)
        return f->opcode & 8u ? REX_B : 0;
    if (!f->has_modrm)
        return 0;
    if (!r->memory)
        return rex | (f->rm & 8u ? REX_B : 0);
    if (r->mem.base != ASM_NONE && r->mem.base & 8u)
        rex |= REX_B;
    if (r->mem.index != ASM_NONE && r->mem.index & 8u)
        rex |= REX_X;
    return rex;
}

static void opcode_bytes(struct asm_code *a, const ZydisDecodedInstruction *z, unsigned opcode)
{
    if (z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
        asm_byte(a, 0x0f);
    if (z->opcode_map == ZYDIS_OPCODE_MAP_0F38)
        asm_byte(a, 0x38);
    else if (z->opcode_map == ZYDIS_OPCODE_MAP_0F3A)
        asm_byte(a, 0x3a);
    asm_byte(a, opcode);
}

static bool emit_legacy(struct asm_code *a, const ZydisDecodedInstruction *z,
                        const ZydisDecodedOperand *operand, const struct reencode *r,
                        const struct fields *f)
{
    unsigned rex = rex_of(r, f);
    bool had = z->attributes & ZYDIS_ATTRIB_HAS_REX;
    unsigned opcode = z->opcode;

    if (z->opcode_map > ZYDIS_OPCODE_MAP_0F3A)
        return false;
    if (rex && !had && high_byte_register(z, operand))
        return false;
    if (had)
        rex |= REX | (z->raw.rex.W ? REX_W : 0);
    for (unsigned i = 0; i < z->raw.prefix_count; i++) {
        uint8_t prefix = z->raw.prefixes[i].value;

        if (prefix == 0x66 || prefix == 0xf2 || prefix == 0xf3 || prefix == 0xf0)
            asm_byte(a, prefix);
    }
    if (rex)
        asm_byte(a, REX | rex);
    if (f->opcode_register)
        opcode = (opcode & ~7u) | (f->opcode & 7u);
    opcode_bytes(a, z, opcode);
    return true;
}

static void emit_vex(struct asm_code *a, const ZydisDecodedInstruction *z, const struct reencode *r,
                     const struct fields *f)
{
    unsigned rex = rex_of(r, f), vvvv = ~f->vvvv & 15u;
    unsigned last = vvvv << 3 | (unsigned)z->raw.vex.L << 2 | z->raw.vex.pp;

    if (!(rex & (REX_X | REX_B)) && !z->raw.vex.W && z->raw.vex.m_mmmm == 1) {
        asm_byte(a, 0xc5);
        asm_byte(a, (rex & REX_R ? 0 : 0x80u) | last);
    } else {
        asm_byte(a, 0xc4);
        asm_byte(a, (rex & REX_R ? 0 : 0x80u) | (rex & REX_X ? 0 : 0x40u) |
                        (rex & REX_B ? 0 : 0x20u) | z->raw.vex.m_mmmm);
        asm_byte(a, (unsigned)z->raw.vex.W << 7 | last);
    }
    asm_byte(a, z->opcode);
}

static void emit_evex(struct asm_code *a, const ZydisDecodedInstruction *z, const uint8_t *bytes,
                      const struct reencode *r, const struct fields *f)
{
    const uint8_t *evex = bytes + z->raw.evex.offset;
    unsigned rex = rex_of(r, f), p0 = evex[1];

    p0 &= 0x1fu; /* R' and the map stay */
    p0 |= rex & REX_R ? 0 : 0x80u;
    if (r->memory)
        p0 |= (rex & REX_X ? 0 : 0x40u) | (rex & REX_B ? 0 : 0x20u);
    else
        p0 |= (f->rm & 16u ? 0 : 0x40u) | (f->rm & 8u ? 0 : 0x20u);
    asm_byte(a, 0x62);
    asm_byte(a, p0);
    asm_byte(a, evex[2]);
    asm_byte(a, evex[3]);
    asm_byte(a, z->opcode);
}

static bool fields_of(struct fields *f, const ZydisDecodedInstruction *z,
                      const ZydisDecodedOperand *operand, const uint8_t *bytes,
                      const struct reencode *r)
{
    unsigned R = 0, B = 0, X = 0;

    *f = (struct fields){.has_modrm = z->attributes & ZYDIS_ATTRIB_HAS_MODRM,
                         .opcode_register = opcode_register(z, operand)};
    switch (z->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
        if (z->attributes & ZYDIS_ATTRIB_HAS_REX) {
            R = z->raw.rex.R;
            B = z->raw.rex.B;
        }
        break;
    case ZYDIS_INSTRUCTION_ENCODING_VEX: /* Zydis gives R, X, B and vvvv as in the bytes: inverted */
        R = z->raw.vex.R ^ 1u;
        B = z->raw.vex.B ^ 1u;
        f->vvvv = ~(unsigned)z->raw.vex.vvvv & 15u;
        break;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        R = (unsigned)(bytes[z->raw.evex.offset + 1] >> 7) ^ 1u;
        X = (unsigned)(bytes[z->raw.evex.offset + 1] >> 6 & 1) ^ 1u;
        B = (unsigned)(bytes[z->raw.evex.offset + 1] >> 5 & 1) ^ 1u;
        break;
    default:
        return false;
    }
    if (f->opcode_register)
        f->opcode = replaced(r->opcode, (z->opcode & 7u) | B << 3);
    if (f->has_modrm) {
        f->reg = replaced(r->reg, z->raw.modrm.reg | R << 3);
        f->rm = replaced(r->rm, z->raw.modrm.rm | B << 3 | X << 4);
    }
    f->vvvv = replaced(r->vvvv, f->vvvv);
    return true;
}

/* The first byte after ModRM, SIB and displacement, or after the opcode. */
static unsigned tail(const ZydisDecodedInstruction *z)
{
    unsigned at;

    if (!(z->attributes & ZYDIS_ATTRIB_HAS_MODRM))
        return z->length - z->raw.imm[0].size / 8u - z->raw.imm[1].size / 8u;
    at = z->raw.modrm.offset + 1u;
    if (z->raw.modrm.mod != 3 && z->raw.modrm.rm == 4)
        at++;
    return at + z->raw.disp.size / 8u;
}

bool reencode(struct asm_code *a, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operand,
              const uint8_t *bytes, const struct reencode *r)
{
    bool evex = z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    struct fields f;

    if (!fields_of(&f, z, operand, bytes, r))
        return false;
    if (r->memory && r->mem.gs)
        asm_byte(a, 0x65);
    if (evex)
        emit_evex(a, z, bytes, r, &f);
    else if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
        emit_vex(a, z, r, &f);
    else if (!emit_legacy(a, z, operand, r, &f))
        return false;
    if (f.has_modrm && r->memory && evex)
        asm_modrm_mem32(a, f.reg, &r->mem);
    else if (f.has_modrm && r->memory)
        asm_modrm_mem(a, f.reg, &r->mem);
    else if (f.has_modrm)
        asm_byte(a, 0xc0u | (f.reg & 7u) << 3 | (f.rm & 7u));
    for (unsigned i = tail(z); i < z->length; i++)
        asm_byte(a, bytes[i]);
    return true;
}
