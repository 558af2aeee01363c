#include "cpu/selftest.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "cpu/selftest_guest.h"
#include "x86/arch.h"

static const char *const selftest_steps[STEP_COUNT] = {
    [STEP_START] = "setting up",
    [STEP_REAL] = "the switch from real to protected mode",
    [STEP_PROTECTED] = "the switch from protected to long mode",
    [STEP_LONG] = "loading an IDT in long mode",
    [STEP_BREAKPOINT] = "INT3 through an IDT",
    [STEP_SSE] = "SSE instructions",
    [STEP_CMPXCHG16B] = "CMPXCHG16B",
    [STEP_XSAVE] = "XSAVE and XRSTOR",
    [STEP_PORT] = "reading a port",
    [STEP_MMIO] = "memory-mapped I/O",
    [STEP_HALT] = "HLT",
};

/* One run. `lock` guards what both the vCPU's thread and the watching thread touch. */
struct selftest {
    const struct engine_ops *ops;
    struct selftest_result *result;
    struct machine *machine;
    struct vm *vm;
    struct cpu_model model;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct vcpu *vcpu;    /* while it may be kicked */
    bool finished;        /* the vCPU's thread is done */
    bool time_over;
    unsigned step;        /* enum selftest_step last begun */
    bool out_of_order;
    uint64_t mmio_written;
};

static void selftest_fail(struct selftest *test, const char *fmt, ...) printf_like(2, 3);
static void selftest_fail(struct selftest *test, const char *fmt, ...)
{
    va_list args;

    test->result->passed = false;
    if (test->result->detail[0])
        return;
    va_start(args, fmt);
    vsnprintf(test->result->detail, sizeof(test->result->detail), fmt, args);
    va_end(args);
}

static uint64_t selftest_port_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    return offset == SELFTEST_PORT_DATA - SELFTEST_PORT_STEP && size == 4 ? SELFTEST_PORT_READ : 0;
}

static void selftest_port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct selftest *test = opaque;

    (void)size;
    if (offset != 0)
        return;
    pthread_mutex_lock(&test->lock);
    if (value != test->step + 1 || value >= STEP_COUNT)
        test->out_of_order = true;
    else
        test->step = (unsigned)value;
    pthread_cond_broadcast(&test->changed);
    pthread_mutex_unlock(&test->lock);
}

static uint64_t selftest_mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    return offset == 0 && size == 8 ? SELFTEST_MMIO_READ : 0;
}

static void selftest_mmio_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct selftest *test = opaque;

    if (offset == 0 && size == 8)
        test->mmio_written = value; /* read after the vCPU's thread was joined */
}

static const struct bus_ops selftest_port_ops = {selftest_port_read, selftest_port_write};
static const struct bus_ops selftest_mmio_ops = {selftest_mmio_read, selftest_mmio_write};

/* A local APIC that is not there, for engines that take one: no interrupt ever comes. */
static bool apic_no_interrupt(void *apic) { (void)apic; return false; }
static int apic_accept_none(void *apic) { (void)apic; return -1; }
static uint64_t apic_none_read(void *apic, uint32_t offset, unsigned size)
{
    (void)apic; (void)offset; (void)size;
    return 0;
}
static void apic_none_write(void *apic, uint32_t offset, unsigned size, uint64_t value)
{
    (void)apic; (void)offset; (void)size; (void)value;
}
static int apic_none_msr_read(void *apic, uint32_t msr, uint64_t *value)
{
    (void)apic; (void)msr;
    *value = 0;
    return 0;
}
static int apic_none_msr_write(void *apic, uint32_t msr, uint64_t value)
{
    (void)apic; (void)msr; (void)value;
    return 0;
}
static uint64_t apic_none_base(void *apic) { (void)apic; return APIC_DEFAULT_PHYS | APIC_BASE_BSP; }
static uint64_t apic_none_cr8(void *apic) { (void)apic; return 0; }
static void apic_none_cr8_write(void *apic, uint64_t value) { (void)apic; (void)value; }
static uint64_t apic_never(void *apic) { (void)apic; return CLOCK_NEVER; }
static void apic_none_poll(void *apic) { (void)apic; }
static void apic_none_reset(void *apic, bool init) { (void)apic; (void)init; }

static const struct local_apic_ops selftest_apic_ops = {
    .has_interrupt = apic_no_interrupt,
    .accept_interrupt = apic_accept_none,
    .mmio_read = apic_none_read,
    .mmio_write = apic_none_write,
    .msr_read = apic_none_msr_read,
    .msr_write = apic_none_msr_write,
    .base = apic_none_base,
    .cr8_read = apic_none_cr8,
    .cr8_write = apic_none_cr8_write,
    .timer_deadline = apic_never,
    .timer_poll = apic_none_poll,
    .reset = apic_none_reset,
};

static int selftest_wire(struct selftest *test, struct error *err)
{
    const struct bus_region port = {
        .base = SELFTEST_PORT_STEP, .len = 8, .ops = &selftest_port_ops, .opaque = test};
    const struct bus_region mmio = {
        .base = SELFTEST_MMIO, .len = 4096, .ops = &selftest_mmio_ops, .opaque = test};
    const struct cpu_topology topology = {.cpus = 1};
    struct cpuid_support support = {0};
    int ret;

    test->ops->cpuid_support(&support);
    ret = cpu_model_init(&test->model, "host", &support, &topology, err);
    if (ret)
        return ret;
    ret = machine_create(&test->machine);
    if (ret)
        return error_set(err, ret, "out of memory");
    ret = mem_add_ram(test->machine->mem, 0, SELFTEST_RAM, err);
    if (ret)
        return ret;
    ret = mem_write(test->machine->mem, SELFTEST_LOAD, selftest_guest_start,
                    (size_t)(selftest_guest_end - selftest_guest_start));
    if (ret == 0)
        ret = bus_add(test->machine->bus, BUS_PORT, &port);
    if (ret == 0)
        ret = bus_add(test->machine->bus, BUS_MEMORY, &mmio);
    if (ret)
        return error_set(err, ret, "cannot wire the test machine");
    return test->ops->vm_create(test->machine, &test->model, 1, &test->vm, err);
}

static bool selftest_is_halted(struct selftest *test, struct vcpu *vcpu, struct cpu_state *state)
{
    return test->step == STEP_HALT && test->ops->state_get(vcpu, state) == 0 &&
           state->activity == CPU_HALTED;
}

/* The watching thread kicks now and then; each time this thread looks whether the guest halted. */
static void selftest_loop(struct selftest *test, struct vcpu *vcpu, struct cpu_state *state)
{
    struct error err = {0};
    bool over;

    do {
        switch (test->ops->vcpu_run(vcpu, &err)) {
        case VCPU_EXIT_KICKED:
            break;
        case VCPU_EXIT_SHUTDOWN:
            selftest_fail(test, "the guest ended in a triple fault");
            return;
        case VCPU_EXIT_ERROR:
            test->result->engine_error = true;
            selftest_fail(test, "%.200s", err.message);
            return;
        }
        if (selftest_is_halted(test, vcpu, state))
            return;
        pthread_mutex_lock(&test->lock);
        over = test->time_over;
        pthread_mutex_unlock(&test->lock);
    } while (!over);
    selftest_fail(test, "no progress in %d seconds", SELFTEST_SECONDS);
}

static void selftest_set_vcpu(struct selftest *test, struct vcpu *vcpu, bool finished)
{
    pthread_mutex_lock(&test->lock);
    test->vcpu = vcpu;
    test->finished = finished;
    pthread_cond_broadcast(&test->changed);
    pthread_mutex_unlock(&test->lock);
}

static void *selftest_vcpu_thread(void *opaque)
{
    struct selftest *test = opaque;
    struct cpu_state state;
    struct error err = {0};
    struct vcpu *vcpu;
    int ret = test->ops->vcpu_create(test->vm, 0, &vcpu, &err);

    if (ret) {
        selftest_fail(test, "%.200s", err.message);
        selftest_set_vcpu(test, NULL, true);
        return NULL;
    }
    if (!(test->ops->flags & ENGINE_IRQCHIP))
        vcpu->apic_ops = &selftest_apic_ops;
    cpu_state_reset(&state, true);
    state.seg[SEG_CS].selector = 0;
    state.seg[SEG_CS].base = 0;
    state.rip = SELFTEST_LOAD;
    ret = test->ops->state_set(vcpu, &state);
    if (ret) {
        selftest_fail(test, "its registers cannot be set: %s", strerror(-ret));
    } else {
        selftest_set_vcpu(test, vcpu, false);
        selftest_loop(test, vcpu, &state);
    }
    selftest_set_vcpu(test, NULL, true);
    test->ops->vcpu_destroy(vcpu);
    return NULL;
}

/* Waits for the vCPU's thread; once the guest should be halting, kicks every few milliseconds. */
static void selftest_watch(struct selftest *test)
{
    uint64_t end = clock_now() + SELFTEST_SECONDS * NSEC_PER_SEC;

    pthread_mutex_lock(&test->lock);
    while (!test->finished) {
        struct timespec until;

        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += (long)(2 * NSEC_PER_MSEC);
        if (until.tv_nsec >= (long)NSEC_PER_SEC) {
            until.tv_nsec -= (long)NSEC_PER_SEC;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&test->changed, &test->lock, &until);
        test->time_over = clock_now() >= end;
        if (test->vcpu && (test->time_over || test->step == STEP_HALT))
            test->ops->vcpu_kick(test->vcpu);
    }
    pthread_mutex_unlock(&test->lock);
}

static void selftest_expect(struct selftest *test, enum selftest_step step, uint64_t got,
                            uint64_t expected)
{
    if (got == expected || test->result->detail[0])
        return;
    test->step = step;
    selftest_fail(test, "the result is 0x%llx, not 0x%llx", (unsigned long long)got,
                  (unsigned long long)expected);
}

/* The vCPU's thread has ended. */
static void selftest_judge(struct selftest *test)
{
    struct selftest_memory memory;
    const uint64_t fives = 0x0000000500000005ull;

    if (mem_read(test->machine->mem, SELFTEST_RESULTS, &memory, sizeof(memory))) {
        selftest_fail(test, "no results");
        return;
    }
    if (test->out_of_order)
        selftest_fail(test, "the guest went astray");
    selftest_expect(test, STEP_BREAKPOINT, memory.breakpoint_rip,
                    (uint64_t)(selftest_guest_after_int3 - selftest_guest_start));
    selftest_expect(test, STEP_SSE, memory.sse[0], fives);
    selftest_expect(test, STEP_SSE, memory.sse[1], fives);
    selftest_expect(test, STEP_CMPXCHG16B, memory.swap_old[0], 3);
    selftest_expect(test, STEP_CMPXCHG16B, memory.swap_old[1], 4);
    selftest_expect(test, STEP_CMPXCHG16B, memory.swap_new[0], 3);
    selftest_expect(test, STEP_CMPXCHG16B, memory.swap_new[1], 4);
    if (memory.has_xsave) {
        selftest_expect(test, STEP_XSAVE, memory.xsave[0], fives);
        selftest_expect(test, STEP_XSAVE, memory.xsave[1], fives);
    }
    selftest_expect(test, STEP_PORT, memory.port, SELFTEST_PORT_READ);
    selftest_expect(test, STEP_MMIO, memory.mmio, SELFTEST_MMIO_READ);
    selftest_expect(test, STEP_MMIO, test->mmio_written, ~SELFTEST_MMIO_READ);
}

void selftest_run(const struct engine_ops *ops, struct selftest_result *result)
{
    struct selftest test = {.ops = ops, .result = result};
    struct error err = {0};
    pthread_t thread;
    int ret;

    memset(result, 0, sizeof(*result));
    pthread_mutex_init(&test.lock, NULL);
    pthread_cond_init(&test.changed, NULL);
    result->passed = true; /* until something fails */
    ret = selftest_wire(&test, &err);
    if (ret) {
        selftest_fail(&test, "%.200s", err.message);
    } else if ((ret = pthread_create(&thread, NULL, selftest_vcpu_thread, &test)) != 0) {
        selftest_fail(&test, "no thread: %s", strerror(ret));
    } else {
        selftest_watch(&test);
        pthread_join(thread, NULL);
        selftest_judge(&test);
    }
    result->step = selftest_steps[test.step];
    if (test.vm)
        ops->vm_destroy(test.vm);
    if (test.machine)
        machine_destroy(test.machine);
    pthread_cond_destroy(&test.changed);
    pthread_mutex_destroy(&test.lock);
}
