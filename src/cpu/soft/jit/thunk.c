/* The ways into and out of translated code, made once. jit.h lists them. */
#include "cpu/soft/jit/thunk.h"

#include "cpu/soft/jit/translate.h"

/* Guest registers that are in the host's while translated code runs. */
static const uint8_t in_registers[] = {GPR_RAX, GPR_RCX, GPR_RDX, GPR_RBX, GPR_RSP, GPR_RBP,
                                       GPR_RSI, GPR_RDI, GPR_R12, GPR_R13, GPR_R14, GPR_R15};
/* What a C function may expect to find again (System V ABI). */
static const uint8_t callee_saved[] = {GPR_RBX, GPR_RBP, GPR_R12, GPR_R13, GPR_R14, GPR_R15};

static void push(struct asm_code *a, unsigned reg)
{
    if (reg >= 8)
        asm_byte(a, 0x41);
    asm_byte(a, 0x50u | (reg & 7u));
}

static void pop(struct asm_code *a, unsigned reg)
{
    if (reg >= 8)
        asm_byte(a, 0x41);
    asm_byte(a, 0x58u | (reg & 7u));
}

static void load_guest(struct asm_code *a)
{
    for (unsigned i = 0; i < sizeof(in_registers); i++)
        asm_load(a, jit_host(in_registers[i]), jit_gpr(in_registers[i]));
    asm_load(a, JIT_CTX, JIT_FIELD(context));
    asm_lea(a, JIT_CTX, asm_base(JIT_CTX, SOFT_CONTEXT_STACK));
}

/* The host's stack from here on. */
static void store_guest(struct asm_code *a)
{
    for (unsigned i = 0; i < sizeof(in_registers); i++)
        asm_store(a, jit_gpr(in_registers[i]), jit_host(in_registers[i]));
    asm_load(a, GPR_RSP, JIT_FIELD(host_rsp));
}

static void thunk_enter(struct soft_jit *jit, struct asm_code *a)
{
    jit->thunk[JIT_ENTER] = a->at;
    for (unsigned i = 0; i < sizeof(callee_saved); i++)
        push(a, callee_saved[i]);
    asm_lea(a, GPR_RSP, asm_base(GPR_RSP, -8)); /* aligned for calls */
    asm_store(a, JIT_FIELD(host_rsp), GPR_RSP);
    asm_store(a, JIT_FIELD(jit_target), GPR_RSI);
    load_guest(a);
    asm_jmp_mem(a, JIT_FIELD(jit_target));
}

/* RAX and RDX: struct jit_exit. Returns the offset of the way out for those who have one. */
static uint32_t thunk_leave(struct soft_jit *jit, struct asm_code *a)
{
    uint32_t answered;

    jit->thunk[JIT_LEAVE] = a->at;
    asm_mov_imm(a, GPR_RDX, JIT_LEAVE);
    answered = a->at;
    asm_lea(a, GPR_RSP, asm_base(GPR_RSP, 8));
    for (unsigned i = sizeof(callee_saved); i-- > 0;)
        pop(a, callee_saved[i]);
    asm_byte(a, 0xc3);
    return answered;
}

static void thunk_resume(struct asm_code *a)
{
    jit_emit_flags_load(a);
    load_guest(a);
    asm_load(a, JIT_T2, JIT_FIELD(jit_window));
    asm_jmp_mem(a, JIT_FIELD(jit_target));
}

/* T1: what follows the call. Returns the offset from which on it is there. */
static uint32_t thunk_call(struct soft_jit *jit, struct asm_code *a, uint64_t function)
{
    uint32_t popped, after;

    jit->thunk[JIT_CALL_LIVE] = a->at;
    jit_emit_flags_save(a);
    jit->thunk[JIT_CALL] = a->at;
    pop(a, JIT_T1);
    popped = a->at;
    asm_store(a, JIT_FIELD(jit_window), JIT_T2);
    store_guest(a);
    asm_load(a, GPR_RDI, JIT_FIELD(self));
    asm_mov(a, GPR_RSI, JIT_T1);
    asm_mov_imm(a, GPR_RAX, function);
    asm_op_reg(a, false, 0xff, 2, GPR_RAX);      /* call */
    asm_op_reg(a, true, 0x85, GPR_RAX, GPR_RAX); /* test */
    after = asm_jcc(a, ASM_CC_E, 0);
    asm_store(a, JIT_FIELD(jit_target), GPR_RAX);
    thunk_resume(a);
    asm_patch(a, after, jit->thunk[JIT_LEAVE]);
    return popped;
}

/* Leaves with the address behind the call. */
static void thunk_exit_site(struct soft_jit *jit, struct asm_code *a, enum soft_jit_thunk kind,
                            enum soft_jit_thunk live, uint32_t answered)
{
    jit->thunk[live] = a->at;
    jit_emit_flags_save(a);
    jit->thunk[kind] = a->at;
    pop(a, JIT_T1);
    store_guest(a);
    asm_mov(a, GPR_RAX, JIT_T1);
    asm_mov_imm(a, GPR_RDX, kind);
    asm_jmp(a, answered);
}

static void thunk_exit_rip(struct soft_jit *jit, struct asm_code *a, uint32_t answered)
{
    jit->thunk[JIT_EXIT_TO] = a->at;
    asm_store(a, JIT_FIELD(s.rip), JIT_T0);
    store_guest(a);
    asm_jmp(a, jit->thunk[JIT_LEAVE]);

    jit->thunk[JIT_EXIT_AT_LIVE] = a->at;
    jit_emit_flags_save(a);
    jit->thunk[JIT_EXIT_AT] = a->at;
    pop(a, JIT_T0);
    asm_op_mem(a, false, 0x1b7, JIT_T0, asm_base(JIT_T0, 0)); /* movzx, word */
    asm_op_mem(a, true, 0x03, JIT_T0, JIT_FIELD(code_page));  /* add */
    asm_jmp(a, jit->thunk[JIT_EXIT_TO]);

    jit->thunk[JIT_EXIT_JUMP] = a->at;
    asm_mov(a, JIT_T0, JIT_T2);
    asm_jmp(a, jit->thunk[JIT_EXIT_TO]);

    jit->thunk[JIT_EXIT_GP] = a->at;
    asm_store(a, JIT_FIELD(s.rip), JIT_T0);
    store_guest(a);
    asm_mov_imm(a, GPR_RDX, JIT_EXIT_GP);
    asm_jmp(a, answered);
}

/* ---- through the jump cache ---- */

#define WAY(k, member)                                                                             \
    asm_indexed(JIT_CTX, JIT_T1,                                                                   \
                JIT_CONTEXT(jump) + (int32_t)((k) * sizeof(struct soft_jump) +                     \
                                              offsetof(struct soft_jump, member)))

enum jump_kind { KIND_JUMP, KIND_RET, KIND_CALL };

static void shift(struct asm_code *a, unsigned opcode, unsigned reg, unsigned count)
{
    asm_op_reg(a, true, 0xc1, opcode, reg);
    asm_byte(a, count);
}

/* T1: offset of the set of the RIP in T0 (soft_jump_offset). found[]: the jumps taken when a way has it. */
static void find_way(struct asm_code *a, uint32_t found[SOFT_JUMP_WAYS])
{
    asm_mov(a, JIT_T1, JIT_T0);
    shift(a, 5, JIT_T1, SOFT_JUMP_HASH_SHIFT);       /* shr */
    asm_op_reg(a, true, 0x31, JIT_T0, JIT_T1);       /* xor */
    asm_alu_imm(a, false, ASM_AND, JIT_T1, SOFT_JUMP_SETS - 1);
    shift(a, 4, JIT_T1, SOFT_JUMP_SET_SHIFT);        /* shl */
    for (unsigned k = 0; k < SOFT_JUMP_WAYS; k++) {
        asm_op_mem(a, true, 0x3b, JIT_T0, WAY(k, rip)); /* cmp */
        found[k] = asm_jcc(a, ASM_CC_E, 0);
    }
}

static void add_page(struct asm_code *a)
{
    asm_op_mem(a, true, 0x03, JIT_T0, JIT_FIELD(code_page)); /* add */
}

/* What a CALL does besides. T1: the end of the instruction, as in JIT_GO_CALL_NEAR. */
static void push_return_address(struct asm_code *a)
{
    asm_op_reg(a, false, 0x1b7, JIT_T1, JIT_T1);             /* movzx, word */
    asm_op_mem(a, true, 0x03, JIT_T1, JIT_FIELD(code_page)); /* add */
    asm_store(a, asm_base(JIT_T2, 0), JIT_T1);
    asm_lea(a, JIT_RSP, asm_base(JIT_RSP, -8));
}

static void complete(struct asm_code *a, enum jump_kind kind)
{
    if (kind == KIND_CALL) {
        asm_store(a, JIT_FIELD(jit_window), JIT_T1);
        asm_load(a, JIT_T1, JIT_FIELD(jit_target));
        push_return_address(a);
        asm_load(a, JIT_T1, JIT_FIELD(jit_window));
    } else if (kind == KIND_RET) {
        asm_lea(a, JIT_RSP, asm_base(JIT_RSP, 8));
    }
}

/* Each way jumps by itself, so that the host's predictor can tell more of them apart. */
static void go_way(const struct soft_jit *jit, struct asm_code *a, unsigned k, enum jump_kind kind)
{
    asm_op_mem(a, false, 0x8b, JIT_T1, WAY(k, code));
    complete(a, kind);
    asm_op_mem(a, false, 0x83, ASM_CMP, JIT_FIELD(attention));
    asm_byte(a, 0);
    asm_jcc(a, ASM_CC_NE, jit->thunk[JIT_EXIT_TO]);
    asm_op_mem(a, true, 0x03, JIT_T1, JIT_FIELD(code_exec)); /* add */
    asm_mov(a, JIT_T2, JIT_T0);
    asm_alu_imm(a, true, ASM_AND, JIT_T0, -(int32_t)PAGE_SIZE);
    asm_store(a, JIT_FIELD(code_page), JIT_T0);
    asm_op_reg(a, false, 0xff, 4, JIT_T1); /* jmp */
}

/* Answers the jump taken when T0 is no canonical address; T1 is lost. */
static uint32_t check_canonical(struct asm_code *a)
{
    asm_mov(a, JIT_T1, JIT_T0);
    shift(a, 7, JIT_T1, 47); /* sar: 0 or -1 */
    asm_alu_imm(a, true, ASM_ADD, JIT_T1, 1);
    asm_alu_imm(a, true, ASM_CMP, JIT_T1, 1);
    return asm_jcc(a, ASM_CC_A, 0);
}

/* Whose way is not known, or which faults (SDM vol. 2: JMP, CALL, RET). */
static void miss_indirect(const struct soft_jit *jit, struct asm_code *a, enum jump_kind kind)
{
    uint32_t faults = check_canonical(a);

    if (kind == KIND_CALL) {
        asm_load(a, JIT_T1, JIT_FIELD(jit_target));
        push_return_address(a);
    } else {
        complete(a, kind);
    }
    asm_jmp(a, jit->thunk[JIT_EXIT_TO]);
    asm_patch(a, faults, a->at);
    if (kind == KIND_CALL) {
        asm_load(a, JIT_T1, JIT_FIELD(jit_target));
        asm_op_reg(a, false, 0x1b7, JIT_T2, JIT_T1); /* movzx, word */
        shift(a, 5, JIT_T1, 16);                     /* shr */
        asm_op_reg(a, true, 0x29, JIT_T1, JIT_T2);   /* sub */
    }
    asm_mov(a, JIT_T0, JIT_T2);
    add_page(a);
    asm_jmp(a, jit->thunk[JIT_EXIT_GP]);
}

/* As jit_emit_flags_save(), but T0 is in use. */
static void save_flags_beside(struct asm_code *a)
{
    static const uint8_t code[] = {0x9f, 0x0f, 0x90, 0xc0, 0x66}; /* lahf; seto al; operand size */

    asm_mov(a, JIT_T1, GPR_RAX);
    asm_bytes(a, code, sizeof(code));
    asm_op_mem(a, false, 0x89, GPR_RAX, JIT_FIELD(jit_flags));
    asm_mov(a, GPR_RAX, JIT_T1);
}

static void ways(const struct soft_jit *jit, struct asm_code *a, const uint32_t found[SOFT_JUMP_WAYS],
                 enum jump_kind kind)
{
    for (unsigned k = 0; k < SOFT_JUMP_WAYS; k++) {
        asm_patch(a, found[k], a->at);
        go_way(jit, a, k, kind);
    }
}

static void thunk_jump(struct soft_jit *jit, struct asm_code *a)
{
    uint32_t found[SOFT_JUMP_WAYS];

    jit->thunk[JIT_GO_NEAR_LIVE] = a->at;
    save_flags_beside(a);
    jit->thunk[JIT_GO_NEAR] = a->at;
    add_page(a);
    jit->thunk[JIT_GO_TO] = a->at;
    find_way(a, found);
    asm_jmp(a, jit->thunk[JIT_EXIT_TO]);
    ways(jit, a, found, KIND_JUMP);

    jit->thunk[JIT_GO] = a->at;
    find_way(a, found);
    miss_indirect(jit, a, KIND_JUMP);
    ways(jit, a, found, KIND_JUMP);

    jit->thunk[JIT_GO_RET] = a->at;
    find_way(a, found);
    miss_indirect(jit, a, KIND_RET);
    ways(jit, a, found, KIND_RET);

    jit->thunk[JIT_GO_CALL_NEAR] = a->at;
    add_page(a);
    jit->thunk[JIT_GO_CALL_FAR] = a->at;
    asm_store(a, JIT_FIELD(jit_target), JIT_T1);
    find_way(a, found);
    miss_indirect(jit, a, KIND_CALL);
    ways(jit, a, found, KIND_CALL);
}

void jit_make_thunks(struct soft_jit *jit, struct asm_code *a, uint64_t call)
{
    uint32_t answered, popped;

    thunk_enter(jit, a);
    answered = thunk_leave(jit, a);
    popped = thunk_call(jit, a, call);
    thunk_exit_site(jit, a, JIT_EXIT_LINK, JIT_EXIT_LINK_LIVE, answered);
    thunk_exit_site(jit, a, JIT_EXIT_STALE, JIT_EXIT_STALE_LIVE, answered);
    thunk_exit_rip(jit, a, answered);
    thunk_jump(jit, a);
    jit_make_syscall_thunks(jit, a, popped);
}
