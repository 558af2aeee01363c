/* What makes the streams of the differential test: random instructions (generate.c), and loops (generate_loop.c). */
#ifndef TESTS_INSN_GENERATE_H
#define TESTS_INSN_GENERATE_H

#include "tests/insn/diff.h"

/* What the registers of a stream are for: addresses in the data, and small numbers to add to them. By GPR number. */
struct generate {
    struct diff_random *r;
    ZydisDecoder decoder;
    uint16_t pointers, indexes;
};

/* An instruction made, before it is put in its place. */
struct generate_insn {
    uint8_t bytes[16];
    uint8_t family;
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
};

/* A stream being written. */
struct generate_stream {
    struct generate *g;
    struct diff_case *c;
    unsigned at;
    int branch_at;       /* of the last instruction, which goes over the next one; -1: none */
    unsigned branch_imm; /* where its displacement is */
};

/* Less than n. */
unsigned generate_below(struct diff_random *r, unsigned n);
/* One of the set. */
unsigned generate_family_among(const struct generate *g, unsigned families);
/* False: none was found. */
bool generate_insn(const struct generate *g, struct generate_insn *i, unsigned family);

/* There is room for one more while c->count is less than DIFF_INSNS. */
void stream_bytes(struct generate_stream *s, const void *bytes, unsigned len, unsigned family);
/* The last instruction may be a branch: it goes over the next, which is `skip` bytes long. */
void stream_patch_branch(struct generate_stream *s, unsigned skip);
void stream_insn(struct generate_stream *s, struct generate_insn *i);

/* generate_loop.c: at the beginning of a stream, a loop whose pointers move by steps. Sets c->gpr of its counter. */
void stream_loop(struct generate_stream *s, unsigned families);

#endif
