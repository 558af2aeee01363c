#include "cpu/soft/jit/asm.h"

#define REX   0x40u
#define REX_W 0x08u
#define REX_R 0x04u
#define REX_X 0x02u
#define REX_B 0x01u

void asm_byte(struct asm_code *a, unsigned byte)
{
    if (unlikely(a->at >= a->end)) {
        a->overflow = true;
        return;
    }
    a->base[a->at++] = (uint8_t)byte;
}

void asm_bytes(struct asm_code *a, const uint8_t *bytes, unsigned len)
{
    for (unsigned i = 0; i < len; i++)
        asm_byte(a, bytes[i]);
}

void asm_u16(struct asm_code *a, uint16_t value)
{
    asm_byte(a, value & 0xffu);
    asm_byte(a, value >> 8);
}

void asm_u32(struct asm_code *a, uint32_t value)
{
    if (unlikely(a->at + 4 > a->end)) {
        a->overflow = true;
        return;
    }
    *(uint32_t *)(a->base + a->at) = value;
    a->at += 4;
}

void asm_u64(struct asm_code *a, uint64_t value)
{
    asm_u32(a, (uint32_t)value);
    asm_u32(a, (uint32_t)(value >> 32));
}

/* mod: 0, 1 or 2 as the displacement needs. */
static void modrm_mem(struct asm_code *a, unsigned reg, const struct asm_mem *m, bool wide)
{
    unsigned rm = m->base & 7u, mod;
    bool sib = m->index != ASM_NONE || rm == 4;

    reg = (reg & 7u) << 3;
    if (m->base == ASM_NONE) { /* [disp32], or [index << scale + disp32] */
        unsigned index = m->index == ASM_NONE ? 4u : m->index & 7u;

        asm_byte(a, reg | 4u);
        asm_byte(a, (unsigned)m->scale << 6 | index << 3 | 5u);
        asm_u32(a, (uint32_t)m->disp);
        return;
    }
    if (wide || m->disp != (int8_t)m->disp)
        mod = 2;
    else
        mod = m->disp != 0 || rm == 5 ? 1 : 0;
    asm_byte(a, mod << 6 | reg | (sib ? 4u : rm));
    if (sib)
        asm_byte(a, (unsigned)m->scale << 6 | (m->index == ASM_NONE ? 4u : m->index & 7u) << 3 | rm);
    if (mod == 1)
        asm_byte(a, (uint8_t)m->disp);
    else if (mod == 2)
        asm_u32(a, (uint32_t)m->disp);
}

void asm_modrm_mem(struct asm_code *a, unsigned reg, const struct asm_mem *m)
{
    modrm_mem(a, reg, m, false);
}

void asm_modrm_mem32(struct asm_code *a, unsigned reg, const struct asm_mem *m)
{
    modrm_mem(a, reg, m, true);
}

static void opcode(struct asm_code *a, unsigned op)
{
    if (op > 0xff)
        asm_byte(a, 0x0f);
    asm_byte(a, op & 0xffu);
}

static unsigned high(unsigned reg, unsigned bit)
{
    return reg != ASM_NONE && reg & 8u ? bit : 0;
}

void asm_op_mem(struct asm_code *a, bool w, unsigned op, unsigned reg, struct asm_mem m)
{
    unsigned rex = (w ? REX_W : 0) | high(reg, REX_R) | high(m.base, REX_B) | high(m.index, REX_X);

    if (m.gs)
        asm_byte(a, 0x65);
    if (rex)
        asm_byte(a, REX | rex);
    opcode(a, op);
    modrm_mem(a, reg, &m, false);
}

void asm_op_reg(struct asm_code *a, bool w, unsigned op, unsigned reg, unsigned rm)
{
    unsigned rex = (w ? REX_W : 0) | high(reg, REX_R) | high(rm, REX_B);

    if (rex)
        asm_byte(a, REX | rex);
    opcode(a, op);
    asm_byte(a, 0xc0u | (reg & 7u) << 3 | (rm & 7u));
}

void asm_load(struct asm_code *a, unsigned reg, struct asm_mem m)
{
    asm_op_mem(a, true, 0x8b, reg, m);
}

void asm_store(struct asm_code *a, struct asm_mem m, unsigned reg)
{
    asm_op_mem(a, true, 0x89, reg, m);
}

void asm_store_imm8(struct asm_code *a, struct asm_mem m, unsigned value)
{
    asm_op_mem(a, false, 0xc6, 0, m);
    asm_byte(a, value);
}

void asm_store_imm32(struct asm_code *a, struct asm_mem m, uint32_t value)
{
    asm_op_mem(a, false, 0xc7, 0, m);
    asm_u32(a, value);
}

void asm_mov(struct asm_code *a, unsigned to, unsigned from)
{
    asm_op_reg(a, true, 0x89, from, to);
}

void asm_lea(struct asm_code *a, unsigned reg, struct asm_mem m)
{
    asm_op_mem(a, true, 0x8d, reg, m);
}

void asm_mov_imm(struct asm_code *a, unsigned reg, uint64_t value)
{
    bool is_signed = (int64_t)value == (int32_t)value;

    if (value == (uint32_t)value) { /* mov r32, imm32 */
        if (reg & 8u)
            asm_byte(a, REX | REX_B);
        asm_byte(a, 0xb8u | (reg & 7u));
        asm_u32(a, (uint32_t)value);
    } else if (is_signed) {
        asm_op_reg(a, true, 0xc7, 0, reg);
        asm_u32(a, (uint32_t)value);
    } else {
        asm_byte(a, REX | REX_W | high(reg, REX_B));
        asm_byte(a, 0xb8u | (reg & 7u));
        asm_u64(a, value);
    }
}

void asm_alu_imm(struct asm_code *a, bool w, enum asm_alu op, unsigned reg, int32_t imm)
{
    bool byte = imm == (int8_t)imm;

    asm_op_reg(a, w, byte ? 0x83 : 0x81, op, reg);
    if (byte)
        asm_byte(a, (uint8_t)imm);
    else
        asm_u32(a, (uint32_t)imm);
}

static void rorx(struct asm_code *a, unsigned to, unsigned from, unsigned count)
{
    asm_byte(a, 0xc4); /* VEX.LZ.F2.0F3A.W1 F0 /r ib */
    asm_byte(a, (to & 8u ? 0 : 0x80u) | 0x40u | (from & 8u ? 0 : 0x20u) | 0x03u);
    asm_byte(a, 0xfb);
    asm_byte(a, 0xf0);
    asm_byte(a, 0xc0u | (to & 7u) << 3 | (from & 7u));
    asm_byte(a, count);
}

void asm_ror(struct asm_code *a, unsigned to, unsigned from, unsigned count)
{
    if (a->bmi2) {
        rorx(a, to, from, count);
        return;
    }
    asm_mov(a, to, from);
    asm_op_reg(a, true, 0xc1, 1, to);
    asm_byte(a, count);
}

uint32_t asm_jmp(struct asm_code *a, uint32_t target)
{
    asm_byte(a, 0xe9);
    asm_u32(a, target - (a->at + 4));
    return a->at - 4;
}

uint32_t asm_jcc(struct asm_code *a, unsigned condition, uint32_t target)
{
    asm_byte(a, 0x0f);
    asm_byte(a, 0x80u | condition);
    asm_u32(a, target - (a->at + 4));
    return a->at - 4;
}

void asm_jmp_mem(struct asm_code *a, struct asm_mem m)
{
    asm_op_mem(a, false, 0xff, 4, m);
}

void asm_patch(struct asm_code *a, uint32_t site, uint32_t target)
{
    if (!a->overflow)
        *(uint32_t *)(a->base + site) = target - (site + 4);
}

static void nop(struct asm_code *a, unsigned len)
{
    /* SDM vol. 2B, NOP: the recommended multi-byte forms. */
    static const uint8_t forms[8][8] = {
        {0x90},
        {0x66, 0x90},
        {0x0f, 0x1f, 0x00},
        {0x0f, 0x1f, 0x40, 0x00},
        {0x0f, 0x1f, 0x44, 0x00, 0x00},
        {0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00},
        {0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00},
        {0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
    };

    for (unsigned part; len > 0; len -= part) {
        part = len > 8 ? 8 : len;
        asm_bytes(a, forms[part - 1], part);
    }
}

void asm_align(struct asm_code *a, unsigned align, unsigned rest)
{
    nop(a, (rest - a->at) & (align - 1));
}

void asm_nop5(struct asm_code *a)
{
    nop(a, 5);
}
