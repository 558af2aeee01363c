/* The system family: which handler runs what. Binds refuse what belongs to another family. */
#include "cpu/soft/exec_system.h"

#include "cpu/soft/descriptor.h"

#define ENDS INSN_ENDS_BLOCK

/* Effective operand size where Zydis's width is that of something else. */
static uint8_t system_operand_size(const struct insn_decode *d)
{
    bool prefix = d->z->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE;

    if (d->mode & SOFT_MODE_CODE64)
        return d->z->raw.rex.W ? 8 : prefix ? 2 : 4;
    if (d->mode & SOFT_MODE_CODE32)
        return prefix ? 2 : 4;
    return prefix ? 4 : 2;
}

static bool system_is_register(const ZydisDecodedOperand *op)
{
    return op->type == ZYDIS_OPERAND_TYPE_REGISTER;
}

/* enum cpu_segment_name, or -1. Zydis numbers them as the encoding does. */
static int system_segment(const ZydisDecodedOperand *op)
{
    if (!system_is_register(op) || op->reg.value < ZYDIS_REGISTER_ES ||
        op->reg.value > ZYDIS_REGISTER_GS)
        return -1;
    return (int)(op->reg.value - ZYDIS_REGISTER_ES);
}

static int system_numbered(const ZydisDecodedOperand *op, ZydisRegister first)
{
    if (!system_is_register(op) || op->reg.value < first || op->reg.value > first + 15)
        return -1;
    return (int)(op->reg.value - first);
}

static bool system_take(struct insn *in, insn_fn *fn, uint8_t flags)
{
    in->fn = fn;
    in->flags |= flags;
    return true;
}

/* Instructions without explicit operands. Those that only sometimes change the mode or open the
 * interrupt window set end_block by themselves instead of ending every block. */
#define PLAIN(name, handler, flags)                                                                \
    static bool bind_##name(struct insn *in, const struct insn_decode *d)                          \
    {                                                                                              \
        (void)d;                                                                                   \
        return system_take(in, handler, flags);                                                    \
    }

/* One operand, or two, of which the first is dst and the other src, when they are registers. */
static void system_registers(struct insn *in, const struct insn_decode *d)
{
    int reg;

    for (unsigned i = 0; i < d->z->operand_count_visible && i < 2; i++) {
        if (!system_is_register(&d->operand[i]))
            continue;
        reg = insn_gpr(d->operand[i].reg.value);
        if (reg < 0)
            continue;
        if (i == 0)
            in->dst = (uint8_t)reg;
        if (i == 1 || d->z->operand_count_visible == 1)
            in->src = (uint8_t)reg;
    }
    in->src2 = in->src;
}

#define OPERANDS(name, handler, flags)                                                             \
    static bool bind_##name(struct insn *in, const struct insn_decode *d)                          \
    {                                                                                              \
        system_registers(in, d);                                                                   \
        return system_take(in, handler, flags);                                                    \
    }

/* Only when the model has the feature; else #UD. */
#define FEATURED(name, handler, flags, leaf, reg, bit)                                             \
    static bool bind_##name(struct insn *in, const struct insn_decode *d)                          \
    {                                                                                              \
        system_registers(in, d);                                                                   \
        return soft_has_feature(d->cpu, leaf, reg, bit) && system_take(in, handler, flags);        \
    }

#define SIZED(name, handler, flags, size)                                                          \
    static bool bind_##name(struct insn *in, const struct insn_decode *d)                          \
    {                                                                                              \
        (void)d;                                                                                   \
        in->opsize = size;                                                                         \
        return system_take(in, handler, flags);                                                    \
    }

PLAIN(int, exec_int, ENDS)
PLAIN(int3, exec_int3, ENDS)
PLAIN(into, exec_into, ENDS)
PLAIN(int1, exec_int1, ENDS)
SIZED(iret, exec_iret, ENDS, 2)
SIZED(iretd, exec_iret, ENDS, 4)
SIZED(iretq, exec_iret, ENDS, 8)
PLAIN(syscall, exec_syscall, ENDS)
PLAIN(sysenter, exec_sysenter, ENDS)
PLAIN(clts, exec_clts, ENDS)
PLAIN(cli, exec_cli, 0)
PLAIN(sti, exec_sti, 0)
SIZED(pushf, exec_pushf, 0, 2)
SIZED(pushfd, exec_pushf, 0, 4)
SIZED(pushfq, exec_pushf, 0, 8)
SIZED(popf, exec_popf, 0, 2)
SIZED(popfd, exec_popf, 0, 4)
SIZED(popfq, exec_popf, 0, 8)
FEATURED(stac, exec_stac, 0, 7, 'b', 20)
FEATURED(clac, exec_clac, 0, 7, 'b', 20)
PLAIN(swapgs, exec_swapgs, 0)
OPERANDS(rdfsbase, exec_rdfsbase, 0)
OPERANDS(rdgsbase, exec_rdgsbase, 0)
OPERANDS(wrfsbase, exec_wrfsbase, 0)
OPERANDS(wrgsbase, exec_wrgsbase, 0)
PLAIN(rdmsr, exec_rdmsr, 0)
PLAIN(wrmsr, exec_wrmsr, ENDS)
PLAIN(rdtsc, exec_rdtsc, 0)
FEATURED(rdtscp, exec_rdtscp, 0, 0x80000001, 'd', 27)
FEATURED(rdpid, exec_rdpid, 0, 7, 'c', 22)
PLAIN(rdpmc, exec_rdpmc, ENDS)
PLAIN(cpuid, exec_cpuid, 0)
PLAIN(invlpg, exec_invlpg, ENDS)
FEATURED(invpcid, exec_invpcid, ENDS, 7, 'b', 10)
PLAIN(cache_nop, exec_cache_nop, 0)
PLAIN(hlt, exec_hlt, ENDS)
PLAIN(hypercall, exec_hypercall, 0)
PLAIN(ud, exec_ud, ENDS)
PLAIN(xgetbv, exec_xgetbv, 0)
PLAIN(xsetbv, exec_xsetbv, ENDS)
OPERANDS(lmsw, exec_lmsw, ENDS)
OPERANDS(smsw, exec_smsw, 0)
OPERANDS(lldt, exec_lldt, ENDS)
OPERANDS(ltr, exec_ltr, ENDS)
OPERANDS(sldt, exec_sldt, 0)
OPERANDS(str, exec_str, 0)
OPERANDS(lar, exec_lar, 0)
OPERANDS(lsl, exec_lsl, 0)
OPERANDS(verr, exec_verr, 0)
OPERANDS(verw, exec_verw, 0)
OPERANDS(arpl, exec_arpl, 0)

static bool system_bind_table(struct insn *in, const struct insn_decode *d, insn_fn *fn)
{
    in->opsize = system_operand_size(d);
    return system_take(in, fn, 0);
}

static bool bind_lgdt(struct insn *in, const struct insn_decode *d)
{
    return system_bind_table(in, d, exec_lgdt);
}

static bool bind_lidt(struct insn *in, const struct insn_decode *d)
{
    return system_bind_table(in, d, exec_lidt);
}

static bool bind_sgdt(struct insn *in, const struct insn_decode *d)
{
    return system_bind_table(in, d, exec_sgdt);
}

static bool bind_sidt(struct insn *in, const struct insn_decode *d)
{
    return system_bind_table(in, d, exec_sidt);
}

static bool bind_sysret(struct insn *in, const struct insn_decode *d)
{
    in->opsize = d->z->raw.rex.W ? 8 : 4;
    return system_take(in, exec_sysret, ENDS);
}

static bool bind_sysexit(struct insn *in, const struct insn_decode *d)
{
    in->opsize = d->z->raw.rex.W ? 8 : 4;
    return system_take(in, exec_sysexit, ENDS);
}

/* The far forms; near ones are the branch family's. */
static bool system_bind_far(struct insn *in, const struct insn_decode *d, insn_fn *pointer,
                            insn_fn *memory)
{
    const ZydisDecodedOperand *op = &d->operand[0];

    if (d->z->meta.branch_type != ZYDIS_BRANCH_TYPE_FAR)
        return false;
    in->opsize = system_operand_size(d);
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
        return system_take(in, memory, ENDS);
    if (op->type != ZYDIS_OPERAND_TYPE_POINTER)
        return false;
    in->imm = op->ptr.offset;
    in->disp = op->ptr.segment;
    return system_take(in, pointer, ENDS);
}

static bool bind_jmp(struct insn *in, const struct insn_decode *d)
{
    return system_bind_far(in, d, exec_jump_far_pointer, exec_jump_far_memory);
}

static bool bind_call(struct insn *in, const struct insn_decode *d)
{
    return system_bind_far(in, d, exec_call_far_pointer, exec_call_far_memory);
}

static bool bind_ret(struct insn *in, const struct insn_decode *d)
{
    if ((d->z->opcode & 0xfe) != 0xca)
        return false;
    in->opsize = system_operand_size(d);
    return system_take(in, exec_return_far, ENDS);
}

/* MOV with CR or DR: the ModRM byte always names a register. */
static bool system_bind_mov_control(struct insn *in, const struct insn_decode *d)
{
    const ZydisDecodedOperand *dst = &d->operand[0], *src = &d->operand[1];
    int cr = system_numbered(src, ZYDIS_REGISTER_CR0), dr = system_numbered(src, ZYDIS_REGISTER_DR0);
    bool from = cr >= 0 || dr >= 0;
    int gpr = insn_gpr(system_is_register(from ? dst : src) ? (from ? dst : src)->reg.value
                                                            : ZYDIS_REGISTER_NONE);

    if (!from) {
        cr = system_numbered(dst, ZYDIS_REGISTER_CR0);
        dr = system_numbered(dst, ZYDIS_REGISTER_DR0);
    }
    if (gpr < 0 || (cr < 0 && dr < 0))
        return false;
    in->dst = (uint8_t)(from ? gpr : cr >= 0 ? cr : dr);
    in->src = (uint8_t)(from ? (cr >= 0 ? cr : dr) : gpr);
    if (from)
        return system_take(in, cr >= 0 ? exec_mov_from_cr : exec_mov_from_dr, 0);
    return system_take(in, cr >= 0 ? exec_mov_to_cr : exec_mov_to_dr, ENDS);
}

static bool bind_mov(struct insn *in, const struct insn_decode *d)
{
    int to = system_segment(&d->operand[0]), from = system_segment(&d->operand[1]);

    if (from >= 0) {
        system_registers(in, d);
        in->src = (uint8_t)from;
        in->opsize = system_operand_size(d);
        return system_take(in, exec_mov_from_segment, 0);
    }
    if (to >= 0) {
        if (to == SEG_CS)
            return false;
        system_registers(in, d);
        in->dst = (uint8_t)to;
        return system_take(in, exec_mov_to_segment, ENDS);
    }
    return system_bind_mov_control(in, d);
}

static bool bind_pop(struct insn *in, const struct insn_decode *d)
{
    int seg = system_segment(&d->operand[0]);

    if (seg < 0 || seg == SEG_CS)
        return false;
    in->dst = (uint8_t)seg;
    in->opsize = system_operand_size(d);
    if ((d->mode & SOFT_MODE_CODE64) && in->opsize == 4)
        in->opsize = 8;
    return system_take(in, exec_pop_segment, ENDS);
}

static bool system_bind_load_far(struct insn *in, const struct insn_decode *d, unsigned seg)
{
    int gpr = system_is_register(&d->operand[0]) ? insn_gpr(d->operand[0].reg.value) : -1;

    if (gpr < 0 || !(in->flags & INSN_HAS_MEM))
        return false;
    in->dst = (uint8_t)seg;
    in->src = (uint8_t)gpr;
    in->opsize = system_operand_size(d);
    return system_take(in, exec_load_far_pointer, ENDS);
}

#define LOAD_FAR(name, seg)                                                                        \
    static bool bind_##name(struct insn *in, const struct insn_decode *d)                          \
    {                                                                                              \
        return system_bind_load_far(in, d, seg);                                                   \
    }

LOAD_FAR(lds, SEG_DS)
LOAD_FAR(les, SEG_ES)
LOAD_FAR(lss, SEG_SS)
LOAD_FAR(lfs, SEG_FS)
LOAD_FAR(lgs, SEG_GS)

static const struct insn_binding system_bindings[] = {
    {ZYDIS_MNEMONIC_INT, bind_int},
    {ZYDIS_MNEMONIC_INT3, bind_int3},
    {ZYDIS_MNEMONIC_INTO, bind_into},
    {ZYDIS_MNEMONIC_INT1, bind_int1},
    {ZYDIS_MNEMONIC_IRET, bind_iret},
    {ZYDIS_MNEMONIC_IRETD, bind_iretd},
    {ZYDIS_MNEMONIC_IRETQ, bind_iretq},
    {ZYDIS_MNEMONIC_JMP, bind_jmp},
    {ZYDIS_MNEMONIC_CALL, bind_call},
    {ZYDIS_MNEMONIC_RET, bind_ret},
    {ZYDIS_MNEMONIC_SYSCALL, bind_syscall},
    {ZYDIS_MNEMONIC_SYSRET, bind_sysret},
    {ZYDIS_MNEMONIC_SYSENTER, bind_sysenter},
    {ZYDIS_MNEMONIC_SYSEXIT, bind_sysexit},
    {ZYDIS_MNEMONIC_MOV, bind_mov},
    {ZYDIS_MNEMONIC_POP, bind_pop},
    {ZYDIS_MNEMONIC_LDS, bind_lds},
    {ZYDIS_MNEMONIC_LES, bind_les},
    {ZYDIS_MNEMONIC_LSS, bind_lss},
    {ZYDIS_MNEMONIC_LFS, bind_lfs},
    {ZYDIS_MNEMONIC_LGS, bind_lgs},
    {ZYDIS_MNEMONIC_LGDT, bind_lgdt},
    {ZYDIS_MNEMONIC_LIDT, bind_lidt},
    {ZYDIS_MNEMONIC_SGDT, bind_sgdt},
    {ZYDIS_MNEMONIC_SIDT, bind_sidt},
    {ZYDIS_MNEMONIC_LLDT, bind_lldt},
    {ZYDIS_MNEMONIC_LTR, bind_ltr},
    {ZYDIS_MNEMONIC_SLDT, bind_sldt},
    {ZYDIS_MNEMONIC_STR, bind_str},
    {ZYDIS_MNEMONIC_LAR, bind_lar},
    {ZYDIS_MNEMONIC_LSL, bind_lsl},
    {ZYDIS_MNEMONIC_VERR, bind_verr},
    {ZYDIS_MNEMONIC_VERW, bind_verw},
    {ZYDIS_MNEMONIC_ARPL, bind_arpl},
    {ZYDIS_MNEMONIC_CLTS, bind_clts},
    {ZYDIS_MNEMONIC_LMSW, bind_lmsw},
    {ZYDIS_MNEMONIC_SMSW, bind_smsw},
    {ZYDIS_MNEMONIC_CLI, bind_cli},
    {ZYDIS_MNEMONIC_STI, bind_sti},
    {ZYDIS_MNEMONIC_PUSHF, bind_pushf},
    {ZYDIS_MNEMONIC_PUSHFD, bind_pushfd},
    {ZYDIS_MNEMONIC_PUSHFQ, bind_pushfq},
    {ZYDIS_MNEMONIC_POPF, bind_popf},
    {ZYDIS_MNEMONIC_POPFD, bind_popfd},
    {ZYDIS_MNEMONIC_POPFQ, bind_popfq},
    {ZYDIS_MNEMONIC_STAC, bind_stac},
    {ZYDIS_MNEMONIC_CLAC, bind_clac},
    {ZYDIS_MNEMONIC_SWAPGS, bind_swapgs},
    {ZYDIS_MNEMONIC_RDFSBASE, bind_rdfsbase},
    {ZYDIS_MNEMONIC_RDGSBASE, bind_rdgsbase},
    {ZYDIS_MNEMONIC_WRFSBASE, bind_wrfsbase},
    {ZYDIS_MNEMONIC_WRGSBASE, bind_wrgsbase},
    {ZYDIS_MNEMONIC_RDMSR, bind_rdmsr},
    {ZYDIS_MNEMONIC_WRMSR, bind_wrmsr},
    {ZYDIS_MNEMONIC_RDTSC, bind_rdtsc},
    {ZYDIS_MNEMONIC_RDTSCP, bind_rdtscp},
    {ZYDIS_MNEMONIC_RDPID, bind_rdpid},
    {ZYDIS_MNEMONIC_RDPMC, bind_rdpmc},
    {ZYDIS_MNEMONIC_CPUID, bind_cpuid},
    {ZYDIS_MNEMONIC_INVLPG, bind_invlpg},
    {ZYDIS_MNEMONIC_INVPCID, bind_invpcid},
    {ZYDIS_MNEMONIC_INVD, bind_cache_nop},
    {ZYDIS_MNEMONIC_WBINVD, bind_cache_nop},
    {ZYDIS_MNEMONIC_HLT, bind_hlt},
    {ZYDIS_MNEMONIC_VMCALL, bind_hypercall},
    {ZYDIS_MNEMONIC_VMMCALL, bind_hypercall},
    {ZYDIS_MNEMONIC_XGETBV, bind_xgetbv},
    {ZYDIS_MNEMONIC_XSETBV, bind_xsetbv},
    {ZYDIS_MNEMONIC_UD0, bind_ud},
    {ZYDIS_MNEMONIC_UD1, bind_ud},
    {ZYDIS_MNEMONIC_UD2, bind_ud},
    {ZYDIS_MNEMONIC_RSM, bind_ud},
    {ZYDIS_MNEMONIC_INVALID, NULL},
};

const struct insn_family insn_family_system = {
    .name = "system",
    .bindings = system_bindings,
};
