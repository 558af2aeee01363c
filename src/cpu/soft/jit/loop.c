/* The second form of loops (loop.h). */
#include "cpu/soft/jit/loop.h"

#include "cpu/soft/vector.h"

#define PASSES_MAX  512  /* without a look at `attention` */
#define PASSES_MIN  4    /* fewer are not worth it */
#define SCORE_COST  12   /* passes that must come of a look-up to pay for it */
#define SCORE_FIRST 400
#define SCORE_MAX   (1 << 14)
#define SCORE_MISS  2    /* passes that a look-up on the way costs */
#define RANGE_MAX   2048 /* bytes that one pass may touch near one address, and that it may move */

#define NO_REGISTER (-1)

/* ---- what the loop does ---- */

static bool allowed(const struct jit_insn *i)
{
    const ZydisDecodedOperand *op;

    switch (i->class) {
    case JIT_NOP:
    case JIT_JCC:
        return true;
    case JIT_JMP:
        return i->operand[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    case JIT_LEA:
        return !jit_in_segment(&i->operand[1]);
    case JIT_PLAIN:
    case JIT_VECTOR:
        break;
    default:
        return false;
    }
    if (i->z.mnemonic == ZYDIS_MNEMONIC_DIV || i->z.mnemonic == ZYDIS_MNEMONIC_IDIV ||
        i->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B ||
        (i->class == JIT_VECTOR && vector_form(i->in) == VECTOR_FORM_X87))
        return false;
    op = jit_memory_operand(i);
    return !op || !jit_in_segment(op);
}

static void use(struct jit_loop *loop, ZydisRegister reg)
{
    int gpr = insn_gpr(reg);

    if (gpr >= 0)
        loop->used |= (uint16_t)(1u << gpr);
}

static void note_registers(struct jit_loop *loop, const struct jit_insn *i)
{
    for (unsigned k = 0; k < i->z.operand_count; k++) {
        const ZydisDecodedOperand *op = &i->operand[k];

        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
            use(loop, op->reg.value);
        } else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            use(loop, op->mem.base);
            use(loop, op->mem.index);
        }
    }
    loop->written |= i->written;
    for (unsigned gpr = 0; gpr < 16; gpr++) {
        int64_t by;

        if (!jit_change_of(i, gpr, &by))
            loop->wild |= (uint16_t)(1u << gpr);
        loop->step[gpr] += by;
    }
}

static bool stays(const struct jit_loop *loop, int gpr)
{
    return gpr < 0 || !(loop->written >> gpr & 1u);
}

/* Where an operand points, in terms of the registers at the head; `moved`: by how much they have changed since. */
static bool range_of(const struct jit_loop *loop, const struct jit_insn *i,
                     const ZydisDecodedOperand *op, const int64_t *moved, struct jit_range *out)
{
    int base = insn_gpr(op->mem.base), index = insn_gpr(op->mem.index);
    unsigned scale = index >= 0 ? (unsigned)__builtin_ctz(op->mem.scale) : 0;
    int64_t lo = jit_displacement(i, op), step = 0;

    if (base >= 0) {
        lo += moved[base];
        step += loop->step[base];
    }
    if (index >= 0) {
        lo += (int64_t)((uint64_t)moved[index] << scale);
        step += (int64_t)((uint64_t)loop->step[index] << scale);
    }
    *out = (struct jit_range){.base = (int8_t)base, .index = (int8_t)index, .scale = (uint8_t)scale,
                              .rip = op->mem.base == ZYDIS_REGISTER_RIP,
                              .write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE,
                              .lo = (int32_t)lo, .hi = (int32_t)lo + op->size / 8,
                              .step = (int32_t)step};
    return op->size > 0 && lo == (int32_t)lo && lo < INT32_MAX - 64 && step <= RANGE_MAX && step >= -RANGE_MAX &&
           !((base >= 0 && loop->wild >> base & 1u) || (index >= 0 && loop->wild >> index & 1u)) &&
           (stays(loop, base) || stays(loop, index));
}

static bool same_registers(const struct jit_range *a, const struct jit_range *b)
{
    return a->base == b->base && a->index == b->index && a->scale == b->scale && a->rip == b->rip;
}

static bool merge(struct jit_range *into, const struct jit_range *r)
{
    into->lo = r->lo < into->lo ? r->lo : into->lo;
    into->hi = r->hi > into->hi ? r->hi : into->hi;
    into->write |= r->write;
    return (int64_t)into->hi - into->lo <= RANGE_MAX;
}

static bool add_range(struct jit_loop *loop, const struct jit_range *r)
{
    for (unsigned k = 0; k < loop->ranges; k++) {
        struct jit_range merged = loop->range[k];

        if (!same_registers(&merged, r))
            continue;
        if (merge(&merged, r))
            loop->range[k] = merged;
        return merge(&merged, r);
    }
    if (loop->ranges == JIT_LOOP_RANGES)
        return false;
    loop->range[loop->ranges++] = *r;
    return true;
}

static bool add_wild(struct jit_loop *loop, const struct jit_insn *i, unsigned insn,
                     const ZydisDecodedOperand *op)
{
    struct jit_wild *wild = &loop->wild_access[loop->wilds];
    int64_t disp = jit_displacement(i, op);

    if (loop->wilds == JIT_LOOP_RANGES || op->size == 0 || op->mem.base == ZYDIS_REGISTER_RIP)
        return false;
    loop->wilds++;
    *wild = (struct jit_wild){.insn = (uint8_t)insn,
                              .at = {.base = (int8_t)insn_gpr(op->mem.base),
                                     .index = (int8_t)insn_gpr(op->mem.index),
                                     .write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE,
                                     .lo = (int32_t)disp, .hi = (int32_t)disp + op->size / 8}};
    if (wild->at.index >= 0)
        wild->at.scale = (uint8_t)__builtin_ctz(op->mem.scale);
    return true;
}

static bool find_accesses(const struct jit_translation *t, struct jit_loop *loop)
{
    int64_t moved[16] = {0}, by;

    for (unsigned k = 0; k < t->insn_count; k++) {
        const struct jit_insn *i = &t->work->insn[k];
        const ZydisDecodedOperand *op =
            i->class == JIT_PLAIN || i->class == JIT_VECTOR ? jit_memory_operand(i) : NULL;
        struct jit_range r;

        if (op && !(range_of(loop, i, op, moved, &r) && add_range(loop, &r)) &&
            !add_wild(loop, i, k, op))
            return false;
        for (unsigned gpr = 0; gpr < 16; gpr++) {
            if (jit_change_of(i, gpr, &by))
                moved[gpr] += by;
        }
    }
    return loop->ranges + loop->wilds > 0;
}

/* ---- registers ---- */

/* One for each range, and for the guest's R8 to R11: scratch first, then those of guest registers not in use. */
static int take(struct jit_loop *loop, unsigned *next)
{
    static const uint8_t order[] = {GPR_RSP, GPR_R15, GPR_R14, GPR_R13, GPR_R12, GPR_RBP, GPR_RBX,
                                    GPR_RSI, GPR_RDI, GPR_RDX, GPR_RCX, GPR_RAX};

    if ((*next)++ == 0)
        return JIT_T2;
    while (*next - 1 < sizeof(order)) {
        unsigned gpr = order[*next - 1];

        ++*next;
        if (loop->used >> gpr & 1u)
            continue;
        loop->lent |= (uint16_t)(1u << gpr);
        return jit_hosts[gpr];
    }
    return NO_REGISTER;
}

/* T0 is scratch, and T1 if an access is wild. */
static bool place_registers(struct jit_loop *loop)
{
    unsigned next = 0;
    int counter = loop->wilds ? take(loop, &next) : (int)JIT_T1;

    loop->counter = (uint8_t)counter;
    for (unsigned gpr = 0; gpr < 16; gpr++) {
        int host = jit_hosts[gpr];

        if (host == JIT_NO_HOST && loop->used >> gpr & 1u)
            host = take(loop, &next);
        if (host == NO_REGISTER)
            return false;
        loop->host[gpr] = (uint8_t)host;
    }
    for (unsigned k = 0; k < loop->ranges; k++) {
        int host = take(loop, &next);

        if (host == NO_REGISTER)
            return false;
        loop->range[k].host = (uint8_t)host;
    }
    return true;
}

static bool leads_to(const struct jit_insn *i, unsigned head)
{
    unsigned target;
    bool back;

    return jit_branch_target(i, &target, &back) && back && target == head;
}

bool jit_loop_find(struct jit_translation *t)
{
    struct jit_loop *loop = &t->work->loop;
    const struct jit_insn *first = &t->work->insn[0], *last = &t->work->insn[t->insn_count - 1];

    loop->found = false;
    loop->back = 0;
    if (t->insn_count == 0 || (last->class != JIT_JCC && last->class != JIT_JMP) ||
        !leads_to(last, first->offset))
        return false;
    *loop = (struct jit_loop){.found = false};
    for (unsigned k = 0; k < t->insn_count; k++) {
        if (!allowed(&t->work->insn[k]))
            return false;
        note_registers(loop, &t->work->insn[k]);
    }
    loop->found = find_accesses(t, loop) && place_registers(loop);
    return loop->found;
}

bool jit_loop_closes(const struct jit_translation *t, int64_t to)
{
    return t->work->loop.found && t->index + 1 == t->insn_count && !t->i->inverted &&
           to == t->work->insn[0].offset;
}

void jit_loop_close(struct jit_translation *t, uint32_t site)
{
    t->work->loop.back = site;
    t->work->loop.flags_back = t->flags;
}

/* Its number, if the instruction's access is wild; or -1. */
static int wild_of(const struct jit_loop *loop, unsigned insn)
{
    for (unsigned k = 0; k < loop->wilds; k++) {
        if (loop->wild_access[k].insn == insn)
            return (int)k;
    }
    return -1;
}

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

/* Where the flags are at the head, after the count of passes has clobbered them. */
static struct jit_loop_flags flags_at_head(const struct jit_translation *t)
{
    struct jit_recipe r = {.kind = JIT_RECIPE_NONE};

    for (unsigned k = 0; k < t->insn_count; k++)
        recipe_step(&t->work->loop, &t->work->insn[k], &r);
    if (r.kind == JIT_RECIPE_STEP && t->work->loop.wilds > 0)
        r.kind = JIT_RECIPE_NONE; /* CF will be lost */
    return (struct jit_loop_flags){.saved = r.kind == JIT_RECIPE_NONE, .recipe = r};
}

/* Has the flags in the host's register. T0. */
static void flags_live(struct jit_translation *t, struct jit_loop_flags *flags)
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
    flags_live(t, flags);
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

        if (i->flags_read || i->class == JIT_VECTOR || wild_of(&t->work->loop, k) >= 0)
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

    if ((!flags->live || wild_of(&t->work->loop, t->index) >= 0) && !flags->saved &&
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

/* ---- before the first pass ---- */

static struct asm_mem score_of(const struct jit_translation *t)
{
    return asm_gs(offsetof(struct soft_vcpu, loop_score) +
                  t->native->number % SOFT_LOOP_SCORES * sizeof(int32_t));
}

static struct asm_mem range_slot(unsigned k)
{
    return asm_gs(offsetof(struct soft_vcpu, loop_range) + k * sizeof(uint64_t));
}

enum wild_field {
    WILD_PAGE = offsetof(struct soft_vcpu, loop_wild[0].page),
    WILD_LIMIT = offsetof(struct soft_vcpu, loop_wild[0].limit),
    WILD_ADDEND = offsetof(struct soft_vcpu, loop_wild[0].addend),
};

static struct asm_mem wild_field(unsigned k, enum wild_field field)
{
    return asm_gs(field + k * sizeof(((struct soft_vcpu *)NULL)->loop_wild[0]));
}

/* The address of the range's first byte into T2. T1. */
static void first_byte(struct asm_code *a, const struct jit_range *r)
{
    struct asm_mem m = {ASM_NONE, ASM_NONE, r->scale, false, r->lo};

    if (r->rip || (r->base >= 0 && jit_in_memory((unsigned)r->base))) {
        asm_load(a, JIT_T2, r->rip ? JIT_FIELD(code_page) : jit_gpr((unsigned)r->base));
        m.base = JIT_T2;
    } else if (r->base >= 0) {
        m.base = (uint8_t)jit_host((unsigned)r->base);
    }
    if (r->index >= 0 && jit_in_memory((unsigned)r->index)) {
        asm_load(a, JIT_T1, jit_gpr((unsigned)r->index));
        m.index = JIT_T1;
    } else if (r->index >= 0) {
        m.index = (uint8_t)r->index;
    }
    asm_lea(a, JIT_T2, m);
}

/* T0 / step, rounded down; T0 is less than a page. */
static void divide(struct asm_code *a, unsigned step)
{
    bool power = (step & (step - 1)) == 0;

    if (!power) {
        asm_op_reg(a, false, 0x69, JIT_T0, JIT_T0); /* imul */
        asm_u32(a, (1u << 20) / step);
    }
    if (step == 1)
        return;
    asm_op_reg(a, false, 0xc1, 5, JIT_T0); /* shr */
    asm_byte(a, power ? (unsigned)__builtin_ctz(step) : 20);
}

/* How many more passes stay in the page whose byte T2 is the first, if fewer than so far. */
static void limit_passes(struct asm_code *a, const struct jit_range *r)
{
    uint32_t enough;

    if (r->step == 0)
        return;
    if (r->step > 0) {
        asm_alu_imm(a, false, ASM_AND, JIT_T2, PAGE_SIZE - 1);
        asm_mov_imm(a, JIT_T0, PAGE_SIZE - (uint32_t)(r->hi - r->lo));
        asm_op_reg(a, false, 0x29, JIT_T2, JIT_T0); /* sub */
        divide(a, (uint32_t)r->step);
    } else {
        asm_mov(a, JIT_T0, JIT_T2);
        asm_alu_imm(a, false, ASM_AND, JIT_T0, PAGE_SIZE - 1);
        divide(a, (uint32_t)-r->step);
    }
    asm_op_mem(a, false, 0x3b, JIT_T0, JIT_FIELD(loop_passes)); /* cmp */
    enough = asm_jcc(a, ASM_CC_AE, 0);
    asm_op_mem(a, false, 0x89, JIT_T0, JIT_FIELD(loop_passes));
    asm_patch(a, enough, a->at);
}

/* An instruction's operand lacks room for a third register beside base and index: whichever of them stays the same is added
 * to the addend. WITH_BOTH: neither does. */
enum part_of_range { WITH_NEITHER, WITH_BASE, WITH_INDEX, WITH_BOTH };

static enum part_of_range part_of(const struct jit_loop *loop, const struct jit_range *r)
{
    if (r->index < 0)
        return r->rip ? WITH_BASE : WITH_NEITHER;
    if (stays(loop, r->base))
        return WITH_BASE;
    return stays(loop, r->index) ? WITH_INDEX : WITH_BOTH;
}

static void add_register(struct asm_code *a, int gpr)
{
    if (gpr >= 0 && jit_in_memory((unsigned)gpr))
        asm_op_mem(a, true, 0x03, JIT_T1, jit_gpr((unsigned)gpr)); /* add */
    else if (gpr >= 0)
        asm_op_reg(a, true, 0x01, jit_host((unsigned)gpr), JIT_T1);
}

static void add_index(struct asm_code *a, const struct jit_range *r)
{
    unsigned index = (unsigned)r->index;

    if (jit_in_memory(index)) {
        asm_load(a, JIT_T0, jit_gpr(index));
        index = JIT_T0;
    }
    asm_lea(a, JIT_T1, (struct asm_mem){JIT_T1, (uint8_t)index, r->scale, false, 0});
}

/* Answers the jump taken when it is not in the TLB. */
static uint32_t look_up_range(struct jit_translation *t, unsigned k)
{
    const struct jit_range *r = &t->work->loop.range[k];
    struct asm_code *a = &t->a;
    uint32_t miss;

    first_byte(a, r);
    miss = jit_compare_tag(a, JIT_T2, 0, (unsigned)(r->hi - r->lo), r->write);
    limit_passes(a, r);
    jit_load_addend(a, JIT_T1);
    switch (part_of(&t->work->loop, r)) {
    case WITH_BASE:
        if (r->rip)
            asm_op_mem(a, true, 0x03, JIT_T1, JIT_FIELD(code_page)); /* add */
        else
            add_register(a, r->base);
        break;
    case WITH_INDEX:
        add_index(a, r);
        break;
    default:
        break;
    }
    asm_store(a, range_slot(k), JIT_T1);
    return miss;
}

/* Whether such look-ups have paid so far. Answers the jump taken if not. */
static uint32_t pay(struct jit_translation *t)
{
    struct asm_code *a = &t->a;
    struct asm_mem score = score_of(t);

    asm_op_mem(a, false, 0x8b, JIT_T0, score);
    asm_alu_imm(a, false, ASM_SUB, JIT_T0, SCORE_COST);
    asm_op_mem(a, false, 0x89, JIT_T0, score);
    return asm_jcc(a, ASM_CC_S, 0);
}

static void store_imm32(struct asm_code *a, struct asm_mem m, uint32_t value)
{
    asm_op_mem(a, false, 0xc7, 0, m);
    asm_u32(a, value);
}

/* In lock-step, one pass is made if the interpreter has made it. Answers the jump taken if not. */
static uint32_t allowed_pass(struct jit_translation *t)
{
    asm_op_mem(&t->a, false, 0x83, ASM_CMP, JIT_FIELD(loop_lockstep));
    asm_byte(&t->a, 0);
    return asm_jcc(&t->a, ASM_CC_E, 0);
}

/* T0: passes to come. */
static void earn(struct jit_translation *t)
{
    struct asm_code *a = &t->a;
    uint32_t rich;

    asm_op_mem(a, false, 0x81, ASM_CMP, score_of(t));
    asm_u32(a, SCORE_MAX);
    rich = asm_jcc(a, ASM_CC_GE, 0);
    asm_op_mem(a, false, 0x01, JIT_T0, score_of(t)); /* add */
    asm_patch(a, rich, a->at);
}

static void registers_in(struct jit_translation *t)
{
    const struct jit_loop *loop = &t->work->loop;
    struct asm_code *a = &t->a;

    for (unsigned gpr = 0; gpr < 16; gpr++) {
        if (loop->lent >> gpr & 1u)
            asm_store(a, jit_gpr(gpr), jit_host(gpr));
    }
    for (unsigned gpr = 8; gpr < 12; gpr++) {
        if (loop->used >> gpr & 1u)
            asm_load(a, loop->host[gpr], jit_gpr(gpr));
    }
    for (unsigned k = 0; k < loop->ranges; k++)
        asm_load(a, loop->range[k].host, range_slot(k));
}

/* The flags are as they were. */
static void registers_back(struct jit_translation *t)
{
    const struct jit_loop *loop = &t->work->loop;
    struct asm_code *a = &t->a;

    for (unsigned gpr = 8; gpr < 12; gpr++) {
        if (loop->used & loop->written & 1u << gpr)
            asm_store(a, jit_gpr(gpr), loop->host[gpr]);
    }
    for (unsigned gpr = 0; gpr < 16; gpr++) {
        if (loop->lent >> gpr & 1u)
            asm_load(a, jit_host(gpr), jit_gpr(gpr));
    }
}

static void fails_at(struct jit_translation *t, uint32_t site)
{
    t->work->loop_fail[t->work->loop.fails++] = site;
}

static void before_passes(struct jit_translation *t)
{
    struct jit_loop *loop = &t->work->loop;
    struct asm_code *a = &t->a;
    bool lockstep = t->cpu->lockstep != NULL;

    if (!(loop->flags_back & JIT_SAVED))
        jit_emit_flags_save(a);
    fails_at(t, lockstep ? allowed_pass(t) : pay(t));
    store_imm32(a, JIT_FIELD(loop_passes), lockstep ? 0 : PASSES_MAX - 1);
    for (unsigned k = 0; k < loop->ranges; k++)
        fails_at(t, look_up_range(t, k));
    asm_op_mem(a, false, 0x8b, JIT_T0, JIT_FIELD(loop_passes));
    if (!lockstep) {
        asm_alu_imm(a, false, ASM_CMP, JIT_T0, PASSES_MIN - 1);
        fails_at(t, asm_jcc(a, ASM_CC_B, 0));
    }
    asm_op_mem(a, false, 0x8d, JIT_T0, asm_base(JIT_T0, 1)); /* lea: the pass that was looked up */
    if (!lockstep)
        earn(t);
    else
        store_imm32(a, JIT_FIELD(loop_lockstep), SOFT_LOOP_PASSED);
    asm_op_reg(a, true, 0xf7, 3, JIT_T0); /* neg */
    for (unsigned k = 0; k < loop->wilds; k++)
        store_imm32(a, wild_field(k, WILD_LIMIT), 0);
    registers_in(t);
    asm_mov(a, loop->counter, JIT_T0);
}

/* ---- the passes ---- */

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

/* The operand as it is, with its registers where they are. */
static struct asm_mem operand_placed(const struct jit_loop *loop, const struct jit_insn *i,
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
    switch (part_of(loop, r)) {
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
    asm_op_mem(a, true, 0x2b, JIT_T0, wild_field(k, WILD_PAGE));  /* sub */
    asm_op_mem(a, true, 0x3b, JIT_T0, wild_field(k, WILD_LIMIT)); /* cmp */
    wild->miss = asm_jcc(a, ASM_CC_AE, 0);
    asm_load(a, JIT_T1, wild_field(k, WILD_ADDEND));
    if (part_of(&t->work->loop, &wild->at) == WITH_BOTH)
        asm_lea(a, JIT_T1, asm_indexed(JIT_T0, JIT_T1, 0)); /* the addend is that of the page's beginning */
}

static const struct jit_range *range_for(const struct jit_loop *loop, const ZydisDecodedOperand *op)
{
    struct jit_range key = {.base = (int8_t)insn_gpr(op->mem.base),
                            .index = (int8_t)insn_gpr(op->mem.index),
                            .rip = op->mem.base == ZYDIS_REGISTER_RIP};
    const struct jit_range *r = loop->range;

    if (key.index >= 0)
        key.scale = (uint8_t)__builtin_ctz(op->mem.scale);
    while (!same_registers(r, &key))
        r++;
    return r;
}

/* How the current instruction's operand is addressed on the host. */
static struct asm_mem emit_operand(struct jit_translation *t, const ZydisDecodedOperand *op,
                                   struct jit_loop_flags *flags)
{
    struct jit_loop *loop = &t->work->loop;
    struct asm_mem m = operand_placed(loop, t->i, op);
    const struct jit_range *r;
    int wild = wild_of(loop, t->index);

    if (wild < 0) {
        r = range_for(loop, op);
        return operand_on_host(loop, m, r, r->host);
    }
    flags_free(t, flags);
    emit_wild(t, (unsigned)wild, m);
    new_exit(t, (struct jit_loop_exit){.kind = JIT_EXIT_MISS, .site = (uint32_t)wild, .flags = *flags});
    return operand_on_host(loop, m, &loop->wild_access[wild].at, JIT_T1);
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
    struct asm_mem m = operand_placed(&t->work->loop, i, &i->operand[1]);

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

    flags_live(t, flags);
    new_exit(t, (struct jit_loop_exit){.kind = JIT_EXIT_JUMP_OUT,
                                       .site = asm_jcc(&t->a, condition, 0),
                                       .to = stay_taken ? next : taken});
}

static bool emit_plain(struct jit_translation *t, struct jit_loop_flags *flags)
{
    const struct jit_insn *i = t->i;
    const ZydisDecodedOperand *op = jit_memory_operand(i);
    bool carry = is_step(i) && flags->recipe.kind == JIT_RECIPE_STEP && !flags->saved;
    struct asm_mem m;

    if (op)
        m = emit_operand(t, op, flags);
    if (i->flags_read && !carry)
        flags_live(t, flags);
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

/* Ends with the flags where they were expected at the head. */
static bool emit_passes(struct jit_translation *t, const struct jit_loop_flags *head)
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

/* ---- the ways out ---- */

static void leave_at(struct jit_translation *t, enum soft_jit_thunk thunk, uint16_t offset)
{
    jit_call_thunk(t, thunk);
    asm_u16(&t->a, offset);
}

/* The passes that were not made are taken back. The flags stay. T0. */
static void pay_back(struct jit_translation *t)
{
    struct asm_code *a = &t->a;

    if (t->cpu->lockstep)
        return;
    asm_op_mem(a, false, 0x8b, JIT_T0, score_of(t));
    asm_op_mem(a, false, 0x8d, JIT_T0, asm_indexed(JIT_T0, t->work->loop.counter, 0)); /* lea */
    asm_op_mem(a, false, 0x89, JIT_T0, score_of(t));
}

/* The instruction is the interpreter's, and so is where to go from there. */
static void leave_for_good(struct jit_translation *t, const struct jit_loop_exit *exit)
{
    struct jit_loop_flags flags = exit->flags;

    flags_live(t, &flags);
    registers_back(t);
    jit_call_for_good(t, &t->work->insn[exit->insn]);
}

/* Remembers the page for what follows, and goes back. T0 and T1; the flags are free. */
static void look_up_wild(struct jit_translation *t, const struct jit_loop_exit *exit)
{
    const struct jit_loop *loop = &t->work->loop;
    unsigned k = exit->site, size = (unsigned)(loop->wild_access[k].at.hi - loop->wild_access[k].at.lo);
    const struct jit_wild *wild = &loop->wild_access[k];
    const struct jit_insn *i = &t->work->insn[exit->insn];
    struct asm_mem m = operand_placed(loop, i, jit_memory_operand(i));
    struct asm_code *a = &t->a;
    uint32_t miss;

    asm_patch(a, wild->miss, a->at);
    if (!t->cpu->lockstep) {
        asm_op_mem(a, false, 0x83, ASM_SUB, score_of(t));
        asm_byte(a, SCORE_MISS);
    }
    asm_lea(a, JIT_T0, m);
    miss = jit_compare_tag(a, JIT_T0, 0, size, wild->at.write);
    asm_store(a, wild_field(k, WILD_PAGE), JIT_T0);
    jit_load_addend(a, JIT_T1);
    switch (part_of(loop, &wild->at)) {
    case WITH_BOTH:
        asm_lea(a, JIT_T1, asm_indexed(JIT_T0, JIT_T1, 0));
        break;
    case WITH_BASE:
        if (m.base != ASM_NONE)
            asm_lea(a, JIT_T1, asm_indexed(m.base, JIT_T1, 0));
        break;
    case WITH_INDEX:
        asm_lea(a, JIT_T1, (struct asm_mem){JIT_T1, m.index, m.scale, false, 0});
        break;
    default:
        break;
    }
    asm_store(a, wild_field(k, WILD_ADDEND), JIT_T1);
    store_imm32(a, wild_field(k, WILD_LIMIT), PAGE_SIZE + 1 - size);
    asm_jmp(a, wild->start);
    asm_patch(a, miss, a->at);
    leave_for_good(t, exit);
}

static void jump_out(struct jit_translation *t, const struct jit_loop_exit *exit)
{
    asm_patch(&t->a, exit->site, t->a.at);
    pay_back(t);
    registers_back(t);
    t->flags = JIT_LIVE;
    t->recipe.kind = JIT_RECIPE_NONE;
    jit_go_on(t, exit->to);
}

static void emit_exit(struct jit_translation *t, const struct jit_loop_exit *exit)
{
    struct jit_trap *trap;

    switch (exit->kind) {
    case JIT_EXIT_TRAP: /* the interpreter raises the exception */
        trap = &t->work->trap[exit->site];
        trap->offset = (uint16_t)(t->a.at - trap->at);
        leave_for_good(t, exit);
        break;
    case JIT_EXIT_MISS:
        look_up_wild(t, exit);
        break;
    default:
        jump_out(t, exit);
        break;
    }
}

/* All passes made: once more through the first form, if more is to be done. */
static void all_passes(struct jit_translation *t, struct jit_loop_flags flags)
{
    flags_live(t, &flags);
    registers_back(t);
    if (t->cpu->lockstep)
        leave_at(t, JIT_EXIT_AT_LIVE, t->work->insn[0].offset);
    else
        asm_jmp(&t->a, t->native->entry_live);
}

static void lead_fails(struct jit_translation *t)
{
    struct jit_loop *loop = &t->work->loop;
    uint32_t to = t->native->entry_saved;

    if (t->cpu->lockstep) {
        to = t->a.at;
        leave_at(t, JIT_EXIT_AT, t->work->insn[0].offset);
    }
    for (unsigned k = 0; k < loop->fails; k++)
        asm_patch(&t->a, t->work->loop_fail[k], to);
}

/* False: what was written does not count. */
static bool emit(struct jit_translation *t)
{
    struct jit_loop *loop = &t->work->loop;
    struct jit_loop_flags flags = flags_at_head(t);
    uint32_t head;

    before_passes(t);
    if (flags.recipe.kind == JIT_RECIPE_STEP) { /* bt: CF */
        asm_op_mem(&t->a, false, 0x1ba, 4, JIT_FIELD(jit_flags));
        asm_byte(&t->a, 8);
    }
    asm_align(&t->a, 16, 0);
    head = t->a.at;
    if (!emit_passes(t, &flags))
        return false;
    asm_op_reg(&t->a, true, 0xff, 0, loop->counter); /* inc: CF stays */
    asm_jcc(&t->a, ASM_CC_NE, head);
    all_passes(t, flags);
    for (unsigned k = 0; k < loop->exits; k++)
        emit_exit(t, &t->work->loop_exit[k]);
    lead_fails(t);
    return loop->found;
}

void jit_loop_emit(struct jit_translation *t)
{
    struct jit_loop *loop = &t->work->loop;
    unsigned traps = t->trap_count, links = t->link_count;
    uint32_t start = t->a.at;

    if (loop->back == 0)
        return;
    loop->fails = loop->exits = 0;
    if (emit(t) && !t->failed && !t->a.overflow) {
        asm_patch(&t->a, loop->back, start);
        t->cpu->loop_score[t->native->number % SOFT_LOOP_SCORES] = SCORE_FIRST;
        t->native->has_loop = true;
        t->cpu->stat_loops++;
        return;
    }
    t->a.at = start;
    t->a.overflow = t->failed = false;
    t->trap_count = traps;
    t->link_count = links;
    t->flags = loop->flags_back;
    jit_new_link(t, t->work->insn[0].offset, loop->back);
}
