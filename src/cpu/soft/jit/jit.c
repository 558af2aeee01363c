/* Running translated code, linking it, and taking it away. */
#include "cpu/soft/jit/jit.h"

#include <cpuid.h>
#include <errno.h>
#include <sys/mman.h>

#include "cpu/soft/fpu.h"
#include "cpu/soft/jit/thunk.h"
#include "cpu/soft/vm.h"

#define THUNKS_SIZE 4096u

typedef struct jit_link *jit_enter_fn(struct soft_vcpu *cpu, const void *code);

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

/* The rest of the block, for code that relied on what the interpreter may have changed. */
static void interpret_rest(struct soft_vcpu *cpu, const struct soft_block *block, unsigned index)
{
    while (++index < block->count && !cpu->end_block) {
        const struct insn *in = &block->insn[index];

        cpu->next_rip = cpu->s.rip + in->length;
        in->fn(cpu, in);
        cpu->s.rip = cpu->next_rip;
    }
}

/* Executes one instruction. Answers where the code goes on, or NULL to leave it. */
static const void *jit_call(struct soft_vcpu *cpu, const struct jit_site *site)
{
    const struct insn *in = &site->block->insn[site->index];
    uint64_t next;

    soft_jit_flags_out(cpu);
    cpu->s.rip = cpu->code_page + site->offset;
    next = cpu->s.rip + in->length;
    cpu->next_rip = next;
    cpu->block = (struct soft_block *)(uintptr_t)site->block;
    cpu->end_block = false;
    cpu->stat_slow++;
    in->fn(cpu, in);
    cpu->s.rip = cpu->next_rip;
    if (site->rest && !cpu->end_block && cpu->s.rip == next)
        interpret_rest(cpu, site->block, site->index);
    soft_jit_flags_in(cpu);
    if (cpu->end_block || cpu->s.rip != next || !site->resume || site->rest)
        return NULL;
    soft_fpu_use(cpu);
    return (const uint8_t *)site + site->resume;
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

int soft_jit_create(struct soft_code *code, struct soft_jit **out)
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
    jit->meta = jit_pages(SOFT_JIT_META);
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
        munmap(jit->meta, SOFT_JIT_META);
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

struct jit_link *soft_jit_run(struct soft_vcpu *cpu, const struct soft_native *native)
{
    struct soft_jit *jit = cpu->soft_vm->jit;
    jit_enter_fn *enter = (jit_enter_fn *)(uintptr_t)soft_jit_address(jit, jit->thunk[JIT_ENTER]);
    struct jit_link *link;

    soft_fpu_use(cpu);
    cpu->x87.fcs = cpu->s.seg[SEG_CS].selector;
    cpu->code_page = cpu->s.rip & PAGE_MASK;
    cpu->jit_generation = jit->generation;
    cpu->stat_entries++;
    soft_jit_flags_in(cpu);
    link = enter(cpu, soft_jit_address(jit, native->entry_saved));
    soft_jit_flags_out(cpu);
    if (link)
        cpu->s.rip = cpu->code_page + link->to;
    return link;
}

/* ---- changing code that may be running ---- */

/* A displacement inside one cache line: others see the old or the new one. */
static void set_jump(struct soft_jit *jit, uint32_t site, uint32_t target)
{
    atomic_store_explicit((_Atomic uint32_t *)(void *)(jit->write + site), target - (site + 4),
                          memory_order_release);
}

void soft_jit_link(struct soft_jit *jit, struct jit_link *link, struct soft_block *target)
{
    struct soft_native *to = target->native;
    bool saved = link->flags & JIT_SAVED;

    if (link->target)
        return;
    if (link->flags == (JIT_LIVE | JIT_SAVED))
        saved = to->prefers_saved;
    link->target = target;
    link->next = to->incoming;
    to->incoming = link;
    set_jump(jit, link->site, saved ? to->entry_saved : to->entry_live);
}

/* An entry begins with a NOP of five bytes, aligned to eight: it becomes a jump. */
static void redirect_entry(struct soft_jit *jit, uint32_t entry, uint32_t target)
{
    _Atomic uint64_t *word = (_Atomic uint64_t *)(void *)(jit->write + entry);
    uint64_t old = atomic_load_explicit(word, memory_order_relaxed);
    uint64_t jump = 0xe9u | (uint64_t)(uint32_t)(target - (entry + 5)) << 8;

    atomic_store_explicit(word, (old & ~0xffffffffffull) | jump, memory_order_release);
}

void soft_jit_remove(struct soft_jit *jit, struct soft_native *native)
{
    redirect_entry(jit, native->entry_saved, native->stale_saved);
    if (native->entry_live != native->entry_saved)
        redirect_entry(jit, native->entry_live, native->stale_live);
    for (struct jit_link *link = native->incoming; link; link = link->next) {
        link->target = NULL;
        set_jump(jit, link->site, link->unlinked);
    }
    native->incoming = NULL;
}

/* ---- faults ---- */

static const struct soft_native *native_at(const struct soft_jit *jit, uint32_t offset)
{
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

const struct jit_trap *soft_jit_trap(const struct soft_jit *jit, const void *address)
{
    uint32_t offset = (uint32_t)((const uint8_t *)address - jit->exec);
    const struct soft_native *native = native_at(jit, offset);

    if (!native)
        return NULL;
    for (unsigned i = 0; i < native->trap_count; i++) {
        if (native->trap[i].at == offset)
            return &native->trap[i];
    }
    return NULL;
}
