/*
 * The translator: decoded blocks that run often become host code. docs/soft-engine.md tells how.
 *
 * The guest and the host speak the same instruction set, so most instructions are written again as they are.
 * While translated code runs, guest RAX to RDI and R12 to R15 are in the host's registers of the
 * same name, guest R8 to R11 in s.gpr; the host's R8 to R11 are the translator's own (translate.h). GS's
 * base is the vCPU. Arithmetic flags are in the host's flags register or in jit_flags. RIP is known by code_page and
 * the place in the code. The guest's extended state is in the host's registers (fpu_live).
 *
 * Whatever cannot be done inline is the interpreter's: a TLB miss, a rare instruction. Its handler runs
 * on the whole instruction, so that exceptions, page crossing and devices are its business alone.
 *
 * Locks: translating takes the cache's decode lock; linking and removing take the cache lock, held by
 * the caller where said. Everything else is the vCPU's own thread's.
 */
#ifndef CPU_SOFT_JIT_JIT_H
#define CPU_SOFT_JIT_JIT_H

#include "cpu/soft/block.h"
#include "cpu/soft/code.h"
#include "cpu/soft/vcpu.h"

#define SOFT_JIT_META   (16u << 20) /* bytes; touched as they are needed */
#define SOFT_JIT_BLOCKS (1u << 18)

/* Places in the buffer that all blocks share (thunk.c). */
enum soft_jit_thunk {
    JIT_ENTER,        /* void (struct soft_vcpu *, const void *code): returns a link to make, or NULL */
    JIT_RESUME,       /* loads the guest's registers and flags, goes to jit_target */
    JIT_LEAVE,        /* out of JIT_ENTER; guest registers are stored */
    JIT_CALL,         /* R10: struct jit_site, whose instruction the interpreter executes */
    JIT_EXIT_LINK,    /* R10: struct jit_link, or NULL */
    JIT_EXIT_AT,      /* R10: offset in code_page to go on at */
    JIT_EXIT_TO,      /* R10: RIP to go on at */
    JIT_EXIT_JUMP,    /* R11: the jump cache entry's offset; where it leads is not translated */
    JIT_THUNKS
};

/* A direct jump inside a page, from one block's code to another's. Cache lock. */
struct jit_link {
    struct soft_block *target; /* borrowed; NULL: not linked */
    struct jit_link *next;     /* of those that lead to the same block */
    uint32_t site;             /* offset of the displacement */
    uint32_t unlinked;         /* offset of the code that asks for the link */
    uint16_t to;               /* where the jump leads, offset in the page */
    uint8_t flags;             /* JIT_LIVE, JIT_SAVED: where the flags are at the jump */
};

/* Where the host may fault, and what is then to be known. */
struct jit_trap {
    uint32_t at;     /* offset in the buffer of the host instruction */
    uint16_t offset; /* of the guest's instruction in its page */
    uint8_t index;   /* of it in the block */
    uint8_t flags;   /* JIT_LIVE, JIT_SAVED; JIT_POLL: a request for attention */
};

#define JIT_LIVE  0x01u /* in the host's flags register */
#define JIT_SAVED 0x02u /* in jit_flags */
#define JIT_POLL  0x80u

/* The translation of a block. */
struct soft_native {
    struct soft_block *block;
    uint32_t start, end;   /* offsets in the buffer */
    uint32_t entry_live;   /* flags in the host's register */
    uint32_t entry_saved;  /* flags in jit_flags */
    uint32_t stale_live, stale_saved; /* what the entries lead to once the block is removed */
    struct jit_link *incoming;        /* cache lock */
    struct jit_link out[2];
    bool prefers_saved;    /* when a jump has the flags in both places */
    uint16_t trap_count;
    struct jit_trap *trap; /* by address */
};

struct soft_jit {
    struct soft_code *code;  /* borrowed */
    const uint8_t *exec;     /* the buffer's two mappings */
    uint8_t *write;
    uint32_t thunk[JIT_THUNKS];
    uint8_t *meta;           /* owned: struct soft_native and struct jit_trap, until the next reset */
    size_t meta_used;
    struct soft_native **native; /* owned: by address; up to count they may be read without the lock */
    _Atomic uint32_t count;
    uint64_t generation;     /* counts resets; changed while every vCPU is outside the code */
    bool bmi2;
};

/* What the code of a call to the interpreter carries. */
struct jit_site {
    const struct soft_block *block;
    int32_t resume;  /* where to go on, from here */
    uint16_t offset; /* of the instruction in its page */
    uint8_t index;   /* of it in the block */
    uint8_t rest;    /* the interpreter executes what follows as well, to the end of the block */
};

/* -ENOTSUP: this host lacks something the translator needs. */
nodiscard int soft_jit_create(struct soft_code *code, struct soft_jit **out);
void soft_jit_destroy(struct soft_jit *jit); /* NULL is fine */
/* With soft_code_reset: no vCPU is inside translated code. */
void soft_jit_reset(struct soft_jit *jit);

/* Translates a valid block; without effect if it cannot be. Decode lock. FPU parked. */
struct soft_native *soft_jit_translate(struct soft_vcpu *cpu, struct soft_block *block);

/* Runs a translated block, and what it leads to, until the run loop must look. cpu->s is up to date before and
 * after. Answers the link through which the code was left, to be made to the next block, or NULL. */
struct jit_link *soft_jit_run(struct soft_vcpu *cpu, const struct soft_native *native);

/* Cache lock. The block is valid and translated. */
void soft_jit_link(struct soft_jit *jit, struct jit_link *link, struct soft_block *target);
/* Cache lock. Nobody enters the block's code any more. */
void soft_jit_remove(struct soft_jit *jit, struct soft_native *native);

/* The host faulted at this address in translated code: who was there. NULL: none of it. Async-signal-safe. */
const struct jit_trap *soft_jit_trap(const struct soft_jit *jit, const void *address);

static inline const void *soft_jit_address(const struct soft_jit *jit, uint32_t offset)
{
    return jit->exec + offset;
}

/* Between s.rflags and jit_flags (LAHF's form: OF in the low byte, SF to CF in the high one). */
static inline void soft_jit_flags_out(struct soft_vcpu *cpu)
{
    cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)RFLAGS_ARITH) |
                    ((uint64_t)(cpu->jit_flags >> 8) & RFLAGS_ARITH) |
                    (uint64_t)(cpu->jit_flags & 1u) << 11;
}

static inline void soft_jit_flags_in(struct soft_vcpu *cpu)
{
    cpu->jit_flags = (uint16_t)((cpu->s.rflags & 0xffu) << 8 | (cpu->s.rflags >> 11 & 1u));
}

#endif
