/*
 * Contexts: what a vCPU looks up with every access and every jump, in one piece, so that generated code
 * reaches both tables from one base register (cpu->context).
 *
 * Whose it is. Each of the last address spaces that ran at CPL 3 has a context of its own; the least recently
 * used one is recycled. CPL 0-2, CPL 0-2 with RFLAGS.AC, and CPL 3 with alignment checks have one each, shared
 * by all address spaces: when the address space changes, their entries that are not global go.
 * So entries carry no address space, and a hit is one comparison.
 *
 * The TLB turns a linear into a host address, one 4 KiB page an entry. An access finds its entry by its first
 * byte and compares the page of its last byte: crossing a page misses. The jump cache leads from a linear address
 * to a block of the mode it was filled in, and is four-way associative: programs with much code have tens of
 * thousands of targets; a context that comes into use in another mode, or after
 * a soft_jump_flush(), first forgets its jumps.
 *
 * Wiping costs what was filled: bitmaps tell which entries were, and which of them not as global. Without PCIDs
 * each switch of processes pays it. Memory nobody touched is not touched here either: zeros are empty entries, but for
 * those few in which address 0 is looked for.
 *
 * All run on the vCPU's own thread.
 */
#ifndef CPU_SOFT_CONTEXT_H
#define CPU_SOFT_CONTEXT_H

#include <assert.h>
#include <stddef.h>

#include "base/types.h"

struct soft_block;
struct soft_mmu;
struct soft_vcpu;

#define SOFT_TLB_SIZE      8192u
#define SOFT_TLB_EMPTY     0x800ull /* no page's address */
#define SOFT_JUMP_SETS     8192u
#define SOFT_JUMP_WAYS     4u
#define SOFT_JUMP_EMPTY    (1ull << 63 | 1) /* in set 0, where it does not belong */
#define SOFT_JUMP_GLOBAL   (1u << 31)
#define SOFT_USER_CONTEXTS 8u

struct soft_tlb_entry {
    uint64_t read, write; /* the linear page for which the access is allowed, or SOFT_TLB_EMPTY */
    uint64_t addend;      /* linear to host address */
    uint64_t global;      /* bool */
};

struct soft_jump {
    gva_t rip;      /* linear; a value that does not belong into this set when empty */
    uint32_t code;  /* offset in the code buffer of what translated code jumps to */
    uint32_t block; /* soft_jump_block(); SOFT_JUMP_GLOBAL: the page executed from is */
};

static_assert(sizeof(struct soft_tlb_entry) == 32, "generated code scales by it");

/* One cache line. The entry filled last comes first, and pushes the last one out. */
struct soft_jump_set {
    struct soft_jump way[SOFT_JUMP_WAYS];
};
static_assert(sizeof(struct soft_jump_set) == 64, "soft_jump_offset() shifts by it");

/* A set of TLB entries, and of sets of jumps. */
struct soft_context_set {
    uint64_t tlb[SOFT_TLB_SIZE / 64], jump[SOFT_JUMP_SETS / 64];
};

#define SOFT_CONTEXT_STACK 64u /* bytes */

struct soft_context {
    uint8_t stack[SOFT_CONTEXT_STACK]; /* translated code has RSP at its end, and pushes a return address */
    struct soft_tlb_entry tlb[SOFT_TLB_SIZE];
    struct soft_jump_set jump[SOFT_JUMP_SETS];
    struct soft_context_set filled; /* since it was wiped; all others are empty */
    struct soft_context_set local;  /* of filled: those that may not be global */
    uint64_t jump_generation; /* of soft_mmu when `jump` was last wiped; 0: to be wiped */
    uint32_t mode;            /* SOFT_MODE_* of the jumps */
    bool ready;               /* was used: until then its memory is untouched zeros */
};

static inline struct soft_tlb_entry *soft_tlb_slot(struct soft_context *context, gva_t gva)
{
    return &context->tlb[(gva >> PAGE_SHIFT) & (SOFT_TLB_SIZE - 1)];
}

/* What an access must find in its entry's `read` or `write`. */
static inline uint64_t soft_tlb_tag(gva_t gva, unsigned size)
{
    return (gva + size - 1) & PAGE_MASK;
}

#define SOFT_JUMP_HASH_SHIFT 13u
#define SOFT_JUMP_SET_SHIFT  6u

/* Byte offset into jump[] of the set for a linear address. Translated code computes the same (jit/thunk.c). */
static inline uint64_t soft_jump_offset(gva_t rip)
{
    return ((rip ^ rip >> SOFT_JUMP_HASH_SHIFT) & (SOFT_JUMP_SETS - 1)) << SOFT_JUMP_SET_SHIFT;
}

static inline struct soft_jump_set *soft_jump_set(struct soft_context *context, gva_t rip)
{
    return (struct soft_jump_set *)((char *)context->jump + soft_jump_offset(rip));
}

/* NULL: none. */
static inline struct soft_jump *soft_jump_find(struct soft_context *context, gva_t rip)
{
    struct soft_jump_set *set = soft_jump_set(context, rip);

    for (unsigned i = 0; i < SOFT_JUMP_WAYS; i++) {
        if (set->way[i].rip == rip)
            return &set->way[i];
    }
    return NULL;
}

/* Makes cpu->context the one for the vCPU's mmu_index, address space and mode, fit for use. To be called when
 * any of them, or the generation of jumps, changed. */
void soft_context_select(struct soft_vcpu *cpu);

/* Puts a jump, for one to the same address if there is one. */
void soft_context_put_jump(struct soft_context *context, struct soft_jump jump);
/* To be called with each entry filled. */
void soft_context_note_tlb(struct soft_context *context, const struct soft_tlb_entry *e);

/* Afterwards soft_context_select() is due, as the context in use may be among those given up. */
void soft_context_init(struct soft_mmu *mmu);
void soft_context_flush(struct soft_mmu *mmu);       /* every translation, and every user context */
void soft_context_flush_local(struct soft_mmu *mmu); /* shared contexts: all that is not global */
void soft_context_forget(struct soft_mmu *mmu, uint64_t asid); /* an address space's user context */

void soft_context_drop_page(struct soft_mmu *mmu, gva_t page); /* translations of one page, in all */
void soft_context_drop_jumps(struct soft_mmu *mmu, gva_t page);     /* jumps to one page, in all */
bool soft_context_writes(struct soft_mmu *mmu, gva_t page, uint64_t host_page); /* some context does */
void soft_context_revoke_page(struct soft_mmu *mmu, gva_t page);    /* writes to one linear page, in all */
void soft_context_revoke(struct soft_mmu *mmu, uint64_t host_page); /* see soft_tlb_revoke() */

#endif
