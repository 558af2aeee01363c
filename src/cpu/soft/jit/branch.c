/* Near control transfer: direct jumps inside a page are linked, all others go through the jump cache. */
#include "cpu/soft/jit/loop.h"

#define ENTRY_SHIFT 5u
#define JUMP_OFFSET(member) (JIT_CONTEXT(jump) + (int32_t)offsetof(struct soft_jump, member))

static_assert(sizeof(struct soft_jump) == 1u << ENTRY_SHIFT, "the index below");

/* Where a direct branch leads, from the beginning of its page. */
static int64_t target_of(const struct jit_insn *i)
{
    return (int64_t)i->offset + i->z.length + (int64_t)i->in->imm;
}

static bool direct(const struct jit_insn *i)
{
    return i->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

static bool in_page(int64_t offset)
{
    return offset >= 0 && offset < (int64_t)PAGE_SIZE;
}

bool jit_branch_target(const struct jit_insn *i, unsigned *offset, bool *back)
{
    if ((i->class != JIT_JMP && i->class != JIT_JCC && i->class != JIT_CALL_NEAR) || !direct(i) ||
        !in_page(target_of(i)))
        return false;
    *offset = (unsigned)target_of(i);
    *back = *offset <= i->offset;
    return true;
}

/* ---- through the jump cache ---- */

uint32_t jit_look_up_jump(struct asm_code *a, unsigned reg)
{
    asm_ror(a, JIT_T1, reg, 64 - ENTRY_SHIFT);
    asm_op_reg(a, false, 0x31, reg, JIT_T1); /* xor */
    asm_alu_imm(a, false, ASM_AND, JIT_T1, (SOFT_JUMPS - 1) << ENTRY_SHIFT);
    asm_op_mem(a, true, 0x3b, reg, asm_indexed(JIT_CTX, JIT_T1, JUMP_OFFSET(rip))); /* cmp */
    return asm_jcc(a, ASM_CC_NE, 0);
}

void jit_jump_to_found(struct asm_code *a)
{
    asm_alu_imm(a, true, ASM_AND, JIT_T0, -(int32_t)PAGE_SIZE);
    asm_store(a, JIT_FIELD(code_page), JIT_T0);
    asm_jmp_mem(a, asm_indexed(JIT_CTX, JIT_T1, JUMP_OFFSET(code)));
}

static void load_rip(struct jit_translation *t, unsigned reg, int64_t offset)
{
    asm_load(&t->a, reg, JIT_FIELD(code_page));
    asm_lea(&t->a, reg, asm_base(reg, (int32_t)offset));
}

static void compare_attention(struct jit_translation *t)
{
    asm_op_mem(&t->a, false, 0x83, ASM_CMP, JIT_FIELD(attention));
    asm_byte(&t->a, 0);
}

/* A direct jump that leaves the page: the branch itself is done, so the way out is at its target. */
static void leave_page(struct jit_translation *t, int64_t to)
{
    jit_flags_save(t);
    load_rip(t, JIT_T0, to);
    compare_attention(t);
    jit_to_thunk_if(t, ASM_CC_NE, JIT_EXIT_TO);
    asm_patch(&t->a, jit_look_up_jump(&t->a, JIT_T0), t->jit->thunk[JIT_EXIT_TO]);
    jit_jump_to_found(&t->a);
}

/* T0: where an indirect jump leads. The interpreter does what is not known, as it may have to raise. */
static void jump_indirect(struct jit_translation *t)
{
    jit_cold_call(t, jit_look_up_jump(&t->a, JIT_T0));
    jit_jump_to_found(&t->a);
}

/* ---- linked ---- */

void jit_new_link(struct jit_translation *t, int64_t to, uint32_t site)
{
    if (t->link_count == JIT_LINKS) {
        t->failed = true;
        return;
    }
    t->work->link[t->link_count++] =
        (struct jit_link){.site = site, .to = (uint16_t)to, .flags = t->flags};
}

static void link_or_close(struct jit_translation *t, int64_t to, uint32_t site)
{
    if (jit_loop_closes(t, to))
        jit_loop_close(t, site);
    else
        jit_new_link(t, to, site);
}

/* The displacement is changed while others execute it: it must not cross a cache line. */
static void jump_linked(struct jit_translation *t, int64_t to)
{
    if (t->flags == 0)
        jit_flags_load(t);
    asm_align(&t->a, 4, 3);
    link_or_close(t, to, asm_jmp(&t->a, 0));
}

static void go_to(struct jit_translation *t, int64_t to)
{
    if (in_page(to))
        jump_linked(t, to);
    else
        leave_page(t, to);
}

void jit_go_on(struct jit_translation *t, int64_t offset)
{
    go_to(t, offset);
}

/* ---- JMP, Jcc ---- */

/* The operand of an indirect branch into `reg`. */
static void load_target(struct jit_translation *t, unsigned reg)
{
    const ZydisDecodedOperand *op = &t->i->operand[0];
    unsigned cold;
    struct asm_mem m;

    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        unsigned gpr = (unsigned)insn_gpr(op->reg.value);

        if (jit_in_memory(gpr))
            asm_load(&t->a, reg, jit_gpr(gpr));
        else
            asm_mov(&t->a, reg, jit_host(gpr));
        return;
    }
    t->needs_t0 = false;
    m = jit_look_up(t, op, false, &cold);
    asm_load(&t->a, reg, m);
}

void jit_jmp(struct jit_translation *t)
{
    if (direct(t->i)) {
        if (!t->i->goes_on)
            go_to(t, target_of(t->i));
        return;
    }
    jit_flags_save(t);
    jit_poll(t);
    load_target(t, JIT_T0);
    jump_indirect(t);
}

/* The way that is not the translation's own comes first, as a conditional jump. */
void jit_jcc(struct jit_translation *t)
{
    int64_t next = (int64_t)t->i->offset + t->i->z.length, taken = target_of(t->i);
    unsigned condition = (t->i->z.opcode & 15u) ^ (t->i->inverted ? 1u : 0);
    int64_t away = t->i->inverted ? next : taken;
    uint32_t site;
    uint8_t flags;

    jit_flags_load(t);
    flags = t->flags;
    asm_align(&t->a, 4, 2);
    site = asm_jcc(&t->a, condition, 0);
    if (in_page(away))
        link_or_close(t, away, site);
    if (t->i->goes_on) {
        if (!in_page(away))
            t->failed = true;
        return;
    }
    go_to(t, next);
    t->flags = flags;
    if (in_page(away))
        return;
    asm_patch(&t->a, site, t->a.at);
    leave_page(t, away);
}

/* ---- CALL, RET ---- */

static void push_return_address(struct jit_translation *t)
{
    unsigned cold;
    struct asm_mem slot = jit_look_up_base(t, JIT_RSP, -8, 8, true, &cold);

    load_rip(t, JIT_T0, (int64_t)t->i->offset + t->i->z.length);
    asm_store(&t->a, slot, JIT_T0);
    asm_lea(&t->a, JIT_RSP, asm_base(JIT_RSP, -8));
}

/* T2: where to. Nothing is changed before both the target and the stack are known to be good. */
static void call_through_cache(struct jit_translation *t)
{
    struct asm_code *a = &t->a;

    jit_cold_call(t, jit_look_up_jump(&t->a, JIT_T2));
    asm_store(a, JIT_FIELD(jit_target), JIT_T2);
    asm_mov(a, JIT_T2, JIT_T1);
    push_return_address(t);
    asm_load(a, JIT_T0, JIT_FIELD(jit_target));
    asm_mov(a, JIT_T1, JIT_T2);
    jit_jump_to_found(&t->a);
}

void jit_call_near(struct jit_translation *t)
{
    if (direct(t->i) && in_page(target_of(t->i))) {
        push_return_address(t);
        jump_linked(t, target_of(t->i));
        return;
    }
    jit_flags_save(t);
    jit_poll(t);
    if (direct(t->i))
        load_rip(t, JIT_T2, target_of(t->i));
    else
        load_target(t, JIT_T2);
    t->window.open = false;
    t->holds_t2 = true;
    call_through_cache(t);
}

void jit_ret(struct jit_translation *t)
{
    unsigned cold;
    struct asm_mem slot;

    jit_flags_save(t);
    jit_poll(t);
    slot = jit_look_up_base(t, JIT_RSP, 0, 8, false, &cold);
    asm_load(&t->a, JIT_T0, slot);
    jit_cold_call(t, jit_look_up_jump(&t->a, JIT_T0));
    asm_lea(&t->a, JIT_RSP, asm_base(JIT_RSP, 8 + (int32_t)t->i->in->imm));
    jit_jump_to_found(&t->a);
}
