/*
 * The decoded-block cache, shared by the vCPUs of a VM.
 *
 * A block is a run of instructions inside one page, keyed by the guest physical address of its
 * first byte and the mode it was decoded for (SOFT_MODE_*); an instruction that crosses a page is a
 * block of its own and belongs to both pages. Blocks do not know their linear address.
 *
 * Consistency. A page with blocks has MEM_PAGE_CODE set and is in no vCPU's TLB for fast writing:
 * before its bytes are read, the vCPUs that may hold a write translation drop it (sync.c). A
 * store to such a page comes here; it removes the blocks whose bytes it touches, and is done under
 * the cache's lock. Each removal bumps the page's generation, and a block decoded meanwhile from
 * older bytes is not inserted. Removed blocks have `valid` false; everyone tests it on entry.
 *
 * Reclaim: blocks live in an arena. When it is full every block is dropped, and it is used again after each vCPU has
 * passed a block edge; until then nothing is inserted. Their decoded instructions live in another, smaller arena:
 * when that is full all of them go, but the blocks and their translations stay. Whoever needs an instruction after
 * that decodes it again.
 */
#ifndef CPU_SOFT_BLOCK_H
#define CPU_SOFT_BLOCK_H

#include "core/memory.h"
#include "cpu/soft/context.h"
#include "cpu/soft/insn.h"
#include "cpu/soft/vcpu.h"

#define SOFT_BLOCK_INSNS 64u

#define SOFT_BLOCK_ONE_PAGE UINT64_MAX /* gpa2 of a block that has no second page */
#define SOFT_BLOCK_COLD     0xffffu

struct soft_native;
struct soft_jit;
struct jit_link;

struct soft_block {
    gpa_t gpa;
    gpa_t gpa2;         /* second page of an instruction that crosses; else SOFT_BLOCK_ONE_PAGE */
    uint32_t mode;
    uint16_t bytes;
    uint8_t count;
    _Atomic bool valid;
    struct soft_block *_Atomic hash_next;
    struct soft_native *_Atomic native; /* translation (jit/jit.h); NULL: none yet. Written under the cache lock */
    struct soft_native *native_parts; /* cache lock: translations in which it is not the head */
    const struct insn *_Atomic insn; /* `count` of them, until the next block edge; NULL: they are gone */
    struct soft_block *page_next[2]; /* cache lock; [1]: in the list of the second page */
    uint16_t runs;      /* times interpreted, roughly; SOFT_BLOCK_COLD: not to be translated */
    uint64_t sum;       /* of its instructions' bytes as they were decoded (soft_block_sum) */
};

/* A block that is not in the cache. */
struct soft_scratch {
    struct soft_block block;
    struct insn insn[SOFT_BLOCK_INSNS];
};

/* Instructions that translated code hands to the interpreter again and again, though their blocks lost them. */
#define SOFT_AGAIN 4096u
struct soft_again {
    const void *key; /* NULL: free */
    uint64_t generation; /* of struct soft_jit */
    struct insn insn;
};

/* Where a cached jump leads. */
static inline struct soft_block *soft_jump_block(const struct soft_vcpu *cpu,
                                                 const struct soft_jump *jump)
{
    return (struct soft_block *)(uintptr_t)(cpu->block_base +
                                            (uint64_t)(jump->block & ~SOFT_JUMP_GLOBAL) * 8);
}

struct soft_cache_options {
    struct soft_jit *jit;      /* borrowed: whose translations hang off the blocks; NULL: none */
    size_t blocks_size, insns_size; /* bytes of the two arenas */
    bool forgets;              /* decoded instructions may go before their blocks */
};

nodiscard int soft_cache_create(struct mem *mem, const struct soft_cache_options *options,
                                struct soft_cache **out);
void soft_cache_destroy(struct soft_cache *cache);
const uint8_t *soft_cache_blocks(const struct soft_cache *cache); /* for soft_vcpu.block_base */

/* The block at CS:RIP, decoded if need be; may raise #PF, #GP. */
struct soft_block *soft_block_find(struct soft_vcpu *cpu, gva_t linear);

/* Jumps cached before no longer count, in any context. Cheap: contexts not in use are wiped when they are again. */
void soft_jump_flush(struct soft_vcpu *cpu);

void soft_jump_flush_page(struct soft_vcpu *cpu, gva_t gva); /* the mapping of one page changed */

/* A vCPU's guest store of 1, 2, 4 or 8 bytes (or any bytes) inside one page that may hold code. */
void soft_code_store(struct soft_vcpu *cpu, struct mem_slot *slot, gpa_t gpa, const void *buf,
                     unsigned len);
/* The vCPU will write [gpa, gpa+len), inside one page, through a pointer before its next block edge. */
void soft_code_open(struct soft_vcpu *cpu, struct mem_slot *slot, gpa_t gpa, unsigned len);
/* Notes that the vCPU is about to hold a write translation; false: it must not, the page holds code. */
bool soft_code_may_write(struct soft_vcpu *cpu, struct mem_slot *slot, gpa_t gpa);
/* A device wrote. Any thread. */
void soft_code_written(void *cache, gpa_t gpa, uint64_t len);
/* At a block edge: the vCPU has seen every removal so far. */
void soft_cache_edge(struct soft_vcpu *cpu);
/* Whether others wait for that (soft_sync_epoch). */
bool soft_cache_edge_due(const struct soft_vcpu *cpu);

/* The block decoded for this address and mode, or NULL. Decode lock or at no block edge: it may be removed at any time. */
struct soft_block *soft_block_peek(struct soft_vcpu *cpu, gpa_t gpa, uint32_t mode);
/* The block, or when its instructions are gone another that has them: it again, or the vCPU's scratch block. `linear` is
 * where the vCPU is, at the block's beginning. May raise as soft_block_find(). */
struct soft_block *soft_block_decoded(struct soft_vcpu *cpu, struct soft_block *block, gva_t linear);
/* One instruction of a block, decoded again: `length` bytes at `offset` in its page. `key` stands for it until the
 * code buffer is reset. NULL: it is no longer there, or there is no room; then the guest goes on at a block edge. */
const struct insn *soft_block_again(struct soft_vcpu *cpu, const struct soft_block *block,
                                    unsigned offset, unsigned length, const void *key);

/* False: an instruction that crosses pages, whose second page is another by now. May raise #PF. */
bool soft_block_second_holds(struct soft_vcpu *cpu, const struct soft_block *block, gva_t linear);
static inline bool soft_block_holds(struct soft_vcpu *cpu, const struct soft_block *block,
                                    gva_t linear)
{
    return likely(block->gpa2 == SOFT_BLOCK_ONE_PAGE) ||
           soft_block_second_holds(cpu, block, linear);
}
/* Adds an instruction's bytes to the sum that tells whether others have the same. Who reads guest memory again compares it: a
 * device may be writing there, of which the cache learns only afterwards. */
uint64_t soft_block_sum(const struct soft_vcpu *cpu, uint64_t sum, const uint8_t *bytes, unsigned length);
/* Translates the block, which has run often. At a block edge. */
void soft_block_translate(struct soft_vcpu *cpu, struct soft_block *block);
/* Joins the code that was left through `link` to the block that follows. */
void soft_block_link(struct soft_vcpu *cpu, struct jit_link *link, struct soft_block *block);
/* Lets jumps to this linear address find the block's translation. */
void soft_block_expose(struct soft_vcpu *cpu, gva_t linear, const struct soft_block *block);

/* decode.c: nothing but an exception comes of it. */
bool soft_decode_faults(const struct insn *in);
/* decode.c: the fields of an instruction that is `length` bytes long; false: it is not. */
bool soft_decode_fields(uint32_t mode, const uint8_t *bytes, unsigned length,
                        ZydisDecodedInstruction *z, ZydisDecodedOperand *operand);

/* decode.c: one instruction from at most `avail` bytes. Always gives something executable, except when the
 * bytes run out: then false. *mode* as in the key. FPU parked. */
bool soft_decode(struct soft_vcpu *cpu, uint32_t mode, const uint8_t *bytes, unsigned avail,
                 struct insn *out);

#endif
