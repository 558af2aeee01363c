/*
 * The translator: decoded blocks that run often become host code. docs/soft-engine.md tells how.
 *
 * The guest and the host speak the same instruction set, so most instructions are written again as they are.
 * While translated code runs, guest RAX to RDI (but RSP) and R12 to R15 are in the host's
 * registers of the same name, RSP in R9, guest R8 to R11 in s.gpr; the host's R8, R10, R11 and RSP are the
 * translator's own (translate.h). GS's
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

#define SOFT_JIT_BLOCKS (1u << 18)

/* Places in the buffer that all blocks share (thunk.c). Those marked * are called, and find their
 * arguments where the call would return to. LIVE: the flags are in the host's register; else they are saved. */
enum soft_jit_thunk {
    JIT_ENTER,          /* jit_enter_fn */
    JIT_LEAVE,          /* out of it: s.rip says where the guest goes on; the guest's registers are stored */
    JIT_CALL,           /* * struct jit_site, whose instruction the interpreter executes */
    JIT_CALL_LIVE,      /* * the same */
    JIT_EXIT_LINK,      /* * struct jit_link_site: a jump that is not linked */
    JIT_EXIT_LINK_LIVE, /* * the same */
    JIT_EXIT_STALE,     /* * nothing: the entry of a block that has been removed */
    JIT_EXIT_STALE_LIVE,/* * the same */
    JIT_EXIT_AT,        /* * uint16_t: offset in code_page to go on at */
    JIT_EXIT_AT_LIVE,   /* * the same */
    JIT_EXIT_TO,        /* R10: RIP to go on at */
    JIT_EXIT_JUMP,      /* R8: RIP to go on at, which is not translated */
    JIT_EXIT_GP,        /* R10: RIP of the instruction that raises #GP(0) */
    /* Through the jump cache. R10 is where to: the linear address, or its distance from code_page where said. A guest
     * that is wanted, or whose way on is not known, is left there; no canonical address raises #GP(0) before the jump. */
    JIT_GO_NEAR,        /* a direct jump; R10: distance */
    JIT_GO_NEAR_LIVE,   /* the same */
    JIT_GO_TO,          /* the same, R10 the linear address, whatever it is */
    JIT_GO,             /* an indirect one; R8: the instruction's offset in its page */
    JIT_GO_RET,         /* RET without operand; R8: the same. RSP is still to be moved */
    JIT_GO_CALL_NEAR,   /* R10: distance; R8: host address of the stack's new top; R11: offset in the page of the
                           instruction's end, its length << 16. Nothing has been pushed */
    JIT_GO_CALL_FAR,    /* the same, R10 the linear address */
    JIT_SYSCALL_64,     /* * struct jit_site: SYSCALL in 64-bit mode; flags saved */
    JIT_SYSRET_64,      /* * the same: SYSRET to 64-bit mode */
    JIT_THUNKS
};

/* How translated code was left. */
struct jit_exit {
    const uint8_t *site; /* of JIT_EXIT_LINK and JIT_EXIT_STALE: what follows the call */
    uint64_t kind;       /* enum soft_jit_thunk: JIT_LEAVE, JIT_EXIT_LINK, JIT_EXIT_STALE or JIT_EXIT_GP */
};
typedef struct jit_exit jit_enter_fn(struct soft_vcpu *cpu, const void *code);

/* A direct jump inside a page, from one translation to another. Cache lock. */
struct jit_link {
    struct soft_native *target; /* NULL: not linked */
    struct jit_link *next;   /* of those that lead to the same */
    uint32_t site;           /* offset of the displacement */
    int16_t unlinked;        /* from there to the code that asks for the link */
    uint16_t to : 12;        /* where the jump leads, offset in the page */
    uint16_t flags : 2;      /* JIT_LIVE, JIT_SAVED: where the flags are at the jump */
};

/* Where the host may fault, and what is then to be known. */
struct jit_trap {
    uint32_t at;     /* offset in the buffer of the host instruction */
    uint16_t offset; /* of the guest's instruction in its page; JIT_LOOP: from here to the code that goes on */
    uint8_t flags;   /* JIT_LIVE, JIT_SAVED; JIT_POLL: a request for attention; JIT_LOOP: in a loop's second form */
};

#define JIT_LIVE  0x01u /* in the host's flags register */
#define JIT_SAVED 0x02u /* in jit_flags */
#define JIT_POLL  0x80u
#define JIT_LOOP  0x40u

#define JIT_PARTS 8u  /* blocks in one translation */
#define JIT_LINKS 20u

struct jit_part {
    struct soft_block *block;
    struct soft_native *next; /* cache lock: list of those in which the block is not the head */
};

/*
 * A translation: of a block, and of what usually follows it in the same page, up to JIT_PARTS blocks. It is entered at
 * its head only, and goes when any of them is removed. Its code begins with its own address (of this struct).
 */
struct soft_native {
    uint32_t number;       /* counts translations since the last reset, from 1 */
    uint32_t start, end;   /* offsets in the buffer */
    uint32_t entry_live;   /* flags in the host's register */
    uint32_t entry_saved;  /* flags in jit_flags */
    uint16_t trap_count;
    uint8_t part_count, link_count;
    bool prefers_saved;    /* when a jump has the flags in both places */
    bool removed;          /* cache lock; the vCPU that executes it looks after each call */
    bool has_loop;         /* a second form of its body (loop.h) */
    struct jit_link *incoming; /* cache lock */
    struct jit_link *link;     /* link_count of them */
    struct jit_trap *trap;     /* by address */
    struct jit_part part[];    /* [0]: the head */
};
static_assert(sizeof(struct soft_native) == 56 && sizeof(struct jit_link) == 24,
              "a large program has a hundred thousand");

struct soft_jit {
    struct soft_code *code;  /* borrowed */
    const uint8_t *exec;     /* the buffer's two mappings */
    uint8_t *write;
    uint32_t thunk[JIT_THUNKS];
    uint8_t *meta;           /* owned: struct soft_native and struct jit_trap, until the next reset */
    size_t meta_size, meta_used; /* bytes */
    struct soft_native **native; /* owned: by address; up to count they may be read without the lock */
    _Atomic uint32_t count;
    uint64_t generation;     /* counts resets; changed while every vCPU is outside the code */
    bool bmi2;
};

/* What follows the call of JIT_CALL. */
struct jit_site {
    uint16_t start;  /* bytes back to the translation's start */
    int16_t resume;  /* where to go on, from here; 0: nowhere */
    uint16_t offset; /* of the instruction in its page */
    uint8_t part : 4;   /* its block */
    uint8_t length : 4; /* its bytes */
    uint8_t index;   /* of it in the block */
};
static_assert(sizeof(struct jit_site) == 8, "the translator writes it piece by piece");

/* What follows the call of JIT_EXIT_LINK. */
struct jit_link_site {
    uint16_t start;
    uint16_t link;
};

/* `meta_size`: bytes for what is kept of translations beside their code. -ENOTSUP: this host lacks something the translator needs. */
nodiscard int soft_jit_create(struct soft_code *code, size_t meta_size, struct soft_jit **out);
void soft_jit_destroy(struct soft_jit *jit); /* NULL is fine */
/* With soft_code_reset: no vCPU is inside translated code. */
void soft_jit_reset(struct soft_jit *jit);

/* Translates from a valid block on; NULL if it cannot be, or there is no room. Decode lock. FPU parked. */
struct soft_native *soft_jit_translate(struct soft_vcpu *cpu, struct soft_block *block);

/* Runs a translated block, and what it leads to, until the run loop must look. cpu->s is up to date before and
 * after. Answers the link through which the code was left, to be made to the next block, or NULL. */
struct jit_link *soft_jit_run(struct soft_vcpu *cpu, const struct soft_native *native);

/* Cache lock. The parts are valid; jumps may lead to it from now on. */
void soft_jit_publish(struct soft_native *native);
/* Cache lock. Does nothing when it is linked. */
void soft_jit_link(struct soft_jit *jit, struct jit_link *link, struct soft_native *target);
/* Cache lock. The block is no more: nobody enters a translation with it. */
void soft_jit_remove(struct soft_jit *jit, struct soft_block *block);

/* The host faulted at this address in translated code: who was there. NULL: none of it. Async-signal-safe. */
const struct jit_trap *soft_jit_trap(const struct soft_jit *jit, const void *address);

bool soft_jit_contains(const struct soft_jit *jit, const void *address); /* async-signal-safe */

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
