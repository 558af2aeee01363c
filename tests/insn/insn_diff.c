/*
 * build/insn-diff [--seed N] [--count INSNS] [--seconds N] [--family NAME]
 *
 * Ends with 0 when every stream came out the same on the host CPU and in the soft engine, 1 with the
 * first instructions that did not and the seed that makes their stream the first (with --count 1).
 */
#include <cpuid.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/compiler.h"
#include "base/types.h"
#include "tests/insn/diff.h"
#include "x86/arch.h"

#define DIFF_REPORTS 40u /* failures told in full */
#define DIFF_FLAGS (RFLAGS_ARITH | RFLAGS_DF | RFLAGS_AC | RFLAGS_ID)
#define DIFF_MASK_BYTES 2432u

struct diff {
    struct diff_shared *shared;
    struct diff_native *native;
    struct diff_guest *guest;
    struct diff_outcome *mine;
    uint64_t compared, streams, faults, failures, deaths;
    uint64_t per_family[DIFF_FAMILIES];
};

static bool diff_xsave_equal(const uint8_t *a, const uint8_t *b, unsigned *where)
{
    /* Not the x87 pointers: AMD forgets them at every XSAVE without a pending exception, so they depend
     * on when the kernel switches threads. Not the reserved parts and the header. */
    static const struct {
        unsigned from, to;
    } part[] = {{0, 6}, {24, 28}, {32, 416}, {576, DIFF_MASK_BYTES}};

    for (unsigned p = 0; p < 4; p++) {
        if (memcmp(a + part[p].from, b + part[p].from, part[p].to - part[p].from) == 0)
            continue;
        for (unsigned i = part[p].from; i < part[p].to; i++) {
            if (a[i] != b[i]) {
                *where = i;
                return false;
            }
        }
    }
    return true;
}

/* Linux shows user accesses to its half of the address space as if all of it were present. */
static bool diff_error_equal(const struct diff_outcome *want, const struct diff_outcome *got)
{
    uint64_t ignored = want->address >> 63 ? PF_P : 0;

    return ((want->error ^ got->error) & ~ignored) == 0;
}

/* The instruction the case ended at; NULL: its end. */
static const struct diff_insn *diff_last(const struct diff_case *c, const struct diff_outcome *o)
{
    for (unsigned i = 0; i < c->count; i++) {
        if (o->rip == DIFF_CODE + c->insn[i].offset && o->vector != VECTOR_BP)
            return &c->insn[i];
    }
    return NULL;
}

static bool diff_is_cmps(const struct diff_case *c, const struct diff_insn *last)
{
    return last && last->family == DIFF_INTEGER &&
           (c->code[last->offset + last->length - 1] & 0xfe) == 0xa6;
}

/* Whether the address lies in the operand of up to eight bytes that the register points to. */
static bool diff_pointed_to(uint64_t address, uint64_t reg)
{
    return address - reg < 8 || address - (uint32_t)reg < 8;
}

/*
 * Where an operand longer than a bus access crosses into a bad page, CR2's offset is the host model's choice. Where both
 * operands of CMPS are bad, so is which of them is told: Zen 4 tells the second, Zen 5 the first.
 */
static bool diff_address_equal(const struct diff_case *c, const struct diff_outcome *want,
                               const struct diff_outcome *got)
{
    const struct diff_insn *last = diff_last(c, want);
    uint64_t mask = last && last->family == DIFF_X87 ? PAGE_MASK : UINT64_MAX;

    if (((want->address ^ got->address) & mask) == 0)
        return true;
    return diff_is_cmps(c, last) && (diff_pointed_to(got->address, got->gpr[GPR_RSI]) ||
                                     diff_pointed_to(got->address, got->gpr[GPR_RDI]));
}

/* A comparing string instruction that faulted half-way will start again: its flags mean nothing yet. */
static bool diff_flags_matter(const struct diff_case *c, const struct diff_outcome *o)
{
    const struct diff_insn *last = diff_last(c, o);
    uint8_t opcode = last ? c->code[last->offset + last->length - 1] : 0;

    return !last || last->family != DIFF_INTEGER ||
           (opcode != 0xa6 && opcode != 0xa7 && opcode != 0xae && opcode != 0xaf);
}

/* Where XSAVE puts a byte of a vector register, in standard format. */
static unsigned diff_vector_byte(unsigned reg, unsigned byte)
{
    unsigned size, offset, c, d;

    if (reg >= 16) {
        __cpuid_count(0xd, 7, size, offset, c, d);
        return offset + 64 * (reg - 16) + byte;
    }
    if (byte < 16)
        return 160 + 16 * reg + byte;
    if (byte < 32)
        return 576 + 16 * reg + byte - 16;
    __cpuid_count(0xd, 6, size, offset, c, d);
    return offset + 32 * reg + byte - 32;
}

/* The bytes that its elements take in the destination of an EVEX gather; `p`: its 62h. */
static unsigned diff_gather_bytes(const uint8_t *p)
{
    unsigned element = p[2] & 0x80u ? 8 : 4, index = p[4] & 1u ? 8 : 4;

    return (16u << (p[3] >> 5 & 3u)) / (index > element ? index : element) * element;
}

/* A gather that a fault stopped half-way has written some elements; whether what is above them has been cleared by
 * then is not specified, and on AMD Zen 4 it depends on the elements. */
static void diff_forget_gather(const struct diff_case *c, const struct diff_outcome *want,
                               struct diff_outcome *got)
{
    const struct diff_insn *last = diff_last(c, want);
    const uint8_t *p = last ? c->code + last->offset : NULL;
    unsigned reg;

    if (!last || last->family != DIFF_AVX512)
        return;
    while (*p == 0x64 || *p == 0x65 || *p == 0x67)
        p++;
    if (p[0] != 0x62 || (p[4] & 0xfc) != 0x90)
        return;
    reg = (p[5] >> 3 & 7u) | (p[1] & 0x80u ? 0 : 8u) | (p[1] & 0x10u ? 0 : 16u);
    for (unsigned i = diff_gather_bytes(p); i < 64; i++) {
        unsigned at = diff_vector_byte(reg, i);

        got->xsave[at] = want->xsave[at];
    }
}

/* NULL when equal; else what differs. */
static const char *diff_compare(const struct diff_case *c, const struct diff_outcome *want,
                                const struct diff_outcome *got, char *text, size_t size)
{
    unsigned where = 0;

    if (want->vector != got->vector || want->rip != got->rip || !diff_error_equal(want, got) ||
        !diff_address_equal(c, want, got)) {
        snprintf(text, size, "end: vector %lu error %lx rip %lx address %lx, host %lu %lx %lx %lx",
                 got->vector, got->error, got->rip, got->address, want->vector, want->error,
                 want->rip, want->address);
        return text;
    }
    for (unsigned i = 0; i < 16; i++) {
        if (want->gpr[i] != got->gpr[i]) {
            snprintf(text, size, "register %u: %lx, host %lx", i, got->gpr[i], want->gpr[i]);
            return text;
        }
    }
    if ((want->rflags ^ got->rflags) & DIFF_FLAGS && diff_flags_matter(c, want)) {
        snprintf(text, size, "rflags %lx, host %lx", got->rflags, want->rflags);
        return text;
    }
    if (!diff_xsave_equal(want->xsave, got->xsave, &where)) {
        snprintf(text, size, "xsave byte %u: %02x, host %02x", where, got->xsave[where],
                 want->xsave[where]);
        return text;
    }
    for (unsigned i = 0; i < DIFF_DATA_SIZE; i++) {
        if (want->data[i] != got->data[i]) {
            snprintf(text, size, "memory +%x: %02x, host %02x", i, got->data[i], want->data[i]);
            return text;
        }
    }
    return NULL;
}

static void diff_print_insn(const struct diff_case *c, unsigned i)
{
    ZydisDisassembledInstruction d;

    if (!ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, DIFF_CODE + c->insn[i].offset,
                                            c->code + c->insn[i].offset, 15, &d)))
        return;
    printf("  %-40s ", d.text);
    for (unsigned j = 0; j < c->insn[i].length; j++)
        printf(" %02x", c->code[c->insn[i].offset + j]);
    printf("\n");
}

static void diff_print_start(const struct diff_case *c)
{
    unsigned size, offset, ecx, edx;
    uint64_t k;

    printf("  at first:");
    for (unsigned i = 0; i < 16; i++)
        printf(" %lx", c->gpr[i]);
    printf(" flags %lx fs %lx gs %lx\n", c->rflags, c->fs_base, c->gs_base);
    if (!(diff_host_families() & 1u << DIFF_AVX512))
        return;
    __cpuid_count(0xd, 5, size, offset, ecx, edx);
    printf("  masks:");
    for (unsigned i = 0; i < 8; i++) {
        memcpy(&k, c->xsave + offset + 8 * i, sizeof(k));
        printf(" %lx", k);
    }
    printf("\n");
}

/* The shortest beginning of the stream that still differs: its last instruction is the culprit. */
static void diff_minimise(struct diff *t, const struct diff_case *whole)
{
    struct diff_case *c = &t->shared->cases[0];
    char text[200];

    for (unsigned n = 1; n <= whole->count; n++) {
        unsigned end = whole->insn[n - 1].offset + whole->insn[n - 1].length;
        const char *why;

        *c = *whole;
        memset(c->code + end, 0xcc, sizeof(c->code) - end);
        t->shared->count = 1;
        if (!diff_native_run(t->native))
            continue;
        diff_guest_run(t->guest, c, t->mine);
        diff_forget_gather(c, &t->shared->outcomes[0], t->mine);
        why = diff_compare(c, &t->shared->outcomes[0], t->mine, text, sizeof(text));
        if (!why)
            continue;
        printf("DIFFERS: %s\n", why);
        for (unsigned i = n > 3 ? n - 3 : 0; i < n; i++)
            diff_print_insn(whole, i);
        diff_print_start(whole);
        return;
    }
    printf("DIFFERS only as a whole stream:\n");
    for (unsigned i = 0; i < whole->count; i++)
        diff_print_insn(whole, i);
}

static void diff_account(struct diff *t, const struct diff_case *c, const struct diff_outcome *o)
{
    uint64_t end = o->rip - DIFF_CODE;

    t->streams++;
    t->faults += o->vector != VECTOR_BP;
    for (unsigned i = 0; i < c->count && c->insn[i].offset <= end; i++) {
        t->compared++;
        t->per_family[c->insn[i].family]++;
    }
}

static void diff_batch(struct diff *t, struct diff_random *r, unsigned families)
{
    static struct diff_case failed[DIFF_BATCH];
    uint64_t seeds[DIFF_BATCH], failed_seeds[DIFF_BATCH];
    unsigned failures = 0;
    char text[200];

    for (unsigned i = 0; i < DIFF_BATCH; i++) {
        seeds[i] = r->state;
        diff_generate(&t->shared->cases[i], r, families);
    }
    t->shared->count = DIFF_BATCH;
    if (!diff_native_run(t->native)) {
        t->deaths++;
        return;
    }
    for (unsigned i = 0; i < DIFF_BATCH; i++) {
        diff_guest_run(t->guest, &t->shared->cases[i], t->mine);
        diff_forget_gather(&t->shared->cases[i], &t->shared->outcomes[i], t->mine);
        diff_account(t, &t->shared->cases[i], &t->shared->outcomes[i]);
        if (!diff_compare(&t->shared->cases[i], &t->shared->outcomes[i], t->mine, text, sizeof(text)))
            continue;
        failed_seeds[failures] = seeds[i];
        failed[failures++] = t->shared->cases[i];
    }
    for (unsigned i = 0; i < failures; i++) {
        if (t->failures++ >= DIFF_REPORTS)
            continue;
        diff_minimise(t, &failed[i]);
        printf("  again: --seed %#lx\n", failed_seeds[i]);
    }
}

static unsigned diff_family_find(const char *name)
{
    for (unsigned i = 0; i < DIFF_FAMILIES; i++) {
        if (strcmp(diff_family_names[i], name) == 0)
            return 1u << i;
    }
    fprintf(stderr, "insn-diff: no family '%s'\n", name);
    exit(64);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"seed", 1, NULL, 's'}, {"count", 1, NULL, 'c'},
                                            {"seconds", 1, NULL, 't'}, {"family", 1, NULL, 'f'},
                                            {NULL, 0, NULL, 0}};
    uint64_t seed = 1, count = 1000000, seconds = 3600, loops;
    unsigned families = diff_host_families();
    struct diff t = {0};
    struct diff_random r;
    time_t start = time(NULL);
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'c': count = strtoull(optarg, NULL, 0); break;
        case 't': seconds = strtoull(optarg, NULL, 0); break;
        case 'f': families = diff_family_find(optarg); break;
        default: return 64;
        }
    }
    t.shared = mmap(NULL, sizeof(*t.shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                    -1, 0);
    t.mine = aligned_alloc(64, sizeof(*t.mine));
    BUG_ON(t.shared == MAP_FAILED || !t.mine);
    setvbuf(stdout, NULL, _IOLBF, 0);
    t.native = diff_native_create(t.shared); /* before the engine takes the signals */
    t.guest = diff_guest_create();
    r.state = seed;
    while (t.compared < count && (uint64_t)(time(NULL) - start) < seconds)
        diff_batch(&t, &r, families);
    loops = diff_guest_loops(t.guest);
    diff_guest_destroy(t.guest);
    diff_native_destroy(t.native);
    printf("seed %lu: %lu instructions compared in %lu streams, %lu ended by a fault, "
           "%lu streams differ, %lu lost\n",
           seed, t.compared, t.streams, t.faults, t.failures, t.deaths);
    printf("%lu loops translated in their second form\n", loops);
    for (unsigned i = 0; i < DIFF_FAMILIES; i++)
        printf("  %-8s %lu\n", diff_family_names[i], t.per_family[i]);
    return t.failures || t.deaths > t.streams / 1000;
}
