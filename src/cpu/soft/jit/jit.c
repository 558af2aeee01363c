/* Running translated code, linking it, and taking it away. */
#include "cpu/soft/jit/jit.h"

#include <cpuid.h>
#include <errno.h>
#include <sys/mman.h>

#include "cpu/soft/fpu.h"
#include "cpu/soft/jit/thunk.h"
#include "cpu/soft/run.h"
#include "cpu/soft/vm.h"

#define THUNKS_SIZE 8192u

static void *jit_pages(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

/* LAHF and SAHF in 64-bit mode. */
static bool host_has_lahf(void)
{
    unsigned a, b, c, d;

    return __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & 1u);
}

static bool host_has_bmi2(void)
{
    unsigned a, b, c, d;

    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 8);
}

/* ---- what translated code calls ---- */

/* Code begins with the address of its struct. */
static struct soft_native *native_of(const void *site, uint16_t start)
{
    return *(struct soft_native *const *)(const void *)((const uint8_t *)site - start);
}

/* Where the guest goes on, when that is translated and nothing else is to be done first; or NULL. */
static const void *elsewhere(struct soft_vcpu *cpu)
{
    const struct soft_jump *jump = soft_jump_find(cpu->context, cpu->s.rip);
    const struct soft_native *native;
    const struct soft_block *block;

    if (!jump || !soft_undisturbed(cpu) || cpu->lockstep)
        return NULL;
    block = soft_jump_block(cpu, jump);
    native = atomic_load_explicit(&block->native, memory_order_acquire);
    if (!native || !atomic_load_explicit(&block->valid, memory_order_relaxed))
        return NULL;
    soft_fpu_use(cpu);
    cpu->x87.fcs = cpu->s.seg[SEG_CS].selector;
    cpu->code_page = cpu->s.rip & PAGE_MASK;
    return soft_jit_address(cpu->soft_vm->jit, native->entry_saved);
}

/* The instruction of a site; NULL: it has just been changed, or there is no room. */
static const struct insn *insn_of(struct soft_vcpu *cpu, const struct soft_native *native,
                                  const struct soft_block *block, const struct jit_site *site)
{
    const struct insn *insn = atomic_load_explicit(&block->insn, memory_order_acquire);

    if (insn)
        return &insn[site->index];
    insn = soft_block_again(cpu, block, site->offset, site->length, site);
    atomic_thread_fence(memory_order_acquire); /* the bytes were read before; a vCPU's store removes the block first */
    return native->removed ? NULL : insn;
}

/* Executes one instruction. Answers where the code goes on, or NULL to leave it. */
static const void *jit_call(struct soft_vcpu *cpu, const struct jit_site *site)
{
    const struct soft_native *native = native_of(site, site->start);
    struct soft_block *block = native->part[site->part].block;
    const struct insn *in;
    int16_t resume = site->resume;
    uint64_t next;

    soft_jit_flags_out(cpu);
    cpu->s.rip = cpu->code_page + site->offset;
    next = cpu->s.rip + site->length;
    cpu->next_rip = next;
    cpu->block = block;
    cpu->end_block = false;
    cpu->stat_slow++;
    in = insn_of(cpu, native, block, site);
    if (unlikely(!in || !soft_block_holds(cpu, block, cpu->s.rip)))
        return NULL; /* before the instruction */
    in->fn(cpu, in);
    cpu->s.rip = cpu->next_rip;
    soft_jit_flags_in(cpu);
    if (cpu->end_block || cpu->s.rip != next || !resume || native->removed) {
        const void *code = elsewhere(cpu); /* end_block first: this code may be gone */

        cpu->stat_left_call += code == NULL;
        return code;
    }
    soft_fpu_use(cpu);
    return (const uint8_t *)site + resume;
}

/* ---- life ---- */

static void make_thunks(struct soft_jit *jit)
{
    struct asm_code a = {.base = jit->write, .bmi2 = jit->bmi2};

    BUG_ON(!soft_code_reserve(jit->code, THUNKS_SIZE, &a.at));
    a.end = a.at + THUNKS_SIZE;
    jit_make_thunks(jit, &a, (uint64_t)(uintptr_t)jit_call);
    BUG_ON(a.overflow);
    soft_code_commit(jit->code, a.at);
    soft_code_keep(jit->code);
}

int soft_jit_create(struct soft_code *code, size_t meta_size, struct soft_jit **out)
{
    struct soft_jit *jit;

    if (!host_has_lahf())
        return -ENOTSUP;
    jit = jit_pages(sizeof(*jit));
    if (!jit)
        return -ENOMEM;
    jit->code = code;
    jit->exec = soft_code_exec_base(code);
    jit->write = soft_code_write_base(code);
    jit->bmi2 = host_has_bmi2();
    jit->meta_size = meta_size;
    jit->meta = jit_pages(meta_size);
    jit->native = jit_pages(SOFT_JIT_BLOCKS * sizeof(*jit->native));
    if (!jit->meta || !jit->native) {
        soft_jit_destroy(jit);
        return -ENOMEM;
    }
    make_thunks(jit);
    *out = jit;
    return 0;
}

void soft_jit_destroy(struct soft_jit *jit)
{
    if (!jit)
        return;
    if (jit->meta)
        munmap(jit->meta, jit->meta_size);
    if (jit->native)
        munmap(jit->native, SOFT_JIT_BLOCKS * sizeof(*jit->native));
    munmap(jit, sizeof(*jit));
}

void soft_jit_reset(struct soft_jit *jit)
{
    atomic_store(&jit->count, 0);
    jit->meta_used = 0;
    jit->generation++;
}

/* ---- running ---- */

static const struct soft_native *native_at(const struct soft_jit *jit, const void *address);

/* The guest goes on at the head of a removed translation. */
static void leave_stale(struct soft_vcpu *cpu, const uint8_t *site)
{
    const struct soft_native *native = native_at(cpu->soft_vm->jit, site);

    BUG_ON(!native);
    cpu->s.rip = cpu->code_page + (native->part[0].block->gpa & ~PAGE_MASK);
}

static struct jit_link *leave_link(struct soft_vcpu *cpu, const uint8_t *site)
{
    const struct jit_link_site *at = (const void *)site;
    struct jit_link *link = &native_of(site, at->start)->link[at->link];

    cpu->s.rip = cpu->code_page + link->to;
    return link;
}

struct jit_link *soft_jit_run(struct soft_vcpu *cpu, const struct soft_native *native)
{
    struct soft_jit *jit = cpu->soft_vm->jit;
    jit_enter_fn *enter = (jit_enter_fn *)(uintptr_t)soft_jit_address(jit, jit->thunk[JIT_ENTER]);
    struct jit_exit exit;

    soft_fpu_use(cpu);
    cpu->x87.fcs = cpu->s.seg[SEG_CS].selector;
    cpu->code_page = cpu->s.rip & PAGE_MASK;
    cpu->jit_generation = jit->generation;
    cpu->stat_entries++;
    soft_jit_flags_in(cpu);
    exit = enter(cpu, soft_jit_address(jit, native->entry_saved));
    soft_jit_flags_out(cpu);
    if (exit.kind == JIT_EXIT_LINK) {
        cpu->stat_left_link++;
        return leave_link(cpu, exit.site);
    }
    if (exit.kind == JIT_EXIT_GP)
        soft_raise_gp(cpu, 0);
    if (exit.kind == JIT_EXIT_STALE) {
        cpu->stat_left_stale++;
        leave_stale(cpu, exit.site);
    }
    return NULL;
}

/* ---- changing code that may be running ---- */

/* A displacement inside one cache line: others see the old or the new one. */
static void set_jump(struct soft_jit *jit, uint32_t site, uint32_t target)
{
    atomic_store_explicit((_Atomic uint32_t *)(void *)(jit->write + site), target - (site + 4),
                          memory_order_release);
}

void soft_jit_publish(struct soft_native *native)
{
    for (unsigned i = 1; i < native->part_count; i++) {
        native->part[i].next = native->part[i].block->native_parts;
        native->part[i].block->native_parts = native;
    }
    atomic_store_explicit(&native->part[0].block->native, native, memory_order_release);
}

void soft_jit_link(struct soft_jit *jit, struct jit_link *link, struct soft_native *target)
{
    bool saved = link->flags & JIT_SAVED;

    if (link->target)
        return;
    if (link->flags == (JIT_LIVE | JIT_SAVED))
        saved = target->prefers_saved;
    link->target = target;
    link->next = target->incoming;
    target->incoming = link;
    set_jump(jit, link->site, saved ? target->entry_saved : target->entry_live);
}

/* An entry begins with a NOP of five bytes, aligned to eight: it becomes a call. */
static void redirect_entry(struct soft_jit *jit, uint32_t entry, uint32_t target)
{
    _Atomic uint64_t *word = (_Atomic uint64_t *)(void *)(jit->write + entry);
    uint64_t old = atomic_load_explicit(word, memory_order_relaxed);
    uint64_t call = 0xe8u | (uint64_t)(uint32_t)(target - (entry + 5)) << 8;

    atomic_store_explicit(word, (old & ~0xffffffffffull) | call, memory_order_release);
}

static void native_remove(struct soft_jit *jit, struct soft_native *native)
{
    if (native->removed)
        return;
    native->removed = true;
    redirect_entry(jit, native->entry_saved, jit->thunk[JIT_EXIT_STALE]);
    if (native->entry_live != native->entry_saved)
        redirect_entry(jit, native->entry_live, jit->thunk[JIT_EXIT_STALE_LIVE]);
    for (struct jit_link *link = native->incoming; link; link = link->next) {
        link->target = NULL;
        set_jump(jit, link->site, link->site + (uint32_t)link->unlinked);
    }
    native->incoming = NULL;
    if (atomic_load_explicit(&native->part[0].block->native, memory_order_relaxed) != native)
        return;
    atomic_store(&native->part[0].block->native, NULL);
    native->part[0].block->runs = 0;
}

static struct soft_native *next_with(const struct soft_native *native,
                                     const struct soft_block *block)
{
    for (unsigned i = 1; i < native->part_count; i++) {
        if (native->part[i].block == block)
            return native->part[i].next;
    }
    BUG("a part is in the list of its translations");
}

void soft_jit_remove(struct soft_jit *jit, struct soft_block *block)
{
    struct soft_native *native = atomic_load_explicit(&block->native, memory_order_relaxed);

    if (native)
        native_remove(jit, native);
    for (native = block->native_parts; native; native = next_with(native, block))
        native_remove(jit, native);
    block->native_parts = NULL;
}

/* ---- faults ---- */

static const struct soft_native *native_at(const struct soft_jit *jit, const void *address)
{
    uint32_t offset = (uint32_t)((const uint8_t *)address - jit->exec);
    uint32_t low = 0, high = atomic_load_explicit(&jit->count, memory_order_acquire);

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (jit->native[middle]->end <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low < jit->count && jit->native[low]->start <= offset ? jit->native[low] : NULL;
}

bool soft_jit_contains(const struct soft_jit *jit, const void *address)
{
    return native_at(jit, address) != NULL;
}

const struct jit_trap *soft_jit_trap(const struct soft_jit *jit, const void *address)
{
    uint32_t offset = (uint32_t)((const uint8_t *)address - jit->exec);
    const struct soft_native *native = native_at(jit, address);

    if (!native)
        return NULL;
    for (unsigned i = 0; i < native->trap_count; i++) {
        if (native->trap[i].at == offset)
            return &native->trap[i];
    }
    return NULL;
}
