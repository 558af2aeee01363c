/* One pass of a loop's second form: its instructions with no look-ups, and where their flags are (loop.h). */
#include "cpu/soft/jit/loop.h"

/* ---- flags ---- */

static bool is_step(const struct jit_insn *i)
{
    return i->z.mnemonic == ZYDIS_MNEMONIC_INC || i->z.mnemonic == ZYDIS_MNEMONIC_DEC;
}

static struct jit_recipe recipe_after(const struct jit_loop *loop, const struct jit_insn *i)
{
    struct jit_recipe r = jit_recipe_of(i, loop->host);
    int gpr = is_step(i) && i->operand[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
                      i->operand[0].size >= 32
                  ? insn_gpr(i->operand[0].reg.value)
                  : -1;

    if (gpr < 0)
        return r;
    return (struct jit_recipe){.kind = JIT_RECIPE_STEP, .i = i, .first = loop->host[gpr],
                               .second = JIT_NO_HOST, .uses = (uint16_t)(1u << loop->host[gpr])};
}

static bool overwrites(const struct jit_loop *loop, const struct jit_insn *i, uint16_t hosts)
{
    for (unsigned gpr = 0; gpr < 16; gpr++) {
        if (i->written >> gpr & 1u && hosts >> loop->host[gpr] & 1u)
            return true;
    }
    return false;
}

static void recipe_step(const struct jit_loop *loop, const struct jit_insn *i, struct jit_recipe *r)
{
    if (i->flags_written)
        *r = recipe_after(loop, i);
    else if (overwrites(loop, i, r->uses))
        r->kind = JIT_RECIPE_NONE;
}

struct jit_loop_flags jit_loop_flags_at_head(const struct jit_translation *t)
{
    struct jit_recipe r = {.kind = JIT_RECIPE_NONE};

    for (unsigned k = 0; k < t->insn_count; k++)
        recipe_step(&t->work->loop, &t->work->insn[k], &r);
    if (r.kind == JIT_RECIPE_STEP && t->work->loop.wilds > 0)
        r.kind = JIT_RECIPE_NONE; /* CF will be lost */
    return (struct jit_loop_flags){.saved = r.kind == JIT_RECIPE_NONE, .recipe = r};
}

void jit_loop_flags_live(struct jit_translation *t, struct jit_loop_flags *flags)
{
    if (flags->live)
        return;
    if (flags->saved)
        jit_emit_flags_load(&t->a);
    else
        jit_emit_recipe(&t->a, &flags->recipe);
    flags->live = true;
}

static void flags_saved(struct jit_translation *t, struct jit_loop_flags *flags)
{
    if (flags->saved)
        return;
    jit_loop_flags_live(t, flags);
    jit_emit_flags_save(&t->a);
    flags->saved = true;
}

/* The host's may be clobbered. */
static void flags_free(struct jit_translation *t, struct jit_loop_flags *flags)
{
    if (flags->recipe.kind == JIT_RECIPE_NONE || flags->recipe.kind == JIT_RECIPE_STEP)
        flags_saved(t, flags);
    flags->live = false;
}

/* Whether the pass may be left, or the flags read, before they are made anew after the current instruction. */
static bool flags_needed(const struct jit_translation *t)
{
    for (unsigned k = t->index + 1; k < t->insn_count; k++) {
        const struct jit_insn *i = &t->work->insn[k];

        if (i->flags_read || i->class == JIT_VECTOR || t->work->loop_access[k].wild >= 0)
            return true;
        if (i->flags_written)
            return false;
    }
    return true;
}

/* Before an instruction that spoils the recipe. */
static void flags_keep(struct jit_translation *t, struct jit_loop_flags *flags)
{
    const struct jit_insn *i = t->i;

    if ((!flags->live || t->work->loop_access[t->index].wild >= 0) && !flags->saved &&
        !i->flags_written && overwrites(&t->work->loop, i, flags->recipe.uses) && flags_needed(t))
        flags_saved(t, flags);
}

static void flags_after(const struct jit_translation *t, struct jit_loop_flags *flags)
{
    recipe_step(&t->work->loop, t->i, &flags->recipe);
    if (!t->i->flags_written)
        return;
    flags->live = true;
    flags->saved = false;
}

enum jit_loop_part jit_loop_part_of(const struct jit_loop *loop, const struct jit_range *r)
{
    if (r->index < 0)
        return r->rip ? WITH_BASE : WITH_NEITHER;
    if (jit_loop_stays(loop, r->base))
        return WITH_BASE;
    return jit_loop_stays(loop, r->index) ? WITH_INDEX : WITH_BOTH;
}

/* ---- the instructions ---- */

static void new_exit(struct jit_translation *t, struct jit_loop_exit exit)
{
    struct jit_loop *loop = &t->work->loop;

    if (loop->exits == JIT_LOOP_EXITS) {
        loop->found = false;
        return;
    }
    exit.insn = (uint8_t)t->index;
    t->work->loop_exit[loop->exits++] = exit;
}

static uint8_t placed(const struct jit_loop *loop, ZydisRegister reg)
{
    int gpr = insn_gpr(reg);

    return gpr < 0 ? ASM_NONE : loop->host[gpr];
}

struct asm_mem jit_loop_operand(const struct jit_loop *loop, const struct jit_insn *i,
                                     const ZydisDecodedOperand *op)
{
    struct asm_mem m = {placed(loop, op->mem.base), placed(loop, op->mem.index), 0, false,
                        (int32_t)jit_displacement(i, op)};

    if (m.index != ASM_NONE)
        m.scale = (uint8_t)__builtin_ctz(op->mem.scale);
    return m;
}

/* The same on the host: `host` has the range's addend, with a part of the address. */
static struct asm_mem operand_on_host(const struct jit_loop *loop, struct asm_mem m,
                                      const struct jit_range *r, unsigned host)
{
    switch (jit_loop_part_of(loop, r)) {
    case WITH_BOTH:
        return asm_base(host, 0);
    case WITH_BASE:
        m.base = (uint8_t)host;
        return m;
    case WITH_INDEX:
        m.index = (uint8_t)host;
        m.scale = 0;
        return m;
    default:
        if (m.base == ASM_NONE)
            m.base = (uint8_t)host;
        else
            m.index = (uint8_t)host;
        return m;
    }
}

/* T0: where the operand is; leaves with T1 what operand_on_host() needs. Crossing a page misses. */
static void emit_wild(struct jit_translation *t, unsigned k, struct asm_mem m)
{
    struct jit_wild *wild = &t->work->loop.wild_access[k];
    struct asm_code *a = &t->a;

    wild->start = a->at;
    asm_lea(a, JIT_T0, m);
    asm_op_mem(a, true, 0x2b, JIT_T0, jit_loop_wild(k, JIT_WILD_PAGE));  /* sub */
    asm_op_mem(a, true, 0x3b, JIT_T0, jit_loop_wild(k, JIT_WILD_LIMIT)); /* cmp */
    wild->miss = asm_jcc(a, ASM_CC_AE, 0);
    asm_load(a, JIT_T1, jit_loop_wild(k, JIT_WILD_ADDEND));
    if (jit_loop_part_of(&t->work->loop, &wild->at) == WITH_BOTH)
        asm_lea(a, JIT_T1, asm_indexed(JIT_T0, JIT_T1, 0)); /* the addend is that of the page's beginning */
}

/* How the current instruction's operand is addressed on the host. */
static struct asm_mem emit_operand(struct jit_translation *t, const ZydisDecodedOperand *op,
                                   struct jit_loop_flags *flags)
{
    struct jit_loop *loop = &t->work->loop;
    struct asm_mem m = jit_loop_operand(loop, t->i, op);
    struct jit_loop_access access = t->work->loop_access[t->index];

    if (access.wild < 0)
        return operand_on_host(loop, m, &loop->range[access.range], loop->range[access.range].host);
    flags_free(t, flags);
    emit_wild(t, (unsigned)access.wild, m);
    new_exit(t, (struct jit_loop_exit){.kind = JIT_EXIT_MISS,     .site = (uint32_t)access.wild, .flags = *flags});
    return operand_on_host(loop, m, &loop->wild_access[access.wild].at, JIT_T1);
}

/* False: a register has no place in the instruction. */
static bool emit_insn(struct jit_translation *t, const struct asm_mem *memory)
{
    const struct jit_loop *loop = &t->work->loop;
    const struct jit_insn *i = t->i;
    struct reencode r = {REENCODE_KEEP, REENCODE_KEEP, REENCODE_KEEP, REENCODE_KEEP, memory != NULL,
                         {0}};

    for (unsigned k = 0; k < i->z.operand_count_visible; k++) {
        const ZydisDecodedOperand *op = &i->operand[k];
        int gpr = op->type == ZYDIS_OPERAND_TYPE_REGISTER ? insn_gpr(op->reg.value) : -1;
        uint8_t *field;

        if (gpr < 0 || loop->host[gpr] == gpr)
            continue;
        field = jit_field_of(&r, op);
        if (!field)
            return false;
        *field = loop->host[gpr];
    }
    if (memory)
        r.mem = *memory;
    return reencode(&t->a, &i->z, i->operand, i->bytes, &r);
}

static bool emit_lea(struct jit_translation *t)
{
    const struct jit_insn *i = t->i;
    struct asm_mem m = jit_loop_operand(&t->work->loop, i, &i->operand[1]);

    if (i->operand[1].mem.base == ZYDIS_REGISTER_RIP) {
        asm_load(&t->a, JIT_T0, JIT_FIELD(code_page));
        m.base = JIT_T0;
    }
    return emit_insn(t, &m);
}

/* The way that is not the translation's own. */
static void emit_jcc(struct jit_translation *t, struct jit_loop_flags *flags)
{
    const struct jit_insn *i = t->i;
    int32_t next = i->offset + i->z.length, taken = next + (int32_t)i->in->imm;
    bool stay_taken = i->inverted || t->index + 1 == t->insn_count;
    unsigned condition = (i->z.opcode & 15u) ^ (stay_taken ? 1u : 0);

    jit_loop_flags_live(t, flags);
    new_exit(t, (struct jit_loop_exit){.kind = JIT_EXIT_JUMP_OUT,
                                       .site = asm_jcc(&t->a, condition, 0),
                                       .to = stay_taken ? next : taken});
}

static bool emit_plain(struct jit_translation *t, struct jit_loop_flags *flags)
{
    const struct jit_insn *i = t->i;
    const ZydisDecodedOperand *op = jit_memory_operand(i);
    struct asm_mem m;

    if (op)
        m = emit_operand(t, op, flags); /* CF is not the guest's any more if that had to look */
    if (i->flags_read && !(is_step(i) && flags->recipe.kind == JIT_RECIPE_STEP && !flags->saved))
        jit_loop_flags_live(t, flags);
    if (i->class == JIT_VECTOR) {
        new_exit(t, (struct jit_loop_exit){.kind = JIT_EXIT_TRAP, .site = t->trap_count,
                                           .flags = *flags});
        jit_trap_here(t, JIT_LOOP);
    }
    return emit_insn(t, op ? &m : NULL);
}

static bool emit_one(struct jit_translation *t, struct jit_loop_flags *flags)
{
    bool done = true;

    flags_keep(t, flags);
    switch (t->i->class) {
    case JIT_NOP:
    case JIT_JMP:
        break;
    case JIT_JCC:
        emit_jcc(t, flags);
        break;
    case JIT_LEA:
        done = emit_lea(t);
        break;
    default:
        done = emit_plain(t, flags);
        break;
    }
    flags_after(t, flags);
    return done;
}

bool jit_loop_pass(struct jit_translation *t, const struct jit_loop_flags *head)
{
    struct jit_loop_flags flags = *head;

    for (t->index = 0; t->index < t->insn_count; t->index++) {
        t->i = &t->work->insn[t->index];
        if (!emit_one(t, &flags))
            return false;
    }
    if (head->saved)
        flags_saved(t, &flags);
    return true;
}

