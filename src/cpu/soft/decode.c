#include "cpu/soft/block.h"
#include "cpu/soft/insn.h"
#include "cpu/soft/lockstep.h"
#include "cpu/soft/vm.h"

/* insn_ea() indexes s.gpr with INSN_REG_RIP. */
static_assert(offsetof(struct cpu_state, rip) == INSN_REG_RIP * sizeof(uint64_t), "rip after gpr");

/* In the order they are asked; the first that lists the mnemonic has it. */
static const struct insn_family *const families[] = {
    &insn_family_integer, &insn_family_branch, &insn_family_string,
    &insn_family_system,  &insn_family_vector,
};

int insn_gpr(ZydisRegister reg)
{
    if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
        return (int)(reg - ZYDIS_REGISTER_AL);
    if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
        return (int)(reg - ZYDIS_REGISTER_AH);
    if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
        return (int)(reg - ZYDIS_REGISTER_SPL) + GPR_RSP;
    if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15W)
        return (int)(reg - ZYDIS_REGISTER_AX);
    if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D)
        return (int)(reg - ZYDIS_REGISTER_EAX);
    if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15)
        return (int)(reg - ZYDIS_REGISTER_RAX);
    return -1;
}

uint8_t insn_gpr_offset(ZydisRegister reg)
{
    int number = insn_gpr(reg);
    bool high = reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;

    return (uint8_t)(number < 0 ? 0 : number * 8 + high);
}

static void insn_raise_ud(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    soft_raise_ud(cpu);
}

static void insn_raise_gp(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    soft_raise_gp(cpu, 0);
}

static void decode_init_decoder(ZydisDecoder *decoder, uint32_t mode)
{
    bool real = !(mode & SOFT_MODE_PE) || (mode & SOFT_MODE_VM);

    if (mode & SOFT_MODE_CODE64)
        ZydisDecoderInit(decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    else if (mode & SOFT_MODE_CODE32)
        ZydisDecoderInit(decoder, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    else
        ZydisDecoderInit(decoder, real ? ZYDIS_MACHINE_MODE_REAL_16 : ZYDIS_MACHINE_MODE_LEGACY_16,
                         mode & SOFT_MODE_STACK32 ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_16);
    /* Not offered to the guest: their encodings are NOPs. */
    ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
    ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
    ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
}

static bool decode_is_string_destination(ZydisRegister base)
{
    return base == ZYDIS_REGISTER_DI || base == ZYDIS_REGISTER_EDI || base == ZYDIS_REGISTER_RDI;
}

static bool decode_is_stack(ZydisRegister base)
{
    return base == ZYDIS_REGISTER_SP || base == ZYDIS_REGISTER_ESP || base == ZYDIS_REGISTER_RSP;
}

/* The explicit memory operand; else of the implied ones that whose segment can be overridden. */
static const ZydisDecodedOperand *decode_find_memory(const struct insn_decode *d)
{
    const ZydisDecodedOperand *implied = NULL;

    for (unsigned i = 0; i < d->z->operand_count; i++) {
        const ZydisDecodedOperand *op = &d->operand[i];

        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY)
            continue;
        if (op->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
            return op;
        if (decode_is_stack(op->mem.base))
            continue;
        if (!implied || decode_is_string_destination(implied->mem.base))
            implied = op;
    }
    return implied;
}

static uint8_t decode_segment(ZydisRegister segment)
{
    switch (segment) {
    case ZYDIS_REGISTER_ES:
        return SEG_ES;
    case ZYDIS_REGISTER_CS:
        return SEG_CS;
    case ZYDIS_REGISTER_SS:
        return SEG_SS;
    case ZYDIS_REGISTER_FS:
        return SEG_FS;
    case ZYDIS_REGISTER_GS:
        return SEG_GS;
    default:
        return SEG_DS;
    }
}

static uint8_t decode_address_register(ZydisRegister reg)
{
    int number = insn_gpr(reg);

    if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP)
        return INSN_REG_RIP;
    return number < 0 ? (uint8_t)INSN_REG_NONE : (uint8_t)number;
}

static void decode_memory(struct insn *in, const struct insn_decode *d)
{
    const ZydisDecodedOperand *op = decode_find_memory(d);

    if (!op)
        return;
    in->flags |= INSN_HAS_MEM;
    in->seg = decode_segment(op->mem.segment);
    if (in->seg == SEG_FS || in->seg == SEG_GS)
        in->flags |= INSN_FS_GS;
    in->base = decode_address_register(op->mem.base);
    in->index = decode_address_register(op->mem.index);
    in->scale = op->mem.scale ? (uint8_t)__builtin_ctz(op->mem.scale) : 0;
    in->disp = op->mem.disp.value;
    if (in->base == INSN_REG_RIP)
        in->disp += d->z->length;
}

static void decode_immediate(struct insn *in, const struct insn_decode *d)
{
    for (unsigned i = 0; i < d->z->operand_count; i++) {
        const ZydisDecodedOperand *op = &d->operand[i];

        if (op->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            continue;
        in->imm = op->imm.is_signed ? (uint64_t)op->imm.value.s : op->imm.value.u;
        return;
    }
}

static bool decode_ends_block(const ZydisDecodedInstruction *z)
{
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
        return true;
    default:
        return z->mnemonic == ZYDIS_MNEMONIC_HLT;
    }
}

static void decode_common(struct insn *in, const struct insn_decode *d)
{
    const ZydisDecodedInstruction *z = d->z;

    in->length = z->length;
    in->opsize = (uint8_t)(z->operand_width / 8);
    in->addrsize = (uint8_t)(z->address_width / 8);
    if (z->attributes & ZYDIS_ATTRIB_HAS_LOCK)
        in->flags |= INSN_LOCK;
    if (z->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE))
        in->flags |= INSN_REP;
    if (z->attributes & ZYDIS_ATTRIB_HAS_REPNE)
        in->flags |= INSN_REPNE;
    if (decode_ends_block(z))
        in->flags |= INSN_ENDS_BLOCK;
    decode_memory(in, d);
    decode_immediate(in, d);
}

void soft_decode_init(struct soft_vm *vm)
{
    for (unsigned f = ARRAY_SIZE(families); f-- > 0;) {
        const struct insn_binding *b = families[f]->bindings;

        for (; b->mnemonic != ZYDIS_MNEMONIC_INVALID; b++)
            vm->binding[b->mnemonic] = b;
    }
}

/* Families share mnemonics (MOV, POP, RET, MOVSD ...): the first may leave an instruction to another. */
static bool decode_bind_second(struct insn *in, const struct insn_decode *d,
                               const struct insn_family *family, const struct insn_binding *first)
{
    const struct insn_binding *b = family->bindings;

    for (; b->mnemonic != ZYDIS_MNEMONIC_INVALID; b++) {
        if (b->mnemonic == first->mnemonic && b != first && b->bind(in, d))
            return true;
    }
    return false;
}

static bool decode_bind(struct insn *in, const struct insn_decode *d)
{
    const struct insn_binding *b = d->cpu->soft_vm->binding[d->z->mnemonic];

    if (b && b->bind(in, d))
        return true;
    for (unsigned f = 0; f < ARRAY_SIZE(families); f++) {
        if (b && decode_bind_second(in, d, families[f], b))
            return true;
        if (families[f]->bind_rest && families[f]->bind_rest(in, d))
            return true;
    }
    return false;
}

static void decode_clear(struct insn *in)
{
    soft_zero(in, sizeof(*in));
    in->base = INSN_REG_NONE;
    in->index = INSN_REG_NONE;
    in->seg = SEG_DS;
    in->length = 1;
}

static void decode_fault(struct insn *in, insn_fn *fn)
{
    decode_clear(in);
    in->fn = fn;
    in->flags = INSN_ENDS_BLOCK;
}

bool soft_decode_faults(const struct insn *in)
{
    return in->fn == insn_raise_ud || in->fn == insn_raise_gp;
}

bool soft_decode_fields(uint32_t mode, const uint8_t *bytes, unsigned length,
                        ZydisDecodedInstruction *z, ZydisDecodedOperand *operand)
{
    ZydisDecoder decoder;

    decode_init_decoder(&decoder, mode);
    return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, length, z, operand)) &&
           z->length == length;
}

bool soft_decode(struct soft_vcpu *cpu, uint32_t mode, const uint8_t *bytes, unsigned avail,
                 struct insn *out)
{
    ZydisDecoder decoder;
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    struct insn_decode d = {&z, operand, bytes, mode, cpu};
    ZyanStatus status;

    decode_init_decoder(&decoder, mode);
    status = ZydisDecoderDecodeFull(&decoder, bytes, avail, &z, operand);
    if (status == ZYDIS_STATUS_NO_MORE_DATA && avail < 15)
        return false;
    if (status == ZYDIS_STATUS_NO_MORE_DATA || status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG) {
        decode_fault(out, insn_raise_gp);
        return true;
    }
    decode_clear(out);
    if (ZYAN_SUCCESS(status)) {
        decode_common(out, &d);
        if (unlikely(cpu->soft_vm->tuning.lockstep))
            soft_lockstep_mark(out, &z, operand);
        if (decode_bind(out, &d) && out->fn)
            return true;
    }
    decode_fault(out, insn_raise_ud);
    return true;
}
