/*
 * Guest memory as an instruction sees it: segmentation, paging, the TLB, memory-mapped I/O.
 *
 * Linear accesses raise #PF, #AC, and for non-canonical addresses #GP(0) (#SS(0) when seg is SS)
 * by themselves; stores to pages that hold decoded code invalidate it. Accesses may cross pages:
 * both are checked before anything is written. `size` is 1, 2, 4 or 8.
 * All run on the vCPU's own thread.
 */
#ifndef CPU_SOFT_MMU_H
#define CPU_SOFT_MMU_H

#include "core/memory.h"
#include "cpu/soft/context.h"
#include "cpu/soft/insn.h"
#include "cpu/soft/vcpu.h"

/* Privilege of data accesses, and where in soft_mmu.context their TLB is. */
enum soft_mmu_index {
    SOFT_MMU_KERNEL,    /* CPL 0-2: SMAP enforced when CR4.SMAP */
    SOFT_MMU_KERNEL_AC, /* CPL 0-2 with RFLAGS.AC: SMAP not enforced */
    SOFT_MMU_USER_AC,   /* CPL 3 with alignment checks: its TLB stays empty */
    SOFT_MMU_USER,      /* CPL 3: the first of SOFT_USER_CONTEXTS */
};
#define SOFT_CONTEXTS (SOFT_MMU_USER + SOFT_USER_CONTEXTS)

enum soft_access { SOFT_READ, SOFT_WRITE, SOFT_FETCH };

/* Segment + offset to linear address, with the limit, type and canonical checks due for an access of `size`
 * bytes outside 64-bit mode; in 64-bit mode only FS/GS bases count. Raises #GP(0) or #SS(0). */
gva_t soft_linear(struct soft_vcpu *cpu, unsigned seg, uint64_t offset, unsigned size,
                  enum soft_access access);

/* The memory operand's linear address (insn_ea + soft_linear, with the 64-bit and flat fast paths). */
gva_t soft_operand(struct soft_vcpu *cpu, const struct insn *in, unsigned size,
                   enum soft_access access);

/*
 * An address space is a PCID since its last flush, and has a number (ASID): flushing one just gives it a new
 * number. Data accesses find translations in contexts (context.h). Those for instruction fetch are tagged: the
 * linear page with the ASID in bits 10:0; bit 11 is set in tags that match nothing. `mask` leaves the
 * ASID out for global pages.
 */
#define SOFT_ASIDS            0x7ffu /* 1 to 0x7fe are used */
#define SOFT_EXEC_EMPTY       0x800ull
#define SOFT_EXEC_MASK_GLOBAL (PAGE_MASK | SOFT_EXEC_EMPTY)
#define SOFT_EXEC_SIZE        512u

struct soft_exec_entry { /* instruction fetch */
    uint64_t tag, mask;
    uint8_t *host; /* of the page; NULL: not memory */
    gpa_t gpa;
};

/* Where a host page may be written from, so that taking that away need not search (tlb.c). */
#define SOFT_WRITE_NOTES 4096u
#define SOFT_WRITE_NONE  1ull /* no page */
struct soft_write_note {
    uint64_t host; /* 0: free */
    gva_t page[2]; /* the kernel's and a program's; or SOFT_WRITE_NONE */
    bool more;     /* there are others, or may be */
};

#define SOFT_JUMPED      4096u
#define SOFT_JUMPED_PAGE 1ull /* with a page's address */
#define SOFT_JUMPED_MANY 2ull

struct soft_mmu {
    struct soft_context context[SOFT_CONTEXTS]; /* by soft_mmu_index; untouched until used */
    struct soft_exec_entry exec[2][SOFT_EXEC_SIZE]; /* [CPL 3] */
    uint64_t asid;            /* of the current address space */
    uint64_t user_asid[SOFT_USER_CONTEXTS]; /* whose each user context is; 0: nobody's */
    uint64_t user_used[SOFT_USER_CONTEXTS]; /* user_clock when last chosen; 0: free */
    uint64_t user_clock;
    unsigned user;            /* the user context chosen last */
    uint64_t jump_generation; /* from 1; contexts of another forget their jumps (block.c) */
    uint16_t next_asid;
    uint16_t pcid_asid[4096]; /* 0: none yet */
    uint64_t large[4][64];    /* hashed sets of the 2 MiB and 1 GiB regions whose large page was
                                 used; those of the upper half of the address space apart */
    gva_t jumped[2][SOFT_JUMPED]; /* pages that cached jumps lead to, by half of the address space and
                                     hash: a page, 0 none, or SOFT_JUMPED_MANY (block.c) */
    struct soft_write_note note[SOFT_WRITE_NOTES]; /* by host page; one that was displaced is searched for */
    uint64_t phys_mask;       /* physical address bits that exist */
};

nodiscard int soft_mmu_create(struct soft_vcpu *cpu);
void soft_mmu_destroy(struct soft_vcpu *cpu);

/* Loads and stores with the current privilege. `seg` only chooses #SS or #GP. */
uint64_t soft_load_slow(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned size);
void soft_store_slow(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned size, uint64_t value);

static inline __attribute__((always_inline)) uint64_t
soft_load(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned size)
{
    const struct soft_tlb_entry *e = soft_tlb_slot(cpu->context, gva);
    const uint8_t *host = (const uint8_t *)(gva + e->addend);

    if (unlikely(soft_tlb_tag(gva, size) != e->read))
        return soft_load_slow(cpu, seg, gva, size);
    switch (size) {
    case 1:
        return *host;
    case 2:
        return *(const uint16_t *)host;
    case 4:
        return *(const uint32_t *)host;
    default:
        return *(const uint64_t *)host;
    }
}

static inline __attribute__((always_inline)) void
soft_store(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned size, uint64_t value)
{
    const struct soft_tlb_entry *e = soft_tlb_slot(cpu->context, gva);
    uint8_t *host = (uint8_t *)(gva + e->addend);

    if (unlikely(soft_tlb_tag(gva, size) != e->write)) {
        soft_store_slow(cpu, seg, gva, size, value);
        return;
    }
    switch (size) {
    case 1:
        *host = (uint8_t)value;
        break;
    case 2:
        *(uint16_t *)host = (uint16_t)value;
        break;
    case 4:
        *(uint32_t *)host = (uint32_t)value;
        break;
    default:
        *(uint64_t *)host = value;
    }
}

void soft_load_bytes(struct soft_vcpu *cpu, unsigned seg, gva_t gva, void *buf, unsigned len);
void soft_store_bytes(struct soft_vcpu *cpu, unsigned seg, gva_t gva, const void *buf, unsigned len);

/* Raises what a write of len bytes would raise; after it, the write cannot fault. */
void soft_probe_write(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned len);

/* Host address of guest RAM for `len` bytes inside one page, after all checks for the access (a
 * write: dirty marked, code on the page invalidated): for atomics, strings and vectors. NULL when it is
 * not RAM or crosses a page: use load/store. Valid until the next access of any kind by this vCPU. */
void *soft_pointer(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned len,
                   enum soft_access access);

/* For LOCKed operations that soft_pointer cannot serve (page-crossing or MMIO): between begin and end no other
 * vCPU executes. Do all faulting checks first (soft_probe_write). */
void soft_exclusive_begin(struct soft_vcpu *cpu);
void soft_exclusive_end(struct soft_vcpu *cpu);
/* After a fault: ends it if the instruction that raised had begun it. */
void soft_exclusive_abandon(struct soft_vcpu *cpu);

/* Implicit supervisor accesses (descriptor tables, TSS, stacks of inner levels): SMAP and U/S as the manuals
 * say for implicit accesses, whatever the CPL. */
uint64_t soft_system_load(struct soft_vcpu *cpu, gva_t gva, unsigned size);
void soft_system_store(struct soft_vcpu *cpu, gva_t gva, unsigned size, uint64_t value);
void soft_system_probe_write(struct soft_vcpu *cpu, gva_t gva, unsigned len);

/* TLB maintenance of this vCPU. Other vCPUs' TLBs are the guest's business (IPIs). */
void soft_tlb_flush(struct soft_vcpu *cpu);              /* everything, all PCIDs, globals too */
void soft_tlb_flush_nonglobal(struct soft_vcpu *cpu);    /* MOV CR3 without NOFLUSH: current PCID */
void soft_tlb_flush_page(struct soft_vcpu *cpu, gva_t gva);              /* INVLPG */
void soft_tlb_flush_pcid(struct soft_vcpu *cpu, unsigned pcid);          /* INVPCID 1 */
void soft_tlb_flush_pcid_page(struct soft_vcpu *cpu, unsigned pcid, gva_t gva); /* INVPCID 0 */
void soft_tlb_switch(struct soft_vcpu *cpu);             /* CR3 changed with NOFLUSH: new PCID current */

/* Instruction fetch: the page of gva, with permissions checked for the CPL; raises #PF. */
struct soft_exec_entry *soft_fetch_page(struct soft_vcpu *cpu, gva_t gva);

static inline unsigned soft_mmu_hash(gva_t gva, unsigned shift)
{
    return (unsigned)((gva >> shift) * 0x9e3779b97f4a7c15ull >> 52);
}

/* Removes write translations to one host page (0: to all). Own thread only. */
void soft_tlb_revoke(struct soft_vcpu *cpu, uint64_t host_page);

/* tlb.c's only view of walk.c: one translation with the page tables in guest memory. */
struct soft_walk {
    gpa_t gpa;       /* of the byte addressed */
    bool global;
    uint8_t shift;   /* 12, 21, 22 or 30 */
    uint32_t error;  /* page-fault error code when it failed */
};
bool soft_tlb_fill(struct soft_vcpu *cpu, unsigned index, gva_t gva, enum soft_access access,
                   const struct soft_walk *walk, struct mem_slot *slot);
bool soft_walk(struct soft_vcpu *cpu, gva_t gva, unsigned index, enum soft_access access,
               struct soft_walk *out);

#endif
