/* The table of the integer family. */
#include "cpu/soft/exec_integer.h"

#define BIND(mnemonic, bind) {ZYDIS_MNEMONIC_##mnemonic, integer_bind_##bind},
#define BIND_CONDITION(name, cc) BIND(CMOV##name, cmov) BIND(SET##name, setcc)

static const struct insn_binding integer_bindings[] = {
    BIND(MOV, mov) BIND(LEA, lea)
    BIND(ADD, alu) BIND(OR, alu) BIND(ADC, alu) BIND(SBB, alu) BIND(AND, alu) BIND(SUB, alu)
    BIND(XOR, alu) BIND(CMP, alu) BIND(TEST, alu)
    BIND(INC, unary) BIND(DEC, unary) BIND(NEG, unary) BIND(NOT, unary)
    BIND(PUSH, push) BIND(POP, pop) BIND(LEAVE, leave) BIND(ENTER, enter)
    BIND(PUSHA, pusha) BIND(PUSHAD, pusha) BIND(POPA, popa) BIND(POPAD, popa)
    BIND(MOVZX, extend) BIND(MOVSX, extend) BIND(MOVSXD, extend)
    CONDITIONS(BIND_CONDITION)
    BIND(SHL, shift) BIND(SHR, shift) BIND(SAR, shift) BIND(ROL, shift) BIND(ROR, shift)
    BIND(RCL, shift) BIND(RCR, shift) BIND(SHLD, double_shift) BIND(SHRD, double_shift)
    BIND(SARX, shiftx) BIND(SHLX, shiftx) BIND(SHRX, shiftx) BIND(RORX, shiftx)
    BIND(MUL, muldiv) BIND(DIV, muldiv) BIND(IDIV, muldiv) BIND(IMUL, imul) BIND(MULX, mulx)
    BIND(BT, bit_test) BIND(BTS, bit_test) BIND(BTR, bit_test) BIND(BTC, bit_test)
    BIND(BSF, bit_count) BIND(BSR, bit_count) BIND(TZCNT, bit_count) BIND(LZCNT, bit_count)
    BIND(POPCNT, bit_count) BIND(ADCX, adx) BIND(ADOX, adx)
    BIND(ANDN, bmi) BIND(BEXTR, bmi) BIND(BLSR, bmi) BIND(BLSI, bmi) BIND(BLSMSK, bmi)
    BIND(BZHI, bmi) BIND(PDEP, bmi) BIND(PEXT, bmi) BIND(CRC32, crc32)
    BIND(XCHG, xchg) BIND(XADD, xadd) BIND(CMPXCHG, cmpxchg)
    BIND(CMPXCHG8B, cmpxchg_wide) BIND(CMPXCHG16B, cmpxchg_wide)
    BIND(CBW, convert) BIND(CWDE, convert) BIND(CDQE, convert)
    BIND(CWD, convert) BIND(CDQ, convert) BIND(CQO, convert)
    BIND(BSWAP, bswap) BIND(MOVBE, movbe) BIND(XLAT, xlat)
    BIND(CLC, flags) BIND(STC, flags) BIND(CMC, flags) BIND(CLD, flags) BIND(STD, flags)
    BIND(LAHF, flags) BIND(SAHF, flags) BIND(SALC, flags)
    BIND(AAA, bcd) BIND(AAS, bcd) BIND(AAM, bcd) BIND(AAD, bcd) BIND(DAA, bcd) BIND(DAS, bcd)
    BIND(BOUND, bound) BIND(RDRAND, random) BIND(RDSEED, random)
    BIND(NOP, nop) BIND(PAUSE, nop) BIND(ENDBR32, nop) BIND(ENDBR64, nop)
    BIND(PREFETCH, nop) BIND(PREFETCHNTA, nop) BIND(PREFETCHT0, nop) BIND(PREFETCHT1, nop)
    BIND(PREFETCHT2, nop) BIND(PREFETCHW, nop) BIND(PREFETCHWT1, nop) BIND(CLDEMOTE, nop)
    BIND(CLFLUSH, nop) BIND(CLFLUSHOPT, nop) BIND(CLWB, nop)
    BIND(MFENCE, nop) BIND(LFENCE, nop) BIND(SFENCE, nop)
    {ZYDIS_MNEMONIC_INVALID, NULL},
};

const struct insn_family insn_family_integer = {
    .name = "integer",
    .bindings = integer_bindings,
};
