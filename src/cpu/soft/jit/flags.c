#include "cpu/soft/jit/translate.h"

void jit_emit_flags_save(struct asm_code *a)
{
    static const uint8_t code[] = {
        0x9f,             /* lahf */
        0x0f, 0x90, 0xc0, /* seto al */
        0x66,             /* operand size of the store below */
    };

    asm_mov(a, JIT_T0, GPR_RAX);
    asm_bytes(a, code, sizeof(code));
    asm_op_mem(a, false, 0x89, GPR_RAX, JIT_FIELD(jit_flags)); /* mov gs:jit_flags, ax */
    asm_mov(a, GPR_RAX, JIT_T0);
}

void jit_emit_flags_load(struct asm_code *a)
{
    static const uint8_t code[] = {
        0x04, 0x7f, /* add al, 0x7f: overflows if OF was set */
        0x9e,       /* sahf */
    };

    asm_mov(a, JIT_T0, GPR_RAX);
    asm_op_mem(a, false, 0x1b7, GPR_RAX, JIT_FIELD(jit_flags)); /* movzx eax, word */
    asm_bytes(a, code, sizeof(code));
    asm_mov(a, GPR_RAX, JIT_T0);
}

void jit_flags_save(struct jit_translation *t)
{
    if (!(t->flags & JIT_SAVED))
        jit_emit_flags_save(&t->a);
    t->flags = JIT_SAVED;
}

void jit_flags_load(struct jit_translation *t)
{
    if (t->flags & JIT_LIVE)
        return;
    jit_emit_flags_load(&t->a);
    t->flags |= JIT_LIVE;
}
