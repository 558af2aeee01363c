/* Loops as compilers write them: a body, pointers that move by steps, and a counter that ends it. */
#include <string.h>

#include "tests/insn/generate.h"

#define LOOP_BODY   4u
#define LOOP_PASSES 60u

/* Whether the register, or a part of it, is among the operands. */
static bool names(const struct generate_insn *i, unsigned gpr)
{
    ZydisRegister whole = (ZydisRegister)(ZYDIS_REGISTER_RAX + gpr);

    for (unsigned j = 0; j < i->z.operand_count; j++) {
        const ZydisDecodedOperand *op = &i->operand[j];

        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            (op->mem.base == whole || op->mem.index == whole))
            return true;
        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, op->reg.value) == whole)
            return true;
    }
    return false;
}

static unsigned choose(const struct generate *g, uint16_t set)
{
    unsigned gpr;

    do
        gpr = generate_below(g->r, 16);
    while (!(set >> gpr & 1));
    return gpr;
}

/* An instruction with one general register in ModRM.rm, and an immediate of a byte if `imm` is not NULL. */
static void stream_one(struct generate_stream *s, bool wide, uint8_t opcode, unsigned field, unsigned gpr,
                       const int8_t *imm)
{
    uint8_t b[4] = {(uint8_t)(0x40 | (wide ? 8 : 0) | gpr >> 3), opcode,
                    (uint8_t)(0xc0 | field << 3 | (gpr & 7)), imm ? (uint8_t)*imm : 0};
    unsigned len = imm ? 4 : 3;

    stream_patch_branch(s, len);
    stream_bytes(s, b, len, DIFF_INTEGER);
}

/* lea gpr, [gpr + by] */
static void stream_lea(struct generate_stream *s, unsigned gpr, int8_t by)
{
    uint8_t b[5] = {(uint8_t)(0x48 | gpr >> 3 | (gpr >> 3) << 2), 0x8d,
                    (uint8_t)(0x40 | (gpr & 7) << 3 | (gpr & 7)), (uint8_t)by, 0};
    unsigned len = 4;

    if ((gpr & 7) == 4) { /* SIB */
        b[3] = 0x24;
        b[4] = (uint8_t)by;
        len = 5;
    }
    stream_patch_branch(s, len);
    stream_bytes(s, b, len, DIFF_INTEGER);
}

static void stream_step(struct generate_stream *s, unsigned gpr)
{
    static const int8_t steps[] = {1, 2, 4, 8, 16, 24, 32, 64, 100, -1, -8, -16, -48, -64};
    int8_t by = steps[generate_below(s->g->r, sizeof(steps))];

    switch (generate_below(s->g->r, 4)) {
    case 0:
        stream_lea(s, gpr, by);
        break;
    case 1:
        stream_one(s, true, 0x83, 5, gpr, &by); /* sub */
        break;
    case 2:
        if (by == 1 || by == -1) {
            stream_one(s, true, 0xff, by < 0, gpr, NULL); /* inc, dec */
            break;
        }
        stream_one(s, true, 0x83, 0, gpr, &by); /* add */
        break;
    default:
        stream_one(s, true, 0x83, 0, gpr, &by);
        break;
    }
}

/* movzx index, byte [pointer]: what it is added to moves with the data. */
static void stream_index(struct generate_stream *s)
{
    unsigned to = choose(s->g, s->g->indexes), from = choose(s->g, s->g->pointers);
    uint8_t b[6] = {(uint8_t)(0x40 | (to >> 3) << 2 | from >> 3), 0x0f, 0xb6,
                    (uint8_t)(0x40 | (to & 7) << 3 | (from & 7)), 0, 0};
    unsigned len = 5;

    if ((from & 7) == 4) { /* SIB */
        b[4] = 0x24;
        len = 6;
    }
    stream_bytes(s, b, len, DIFF_INTEGER);
}

/* inc or dec dword [pointer + index * 4], then adc into a register: what is between them leaves CF alone. */
static void stream_count(struct generate_stream *s, unsigned counter)
{
    uint16_t free = (uint16_t)~(s->g->pointers | s->g->indexes | 1u << GPR_RSP | 1u << counter);
    unsigned base = choose(s->g, (uint16_t)(s->g->pointers & ~(1u << GPR_RBP | 1u << GPR_R13)));
    unsigned index = choose(s->g, s->g->indexes);
    uint8_t b[5] = {(uint8_t)(0x40 | (index >> 3) << 1 | base >> 3), 0xff,
                    (uint8_t)(0x04 | generate_below(s->g->r, 2) << 3),
                    (uint8_t)(0x80 | (index & 7) << 3 | (base & 7)), 0};
    static const int8_t zero = 0;

    stream_patch_branch(s, 4);
    stream_bytes(s, b, 4, DIFF_INTEGER);
    if (free)
        stream_one(s, true, 0x83, 2, choose(s->g, free), &zero); /* adc */
}

static void stream_body(struct generate_stream *s, unsigned families, unsigned counter)
{
    unsigned want = s->c->count + 1 + generate_below(s->g->r, LOOP_BODY);
    struct generate_insn insn;

    if (generate_below(s->g->r, 2))
        stream_index(s);

    while (s->c->count < want) {
        if (generate_insn(s->g, &insn, generate_family_among(s->g, families)) && !names(&insn, counter))
            stream_insn(s, &insn);
    }
    if (generate_below(s->g->r, 4) == 0) {
        stream_one(s, true, 0xff, 0, choose(s->g, s->g->pointers), NULL); /* inc */
        stream_count(s, counter);
    }
}

static void stream_back(struct generate_stream *s, unsigned condition, unsigned head)
{
    int32_t distance = -(int32_t)(s->at + 6 - head);
    uint8_t b[6] = {0x0f, (uint8_t)(0x80 | condition)};

    memcpy(b + 2, &distance, sizeof(distance));
    stream_bytes(s, b, sizeof(b), DIFF_INTEGER);
}

/* The counter goes from its first value, the number of passes, to zero; or from zero up to it. */
static void stream_close(struct generate_stream *s, unsigned counter, unsigned head)
{
    static const int8_t one = 1;
    bool wide = generate_below(s->g->r, 2);
    int8_t passes = (int8_t)s->c->gpr[counter];

    switch (generate_below(s->g->r, 6)) {
    case 0:
        stream_one(s, wide, 0xff, 1, counter, NULL); /* dec; jnz */
        stream_back(s, 5, head);
        break;
    case 1:
        stream_one(s, wide, 0x83, 5, counter, &one); /* sub; jg */
        stream_back(s, 15, head);
        break;
    case 2:
        stream_lea(s, counter, -1); /* test; jnz */
        stream_one(s, wide, 0x85, counter & 7, counter, NULL);
        s->c->code[s->at - 3] |= (uint8_t)(counter >> 3 << 2);
        stream_back(s, 5, head);
        break;
    case 3:
        s->c->gpr[counter] = 0;
        stream_one(s, wide, 0xff, 0, counter, NULL); /* inc; cmp; jb */
        stream_one(s, wide, 0x83, 7, counter, &passes);
        stream_back(s, 2, head);
        break;
    case 4:
        s->c->gpr[counter] = 0;
        stream_one(s, true, 0x83, 0, counter, &one); /* add; cmp; jne */
        stream_one(s, wide, 0x83, 7, counter, &passes);
        stream_back(s, 5, head);
        break;
    default:
        s->c->gpr[counter] = 0;
        stream_lea(s, counter, 1); /* cmp; jl */
        stream_one(s, wide, 0x83, 7, counter, &passes);
        stream_back(s, 12, head);
        break;
    }
}

void stream_loop(struct generate_stream *s, unsigned families)
{
    struct generate *g = s->g;
    uint16_t free = (uint16_t)~(g->pointers | g->indexes | 1u << GPR_RSP);
    unsigned counter, head = s->at;

    if (!free)
        return;
    counter = choose(g, free);
    s->c->gpr[counter] = 1 + generate_below(g->r, LOOP_PASSES);
    stream_body(s, families, counter);
    for (unsigned k = 1 + generate_below(g->r, 3); k > 0; k--)
        stream_step(s, choose(g, g->pointers));
    stream_close(s, counter, head);
}
