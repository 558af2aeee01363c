/* The second form of loops (loop.h). */
#include "cpu/soft/jit/loop.h"

#include "cpu/soft/vector.h"

#define PASSES_MAX  512  /* without a look at `attention` */
#define PASSES_MIN  4    /* fewer are not worth it */
#define SCORE_COST  12   /* passes that must come of a look-up to pay for it */
#define SCORE_FIRST 400
#define SCORE_MAX   (1 << 20)
#define RANGE_MAX   2048 /* bytes that one pass may touch near one address, and that it may move */
#define COUNTER     JIT_T1 /* from minus the passes up to zero */

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
        if (same_registers(&loop->range[k], r))
            return merge(&loop->range[k], r);
    }
    if (loop->ranges == JIT_LOOP_RANGES)
        return false;
    loop->range[loop->ranges++] = *r;
    return true;
}

static bool find_ranges(const struct jit_translation *t, struct jit_loop *loop)
{
    int64_t moved[16] = {0}, by;

    for (unsigned k = 0; k < t->insn_count; k++) {
        const struct jit_insn *i = &t->work->insn[k];
        const ZydisDecodedOperand *op =
            i->class == JIT_PLAIN || i->class == JIT_VECTOR ? jit_memory_operand(i) : NULL;
        struct jit_range r;

        if (op && (!range_of(loop, i, op, moved, &r) || !add_range(loop, &r)))
            return false;
        for (unsigned gpr = 0; gpr < 16; gpr++) {
            if (jit_change_of(i, gpr, &by))
                moved[gpr] += by;
        }
    }
    return loop->ranges > 0;
}

/* ---- registers ---- */

/* One for each range, and for the guest's R8 to R11: scratch first, then those of guest registers not in use. */
static int take(struct jit_loop *loop, unsigned *next)
{
    static const uint8_t order[] = {GPR_RSP, GPR_R15, GPR_R14, GPR_R13, GPR_R12, GPR_RBP, GPR_RBX,
                                    GPR_RSI, GPR_RDI, GPR_RDX, GPR_RCX, GPR_RAX};

    if ((*next)++ == 0)
        return JIT_T2;
    for (; *next - 2 < sizeof(order); ++*next) {
        unsigned gpr = order[*next - 2];

        if (loop->used >> gpr & 1u)
            continue;
        loop->lent |= (uint16_t)(1u << gpr);
        return jit_hosts[gpr];
    }
    return NO_REGISTER;
}

static bool place_registers(struct jit_loop *loop)
{
    unsigned next = 0;

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

    *loop = (struct jit_loop){.found = false};
    if (t->insn_count == 0 || (last->class != JIT_JCC && last->class != JIT_JMP) ||
        !leads_to(last, first->offset))
        return false;
    for (unsigned k = 0; k < t->insn_count; k++) {
        if (!allowed(&t->work->insn[k]))
            return false;
        note_registers(loop, &t->work->insn[k]);
    }
    loop->found = find_ranges(t, loop) && place_registers(loop);
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

/* How the flags can be had at the head, where the count of passes has clobbered them. */
static struct jit_recipe recipe_at_head(const struct jit_translation *t)
{
    struct jit_recipe r = {.kind = JIT_RECIPE_NONE};

    for (unsigned k = 0; k < t->insn_count; k++)
        recipe_step(&t->work->loop, &t->work->insn[k], &r);
    return r;
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
 * to the addend. */
enum part_of_range { WITH_NEITHER, WITH_BASE, WITH_INDEX };

static enum part_of_range part_of(const struct jit_loop *loop, const struct jit_range *r)
{
    if (r->index < 0)
        return r->rip ? WITH_BASE : WITH_NEITHER;
    return stays(loop, r->base) ? WITH_BASE : WITH_INDEX;
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
    registers_in(t);
    asm_mov(a, COUNTER, JIT_T0);
}

/* ---- the passes ---- */

static void new_exit(struct jit_translation *t, struct jit_loop_exit exit)
{
    struct jit_loop *loop = &t->work->loop;

    if (loop->exits == JIT_LOOP_EXITS) {
        loop->found = false;
        return;
    }
    t->work->loop_exit[loop->exits++] = exit;
}

static uint8_t placed(const struct jit_loop *loop, ZydisRegister reg)
{
    int gpr = insn_gpr(reg);

    return gpr < 0 ? ASM_NONE : loop->host[gpr];
}

static struct asm_mem operand_mem(const struct jit_loop *loop, const struct jit_insn *i,
                                  const ZydisDecodedOperand *op)
{
    struct asm_mem m = {placed(loop, op->mem.base), placed(loop, op->mem.index), 0, false,
                        (int32_t)jit_displacement(i, op)};
    struct jit_range key = {.base = (int8_t)insn_gpr(op->mem.base),
                            .index = (int8_t)insn_gpr(op->mem.index),
                            .rip = op->mem.base == ZYDIS_REGISTER_RIP};
    const struct jit_range *r = loop->range;

    if (m.index != ASM_NONE)
        m.scale = key.scale = (uint8_t)__builtin_ctz(op->mem.scale);
    while (!same_registers(r, &key))
        r++;
    switch (part_of(loop, r)) {
    case WITH_BASE:
        m.base = r->host;
        break;
    case WITH_INDEX:
        m.index = r->host;
        m.scale = 0;
        break;
    default:
        if (m.base == ASM_NONE)
            m.base = r->host;
        else
            m.index = r->host;
        break;
    }
    return m;
}

static bool emit_insn(struct jit_translation *t)
{
    const struct jit_loop *loop = &t->work->loop;
    const struct jit_insn *i = t->i;
    const ZydisDecodedOperand *memory = jit_memory_operand(i);
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
        r.mem = operand_mem(loop, i, memory);
    return reencode(&t->a, &i->z, i->operand, i->bytes, &r);
}

static bool emit_lea(struct jit_translation *t)
{
    const struct jit_loop *loop = &t->work->loop;
    const struct jit_insn *i = t->i;
    const ZydisDecodedOperand *op = &i->operand[1];
    struct reencode r = {placed(loop, i->operand[0].reg.value), REENCODE_KEEP, REENCODE_KEEP,
                         REENCODE_KEEP, true,
                         {placed(loop, op->mem.base), placed(loop, op->mem.index), 0, false,
                          (int32_t)jit_displacement(i, op)}};

    if (op->mem.index != ZYDIS_REGISTER_NONE)
        r.mem.scale = (uint8_t)__builtin_ctz(op->mem.scale);
    if (op->mem.base == ZYDIS_REGISTER_RIP) {
        asm_load(&t->a, JIT_T0, JIT_FIELD(code_page));
        r.mem.base = JIT_T0;
    }
    return reencode(&t->a, &i->z, i->operand, i->bytes, &r);
}

/* Has the flags in the host's register; false: they are lost. */
static bool flags_live(struct jit_translation *t, struct jit_loop_flags *flags)
{
    if (flags->live)
        return true;
    if (flags->recipe.kind == JIT_RECIPE_NONE)
        return false;
    jit_emit_recipe(&t->a, &flags->recipe);
    flags->live = true;
    return true;
}

/* The way that is not the translation's own. */
static bool emit_jcc(struct jit_translation *t, struct jit_loop_flags *flags, bool last)
{
    const struct jit_insn *i = t->i;
    int32_t next = i->offset + i->z.length, taken = next + (int32_t)i->in->imm;
    bool stay_taken = last || i->inverted;
    unsigned condition = (i->z.opcode & 15u) ^ (stay_taken ? 1u : 0);

    if (!flags_live(t, flags))
        return false;
    new_exit(t, (struct jit_loop_exit){.site = asm_jcc(&t->a, condition, 0),
                                       .to = stay_taken ? next : taken});
    return true;
}

static bool note_trap(struct jit_translation *t, const struct jit_loop_flags *flags)
{
    if (!flags->live && flags->recipe.kind == JIT_RECIPE_NONE)
        return false;
    new_exit(t, (struct jit_loop_exit){.trap = true, .site = t->trap_count,
                                       .insn = (uint8_t)t->index, .flags = *flags});
    jit_trap_here(t, JIT_LOOP);
    return true;
}

static bool emit_one(struct jit_translation *t, struct jit_loop_flags *flags)
{
    const struct jit_insn *i = t->i;
    bool last = t->index + 1 == t->insn_count;

    switch (i->class) {
    case JIT_NOP:
    case JIT_JMP:
        return true;
    case JIT_LEA:
        return emit_lea(t);
    case JIT_JCC:
        return emit_jcc(t, flags, last);
    default:
        break;
    }
    if (i->flags_read && !(is_step(i) && flags->recipe.kind == JIT_RECIPE_STEP) &&
        !flags_live(t, flags))
        return false;
    if (i->class == JIT_VECTOR && !note_trap(t, flags))
        return false;
    if (i->flags_written)
        flags->live = true;
    return emit_insn(t);
}

/* False: a place where the flags would be lost. */
static bool emit_passes(struct jit_translation *t, struct jit_loop_flags *flags)
{
    for (t->index = 0; t->index < t->insn_count; t->index++) {
        t->i = &t->work->insn[t->index];
        if (!emit_one(t, flags))
            return false;
        recipe_step(&t->work->loop, t->i, &flags->recipe);
    }
    return flags->recipe.kind != JIT_RECIPE_NONE;
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
    asm_op_mem(a, false, 0x8d, JIT_T0, asm_indexed(JIT_T0, COUNTER, 0)); /* lea */
    asm_op_mem(a, false, 0x89, JIT_T0, score_of(t));
}

static void emit_exit(struct jit_translation *t, const struct jit_loop_exit *exit)
{
    if (exit->trap) {
        struct jit_trap *trap = &t->work->trap[exit->site];

        trap->offset = (uint16_t)(t->a.at - trap->at);
        if (!exit->flags.live)
            jit_emit_recipe(&t->a, &exit->flags.recipe);
        registers_back(t);
        jit_call_for_good(t, &t->work->insn[exit->insn]); /* which raises the exception */
        return;
    }
    asm_patch(&t->a, exit->site, t->a.at);
    pay_back(t);
    registers_back(t);
    t->flags = JIT_LIVE;
    t->recipe.kind = JIT_RECIPE_NONE;
    jit_go_on(t, exit->to);
}

/* All passes made: once more through the first form, if more is to be done. */
static void all_passes(struct jit_translation *t, const struct jit_recipe *recipe)
{
    jit_emit_recipe(&t->a, recipe);
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
    struct jit_loop_flags flags = {.recipe = recipe_at_head(t)};
    uint32_t head;

    if (flags.recipe.kind == JIT_RECIPE_NONE)
        return false;
    before_passes(t);
    if (flags.recipe.kind == JIT_RECIPE_STEP) { /* bt: CF */
        asm_op_mem(&t->a, false, 0x1ba, 4, JIT_FIELD(jit_flags));
        asm_byte(&t->a, 8);
    }
    asm_align(&t->a, 16, 0);
    head = t->a.at;
    if (!emit_passes(t, &flags))
        return false;
    asm_op_reg(&t->a, true, 0xff, 0, COUNTER); /* inc: CF stays */
    asm_jcc(&t->a, ASM_CC_NE, head);
    all_passes(t, &flags.recipe);
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
