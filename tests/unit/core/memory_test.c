/* Guest memory: slots, bounds, ranges that span slots, dirty and code flags. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"

static struct mem *make_memory(void)
{
    struct error err = {0};
    struct mem *mem;

    assert_int_equal(mem_create(&mem), 0);
    assert_int_equal(mem_add_ram(mem, 0x10000, 0x2000, &err), 0);
    assert_int_equal(mem_add_ram(mem, 0, 0x10000, &err), 0);
    assert_int_equal(mem_add_rom(mem, 0x20000, "rom!", 5, &err), 0);
    return mem;
}

static void test_bounds(void **state)
{
    struct mem *mem = make_memory();
    uint8_t buf[16] = {0};

    (void)state;
    assert_int_equal(mem_write(mem, 0x11ff8, "12345678", 8), 0);
    assert_int_equal(mem_write(mem, 0x11ff9, "12345678", 8), -EFAULT);
    assert_int_equal(mem_read(mem, UINT64_MAX - 3, buf, 8), -EFAULT);
    assert_int_equal(mem_read32(mem, 0x12000), UINT32_MAX);
    assert_null(mem_pin(mem, 0x11000, 0x1001, true));
    assert_non_null(mem_pin(mem, 0x11000, 0x1000, true));
    assert_int_equal(mem_ram_size(mem), 0x12000);
    mem_destroy(mem);
}

static void test_failed_write_changes_nothing(void **state)
{
    struct mem *mem = make_memory();

    (void)state;
    mem_write64(mem, 0x11ff8, 0x1122334455667788);
    assert_int_equal(mem_write(mem, 0x11ff8, "0123456789abcdef", 16), -EFAULT);
    assert_true(mem_read64(mem, 0x11ff8) == 0x1122334455667788);
    mem_destroy(mem);
}

static void test_range_spans_slots(void **state)
{
    struct mem *mem = make_memory();
    char buf[8];

    (void)state;
    assert_int_equal(mem_write(mem, 0xfffc, "abcdefgh", 8), 0);
    assert_int_equal(mem_read(mem, 0xfffc, buf, 8), 0);
    assert_memory_equal(buf, "abcdefgh", 8);
    assert_true(mem_read32(mem, 0x10000) == 0x68676665);
    assert_null(mem_pin(mem, 0xfffc, 8, false));
    mem_destroy(mem);
}

static void test_rom_refuses_writes(void **state)
{
    struct mem *mem = make_memory();
    char buf[4];

    (void)state;
    assert_int_equal(mem_write(mem, 0x20000, "x", 1), -EFAULT);
    assert_int_equal(mem_read(mem, 0x20000, buf, 4), 0);
    assert_memory_equal(buf, "rom!", 4);
    mem_destroy(mem);
}

static void test_overlap_refused(void **state)
{
    struct mem *mem = make_memory();
    struct error err = {0};

    (void)state;
    assert_int_equal(mem_add_ram(mem, 0x11000, 0x2000, &err), -EEXIST);
    assert_int_equal(mem->slot_count, 3);
    mem_destroy(mem);
}

static void code_written(void *opaque, gpa_t gpa, uint64_t len)
{
    (void)len;
    *(gpa_t *)opaque = gpa;
}

static void test_page_flags(void **state)
{
    struct mem *mem = make_memory();
    struct mem_slot *slot = mem_slot_find(mem, 0x10000);
    gpa_t told = 0;

    (void)state;
    mem->code_written = code_written;
    mem->code_written_opaque = &told;
    mem_write16(mem, 0x10010, 1);
    assert_true(told == 0);
    assert_int_equal(slot->page[0] & MEM_PAGE_DIRTY, MEM_PAGE_DIRTY);
    assert_int_equal(slot->page[1], 0);
    slot->page[1] |= MEM_PAGE_CODE;
    mem_write16(mem, 0x11010, 1);
    assert_true(told == 0x11010);
    mem_destroy(mem);
}

static void count_change(void *opaque)
{
    ++*(unsigned *)opaque;
}

static void test_pages_become_rom(void **state)
{
    struct mem *mem = make_memory();
    unsigned changes = 0;

    (void)state;
    mem_set_rom(mem, 0x4000, 0x4000, false); /* all that ever will be */
    mem->map_changed = count_change;
    mem->map_changed_opaque = &changes;
    mem_set_rom(mem, 0x5000, 0x1000, true);
    assert_int_equal(changes, 1);
    assert_int_equal(mem_write(mem, 0x4ffe, "1234", 4), -EFAULT);
    assert_int_equal(mem_read16(mem, 0x4ffe), 0);
    assert_null(mem_pin(mem, 0x4000, 0x1001, true));
    assert_non_null(mem_pin(mem, 0x4000, 0x1001, false));
    assert_non_null(mem_pin(mem, 0x4000, 0x1000, true));
    assert_int_equal(mem_write(mem, 0x6000, "12", 2), 0);
    assert_int_equal(mem_program(mem, 0x5000, "rom", 4), 0);
    assert_int_equal(mem_read32(mem, 0x5000), 0x006d6f72);
    assert_true(mem_slot_find(mem, 0)->page[5] & MEM_PAGE_DIRTY);
    assert_int_equal(mem_program(mem, 0x11fff, "12", 2), -EFAULT);
    mem_set_rom(mem, 0x5000, 0x1000, false);
    assert_int_equal(mem_write(mem, 0x4ffe, "1234", 4), 0);
    mem_destroy(mem);
}

static void test_hidden_slot(void **state)
{
    struct mem *mem = make_memory();
    unsigned changes = 0;

    (void)state;
    mem->map_changed = count_change;
    mem->map_changed_opaque = &changes;
    mem_set_hidden(mem, 0x20000, true);
    mem_set_hidden(mem, 0x20000, true);
    assert_int_equal(changes, 1);
    assert_null(mem_slot_find(mem, 0x20000));
    assert_int_equal(mem_read32(mem, 0x20000), UINT32_MAX);
    assert_int_equal(mem_program(mem, 0x20000, "new", 4), 0);
    mem_set_hidden(mem, 0x20000, false);
    assert_int_equal(mem_read32(mem, 0x20000), 0x0077656e);
    mem_destroy(mem);
}

/* Open while anybody holds it open. */
static void test_a20(void **state)
{
    struct mem *mem = make_memory();
    unsigned changes = 0;

    (void)state;
    mem->map_changed = count_change;
    mem->map_changed_opaque = &changes;
    assert_true(mem_a20_mask(mem) == UINT64_MAX);
    mem_set_a20(mem, MEM_A20_PORT92, true);
    mem_set_a20(mem, MEM_A20_KEYBOARD, false);
    assert_true(mem_a20_mask(mem) == UINT64_MAX);
    assert_int_equal(changes, 0);
    mem_set_a20(mem, MEM_A20_PORT92, false);
    assert_true(mem_a20_mask(mem) == ~0x100000ull);
    assert_int_equal(changes, 1);
    mem_set_a20(mem, MEM_A20_KEYBOARD, true);
    assert_int_equal(changes, 2);
    mem_destroy(mem);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_failed_write_changes_nothing),
        cmocka_unit_test(test_range_spans_slots),
        cmocka_unit_test(test_rom_refuses_writes),
        cmocka_unit_test(test_overlap_refused),
        cmocka_unit_test(test_page_flags),
        cmocka_unit_test(test_pages_become_rom),
        cmocka_unit_test(test_hidden_slot),
        cmocka_unit_test(test_a20),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
