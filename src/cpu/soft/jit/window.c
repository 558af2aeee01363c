/*
 * Windows: one look-up for all that a run of instructions touches near one register.
 *
 * Compilers address the stack and structures by a register and short displacements. When an access is the first of several
 * within WINDOW_SPAN bytes, the whole range is looked up at once, and what is to be added to its addresses stays in T2
 * until the last of them. It holds while the translation runs: whoever takes a translation away from this vCPU waits
 * until it is at a block edge, and what the guest does to its own ends the block (vcpu.h, sync.c).
 *
 * A window that serves writes needs the right to write, which only a page that is dirty already has. So one that is opened
 * by a read serves writes only if one is certain to follow.
 */
#include "cpu/soft/jit/translate.h"

#define WINDOW_SPAN 192 /* bytes: the longer, the more often it would cross a page */

/* An access by one of the host's registers and a displacement. */
struct access {
    unsigned host;
    int32_t disp;
    unsigned size;
    bool write;
};

static struct access stack_access(int32_t disp, bool write)
{
    return (struct access){JIT_RSP, disp, 8, write};
}

static bool operand_access(const struct jit_insn *i, struct access *out)
{
    const ZydisDecodedOperand *op = jit_memory_operand(i);

    if (!op || !jit_is_simple(op))
        return false;
    *out = (struct access){jit_simple_base(op), (int32_t)op->mem.disp.value, op->size / 8u,
                           op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE};
    return true;
}

static bool access_of(const struct jit_insn *i, struct access *out)
{
    switch (i->class) {
    case JIT_PLAIN:
    case JIT_VECTOR:
        return operand_access(i, out);
    case JIT_PUSH:
    case JIT_CALL_NEAR:
        *out = stack_access(-8, true);
        return i->operand[0].type != ZYDIS_OPERAND_TYPE_MEMORY;
    case JIT_POP:
    case JIT_RET:
        *out = stack_access(0, false);
        return true;
    default:
        return false;
    }
}

static bool changes_by_immediate(const struct jit_insn *i)
{
    return (i->z.mnemonic == ZYDIS_MNEMONIC_ADD || i->z.mnemonic == ZYDIS_MNEMONIC_SUB) &&
           i->operand[0].type == ZYDIS_OPERAND_TYPE_REGISTER && i->operand[0].size == 64 &&
           i->operand[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

static bool change_of_plain(const struct jit_insn *i, int64_t *by)
{
    bool inc = i->z.mnemonic == ZYDIS_MNEMONIC_INC, dec = i->z.mnemonic == ZYDIS_MNEMONIC_DEC;

    if (inc || dec) {
        *by = inc ? 1 : -1;
        return i->operand[0].size == 64;
    }
    *by = i->z.mnemonic == ZYDIS_MNEMONIC_SUB ? -(int64_t)i->in->imm : (int64_t)i->in->imm;
    return changes_by_immediate(i);
}

/* By how much the instruction changes the guest's register; false: who knows. */
static bool change_of_guest(const struct jit_insn *i, unsigned gpr, int64_t *by)
{
    const ZydisDecodedOperand *lea = &i->operand[1];

    *by = 0;
    if (i->class == JIT_INTERPRET || i->class == JIT_LEAVE_FRAME ||
        (i->class >= JIT_BIT && i->class <= JIT_SYSTEM))
        return false;
    if (!(i->written >> gpr & 1u))
        return true;
    switch (i->class) {
    case JIT_PUSH:
        *by = -8;
        return true;
    case JIT_POP:
        *by = 8;
        return gpr == GPR_RSP && insn_gpr(i->operand[0].reg.value) != GPR_RSP;
    case JIT_PLAIN:
        return change_of_plain(i, by);
    case JIT_LEA:
        *by = lea->mem.disp.value;
        return i->operand[0].size == 64 && lea->mem.index == ZYDIS_REGISTER_NONE &&
               lea->mem.base == i->operand[0].reg.value;
    default:
        return false;
    }
}

/* The same for the register of a window. */
static bool change_of(const struct jit_insn *i, unsigned host, int64_t *by)
{
    if (jit_is_far(host))
        return change_of_guest(i, host - 8, by);
    return change_of_guest(i, host == JIT_RSP ? (unsigned)GPR_RSP : host, by);
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* What lies ahead of the current instruction: the range of a window that begins with `first`, in terms of the register as
 * it is now. False: nothing else would use it. */
static bool survey(const struct jit_translation *t, const struct access *first,
                   struct jit_window *out)
{
    int64_t moved = 0, by, lo = first->disp, hi = lo + first->size;
    struct access next;
    unsigned uses = 0;
    bool write = first->write, certain = true; /* what follows is executed, too */

    for (unsigned k = t->index; k < t->insn_count; k++) {
        const struct jit_insn *i = &t->work->insn[k];

        if (k > t->index && access_of(i, &next) && next.host == first->host &&
            (write || !next.write || certain)) {
            int64_t from = moved + next.disp, low = least(lo, from), high = most(hi, from + next.size);

            if (high - low <= WINDOW_SPAN) {
                lo = low;
                hi = high;
                out->last = k;
                write |= next.write;
                uses++;
            }
        }
        if (!change_of(i, first->host, &by))
            break;
        certain &= i->class != JIT_JCC;
        moved += by;
        if (moved > INT16_MAX || moved < INT16_MIN)
            break;
    }
    *out = (struct jit_window){true, (uint8_t)first->host, write, (int32_t)lo, (int32_t)hi,
                               uses ? out->last : 0};
    return uses > 0;
}

bool jit_window_open(struct jit_translation *t, unsigned host, int32_t disp, unsigned size,
                     bool write)
{
    struct access first = {host, disp, size, write};
    struct jit_window window = {0};

    if (jit_window_active(t) || t->holds_t2 || host == JIT_T2 || !survey(t, &first, &window))
        return false;
    t->window = window;
    return true;
}

bool jit_window_serves(const struct jit_translation *t, unsigned host, int32_t disp, unsigned size,
                       bool write)
{
    const struct jit_window *w = &t->window;

    return jit_window_active(t) && w->host == host && disp >= w->lo &&
           (int64_t)disp + size <= w->hi && (w->write || !write);
}

bool jit_window_active(const struct jit_translation *t)
{
    return t->window.open && t->index <= t->window.last;
}

void jit_window_after(struct jit_translation *t)
{
    struct jit_window *w = &t->window;
    int64_t by;

    if (!w->open)
        return;
    if (!change_of(t->i, w->host, &by)) {
        w->open = false;
        return;
    }
    w->lo -= (int32_t)by;
    w->hi -= (int32_t)by;
}
