/*
 * Which translations are loops that can be looked up for many passes, and what their second form is to be (loop.h).
 *
 * Registers are followed as sums: so many times each register's value at the loop's head, and a constant. What is its own
 * value and a constant at the end moves by that constant from pass to pass; an address made of such registers does, too.
 */
#include "cpu/soft/jit/loop.h"
#include "cpu/soft/vector.h"

#define RANGE_MAX 2048 /* bytes that one pass may touch near one address, and that it may move */
#define TIMES_MAX 32   /* how often a register may be in a sum */

#define NO_REGISTER (-1)

struct sums {
    struct jit_sum of[16];
};

/* ---- registers as sums ---- */

static struct jit_sum sum_constant(int64_t value)
{
    return (struct jit_sum){.known = true, .plus = value};
}

static struct jit_sum sum_register(unsigned gpr)
{
    struct jit_sum sum = sum_constant(0);

    sum.times[gpr] = 1;
    return sum;
}

/* a + b << shift, or a - b if shift is negative. */
static struct jit_sum sum_add(const struct jit_sum *a, const struct jit_sum *b, int shift)
{
    struct jit_sum sum = {.known = a->known && b->known};
    int factor = shift < 0 ? -1 : 1 << shift;

    sum.plus = (int64_t)((uint64_t)a->plus + (uint64_t)b->plus * (uint64_t)(int64_t)factor);
    for (unsigned gpr = 0; gpr < 16; gpr++) {
        int times = a->times[gpr] + b->times[gpr] * factor;

        sum.times[gpr] = (int8_t)times;
        sum.known &= times <= TIMES_MAX && times >= -TIMES_MAX;
    }
    return sum;
}

static struct jit_sum sum_of_address(const struct sums *now, const struct jit_insn *i,
                                     const ZydisDecodedOperand *op)
{
    int base = insn_gpr(op->mem.base), index = insn_gpr(op->mem.index);
    struct jit_sum sum = sum_constant(jit_displacement(i, op));

    if (base >= 0)
        sum = sum_add(&sum, &now->of[base], 0);
    if (index >= 0)
        sum = sum_add(&sum, &now->of[index], __builtin_ctz(op->mem.scale));
    return sum;
}

/* Of the second operand of MOV, ADD, SUB: 64 bits wide. */
static struct jit_sum sum_of_source(const struct sums *now, const struct jit_insn *i)
{
    const ZydisDecodedOperand *op = &i->operand[1];

    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
        return sum_constant((int64_t)i->in->imm);
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && insn_gpr(op->reg.value) >= 0)
        return now->of[insn_gpr(op->reg.value)];
    return (struct jit_sum){.known = false};
}

/* What the instruction's first operand, a whole register, becomes. */
static struct jit_sum sum_after(const struct sums *now, const struct jit_insn *i, unsigned gpr)
{
    struct jit_sum source = {.known = false}, one = sum_constant(1);

    if (i->class == JIT_LEA)
        return i->operand[1].mem.base == ZYDIS_REGISTER_RIP ? source : sum_of_address(now, i, &i->operand[1]);
    switch (i->z.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        return sum_of_source(now, i);
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        source = sum_of_source(now, i);
        return sum_add(&now->of[gpr], &source, i->z.mnemonic == ZYDIS_MNEMONIC_ADD ? 0 : -1);
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
        return sum_add(&now->of[gpr], &one, i->z.mnemonic == ZYDIS_MNEMONIC_INC ? 0 : -1);
    default:
        return source;
    }
}

static void sums_step(struct sums *now, const struct jit_insn *i)
{
    const ZydisDecodedOperand *first = &i->operand[0];
    bool whole = (i->class == JIT_LEA || i->class == JIT_PLAIN) &&
                 first->type == ZYDIS_OPERAND_TYPE_REGISTER && first->size == 64 &&
                 insn_gpr(first->reg.value) >= 0 && i->written == 1u << insn_gpr(first->reg.value);
    struct jit_sum sum = {.known = false};

    if (whole)
        sum = sum_after(now, i, (unsigned)insn_gpr(first->reg.value));
    for (unsigned gpr = 0; gpr < 16; gpr++) {
        if (i->written >> gpr & 1u)
            now->of[gpr] = sum;
    }
}

static void sums_begin(struct sums *now)
{
    for (unsigned gpr = 0; gpr < 16; gpr++)
        now->of[gpr] = sum_register(gpr);
}

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
}

/* By how much each register moves in a pass; `wild`: who knows. */
static void note_steps(struct jit_loop *loop, const struct sums *end)
{
    for (unsigned gpr = 0; gpr < 16; gpr++) {
        struct jit_sum itself = sum_register(gpr), by = sum_add(&end->of[gpr], &itself, -1);
        bool other = !by.known;

        for (unsigned k = 0; k < 16; k++)
            other |= by.times[k] != 0;
        loop->step[gpr] = by.plus;
        if (other)
            loop->wild |= (uint16_t)(1u << gpr);
    }
}

/* False: it does not move by a constant. */
static bool step_of(const struct jit_loop *loop, const struct jit_sum *sum, int64_t *step)
{
    *step = 0;
    for (unsigned gpr = 0; gpr < 16; gpr++) {
        if (sum->times[gpr] == 0)
            continue;
        if (loop->wild >> gpr & 1u)
            return false;
        *step = (int64_t)((uint64_t)*step + (uint64_t)sum->times[gpr] * (uint64_t)loop->step[gpr]);
    }
    return sum->known;
}

static bool bounded(int64_t value)
{
    return value == (int32_t)value && value < INT32_MAX - 64;
}

/* Where an operand points, in terms of the registers at the head. */
static bool range_of(const struct jit_loop *loop, const struct jit_insn *i,
                     const ZydisDecodedOperand *op, const struct sums *now, struct jit_range *out)
{
    struct jit_sum sum = sum_of_address(now, i, op);
    int64_t step;

    if (!step_of(loop, &sum, &step) || op->size == 0 || !bounded(sum.plus) || step > RANGE_MAX ||
        step < -RANGE_MAX)
        return false;
    *out = (struct jit_range){.base = (int8_t)insn_gpr(op->mem.base),
                              .index = (int8_t)insn_gpr(op->mem.index),
                              .rip = op->mem.base == ZYDIS_REGISTER_RIP,
                              .write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE,
                              .lo = (int32_t)sum.plus, .hi = (int32_t)sum.plus + op->size / 8,
                              .step = (int32_t)step, .sum = sum};
    if (out->index >= 0)
        out->scale = (uint8_t)__builtin_ctz(op->mem.scale);
    return jit_loop_stays(loop, out->base) || jit_loop_stays(loop, out->index);
}

static bool same_sum(const struct jit_sum *a, const struct jit_sum *b)
{
    for (unsigned gpr = 0; gpr < 16; gpr++) {
        if (a->times[gpr] != b->times[gpr])
            return false;
    }
    return true;
}

static bool same_operand(const struct jit_range *a, const struct jit_range *b)
{
    return a->base == b->base && a->index == b->index && a->scale == b->scale && a->rip == b->rip;
}

/* False: it is too long then. */
static bool merge(struct jit_range *into, const struct jit_range *r)
{
    struct jit_range merged = *into;

    merged.lo = r->lo < merged.lo ? r->lo : merged.lo;
    merged.hi = r->hi > merged.hi ? r->hi : merged.hi;
    merged.write |= r->write;
    if ((int64_t)merged.hi - merged.lo > RANGE_MAX)
        return false;
    *into = merged;
    return true;
}

/* The range's number, or -1. */
static int add_range(struct jit_loop *loop, const struct jit_range *r)
{
    for (unsigned k = 0; k < loop->ranges; k++) {
        struct jit_range *there = &loop->range[k];

        if (same_operand(there, r) && same_sum(&there->sum, &r->sum) && merge(there, r))
            return (int)k;
    }
    if (loop->ranges == JIT_LOOP_RANGES)
        return -1;
    loop->range[loop->ranges] = *r;
    return (int)loop->ranges++;
}

/* The access's number, or -1. */
static int add_wild(struct jit_loop *loop, const ZydisDecodedOperand *op)
{
    struct jit_range at = {.base = (int8_t)insn_gpr(op->mem.base),
                           .index = (int8_t)insn_gpr(op->mem.index),
                           .write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE,
                           .hi = op->size / 8};

    if (loop->wilds == JIT_LOOP_RANGES || op->size == 0 || op->mem.base == ZYDIS_REGISTER_RIP)
        return -1;
    if (at.index >= 0)
        at.scale = (uint8_t)__builtin_ctz(op->mem.scale);
    loop->wild_access[loop->wilds] = (struct jit_wild){.at = at};
    return (int)loop->wilds++;
}

static bool add_access(struct jit_loop *loop, const struct jit_insn *i, const struct sums *now,
                       struct jit_loop_access *out)
{
    const ZydisDecodedOperand *op =
        i->class == JIT_PLAIN || i->class == JIT_VECTOR ? jit_memory_operand(i) : NULL;
    struct jit_range r;

    *out = (struct jit_loop_access){-1, -1};
    if (!op)
        return true;
    if (range_of(loop, i, op, now, &r))
        out->range = (int8_t)add_range(loop, &r);
    if (out->range < 0)
        out->wild = (int8_t)add_wild(loop, op);
    return out->range >= 0 || out->wild >= 0;
}

static bool find_accesses(struct jit_translation *t, struct jit_loop *loop)
{
    struct sums now;

    sums_begin(&now);
    for (unsigned k = 0; k < t->insn_count; k++)
        sums_step(&now, &t->work->insn[k]);
    note_steps(loop, &now);
    sums_begin(&now);
    for (unsigned k = 0; k < t->insn_count; k++) {
        if (!add_access(loop, &t->work->insn[k], &now, &t->work->loop_access[k]))
            return false;
        sums_step(&now, &t->work->insn[k]);
    }
    return loop->ranges + loop->wilds > 0;
}

/* ---- registers ---- */

/* One for each range, and for the guest's R8 to R11: T2, then those of guest registers not in use. */
static int take(struct jit_loop *loop, unsigned *next)
{
    static const uint8_t order[] = {GPR_RSP, GPR_R15, GPR_R14, GPR_R13, GPR_R12, GPR_RBP, GPR_RBX,
                                    GPR_RSI, GPR_RDI, GPR_RDX, GPR_RCX, GPR_RAX};

    if (*next == 0) {
        *next = 1;
        if (loop->counter != JIT_T2)
            return JIT_T2;
    }
    while (*next <= sizeof(order)) {
        unsigned gpr = order[(*next)++ - 1];

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

    loop->counter = loop->wilds > 0 ? JIT_T2 : JIT_T1;
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

/* ---- the whole ---- */

static bool leads_to(const struct jit_insn *i, unsigned head)
{
    unsigned target;
    bool back;

    return (i->class == JIT_JCC || i->class == JIT_JMP) && jit_branch_target(i, &target, &back) &&
           back && target == head;
}

bool jit_loop_find(struct jit_translation *t)
{
    struct jit_loop *loop = &t->work->loop;
    const struct jit_insn *first = &t->work->insn[0], *last = &t->work->insn[t->insn_count - 1];

    loop->found = false;
    loop->back = 0;
    loop->link = JIT_LINKS;
    if (!leads_to(last, first->offset))
        return false;
    *loop = (struct jit_loop){.link = JIT_LINKS};
    for (unsigned k = 0; k < t->insn_count; k++) {
        if (!allowed(&t->work->insn[k]))
            return false;
        note_registers(loop, &t->work->insn[k]);
    }
    loop->found = find_accesses(t, loop) && place_registers(loop);
    return loop->found;
}

bool jit_loop_stays(const struct jit_loop *loop, int gpr)
{
    return gpr < 0 || !(loop->written >> gpr & 1u);
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
