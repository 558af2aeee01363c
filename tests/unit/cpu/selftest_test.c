/* The self-test's verdict on engines that fail in known ways: a fake engine drives the bus by itself. */
#include "cpu/selftest.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/selftest_guest.h"
#include "cpu/soft/soft.h"

static int fake_vm_create(struct machine *machine, const struct cpu_model *model, unsigned cpus,
                          struct vm **out, struct error *err)
{
    (void)err;
    *out = calloc(1, sizeof(**out));
    **out = (struct vm){.machine = machine, .model = model, .cpus = cpus};
    return 0;
}

static void fake_vm_destroy(struct vm *vm)
{
    free(vm);
}

static int fake_vcpu_create(struct vm *vm, unsigned index, struct vcpu **out, struct error *err)
{
    (void)index;
    (void)err;
    *out = calloc(1, sizeof(**out));
    (*out)->vm = vm;
    return 0;
}

static void fake_vcpu_destroy(struct vcpu *vcpu)
{
    free(vcpu);
}

static void fake_vcpu_kick(struct vcpu *vcpu)
{
    (void)vcpu;
}

static int fake_state_get(struct vcpu *vcpu, struct cpu_state *state)
{
    (void)vcpu;
    memset(state, 0, sizeof(*state));
    state->activity = CPU_HALTED;
    return 0;
}

static int fake_state_set(struct vcpu *vcpu, const struct cpu_state *state)
{
    (void)vcpu;
    (void)state;
    return 0;
}

static void fake_steps(struct vcpu *vcpu, unsigned last)
{
    for (unsigned step = 1; step <= last; step++)
        bus_write(vcpu->vm->machine->bus, BUS_PORT, SELFTEST_PORT_STEP, 1, step);
}

static enum vcpu_exit run_gives_up(struct vcpu *vcpu, struct error *err)
{
    fake_steps(vcpu, STEP_CMPXCHG16B);
    error_set(err, -EIO, "cannot emulate");
    return VCPU_EXIT_ERROR;
}

static enum vcpu_exit run_triple_fault(struct vcpu *vcpu, struct error *err)
{
    (void)err;
    fake_steps(vcpu, STEP_REAL);
    return VCPU_EXIT_SHUTDOWN;
}

/* Says that it did everything, and did nothing. */
static enum vcpu_exit run_lies(struct vcpu *vcpu, struct error *err)
{
    (void)err;
    fake_steps(vcpu, STEP_HALT);
    return VCPU_EXIT_KICKED;
}

static struct selftest_result judge(enum vcpu_exit (*run)(struct vcpu *, struct error *))
{
    const struct engine_ops ops = {
        .name = "fake",
        .flags = ENGINE_IRQCHIP,
        .cpuid_support = soft_engine.cpuid_support,
        .vm_create = fake_vm_create,
        .vm_destroy = fake_vm_destroy,
        .vcpu_create = fake_vcpu_create,
        .vcpu_destroy = fake_vcpu_destroy,
        .vcpu_run = run,
        .vcpu_kick = fake_vcpu_kick,
        .state_get = fake_state_get,
        .state_set = fake_state_set,
    };
    struct selftest_result result;

    selftest_run(&ops, &result);
    return result;
}

static void test_engine_gives_up(void **state)
{
    struct selftest_result result = judge(run_gives_up);

    (void)state;
    assert_false(result.passed);
    assert_true(result.engine_error);
    assert_string_equal(result.step, "CMPXCHG16B");
    assert_string_equal(result.detail, "cannot emulate");
}

static void test_triple_fault(void **state)
{
    struct selftest_result result = judge(run_triple_fault);

    (void)state;
    assert_false(result.passed);
    assert_false(result.engine_error);
    assert_non_null(strstr(result.detail, "triple fault"));
    assert_non_null(strstr(result.step, "protected mode"));
}

static void test_wrong_results(void **state)
{
    struct selftest_result result = judge(run_lies);

    (void)state;
    assert_false(result.passed);
    assert_non_null(strstr(result.step, "INT3"));
}

static void test_soft_engine_passes(void **state)
{
    struct selftest_result result;

    (void)state;
    selftest_run(&soft_engine, &result);
    assert_string_equal(result.detail, "");
    assert_true(result.passed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_gives_up),
        cmocka_unit_test(test_triple_fault),
        cmocka_unit_test(test_wrong_results),
        cmocka_unit_test(test_soft_engine_passes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
