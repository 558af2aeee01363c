/* Filling and flushing the TLB. Its format is explained in mmu.h. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cpu/soft/block.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"

static void tlb_entry_clear(struct soft_tlb_entry *e)
{
    e->read = SOFT_TLB_EMPTY;
    e->write = SOFT_TLB_EMPTY;
    e->mask = UINT64_MAX;
}

static void exec_entry_clear(struct soft_exec_entry *e)
{
    e->tag = SOFT_TLB_EMPTY;
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
    cpu->tlb = cpu->mmu->tlb[0];
    soft_tlb_flush(cpu);
    return 0;
}

void soft_mmu_destroy(struct soft_vcpu *cpu)
{
    if (cpu->mmu)
        munmap(cpu->mmu, sizeof(*cpu->mmu));
    cpu->mmu = NULL;
}

static void tlb_wipe(struct soft_mmu *mmu)
{
    for (unsigned i = 0; i < SOFT_MMU_INDEXES; i++) {
        for (unsigned k = 0; k < SOFT_TLB_SIZE; k++)
            tlb_entry_clear(&mmu->tlb[i][k]);
    }
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned k = 0; k < SOFT_EXEC_SIZE; k++)
            exec_entry_clear(&mmu->exec[i][k]);
    }
}

static unsigned tlb_pcid(const struct soft_vcpu *cpu)
{
    return cpu->s.cr4 & CR4_PCIDE ? (unsigned)(cpu->s.cr3 & CR3_PCID_MASK) : 0;
}

static void tlb_select(struct soft_vcpu *cpu)
{
    struct soft_mmu *mmu = cpu->mmu;
    unsigned pcid = tlb_pcid(cpu);

    if (mmu->pcid_asid[pcid] == 0) {
        if (mmu->next_asid >= SOFT_TLB_ASIDS) { /* out of numbers: begin again */
            tlb_wipe(mmu);
            soft_zero(mmu->pcid_asid, sizeof(mmu->pcid_asid));
            mmu->next_asid = 1;
            cpu->jump_generation++;
        }
        mmu->pcid_asid[pcid] = mmu->next_asid++;
    }
    mmu->asid = mmu->pcid_asid[pcid];
    soft_jump_context_update(cpu);
    cpu->end_block = true;
}

void soft_tlb_flush(struct soft_vcpu *cpu)
{
    struct soft_mmu *mmu = cpu->mmu;

    tlb_wipe(mmu);
    soft_zero(mmu->pcid_asid, sizeof(mmu->pcid_asid));
    soft_zero(mmu->large, sizeof(mmu->large));
    mmu->next_asid = 1;
    cpu->jump_generation++;
    tlb_select(cpu);
}

void soft_tlb_flush_nonglobal(struct soft_vcpu *cpu)
{
    cpu->mmu->pcid_asid[tlb_pcid(cpu)] = 0;
    tlb_select(cpu);
}

void soft_tlb_flush_pcid(struct soft_vcpu *cpu, unsigned pcid)
{
    cpu->mmu->pcid_asid[pcid & 4095] = 0;
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

static void tlb_drop_page(struct soft_mmu *mmu, gva_t page)
{
    for (unsigned i = 0; i < SOFT_MMU_INDEXES; i++) {
        struct soft_tlb_entry *e = soft_tlb_slot(mmu->tlb[i], page);

        if ((e->read & PAGE_MASK) == page || (e->write & PAGE_MASK) == page)
            tlb_entry_clear(e);
    }
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
    tlb_drop_page(mmu, gva & PAGE_MASK);
    soft_jump_flush_page(cpu, gva);
    cpu->end_block = true;
}

void soft_tlb_flush_pcid_page(struct soft_vcpu *cpu, unsigned pcid, gva_t gva)
{
    (void)pcid; /* entries of every address space go: allowed, and rare */
    soft_tlb_flush_page(cpu, gva);
}

void soft_tlb_revoke(struct soft_vcpu *cpu, uint64_t host_page)
{
    for (unsigned i = 0; i < SOFT_MMU_INDEXES; i++) {
        for (unsigned k = 0; k < SOFT_TLB_SIZE; k++) {
            struct soft_tlb_entry *e = &cpu->mmu->tlb[i][k];

            if (host_page == 0 || (e->write & PAGE_MASK) + e->addend == host_page)
                e->write = SOFT_TLB_EMPTY;
        }
    }
}

/* Remembers a translation to memory for data accesses; for writes only if the page holds no code. */
bool soft_tlb_fill(struct soft_vcpu *cpu, unsigned index, gva_t gva, enum soft_access access,
                   const struct soft_walk *walk, struct mem_slot *slot)
{
    struct soft_mmu *mmu = cpu->mmu;
    struct soft_tlb_entry *e = soft_tlb_slot(mmu->tlb[index], gva);
    uint64_t tag = (gva & PAGE_MASK) | mmu->asid;
    uint64_t mask = walk->global ? SOFT_TLB_MASK_GLOBAL : UINT64_MAX;
    uint64_t addend = (uint64_t)slot->host + (walk->gpa - slot->gpa) - gva;
    bool may_write = access == SOFT_WRITE && soft_code_may_write(cpu, slot, walk->gpa);

    large_note(mmu, gva, walk->shift);
    if (index == SOFT_MMU_USER_AC || soft_debug_watched(cpu, gva))
        return may_write;
    if (e->read != tag || e->mask != mask || e->addend != addend) {
        e->write = SOFT_TLB_EMPTY;
        e->read = tag;
        e->mask = mask;
        e->addend = addend;
    }
    if (may_write)
        e->write = tag;
    return may_write;
}

static void exec_fill(struct soft_vcpu *cpu, struct soft_exec_entry *x, gva_t gva)
{
    struct soft_walk walk = {0};
    struct mem_slot *slot;

    if (!soft_walk(cpu, gva, cpu->cpl == 3 ? SOFT_MMU_USER : SOFT_MMU_KERNEL, SOFT_FETCH, &walk))
        soft_raise_page_fault(cpu, gva, walk.error);
    cpu->stat_tlb_misses++;
    slot = mem_slot_find(cpu->base.vm->machine->mem, walk.gpa);
    large_note(cpu->mmu, gva, walk.shift);
    x->tag = (gva & PAGE_MASK) | cpu->mmu->asid;
    x->mask = walk.global ? SOFT_TLB_MASK_GLOBAL : UINT64_MAX;
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
