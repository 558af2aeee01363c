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

static void thunk_exit_rip(struct soft_jit *jit, struct asm_code *a)
{
    jit->thunk[JIT_EXIT_TO] = a->at;
    asm_store(a, JIT_FIELD(s.rip), JIT_T0);
    jit->thunk[JIT_EXIT_HERE] = a->at;
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
    asm_load(a, JIT_T0, asm_indexed(JIT_CTX, JIT_T1, JIT_CONTEXT(jump) +
                                                         (int32_t)offsetof(struct soft_jump, rip)));
    asm_jmp(a, jit->thunk[JIT_EXIT_TO]);
}

void jit_make_thunks(struct soft_jit *jit, struct asm_code *a, uint64_t call)
{
    uint32_t answered, popped;

    thunk_enter(jit, a);
    answered = thunk_leave(jit, a);
    popped = thunk_call(jit, a, call);
    thunk_exit_site(jit, a, JIT_EXIT_LINK, JIT_EXIT_LINK_LIVE, answered);
    thunk_exit_site(jit, a, JIT_EXIT_STALE, JIT_EXIT_STALE_LIVE, answered);
    thunk_exit_rip(jit, a);
    jit_make_syscall_thunks(jit, a, popped);
}
