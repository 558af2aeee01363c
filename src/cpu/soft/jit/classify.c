/* Which instructions are translated, and what they do with the flags. To add some: name them here. */
#include "cpu/soft/jit/translate.h"
#include "cpu/soft/vector.h"

/* Written again as they are: only general registers, one memory operand at most, no exception but the
 * memory's (DIV, IDIV and CMPXCHG16B aside: plain.c). */
static bool is_plain(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_ADC:
    case ZYDIS_MNEMONIC_ADCX:
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_ADOX:
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_ANDN:
    case ZYDIS_MNEMONIC_BEXTR:
    case ZYDIS_MNEMONIC_BLSI:
    case ZYDIS_MNEMONIC_BLSMSK:
    case ZYDIS_MNEMONIC_BLSR:
    case ZYDIS_MNEMONIC_BSF:
    case ZYDIS_MNEMONIC_BSR:
    case ZYDIS_MNEMONIC_BSWAP:
    case ZYDIS_MNEMONIC_BZHI:
    case ZYDIS_MNEMONIC_CBW:
    case ZYDIS_MNEMONIC_CDQ:
    case ZYDIS_MNEMONIC_CDQE:
    case ZYDIS_MNEMONIC_CLC:
    case ZYDIS_MNEMONIC_CMC:
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_CMPXCHG:
    case ZYDIS_MNEMONIC_CMPXCHG16B:
    case ZYDIS_MNEMONIC_CMPXCHG8B:
    case ZYDIS_MNEMONIC_CQO:
    case ZYDIS_MNEMONIC_CRC32:
    case ZYDIS_MNEMONIC_CWD:
    case ZYDIS_MNEMONIC_CWDE:
    case ZYDIS_MNEMONIC_DEC:
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
    case ZYDIS_MNEMONIC_IMUL:
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_LAHF:
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_LZCNT:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_MOV:
    case ZYDIS_MNEMONIC_MOVBE:
    case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_MOVSXD:
    case ZYDIS_MNEMONIC_MOVZX:
    case ZYDIS_MNEMONIC_MUL:
    case ZYDIS_MNEMONIC_MULX:
    case ZYDIS_MNEMONIC_NEG:
    case ZYDIS_MNEMONIC_NOT:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_PDEP:
    case ZYDIS_MNEMONIC_PEXT:
    case ZYDIS_MNEMONIC_POPCNT:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RORX:
    case ZYDIS_MNEMONIC_SAHF:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_SARX:
    case ZYDIS_MNEMONIC_SBB:
    case ZYDIS_MNEMONIC_SFENCE:
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHLX:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SHRD:
    case ZYDIS_MNEMONIC_SHRX:
    case ZYDIS_MNEMONIC_STC:
    case ZYDIS_MNEMONIC_SUB:
    case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_TZCNT:
    case ZYDIS_MNEMONIC_XADD:
    case ZYDIS_MNEMONIC_XCHG:
    case ZYDIS_MNEMONIC_XOR:
        return true;
    default:
        return false;
    }
}

/* A bit offset in a register reaches beyond the operand in memory. */
static bool is_bit_test(ZydisMnemonic mnemonic)
{
    return mnemonic == ZYDIS_MNEMONIC_BT || mnemonic == ZYDIS_MNEMONIC_BTC ||
           mnemonic == ZYDIS_MNEMONIC_BTR || mnemonic == ZYDIS_MNEMONIC_BTS;
}

static bool is_jcc(const ZydisDecodedInstruction *z)
{
    return z->meta.category == ZYDIS_CATEGORY_COND_BR && z->cpu_flags &&
           z->cpu_flags->tested & RFLAGS_ARITH && z->mnemonic != ZYDIS_MNEMONIC_LOOPE &&
           z->mnemonic != ZYDIS_MNEMONIC_LOOPNE;
}

/* Every general register it names is an operand that can be told another name, or not one that needs it. */
static bool operands_supported(const struct jit_insn *i)
{
    for (unsigned k = 0; k < i->z.operand_count; k++) {
        const ZydisDecodedOperand *op = &i->operand[k];

        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            if (op->mem.type == ZYDIS_MEMOP_TYPE_MEM && !jit_memory_supported(i, op))
                return false;
            if (op->mem.type != ZYDIS_MEMOP_TYPE_MEM)
                return false;
        } else if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
            ZydisRegisterClass class = ZydisRegisterGetClass(op->reg.value);

            if (class == ZYDIS_REGCLASS_SEGMENT || class == ZYDIS_REGCLASS_CONTROL ||
                class == ZYDIS_REGCLASS_DEBUG)
                return false;
        }
    }
    return true;
}

static bool is_stack(const struct jit_insn *i)
{
    const ZydisDecodedOperand *op = &i->operand[0];

    if (i->z.operand_width != 64)
        return false;
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
        return insn_gpr(op->reg.value) >= 0;
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
        return i->z.mnemonic == ZYDIS_MNEMONIC_PUSH && jit_memory_supported(i, op);
    return op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

/* Near, and with an operand that can be addressed. */
static bool is_transfer(const struct jit_insn *i)
{
    const ZydisDecodedOperand *op = &i->operand[0];
    int64_t to = (int64_t)i->in->imm + PAGE_SIZE + 16;

    if (i->z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return false;
    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
        return to == (int32_t)to;
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
        return jit_memory_supported(i, op) && op->size == 64;
    return op->type == ZYDIS_OPERAND_TYPE_REGISTER && op->size == 64;
}

static enum jit_class class_of_plain(const struct jit_insn *i)
{
    ZydisMnemonic mnemonic = i->z.mnemonic;

    if (is_bit_test(mnemonic) && i->operand[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
        i->operand[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
        return jit_bit_supported(i) ? JIT_BIT : JIT_INTERPRET;
    if ((is_plain(mnemonic) || is_bit_test(mnemonic) ||
         i->z.meta.category == ZYDIS_CATEGORY_CMOV || i->z.meta.category == ZYDIS_CATEGORY_SETCC) &&
        operands_supported(i))
        return JIT_PLAIN;
    return JIT_INTERPRET;
}

static enum jit_class class_of(const struct jit_insn *i)
{
    if (soft_decode_faults(i->in))
        return JIT_INTERPRET;
    if (vector_form(i->in) != VECTOR_FORM_OTHER)
        return operands_supported(i) ? JIT_VECTOR : JIT_INTERPRET;
    switch (i->z.mnemonic) {
    case ZYDIS_MNEMONIC_LEA:
        return jit_memory_supported(i, &i->operand[1]) &&
                       insn_gpr(i->operand[0].reg.value) >= 0
                   ? JIT_LEA
                   : JIT_INTERPRET;
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_ENDBR64:
    case ZYDIS_MNEMONIC_PREFETCH:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_PREFETCHW:
        return JIT_NOP;
    case ZYDIS_MNEMONIC_PUSH:
        return is_stack(i) ? JIT_PUSH : JIT_INTERPRET;
    case ZYDIS_MNEMONIC_POP:
        return is_stack(i) ? JIT_POP : JIT_INTERPRET;
    case ZYDIS_MNEMONIC_LEAVE:
        return i->z.operand_width == 64 ? JIT_LEAVE_FRAME : JIT_INTERPRET;
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
        return JIT_RDTSC;
    case ZYDIS_MNEMONIC_SYSCALL:
        return i->z.length == JIT_SYSCALL_LENGTH ? JIT_SYSCALL : JIT_INTERPRET;
    case ZYDIS_MNEMONIC_SYSRET:
        return i->in->opsize == 8 ? JIT_SYSRET : JIT_INTERPRET;
    case ZYDIS_MNEMONIC_JMP:
        return is_transfer(i) ? JIT_JMP : JIT_INTERPRET;
    case ZYDIS_MNEMONIC_CALL:
        return is_transfer(i) ? JIT_CALL_NEAR : JIT_INTERPRET;
    case ZYDIS_MNEMONIC_RET:
        return i->z.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR ? JIT_RET : JIT_INTERPRET;
    default:
        if (jit_system_supported(i))
            return JIT_SYSTEM;
        if (jit_string_supported(i))
            return JIT_STRING;
        return is_jcc(&i->z) && is_transfer(i) ? JIT_JCC : class_of_plain(i);
    }
}

/* ---- flags ---- */

static bool is_shift(ZydisMnemonic mnemonic)
{
    return mnemonic == ZYDIS_MNEMONIC_SHL || mnemonic == ZYDIS_MNEMONIC_SHR ||
           mnemonic == ZYDIS_MNEMONIC_SAR || mnemonic == ZYDIS_MNEMONIC_SHLD ||
           mnemonic == ZYDIS_MNEMONIC_SHRD;
}

/* A count of zero leaves the flags. */
static bool shift_count_known(const struct jit_insn *i)
{
    const ZydisDecodedOperand *count = &i->operand[i->z.operand_count_visible - 1];
    unsigned mask = i->operand[0].size == 64 ? 63 : 31;

    return count->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && count->imm.value.u & mask;
}

/* Flags that the manuals leave undefined may keep their value on some hosts, so that they count as read;
 * not so for these, in which every host computes them anew. */
static bool defines_all(const struct jit_insn *i)
{
    switch (i->z.mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_NEG:
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
    case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_XADD:
    case ZYDIS_MNEMONIC_CMPXCHG:
    case ZYDIS_MNEMONIC_COMISS:
    case ZYDIS_MNEMONIC_COMISD:
    case ZYDIS_MNEMONIC_UCOMISS:
    case ZYDIS_MNEMONIC_UCOMISD:
    case ZYDIS_MNEMONIC_VCOMISS:
    case ZYDIS_MNEMONIC_VCOMISD:
    case ZYDIS_MNEMONIC_VUCOMISS:
    case ZYDIS_MNEMONIC_VUCOMISD:
    case ZYDIS_MNEMONIC_PTEST:
    case ZYDIS_MNEMONIC_VPTEST:
        return true;
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
        return shift_count_known(i);
    default:
        return false;
    }
}

static void classify_flags(struct jit_insn *i)
{
    const ZydisAccessedFlags *f = i->z.cpu_flags;
    uint32_t changed = f ? f->modified | f->set_0 | f->set_1 | f->undefined : 0;

    i->flags_written = changed & RFLAGS_ARITH || is_shift(i->z.mnemonic);
    i->flags_read = (f && f->tested & RFLAGS_ARITH) || (i->flags_written && !defines_all(i));
}

static bool has_memory(const struct jit_insn *i)
{
    return (i->class == JIT_PLAIN || i->class == JIT_VECTOR) && jit_memory_operand(i);
}

static bool leaves_page(const struct jit_insn *i)
{
    int64_t to = (int64_t)i->offset + i->z.length + (int64_t)i->in->imm;

    return i->operand[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || to < 0 || to >= (int64_t)PAGE_SIZE;
}

static uint16_t written(const struct jit_insn *i)
{
    unsigned set = 0;

    for (unsigned k = 0; k < i->z.operand_count; k++) {
        const ZydisDecodedOperand *op = &i->operand[k];
        int gpr = op->type == ZYDIS_OPERAND_TYPE_REGISTER ? insn_gpr(op->reg.value) : -1;

        if (gpr >= 0 && op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            set |= 1u << gpr;
    }
    return (uint16_t)set;
}

void jit_classify(struct jit_insn *i)
{
    i->class = (uint8_t)class_of(i);
    i->inverted = i->goes_on = false;
    i->written = written(i);
    switch (i->class) {
    case JIT_PLAIN:
    case JIT_VECTOR:
        classify_flags(i);
        i->flags_clobbered = has_memory(i);
        break;
    case JIT_BIT:
        classify_flags(i);
        i->flags_clobbered = true;
        break;
    case JIT_JCC:
        i->flags_read = true;
        i->flags_written = i->flags_clobbered = false;
        break;
    case JIT_LEA:
    case JIT_NOP:
        i->flags_read = i->flags_written = i->flags_clobbered = false;
        break;
    case JIT_JMP:
        i->flags_read = i->flags_written = false;
        i->flags_clobbered = leaves_page(i);
        break;
    default:
        i->flags_read = i->flags_written = false;
        i->flags_clobbered = true;
        break;
    }
}
