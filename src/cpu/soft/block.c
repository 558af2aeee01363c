#include "cpu/soft/block.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "cpu/soft/fpu.h"
#include "cpu/soft/code.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/vm.h"

#define CACHE_HASH_BITS  18u
#define SUM_PRIME        ((1ull << 61) - 1)
#define CACHE_HASH_SIZE  (1u << CACHE_HASH_BITS)

/* What is known of one page of a memory slot. */
struct code_page {
    struct soft_block *blocks;    /* cache lock */
    uint64_t lines;               /* cache lock; a bit for each 64 bytes: unset, no block has any of them */
    _Atomic uint32_t generation;  /* bumped, under the lock, when bytes under blocks may change */
    _Atomic uint16_t writers;     /* who may hold a write translation: 0, index + 1, or many */
    _Atomic uint16_t revoking;    /* vCPUs that took the writers and wait for them to let go */
};

/* Room for objects that go together. */
struct arena {
    uint8_t *base;    /* owned */
    size_t size;      /* bytes */
    size_t used;      /* lock */
    uint64_t drains;  /* lock; the epoch that each vCPU must have seen before it is used again; 0: it is in use */
};

struct soft_cache {
    struct mem *mem;      /* borrowed */
    struct soft_jit *jit; /* borrowed */
    _Atomic uint32_t lock;
    struct code_page *pages[MEM_SLOTS_MAX]; /* owned mappings, one entry a page; mostly untouched */
    struct soft_block *_Atomic hash[CACHE_HASH_SIZE];
    struct arena blocks; /* struct soft_block */
    struct arena insns;  /* their instructions */
    bool forgets;        /* instructions go before everything does */
    _Atomic uint64_t epoch;   /* bumped when blocks or instructions were dropped */
    _Atomic uint64_t dropped; /* counts the times when all blocks were */
    _Atomic uint32_t decode_lock; /* the families' binds share the native code buffer */
    uint64_t sum_key;     /* soft_block_sum's; no guest can know it */
};

/* Two pages at most are under one block. */
struct code_span {
    struct mem_slot *slot;
    struct code_page *page;
    gpa_t gpa; /* of the page */
    uint32_t generation;
};

static uint8_t *cache_map(size_t size)
{
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return map == MAP_FAILED ? NULL : map;
}

static int arena_map(struct arena *arena, size_t size)
{
    arena->base = cache_map(size);
    arena->size = size;
    return arena->base ? 0 : -ENOMEM;
}

static void arena_unmap(struct arena *arena)
{
    if (arena->base)
        munmap(arena->base, arena->size);
}

static bool arena_has(const struct arena *arena, size_t size)
{
    return !arena->drains && arena->used + size <= arena->size;
}

static void *arena_take(struct arena *arena, size_t size)
{
    void *at = arena->base + arena->used;

    arena->used += size;
    return at;
}

/* Every vCPU has seen the epoch; unless it was dropped once more meanwhile. */
static void arena_drained(struct arena *arena, uint64_t epoch)
{
    if (arena->drains != epoch)
        return;
    arena->used = 0;
    arena->drains = 0;
}

int soft_cache_create(struct mem *mem, const struct soft_cache_options *options,
                      struct soft_cache **out)
{
    struct soft_cache *cache = (struct soft_cache *)cache_map(sizeof(*cache));

    if (!cache)
        return -ENOMEM;
    cache->mem = mem;
    cache->jit = options->jit;
    cache->forgets = options->forgets;
    if (getrandom(&cache->sum_key, sizeof(cache->sum_key), 0) != sizeof(cache->sum_key))
        goto err_destroy;
    cache->sum_key = cache->sum_key % (SUM_PRIME - 2) + 2;
    if (arena_map(&cache->blocks, options->blocks_size) < 0 ||
        arena_map(&cache->insns, options->insns_size) < 0)
        goto err_destroy;
    for (unsigned i = 0; i < mem->slot_count; i++) {
        size_t pages = mem->slots[i].size / PAGE_SIZE;

        cache->pages[i] = (struct code_page *)cache_map(pages * sizeof(struct code_page));
        if (!cache->pages[i])
            goto err_destroy;
    }
    *out = cache;
    return 0;

err_destroy:
    soft_cache_destroy(cache);
    return -ENOMEM;
}

void soft_cache_destroy(struct soft_cache *cache)
{
    if (!cache)
        return;
    for (unsigned i = 0; i < MEM_SLOTS_MAX; i++) {
        if (cache->pages[i])
            munmap(cache->pages[i],
                   cache->mem->slots[i].size / PAGE_SIZE * sizeof(struct code_page));
    }
    arena_unmap(&cache->blocks);
    arena_unmap(&cache->insns);
    munmap(cache, sizeof(*cache));
}

const uint8_t *soft_cache_blocks(const struct soft_cache *cache)
{
    return cache->blocks.base;
}

static struct code_page *code_page_of(struct soft_cache *cache, struct mem_slot *slot, gpa_t gpa)
{
    return &cache->pages[slot - cache->mem->slots][(gpa - slot->gpa) >> PAGE_SHIFT];
}

static _Atomic uint8_t *code_flags(struct mem_slot *slot, gpa_t gpa)
{
    return &slot->page[(gpa - slot->gpa) >> PAGE_SHIFT];
}

static struct soft_block *_Atomic *cache_bucket(struct soft_cache *cache, gpa_t gpa, uint32_t mode)
{
    uint64_t h = (gpa ^ ((uint64_t)mode << 20)) * 0x9e3779b97f4a7c15ull;

    return &cache->hash[h >> (64 - CACHE_HASH_BITS)];
}

static void cache_unhash(struct soft_cache *cache, struct soft_block *block)
{
    struct soft_block *_Atomic *at = cache_bucket(cache, block->gpa, block->mode);

    while (*at != block) {
        if (!*at)
            return;
        at = &(*at)->hash_next;
    }
    *at = block->hash_next; /* readers inside the removed block still find its successors */
}

/* Which of a block's page links is that of this page. */
static unsigned block_link(const struct soft_block *block, gpa_t page)
{
    return (block->gpa & PAGE_MASK) == page ? 0 : 1;
}

/* No block is left: the page becomes writable, and what is being decoded is void. */
static void page_close(struct code_page *page, struct mem_slot *slot, gpa_t gpa)
{
    atomic_fetch_add(&page->generation, 1);
    atomic_fetch_and(code_flags(slot, gpa), (uint8_t)~MEM_PAGE_CODE);
}

static void page_unlink(struct soft_cache *cache, struct soft_block *block, gpa_t gpa)
{
    struct mem_slot *slot = mem_slot_any(cache->mem, gpa);
    struct code_page *page = code_page_of(cache, slot, gpa);
    struct soft_block **at = &page->blocks;

    while (*at && *at != block)
        at = &(*at)->page_next[block_link(*at, gpa)];
    if (*at)
        *at = block->page_next[block_link(block, gpa)];
    if (!page->blocks)
        page_close(page, slot, gpa);
}

static void page_drop(struct soft_cache *cache, gpa_t gpa)
{
    struct mem_slot *slot = mem_slot_any(cache->mem, gpa);
    struct code_page *page = code_page_of(cache, slot, gpa);

    if (!page->blocks)
        return;
    page->blocks = NULL;
    page->lines = 0;
    page_close(page, slot, gpa);
}

static void block_remove_locked(struct soft_cache *cache, struct soft_block *block)
{
    atomic_store(&block->valid, false);
    if (cache->jit)
        soft_jit_remove(cache->jit, block);
    cache_unhash(cache, block);
    page_unlink(cache, block, block->gpa & PAGE_MASK);
    if (block->gpa2 != SOFT_BLOCK_ONE_PAGE)
        page_unlink(cache, block, block->gpa2);
}

/* A range of bytes inside a page. */
struct range {
    unsigned first, end;
};

static struct range block_range(const struct soft_block *block, gpa_t page)
{
    unsigned first = (unsigned)(block->gpa & ~PAGE_MASK), end = first + block->bytes;

    if (block_link(block, page) == 1)
        return (struct range){0, end - PAGE_SIZE};
    return (struct range){first, end < PAGE_SIZE ? end : PAGE_SIZE};
}

static uint64_t lines_of(struct range range)
{
    return UINT64_MAX << (range.first / 64) & UINT64_MAX >> (63 - (range.end - 1) / 64);
}

static uint64_t page_lines(const struct soft_block *block, gpa_t page)
{
    uint64_t lines = 0;

    for (; block; block = block->page_next[block_link(block, page)])
        lines |= lines_of(block_range(block, page));
    return lines;
}

/* Removes the blocks that hold any byte of [gpa, gpa+len), which lies inside one page. */
static void page_written_locked(struct soft_cache *cache, struct mem_slot *slot, gpa_t gpa,
                                unsigned len)
{
    gpa_t base = gpa & PAGE_MASK;
    struct code_page *page = code_page_of(cache, slot, base);
    struct range written = {(unsigned)(gpa - base), (unsigned)(gpa - base) + len};
    struct soft_block *block = page->blocks, *next;

    atomic_fetch_add(&page->generation, 1);
    if (block && !(page->lines & lines_of(written)))
        return;
    for (; block; block = next) {
        struct range range = block_range(block, base);

        next = block->page_next[block_link(block, base)];
        if (written.first < range.end && range.first < written.end)
            block_remove_locked(cache, block);
    }
    page->lines = page_lines(page->blocks, base);
    if (!page->blocks)
        atomic_fetch_and(code_flags(slot, base), (uint8_t)~MEM_PAGE_CODE);
}

static void note_writer(struct code_page *page, unsigned index)
{
    uint16_t mine = (uint16_t)(index + 1), old = atomic_load(&page->writers);

    while (old != mine && old != SOFT_WRITERS_MANY) {
        if (atomic_compare_exchange_weak(&page->writers, &old, old ? SOFT_WRITERS_MANY : mine))
            return;
    }
}

/* Partner: page_prepare, which sets the flag and then reads the writers. */
bool soft_code_may_write(struct soft_vcpu *cpu, struct mem_slot *slot, gpa_t gpa)
{
    _Atomic uint8_t *flags = code_flags(slot, gpa);
    uint8_t seen;

    note_writer(code_page_of(cpu->cache, slot, gpa), cpu->base.index);
    atomic_thread_fence(memory_order_seq_cst);
    seen = atomic_load(flags);
    if (!(seen & MEM_PAGE_DIRTY))
        atomic_fetch_or(flags, MEM_PAGE_DIRTY);
    return !(seen & MEM_PAGE_CODE);
}

static void stop_removed_block(struct soft_vcpu *cpu)
{
    if (cpu->block && !atomic_load_explicit(&cpu->block->valid, memory_order_relaxed))
        cpu->end_block = true;
}

static void store_bytes(uint8_t *host, const void *buf, unsigned len)
{
    switch (len) { /* whole, as other CPUs may look */
    case 2:
        *(uint16_t *)host = *(const uint16_t *)buf;
        break;
    case 4:
        *(uint32_t *)host = *(const uint32_t *)buf;
        break;
    case 8:
        *(uint64_t *)host = *(const uint64_t *)buf;
        break;
    default:
        soft_copy(host, buf, len);
    }
}

void soft_code_store(struct soft_vcpu *cpu, struct mem_slot *slot, gpa_t gpa, const void *buf,
                     unsigned len)
{
    struct soft_cache *cache = cpu->cache;

    soft_spin_lock(&cache->lock);
    page_written_locked(cache, slot, gpa, len);
    store_bytes(slot->host + (gpa - slot->gpa), buf, len);
    soft_spin_unlock(&cache->lock);
    stop_removed_block(cpu);
}

void soft_code_open(struct soft_vcpu *cpu, struct mem_slot *slot, gpa_t gpa, unsigned len)
{
    struct soft_cache *cache = cpu->cache;

    soft_spin_lock(&cache->lock);
    note_writer(code_page_of(cache, slot, gpa), cpu->base.index);
    page_written_locked(cache, slot, gpa, len);
    soft_spin_unlock(&cache->lock);
    stop_removed_block(cpu);
}

void soft_code_written(void *opaque, gpa_t gpa, uint64_t len)
{
    struct soft_cache *cache = opaque;

    while (len > 0) {
        struct mem_slot *slot = mem_slot_any(cache->mem, gpa);
        uint64_t part = PAGE_SIZE - (gpa & ~PAGE_MASK);

        if (part > len)
            part = len;
        if (slot && (atomic_load(code_flags(slot, gpa)) & MEM_PAGE_CODE)) {
            soft_spin_lock(&cache->lock);
            page_written_locked(cache, slot, gpa, (unsigned)part);
            soft_spin_unlock(&cache->lock);
        }
        gpa += part;
        len -= part;
    }
}

/*
 * A block whose neighbours all go with it: whole lists go. Searching them for each block would take the square of
 * their length, and a page can have thousands of blocks, the oldest last.
 */
static void block_drop_locked(struct soft_cache *cache, struct soft_block *block)
{
    atomic_store(&block->valid, false);
    if (cache->jit)
        soft_jit_remove(cache->jit, block);
    atomic_store(cache_bucket(cache, block->gpa, block->mode), NULL);
    page_drop(cache, block->gpa & PAGE_MASK);
    if (block->gpa2 != SOFT_BLOCK_ONE_PAGE)
        page_drop(cache, block->gpa2);
}

static struct soft_block *blocks_begin(const struct soft_cache *cache)
{
    return (struct soft_block *)cache->blocks.base;
}

static struct soft_block *blocks_end(const struct soft_cache *cache)
{
    return (struct soft_block *)(cache->blocks.base + cache->blocks.used);
}

/* Drops everything. What is under it may be used again after cache_drained(). */
static void cache_drop_locked(struct soft_cache *cache)
{
    for (struct soft_block *block = blocks_begin(cache); block < blocks_end(cache); block++) {
        if (atomic_load_explicit(&block->valid, memory_order_relaxed))
            block_drop_locked(cache, block);
    }
    atomic_fetch_add(&cache->dropped, 1);
    cache->blocks.drains = cache->insns.drains = atomic_fetch_add(&cache->epoch, 1) + 1;
}

/* Drops the instructions of all blocks. */
static void cache_forget_locked(struct soft_cache *cache)
{
    for (struct soft_block *block = blocks_begin(cache); block < blocks_end(cache); block++)
        atomic_store_explicit(&block->insn, NULL, memory_order_relaxed);
    cache->insns.drains = atomic_fetch_add(&cache->epoch, 1) + 1;
}

/* Waits until nobody is inside what was dropped in this epoch, whose room is free then. */
static void cache_drained(struct soft_vcpu *cpu, uint64_t epoch)
{
    struct soft_cache *cache = cpu->cache;

    soft_cache_edge(cpu);
    soft_sync_epoch(cpu, epoch);
    soft_spin_lock(&cache->lock);
    arena_drained(&cache->blocks, epoch);
    arena_drained(&cache->insns, epoch);
    soft_spin_unlock(&cache->lock);
}

static void ask_for_edges(struct soft_vcpu *cpu)
{
    for (unsigned i = 0; i < SOFT_VCPUS_MAX; i++) {
        struct soft_vcpu *other = atomic_load(&cpu->soft_vm->vcpu[i]);

        if (other && other != cpu)
            atomic_fetch_or(&other->attention, SOFT_ATTN_FLUSH);
    }
}

/* Called with no lock, at a block edge, when there was no room. Afterwards there is, or another vCPU is about to make it. */
static void cache_make_room(struct soft_vcpu *cpu)
{
    struct soft_cache *cache = cpu->cache;
    bool ours = true;
    uint64_t epoch;

    soft_spin_lock(&cache->lock);
    if (cache->blocks.drains || cache->insns.drains) {
        ours = false;
    } else if (cache->forgets && arena_has(&cache->blocks, sizeof(struct soft_block))) {
        cache_forget_locked(cache);
    } else {
        cpu->stat_emptied++;
        cache_drop_locked(cache);
    }
    epoch = atomic_load(&cache->epoch);
    soft_spin_unlock(&cache->lock);
    if (!ours) {
        soft_cache_edge(cpu); /* the other one waits for it */
        return;
    }
    ask_for_edges(cpu);
    cache_drained(cpu, epoch);
}

/* The native code buffer is full: with every other vCPU at a block edge, drops all that points into it. */
static void cache_recycle_code(struct soft_vcpu *cpu)
{
    struct soft_cache *cache = cpu->cache;
    uint64_t epoch;

    soft_exclusive_begin(cpu);
    cpu->stat_emptied++;
    if (soft_code_full(cpu->code)) {
        soft_spin_lock(&cache->lock);
        cache_drop_locked(cache);
        soft_spin_unlock(&cache->lock);
        soft_code_reset(cpu->code);
        if (cache->jit)
            soft_jit_reset(cache->jit);
        ask_for_edges(cpu);
    }
    epoch = atomic_load(&cache->epoch);
    soft_exclusive_end(cpu);
    cache_drained(cpu, epoch);
}

bool soft_cache_edge_due(const struct soft_vcpu *cpu)
{
    return atomic_load_explicit(&cpu->cache_epoch, memory_order_relaxed) !=
               atomic_load(&cpu->cache->epoch) ||
           soft_map_stale(cpu);
}

void soft_cache_edge(struct soft_vcpu *cpu)
{
    uint64_t epoch = atomic_load(&cpu->cache->epoch), dropped = atomic_load(&cpu->cache->dropped);

    soft_map_follow(cpu);
    if (atomic_load_explicit(&cpu->cache_epoch, memory_order_relaxed) == epoch)
        return;
    if (cpu->cache_dropped != dropped)
        soft_jump_flush(cpu);
    cpu->cache_dropped = dropped;
    cpu->block = NULL;
    atomic_store(&cpu->cache_epoch, epoch);
}

void soft_jump_flush(struct soft_vcpu *cpu)
{
    cpu->mmu->jump_generation++;
    soft_zero(cpu->mmu->jumped, sizeof(cpu->mmu->jumped));
    soft_context_select(cpu);
}

static gva_t *jumped_of(struct soft_mmu *mmu, gva_t gva)
{
    return &mmu->jumped[gva >> 63][soft_mmu_hash(gva & PAGE_MASK, PAGE_SHIFT) & (SOFT_JUMPED - 1)];
}

static void jumped_note(struct soft_mmu *mmu, gva_t gva)
{
    gva_t *jumped = jumped_of(mmu, gva), page = (gva & PAGE_MASK) | SOFT_JUMPED_PAGE;

    *jumped = *jumped == 0 || *jumped == page ? page : SOFT_JUMPED_MANY;
}

/* Dropping looks at all jumps there are: not for a page that none leads to, as pages of data are. */
void soft_jump_flush_page(struct soft_vcpu *cpu, gva_t gva)
{
    gva_t *jumped = jumped_of(cpu->mmu, gva);

    if (*jumped != SOFT_JUMPED_MANY && *jumped != ((gva & PAGE_MASK) | SOFT_JUMPED_PAGE))
        return;
    soft_context_drop_jumps(cpu->mmu, gva & PAGE_MASK);
    if (*jumped != SOFT_JUMPED_MANY)
        *jumped = 0;
}

/* Makes the page safe to read code from: see the header. False: not memory. */
static bool page_prepare(struct soft_vcpu *cpu, gpa_t gpa, struct code_span *span)
{
    struct soft_cache *cache = cpu->cache;
    unsigned writers;

    span->gpa = gpa & PAGE_MASK;
    span->slot = mem_slot_find(cache->mem, gpa);
    if (!span->slot)
        return false;
    span->page = code_page_of(cache, span->slot, gpa);
    span->generation = atomic_load(&span->page->generation);
    atomic_fetch_or(code_flags(span->slot, gpa), MEM_PAGE_CODE);
    if (atomic_load(&span->page->writers) != 0) {
        atomic_fetch_add(&span->page->revoking, 1); /* before the set looks empty to others */
        writers = atomic_exchange(&span->page->writers, 0);
        soft_sync_revoke(cpu, writers,
                         (uint64_t)(span->slot->host + (span->gpa - span->slot->gpa)));
        atomic_fetch_sub(&span->page->revoking, 1);
    }
    /* Nobody is in the set: but another vCPU may still be waiting for those it took out. */
    soft_sync_until_zero(cpu, &span->page->revoking);
    return true;
}

/* A polynomial modulo a prime at a secret point. */
static uint64_t sum_step(uint64_t sum, uint64_t key, uint64_t value)
{
    unsigned __int128 product = (unsigned __int128)(sum + value) * key;
    uint64_t folded = (uint64_t)(product & SUM_PRIME) + (uint64_t)(product >> 61);

    return (folded & SUM_PRIME) + (folded >> 61);
}

uint64_t soft_block_sum(const struct soft_vcpu *cpu, uint64_t sum, const uint8_t *bytes, unsigned length)
{
    uint32_t words[4] = {0};

    soft_copy(words, bytes, length);
    words[3] |= length << 24; /* no instruction has a sixteenth byte */
    for (unsigned i = 0; i < 4; i++)
        sum = sum_step(sum, cpu->cache->sum_key, words[i]);
    return sum;
}

/* Each instruction is read once only: a device may be writing it. */
static unsigned decode_run(struct soft_vcpu *cpu, const uint8_t *bytes, unsigned avail,
                           unsigned limit, struct insn *insn, struct soft_block *block)
{
    unsigned count = 0, at = 0;

    block->sum = 0;
    while (count < limit && at < avail) {
        unsigned rest = avail - at > 15 ? 15 : avail - at;
        uint8_t copy[15] = {0};
        bool whole;

        soft_copy(copy, bytes + at, rest);
        soft_spin_lock(&cpu->cache->decode_lock);
        whole = soft_decode(cpu, cpu->mode, copy, rest, &insn[count]);
        soft_spin_unlock(&cpu->cache->decode_lock);
        if (!whole || (count > 0 && insn[count].flags & INSN_ALONE))
            break;
        block->sum = soft_block_sum(cpu, block->sum, copy, insn[count].length);
        at += insn[count].length;
        if (insn[count++].flags & (INSN_ENDS_BLOCK | INSN_ALONE))
            break;
    }
    block->bytes = (uint16_t)at;
    return count;
}

static bool span_unchanged(const struct code_span *span, unsigned spans)
{
    for (unsigned i = 0; i < spans; i++) {
        if (atomic_load(&span[i].page->generation) != span[i].generation ||
            !(atomic_load(code_flags(span[i].slot, span[i].gpa)) & MEM_PAGE_CODE))
            return false;
    }
    return true;
}

static const struct insn *insns_keep(struct soft_cache *cache, const struct soft_scratch *from)
{
    size_t size = from->block.count * sizeof(struct insn);
    struct insn *insn = arena_take(&cache->insns, size);

    soft_copy(insn, from->insn, size);
    return insn;
}

/* Copies a decoded block into the cache unless its pages changed meanwhile. NULL: try again. */
static struct soft_block *cache_insert(struct soft_vcpu *cpu, const struct soft_scratch *from,
                                       const struct code_span *span, unsigned spans, bool *full)
{
    struct soft_cache *cache = cpu->cache;
    struct soft_block *block = NULL, *_Atomic *bucket;

    soft_spin_lock(&cache->lock);
    *full = !arena_has(&cache->blocks, sizeof(*block)) ||
            !arena_has(&cache->insns, from->block.count * sizeof(struct insn));
    if (*full || !span_unchanged(span, spans))
        goto out;
    block = arena_take(&cache->blocks, sizeof(*block));
    soft_copy(block, &from->block, sizeof(*block));
    atomic_store_explicit(&block->insn, insns_keep(cache, from), memory_order_relaxed);
    for (unsigned i = 0; i < spans; i++) {
        block->page_next[i] = span[i].page->blocks;
        span[i].page->blocks = block;
        span[i].page->lines |= lines_of(block_range(block, span[i].gpa));
    }
    bucket = cache_bucket(cache, block->gpa, block->mode);
    atomic_store(&block->hash_next, atomic_load(bucket));
    atomic_store_explicit(bucket, block, memory_order_release);
out:
    soft_spin_unlock(&cache->lock);
    return block;
}

/* Gives a block its instructions back, which were just decoded from the same bytes. */
static bool cache_restore(struct soft_vcpu *cpu, struct soft_block *block,
                          const struct soft_scratch *from, bool *full)
{
    struct soft_cache *cache = cpu->cache;
    bool good;

    soft_spin_lock(&cache->lock);
    *full = !arena_has(&cache->insns, from->block.count * sizeof(struct insn));
    good = atomic_load(&block->valid) && block->count == from->block.count &&
           block->bytes == from->block.bytes && block->gpa2 == from->block.gpa2 &&
           block->sum == from->block.sum && !*full;
    if (good && !atomic_load_explicit(&block->insn, memory_order_relaxed))
        atomic_store_explicit(&block->insn, insns_keep(cache, from), memory_order_release);
    soft_spin_unlock(&cache->lock);
    return good;
}

/* What is read where no memory is. */
static void fill_ones(uint8_t *buf, unsigned len)
{
    for (unsigned i = 0; i < len; i++)
        buf[i] = 0xff;
}

/* The bytes of an instruction that begins in one page and ends in the next. */
static struct soft_exec_entry *gather(struct soft_vcpu *cpu, gva_t linear, const uint8_t *host,
                                      unsigned avail, uint8_t *bytes)
{
    gva_t next = (linear & PAGE_MASK) + PAGE_SIZE;
    struct soft_exec_entry *second;

    if (!(cpu->mode & SOFT_MODE_CODE64))
        next = (uint32_t)next;
    soft_copy(bytes, host, avail);
    second = soft_fetch_page(cpu, next);
    if (second->host)
        soft_copy(bytes + avail, second->host, 15 - avail);
    else
        fill_ones(bytes + avail, 15 - avail);
    return second;
}

static struct soft_block *scratch_begin(struct soft_scratch *scratch, gpa_t gpa, uint32_t mode)
{
    struct soft_block *block = &scratch->block;

    soft_zero(block, sizeof(*block));
    block->gpa = gpa;
    block->gpa2 = SOFT_BLOCK_ONE_PAGE;
    block->mode = mode;
    atomic_store_explicit(&block->insn, scratch->insn, memory_order_relaxed);
    atomic_store_explicit(&block->valid, true, memory_order_relaxed);
    return block;
}

/* Decodes at linear, whose first page is `first`, into *scratch. Gives the number of pages to be
 * watched; 0: not to be cached. */
static unsigned build(struct soft_vcpu *cpu, gva_t linear, const struct soft_exec_entry *first,
                      unsigned limit, struct soft_scratch *scratch, struct code_span *span)
{
    unsigned offset = (unsigned)(linear & ~PAGE_MASK), avail = PAGE_SIZE - offset;
    const uint8_t *host = first->host + offset;
    struct soft_exec_entry *second;
    struct soft_block *block;
    uint8_t bytes[16];
    gpa_t gpa2;

    block = scratch_begin(scratch, first->gpa | offset, cpu->mode);
    if (!page_prepare(cpu, first->gpa, &span[0]))
        return 0;
    block->count = (uint8_t)decode_run(cpu, host, avail, limit, scratch->insn, block);
    if (block->count > 0)
        return 1;
    second = gather(cpu, linear, host, avail, bytes); /* may raise; nothing is held */
    gpa2 = second->gpa;
    if (second->host && page_prepare(cpu, gpa2, &span[1]))
        soft_copy(bytes + avail, second->host, 15 - avail); /* again: it is safe to read now */
    block->count = (uint8_t)decode_run(cpu, bytes, 15, 1, scratch->insn, block);
    if (!second->host || gpa2 == (first->gpa & PAGE_MASK))
        return 0;
    block->gpa2 = gpa2;
    return 2;
}

/* Execution from where no memory is: all ones, uncached. */
static struct soft_block *scratch_block(struct soft_vcpu *cpu, gva_t linear)
{
    struct soft_block *block = scratch_begin(cpu->scratch, linear, cpu->mode);
    uint8_t bytes[15];

    fill_ones(bytes, sizeof(bytes));
    block->count = (uint8_t)decode_run(cpu, bytes, 15, 1, cpu->scratch->insn, block);
    return block;
}

/* The block at linear, if there still is one that may be executed there. */
static struct soft_block *again_there(struct soft_vcpu *cpu, gva_t linear)
{
    const struct soft_exec_entry *first = soft_fetch_page(cpu, linear);
    struct soft_block *block =
        first->host ? soft_block_peek(cpu, first->gpa | (linear & ~PAGE_MASK), cpu->mode) : NULL;

    return block && soft_block_holds(cpu, block, linear) ? block : NULL;
}

/* Decodes at linear. `old`: a block that is to have its instructions back; NULL: a new block. */
static struct soft_block *block_make(struct soft_vcpu *cpu, gva_t linear, struct soft_block *old)
{
    for (;;) {
        struct soft_exec_entry first = *soft_fetch_page(cpu, linear);
        struct soft_block *block;
        struct code_span span[2];
        unsigned spans;
        bool full = false;

        soft_fpu_park(cpu);
        cpu->stat_decodes++;
        if (!first.host)
            return scratch_block(cpu, linear);
        spans = build(cpu, linear, &first, cpu->soft_vm->tuning.block_insns, cpu->scratch, span);
        if (spans == 0)
            return &cpu->scratch->block;
        block = old;
        if (!old)
            block = cache_insert(cpu, cpu->scratch, span, spans, &full);
        else if (!cache_restore(cpu, old, cpu->scratch, &full))
            block = &cpu->scratch->block;
        if (full) { /* nothing decoded before counts after it: the code buffer may have been emptied */
            cache_make_room(cpu);
            soft_sync_service(cpu); /* who makes it instead may be waiting for this vCPU */
            old = old ? again_there(cpu, linear) : NULL;
            continue;
        }
        if (block)
            return block;
        soft_sync_service(cpu);
    }
}

struct soft_block *soft_block_peek(struct soft_vcpu *cpu, gpa_t gpa, uint32_t mode)
{
    struct soft_block *block =
        atomic_load_explicit(cache_bucket(cpu->cache, gpa, mode), memory_order_acquire);

    for (; block; block = atomic_load_explicit(&block->hash_next, memory_order_acquire)) {
        if (block->gpa == gpa && block->mode == mode &&
            atomic_load_explicit(&block->valid, memory_order_acquire))
            return block;
    }
    return NULL;
}

bool soft_block_second_holds(struct soft_vcpu *cpu, const struct soft_block *block, gva_t linear)
{
    gva_t next = (linear & PAGE_MASK) + PAGE_SIZE;

    if (!(cpu->mode & SOFT_MODE_CODE64))
        next = (uint32_t)next;
    return soft_fetch_page(cpu, next)->gpa == block->gpa2;
}

/* What a jump cache entry leads translated code to. */
static uint32_t jump_code(const struct soft_vcpu *cpu, const struct soft_block *block)
{
    const struct soft_jit *jit = cpu->cache->jit;
    const struct soft_native *native;

    if (!jit)
        return 0;
    if (cpu->lockstep)
        return jit->thunk[JIT_EXIT_JUMP];
    native = atomic_load_explicit(&block->native, memory_order_acquire);
    return native ? native->entry_saved : jit->thunk[JIT_EXIT_JUMP];
}

static void jump_fill(struct soft_vcpu *cpu, gva_t linear, struct soft_block *block, bool global)
{
    uint32_t place = (uint32_t)((uint64_t)((const uint8_t *)block - cpu->block_base) / 8);
    struct soft_jump entry = {linear, jump_code(cpu, block), place | (global ? SOFT_JUMP_GLOBAL : 0)};

    soft_context_put_jump(cpu->context, entry);
    jumped_note(cpu->mmu, linear);
}

struct soft_block *soft_block_find(struct soft_vcpu *cpu, gva_t linear)
{
    struct soft_exec_entry *first;
    struct soft_block *block;

    if (unlikely(soft_code_full(cpu->code)))
        cache_recycle_code(cpu);
    first = soft_fetch_page(cpu, linear);
    block = first->host ? soft_block_peek(cpu, first->gpa | (linear & ~PAGE_MASK), cpu->mode) : NULL;
    if (block && !soft_block_holds(cpu, block, linear))
        block = NULL;
    if (!block)
        block = block_make(cpu, linear, NULL);
    if (block == &cpu->scratch->block)
        return block;
    first = soft_fetch_page(cpu, linear);
    jump_fill(cpu, linear, block, first->mask != UINT64_MAX);
    return block;
}

struct soft_block *soft_block_decoded(struct soft_vcpu *cpu, struct soft_block *block, gva_t linear)
{
    if (likely(atomic_load_explicit(&block->insn, memory_order_acquire) != NULL))
        return block;
    return block_make(cpu, linear, block);
}

static bool read_code(struct soft_vcpu *cpu, gpa_t gpa, uint8_t *bytes, unsigned len)
{
    const struct mem_slot *slot = mem_slot_find(cpu->cache->mem, gpa);

    if (slot)
        soft_copy(bytes, slot->host + (gpa - slot->gpa), len);
    return slot != NULL;
}

/* The bytes of an instruction of a block, across two pages perhaps. */
static bool read_again(struct soft_vcpu *cpu, const struct soft_block *block, unsigned offset,
                       unsigned length, uint8_t *bytes)
{
    unsigned here = PAGE_SIZE - offset < length ? PAGE_SIZE - offset : length;

    return read_code(cpu, (block->gpa & PAGE_MASK) | offset, bytes, here) &&
           (here == length || read_code(cpu, block->gpa2, bytes + here, length - here));
}

static bool decode_again(struct soft_vcpu *cpu, const struct soft_block *block, unsigned offset,
                         unsigned length, struct insn *insn)
{
    uint8_t bytes[15];
    bool good;

    soft_fpu_park(cpu);
    cpu->stat_decodes++;
    if (!read_again(cpu, block, offset, length, bytes))
        return false;
    soft_spin_lock(&cpu->cache->decode_lock);
    good = soft_decode(cpu, block->mode, bytes, length, insn);
    soft_spin_unlock(&cpu->cache->decode_lock);
    return good && insn->length == length;
}

const struct insn *soft_block_again(struct soft_vcpu *cpu, const struct soft_block *block,
                                    unsigned offset, unsigned length, const void *key)
{
    struct soft_again *again = &cpu->again[((uintptr_t)key ^ (uintptr_t)key >> 12) % SOFT_AGAIN];
    uint64_t generation = cpu->cache->jit->generation;

    if (likely(again->key == key && again->generation == generation))
        return &again->insn;
    again->key = NULL;
    if (!decode_again(cpu, block, offset, length, &again->insn))
        return NULL;
    if (unlikely(soft_code_full(cpu->code))) { /* its native code may not have found room */
        soft_jump_flush(cpu);
        return NULL;
    }
    again->key = key;
    again->generation = generation;
    return &again->insn;
}

void soft_block_expose(struct soft_vcpu *cpu, gva_t linear, const struct soft_block *block)
{
    struct soft_jump *jump = soft_jump_find(cpu->context, linear);

    if (jump && soft_jump_block(cpu, jump) == block)
        jump->code = jump_code(cpu, block);
}

static bool parts_valid(const struct soft_native *native)
{
    for (unsigned i = 0; i < native->part_count; i++) {
        if (!atomic_load_explicit(&native->part[i].block->valid, memory_order_relaxed))
            return false;
    }
    return true;
}

void soft_block_translate(struct soft_vcpu *cpu, struct soft_block *block)
{
    struct soft_cache *cache = cpu->cache;
    struct soft_native *native;

    soft_fpu_park(cpu);
    soft_spin_lock(&cache->decode_lock);
    native = atomic_load(&block->native) ? NULL : soft_jit_translate(cpu, block);
    soft_spin_lock(&cache->lock);
    if (native && parts_valid(native))
        soft_jit_publish(native);
    else if (!native && !atomic_load(&block->native) && atomic_load(&block->insn)) /* neither another vCPU's, nor gone */
        block->runs = SOFT_BLOCK_COLD;
    soft_spin_unlock(&cache->lock);
    if (native && cpu->soft_vm->tuning.flush && native->number % cpu->soft_vm->tuning.flush == 0)
        soft_code_exhaust(cpu->code);
    soft_spin_unlock(&cache->decode_lock);
    cpu->stat_translated += native != NULL;
}

void soft_block_link(struct soft_vcpu *cpu, struct jit_link *link, struct soft_block *block)
{
    struct soft_cache *cache = cpu->cache;
    struct soft_native *native;

    soft_spin_lock(&cache->lock);
    native = atomic_load(&block->native);
    if (cpu->jit_generation == cache->jit->generation && native && !native->removed)
        soft_jit_link(cache->jit, link, native);
    soft_spin_unlock(&cache->lock);
}
