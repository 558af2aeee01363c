#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/cpuid.h"

static const struct cpuid_support everything = {
    .leaf1_ecx = ~0u, .leaf1_edx = ~0u, .leaf7_ebx = ~0u, .leaf7_ecx = ~0u, .leaf7_edx = ~0u,
    .leaf7_1_eax = ~0u, .leafd_1_eax = ~0u, .ext1_ecx = ~0u, .ext1_edx = ~0u, .ext7_edx = ~0u,
    .ext8_ebx = ~0u, .xcr0 = 0xe7, .kvm_clock = true,
};

static void test_unknown_name(void **state)
{
    const struct cpu_topology one = {.cpus = 1};
    struct cpu_model model;
    struct error err = {0};

    (void)state;
    assert_true(cpu_model_init(&model, "x86-64-v22", &everything, &one, &err) < 0);
    assert_non_null(strstr(err.message, "'x86-64-v2'"));
}

static void test_masks(void **state)
{
    const struct cpu_topology one = {.cpus = 1};
    struct cpuid_support support = everything;
    struct cpu_model model;
    struct error err = {0};

    (void)state;
    support.xcr0 = 3; /* no AVX state: no AVX either */
    assert_int_equal(cpu_model_init(&model, "host", &support, &one, &err), 0);
    assert_false(cpu_model_has(&model, 1, 'c', 28));
    assert_false(cpu_model_has(&model, 7, 'b', 5));
    assert_false(cpu_model_has(&model, 7, 'b', 16));
    assert_int_equal(model.xcr0_mask & ~3ull, 0);
    assert_false(cpu_model_has(&model, 1, 'c', 3)); /* MONITOR is never shown */
    assert_false(cpu_model_has(&model, 1, 'd', 28)); /* HTT: one CPU */
    assert_true(cpu_model_init(&model, "x86-64-v3", &support, &one, &err) < 0);
}

/* System features of the engine's own making need nothing of the host, but the engine. */
static void test_provided(void **state)
{
    const struct cpu_topology one = {.cpus = 1};
    struct cpuid_support support = everything;
    struct cpu_model model;
    struct error err = {0};

    (void)state;
    assert_int_equal(cpu_model_init(&model, "host", &support, &one, &err), 0);
    assert_true(cpu_model_has(&model, 1, 'c', 17)); /* PCID */
    assert_true(cpu_model_has(&model, 7, 'b', 10)); /* INVPCID */
    assert_true(cpu_model_has(&model, 7, 'c', 22)); /* RDPID */
    assert_true(cpu_model_has(&model, 0x80000001, 'd', 27)); /* RDTSCP */
    support.leaf1_ecx = ~(1u << 17);
    support.ext1_edx = ~(1u << 27);
    assert_int_equal(cpu_model_init(&model, "host", &support, &one, &err), 0);
    assert_false(cpu_model_has(&model, 1, 'c', 17));
    assert_false(cpu_model_has(&model, 0x80000001, 'd', 27));
}

static void test_baseline(void **state)
{
    const struct cpu_topology four = {.cpus = 4};
    struct cpu_model model;
    struct error err = {0};
    struct cpuid_regs r;

    (void)state;
    assert_int_equal(cpu_model_init(&model, "x86-64-v1", &everything, &four, &err), 0);
    assert_false(cpu_model_has(&model, 1, 'c', 0)); /* SSE3 is not in the baseline */
    assert_false(cpu_model_has(&model, 1, 'c', 28));
    assert_true(cpu_model_has(&model, 1, 'd', 26));
    assert_true(cpu_model_has(&model, 1, 'c', 31));
    assert_true(cpu_model_has(&model, 0x80000007, 'd', 8));
    r = cpu_model_lookup(&model, 0xb, 1);
    assert_int_equal(r.ebx, 4);
    assert_int_equal(r.eax, 2);
    assert_int_equal(r.ecx, 0x201);
    r = cpu_model_lookup(&model, 0xb, 7);
    assert_int_equal(r.ecx, 7);
    r = cpu_model_lookup(&model, 0x40000000, 0);
    assert_int_equal(r.ebx, 0x4b4d564b);
    r = cpu_model_lookup(&model, 0x80000002, 0);
    assert_memory_equal(&r.eax, "Lodge x86-64-v1", 15);
}

static void test_every_leaf_once(void **state)
{
    const struct cpu_topology two = {.cpus = 2};
    struct cpu_model model;
    struct error err = {0};

    (void)state;
    assert_int_equal(cpu_model_init(&model, "host", &everything, &two, &err), 0);
    for (unsigned i = 0; i < model.count; i++) {
        for (unsigned j = 0; j < i; j++)
            assert_false(model.entries[i].leaf == model.entries[j].leaf &&
                         model.entries[i].subleaf == model.entries[j].subleaf);
    }
    assert_true(model.phys_bits >= 36 && model.phys_bits <= 46);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unknown_name),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_provided),
        cmocka_unit_test(test_baseline),
        cmocka_unit_test(test_every_leaf_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
