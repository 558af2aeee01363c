#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <string.h>

#include "cpu/soft/mmu.h"
#include "cpu/soft/soft.h"
#include "cpu/soft/vm.h"
#include "fixture.h"

#define PML4 0x200000u
#define PDPT 0x201000u
#define PD   0x202000u
#define PT   0x203000u
#define LEAF 0x300000u
#define GVA  0x8080604000ull /* indexes 1, 2, 3, 4 */

static uint64_t *entry(struct fixture *f, gpa_t table, unsigned index)
{
    return (uint64_t *)(f->ram + table) + index;
}

/* Four levels to LEAF with every permission; `leaf` bits are ored into the last entry. */
static struct soft_vcpu *four_levels(struct fixture *f, uint64_t leaf)
{
    const uint64_t all = PTE_P | PTE_W | PTE_U;
    struct soft_vcpu *cpu = fixture_cpu(f, 0);

    fixture_mode(f, 0, 64);
    memset(f->ram + PML4, 0, 4 * PAGE_SIZE);
    *entry(f, PML4, 1) = PDPT | all;
    *entry(f, PDPT, 2) = PD | all;
    *entry(f, PD, 3) = PT | all;
    *entry(f, PT, 4) = LEAF | leaf;
    cpu->s.cr3 = PML4;
    return cpu;
}

static void assert_allowed(struct soft_vcpu *cpu, unsigned index, enum soft_access access)
{
    struct soft_walk walk = {0};

    assert_true(soft_walk(cpu, GVA + 0x123, index, access, &walk));
    assert_int_equal(walk.gpa, LEAF + 0x123);
    assert_int_equal(walk.shift, 12);
}

static void assert_denied(struct soft_vcpu *cpu, unsigned index, enum soft_access access,
                          uint32_t error)
{
    struct soft_walk walk = {0};

    assert_false(soft_walk(cpu, GVA, index, access, &walk));
    assert_int_equal(walk.error, error);
}

static void test_permissions(void **state)
{
    struct fixture f;
    struct soft_vcpu *cpu;

    (void)state;
    fixture_init(&f, 1);
    cpu = four_levels(&f, 0);
    assert_denied(cpu, SOFT_MMU_USER, SOFT_WRITE, PF_U | PF_W);
    cpu = four_levels(&f, PTE_P);
    assert_denied(cpu, SOFT_MMU_USER, SOFT_READ, PF_P | PF_U);
    assert_denied(cpu, SOFT_MMU_KERNEL, SOFT_WRITE, PF_P | PF_W);
    assert_allowed(cpu, SOFT_MMU_KERNEL, SOFT_READ);
    assert_allowed(cpu, SOFT_MMU_KERNEL, SOFT_FETCH);
    cpu->s.cr0 &= ~(uint64_t)CR0_WP;
    assert_allowed(cpu, SOFT_MMU_KERNEL, SOFT_WRITE);
    cpu = four_levels(&f, PTE_P | PTE_U);
    assert_denied(cpu, SOFT_MMU_USER, SOFT_WRITE, PF_P | PF_W | PF_U);
    *entry(&f, PD, 3) &= ~PTE_U;
    assert_denied(cpu, SOFT_MMU_USER, SOFT_READ, PF_P | PF_U);
    cpu = four_levels(&f, PTE_P | PTE_W | PTE_U | PTE_NX);
    assert_denied(cpu, SOFT_MMU_USER, SOFT_FETCH, PF_P | PF_U | PF_I);
    cpu->s.efer &= ~(uint64_t)EFER_NXE;
    assert_denied(cpu, SOFT_MMU_USER, SOFT_READ, PF_P | PF_U | PF_RSVD);
    fixture_release(&f);
}

static void test_smep_smap(void **state)
{
    struct fixture f;
    struct soft_vcpu *cpu;

    (void)state;
    fixture_init(&f, 1);
    cpu = four_levels(&f, PTE_P | PTE_W | PTE_U);
    assert_allowed(cpu, SOFT_MMU_KERNEL, SOFT_FETCH);
    cpu->s.cr4 |= CR4_SMEP | CR4_SMAP;
    assert_denied(cpu, SOFT_MMU_KERNEL, SOFT_FETCH, PF_P | PF_I);
    assert_denied(cpu, SOFT_MMU_KERNEL, SOFT_READ, PF_P);
    assert_denied(cpu, SOFT_MMU_KERNEL, SOFT_WRITE, PF_P | PF_W);
    assert_allowed(cpu, SOFT_MMU_KERNEL_AC, SOFT_WRITE);
    assert_allowed(cpu, SOFT_MMU_USER, SOFT_WRITE);
    fixture_release(&f);
}

static void test_accessed_and_dirty(void **state)
{
    struct fixture f;
    struct soft_vcpu *cpu;

    (void)state;
    fixture_init(&f, 1);
    cpu = four_levels(&f, PTE_P | PTE_W);
    assert_denied(cpu, SOFT_MMU_USER, SOFT_READ, PF_P | PF_U);
    assert_false(*entry(&f, PT, 4) & (PTE_A | PTE_D));
    assert_allowed(cpu, SOFT_MMU_KERNEL, SOFT_READ);
    assert_true(*entry(&f, PML4, 1) & PTE_A);
    assert_true(*entry(&f, PD, 3) & PTE_A);
    assert_int_equal(*entry(&f, PT, 4) & (PTE_A | PTE_D), PTE_A);
    assert_allowed(cpu, SOFT_MMU_KERNEL, SOFT_WRITE);
    assert_int_equal(*entry(&f, PT, 4) & (PTE_A | PTE_D), PTE_A | PTE_D);
    assert_false(*entry(&f, PD, 3) & PTE_D);
    fixture_release(&f);
}

static void test_large_pages_and_reserved_bits(void **state)
{
    struct soft_walk walk = {0};
    struct fixture f;
    struct soft_vcpu *cpu;

    (void)state;
    fixture_init(&f, 1);
    cpu = four_levels(&f, PTE_P);
    cpu->s.cr4 |= CR4_PGE;
    *entry(&f, PD, 3) = 0x400000 | PTE_P | PTE_PS | PTE_G;
    assert_true(soft_walk(cpu, GVA + 5, SOFT_MMU_KERNEL, SOFT_READ, &walk));
    assert_int_equal(walk.gpa, 0x400000 + (GVA & 0x1fffff) + 5);
    assert_int_equal(walk.shift, 21);
    assert_true(walk.global);
    *entry(&f, PD, 3) = 0x402000 | PTE_P | PTE_PS;
    assert_denied(cpu, SOFT_MMU_KERNEL, SOFT_READ, PF_P | PF_RSVD);
    *entry(&f, PDPT, 2) = 0x40000000 | PTE_P | PTE_PS;
    assert_true(soft_walk(cpu, GVA, SOFT_MMU_KERNEL, SOFT_READ, &walk));
    assert_int_equal(walk.gpa, 0x40000000 + (GVA & 0x3fffffff));
    assert_int_equal(walk.shift, 30);
    *entry(&f, PML4, 1) |= PTE_PS;
    assert_denied(cpu, SOFT_MMU_KERNEL, SOFT_READ, PF_P | PF_RSVD);
    cpu = four_levels(&f, PTE_P | 1ull << 51);
    assert_denied(cpu, SOFT_MMU_KERNEL, SOFT_READ, PF_P | PF_RSVD);
    fixture_release(&f);
}

static void test_32_bit_and_pae(void **state)
{
    struct soft_walk walk = {0};
    struct fixture f;
    struct soft_vcpu *cpu;
    uint32_t *pd, *pt;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 32);
    cpu = fixture_cpu(&f, 0);
    memset(f.ram + PML4, 0, 4 * PAGE_SIZE);
    pd = (uint32_t *)(f.ram + PD);
    pt = (uint32_t *)(f.ram + PT);
    pd[1] = PT | 7;
    pt[2] = LEAF | 1;
    pd[2] = 0x00c00000 | 0x2000 | 0x87; /* PSE-36: bit 32 */
    cpu->s.cr3 = PD;
    cpu->s.cr0 |= CR0_PG;
    cpu->s.cr4 = CR4_PSE;
    assert_true(soft_walk(cpu, 0x402345, SOFT_MMU_KERNEL, SOFT_WRITE, &walk));
    assert_int_equal(walk.gpa, LEAF + 0x345);
    assert_int_equal(pt[2] & 0x60, 0x60);
    assert_false(soft_walk(cpu, 0x402345, SOFT_MMU_USER, SOFT_READ, &walk));
    assert_int_equal(walk.error, PF_P | PF_U);
    assert_true(soft_walk(cpu, 0x812345, SOFT_MMU_USER, SOFT_READ, &walk));
    assert_int_equal(walk.gpa, 0x100c12345);
    assert_int_equal(walk.shift, 22);

    *entry(&f, PDPT, 1) = PD | PTE_P;
    *entry(&f, PD, 3) = PT | PTE_P | PTE_U | PTE_W;
    *entry(&f, PT, 4) = LEAF | PTE_P | PTE_U;
    cpu->s.cr3 = PDPT;
    cpu->s.cr4 = CR4_PAE;
    assert_true(soft_walk(cpu, 0x40604123, SOFT_MMU_USER, SOFT_READ, &walk));
    assert_int_equal(walk.gpa, LEAF + 0x123);
    assert_int_equal(*entry(&f, PDPT, 1), PD | PTE_P);
    assert_false(soft_walk(cpu, 0x80000000, SOFT_MMU_USER, SOFT_READ, &walk));
    assert_int_equal(walk.error, PF_U);
    fixture_release(&f);
}

static void test_tlb_forgets_only_what_it_must(void **state)
{
    struct fixture f;
    struct soft_vcpu *cpu;
    uint64_t misses;

    (void)state;
    fixture_init(&f, 1);
    cpu = four_levels(&f, PTE_P | PTE_W);
    cpu->s.cr4 |= CR4_PCIDE | CR4_PGE;
    soft_tlb_flush(cpu);
    *(uint64_t *)(f.ram + LEAF) = 42;
    assert_int_equal(soft_load(cpu, SEG_DS, GVA, 8), 42);
    misses = cpu->stat_tlb_misses;
    assert_int_equal(soft_load(cpu, SEG_DS, GVA, 8), 42);
    assert_int_equal(cpu->stat_tlb_misses, misses);
    cpu->s.cr3 = PML4 | 5; /* another address space misses; the first one's entry was replaced */
    soft_tlb_switch(cpu);
    assert_int_equal(soft_load(cpu, SEG_DS, GVA + 0x7f8, 8), 0);
    assert_int_equal(cpu->stat_tlb_misses, misses + 1);
    soft_tlb_flush_pcid(cpu, 0); /* not ours */
    assert_int_equal(soft_load(cpu, SEG_DS, GVA, 8), 42);
    assert_int_equal(cpu->stat_tlb_misses, misses + 1);
    soft_tlb_flush_page(cpu, GVA);
    *entry(&f, PT, 4) = (LEAF + PAGE_SIZE) | PTE_P | PTE_W | PTE_G;
    assert_int_equal(soft_load(cpu, SEG_DS, GVA, 8), 0);
    soft_tlb_flush_nonglobal(cpu); /* a global page stays */
    *entry(&f, PT, 4) = LEAF | PTE_P | PTE_W;
    assert_int_equal(soft_load(cpu, SEG_DS, GVA, 8), 0);
    soft_tlb_flush(cpu);
    assert_int_equal(soft_load(cpu, SEG_DS, GVA, 8), 42);
    fixture_release(&f);
}

static void test_crossing_pages(void **state)
{
    struct fixture f;
    struct soft_vcpu *cpu;

    (void)state;
    fixture_init(&f, 1);
    cpu = four_levels(&f, PTE_P | PTE_W);
    *entry(&f, PT, 5) = (LEAF + 0x5000) | PTE_P | PTE_W;
    soft_store(cpu, SEG_DS, GVA + 0xffd, 8, 0x8877665544332211ull);
    assert_int_equal(f.ram[LEAF + 0xfff], 0x33);
    assert_int_equal(f.ram[LEAF + 0x5000], 0x44);
    assert_int_equal(f.ram[LEAF + 0x5004], 0x88);
    assert_true(soft_load(cpu, SEG_DS, GVA + 0xffd, 8) == 0x8877665544332211ull);
    assert_null(soft_pointer(cpu, SEG_DS, GVA + 0xffd, 8, SOFT_READ));
    assert_ptr_equal(soft_pointer(cpu, SEG_DS, GVA + 0xff8, 8, SOFT_WRITE), f.ram + LEAF + 0xff8);
    fixture_release(&f);
}

static uint64_t bus_value, bus_offset;

static void note_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)opaque;
    (void)size;
    bus_offset = offset;
    bus_value = value;
}

/* Writes to ROM go to the bus: also those whose page was translated for writing when it was RAM. */
static void test_rom_writes_go_to_the_bus(void **state)
{
    const struct bus_ops ops = {.write = note_write};
    const struct bus_region region = {.base = LEAF, .len = PAGE_SIZE, .ops = &ops};
    struct soft_walk walk = {0};
    struct fixture f;
    struct soft_vcpu *cpu;

    (void)state;
    fixture_init(&f, 1);
    cpu = four_levels(&f, PTE_P | PTE_W);
    assert_int_equal(bus_add(f.machine->bus, BUS_MEMORY, &region), 0);
    mem_set_rom(f.machine->mem, 0, FIXTURE_RAM, false);
    soft_store(cpu, SEG_DS, GVA + 8, 4, 0x11111111);
    mem_set_rom(f.machine->mem, LEAF, PAGE_SIZE, true);
    assert_true(soft_map_stale(cpu));
    soft_map_follow(cpu);
    soft_store(cpu, SEG_DS, GVA + 8, 4, 0x22222222);
    assert_int_equal(soft_load(cpu, SEG_DS, GVA + 8, 4), 0x11111111);
    assert_int_equal(bus_offset, 8);
    assert_int_equal(bus_value, 0x22222222);
    assert_null(soft_pointer(cpu, SEG_DS, GVA, 8, SOFT_WRITE));
    assert_non_null(soft_pointer(cpu, SEG_DS, GVA, 8, SOFT_READ));
    /* Page tables in ROM are read, and not marked. */
    mem_set_rom(f.machine->mem, PT, PAGE_SIZE, true);
    *entry(&f, PT, 4) = LEAF | PTE_P | PTE_W;
    assert_true(soft_walk(cpu, GVA, SOFT_MMU_KERNEL, SOFT_WRITE, &walk));
    assert_int_equal(*entry(&f, PT, 4), LEAF | PTE_P | PTE_W);
    fixture_release(&f);
}

static void test_a20_wraps(void **state)
{
    struct fixture f;
    struct soft_vcpu *cpu;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 32);
    cpu = fixture_cpu(&f, 0);
    soft_store(cpu, SEG_DS, 0x100010, 4, 0xaaaaaaaa);
    mem_set_a20(f.machine->mem, MEM_A20_KEYBOARD, false);
    soft_map_follow(cpu);
    soft_store(cpu, SEG_DS, 0x100010, 4, 0xbbbbbbbb);
    assert_int_equal(*(uint32_t *)(f.ram + 0x10), 0xbbbbbbbb);
    assert_int_equal(*(uint32_t *)(f.ram + 0x100010), 0xaaaaaaaa);
    mem_set_a20(f.machine->mem, MEM_A20_KEYBOARD, true);
    soft_map_follow(cpu);
    assert_int_equal(soft_load(cpu, SEG_DS, 0x100010, 4), 0xaaaaaaaa);
    fixture_release(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_permissions),
        cmocka_unit_test(test_smep_smap),
        cmocka_unit_test(test_accessed_and_dirty),
        cmocka_unit_test(test_large_pages_and_reserved_bits),
        cmocka_unit_test(test_32_bit_and_pae),
        cmocka_unit_test(test_tlb_forgets_only_what_it_must),
        cmocka_unit_test(test_crossing_pages),
        cmocka_unit_test(test_rom_writes_go_to_the_bus),
        cmocka_unit_test(test_a20_wraps),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
