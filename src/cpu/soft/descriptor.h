/*
 * Segment and system descriptors, and stacks of other privilege levels: what events, far transfers,
 * IRET and task switches share. References: SDM vol. 3A 3.4, 3.5, 5.8, 6.10-6.14, 7.2.
 *
 * Functions that take `vector` and `ext` raise vector(selector & ~3 | ext); ext is the EXT bit
 * of the error code: 1 while an external event or exception is being delivered, else 0.
 */
#ifndef CPU_SOFT_DESCRIPTOR_H
#define CPU_SOFT_DESCRIPTOR_H

#include "cpu/soft/vcpu.h"

enum soft_system_type { /* type of a system descriptor (S = 0), SDM vol. 3A table 3-2 */
    DESC_TSS16 = 1,
    DESC_LDT = 2,
    DESC_TSS16_BUSY = 3,
    DESC_CALL16 = 4,
    DESC_TASK = 5,
    DESC_INT16 = 6,
    DESC_TRAP16 = 7,
    DESC_TSS32 = 9, /* 64-bit TSS in long mode */
    DESC_TSS32_BUSY = 11,
    DESC_CALL32 = 12,
    DESC_INT32 = 14,
    DESC_TRAP32 = 15,
};

/* Type bits of code and data descriptors */
#define DESC_ACCESSED   1u
#define DESC_WRITABLE   2u /* data */
#define DESC_READABLE   2u /* code */
#define DESC_EXPAND     4u /* data: expand down */
#define DESC_CONFORMING 4u /* code */
#define DESC_CODE       8u

struct soft_descriptor {
    uint64_t raw;
    gva_t addr;        /* of its first byte */
    uint64_t base;
    uint32_t limit;    /* bytes, granularity applied */
    uint32_t attr;     /* as cpu_segment.attr */
    uint16_t selector; /* it was loaded with */
};

static inline bool soft_selector_null(uint16_t selector)
{
    return (selector & 0xfffcu) == 0;
}

static inline bool soft_long_mode(const struct soft_vcpu *cpu)
{
    return cpu->mode & SOFT_MODE_LMA;
}

static inline bool soft_code64(const struct soft_vcpu *cpu)
{
    return cpu->mode & SOFT_MODE_CODE64;
}

/* Real mode or virtual-8086 mode: selectors are paragraph numbers. */
static inline bool soft_real_selectors(const struct soft_vcpu *cpu)
{
    return (cpu->mode & (SOFT_MODE_PE | SOFT_MODE_VM)) != SOFT_MODE_PE;
}

static inline bool soft_canonical(uint64_t address)
{
    return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

/* A code segment: S and the code type bit. */
static inline bool soft_attr_code(uint32_t attr)
{
    return (attr & (CPU_SEG_S | DESC_CODE)) == (CPU_SEG_S | DESC_CODE);
}

static inline bool soft_attr_conforming(uint32_t attr)
{
    return attr & DESC_CONFORMING;
}

static inline bool soft_attr_writable_data(uint32_t attr)
{
    return (attr & (CPU_SEG_S | DESC_CODE | DESC_WRITABLE)) == (CPU_SEG_S | DESC_WRITABLE);
}

/* Raises vector(selector & ~3 | ext). */
_Noreturn void soft_raise_selector(struct soft_vcpu *cpu, unsigned vector, uint16_t selector,
                                   unsigned ext);

/* segment.c. False: beyond the table's limit, or no LDT. A null selector reads GDT entry 0. */
bool soft_descriptor_find(struct soft_vcpu *cpu, uint16_t selector, struct soft_descriptor *d);
/* Raises vector(selector) when there is none. */
void soft_descriptor_load(struct soft_vcpu *cpu, uint16_t selector, unsigned vector, unsigned ext,
                          struct soft_descriptor *d);
/* Long mode: the upper eight bytes of a system descriptor; the base becomes 64 bits wide. */
void soft_descriptor_extend(struct soft_vcpu *cpu, struct soft_descriptor *d, unsigned vector,
                            unsigned ext);
/* Sets the accessed bit in the table and in d->attr. May raise #PF. */
void soft_descriptor_access(struct soft_vcpu *cpu, struct soft_descriptor *d);

/* The checks of a code segment entered by a jump, call, gate or return; see segment.c. */
void soft_code_check_long(struct soft_vcpu *cpu, const struct soft_descriptor *d, unsigned ext);

/* Fills a segment register. `rpl` replaces the selector's RPL. */
void soft_segment_fill(struct cpu_segment *seg, const struct soft_descriptor *d, unsigned rpl);
void soft_segment_fill_null(struct cpu_segment *seg, uint16_t selector);
/* Virtual-8086 contents. */
void soft_segment_fill_v86(struct cpu_segment *seg, uint16_t selector);

/* Where control goes in a new code segment; raises #GP(ext) when rip is outside. */
void soft_check_target(struct soft_vcpu *cpu, const struct soft_descriptor *cs, uint64_t rip,
                       unsigned ext);

/* Commits CS (with the given RPL), next_rip. Call soft_mode_update() when all is set. */
void soft_enter_code(struct soft_vcpu *cpu, const struct soft_descriptor *cs, unsigned rpl,
                     uint64_t rip);

/* After a return to an outer level: data segments the new CPL may not use become null. */
void soft_drop_inner_segments(struct soft_vcpu *cpu);

/*
 * A stack being pushed to or popped from, without touching ESP until soft_stack_commit().
 * It may be the current one or that of another level.
 */
struct soft_stack {
    struct soft_vcpu *cpu;
    uint64_t base, sp, mask;
    uint32_t limit, attr;
    uint32_t error;    /* error code of #SS when an access is outside */
    bool check;        /* limits count: not in 64-bit mode */
    bool user;         /* accesses with the current privilege; else supervisor */
};

void soft_stack_current(struct soft_stack *st, struct soft_vcpu *cpu, unsigned ext);
/* The stack of `ss` at sp, which will run at `cpl`; `wide`: the 64-bit form. */
void soft_stack_inner(struct soft_stack *st, struct soft_vcpu *cpu,
                      const struct soft_descriptor *ss, uint64_t sp, unsigned ext);
void soft_stack_inner64(struct soft_stack *st, struct soft_vcpu *cpu, uint64_t sp, unsigned ext);
void soft_stack_push(struct soft_stack *st, unsigned size, uint64_t value);
uint64_t soft_stack_pop(struct soft_stack *st, unsigned size);
/* Peeks `offset` bytes above the top. */
uint64_t soft_stack_peek(struct soft_stack *st, uint64_t offset, unsigned size);
/* RSP with the part under the mask replaced. */
static inline uint64_t soft_stack_rsp(const struct soft_stack *st, uint64_t rsp)
{
    return (rsp & ~st->mask) | (st->sp & st->mask);
}

/* The stack pointer of `level` in the current TSS; raises #TS(TR | ext). SS only outside long mode. */
uint64_t soft_tss_stack(struct soft_vcpu *cpu, unsigned level, uint16_t *ss, unsigned ext);
uint64_t soft_tss_stack64(struct soft_vcpu *cpu, unsigned slot, unsigned ext); /* 0-2: RSPn, 4-10: IST */
/* A stack segment taken from a TSS for privilege `level`; raises #TS, #SS as for SDM CALL, INT. */
void soft_stack_segment_check(struct soft_vcpu *cpu, uint16_t selector, unsigned level,
                              unsigned ext, struct soft_descriptor *d);

/* task.c */
enum soft_task_reason { SOFT_TASK_JUMP, SOFT_TASK_CALL, SOFT_TASK_IRET, SOFT_TASK_GATE };
/* Switches to the TSS of `selector`. `error`: NULL, or pushed on the new stack. The caller's
 * instruction must be complete: the old task's saved EIP is `rip`. */
void soft_task_switch(struct soft_vcpu *cpu, uint16_t selector, enum soft_task_reason reason,
                      uint32_t rip, const uint32_t *error, unsigned ext);
/* The checks of a task gate's TSS selector, then the switch. */
void soft_task_gate(struct soft_vcpu *cpu, const struct soft_descriptor *gate,
                    enum soft_task_reason reason, uint32_t rip, const uint32_t *error, unsigned ext);

/* far.c */
void soft_far_jump(struct soft_vcpu *cpu, uint16_t selector, uint64_t rip, unsigned opsize);
void soft_far_call(struct soft_vcpu *cpu, uint16_t selector, uint64_t rip, unsigned opsize);
void soft_far_return(struct soft_vcpu *cpu, unsigned opsize, uint16_t release);

/* iret.c: the checks of a return, shared with RETF. `rpl` is the level returned to. */
void soft_return_code(struct soft_vcpu *cpu, uint16_t selector, struct soft_descriptor *cs);
void soft_return_stack(struct soft_vcpu *cpu, uint16_t selector, unsigned rpl,
                       const struct soft_descriptor *cs, struct soft_descriptor *ss);
void soft_return_commit(struct soft_vcpu *cpu, const struct soft_descriptor *ss, unsigned rpl);
void soft_iret(struct soft_vcpu *cpu, unsigned opsize);

/* control.c */
void soft_pushf(struct soft_vcpu *cpu, unsigned opsize);
void soft_popf(struct soft_vcpu *cpu, unsigned opsize);
void soft_cli(struct soft_vcpu *cpu);
void soft_sti(struct soft_vcpu *cpu);
void soft_lmsw(struct soft_vcpu *cpu, uint16_t value);
bool soft_vme_redirected(struct soft_vcpu *cpu, unsigned vector); /* to the 8086 program's IVT */
/* EFER as WRMSR writes it: -1 for #GP(0). */
int soft_efer_write(struct soft_vcpu *cpu, uint64_t value);
bool soft_has_feature(const struct soft_vcpu *cpu, uint32_t leaf, char reg, unsigned bit);
bool soft_is_amd(const struct soft_vcpu *cpu);
uint32_t soft_signature(const struct soft_vcpu *cpu); /* CPUID leaf 1 EAX */

/* debug.c */
uint64_t soft_dr_read(struct soft_vcpu *cpu, unsigned dr);
void soft_dr_write(struct soft_vcpu *cpu, unsigned dr, uint64_t value);

/* clock.c: the paravirtual clock's pages in guest memory. */
void soft_clock_write_wall(struct soft_vcpu *cpu);
void soft_clock_write_system(struct soft_vcpu *cpu);

#endif
