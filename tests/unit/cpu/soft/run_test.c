#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "cpu/soft/block.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/vm.h"
#include "cpu/soft/soft.h"
#include "fixture.h"

static void test_modes(void **state)
{
    /* mov eax/ax, 0x...; inc; hlt in each operand size */
    static const uint8_t code16[] = {0xb8, 0x34, 0x12, 0x83, 0xc0, 0x01, 0xf4};
    static const uint8_t code32[] = {0xb8, 0x78, 0x56, 0x34, 0x12, 0x83, 0xc0, 0x01, 0xf4};
    struct fixture f;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 16);
    assert_true(fixture_execute(&f, code16, sizeof(code16)));
    assert_int_equal(fixture_state(&f, 0)->gpr[GPR_RAX] & 0xffff, 0x1235);
    assert_int_equal(fixture_state(&f, 0)->rip, sizeof(code16));
    for (unsigned bits = 32; bits <= 64; bits += 32) {
        fixture_mode(&f, 0, bits);
        assert_true(fixture_execute(&f, code32, sizeof(code32)));
        assert_int_equal(fixture_state(&f, 0)->gpr[GPR_RAX], 0x12345679);
        assert_int_equal(fixture_state(&f, 0)->rip, FIXTURE_CODE + sizeof(code32));
    }
    fixture_release(&f);
}

static void test_modified_in_block(void **state)
{
    /* mov byte [rip+1], 7 changes the immediate of the very next instruction: mov al, 1 */
    static const uint8_t code[] = {0xc6, 0x05, 0x01, 0x00, 0x00, 0x00, 0x07, 0xb0, 0x01, 0xf4};
    struct fixture f;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 64);
    assert_true(fixture_execute(&f, code, sizeof(code)));
    assert_int_equal(fixture_state(&f, 0)->gpr[GPR_RAX] & 0xff, 7);
    fixture_release(&f);
}

static void test_modified_by_device(void **state)
{
    uint8_t code[] = {0xb8, 1, 0, 0, 0, 0xf4};
    struct fixture f;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 64);
    for (uint8_t i = 1; i < 5; i++) {
        code[1] = i;
        assert_true(fixture_execute(&f, code, sizeof(code)));
        assert_int_equal(fixture_state(&f, 0)->gpr[GPR_RAX], i);
    }
    fixture_release(&f);
}

static void test_instruction_crosses_pages(void **state)
{
    /* mov eax, imm32 begins 2 bytes before a page end; then the second page is mapped elsewhere. */
    static const uint8_t first[] = {0xb8, 0x11}, second[] = {0x22, 0x33, 0x44, 0xf4},
                         other[] = {0x66, 0x77, 0x88, 0xf4};
    struct cpu_state *s;
    struct fixture f;
    uint64_t *pt;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 64);
    s = fixture_state(&f, 0);
    pt = (uint64_t *)(f.ram + 0x200000);
    ((uint64_t *)(f.ram + FIXTURE_TABLES))[1024 + 2] = 0x200000 | PTE_P | PTE_W;
    pt[0] = 0x301000 | PTE_P | PTE_W;
    pt[1] = 0x302000 | PTE_P | PTE_W;
    fixture_load(&f, 0x301ffe, first, sizeof(first));
    fixture_load(&f, 0x302000, second, sizeof(second));
    fixture_load(&f, 0x303000, other, sizeof(other));
    s->rip = 0x400ffe;
    assert_true(fixture_run(&f, 0));
    assert_int_equal(s->gpr[GPR_RAX], 0x44332211);
    pt[1] = 0x303000 | PTE_P | PTE_W;
    soft_tlb_flush_page(fixture_cpu(&f, 0), 0x401000);
    s->rip = 0x400ffe;
    assert_true(fixture_run(&f, 0));
    assert_int_equal(s->gpr[GPR_RAX], 0x88776611);
    assert_int_equal(s->rip, 0x401004);
    fixture_release(&f);
}

struct other {
    struct fixture *f;
    unsigned index;
    bool halted;
};

static void *run_other(void *opaque)
{
    struct other *o = opaque;

    o->halted = fixture_run(o->f, o->index);
    return NULL;
}

static void test_modified_by_other_cpu(void **state)
{
    /* CPU 1: loop: mov eax, 1; cmp eax, 1; je loop; hlt */
    static const uint8_t spin[] = {0xb8, 1, 0, 0, 0, 0x83, 0xf8, 0x01, 0x74, 0xf6, 0xf4};
    /* CPU 0: mov ecx, 10000000; 1: dec ecx; jnz 1b; mov byte [abs 0x20001], 2; hlt */
    static const uint8_t patch[] = {0xb9, 0x80, 0x96, 0x98, 0x00, 0xff, 0xc9, 0x75, 0xfc,
                                    0xc6, 0x04, 0x25, 0x01, 0x00, 0x02, 0x00, 0x02, 0xf4};
    struct fixture f;
    struct other other = {&f, 1, false};
    pthread_t thread;

    (void)state;
    fixture_init(&f, 2);
    fixture_mode(&f, 0, 64);
    fixture_mode(&f, 1, 64);
    fixture_load(&f, 0x20000, spin, sizeof(spin));
    fixture_state(&f, 1)->rip = 0x20000;
    assert_int_equal(pthread_create(&thread, NULL, run_other, &other), 0);
    assert_true(fixture_execute(&f, patch, sizeof(patch)));
    pthread_join(thread, NULL);
    assert_true(other.halted);
    assert_int_equal(fixture_state(&f, 1)->gpr[GPR_RAX], 2);
    fixture_release(&f);
}

static void test_two_cpus_write_and_run_one_page(void **state)
{
    /* CPU n: mov esi, 100000; 1: inc dword [0x30800 + 4n]; dec esi; jnz 1b; hlt, all in one page. */
    uint8_t code[] = {0xbe, 0xa0, 0x86, 0x01, 0x00, 0xff, 0x04, 0x25, 0x00, 0x08, 0x03,
                      0x00, 0xff, 0xce, 0x75, 0xf5, 0xf4};
    struct fixture f;
    struct other other = {&f, 1, false};
    pthread_t thread;

    (void)state;
    fixture_init(&f, 2);
    for (unsigned i = 0; i < 2; i++) {
        fixture_mode(&f, i, 64);
        code[8] = (uint8_t)(4 * i);
        fixture_load(&f, 0x30000 + 0x100 * i, code, sizeof(code));
        fixture_state(&f, i)->rip = 0x30000 + 0x100 * i;
    }
    assert_int_equal(pthread_create(&thread, NULL, run_other, &other), 0);
    assert_true(fixture_run(&f, 0));
    pthread_join(thread, NULL);
    assert_int_equal(*(uint32_t *)(f.ram + 0x30800), 100000);
    assert_int_equal(*(uint32_t *)(f.ram + 0x30804), 100000);
    fixture_release(&f);
}

struct finder {
    struct soft_vcpu *cpu;
    _Atomic int done;
};

static void *find_block(void *opaque)
{
    struct finder *finder = opaque;

    soft_sync_enter(finder->cpu);
    (void)soft_block_find(finder->cpu, 0x40000);
    atomic_store(&finder->done, 1);
    soft_sync_leave(finder->cpu);
    return NULL;
}

static void start_finder(struct finder *finder, pthread_t *thread)
{
    assert_int_equal(pthread_create(thread, NULL, find_block, finder), 0);
}

/* CPU 0 may still write the page fast. Neither of two that decode from it may read bytes before it lets go: the
 * first asks it, and the second, who finds nobody left to ask, must wait for the first. */
static void test_both_decoders_wait_for_the_writer(void **state)
{
    static const uint8_t old[] = {0xb0, 1, 0xf4};
    const struct timespec while_they_run = {0, 50 * NSEC_PER_MSEC};
    struct finder finder[2];
    pthread_t thread[2];
    struct soft_vcpu *writer;
    struct fixture f;

    (void)state;
    fixture_init(&f, 3);
    for (unsigned i = 0; i < 3; i++)
        fixture_mode(&f, i, 64);
    fixture_load(&f, 0x40000, old, sizeof(old));
    writer = fixture_cpu(&f, 0);
    soft_sync_enter(writer);
    soft_store(writer, SEG_DS, 0x40800, 1, 0);
    for (unsigned i = 0; i < 2; i++) {
        finder[i].cpu = fixture_cpu(&f, 1 + i);
        atomic_store(&finder[i].done, 0);
    }
    start_finder(&finder[0], &thread[0]);
    while (!(atomic_load(&writer->attention) & SOFT_ATTN_FLUSH))
        sched_yield();
    start_finder(&finder[1], &thread[1]);
    nanosleep(&while_they_run, NULL);
    assert_int_equal(atomic_load(&finder[0].done), 0);
    assert_int_equal(atomic_load(&finder[1].done), 0);
    soft_sync_service(writer);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    soft_sync_leave(writer);
    fixture_release(&f);
}

/* Serving requests inside an instruction must not swallow one that only a block edge can answer. */
static void test_an_edge_stays_asked_for(void **state)
{
    struct soft_vcpu *cpu;
    struct fixture f;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 64);
    cpu = fixture_cpu(&f, 0);
    soft_sync_enter(cpu);
    atomic_store(&cpu->cache_epoch, UINT64_MAX); /* as if everything had been dropped meanwhile */
    atomic_fetch_or(&cpu->attention, SOFT_ATTN_FLUSH);
    soft_sync_service(cpu);
    assert_true(atomic_load(&cpu->attention) & SOFT_ATTN_FLUSH);
    soft_cache_edge(cpu);
    soft_sync_service(cpu);
    assert_false(atomic_load(&cpu->attention) & SOFT_ATTN_FLUSH);
    soft_sync_leave(cpu);
    fixture_release(&f);
}

static void test_kick_leaves_a_tight_loop(void **state)
{
    static const uint8_t code[] = {0xeb, 0xfe};
    const struct timespec until_it_is_translated = {0, 20 * NSEC_PER_MSEC};
    struct fixture f;
    struct other other = {&f, 0, false};
    pthread_t thread;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 64);
    fixture_load(&f, FIXTURE_CODE, code, sizeof(code));
    assert_int_equal(pthread_create(&thread, NULL, run_other, &other), 0);
    nanosleep(&until_it_is_translated, NULL);
    soft_engine.vcpu_kick(f.vcpu[0]);
    pthread_join(thread, NULL);
    assert_true(other.halted);
    fixture_release(&f);
}

static void test_speed(void **state)
{
    /* mov ecx, 5000000; 1: mov eax,[rsp-8]; add eax,3; mov [rsp-8],eax; xor edx,eax; shl edx,1;
     * dec ecx; jnz 1b; hlt */
    static const uint8_t code[] = {0xb9, 0x40, 0x4b, 0x4c, 0x00, 0x8b, 0x44, 0x24, 0xf8,
                                   0x83, 0xc0, 0x03, 0x89, 0x44, 0x24, 0xf8, 0x31, 0xc2,
                                   0xd1, 0xe2, 0xff, 0xc9, 0x75, 0xed, 0xf4};
    struct fixture f;
    uint64_t begin, ns;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 64);
    begin = clock_now();
    assert_true(fixture_execute(&f, code, sizeof(code)));
    ns = clock_now() - begin;
    assert_int_equal(*(uint32_t *)(f.ram + FIXTURE_STACK - 8), 15000000);
    print_message("%.1f million instructions/s\n",
                  (double)fixture_cpu(&f, 0)->stat_insns * 1000.0 / (double)ns);
    fixture_release(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_modified_in_block),
        cmocka_unit_test(test_modified_by_device),
        cmocka_unit_test(test_instruction_crosses_pages),
        cmocka_unit_test(test_modified_by_other_cpu),
        cmocka_unit_test(test_two_cpus_write_and_run_one_page),
        cmocka_unit_test(test_both_decoders_wait_for_the_writer),
        cmocka_unit_test(test_an_edge_stays_asked_for),
        cmocka_unit_test(test_kick_leaves_a_tight_loop),
        cmocka_unit_test(test_speed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
