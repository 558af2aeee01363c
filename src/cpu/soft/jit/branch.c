/* Near control transfer: direct jumps inside a page are linked, all others go through the jump cache. */
#include "cpu/soft/jit/loop.h"

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

static void to_thunk(struct jit_translation *t, enum soft_jit_thunk thunk)
{
    asm_jmp(&t->a, t->jit->thunk[thunk]);
}

/* A direct jump that leaves the page. */
static void leave_page(struct jit_translation *t, int64_t to)
{
    bool live = t->flags == JIT_LIVE;

    if (!live)
        jit_flags_save(t);
    asm_mov_imm(&t->a, JIT_T0, (uint64_t)to);
    to_thunk(t, live ? JIT_GO_NEAR_LIVE : JIT_GO_NEAR);
}

/* ---- linked ---- */

void jit_new_link(struct jit_translation *t, int64_t to, uint32_t site)
{
    if (t->link_count == JIT_LINKS) {
        t->failed = true;
        return;
    }
    t->work->link[t->link_count++] =
        (struct jit_link){.site = site, .to = (uint16_t)to & 0xfffu, .flags = t->flags & 3u};
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
    load_target(t, JIT_T0);
    asm_mov_imm(&t->a, JIT_T2, t->i->offset);
    to_thunk(t, JIT_GO);
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

    asm_load(&t->a, JIT_T0, JIT_FIELD(code_page));
    asm_lea(&t->a, JIT_T0, asm_base(JIT_T0, t->i->offset + t->i->z.length));
    asm_store(&t->a, slot, JIT_T0);
    asm_lea(&t->a, JIT_RSP, asm_base(JIT_RSP, -8));
}

/* Nothing is changed before both the target and the stack are known to be good. */
static void call_through_cache(struct jit_translation *t)
{
    uint32_t length = t->i->z.length, end = t->i->offset + length;
    bool near = direct(t->i);
    struct asm_mem slot;
    unsigned cold;

    if (!near) {
        load_target(t, JIT_T2);
        t->window.open = false;
        t->holds_t2 = true;
    }
    slot = jit_look_up_base(t, JIT_RSP, -8, 8, true, &cold);
    if (near) {
        asm_mov_imm(&t->a, JIT_T0, (uint64_t)target_of(t->i));
        asm_lea(&t->a, JIT_T2, slot);
    } else {
        asm_mov(&t->a, JIT_T0, JIT_T2);
        asm_lea(&t->a, JIT_T2, slot);
    }
    asm_mov_imm(&t->a, JIT_T1, end | length << 16);
    to_thunk(t, near ? JIT_GO_CALL_NEAR : JIT_GO_CALL_FAR);
}

void jit_call_near(struct jit_translation *t)
{
    if (direct(t->i) && in_page(target_of(t->i))) {
        push_return_address(t);
        jump_linked(t, target_of(t->i));
        return;
    }
    jit_flags_save(t);
    call_through_cache(t);
}

void jit_ret(struct jit_translation *t)
{
    unsigned cold;
    struct asm_mem slot;

    jit_flags_save(t);
    if (t->i->in->imm) { /* the rare form is the interpreter's */
        jit_cold_call(t, asm_jmp(&t->a, 0));
        return;
    }
    slot = jit_look_up_base(t, JIT_RSP, 0, 8, false, &cold);
    asm_load(&t->a, JIT_T0, slot);
    asm_mov_imm(&t->a, JIT_T2, t->i->offset);
    to_thunk(t, JIT_GO_RET);
}
