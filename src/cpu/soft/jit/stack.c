/* PUSH, POP and LEAVE with 64-bit operands. */
#include "cpu/soft/jit/translate.h"

static void move_rsp(struct jit_translation *t, int32_t by)
{
    asm_lea(&t->a, JIT_RSP, asm_base(JIT_RSP, by)); /* LEA: the flags stay */
}

static void push_register(struct jit_translation *t, struct asm_mem slot, unsigned gpr)
{
    if (jit_in_memory(gpr)) {
        asm_load(&t->a, JIT_T0, jit_gpr(gpr));
        asm_store(&t->a, slot, JIT_T0);
        return;
    }
    asm_store(&t->a, slot, jit_host(gpr));
}

void jit_push(struct jit_translation *t)
{
    const ZydisDecodedOperand *op = &t->i->operand[0];
    unsigned cold, memory_cold = 0;
    struct asm_mem slot;

    t->needs_t0 = false;
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        asm_load(&t->a, JIT_T2, jit_look_up(t, op, false, &memory_cold));
        t->window.open = false;
        t->holds_t2 = true;
    }
    slot = jit_look_up_base(t, JIT_RSP, -8, 8, true, &cold);
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        asm_store(&t->a, slot, JIT_T2);
    } else if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        push_register(t, slot, (unsigned)insn_gpr(op->reg.value));
    } else {
        asm_op_mem(&t->a, true, 0xc7, 0, slot);
        asm_u32(&t->a, (uint32_t)t->i->in->imm);
    }
    move_rsp(t, -8);
    jit_cold_resume(t, cold);
    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
        jit_cold_resume(t, memory_cold);
}

void jit_pop(struct jit_translation *t)
{
    unsigned gpr = (unsigned)insn_gpr(t->i->operand[0].reg.value), cold;
    struct asm_mem slot = jit_look_up_base(t, JIT_RSP, 0, 8, false, &cold);

    if (jit_in_memory(gpr)) {
        asm_load(&t->a, JIT_T0, slot);
        asm_store(&t->a, jit_gpr(gpr), JIT_T0);
        move_rsp(t, 8);
    } else {
        asm_load(&t->a, jit_host(gpr), slot);
        if (gpr != GPR_RSP)
            move_rsp(t, 8);
    }
    jit_cold_resume(t, cold);
}

void jit_leave_frame(struct jit_translation *t)
{
    unsigned cold;
    struct asm_mem slot = jit_look_up_base(t, GPR_RBP, 0, 8, false, &cold);

    asm_load(&t->a, JIT_T0, slot);
    asm_lea(&t->a, JIT_RSP, asm_base(GPR_RBP, 8));
    asm_mov(&t->a, GPR_RBP, JIT_T0);
    jit_cold_resume(t, cold);
}
