/* The ways into and out of translated code, made once. jit.h lists them. */
#include "cpu/soft/jit/thunk.h"

#include "cpu/soft/jit/translate.h"

/* Guest registers that are in the host's while translated code runs; RSP is the last to be loaded. */
static const uint8_t in_registers[] = {GPR_RAX, GPR_RCX, GPR_RDX, GPR_RBX, GPR_RBP, GPR_RSI,
                                       GPR_RDI, GPR_R12, GPR_R13, GPR_R14, GPR_R15, GPR_RSP};
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
        asm_load(a, in_registers[i], jit_gpr(in_registers[i]));
}

/* The host's stack from here on. */
static void store_guest(struct asm_code *a)
{
    for (unsigned i = 0; i < sizeof(in_registers); i++)
        asm_store(a, jit_gpr(in_registers[i]), in_registers[i]);
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
    asm_load(a, JIT_CTX, JIT_FIELD(context));
    load_guest(a);
    asm_jmp_mem(a, JIT_FIELD(jit_target));
}

/* RAX: the answer. Returns the offset of the way out for those who have one. */
static uint32_t thunk_leave(struct soft_jit *jit, struct asm_code *a)
{
    uint32_t answered;

    jit->thunk[JIT_LEAVE] = a->at;
    asm_mov_imm(a, GPR_RAX, 0);
    answered = a->at;
    asm_lea(a, GPR_RSP, asm_base(GPR_RSP, 8));
    for (unsigned i = sizeof(callee_saved); i-- > 0;)
        pop(a, callee_saved[i]);
    asm_byte(a, 0xc3);
    return answered;
}

static void thunk_resume(struct soft_jit *jit, struct asm_code *a)
{
    jit->thunk[JIT_RESUME] = a->at;
    asm_load(a, JIT_CTX, JIT_FIELD(context));
    jit_emit_flags_load(a);
    load_guest(a);
    asm_jmp_mem(a, JIT_FIELD(jit_target));
}

static void thunk_call(struct soft_jit *jit, struct asm_code *a, uint64_t function)
{
    jit->thunk[JIT_CALL] = a->at;
    store_guest(a);
    asm_load(a, GPR_RDI, JIT_FIELD(self));
    asm_mov(a, GPR_RSI, JIT_T0);
    asm_mov_imm(a, GPR_RAX, function);
    asm_op_reg(a, false, 0xff, 2, GPR_RAX);      /* call */
    asm_op_reg(a, true, 0x85, GPR_RAX, GPR_RAX); /* test */
    asm_jcc(a, ASM_CC_E, jit->thunk[JIT_LEAVE]);
    asm_store(a, JIT_FIELD(jit_target), GPR_RAX);
    asm_jmp(a, jit->thunk[JIT_RESUME]);
}

static void thunk_exits(struct soft_jit *jit, struct asm_code *a, uint32_t answered)
{
    jit->thunk[JIT_EXIT_LINK] = a->at;
    store_guest(a);
    asm_mov(a, GPR_RAX, JIT_T0);
    asm_jmp(a, answered);

    jit->thunk[JIT_EXIT_TO] = a->at;
    asm_store(a, JIT_FIELD(s.rip), JIT_T0);
    asm_mov_imm(a, JIT_T0, 0);
    asm_jmp(a, jit->thunk[JIT_EXIT_LINK]);

    jit->thunk[JIT_EXIT_AT] = a->at;
    asm_op_mem(a, true, 0x03, JIT_T0, JIT_FIELD(code_page)); /* add */
    asm_jmp(a, jit->thunk[JIT_EXIT_TO]);

    jit->thunk[JIT_EXIT_JUMP] = a->at;
    asm_load(a, JIT_T0, asm_indexed(JIT_CTX, JIT_T1, (int32_t)(offsetof(struct soft_context, jump) +
                                                               offsetof(struct soft_jump, rip))));
    asm_jmp(a, jit->thunk[JIT_EXIT_TO]);
}

void jit_make_thunks(struct soft_jit *jit, struct asm_code *a, uint64_t call)
{
    uint32_t answered;

    thunk_enter(jit, a);
    answered = thunk_leave(jit, a);
    thunk_resume(jit, a);
    thunk_call(jit, a, call);
    thunk_exits(jit, a, answered);
}
