/* Filling and flushing the TLB: which contexts and tags mean what is explained in context.h and mmu.h. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cpu/soft/block.h"
#include "cpu/soft/descriptor.h"
#include "cpu/soft/lockstep.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"
#include "cpu/soft/vm.h"

static void exec_entry_clear(struct soft_exec_entry *e)
{
    e->tag = SOFT_EXEC_EMPTY;
    e->mask = UINT64_MAX;
}

int soft_mmu_create(struct soft_vcpu *cpu)
{
    void *map = mmap(NULL, sizeof(struct soft_mmu), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned bits = cpu->base.vm->model->phys_bits;

    if (map == MAP_FAILED)
        return -ENOMEM;
    cpu->mmu = map;
    cpu->mmu->phys_mask = (1ull << (bits >= 32 && bits <= 52 ? bits : 40)) - 1;
    soft_context_init(cpu->mmu);
    soft_tlb_flush(cpu);
    return 0;
}

void soft_mmu_destroy(struct soft_vcpu *cpu)
{
    if (cpu->mmu)
        munmap(cpu->mmu, sizeof(*cpu->mmu));
    cpu->mmu = NULL;
}

static void exec_wipe(struct soft_mmu *mmu)
{
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned k = 0; k < SOFT_EXEC_SIZE; k++)
            exec_entry_clear(&mmu->exec[i][k]);
    }
}

static unsigned tlb_pcid(const struct soft_vcpu *cpu)
{
    return cpu->s.cr4 & CR4_PCIDE ? (unsigned)(cpu->s.cr3 & CR3_PCID_MASK) : 0;
}

/* Nothing anybody knows is left but the jumps. */
static void tlb_restart(struct soft_mmu *mmu)
{
    exec_wipe(mmu);
    soft_context_flush(mmu);
    soft_zero(mmu->pcid_asid, sizeof(mmu->pcid_asid));
    mmu->next_asid = 1;
    mmu->asid = 0;
}

/* The number of the address space of CR3; a new one if need be. */
static uint64_t tlb_asid(struct soft_vcpu *cpu)
{
    struct soft_mmu *mmu = cpu->mmu;
    unsigned pcid = tlb_pcid(cpu);

    if (mmu->pcid_asid[pcid])
        return mmu->pcid_asid[pcid];
    if (mmu->next_asid >= SOFT_ASIDS) { /* out of numbers: begin again */
        tlb_restart(mmu);
        mmu->jump_generation++;
    }
    mmu->pcid_asid[pcid] = mmu->next_asid++;
    return mmu->pcid_asid[pcid];
}

static void tlb_select(struct soft_vcpu *cpu)
{
    struct soft_mmu *mmu = cpu->mmu;
    uint64_t asid = tlb_asid(cpu);

    if (asid != mmu->asid)
        soft_context_flush_local(mmu);
    mmu->asid = asid;
    soft_context_select(cpu);
    cpu->end_block = true;
}

void soft_tlb_flush(struct soft_vcpu *cpu)
{
    struct soft_mmu *mmu = cpu->mmu;

    tlb_restart(mmu);
    soft_zero(mmu->large, sizeof(mmu->large));
    mmu->jump_generation++;
    tlb_select(cpu);
}

/* Its number is not used again, so that what is tagged with it matches nothing. */
static void pcid_flush(struct soft_mmu *mmu, unsigned pcid)
{
    if (mmu->pcid_asid[pcid])
        soft_context_forget(mmu, mmu->pcid_asid[pcid]);
    mmu->pcid_asid[pcid] = 0;
}

void soft_tlb_flush_nonglobal(struct soft_vcpu *cpu)
{
    pcid_flush(cpu->mmu, tlb_pcid(cpu));
    tlb_select(cpu);
}

void soft_tlb_flush_pcid(struct soft_vcpu *cpu, unsigned pcid)
{
    pcid_flush(cpu->mmu, pcid & 4095);
    tlb_select(cpu);
}

void soft_tlb_switch(struct soft_vcpu *cpu)
{
    tlb_select(cpu);
}

static bool large_seen(const struct soft_mmu *mmu, gva_t gva, unsigned shift)
{
    unsigned set = (shift >= 30) * 2u + (unsigned)(gva >> 63), hash = soft_mmu_hash(gva, shift);

    return mmu->large[set][hash / 64] >> (hash % 64) & 1;
}

static void large_note(struct soft_mmu *mmu, gva_t gva, unsigned shift)
{
    unsigned set = (shift >= 30) * 2u + (unsigned)(gva >> 63), hash = soft_mmu_hash(gva, shift);

    if (shift > PAGE_SHIFT)
        mmu->large[set][hash / 64] |= 1ull << (hash % 64);
}

static void exec_drop_page(struct soft_mmu *mmu, gva_t page)
{
    for (unsigned i = 0; i < 2; i++) {
        struct soft_exec_entry *x = &mmu->exec[i][(page >> PAGE_SHIFT) & (SOFT_EXEC_SIZE - 1)];

        if ((x->tag & PAGE_MASK) == page)
            exec_entry_clear(x);
    }
}

void soft_tlb_flush_page(struct soft_vcpu *cpu, gva_t gva)
{
    struct soft_mmu *mmu = cpu->mmu;

    if (large_seen(mmu, gva, 21) || large_seen(mmu, gva, 22) || large_seen(mmu, gva, 30)) {
        soft_tlb_flush(cpu); /* pieces of a large page may be anywhere */
        return;
    }
    soft_context_drop_page(mmu, gva & PAGE_MASK);
    exec_drop_page(mmu, gva & PAGE_MASK);
    soft_jump_flush_page(cpu, gva);
    cpu->end_block = true;
}

void soft_tlb_flush_pcid_page(struct soft_vcpu *cpu, unsigned pcid, gva_t gva)
{
    (void)pcid; /* entries of every address space go: allowed, and rare */
    soft_tlb_flush_page(cpu, gva);
}

static struct soft_write_note *note_of(struct soft_mmu *mmu, uint64_t host_page)
{
    return &mmu->note[host_page >> PAGE_SHIFT & (SOFT_WRITE_NOTES - 1)];
}

/* Whoever takes an occupied place may have been noted there before: its other linear pages are not known. */
static void note_begin(struct soft_write_note *note, uint64_t host_page, gva_t page)
{
    note->more = note->host != 0;
    note->host = host_page;
    note->page[0] = page;
    note->page[1] = SOFT_WRITE_NONE;
}

static void note_write(struct soft_mmu *mmu, uint64_t host_page, gva_t page)
{
    struct soft_write_note *note = note_of(mmu, host_page);

    if (note->host != host_page) {
        note_begin(note, host_page, page);
        return;
    }
    for (unsigned i = 0; i < 2; i++) {
        if (note->page[i] == page)
            return;
    }
    for (unsigned i = 0; i < 2; i++) {
        if (!soft_context_writes(mmu, note->page[i], host_page)) { /* that one is gone by now */
            note->page[i] = page;
            return;
        }
    }
    note->more = true;
}

void soft_tlb_revoke(struct soft_vcpu *cpu, uint64_t host_page)
{
    struct soft_write_note *note = note_of(cpu->mmu, host_page);

    if (host_page && note->host == host_page && !note->more) {
        soft_context_revoke_page(cpu->mmu, note->page[0]);
        soft_context_revoke_page(cpu->mmu, note->page[1]);
    } else {
        soft_context_revoke(cpu->mmu, host_page);
    }
    if (note->host == host_page)
        note->host = 0;
}

/* Remembers a translation to memory for data accesses; for writes only if the page holds no code. */
bool soft_tlb_fill(struct soft_vcpu *cpu, unsigned index, gva_t gva, enum soft_access access,
                   const struct soft_walk *walk, struct mem_slot *slot)
{
    struct soft_context *context =
        index == cpu->mmu_index ? cpu->context : &cpu->mmu->context[SOFT_MMU_KERNEL];
    struct soft_tlb_entry *e = soft_tlb_slot(context, gva);
    uint64_t page = gva & PAGE_MASK;
    uint64_t addend = (uint64_t)slot->host + (walk->gpa - slot->gpa) - gva;
    bool may_write = access == SOFT_WRITE && soft_code_may_write(cpu, slot, walk->gpa);

    large_note(cpu->mmu, gva, walk->shift);
    if (index == SOFT_MMU_USER_AC || soft_debug_watched(cpu, gva) || cpu->soft_vm->tuning.slow)
        return may_write;
    if (e->read != page || e->addend != addend) {
        e->write = SOFT_TLB_EMPTY;
        e->read = page;
        e->addend = addend;
    }
    e->global = walk->global;
    soft_context_note_tlb(context, e);
    if (may_write && unlikely(cpu->lockstep != NULL)) {
        soft_lockstep_writable(cpu, e, page);
    } else if (may_write) {
        e->write = page;
        note_write(cpu->mmu, page + addend, page);
    }
    return may_write;
}

static void exec_fill(struct soft_vcpu *cpu, struct soft_exec_entry *x, gva_t gva)
{
    struct soft_walk walk = {0};
    struct mem_slot *slot;

    if (unlikely(!soft_canonical(gva))) /* SYSRET on AMD's processors; or the end of the lower half was passed */
        soft_raise_gp(cpu, 0);
    if (!soft_walk(cpu, gva, cpu->cpl == 3 ? SOFT_MMU_USER : SOFT_MMU_KERNEL, SOFT_FETCH, &walk))
        soft_raise_page_fault(cpu, gva, walk.error);
    cpu->stat_tlb_misses++;
    slot = mem_slot_find(cpu->base.vm->machine->mem, walk.gpa);
    large_note(cpu->mmu, gva, walk.shift);
    x->tag = (gva & PAGE_MASK) | cpu->mmu->asid;
    x->mask = walk.global ? SOFT_EXEC_MASK_GLOBAL : UINT64_MAX;
    x->gpa = walk.gpa & PAGE_MASK;
    x->host = slot ? slot->host + (x->gpa - slot->gpa) : NULL;
}

struct soft_exec_entry *soft_fetch_page(struct soft_vcpu *cpu, gva_t gva)
{
    struct soft_exec_entry *x =
        &cpu->mmu->exec[cpu->cpl == 3][(gva >> PAGE_SHIFT) & (SOFT_EXEC_SIZE - 1)];

    if (unlikely((((gva & PAGE_MASK) | cpu->mmu->asid) ^ x->tag) & x->mask))
        exec_fill(cpu, x, gva);
    return x;
}
