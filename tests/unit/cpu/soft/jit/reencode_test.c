/*
 * Random instructions of every encoding are written again with registers and the memory operand replaced, decoded, and
 * must be the same instruction with exactly these operands.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <Zydis/Zydis.h>
#include <stdio.h>
#include <string.h>

#include "cpu/soft/insn.h"
#include "cpu/soft/jit/reencode.h"

#define TRIES 1000000u
#define WANT  5000u /* of each encoding */

struct form {
    uint8_t bytes[16];
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
};

static uint64_t seed = 1;

static uint64_t random_number(void)
{
    uint64_t z = seed += 0x9e3779b97f4a7c15ull;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static bool decode(struct form *f)
{
    ZydisDecoder decoder;

    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE); /* as decode.c */
    ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
    ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
    return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, f->bytes, 15, &f->z, f->operand));
}

/* One of the translator's kind: user mode, no segment, no branch, 64-bit addresses. */
static bool suitable(const struct form *f)
{
    const ZydisDecodedInstruction *z = &f->z;

    if (z->attributes & (ZYDIS_ATTRIB_HAS_SEGMENT | ZYDIS_ATTRIB_IS_PRIVILEGED) ||
        z->address_width != 64 || z->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE)
        return false;
    for (unsigned i = 0; i < z->operand_count; i++) {
        const ZydisDecodedOperand *op = &f->operand[i];

        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            (op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM || op->mem.type != ZYDIS_MEMOP_TYPE_MEM))
            return false;
        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            (ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT ||
             ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_CONTROL ||
             ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_DEBUG))
            return false;
    }
    return z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY || z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ||
           z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
}

static bool make(struct form *f)
{
    static const uint8_t starts[] = {0x66, 0x0f, 0xf3, 0x48, 0x4d, 0xc5, 0xc4, 0x62, 0x62, 0xc4};
    uint64_t bytes[2] = {random_number(), random_number()};

    memcpy(f->bytes, bytes, sizeof(f->bytes));
    if (random_number() & 3)
        f->bytes[0] = starts[random_number() % sizeof(starts)];
    if (f->bytes[0] == 0xc4 || f->bytes[0] == 0x62)
        f->bytes[1] = (uint8_t)((f->bytes[1] & 0xf0) | (1 + random_number() % 3));
    if (f->bytes[0] == 0x62) { /* a bit that is set always, and often vvvv of one that has none */
        f->bytes[2] |= 0x04;
        if (random_number() & 1) {
            f->bytes[2] |= 0x78;
            f->bytes[3] |= 0x08;
        }
    }
    return decode(f) && suitable(f);
}

static uint8_t *field(struct reencode *r, ZydisOperandEncoding encoding)
{
    switch (encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
        return &r->reg;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
        return &r->rm;
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
        return &r->vvvv;
    case ZYDIS_OPERAND_ENCODING_OPCODE:
        return &r->opcode;
    default:
        return NULL;
    }
}

static bool is_high_byte(ZydisRegister reg)
{
    return reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
}

/* F3 41 90, with R8 in the opcode, would be PAUSE to some: the translator never puts R8 there. */
static bool is_xchg_ax(const struct form *f)
{
    return f->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (f->z.opcode & 0xf8) == 0x90;
}

/* Replaces some of the general registers, and the memory operand. */
static struct reencode plan(const struct form *f)
{
    struct reencode r = {REENCODE_KEEP, REENCODE_KEEP, REENCODE_KEEP, REENCODE_KEEP, false, {0}};

    for (unsigned i = 0; i < f->z.operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &f->operand[i];
        uint8_t *at = op->type == ZYDIS_OPERAND_TYPE_REGISTER ? field(&r, op->encoding) : NULL;

        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            r.memory = true;
            r.mem = asm_indexed((unsigned)(random_number() & 15), (unsigned)(random_number() & 15),
                                (int32_t)random_number() >> (random_number() & 31));
            if (r.mem.index == GPR_RSP)
                r.mem.index = ASM_NONE;
        } else if (at && insn_gpr(op->reg.value) >= 0 && !is_high_byte(op->reg.value) && !is_xchg_ax(f) &&
                   random_number() & 1) {
            *at = (uint8_t)(8 + (random_number() & 7)); /* as the translator's own: R8 to R15 */
        }
    }
    return r;
}

static ZydisRegister register_wanted(const struct reencode *r, const ZydisDecodedOperand *op)
{
    uint8_t *at = field((struct reencode *)(uintptr_t)r, op->encoding);

    if (!at || *at == REENCODE_KEEP || insn_gpr(op->reg.value) < 0)
        return op->reg.value;
    if (op->size == 8) /* Zydis counts AH to BH among them */
        return ZYDIS_REGISTER_R8B + (*at - 8);
    return ZydisRegisterEncode(ZydisRegisterGetClass(op->reg.value), *at);
}

static bool memory_as_wanted(const struct reencode *r, const ZydisDecodedOperand *op)
{
    ZydisRegister index = r->mem.index == ASM_NONE ? ZYDIS_REGISTER_NONE
                                                   : ZYDIS_REGISTER_RAX + (int)r->mem.index;

    return (int)op->mem.base == ZYDIS_REGISTER_RAX + (int)r->mem.base && op->mem.index == index &&
           op->mem.disp.value == r->mem.disp;
}

static bool operand_as_wanted(const struct reencode *r, const ZydisDecodedOperand *was,
                              const ZydisDecodedOperand *is)
{
    if (was->type != is->type || was->size != is->size || was->encoding != is->encoding)
        return false;
    if (was->type == ZYDIS_OPERAND_TYPE_REGISTER)
        return is->reg.value == register_wanted(r, was);
    if (was->type == ZYDIS_OPERAND_TYPE_MEMORY)
        return memory_as_wanted(r, is);
    return was->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || was->imm.value.u == is->imm.value.u;
}

static bool as_wanted(const struct form *f, const struct reencode *r, const struct form *again)
{
    const ZydisDecodedInstruction *a = &f->z, *b = &again->z;

    if (a->mnemonic != b->mnemonic || a->encoding != b->encoding || a->opcode_map != b->opcode_map ||
        a->operand_count != b->operand_count || a->avx.mask.mode != b->avx.mask.mode ||
        a->avx.mask.reg != b->avx.mask.reg || a->avx.vector_length != b->avx.vector_length ||
        a->avx.rounding.mode != b->avx.rounding.mode || a->avx.broadcast.mode != b->avx.broadcast.mode ||
        (a->attributes ^ b->attributes) & ZYDIS_ATTRIB_HAS_LOCK)
        return false;
    for (unsigned i = 0; i < a->operand_count_visible; i++) {
        if (!operand_as_wanted(r, &f->operand[i], &again->operand[i]))
            return false;
    }
    return true;
}

static void complain(const struct form *f, const struct form *again, unsigned length)
{
    char text[200];
    int at = 0;

    for (unsigned i = 0; i < f->z.length; i++)
        at += snprintf(text + at, sizeof(text) - (size_t)at, "%02x ", f->bytes[i]);
    at += snprintf(text + at, sizeof(text) - (size_t)at, "became ");
    for (unsigned i = 0; i < length; i++)
        at += snprintf(text + at, sizeof(text) - (size_t)at, "%02x ", again->bytes[i]);
    fail_msg("%s", text);
}

static bool check(const struct form *f)
{
    struct form again = {0};
    struct asm_code a = {.base = again.bytes, .end = sizeof(again.bytes)};
    struct reencode r = plan(f);

    if (!reencode(&a, &f->z, f->operand, f->bytes, &r)) {
        assert_int_equal(a.at, 0);
        return false;
    }
    if (a.overflow) /* longer than any instruction may be: redundant prefixes and a long displacement */
        return false;
    if (!decode(&again) || again.z.length != a.at || !as_wanted(f, &r, &again))
        complain(f, &again, a.at);
    return true;
}

static void test_random(void **state)
{
    unsigned checked[3] = {0};

    (void)state;
    for (unsigned i = 0; i < TRIES; i++) {
        struct form f;

        if (!make(&f) || !check(&f))
            continue;
        checked[f.z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX    ? 1
                : f.z.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? 2
                                                                  : 0]++;
    }
    print_message("legacy %u, VEX %u, EVEX %u\n", checked[0], checked[1], checked[2]);
    for (unsigned i = 0; i < 3; i++)
        assert_true(checked[i] > WANT);
}

/* AH and a register that needs REX cannot be in one instruction. */
static void test_high_byte(void **state)
{
    struct form f = {.bytes = {0x88, 0x23}}; /* mov [rbx], ah */
    struct form again = {0};
    struct asm_code a = {.base = again.bytes, .end = sizeof(again.bytes)};
    struct reencode r = {REENCODE_KEEP, REENCODE_KEEP, REENCODE_KEEP, REENCODE_KEEP, true,
                         asm_base(GPR_R8, 0)};

    (void)state;
    assert_true(decode(&f));
    assert_false(reencode(&a, &f.z, f.operand, f.bytes, &r));
    assert_int_equal(a.at, 0);
    r.mem = asm_base(GPR_RSI, 4);
    assert_true(reencode(&a, &f.z, f.operand, f.bytes, &r));
    assert_true(decode(&again));
    assert_int_equal(again.operand[1].reg.value, ZYDIS_REGISTER_AH);
    assert_int_equal(again.operand[0].mem.base, ZYDIS_REGISTER_RSI);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_high_byte),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
