/*
 * One vCPU of the soft engine: its live state and the few things every instruction needs.
 *
 * Everything under src/cpu/soft is compiled with -mgeneral-regs-only and without libc string
 * builtins, because the guest's x87/SSE/AVX registers stay in the host's registers while guest
 * code runs. Before calling anything outside this folder that may touch vector registers (the bus,
 * the APIC, locks, logging, libc), call soft_fpu_park(cpu); it is cheap when nothing is loaded.
 *
 * Faults: any access may raise a guest exception, which leaves the handler by a non-local jump to
 * the run loop (soft_raise*, never returns). So an instruction handler reads and checks everything first,
 * and commits registers and flags after its last access that can fault; it holds no lock.
 *
 * RIP: while an instruction runs, s.rip is its first byte and next_rip the byte after it. A branch
 * sets next_rip. The run loop commits s.rip = next_rip afterwards.
 */
#ifndef CPU_SOFT_VCPU_H
#define CPU_SOFT_VCPU_H

#include <stdatomic.h>

#include "base/types.h"
#include "cpu/cpu_state.h"
#include "cpu/engine.h"
#include "x86/arch.h"

struct soft_vm;
struct soft_mmu;   /* mmu.h: translations, and the contexts */
struct soft_context; /* context.h: the TLB and jump cache in use */
struct soft_cache; /* block.h: decoded blocks, one per VM */
struct soft_block;
struct soft_scratch;
struct soft_again;
struct soft_code;  /* code.h: native code */
struct jit_work;   /* jit/translate.h */
struct soft_lockstep; /* lockstep.h */

/* The last x87 instruction that is not a control instruction: where the host recorded a stub's
 * address, FNSTENV and FXSAVE tell this (soft_fpu_pointers). */
struct soft_x87 {
    uint64_t fip, fdp;
    uint16_t fcs, fds;
    uint16_t fop;
};

/* An exception or interrupt on its way to the guest. */
struct soft_event {
    uint8_t vector;
    uint8_t type;      /* SOFT_EVENT_* */
    bool has_error;
    uint32_t error;
};

enum soft_event_type {
    SOFT_EVENT_EXTERNAL,  /* external interrupt */
    SOFT_EVENT_NMI,
    SOFT_EVENT_EXCEPTION, /* fault or trap found by the CPU: s.rip is what to push */
    SOFT_EVENT_INT,       /* INT n: gate DPL is checked; next_rip is pushed */
    SOFT_EVENT_INT3_INTO, /* INT3, INTO: DPL is checked, no IOPL check in virtual-8086 mode */
    SOFT_EVENT_ICEBP,     /* INT1 */
};

/*
 * What decoding depends on. A decoded block is keyed by (physical address, mode), so handlers are
 * bound with these facts known. Recomputed by soft_mode_update() whenever CS, CPL, CR0, CR4, EFER,
 * XCR0 or RFLAGS.VM/TF change.
 */
#define SOFT_MODE_CODE16   0x0001u /* exactly one of the three: default operand and address size */
#define SOFT_MODE_CODE32   0x0002u
#define SOFT_MODE_CODE64   0x0004u
#define SOFT_MODE_CPL3     0x0008u /* user; unset: CPL 0-2 */
#define SOFT_MODE_PE       0x0010u /* protected mode (CR0.PE), includes virtual-8086 */
#define SOFT_MODE_VM       0x0020u /* virtual-8086 */
#define SOFT_MODE_LMA      0x0040u /* long mode active: 64-bit or compatibility */
#define SOFT_MODE_TS       0x0080u /* CR0.TS */
#define SOFT_MODE_EM       0x0100u /* CR0.EM */
#define SOFT_MODE_MP       0x0200u /* CR0.MP */
#define SOFT_MODE_OSFXSR   0x0400u /* CR4.OSFXSR */
#define SOFT_MODE_OSXSAVE  0x0800u /* CR4.OSXSAVE */
#define SOFT_MODE_AVX      0x1000u /* XCR0 has SSE and AVX, and CR4.OSXSAVE */
#define SOFT_MODE_AVX512   0x2000u /* and all of AVX-512 */
#define SOFT_MODE_STACK32  0x4000u /* SS.B: 32-bit stack pointer (64-bit code: always RSP) */
#define SOFT_MODE_FLAT     0x8000u /* ES, CS, SS, DS have base 0 and limit 4G-1, usable */
#define SOFT_MODE_OSXMMEXCPT 0x10000u /* CR4.OSXMMEXCPT: #XM rather than #UD */
#define SOFT_MODE_NE       0x20000u /* CR0.NE: #MF rather than external FERR# */

/* Requests to a running vCPU, set by any thread in `attention`, seen at the next block edge. */
#define SOFT_ATTN_INTERRUPT 0x01u /* ask the local APIC */
#define SOFT_ATTN_NMI       0x02u
#define SOFT_ATTN_INIT      0x04u
#define SOFT_ATTN_SIPI      0x08u
#define SOFT_ATTN_KICK      0x10u /* leave vcpu_run */
#define SOFT_ATTN_TIMER     0x20u /* look at the APIC timer's deadline */
#define SOFT_ATTN_FLUSH     0x40u /* drop what was cached of code or translations (block.c, sync.c) */
#define SOFT_ATTN_PAUSE     0x80u /* another vCPU wants to be alone (soft_exclusive_begin) */

/* Where a vCPU's thread is: decides whether others must wait for it (sync.c). */
enum soft_where {
    SOFT_OUTSIDE,   /* exited or halted, at a block edge: it looks at `attention` before it runs on */
    SOFT_IN_GUEST,  /* may be inside an instruction, using pointers from its TLB */
    SOFT_SUSPENDED, /* stopped inside an instruction; services requests before it touches memory */
};

#define SOFT_REVOKE_MAX 8u
#define SOFT_LOOP_RANGES 8u
#define SOFT_LOOP_SCORES 256u
#define SOFT_LOOP_PASSED 2u

/* What a loop's second form has saved on this vCPU. */
struct soft_loop_score {
    uint32_t number; /* of the translation */
    int32_t score;
};

struct soft_vcpu {
    struct cpu_state s; /* live, except s.xsave while fpu_live; first member: s.gpr is at offset 0 */
    uint64_t next_rip;
    uint32_t mode;      /* SOFT_MODE_* */
    uint8_t cpl;        /* SS.DPL; 3 in virtual-8086 mode, 0 in real mode */
    bool fpu_live;      /* the guest's extended state is in the host's registers */
    bool end_block;     /* leave the current decoded block after this instruction (mode changed, code
                           under it was written, TLB flushed, interrupt window opened) */
    bool single_step;   /* RFLAGS.TF was set when this instruction began */
    uint8_t watch_hits; /* data breakpoints this instruction touched: DR6 bits 3:0 */
    uint8_t mmu_index;  /* SOFT_MMU_*: the privilege of current data accesses; only soft_mode_update, STAC and CLAC set it */
    _Atomic uint32_t attention; /* SOFT_ATTN_* */
    _Atomic uint8_t sipi_vector;

    struct soft_context *context; /* in use, in *mmu; only soft_context_select sets it */

    struct soft_event fault;    /* being raised; valid when the run loop is re-entered */
    void *fault_jump[5];        /* __builtin_setjmp buffer of the run loop */

    struct soft_lockstep *lockstep; /* owned; NULL: off */
    struct soft_mmu *mmu;       /* owned */
    struct soft_cache *cache;   /* shared, owned by the VM */
    const uint8_t *code_exec;   /* where the code buffer is executed */
    const uint8_t *block_base;  /* where soft_jump.block is counted from */
    struct soft_code *code;     /* shared, owned by the VM; cache's decode lock */
    struct soft_x87 x87;
    uint16_t xstate_offset[8];  /* of XSAVE components in standard format; exec_xstate.c */
    struct soft_vm *soft_vm;
    struct vcpu base;           /* what the rest of Lodge sees */

    int64_t tsc_offset;         /* guest TSC = host TSC (scaled if need be) + offset */
    uint64_t stat_insns, stat_blocks, stat_decodes, stat_tlb_misses, stat_faults, stat_exits;
    uint64_t stat_slow, stat_translated, stat_entries;
    uint64_t stat_left_link, stat_left_stale, stat_left_call; /* how translated code was left; else: jumps, requests */
    uint64_t stat_emptied, stat_loops;

    /* vcpu.c */
    bool delivering;            /* `event` is on its way: a fault now is combined with it */
    struct soft_event event;
    bool interrupt_held;        /* one waits until the guest lets it in; `attention` does not say so meanwhile */
    int thread;                 /* kernel id of the thread that `timer` signals; 0: none */
    void *timer;                /* timer_t */
    uint64_t timer_armed;       /* clock_now() time the host timer is set to; CLOCK_NEVER */
    uint32_t pauses;            /* PAUSE instructions since the last yield */

    /* jit/: used by translated code, which reaches this struct through GS */
    struct soft_vcpu *self;
    uint64_t host_rsp;          /* the host's stack while translated code runs */
    uint64_t jit_target;        /* scratch of the thunks: where to go */
    uint64_t jit_window;        /* T2 of translated code while it calls the interpreter */
    gva_t code_page;            /* the page of RIP */
    bool tsc_direct;            /* RDTSC is allowed, and the guest's TSC is the host's plus tsc_offset */
    uint16_t jit_flags;         /* arithmetic flags: OF in the low byte, LAHF's AH in the high one */
    struct soft_thread *host_thread; /* owned */
    struct jit_work *jit_work;  /* owned: the translator's workspace */
    uint32_t loop_passes;       /* scratch of loops (jit/loop.c) */
    uint32_t loop_lockstep;     /* 1: a loop's second form may make one pass; then SOFT_LOOP_PASSED */
    uint64_t loop_range[SOFT_LOOP_RANGES];
    struct {
        uint64_t page;          /* linear address */
        uint64_t limit;         /* operands that begin less bytes after it lie inside; 0: none yet */
        uint64_t addend;
    } loop_wild[SOFT_LOOP_RANGES];
    struct soft_loop_score loop_score[SOFT_LOOP_SCORES]; /* by the translation's number, modulo */
    uint64_t jit_generation;    /* of the code when it was last entered: the link it answered is of then */

    /* block.c */
    struct soft_block *block;   /* being executed */
    struct soft_scratch *scratch; /* owned: a block that is not in the cache (fetched from no memory) */
    struct soft_again *again;   /* owned: SOFT_AGAIN of them, by key */
    _Atomic uint64_t cache_epoch; /* the cache's epoch when this vCPU last was at a block edge */
    uint64_t cache_dropped;     /* the cache's count of drops then */
    uint32_t map_generation; /* of the VM, when this vCPU's translations were last dropped for it
                                 (sync.c) */

    /* sync.c */
    _Atomic uint32_t where;     /* enum soft_where */
    _Atomic uint32_t sleeping;  /* waits on `attention` in the kernel */
    _Atomic uint32_t revoke_lock;
    uint32_t revoke_count;      /* revoke_lock; above SOFT_REVOKE_MAX: all pages */
    uint64_t revoke_page[SOFT_REVOKE_MAX]; /* host addresses of pages; revoke_lock */
    uint64_t revoke_asked;      /* revoke_lock */
    _Atomic uint64_t revoke_done;
};

/*
 * A vCPU is mapped with a page behind it that faults. Translated code polls `attention` without touching the flags by
 * a load from [gs: SOFT_VCPU_POLL + 8 * attention], which is the last word of its own pages or in that one.
 */
#define SOFT_VCPU_MAPPED ((sizeof(struct soft_vcpu) + PAGE_SIZE - 1) & PAGE_MASK)
#define SOFT_VCPU_POLL   ((int32_t)(SOFT_VCPU_MAPPED - 4))

/* vcpu.c */
_Noreturn void soft_raise(struct soft_vcpu *cpu, unsigned vector);
_Noreturn void soft_raise_error(struct soft_vcpu *cpu, unsigned vector, uint32_t error);
_Noreturn void soft_raise_page_fault(struct soft_vcpu *cpu, gva_t gva, uint32_t error);
/* #UD for what decodes but is not allowed; #GP(0) */
static inline _Noreturn void soft_raise_ud(struct soft_vcpu *cpu)
{
    soft_raise(cpu, VECTOR_UD);
}
static inline _Noreturn void soft_raise_gp(struct soft_vcpu *cpu, uint32_t error)
{
    soft_raise_error(cpu, VECTOR_GP, error);
}

/* Recomputes mode, cpl, mmu_index, context after a change of what they depend on; sets end_block. vcpu.c */
void soft_mode_update(struct soft_vcpu *cpu);

/* Called by the PAUSE handler: gives the host CPU away now and then. vcpu.c */
void soft_pause(struct soft_vcpu *cpu);

/* Sets attention bits and wakes the vCPU if it sleeps. Any thread. vcpu.c */
void soft_attention(struct soft_vcpu *cpu, uint32_t bits);

/* The guest's TSC now. vcpu.c */
uint64_t soft_tsc(const struct soft_vcpu *cpu);

/* String helpers that use no vector register (libc's do). */
static inline void soft_copy(void *dst, const void *src, uint64_t len)
{
    __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(len) : : "memory");
}
static inline void soft_zero(void *dst, uint64_t len)
{
    __asm__ volatile("rep stosb" : "+D"(dst), "+c"(len) : "a"(0) : "memory");
}

#endif
