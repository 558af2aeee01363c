/* Each instruction is assembled with many operands, decoded again, and compared with what was asked for. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <Zydis/Zydis.h>
#include <string.h>

#include "cpu/soft/jit/asm.h"

static uint8_t buffer[256];

static const int32_t displacements[] = {0, 1, -1, 127, 128, -128, -129, 0x12345678, INT32_MIN, INT32_MAX};

static struct asm_code assembler(void)
{
    memset(buffer, 0xcc, sizeof(buffer));
    return (struct asm_code){.base = buffer, .end = sizeof(buffer)};
}

static ZydisRegister gpr64(unsigned reg)
{
    return ZYDIS_REGISTER_RAX + (int)reg;
}

/* The one instruction in the buffer. */
static ZydisDisassembledInstruction decoded(const struct asm_code *a)
{
    ZydisDisassembledInstruction d;

    assert_false(a->overflow);
    assert_true(ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, 0, buffer, a->at, &d)));
    assert_int_equal(d.info.length, a->at);
    return d;
}

static void check_memory(const ZydisDecodedOperand *op, const struct asm_mem *m)
{
    assert_int_equal(op->type, ZYDIS_OPERAND_TYPE_MEMORY);
    assert_int_equal(op->mem.base, m->base == ASM_NONE ? ZYDIS_REGISTER_NONE : gpr64(m->base));
    assert_int_equal(op->mem.index, m->index == ASM_NONE ? ZYDIS_REGISTER_NONE : gpr64(m->index));
    if (m->index != ASM_NONE)
        assert_int_equal(op->mem.scale, 1 << m->scale);
    assert_int_equal(op->mem.disp.value, m->disp);
    assert_int_equal(op->mem.segment == ZYDIS_REGISTER_GS, m->gs);
}

static void check_load_store(unsigned reg, struct asm_mem m)
{
    struct asm_code a = assembler();
    ZydisDisassembledInstruction d;

    asm_load(&a, reg, m);
    d = decoded(&a);
    assert_int_equal(d.info.mnemonic, ZYDIS_MNEMONIC_MOV);
    assert_int_equal(d.operands[0].reg.value, gpr64(reg));
    check_memory(&d.operands[1], &m);
    a = assembler();
    asm_store(&a, m, reg);
    d = decoded(&a);
    check_memory(&d.operands[0], &m);
    assert_int_equal(d.operands[1].reg.value, gpr64(reg));
    a = assembler();
    asm_op_mem(&a, false, 0x1b7, reg, m); /* movzx r32, word */
    d = decoded(&a);
    assert_int_equal(d.info.mnemonic, ZYDIS_MNEMONIC_MOVZX);
    assert_int_equal(d.operands[0].size, 32);
    assert_int_equal(d.operands[1].size, 16);
    check_memory(&d.operands[1], &m);
}

static void test_memory(void **state)
{
    (void)state;
    for (unsigned base = 0; base <= 16; base++) {
        for (unsigned index = 0; index <= 16; index++) {
            for (unsigned k = 0; k < sizeof(displacements) / sizeof(displacements[0]); k++) {
                struct asm_mem m = {(uint8_t)(base == 16 ? ASM_NONE : base),
                                    (uint8_t)(index == 16 ? ASM_NONE : index), 0, false,
                                    displacements[k]};

                if (index == 4) /* no encoding has RSP as index */
                    continue;
                m.scale = index == 16 ? 0 : (uint8_t)(k & 3u);
                check_load_store((base * 5 + index) & 15u, m);
            }
        }
    }
}

static void test_gs(void **state)
{
    (void)state;
    for (unsigned k = 0; k < sizeof(displacements) / sizeof(displacements[0]); k++)
        check_load_store(k, asm_gs((uint64_t)displacements[k]));
}

static void test_registers(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 256; i++) {
        unsigned to = i & 15u, from = i >> 4;
        struct asm_code a = assembler();
        ZydisDisassembledInstruction d;

        asm_op_reg(&a, true, 0x85, from, to);
        d = decoded(&a);
        assert_int_equal(d.info.mnemonic, ZYDIS_MNEMONIC_TEST);
        assert_int_equal(d.operands[0].reg.value, gpr64(to));
        assert_int_equal(d.operands[1].reg.value, gpr64(from));
        if (to == from)
            continue;
        a = assembler();
        asm_mov(&a, to, from);
        d = decoded(&a);
        assert_int_equal(d.info.mnemonic, ZYDIS_MNEMONIC_MOV);
        assert_int_equal(d.operands[0].reg.value, gpr64(to));
        assert_int_equal(d.operands[1].reg.value, gpr64(from));
    }
}

static void test_mov_imm(void **state)
{
    static const uint64_t values[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000,
                                      UINT64_MAX, (uint64_t)INT32_MIN, (uint64_t)INT32_MIN - 1,
                                      0x123456789abcdef0};

    (void)state;
    for (unsigned reg = 0; reg < 16; reg++) {
        for (unsigned k = 0; k < sizeof(values) / sizeof(values[0]); k++) {
            struct asm_code a = assembler();
            ZydisDisassembledInstruction d;
            uint64_t value;

            asm_mov_imm(&a, reg, values[k]);
            d = decoded(&a);
            assert_int_equal(d.info.mnemonic, ZYDIS_MNEMONIC_MOV); /* it must leave the flags */
            value = d.operands[1].imm.is_signed ? (uint64_t)d.operands[1].imm.value.s
                                                : d.operands[1].imm.value.u;
            if (d.operands[0].size == 32)
                value = (uint32_t)value;
            assert_int_equal(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64,
                                                              d.operands[0].reg.value),
                             gpr64(reg));
            assert_true(value == values[k]);
        }
    }
}

static void test_alu(void **state)
{
    static const ZydisMnemonic names[] = {
        [ASM_ADD] = ZYDIS_MNEMONIC_ADD, [ASM_OR] = ZYDIS_MNEMONIC_OR,   [ASM_ADC] = ZYDIS_MNEMONIC_ADC,
        [ASM_SBB] = ZYDIS_MNEMONIC_SBB, [ASM_AND] = ZYDIS_MNEMONIC_AND, [ASM_SUB] = ZYDIS_MNEMONIC_SUB,
        [ASM_XOR] = ZYDIS_MNEMONIC_XOR, [ASM_CMP] = ZYDIS_MNEMONIC_CMP};

    (void)state;
    for (unsigned i = 0; i < 8 * 16 * 2; i++) {
        unsigned op = i & 7u, reg = i >> 3 & 15u;
        int32_t imm = displacements[i % (sizeof(displacements) / sizeof(displacements[0]))];
        struct asm_code a = assembler();
        ZydisDisassembledInstruction d;

        asm_alu_imm(&a, i >> 7, (enum asm_alu)op, reg, imm);
        d = decoded(&a);
        assert_int_equal(d.info.mnemonic, names[op]);
        assert_int_equal(d.operands[0].size, i >> 7 ? 64 : 32);
        assert_int_equal((int32_t)d.operands[1].imm.value.s, imm);
    }
}

/* With BMI2 one instruction that leaves the flags; without, MOV and ROR. */
static void test_ror(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 512; i++) {
        struct asm_code a = assembler();
        unsigned to = i & 15u, from = i >> 4 & 15u, at = 0;
        ZydisDisassembledInstruction d = {0};

        a.bmi2 = i >> 8;
        asm_ror(&a, to, from, 7);
        assert_false(a.overflow);
        while (at < a.at) {
            assert_true(ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, at, buffer + at,
                                                           a.at - at, &d)));
            at += d.info.length;
        }
        assert_int_equal(at, a.at);
        assert_int_equal(d.info.mnemonic, a.bmi2 ? ZYDIS_MNEMONIC_RORX : ZYDIS_MNEMONIC_ROR);
        assert_int_equal(d.operands[0].reg.value, gpr64(to));
        assert_int_equal(d.operands[a.bmi2 ? 2 : 1].imm.value.u, 7);
    }
}

static void test_jumps(void **state)
{
    struct asm_code a = assembler();
    uint32_t site;
    ZydisDisassembledInstruction d;
    ZyanU64 target;

    (void)state;
    site = asm_jcc(&a, ASM_CC_NE, 0);
    assert_int_equal(site, 2);
    asm_patch(&a, site, 200);
    d = decoded(&a);
    assert_int_equal(d.info.mnemonic, ZYDIS_MNEMONIC_JNZ);
    assert_true(ZYAN_SUCCESS(ZydisCalcAbsoluteAddress(&d.info, &d.operands[0], 0, &target)));
    assert_int_equal(target, 200);
    asm_align(&a, 16, 3);
    assert_int_equal(a.at % 16, 3);
    site = asm_jmp(&a, 0);
    assert_true(ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, site - 1, buffer + site - 1,
                                                   5, &d)));
    assert_true(ZYAN_SUCCESS(ZydisCalcAbsoluteAddress(&d.info, &d.operands[0], site - 1, &target)));
    assert_int_equal(target, 0);
}

/* What is between aligned places are NOPs. */
static void test_align(void **state)
{
    (void)state;
    for (unsigned from = 0; from < 16; from++) {
        for (unsigned rest = 0; rest < 8; rest++) {
            struct asm_code a = assembler();
            unsigned at = from;
            ZydisDisassembledInstruction d;

            a.at = from;
            asm_align(&a, 8, rest);
            assert_int_equal(a.at % 8, rest);
            assert_true(a.at - from < 8);
            while (at < a.at) {
                assert_true(ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, at,
                                                               buffer + at, a.at - at, &d)));
                assert_int_equal(d.info.mnemonic, ZYDIS_MNEMONIC_NOP);
                at += d.info.length;
            }
        }
    }
}

static void test_overflow(void **state)
{
    struct asm_code a = assembler();

    (void)state;
    a.end = 12;
    asm_u64(&a, 0x1122334455667788);
    assert_false(a.overflow);
    asm_u64(&a, 0x1122334455667788);
    assert_true(a.overflow);
    for (unsigned i = 12; i < sizeof(buffer); i++)
        assert_int_equal(buffer[i], 0xcc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),   cmocka_unit_test(test_gs),    cmocka_unit_test(test_registers),
        cmocka_unit_test(test_mov_imm),  cmocka_unit_test(test_alu),   cmocka_unit_test(test_ror),
        cmocka_unit_test(test_jumps),    cmocka_unit_test(test_align), cmocka_unit_test(test_overflow),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
