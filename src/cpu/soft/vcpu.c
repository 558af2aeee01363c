/* The run loop: blocks, events, waiting. docs/soft-engine.md tells the story. */
#include "cpu/soft/vcpu.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "cpu/soft/block.h"
#include "cpu/soft/fpu.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/lockstep.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/run.h"
#include "cpu/soft/system.h"
#include "cpu/soft/vm.h"

#define DR6_BS (1u << 14)
#define HALT_SPINS 300u
#define PAUSES_PER_YIELD 64u

_Noreturn void soft_raise(struct soft_vcpu *cpu, unsigned vector)
{
    cpu->fault = (struct soft_event){.vector = (uint8_t)vector, .type = SOFT_EVENT_EXCEPTION};
    __builtin_longjmp(cpu->fault_jump, 1);
}

_Noreturn void soft_raise_error(struct soft_vcpu *cpu, unsigned vector, uint32_t error)
{
    cpu->fault = (struct soft_event){.vector = (uint8_t)vector, .type = SOFT_EVENT_EXCEPTION,
                                     .has_error = true, .error = error};
    __builtin_longjmp(cpu->fault_jump, 1);
}

_Noreturn void soft_raise_page_fault(struct soft_vcpu *cpu, gva_t gva, uint32_t error)
{
    cpu->s.cr2 = gva;
    soft_raise_error(cpu, VECTOR_PF, error);
}

static bool soft_tsc_unscaled(const struct soft_vcpu *cpu)
{
    uint32_t guest = cpu->base.vm->model->tsc_khz, host = cpu->soft_vm->host_tsc_khz;

    return guest == host || !guest || !host;
}

uint64_t soft_tsc(const struct soft_vcpu *cpu)
{
    uint64_t now = __builtin_ia32_rdtsc();

    if (unlikely(!soft_tsc_unscaled(cpu)))
        now = (uint64_t)((unsigned __int128)now * cpu->base.vm->model->tsc_khz /
                         cpu->soft_vm->host_tsc_khz);
    return now + (uint64_t)cpu->tsc_offset;
}

static bool flat_segment(const struct cpu_segment *s)
{
    return s->base == 0 && s->limit == UINT32_MAX && !(s->attr & CPU_SEG_UNUSABLE) &&
           (s->attr & 0xcu) != 0x4u; /* not expand-down data */
}

static uint32_t mode_code_size(const struct cpu_state *s)
{
    if ((s->efer & EFER_LMA) && (s->seg[SEG_CS].attr & CPU_SEG_L))
        return SOFT_MODE_CODE64;
    return s->seg[SEG_CS].attr & CPU_SEG_DB ? SOFT_MODE_CODE32 : SOFT_MODE_CODE16;
}

static uint32_t mode_of_fpu(const struct cpu_state *s)
{
    uint32_t mode = 0;

    mode |= s->cr0 & CR0_TS ? SOFT_MODE_TS : 0;
    mode |= s->cr0 & CR0_EM ? SOFT_MODE_EM : 0;
    mode |= s->cr0 & CR0_MP ? SOFT_MODE_MP : 0;
    mode |= s->cr0 & CR0_NE ? SOFT_MODE_NE : 0;
    mode |= s->cr4 & CR4_OSFXSR ? SOFT_MODE_OSFXSR : 0;
    mode |= s->cr4 & CR4_OSXMMEXCPT ? SOFT_MODE_OSXMMEXCPT : 0;
    if (!(s->cr4 & CR4_OSXSAVE))
        return mode;
    mode |= SOFT_MODE_OSXSAVE;
    if ((s->xcr0 & (XCR0_SSE | XCR0_AVX)) == (XCR0_SSE | XCR0_AVX)) {
        mode |= SOFT_MODE_AVX;
        if ((s->xcr0 & XCR0_AVX512) == XCR0_AVX512)
            mode |= SOFT_MODE_AVX512;
    }
    return mode;
}

static uint8_t mode_cpl(const struct cpu_state *s)
{
    if (!(s->cr0 & CR0_PE))
        return 0;
    return s->rflags & RFLAGS_VM ? 3 : (uint8_t)CPU_SEG_DPL(s->seg[SEG_SS].attr);
}

static uint8_t mode_mmu_index(const struct soft_vcpu *cpu)
{
    const struct cpu_state *s = &cpu->s;

    if (cpu->cpl == 3)
        return (s->rflags & RFLAGS_AC) && (s->cr0 & CR0_AM) ? SOFT_MMU_USER_AC : SOFT_MMU_USER;
    return s->rflags & RFLAGS_AC ? SOFT_MMU_KERNEL_AC : SOFT_MMU_KERNEL;
}

void soft_mode_update(struct soft_vcpu *cpu)
{
    const struct cpu_state *s = &cpu->s;
    uint32_t mode = mode_code_size(s) | mode_of_fpu(s);

    cpu->cpl = mode_cpl(s);
    mode |= cpu->cpl == 3 ? SOFT_MODE_CPL3 : 0;
    mode |= s->cr0 & CR0_PE ? SOFT_MODE_PE : 0;
    mode |= (s->cr0 & CR0_PE) && (s->rflags & RFLAGS_VM) ? SOFT_MODE_VM : 0;
    mode |= s->efer & EFER_LMA ? SOFT_MODE_LMA : 0;
    if (!(mode & SOFT_MODE_CODE64)) {
        mode |= s->seg[SEG_SS].attr & CPU_SEG_DB ? SOFT_MODE_STACK32 : 0;
        if (flat_segment(&s->seg[SEG_ES]) && flat_segment(&s->seg[SEG_CS]) &&
            flat_segment(&s->seg[SEG_SS]) && flat_segment(&s->seg[SEG_DS]))
            mode |= SOFT_MODE_FLAT;
    }
    cpu->mode = mode;
    cpu->mmu_index = mode_mmu_index(cpu);
    cpu->tsc_direct = !(s->cr4 & CR4_TSD) && soft_tsc_unscaled(cpu);
    soft_context_select(cpu);
    cpu->end_block = true;
}

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
    return syscall(SYS_futex, word, op, value, timeout, NULL, FUTEX_BITSET_MATCH_ANY);
}

void soft_attention(struct soft_vcpu *cpu, uint32_t bits)
{
    atomic_fetch_or(&cpu->attention, bits);
    if (atomic_load(&cpu->sleeping))
        futex(&cpu->attention, FUTEX_WAKE_PRIVATE, 1, NULL);
}

void soft_pause(struct soft_vcpu *cpu)
{
    if (++cpu->pauses % PAUSES_PER_YIELD != 0) {
        __builtin_ia32_pause();
        return;
    }
    cpu->end_block = true;
    sched_yield();
}

/* Interrupts that wait but cannot be taken now. */
static bool interrupt_blocked(const struct soft_vcpu *cpu)
{
    return !(cpu->s.rflags & RFLAGS_IF) || cpu->s.interrupt_shadow;
}

/* Fault during delivery: the two become #DF, or the CPU shuts down. */
static bool fault_combine(struct soft_vcpu *cpu)
{
    struct soft_event first = cpu->event;

    if (!cpu->delivering) {
        cpu->event = cpu->fault;
        return true;
    }
    return soft_event_combine(&first, &cpu->fault, &cpu->event);
}

static void deliver(struct soft_vcpu *cpu)
{
    cpu->delivering = true;
    cpu->next_rip = cpu->s.rip;
    soft_event_deliver(cpu, &cpu->event);
    cpu->s.rip = cpu->next_rip;
    cpu->delivering = false;
    cpu->s.interrupt_shadow = 0;
}

static void deliver_external(struct soft_vcpu *cpu, int vector)
{
    cpu->event = (struct soft_event){.vector = (uint8_t)vector, .type = SOFT_EVENT_EXTERNAL};
    cpu->s.activity = CPU_RUNNING;
    deliver(cpu);
}

/* The timer signal only makes us look; it is set again only when an earlier deadline comes. */
static void timer_check(struct soft_vcpu *cpu)
{
    const struct local_apic_ops *ops = cpu->base.apic_ops;
    uint64_t deadline;

    if (!ops)
        return;
    deadline = ops->timer_deadline(cpu->base.apic);
    if (deadline != CLOCK_NEVER && deadline <= clock_now()) {
        ops->timer_poll(cpu->base.apic);
        atomic_fetch_or(&cpu->attention, SOFT_ATTN_INTERRUPT);
        deadline = ops->timer_deadline(cpu->base.apic);
    }
    soft_timer_arm(cpu, deadline);
}

static void take_init(struct soft_vcpu *cpu)
{
    struct cpu_state *s = &cpu->s;
    struct cpu_msrs msr = s->msr;
    uint64_t tsc = s->tsc, xcr0 = s->xcr0, cache_bits = s->cr0 & (CR0_CD | CR0_NW);
    bool bsp = msr.apic_base & APIC_BASE_BSP;
    uint8_t xsave[CPU_XSAVE_SIZE];

    soft_fpu_park(cpu);
    soft_copy(xsave, s->xsave, sizeof(xsave));
    cpu_state_reset(s, bsp);
    soft_copy(s->xsave, xsave, sizeof(xsave));
    s->msr = msr; /* SDM vol. 3A table 9-1: INIT leaves these alone */
    s->tsc = tsc;
    s->xcr0 = xcr0;
    s->cr0 = (s->cr0 & ~(uint64_t)(CR0_CD | CR0_NW)) | cache_bits;
    s->activity = bsp ? CPU_RUNNING : CPU_WAIT_SIPI;
    if (cpu->base.apic_ops)
        cpu->base.apic_ops->reset(cpu->base.apic, true);
    soft_tlb_flush(cpu);
    soft_mode_update(cpu);
}

static void take_sipi(struct soft_vcpu *cpu)
{
    uint8_t vector = atomic_load(&cpu->sipi_vector);

    if (cpu->s.activity != CPU_WAIT_SIPI)
        return;
    cpu->s.seg[SEG_CS].selector = (uint16_t)(vector << 8);
    cpu->s.seg[SEG_CS].base = (uint64_t)vector << 12;
    cpu->s.rip = 0;
    cpu->s.activity = CPU_RUNNING;
    soft_mode_update(cpu);
}

static void take_interrupt(struct soft_vcpu *cpu)
{
    const struct local_apic_ops *ops = cpu->base.apic_ops;
    int vector;

    if (!ops || !ops->has_interrupt(cpu->base.apic))
        return;
    if (interrupt_blocked(cpu)) {
        cpu->interrupt_held = true;
        return;
    }
    vector = ops->accept_interrupt(cpu->base.apic);
    cpu->interrupt_held = true; /* more may wait */
    if (vector >= 0)
        deliver_external(cpu, vector);
}

static void take_nmi(struct soft_vcpu *cpu)
{
    if (cpu->s.nmi_blocked || (cpu->s.interrupt_shadow & 2) || !cpu->s.nmi_pending)
        return;
    cpu->s.nmi_pending = 0;
    cpu->s.nmi_blocked = 1;
    cpu->s.activity = CPU_RUNNING;
    cpu->event = (struct soft_event){.vector = VECTOR_NMI, .type = SOFT_EVENT_NMI};
    deliver(cpu);
}

/* Looks at what was asked of the vCPU, at a block edge. False: leave the guest. */
static bool attend(struct soft_vcpu *cpu)
{
    uint32_t bits;

    soft_fpu_park(cpu);
    soft_sync_service(cpu);
    soft_cache_edge(cpu);
    bits = atomic_fetch_and(&cpu->attention, SOFT_ATTN_FLUSH | SOFT_ATTN_PAUSE | SOFT_ATTN_KICK);
    /* Kept until it is looked at below: delivering an NMI may fault, and leave this function. */
    cpu->interrupt_held |= (bits & SOFT_ATTN_INTERRUPT) != 0;
    if (bits & SOFT_ATTN_INIT)
        take_init(cpu);
    if (bits & SOFT_ATTN_SIPI)
        take_sipi(cpu);
    if (bits & SOFT_ATTN_NMI)
        cpu->s.nmi_pending = 1;
    if (bits & SOFT_ATTN_TIMER)
        timer_check(cpu);
    if (cpu->s.activity != CPU_RUNNING && cpu->s.activity != CPU_HALTED)
        return false;
    if (cpu->s.nmi_pending)
        take_nmi(cpu);
    if (cpu->interrupt_held) {
        cpu->interrupt_held = false;
        take_interrupt(cpu);
    }
    return cpu->s.activity == CPU_RUNNING && !(bits & SOFT_ATTN_KICK);
}

static bool attention_due(const struct soft_vcpu *cpu)
{
    uint32_t bits = atomic_load_explicit(&cpu->attention, memory_order_relaxed);

    return unlikely(bits) || unlikely(cpu->interrupt_held && !interrupt_blocked(cpu));
}

static gva_t code_linear(const struct soft_vcpu *cpu)
{
    if (likely(cpu->mode & SOFT_MODE_CODE64))
        return cpu->s.rip;
    return (uint32_t)(cpu->s.rip + cpu->s.seg[SEG_CS].base);
}

void soft_debug_fetch(struct soft_vcpu *cpu, gva_t linear)
{
    uint64_t dr7 = cpu->s.dr7, hits = 0;

    if (likely(!(dr7 & 0xff)) || (cpu->s.rflags & RFLAGS_RF))
        return;
    for (unsigned i = 0; i < 4; i++) {
        bool enabled = dr7 >> (2 * i) & 3, execute = (dr7 >> (16 + 4 * i) & 3) == 0;

        if (enabled && execute && cpu->s.dr[i] == linear)
            hits |= 1u << i;
    }
    if (!hits)
        return;
    cpu->s.dr6 = (cpu->s.dr6 & ~(uint64_t)0xf) | hits;
    soft_raise(cpu, VECTOR_DB);
}

static struct soft_block *next_block(struct soft_vcpu *cpu)
{
    gva_t linear = code_linear(cpu);
    const struct soft_jump *jump = soft_jump_find(cpu->context, linear);
    struct soft_block *block;

    if (unlikely(!jump))
        return soft_block_find(cpu, linear);
    block = soft_jump_block(cpu, jump);
    if (likely(atomic_load_explicit(&block->valid, memory_order_relaxed) &&
               soft_block_holds(cpu, block, linear)))
        return block;
    return soft_block_find(cpu, linear);
}

/* One instruction, with everything that can stop at each: breakpoints, single step, shadows, limits. */
static void step(struct soft_vcpu *cpu)
{
    bool trap = cpu->s.rflags & RFLAGS_TF;
    uint8_t shadow = cpu->s.interrupt_shadow;
    struct soft_block *block;
    const struct insn *in;

    if (!(cpu->mode & SOFT_MODE_CODE64) && cpu->s.rip > cpu->s.seg[SEG_CS].limit)
        soft_raise_gp(cpu, 0);
    soft_debug_fetch(cpu, code_linear(cpu));
    block = soft_block_decoded(cpu, next_block(cpu), code_linear(cpu));
    in = atomic_load_explicit(&block->insn, memory_order_acquire);
    if (unlikely(!in)) /* gone since: once more */
        return;
    if (!(cpu->mode & SOFT_MODE_CODE64) &&
        cpu->s.rip + in->length - 1 > cpu->s.seg[SEG_CS].limit)
        soft_raise_gp(cpu, 0);
    cpu->s.interrupt_shadow = 0;
    cpu->single_step = trap;
    cpu->block = block;
    cpu->end_block = false;
    cpu->next_rip = cpu->s.rip + in->length;
    cpu->s.rflags &= ~(uint64_t)RFLAGS_RF;
    cpu->watch_hits = 0;
    in->fn(cpu, in);
    cpu->s.rip = cpu->mode & SOFT_MODE_CODE64 ? cpu->next_rip : (uint32_t)cpu->next_rip;
    cpu->stat_insns++;
    trap = cpu->single_step && !(shadow & 2); /* INT n takes it away, SYSCALL decides anew */
    cpu->single_step = false;
    if (trap || cpu->watch_hits)
        soft_debug_trap(cpu, (trap ? DR6_BS : 0) | cpu->watch_hits);
}

static bool careful(const struct soft_vcpu *cpu)
{
    return (cpu->s.rflags & (RFLAGS_TF | RFLAGS_RF)) || cpu->s.interrupt_shadow ||
           (cpu->s.dr7 & 0xff);
}

bool soft_undisturbed(const struct soft_vcpu *cpu)
{
    return !attention_due(cpu) && !careful(cpu) && cpu->s.activity == CPU_RUNNING &&
           cpu->mode & SOFT_MODE_CODE64;
}

static bool beyond_limit(const struct soft_vcpu *cpu, const struct soft_block *block)
{
    return !(cpu->mode & SOFT_MODE_CODE64) &&
           cpu->s.rip + block->bytes - 1 > cpu->s.seg[SEG_CS].limit;
}

void soft_run_block(struct soft_vcpu *cpu, const struct soft_block *block)
{
    const struct insn *first = atomic_load_explicit(&block->insn, memory_order_acquire);
    const struct insn *in = first, *end = in + block->count;
    uint64_t rip = cpu->s.rip;

    if (unlikely(!in)) /* gone since: the run loop comes back */
        return;
    cpu->end_block = false;
    do {
        rip += in->length;
        cpu->next_rip = rip;
        in->fn(cpu, in);
        rip = cpu->next_rip;
        cpu->s.rip = rip;
        in++;
    } while (in != end && !cpu->end_block);
    cpu->stat_insns += (uint64_t)(in - first);
    if (!(cpu->mode & SOFT_MODE_CODE64))
        cpu->s.rip = (uint32_t)rip;
}

/* Counts a block that is interpreted; true when it is to be translated. */
static bool block_is_hot(const struct soft_vcpu *cpu, struct soft_block *block)
{
    if (!cpu->soft_vm->jit || block->runs == SOFT_BLOCK_COLD ||
        block == &cpu->scratch->block)
        return false;
    return ++block->runs >= cpu->soft_vm->tuning.runs && block->runs != SOFT_BLOCK_COLD;
}

/* Runs a block in the form it has. `link`: how translated code was left for it. Answers the same anew. */
static struct jit_link *execute(struct soft_vcpu *cpu, struct soft_block *block,
                                struct jit_link *link)
{
    const struct soft_native *native;

    native = atomic_load_explicit(&block->native, memory_order_acquire);
    if (!native) {
        block = soft_block_decoded(cpu, block, code_linear(cpu));
        if (unlikely(block_is_hot(cpu, block)))
            soft_block_translate(cpu, block);
        native = atomic_load_explicit(&block->native, memory_order_acquire);
    }
    if (!native) {
        cpu->block = block;
        soft_run_block(cpu, block);
        return NULL;
    }
    if (unlikely(cpu->lockstep != NULL)) {
        soft_lockstep_run(cpu, block, native);
        return NULL;
    }
    if (link)
        soft_block_link(cpu, link, block);
    else
        soft_block_expose(cpu, cpu->s.rip, block);
    return soft_jit_run(cpu, native);
}

/* Runs the guest until the vCPU's thread must look elsewhere. */
static __attribute__((noinline)) void run_guest(struct soft_vcpu *cpu)
{
    struct jit_link *link = NULL;

    if (__builtin_setjmp(cpu->fault_jump)) {
        cpu->stat_faults++;
        cpu->single_step = false;
        link = NULL;
        soft_exclusive_abandon(cpu);
        if (!fault_combine(cpu)) {
            cpu->delivering = false;
            cpu->s.activity = CPU_SHUTDOWN;
            return;
        }
        deliver(cpu);
    }
    for (;;) {
        struct soft_block *block;

        if (unlikely(attention_due(cpu))) {
            link = NULL;
            if (!attend(cpu))
                return;
        }
        if (unlikely(cpu->s.activity != CPU_RUNNING))
            return;
        if (unlikely(careful(cpu))) {
            step(cpu);
            link = NULL;
            continue;
        }
        block = next_block(cpu);
        if (unlikely(beyond_limit(cpu, block))) {
            step(cpu);
            link = NULL;
            continue;
        }
        link = execute(cpu, block, link);
    }
}

/* Events while halted: setjmp again, as delivery may fault. */
static __attribute__((noinline)) bool attend_halted(struct soft_vcpu *cpu)
{
    if (__builtin_setjmp(cpu->fault_jump)) {
        if (!fault_combine(cpu)) {
            cpu->delivering = false;
            cpu->s.activity = CPU_SHUTDOWN;
            return false;
        }
        deliver(cpu);
        return true;
    }
    return attend(cpu);
}

static void sleep_until(struct soft_vcpu *cpu, uint64_t deadline)
{
    struct timespec ts = {.tv_sec = (time_t)(deadline / NSEC_PER_SEC),
                          .tv_nsec = (long)(deadline % NSEC_PER_SEC)};

    atomic_store(&cpu->sleeping, 1);
    if (!atomic_load(&cpu->attention))
        futex(&cpu->attention, FUTEX_WAIT_BITSET_PRIVATE, 0,
              deadline == CLOCK_NEVER ? NULL : &ts);
    atomic_store(&cpu->sleeping, 0);
}

/* Outside the guest: halted, or waiting for SIPI. */
static void wait_for_event(struct soft_vcpu *cpu)
{
    const struct local_apic_ops *ops = cpu->base.apic_ops;
    uint64_t deadline = ops ? ops->timer_deadline(cpu->base.apic) : CLOCK_NEVER;

    for (unsigned i = 0; i < HALT_SPINS; i++) {
        if (atomic_load_explicit(&cpu->attention, memory_order_relaxed))
            return;
        __builtin_ia32_pause();
    }
    if (deadline == CLOCK_NEVER || deadline > clock_now())
        sleep_until(cpu, deadline);
    if (deadline != CLOCK_NEVER && deadline <= clock_now())
        atomic_fetch_or(&cpu->attention, SOFT_ATTN_TIMER);
}

static bool take_kick(struct soft_vcpu *cpu)
{
    return atomic_fetch_and(&cpu->attention, ~SOFT_ATTN_KICK) & SOFT_ATTN_KICK;
}

enum vcpu_exit soft_run(struct soft_vcpu *cpu)
{
    soft_sync_enter(cpu);
    /* Whatever was posted or set while nobody looked. */
    atomic_fetch_or(&cpu->attention, SOFT_ATTN_TIMER | SOFT_ATTN_INTERRUPT);
    for (;;) {
        if (take_kick(cpu))
            return VCPU_EXIT_KICKED;
        if (cpu->s.activity == CPU_SHUTDOWN)
            return VCPU_EXIT_SHUTDOWN;
        if (cpu->s.activity == CPU_RUNNING || attend_halted(cpu)) {
            run_guest(cpu);
            continue;
        }
        soft_fpu_park(cpu);
        soft_sync_leave(cpu);
        wait_for_event(cpu);
        soft_sync_enter(cpu);
    }
}
