/*
 * The differential instruction test: the same user-mode instructions, on the same state and
 * memory at the same addresses, on the host CPU (native.c, a forked child) and in the soft engine
 * (guest.c); then everything the two can see is compared (insn_diff.c).
 */
#ifndef TESTS_INSN_DIFF_H
#define TESTS_INSN_DIFF_H

#include <Zydis/Zydis.h>
#include <stdbool.h>
#include <stdint.h>

#include "cpu/cpu_state.h"

/* One page, read and execute: a stream that wrote it could make itself instructions that generate_denied() keeps out. */
#define DIFF_CODE   0x200000ull
#define DIFF_DATA   0x300000ull /* writable pages; the page after them is read-only, around it holes */
#define DIFF_DATA_SIZE 0x2000u
#define DIFF_DATA_READONLY (DIFF_DATA + DIFF_DATA_SIZE)
#define DIFF_COUNTER 0x210000ull /* a writable page: how often a stream is still to be repeated */
#define DIFF_INSNS  24u         /* in a stream, at most */
#define DIFF_CODE_SIZE (DIFF_INSNS * 15u + 16u)
#define DIFF_BATCH  128u

/* XSAVE standard format: what is compared of it. */
#define DIFF_XSAVE_REGISTERS 24u

enum diff_family {
    DIFF_INTEGER, DIFF_X87, DIFF_MMX, DIFF_SSE, DIFF_AVX, DIFF_AVX512, DIFF_FAMILIES
};
extern const char *const diff_family_names[DIFF_FAMILIES];

struct diff_insn {
    uint16_t offset;
    uint8_t length;
    uint8_t family;
};

/* What to run. */
struct diff_case {
    uint64_t gpr[16];
    uint64_t rflags;
    uint64_t fs_base, gs_base;
    uint64_t memory_seed;
    uint32_t repeats; /* the first value of DIFF_COUNTER, at which a stream that repeats looks at its end */
    uint8_t code[DIFF_CODE_SIZE]; /* ends with INT3s */
    struct diff_insn insn[DIFF_INSNS];
    uint32_t count;
    uint8_t xsave[CPU_XSAVE_SIZE] __attribute__((aligned(64)));
};

/* What came of it. */
struct diff_outcome {
    uint64_t gpr[16];
    uint64_t rip, rflags;
    uint64_t vector, error, address; /* address: of a page fault */
    uint8_t xsave[CPU_XSAVE_SIZE] __attribute__((aligned(64)));
    uint8_t data[DIFF_DATA_SIZE];
};

struct diff_shared {
    struct diff_case cases[DIFF_BATCH];
    struct diff_outcome outcomes[DIFF_BATCH];
    uint32_t count;
};

/* Fills a page-aligned area with what both sides start from. */
void diff_memory_fill(uint8_t *data, uint32_t size, uint64_t seed);

/* generate.c */
struct diff_random {
    uint64_t state;
};
uint64_t diff_random(struct diff_random *r);
void diff_generate(struct diff_case *c, struct diff_random *r, unsigned families);

/* The state components this host has (XCR0) among those compared, and the families that need no others. */
uint64_t diff_host_states(void);
unsigned diff_host_families(void);
/* Bytes of an XSAVE area that hold them; what is behind is zero on both sides. */
unsigned diff_xsave_size(void);

/* native.c: runs shared->count cases in the child, which is made anew when it died. False: it died. */
struct diff_native;
struct diff_native *diff_native_create(struct diff_shared *shared);
bool diff_native_run(struct diff_native *native);
void diff_native_destroy(struct diff_native *native);

/* guest.c */
struct diff_guest;
struct diff_guest *diff_guest_create(void);
void diff_guest_run(struct diff_guest *guest, const struct diff_case *c, struct diff_outcome *out);
/* How many translations with a second form for loops were made (jit/loop.h). */
uint64_t diff_guest_loops(const struct diff_guest *guest);
void diff_guest_destroy(struct diff_guest *guest);

#endif
