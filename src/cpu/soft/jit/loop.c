/* Loops' second form, but for the passes themselves: before the first, and all ways out (loop.h). */
#include "cpu/soft/jit/loop.h"

#define PASSES_MAX  512  /* without a look at `attention` */
#define PASSES_MIN  4    /* fewer are not worth it */
#define SCORE_COST  12   /* passes that must come of a look-up to pay for it */
#define SCORE_FIRST 400
#define SCORE_MAX   (1 << 14)
#define SCORE_MISS  2    /* passes that a look-up on the way costs */

/* ---- before the first pass ---- */

static size_t score_place(const struct jit_translation *t)
{
    return offsetof(struct soft_vcpu, loop_score) +
           t->native->number % SOFT_LOOP_SCORES * sizeof(struct soft_loop_score);
}

static struct asm_mem score_of(const struct jit_translation *t)
{
    return asm_gs(score_place(t) + offsetof(struct soft_loop_score, score));
}

static struct asm_mem score_whose(const struct jit_translation *t)
{
    return asm_gs(score_place(t) + offsetof(struct soft_loop_score, number));
}

static struct asm_mem range_slot(unsigned k)
{
    return asm_gs(offsetof(struct soft_vcpu, loop_range) + k * sizeof(uint64_t));
}

/* Its host register, loaded into `scratch` if it is in memory. */
static unsigned at_hand(struct asm_code *a, unsigned gpr, unsigned scratch)
{
    if (!jit_in_memory(gpr))
        return jit_host(gpr);
    asm_load(a, scratch, jit_gpr(gpr));
    return scratch;
}

/* T2 += times * register. T1. */
static void add_times(struct asm_code *a, unsigned gpr, int times)
{
    unsigned host = at_hand(a, gpr, JIT_T1);

    if (times > 0 && times <= 8 && (times & (times - 1)) == 0) {
        asm_lea(a, JIT_T2, (struct asm_mem){JIT_T2, (uint8_t)host,
                                            (uint8_t)__builtin_ctz((unsigned)times), false, 0});
        return;
    }
    asm_op_reg(a, true, 0x6b, JIT_T1, host); /* imul */
    asm_byte(a, (uint8_t)times);
    asm_op_reg(a, true, 0x01, JIT_T1, JIT_T2); /* add */
}

/* The address of the range's first byte into T2. T1. */
static void first_byte(struct asm_code *a, const struct jit_range *r)
{
    int first = -1;

    for (unsigned gpr = 0; gpr < 16 && first < 0; gpr++)
        first = r->sum.times[gpr] == 1 ? (int)gpr : -1;
    if (r->rip) {
        asm_load(a, JIT_T2, JIT_FIELD(code_page));
        asm_lea(a, JIT_T2, asm_base(JIT_T2, r->lo));
    } else if (first >= 0) {
        asm_lea(a, JIT_T2, asm_base(at_hand(a, (unsigned)first, JIT_T2), r->lo));
    } else {
        asm_mov_imm(a, JIT_T2, (uint64_t)(int64_t)r->lo);
    }
    for (unsigned gpr = 0; gpr < 16; gpr++) {
        if (r->sum.times[gpr] != 0 && (int)gpr != first)
            add_times(a, gpr, r->sum.times[gpr]);
    }
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
    switch (jit_loop_part_of(&t->work->loop, r)) {
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

/* Whether such look-ups have paid so far on this vCPU. Answers the jump taken if not. */
static uint32_t pay(struct jit_translation *t)
{
    struct asm_code *a = &t->a;
    uint32_t known;

    asm_op_mem(a, false, 0x81, ASM_CMP, score_whose(t));
    asm_u32(a, t->native->number);
    known = asm_jcc(a, ASM_CC_E, 0);
    asm_store_imm32(a, score_whose(t), t->native->number);
    asm_store_imm32(a, score_of(t), SCORE_FIRST);
    asm_patch(a, known, a->at);
    asm_op_mem(a, false, 0x8b, JIT_T0, score_of(t));
    asm_alu_imm(a, false, ASM_SUB, JIT_T0, SCORE_COST);
    asm_op_mem(a, false, 0x89, JIT_T0, score_of(t));
    return asm_jcc(a, ASM_CC_S, 0);
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
    if (lockstep)
        fails_at(t, allowed_pass(t));
    else
        loop->unpaid = pay(t);
    asm_store_imm32(a, JIT_FIELD(loop_passes), lockstep ? 0 : PASSES_MAX - 1);
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
        asm_store_imm32(a, JIT_FIELD(loop_lockstep), SOFT_LOOP_PASSED);
    asm_op_reg(a, true, 0xf7, 3, JIT_T0); /* neg */
    for (unsigned k = 0; k < loop->wilds; k++)
        asm_store_imm32(a, jit_loop_wild(k, JIT_WILD_LIMIT), 0);
    registers_in(t);
    asm_mov(a, loop->counter, JIT_T0);
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

    jit_loop_flags_live(t, &flags);
    pay_back(t);
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
    struct asm_mem m = jit_loop_operand(loop, i, jit_memory_operand(i));
    struct asm_code *a = &t->a;
    uint32_t miss;

    asm_patch(a, wild->miss, a->at);
    if (!t->cpu->lockstep) {
        asm_op_mem(a, false, 0x83, ASM_SUB, score_of(t));
        asm_byte(a, SCORE_MISS);
    }
    asm_lea(a, JIT_T0, m);
    miss = jit_compare_tag(a, JIT_T0, 0, size, wild->at.write);
    asm_store(a, jit_loop_wild(k, JIT_WILD_PAGE), JIT_T0);
    jit_load_addend(a, JIT_T1);
    switch (jit_loop_part_of(loop, &wild->at)) {
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
    asm_store(a, jit_loop_wild(k, JIT_WILD_ADDEND), JIT_T1);
    asm_store_imm32(a, jit_loop_wild(k, JIT_WILD_LIMIT), PAGE_SIZE + 1 - size);
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
    jit_loop_flags_live(t, &flags);
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
    struct jit_loop_flags flags = jit_loop_flags_at_head(t);
    uint32_t head;

    before_passes(t);
    if (flags.recipe.kind == JIT_RECIPE_STEP) { /* bt: CF */
        asm_op_mem(&t->a, false, 0x1ba, 4, JIT_FIELD(jit_flags));
        asm_byte(&t->a, 8);
    }
    asm_align(&t->a, 16, 0);
    head = t->a.at;
    if (!jit_loop_pass(t, &flags))
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

    if (loop->back == 0 || t->failed || t->a.overflow)
        return;
    loop->fails = loop->exits = 0;
    if (emit(t) && !t->failed && !t->a.overflow) {
        asm_patch(&t->a, loop->back, start);
        loop->start = start;
        t->flags = loop->flags_back;
        loop->link = t->link_count;
        jit_new_link(t, t->work->insn[0].offset, loop->back);
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
