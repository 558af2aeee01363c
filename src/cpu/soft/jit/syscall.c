/*
 * SYSCALL and SYSRET between 64-bit programs and a 64-bit kernel: thunks that do what exec_transfer.c does. They change the
 * privilege, so that code goes on with another context, and through its jump cache. Whatever is unusual (faults,
 * flags that stop translated code, a context that must be made fit for use first) is left to the interpreter before
 * anything is changed. APM vol. 3 SYSCALL, SYSRET.
 */
#include "cpu/soft/jit/translate.h"
#include "cpu/soft/system.h"

#define MMU(member) ((int32_t)offsetof(struct soft_mmu, member))
#define CONTEXT(member) ((int32_t)offsetof(struct soft_context, member))

static_assert(SOFT_MMU_KERNEL == 0 && offsetof(struct soft_mmu, context) == 0, "mmu is the context's address");

/* A thunk being made: jumps to the interpreter's way. */
struct slow {
    struct asm_code *a;
    uint32_t to;
};

static void slow_if(const struct slow *slow, unsigned condition)
{
    asm_jcc(slow->a, condition, slow->to);
}

static void test_field(struct asm_code *a, struct asm_mem m, uint32_t bits)
{
    asm_op_mem(a, false, 0xf7, 0, m);
    asm_u32(a, bits);
}

static void test_reg(struct asm_code *a, unsigned reg, uint32_t bits)
{
    asm_op_reg(a, false, 0xf7, 0, reg);
    asm_u32(a, bits);
}

static void store_word(struct asm_code *a, struct asm_mem m, unsigned reg)
{
    asm_byte(a, 0x66);
    asm_op_mem(a, false, 0x89, reg, m);
}

/* The call of the thunk pushed it: T1. */
static void pop_site(struct asm_code *a)
{
    asm_byte(a, 0x41);
    asm_byte(a, 0x58u | (JIT_T1 & 7u));
}

/* Bits of STAR from byte `n` on. */
static struct asm_mem star_at(unsigned n)
{
    return asm_gs(offsetof(struct soft_vcpu, s.msr.star) + n);
}

static void store_zero(struct asm_code *a, struct asm_mem m)
{
    asm_op_mem(a, true, 0xc7, 0, m);
    asm_u32(a, 0);
}

/* T0 has CS's selector. SS's is the next above or below it. */
static void flat_segments(struct asm_code *a, int32_t to_ss, uint32_t dpl)
{
    store_word(a, JIT_FIELD(s.seg[SEG_CS].selector), JIT_T0);
    store_word(a, JIT_FIELD(x87.fcs), JIT_T0);
    asm_alu_imm(a, false, ASM_ADD, JIT_T0, to_ss);
    store_word(a, JIT_FIELD(s.seg[SEG_SS].selector), JIT_T0);
    store_zero(a, JIT_FIELD(s.seg[SEG_CS].base));
    store_zero(a, JIT_FIELD(s.seg[SEG_SS].base));
    asm_store_imm32(a, JIT_FIELD(s.seg[SEG_CS].limit), UINT32_MAX);
    asm_store_imm32(a, JIT_FIELD(s.seg[SEG_SS].limit), UINT32_MAX);
    asm_store_imm32(a, JIT_FIELD(s.seg[SEG_CS].attr), SOFT_FLAT_CODE64 | dpl);
    asm_store_imm32(a, JIT_FIELD(s.seg[SEG_SS].attr), SOFT_FLAT_DATA | dpl);
}

/* T2: RFLAGS, whose arithmetic flags become the saved ones. T0. */
static void commit_flags(struct asm_code *a)
{
    asm_store(a, JIT_FIELD(s.rflags), JIT_T2);
    asm_op_reg(a, false, 0x89, JIT_T2, JIT_T0); /* mov */
    asm_op_reg(a, false, 0xc1, 5, JIT_T0);      /* shr */
    asm_byte(a, 11);
    asm_alu_imm(a, false, ASM_AND, JIT_T0, 1);
    asm_alu_imm(a, false, ASM_AND, JIT_T2, 0xff);
    asm_op_reg(a, false, 0xc1, 4, JIT_T2); /* shl */
    asm_byte(a, 8);
    asm_op_reg(a, false, 0x09, JIT_T2, JIT_T0); /* or */
    store_word(a, JIT_FIELD(jit_flags), JIT_T0);
}

/* Goes on at the RIP in T0, in the context that is now in use. */
static void go_on(struct soft_jit *jit, struct asm_code *a)
{
    asm_jmp(a, jit->thunk[JIT_GO_TO]);
}

/* Slow unless the context at [reg] is fit for use in the present mode but for CPL. T0 is the MMU. */
static void check_context(const struct slow *slow, unsigned reg, uint32_t mode)
{
    struct asm_code *a = slow->a;

    asm_load(a, JIT_T0, asm_base(JIT_T0, MMU(jump_generation)));
    asm_op_mem(a, true, 0x3b, JIT_T0, asm_base(reg, CONTEXT(jump_generation))); /* cmp */
    slow_if(slow, ASM_CC_NE);
    asm_op_mem(a, false, 0x8b, JIT_T0, JIT_FIELD(mode)); /* mov */
    asm_alu_imm(a, false, ASM_AND, JIT_T0, ~(int32_t)SOFT_MODE_CPL3);
    asm_alu_imm(a, false, ASM_OR, JIT_T0, (int32_t)mode);
    asm_op_mem(a, false, 0x3b, JIT_T0, asm_base(reg, CONTEXT(mode))); /* cmp */
    slow_if(slow, ASM_CC_NE);
}

/* T2: the context, made in the mode that comes. T0. */
static void enter_level(struct asm_code *a, unsigned cpl, unsigned index)
{
    asm_store(a, JIT_FIELD(context), JIT_T2);
    asm_lea(a, JIT_CTX, asm_base(JIT_T2, SOFT_CONTEXT_STACK));
    asm_op_mem(a, false, 0x8b, JIT_T0, asm_base(JIT_T2, CONTEXT(mode))); /* mov */
    asm_op_mem(a, false, 0x89, JIT_T0, JIT_FIELD(mode));
    asm_store_imm8(a, JIT_FIELD(cpl), cpl);
    asm_store_imm8(a, JIT_FIELD(mmu_index), index);
}

/* ---- SYSCALL ---- */

/* T0: RFLAGS; T2: what becomes of it. Slow when that needs another context than the kernel's usual one. */
static void mask_flags(const struct slow *slow)
{
    struct asm_code *a = slow->a;

    jit_emit_flags_compose(a, JIT_T2);
    asm_op_mem(a, false, 0x8b, JIT_T2, JIT_FIELD(s.rflags)); /* mov */
    asm_alu_imm(a, false, ASM_AND, JIT_T2, ~(int32_t)RFLAGS_ARITH);
    asm_op_reg(a, false, 0x09, JIT_T2, JIT_T0);                  /* or */
    asm_op_mem(a, false, 0x8b, JIT_T2, JIT_FIELD(s.msr.sfmask)); /* mov */
    asm_op_reg(a, false, 0xf7, 2, JIT_T2);                       /* not */
    asm_op_reg(a, false, 0x21, JIT_T0, JIT_T2);                  /* and */
    asm_alu_imm(a, false, ASM_OR, JIT_T2, RFLAGS_ONE);
    test_reg(a, JIT_T2, RFLAGS_AC);
    slow_if(slow, ASM_CC_NE);
}

/* T1: struct jit_site. */
static void return_address(struct asm_code *a)
{
    asm_op_mem(a, false, 0x1b7, GPR_RCX, asm_base(JIT_T1, (int32_t)offsetof(struct jit_site, offset)));
    asm_op_mem(a, true, 0x03, GPR_RCX, JIT_FIELD(code_page)); /* add */
    asm_lea(a, GPR_RCX, asm_base(GPR_RCX, JIT_SYSCALL_LENGTH));
}

static void thunk_syscall(struct soft_jit *jit, struct asm_code *a, uint32_t call)
{
    const struct slow slow = {a, call};

    jit->thunk[JIT_SYSCALL_64] = a->at;
    pop_site(a);
    test_field(a, JIT_FIELD(s.efer), EFER_SCE);
    slow_if(&slow, ASM_CC_E);
    asm_load(a, JIT_T0, JIT_FIELD(mmu));
    asm_mov(a, JIT_T2, JIT_T0);
    check_context(&slow, JIT_T2, 0);
    mask_flags(&slow);

    asm_store(a, jit_gpr(GPR_R11), JIT_T0);
    return_address(a);
    commit_flags(a);
    asm_op_mem(a, false, 0x8b, JIT_T0, star_at(4)); /* mov */
    asm_alu_imm(a, false, ASM_AND, JIT_T0, 0xfffc);
    flat_segments(a, 8, 0);
    asm_load(a, JIT_T2, JIT_FIELD(mmu));
    enter_level(a, 0, SOFT_MMU_KERNEL);
    asm_load(a, JIT_T0, JIT_FIELD(s.msr.lstar));
    go_on(jit, a);
}

void jit_syscall(struct jit_translation *t)
{
    jit_poll(t);
    jit_end_by_thunk(t, JIT_SYSCALL_64);
}

/* ---- SYSRET ---- */

/* T0: the MMU; T2: the context of the current address space. */
static void user_context(const struct slow *slow)
{
    struct asm_code *a = slow->a;
    struct asm_mem asid = {JIT_T0, JIT_T2, 3, false, MMU(user_asid)};

    asm_load(a, JIT_T0, JIT_FIELD(mmu));
    asm_op_mem(a, false, 0x8b, JIT_T2, asm_base(JIT_T0, MMU(user))); /* mov */
    asm_load(a, JIT_T2, asid);
    asm_op_mem(a, true, 0x3b, JIT_T2, asm_base(JIT_T0, MMU(asid))); /* cmp */
    slow_if(slow, ASM_CC_NE);
    asm_op_mem(a, false, 0x8b, JIT_T2, asm_base(JIT_T0, MMU(user)));
    asm_op_reg(a, true, 0x69, JIT_T2, JIT_T2); /* imul */
    asm_u32(a, sizeof(struct soft_context));
    asm_lea(a, JIT_T2, (struct asm_mem){JIT_T2, JIT_T0, 0, false, MMU(context[SOFT_MMU_USER])});
}

/* Slow when something would have to be looked at between SYSRET and the program's first instruction, or when the
 * program has alignment checks. */
static void check_program(const struct slow *slow)
{
    struct asm_code *a = slow->a;

    asm_mov(a, JIT_T0, GPR_RCX);
    asm_op_reg(a, true, 0xc1, 4, JIT_T0); /* shl */
    asm_byte(a, 16);
    asm_op_reg(a, true, 0xc1, 7, JIT_T0); /* sar */
    asm_byte(a, 16);
    asm_op_reg(a, true, 0x39, GPR_RCX, JIT_T0); /* cmp */
    slow_if(slow, ASM_CC_NE);
    test_field(a, jit_gpr(GPR_R11), RFLAGS_TF | RFLAGS_AC);
    slow_if(slow, ASM_CC_NE);
    asm_op_mem(a, false, 0x1b6, JIT_T0, JIT_FIELD(interrupt_held)); /* movzx */
    asm_op_mem(a, false, 0x0b, JIT_T0, JIT_FIELD(attention));       /* or */
    slow_if(slow, ASM_CC_NE);
}

static void thunk_sysret(struct soft_jit *jit, struct asm_code *a, uint32_t call)
{
    const struct slow slow = {a, call};

    jit->thunk[JIT_SYSRET_64] = a->at;
    pop_site(a);
    test_field(a, JIT_FIELD(s.efer), EFER_SCE);
    slow_if(&slow, ASM_CC_E);
    asm_op_mem(a, false, 0x80, ASM_CMP, JIT_FIELD(cpl));
    asm_byte(a, 0);
    slow_if(&slow, ASM_CC_NE);
    check_program(&slow);
    user_context(&slow);
    check_context(&slow, JIT_T2, SOFT_MODE_CPL3);

    enter_level(a, 3, SOFT_MMU_USER);
    asm_load(a, JIT_T2, jit_gpr(GPR_R11));
    asm_alu_imm(a, false, ASM_AND, JIT_T2, SOFT_SYSRET_FLAGS);
    asm_alu_imm(a, false, ASM_OR, JIT_T2, RFLAGS_ONE);
    commit_flags(a);
    asm_op_mem(a, false, 0x1b7, JIT_T0, star_at(6)); /* movzx */
    asm_alu_imm(a, false, ASM_ADD, JIT_T0, 16);
    asm_alu_imm(a, false, ASM_OR, JIT_T0, 3);
    flat_segments(a, -8, SOFT_FLAT_USER);
    asm_mov(a, JIT_T0, GPR_RCX);
    go_on(jit, a);
}

void jit_sysret(struct jit_translation *t)
{
    jit_end_by_thunk(t, JIT_SYSRET_64);
}

void jit_make_syscall_thunks(struct soft_jit *jit, struct asm_code *a, uint32_t call)
{
    thunk_syscall(jit, a, call);
    thunk_sysret(jit, a, call);
}
