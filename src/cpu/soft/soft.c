#include "cpu/soft/soft.h"

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "cpu/selftest.h"
#include "cpu/soft/block.h"
#include "cpu/soft/code.h"
#include "cpu/soft/fpu.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/jit/translate.h"
#include "cpu/soft/lockstep.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/run.h"
#include "cpu/soft/system.h"
#include "cpu/soft/thread.h"
#include "cpu/soft/vm.h"

/* With the least and the TLBs of a few processes, a machine of 256 MiB costs its host at most 64 MiB beyond the guest's
 * memory; more memory runs larger programs. */
#define CODE_CACHE_LEAST   (44ull << 20)
#define CODE_CACHE_MOST    (192ull << 20)
#define CODE_CACHE_PART    6 /* of the guest's memory */
#define FORGET_SIZE        (16u << 10) /* with LODGE_SOFT=forget: a few blocks' instructions */

static struct soft_vcpu *soft_of(struct vcpu *vcpu)
{
    return container_of(vcpu, struct soft_vcpu, base);
}

static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
    if (!__get_cpuid_count(leaf, subleaf, &regs[0], &regs[1], &regs[2], &regs[3]))
        regs[0] = regs[1] = regs[2] = regs[3] = 0;
}

static void soft_probe(struct engine_probe *probe)
{
    struct selftest_result result;
    uint32_t leaf1[4];

    host_cpuid(1, 0, leaf1);
    if (!(leaf1[2] & 1u << 27)) { /* OSXSAVE: fpu.c switches vector state with it */
        snprintf(probe->reason, sizeof(probe->reason), "this processor or kernel has no XSAVE");
        return;
    }
    selftest_run(&soft_engine, &result);
    probe->usable = result.passed;
    if (result.passed)
        snprintf(probe->reason, sizeof(probe->reason), "the self-test guest ran");
    else
        snprintf(probe->reason, sizeof(probe->reason), "the self-test guest failed at %s: %.150s",
                 result.step ? result.step : "start", result.detail);
}

/* What the families implement; the host's own bits decide the rest. */
static const struct cpuid_support soft_offers = {
    .leaf1_ecx = 1u << 0 | 1u << 1 | 1u << 9 | 1u << 12 | 1u << 13 | 1u << 17 | 1u << 19 |
                 1u << 20 | 1u << 21 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25 | 1u << 26 |
                 1u << 28 | 1u << 29 | 1u << 30 | 1u << 31,
    .leaf1_edx = 1u << 0 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 6 | 1u << 7 | 1u << 8 |
                 1u << 9 | 1u << 11 | 1u << 12 | 1u << 13 | 1u << 14 | 1u << 15 | 1u << 16 |
                 1u << 17 | 1u << 19 | 1u << 23 | 1u << 24 | 1u << 25 | 1u << 26 | 1u << 28,
    .leaf7_ebx = 1u << 0 | 1u << 1 | 1u << 3 | 1u << 5 | 1u << 7 | 1u << 8 | 1u << 9 | 1u << 10 |
                 1u << 16 | 1u << 17 | 1u << 18 | 1u << 19 | 1u << 20 | 1u << 21 | 1u << 23 |
                 1u << 24 | 1u << 28 | 1u << 29 | 1u << 30 | 1u << 31,
    .leaf7_ecx = 1u << 1 | 1u << 2 | 1u << 6 | 1u << 8 | 1u << 9 | 1u << 10 | 1u << 11 | 1u << 12 |
                 1u << 14 | 1u << 22,
    .leaf7_edx = 1u << 4 | 1u << 8, /* FSRM, VP2INTERSECT */
    .leaf7_1_eax = 1u << 4 | 1u << 5, /* AVX-VNNI, AVX512_BF16 */
    .leafd_1_eax = 1u << 0 | 1u << 1 | 1u << 2, /* XSAVEOPT, XSAVEC, XGETBV(1) */
    .ext1_ecx = 1u << 0 | 1u << 4 | 1u << 5 | 1u << 6 | 1u << 7 | 1u << 8, /* to 3DNOWPREFETCH */
    .ext1_edx = 1u << 11 | 1u << 20 | 1u << 22 | 1u << 25 | 1u << 26 | 1u << 27 | 1u << 29 |
                0x0183f3ffu,
    .ext7_edx = 1u << 8, /* invariant TSC */
    .ext8_ebx = 0,
    .xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512,
    .immune =
        {
            .leaf7_edx = 1u << 26 | 1u << 29, /* SPEC_CTRL, ARCH_CAPABILITIES (msr.c) */
            .ext8_ebx = 1u << 26,             /* SSB_NO */
            .ext21_eax = 1u << 8 | 1u << 29,  /* automatic IBRS, SRSO_NO */
            .ext21_ecx = 1u << 1 | 1u << 2,   /* TSA_SQ_NO, TSA_L1_NO */
        },
    .kvm_clock = true,
};

static void soft_cpuid_support(struct cpuid_support *support)
{
    /* Ours whatever the host has: paging and system features the engine makes by itself. */
    const uint32_t own1_ecx = 1u << 13 | 1u << 17 | 1u << 21 | 1u << 22 | 1u << 24 | 1u << 31;
    const uint32_t own7_ebx = 1u << 0 | 1u << 1 | 1u << 7 | 1u << 9 | 1u << 10 | 1u << 20;
    const uint32_t own7_ecx = 1u << 2 | 1u << 22; /* UMIP, RDPID */
    uint32_t r[4];

    *support = soft_offers;
    host_cpuid(1, 0, r);
    support->leaf1_ecx &= r[2] | own1_ecx;
    host_cpuid(7, 0, r);
    support->leaf7_ebx &= r[1] | own7_ebx;
    support->leaf7_ecx &= r[2] | own7_ecx;
    support->leaf7_edx &= r[3];
    host_cpuid(7, 1, r);
    support->leaf7_1_eax &= r[0];
    host_cpuid(0xd, 1, r);
    support->leafd_1_eax &= r[0];
    host_cpuid(0x80000001, 0, r);
    support->ext1_ecx &= r[2];
    support->ext1_edx &= r[3] | 1u << 11 | 1u << 20 | 1u << 26 | 1u << 27 | 1u << 29;
    support->xcr0 &= soft_fpu_host_xcr0();
}

static void soft_vm_release(struct soft_vm *vm)
{
    soft_cache_destroy(vm->cache);
    soft_jit_destroy(vm->jit);
    soft_code_destroy(vm->code);
    free(vm);
}

static uint64_t code_cache_size(const struct machine *machine)
{
    uint64_t part = mem_ram_size(machine->mem) / CODE_CACHE_PART;

    if (machine->code_cache)
        return machine->code_cache;
    return part < CODE_CACHE_LEAST ? CODE_CACHE_LEAST : part > CODE_CACHE_MOST ? CODE_CACHE_MOST : part;
}

/* What it made is in *vm also when it fails. The shares of the code cache are as large programs fill them. */
static int soft_vm_make(struct soft_vm *vm, struct machine *machine)
{
    uint64_t share = align_down(code_cache_size(machine), 16 * PAGE_SIZE) / 16;
    struct soft_cache_options cache = {.forgets = !vm->tuning.lockstep};
    uint64_t code = vm->tuning.code_size ? vm->tuning.code_size : share * 7;
    int ret = soft_code_create((uint32_t)code, &vm->code);

    if (ret < 0)
        return ret;
    ret = vm->tuning.interpret ? -ENOTSUP : soft_jit_create(vm->code, share * 3, &vm->jit);
    if (ret < 0 && ret != -ENOTSUP)
        return ret;
    cache.blocks_size = share * 5;
    cache.insns_size = vm->jit ? share : share * 4;
    if (vm->tuning.forget)
        cache.insns_size = FORGET_SIZE;
    cache.jit = vm->jit;
    return soft_cache_create(machine->mem, &cache, &vm->cache);
}

static int soft_vm_create(struct machine *machine, const struct cpu_model *model, unsigned cpus,
                          struct vm **out, struct error *err)
{
    struct soft_vm *vm;
    int ret;

    if (cpus == 0 || cpus > SOFT_VCPUS_MAX)
        return error_set(err, -EINVAL, "the soft engine runs 1 to %u CPUs, not %u",
                         SOFT_VCPUS_MAX, cpus);
    ret = soft_timer_install();
    if (ret < 0)
        return error_set(err, ret, "cannot set up the timer signal: %s", strerror(-ret));
    vm = calloc(1, sizeof(*vm));
    if (!vm)
        return error_set(err, -ENOMEM, "out of memory");
    if (soft_tuning_parse(getenv("LODGE_SOFT"), &vm->tuning) < 0) {
        free(vm);
        return error_set(err, -EINVAL, "LODGE_SOFT has a word that the soft engine does not know "
                                       "(docs/soft-engine.md lists them)");
    }
    if (vm->tuning.lockstep && cpus != 1) {
        free(vm);
        return error_set(err, -EINVAL, "LODGE_SOFT=lockstep is for one CPU");
    }
    ret = soft_vm_make(vm, machine);
    if (ret < 0) {
        soft_vm_release(vm);
        return error_set(err, ret, "cannot reserve the code cache: %s", strerror(-ret));
    }
    vm->base = (struct vm){.ops = &soft_engine, .machine = machine, .model = model, .cpus = cpus};
    soft_decode_init(vm);
    vm->host_tsc_khz = clock_host_tsc_khz();
    machine->mem->code_written_opaque = vm->cache;
    machine->mem->code_written = soft_code_written;
    machine->mem->map_changed_opaque = vm;
    machine->mem->map_changed = soft_map_changed;
    *out = &vm->base;
    return 0;
}

static void soft_vm_destroy(struct vm *base)
{
    struct soft_vm *vm = container_of(base, struct soft_vm, base);

    base->machine->mem->code_written = NULL;
    base->machine->mem->map_changed = NULL;
    soft_vm_release(vm);
}

static void soft_vcpu_destroy(struct vcpu *vcpu)
{
    struct soft_vcpu *cpu = soft_of(vcpu);

    if (cpu->soft_vm)
        atomic_store(&cpu->soft_vm->vcpu[vcpu->index], NULL);
    soft_timer_release(cpu);
    soft_mmu_destroy(cpu);
    if (cpu->host_thread)
        soft_thread_release(cpu->host_thread);
    free(cpu->host_thread);
    free(cpu->scratch);
    free(cpu->again);
    free(cpu->jit_work);
    soft_lockstep_destroy(cpu->lockstep);
    munmap(cpu, SOFT_VCPU_MAPPED + PAGE_SIZE);
}

/*
 * Sets the guest's TSC, in step with the machine's other vCPUs: values given to them one after the
 * other, less than a second apart from what the TSC reads there by now, mean one and the same clock.
 */
static void soft_tsc_set(struct soft_vcpu *cpu, uint64_t tsc)
{
    int64_t second = (int64_t)cpu->base.vm->model->tsc_khz * 1000;
    int64_t want = cpu->tsc_offset + (int64_t)(tsc - soft_tsc(cpu));
    int64_t shared = atomic_load(&cpu->soft_vm->tsc_offset);

    for (;;) {
        if (want - shared < second && shared - want < second) {
            cpu->tsc_offset = shared;
            return;
        }
        if (atomic_compare_exchange_weak(&cpu->soft_vm->tsc_offset, &shared, want))
            shared = want;
    }
}

/* Zeroed, with a page behind it that faults. */
static struct soft_vcpu *soft_vcpu_map(void)
{
    void *map = mmap(NULL, SOFT_VCPU_MAPPED + PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
                     -1, 0);

    if (map == MAP_FAILED)
        return NULL;
    if (mprotect(map, SOFT_VCPU_MAPPED, PROT_READ | PROT_WRITE) < 0) {
        munmap(map, SOFT_VCPU_MAPPED + PAGE_SIZE);
        return NULL;
    }
    return map;
}

/* What it made is released with the vCPU also when it fails. */
static int soft_vcpu_make(struct soft_vcpu *cpu)
{
    cpu->scratch = calloc(1, sizeof(*cpu->scratch));
    cpu->again = calloc(SOFT_AGAIN, sizeof(*cpu->again));
    cpu->jit_work = calloc(1, sizeof(*cpu->jit_work));
    cpu->host_thread = calloc(1, sizeof(*cpu->host_thread));
    if (!cpu->scratch || !cpu->again || !cpu->jit_work || !cpu->host_thread)
        return -ENOMEM;
    if (soft_thread_init(cpu->host_thread) < 0)
        return -ENOMEM;
    return soft_mmu_create(cpu);
}

static int soft_vcpu_create(struct vm *base, unsigned index, struct vcpu **out, struct error *err)
{
    struct soft_vm *vm = container_of(base, struct soft_vm, base);
    struct soft_vcpu *cpu = soft_vcpu_map();

    if (!cpu)
        return error_set(err, -ENOMEM, "out of memory for a CPU");
    cpu->self = cpu;
    cpu->base = (struct vcpu){.vm = base, .index = index};
    cpu->cache = vm->cache;
    cpu->block_base = soft_cache_blocks(vm->cache);
    cpu->code = vm->code;
    cpu->code_exec = soft_code_exec_base(vm->code);
    if (soft_vcpu_make(cpu) < 0) {
        soft_vcpu_destroy(&cpu->base);
        return error_set(err, -ENOMEM, "out of memory for a CPU");
    }
    if (vm->tuning.lockstep && soft_lockstep_create(&cpu->lockstep) < 0) {
        soft_vcpu_destroy(&cpu->base);
        return error_set(err, -ENOMEM, "out of memory for a CPU");
    }
    cpu->soft_vm = vm;
    cpu_state_reset(&cpu->s, index == 0);
    if (index != 0)
        cpu->s.activity = CPU_WAIT_SIPI;
    soft_tsc_set(cpu, 0);
    soft_mode_update(cpu);
    atomic_store(&vm->vcpu[index], cpu);
    *out = &cpu->base;
    return 0;
}

static enum vcpu_exit soft_vcpu_run(struct vcpu *vcpu, struct error *err)
{
    struct soft_vcpu *cpu = soft_of(vcpu);
    enum vcpu_exit exit;
    int ret = soft_timer_attach(cpu);

    if (ret < 0) {
        error_set(err, ret, "cannot make a timer for CPU %u: %s", vcpu->index, strerror(-ret));
        return VCPU_EXIT_ERROR;
    }
    ret = soft_thread_enter(cpu->host_thread, cpu);
    if (ret < 0) {
        error_set(err, ret, "cannot prepare the thread of CPU %u: %s", vcpu->index, strerror(-ret));
        return VCPU_EXIT_ERROR;
    }
    exit = soft_run(cpu);
    soft_thread_leave(cpu->host_thread);
    soft_fpu_park(cpu);
    soft_sync_leave(cpu);
    if (soft_lockstep_failed(cpu)) {
        error_set(err, -EILSEQ, "lock-step found a difference on CPU %u, as reported", vcpu->index);
        return VCPU_EXIT_ERROR;
    }
    return exit;
}

static void soft_vcpu_kick(struct vcpu *vcpu)
{
    soft_attention(soft_of(vcpu), SOFT_ATTN_KICK);
}

static void soft_vcpu_post(struct vcpu *vcpu, enum vcpu_event event, uint8_t vector)
{
    static const uint32_t bit[] = {
        [VCPU_EVENT_INTERRUPT] = SOFT_ATTN_INTERRUPT, [VCPU_EVENT_NMI] = SOFT_ATTN_NMI,
        [VCPU_EVENT_INIT] = SOFT_ATTN_INIT,           [VCPU_EVENT_SIPI] = SOFT_ATTN_SIPI,
        [VCPU_EVENT_TIMER] = SOFT_ATTN_TIMER,
    };
    struct soft_vcpu *cpu = soft_of(vcpu);

    if (event == VCPU_EVENT_SIPI)
        atomic_store(&cpu->sipi_vector, vector);
    soft_attention(cpu, bit[event]);
}

static int soft_state_get(struct vcpu *vcpu, struct cpu_state *state)
{
    struct soft_vcpu *cpu = soft_of(vcpu);

    soft_fpu_park(cpu);
    cpu->s.tsc = soft_tsc(cpu);
    *state = cpu->s;
    return 0;
}

static int soft_state_set(struct vcpu *vcpu, const struct cpu_state *state)
{
    struct soft_vcpu *cpu = soft_of(vcpu);

    soft_fpu_park(cpu);
    cpu->s = *state;
    cpu->s.rflags |= RFLAGS_ONE;
    cpu->next_rip = state->rip;
    cpu->delivering = false;
    soft_tsc_set(cpu, state->tsc);
    soft_tlb_flush(cpu);
    soft_mode_update(cpu);
    return 0;
}

static unsigned soft_counters(struct vm *base, struct engine_counter *out, unsigned capacity)
{
    static const char *const names[] = {"instructions interpreted", "decodes", "tlb misses", "faults",
                                        "exits", "blocks translated", "translated code entered",
                                        "instructions handed to the interpreter",
                                        "left: unlinked jump", "left: removed code",
                                        "left: after an instruction", "left: other",
                                        "code cache emptied"};
    struct soft_vm *vm = container_of(base, struct soft_vm, base);
    uint64_t sum[ARRAY_SIZE(names)] = {0};
    unsigned count = 0;

    for (unsigned i = 0; i < SOFT_VCPUS_MAX; i++) {
        const struct soft_vcpu *cpu = atomic_load(&vm->vcpu[i]);

        if (!cpu)
            continue;
        sum[0] += cpu->stat_insns;
        sum[1] += cpu->stat_decodes;
        sum[2] += cpu->stat_tlb_misses;
        sum[3] += cpu->stat_faults;
        sum[4] += cpu->stat_exits;
        sum[5] += cpu->stat_translated;
        sum[6] += cpu->stat_entries;
        sum[7] += cpu->stat_slow;
        sum[8] += cpu->stat_left_link;
        sum[9] += cpu->stat_left_stale;
        sum[10] += cpu->stat_left_call;
        sum[11] += cpu->stat_entries - cpu->stat_left_link - cpu->stat_left_stale -
                   cpu->stat_left_call;
        sum[12] += cpu->stat_emptied;
    }
    for (; count < capacity && count < ARRAY_SIZE(names); count++)
        out[count] = (struct engine_counter){names[count], sum[count]};
    return count;
}

static uint64_t soft_vcpu_tsc(struct vcpu *vcpu)
{
    return soft_tsc(container_of(vcpu, struct soft_vcpu, base));
}

const struct engine_ops soft_engine = {
    .name = "soft",
    .description = "executes the guest in software on any x86-64 host",
    .code_cache = CODE_CACHE_LEAST,
    .code_cache_most = CODE_CACHE_MOST,
    .code_cache_part = CODE_CACHE_PART,
    .probe = soft_probe,
    .cpuid_support = soft_cpuid_support,
    .vm_create = soft_vm_create,
    .vm_destroy = soft_vm_destroy,
    .vcpu_create = soft_vcpu_create,
    .vcpu_destroy = soft_vcpu_destroy,
    .vcpu_run = soft_vcpu_run,
    .vcpu_kick = soft_vcpu_kick,
    .vcpu_post = soft_vcpu_post,
    .state_get = soft_state_get,
    .state_set = soft_state_set,
    .tsc = soft_vcpu_tsc,
    .counters = soft_counters,
};
