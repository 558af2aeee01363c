#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <string.h>

#include "cpu/soft/block.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/system.h"
#include "fixture.h"

#define PML4  0x200000u
#define PDPT  0x201000u
#define PD    0x202000u
#define PT    0x203000u
#define LEAF  0x300000u
#define LEAFS 16u
#define GVA   0x8080604000ull /* indexes 1, 2, 3, 4 */

/* Pages whose first word is their number; `map` puts one of them at GVA + page * 4 KiB. */
struct world {
    struct fixture f;
    struct soft_vcpu *cpu;
};

static void map(struct world *w, unsigned page, unsigned leaf, uint64_t bits)
{
    uint64_t *pt = (uint64_t *)(w->f.ram + PT);

    pt[4 + page] = (LEAF + leaf * PAGE_SIZE) | PTE_P | PTE_W | bits;
}

static void world_init(struct world *w)
{
    const uint64_t all = PTE_P | PTE_W | PTE_U;
    uint64_t *tables;

    fixture_init(&w->f, 1);
    fixture_mode(&w->f, 0, 64);
    w->cpu = fixture_cpu(&w->f, 0);
    tables = (uint64_t *)(w->f.ram + PML4);
    memset(tables, 0, 4 * PAGE_SIZE);
    tables[1] = PDPT | all;
    tables[512 + 2] = PD | all;
    tables[1024 + 3] = PT | all;
    for (unsigned i = 0; i < LEAFS; i++)
        *(uint32_t *)(w->f.ram + LEAF + i * PAGE_SIZE) = i;
    w->cpu->s.cr3 = PML4;
    w->cpu->s.cr4 |= CR4_PGE | CR4_PCIDE;
    soft_tlb_flush(w->cpu);
}

static void privilege(struct world *w, unsigned cpl, uint64_t ac)
{
    uint32_t attr = w->cpu->s.seg[SEG_SS].attr;

    w->cpu->s.seg[SEG_SS].attr = (attr & ~0x60u) | cpl << 5;
    w->cpu->s.rflags = (w->cpu->s.rflags & ~(uint64_t)RFLAGS_AC) | ac;
    soft_mode_update(w->cpu);
}

static void address_space(struct world *w, unsigned pcid)
{
    w->cpu->s.cr3 = PML4 | pcid;
    soft_tlb_switch(w->cpu);
}

static void assert_sees(struct world *w, unsigned page, uint64_t leaf)
{
    assert_int_equal(soft_load(w->cpu, SEG_DS, GVA + page * PAGE_SIZE, 4), leaf);
}

static void test_user_contexts_are_recycled(void **state)
{
    struct world w;
    uint64_t misses;

    (void)state;
    world_init(&w);
    privilege(&w, 3, 0);
    for (unsigned i = 0; i < SOFT_USER_CONTEXTS; i++) {
        map(&w, 0, i, PTE_U);
        address_space(&w, i);
        assert_sees(&w, 0, i);
    }
    misses = w.cpu->stat_tlb_misses;
    for (unsigned i = 0; i < SOFT_USER_CONTEXTS; i++) { /* each kept its own */
        address_space(&w, i);
        assert_sees(&w, 0, i);
    }
    assert_int_equal(w.cpu->stat_tlb_misses, misses);
    address_space(&w, 0); /* now 1 is the one not used for longest */
    map(&w, 0, LEAFS - 1, PTE_U);
    address_space(&w, SOFT_USER_CONTEXTS);
    assert_sees(&w, 0, LEAFS - 1);
    address_space(&w, 0);
    assert_sees(&w, 0, 0);
    address_space(&w, 2);
    assert_sees(&w, 0, 2);
    address_space(&w, 1);
    assert_sees(&w, 0, LEAFS - 1);
    fixture_release(&w.f);
}

static void test_flushed_address_space_gives_its_context_up(void **state)
{
    struct world w;

    (void)state;
    world_init(&w);
    privilege(&w, 3, 0);
    map(&w, 0, 1, PTE_U);
    address_space(&w, 1);
    assert_sees(&w, 0, 1);
    address_space(&w, 2);
    assert_sees(&w, 0, 1);
    map(&w, 0, 2, PTE_U);
    soft_tlb_flush_pcid(w.cpu, 1);
    assert_sees(&w, 0, 1); /* 2 was not asked for */
    address_space(&w, 1);
    assert_sees(&w, 0, 2);
    address_space(&w, 2);
    assert_sees(&w, 0, 1);
    soft_tlb_flush_nonglobal(w.cpu);
    assert_sees(&w, 0, 2);
    fixture_release(&w.f);
}

static void test_kernel_keeps_global_pages(void **state)
{
    struct world w;

    (void)state;
    for (uint64_t ac = 0; ac <= RFLAGS_AC; ac += RFLAGS_AC) {
        world_init(&w);
        privilege(&w, 0, ac);
        map(&w, 0, 1, PTE_G);
        map(&w, 1, 2, 0);
        address_space(&w, 1);
        assert_sees(&w, 0, 1);
        assert_sees(&w, 1, 2);
        map(&w, 0, 3, PTE_G);
        map(&w, 1, 4, 0);
        address_space(&w, 1);
        assert_sees(&w, 0, 1);
        assert_sees(&w, 1, 2);
        privilege(&w, 0, ac ^ RFLAGS_AC); /* the context not in use is told as well */
        address_space(&w, 2);
        privilege(&w, 0, ac);
        assert_sees(&w, 0, 1);
        assert_sees(&w, 1, 4);
        soft_cr_write(w.cpu, 3, PML4 | 2);
        assert_sees(&w, 0, 1);
        soft_tlb_flush(w.cpu);
        assert_sees(&w, 0, 3);
        fixture_release(&w.f);
    }
}

static void test_invlpg_reaches_every_context(void **state)
{
    static const struct {
        unsigned pcid, cpl;
        uint64_t ac;
    } contexts[] = {{1, 3, 0}, {2, 3, 0}, {2, 0, 0}, {2, 0, RFLAGS_AC}};
    struct world w;

    (void)state;
    world_init(&w);
    for (unsigned round = 0; round < 2; round++) {
        map(&w, 0, 1 + round, PTE_U | PTE_G);
        map(&w, 1, 3 + round, PTE_U | PTE_G);
        for (unsigned i = 0; i < ARRAY_SIZE(contexts); i++) {
            address_space(&w, contexts[i].pcid);
            privilege(&w, contexts[i].cpl, contexts[i].ac);
            assert_sees(&w, 0, 1 + round);
            assert_sees(&w, 1, 3); /* the other page stays */
        }
        soft_tlb_flush_page(w.cpu, GVA + 0x123);
    }
    fixture_release(&w.f);
}

static void test_alignment_checks_see_every_access(void **state)
{
    struct world w;
    uint64_t misses;

    (void)state;
    world_init(&w);
    w.cpu->s.cr0 |= CR0_AM;
    privilege(&w, 3, RFLAGS_AC);
    map(&w, 0, 1, PTE_U);
    assert_sees(&w, 0, 1);
    misses = w.cpu->stat_tlb_misses;
    assert_sees(&w, 0, 1);
    assert_int_equal(w.cpu->stat_tlb_misses, misses + 1);
    fixture_release(&w.f);
}

static bool jump_cached(struct world *w, gva_t rip)
{
    return soft_jump_find(w->cpu->context, rip) != NULL;
}

/* mov al, leaf; hlt */
static void load_code(struct world *w, unsigned leaf)
{
    const uint8_t code[] = {0xb0, (uint8_t)leaf, 0xf4};

    fixture_load(&w->f, LEAF + leaf * PAGE_SIZE, code, sizeof(code));
}

static void assert_runs(struct world *w, unsigned leaf)
{
    w->cpu->s.rip = GVA;
    assert_true(fixture_run(&w->f, 0));
    assert_int_equal(w->cpu->s.gpr[GPR_RAX] & 0xff, leaf);
    assert_true(jump_cached(w, GVA));
}

static void test_jumps_belong_to_one_mode(void **state)
{
    /* 64-bit: inc rax; hlt. 32-bit: dec eax; inc eax; hlt. */
    static const uint8_t code[] = {0x48, 0xff, 0xc0, 0xf4};
    static const uint32_t size[] = {CPU_SEG_L, CPU_SEG_DB, CPU_SEG_L};
    static const uint64_t sum[] = {6, 5, 6};
    struct fixture f;
    struct world w;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 64);
    fixture_load(&f, FIXTURE_CODE, code, sizeof(code));
    w.cpu = fixture_cpu(&f, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(size); i++) {
        w.cpu->s.seg[SEG_CS].attr &= ~(uint32_t)(CPU_SEG_L | CPU_SEG_DB);
        w.cpu->s.seg[SEG_CS].attr |= size[i];
        soft_mode_update(w.cpu);
        assert_false(jump_cached(&w, FIXTURE_CODE));
        w.cpu->s.gpr[GPR_RAX] = 5;
        w.cpu->s.rip = FIXTURE_CODE;
        assert_true(fixture_run(&f, 0));
        assert_int_equal(w.cpu->s.gpr[GPR_RAX], sum[i]);
        assert_true(jump_cached(&w, FIXTURE_CODE));
    }
    fixture_release(&f);
}

static void test_jumps_follow_the_address_space(void **state)
{
    struct world w;

    (void)state;
    for (uint64_t global = 0; global <= PTE_G; global += PTE_G) {
        world_init(&w);
        privilege(&w, 0, 0);
        load_code(&w, 1);
        load_code(&w, 2);
        map(&w, 0, 1, global);
        address_space(&w, 1);
        assert_runs(&w, 1);
        map(&w, 0, 2, global);
        address_space(&w, 2);
        assert_int_equal(jump_cached(&w, GVA), global != 0);
        assert_runs(&w, global ? 1 : 2);
        fixture_release(&w.f);
    }
}

static void test_invlpg_drops_jumps_everywhere(void **state)
{
    struct world w;

    (void)state;
    world_init(&w);
    load_code(&w, 1);
    load_code(&w, 2);
    map(&w, 0, 1, PTE_G);
    privilege(&w, 0, 0);
    assert_runs(&w, 1);
    privilege(&w, 0, RFLAGS_AC);
    assert_runs(&w, 1);
    map(&w, 0, 2, PTE_G);
    soft_tlb_flush_page(w.cpu, GVA + 5 * PAGE_SIZE);
    assert_runs(&w, 1);
    soft_tlb_flush_page(w.cpu, GVA);
    assert_runs(&w, 2);
    privilege(&w, 0, 0);
    assert_false(jump_cached(&w, GVA));
    assert_runs(&w, 2);
    fixture_release(&w.f);
}

/* Whatever the guest loads into RIP, an empty entry is not what is looked for. */
static void test_empty_jumps_match_nothing(void **state)
{
    struct fixture f;
    struct soft_context *context;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 64);
    context = fixture_cpu(&f, 0)->context;
    for (unsigned i = 0; i < SOFT_JUMP_SETS; i++) {
        for (unsigned k = 0; k < SOFT_JUMP_WAYS; k++)
            assert_ptr_not_equal(soft_jump_set(context, context->jump[i].way[k].rip),
                                 &context->jump[i]);
    }
    fixture_release(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_user_contexts_are_recycled),
        cmocka_unit_test(test_flushed_address_space_gives_its_context_up),
        cmocka_unit_test(test_kernel_keeps_global_pages),
        cmocka_unit_test(test_invlpg_reaches_every_context),
        cmocka_unit_test(test_alignment_checks_see_every_access),
        cmocka_unit_test(test_jumps_belong_to_one_mode),
        cmocka_unit_test(test_jumps_follow_the_address_space),
        cmocka_unit_test(test_invlpg_drops_jumps_everywhere),
        cmocka_unit_test(test_empty_jumps_match_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
