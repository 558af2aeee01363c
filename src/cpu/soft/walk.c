/* Page-table walks: SDM vol. 3A chapter 4, APM vol. 2 chapter 5. */
#include "core/memory.h"
#include "cpu/soft/mmu.h"

/* One walk in progress. */
struct walk {
    struct soft_vcpu *cpu;
    gva_t gva;
    unsigned index;          /* SOFT_MMU_* */
    enum soft_access access;
    uint64_t reserved;       /* bits that must be zero in every 8-byte entry */
    bool writable, user, no_execute; /* of all levels so far */
    uint32_t fault;          /* PF_P, PF_RSVD */
};

enum walk_status { WALK_OK, WALK_FAULT, WALK_RETRY };

static uint64_t walk_a20(const struct soft_vcpu *cpu)
{
    return mem_a20_mask(cpu->base.vm->machine->mem);
}

/* Tables in ROM can be read, but not marked. */
static void *walk_entry_host(struct walk *w, gpa_t gpa, unsigned size, bool mark)
{
    struct mem_slot *slot = mem_slot_find(w->cpu->base.vm->machine->mem, gpa);

    if (!slot || gpa - slot->gpa + size > slot->size || (mark && mem_page_is_rom(slot, gpa)))
        return NULL;
    return slot->host + (gpa - slot->gpa);
}

static void walk_mark_dirty(struct walk *w, gpa_t gpa)
{
    struct mem_slot *slot = mem_slot_find(w->cpu->base.vm->machine->mem, gpa);
    _Atomic uint8_t *flags = &slot->page[(gpa - slot->gpa) >> PAGE_SHIFT];

    if (!(atomic_load_explicit(flags, memory_order_relaxed) & MEM_PAGE_DIRTY))
        atomic_fetch_or(flags, MEM_PAGE_DIRTY);
}

/* Reads an entry of 4 or 8 bytes. Outside memory everything reads as ones, which is reserved. */
static uint64_t walk_read(struct walk *w, gpa_t gpa, unsigned size)
{
    void *host = walk_entry_host(w, gpa & walk_a20(w->cpu), size, false);

    if (!host)
        return UINT64_MAX;
    if (size == 4)
        return atomic_load_explicit((_Atomic uint32_t *)host, memory_order_relaxed);
    return atomic_load_explicit((_Atomic uint64_t *)host, memory_order_relaxed);
}

/* Sets accessed and dirty bits unless another CPU changed the entry meanwhile. */
static enum walk_status walk_set(struct walk *w, gpa_t gpa, unsigned size, uint64_t entry,
                                 uint64_t bits)
{
    void *host = walk_entry_host(w, gpa & walk_a20(w->cpu), size, true);
    uint32_t old32 = (uint32_t)entry;
    bool done;

    if ((entry & bits) == bits || !host)
        return WALK_OK;
    if (size == 4)
        done = atomic_compare_exchange_strong((_Atomic uint32_t *)host, &old32,
                                              (uint32_t)(entry | bits));
    else
        done = atomic_compare_exchange_strong((_Atomic uint64_t *)host, &entry, entry | bits);
    if (!done)
        return WALK_RETRY;
    walk_mark_dirty(w, gpa & walk_a20(w->cpu));
    return WALK_OK;
}

static bool walk_is_user(unsigned index)
{
    return index == SOFT_MMU_USER || index == SOFT_MMU_USER_AC;
}

/* SDM vol. 3A 4.6 */
static bool walk_allowed(const struct walk *w)
{
    const struct cpu_state *s = &w->cpu->s;

    if (walk_is_user(w->index)) {
        if (!w->user)
            return false;
        return w->access == SOFT_WRITE   ? w->writable
               : w->access == SOFT_FETCH ? !w->no_execute
                                         : true;
    }
    if (w->access == SOFT_FETCH)
        return !w->no_execute && !(w->user && (s->cr4 & CR4_SMEP));
    if (w->user && (s->cr4 & CR4_SMAP) && w->index == SOFT_MMU_KERNEL)
        return false;
    return w->access == SOFT_READ || w->writable || !(s->cr0 & CR0_WP);
}

/* Takes one entry's bits into account. False: not present or reserved bits set. */
static bool walk_take(struct walk *w, uint64_t entry, uint64_t reserved)
{
    if (!(entry & PTE_P))
        return false;
    if (entry & reserved) {
        w->fault = PF_P | PF_RSVD;
        return false;
    }
    w->writable = w->writable && (entry & PTE_W);
    w->user = w->user && (entry & PTE_U);
    w->no_execute = w->no_execute || (entry & PTE_NX);
    return true;
}

static void walk_result(struct walk *w, struct soft_walk *out, gpa_t base, unsigned shift,
                        uint64_t leaf)
{
    uint64_t offset_mask = (1ull << shift) - 1;

    out->gpa = (base & ~offset_mask) | (w->gva & offset_mask);
    out->shift = (uint8_t)shift;
    out->global = (leaf & PTE_G) && (w->cpu->s.cr4 & CR4_PGE);
}

static uint64_t walk_leaf_bits(const struct walk *w)
{
    return w->access == SOFT_WRITE ? PTE_A | PTE_D : PTE_A;
}

/* Four-level and PAE paging: 8-byte entries. `levels` counts down to 1 (the page table). */
static enum walk_status walk_long(struct walk *w, unsigned levels, struct soft_walk *out)
{
    gpa_t at[4];
    uint64_t seen[4];
    uint64_t table = w->cpu->s.cr3 & (levels == 4 ? 0x000ffffffffff000ull : 0xffffffe0ull);
    unsigned n = 0, shift = 0;

    for (unsigned level = levels; level >= 1; level--) {
        uint64_t reserved = w->reserved, entry;
        bool pdpte = levels == 3 && level == 3;

        shift = PAGE_SHIFT + 9 * (level - 1);
        at[n] = table + ((w->gva >> shift) & (pdpte ? 3 : 511)) * 8;
        entry = walk_read(w, at[n], 8);
        if (level == 4)
            reserved |= PTE_PS;
        if (level > 1 && level < 4 && (entry & PTE_PS))
            reserved |= ((1ull << shift) - 1) & ~0x1fffull;
        /* A PAE page-directory pointer has no W, U, A, NX bits (SDM vol. 3A 4.4.1). */
        if (pdpte)
            reserved |= PTE_W | PTE_U | 0x1e0 | PTE_NX;
        if (!walk_take(w, pdpte && (entry & PTE_P) ? entry | PTE_W | PTE_U : entry,
                       pdpte ? reserved & ~(uint64_t)(PTE_W | PTE_U) : reserved))
            return WALK_FAULT;
        seen[n] = entry;
        if (!pdpte)
            n++;
        table = entry & 0x000ffffffffff000ull;
        if (level == 1 || (level < 4 && !pdpte && (entry & PTE_PS)))
            break;
    }
    w->fault = PF_P;
    if (!walk_allowed(w))
        return WALK_FAULT;
    for (unsigned i = 0; i < n; i++) {
        uint64_t bits = i == n - 1 ? walk_leaf_bits(w) : PTE_A;

        if (walk_set(w, at[i], 8, seen[i], bits) != WALK_OK)
            return WALK_RETRY;
    }
    walk_result(w, out, table, shift, seen[n - 1]);
    return WALK_OK;
}

/* 32-bit paging, 4 MiB pages with PSE-36 (SDM vol. 3A 4.3). */
static enum walk_status walk_32(struct walk *w, struct soft_walk *out)
{
    gpa_t pde_at = (w->cpu->s.cr3 & 0xfffff000u) + ((w->gva >> 22) & 1023) * 4;
    uint64_t pde = (uint32_t)walk_read(w, pde_at, 4), pte;
    gpa_t pte_at;

    if ((pde & PTE_PS) && (w->cpu->s.cr4 & CR4_PSE)) {
        if (!walk_take(w, pde, 1u << 21))
            return WALK_FAULT;
        w->fault = PF_P;
        if (!walk_allowed(w))
            return WALK_FAULT;
        walk_result(w, out, (pde & 0xffc00000u) | ((pde & 0x1fe000u) << 19), 22, pde);
        return walk_set(w, pde_at, 4, pde, walk_leaf_bits(w));
    }
    if (!walk_take(w, pde, 0))
        return WALK_FAULT;
    pte_at = (pde & 0xfffff000u) + ((w->gva >> 12) & 1023) * 4;
    pte = (uint32_t)walk_read(w, pte_at, 4);
    if (!walk_take(w, pte, 0))
        return WALK_FAULT;
    w->fault = PF_P;
    if (!walk_allowed(w))
        return WALK_FAULT;
    walk_result(w, out, pte & 0xfffff000u, PAGE_SHIFT, pte);
    if (walk_set(w, pde_at, 4, pde, PTE_A) != WALK_OK)
        return WALK_RETRY;
    return walk_set(w, pte_at, 4, pte, walk_leaf_bits(w));
}

static uint32_t walk_error_code(const struct walk *w)
{
    const struct cpu_state *s = &w->cpu->s;
    uint32_t error = w->fault;

    if (w->access == SOFT_WRITE)
        error |= PF_W;
    if (walk_is_user(w->index))
        error |= PF_U;
    if (w->access == SOFT_FETCH &&
        ((s->cr4 & CR4_SMEP) || ((s->cr4 & CR4_PAE) && (s->efer & EFER_NXE))))
        error |= PF_I;
    return error;
}

bool soft_walk(struct soft_vcpu *cpu, gva_t gva, unsigned index, enum soft_access access,
               struct soft_walk *out)
{
    const struct cpu_state *s = &cpu->s;
    enum walk_status status;
    struct walk w;

    if (!(s->cr0 & CR0_PG)) {
        *out = (struct soft_walk){.gpa = gva & walk_a20(cpu), .shift = 22};
        return true;
    }
    do {
        w = (struct walk){.cpu = cpu, .gva = gva, .index = index, .access = access,
                          .writable = true, .user = true};
        w.reserved = 0x000ffffffffff000ull & ~cpu->mmu->phys_mask;
        if (!(s->efer & EFER_NXE))
            w.reserved |= PTE_NX;
        if (!(s->cr4 & CR4_PAE)) {
            status = walk_32(&w, out);
        } else {
            if (!(s->efer & EFER_LMA)) /* bits 62:52 are reserved in PAE entries */
                w.reserved |= 0x7ff0000000000000ull;
            status = walk_long(&w, s->efer & EFER_LMA ? 4 : 3, out);
        }
    } while (status == WALK_RETRY);
    out->gpa &= walk_a20(cpu);
    if (status == WALK_OK)
        return true;
    out->error = walk_error_code(&w);
    return false;
}
