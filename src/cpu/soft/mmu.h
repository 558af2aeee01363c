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

#include "cpu/soft/insn.h"
#include "cpu/soft/vcpu.h"

enum soft_mmu_index {
    SOFT_MMU_USER,         /* CPL 3 */
    SOFT_MMU_KERNEL,       /* CPL 0-2: SMAP enforced when CR4.SMAP */
    SOFT_MMU_KERNEL_AC,    /* CPL 0-2 with RFLAGS.AC: SMAP not enforced */
    SOFT_MMU_INDEXES
};

enum soft_access { SOFT_READ, SOFT_WRITE, SOFT_FETCH };

/* Segment + offset to linear address, with the limit, type and canonical checks due for an access of `size`
 * bytes outside 64-bit mode; in 64-bit mode only FS/GS bases count. Raises #GP(0) or #SS(0). */
gva_t soft_linear(struct soft_vcpu *cpu, unsigned seg, uint64_t offset, unsigned size,
                  enum soft_access access);

/* The memory operand's linear address (insn_ea + soft_linear, with the 64-bit and flat fast paths). */
gva_t soft_operand(struct soft_vcpu *cpu, const struct insn *in, unsigned size,
                   enum soft_access access);

/* Loads and stores with the current privilege. `seg` only chooses #SS or #GP. */
uint64_t soft_load(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned size);
void soft_store(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned size, uint64_t value);
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

#endif
