/* The memory map and the ACPI tables: sums, pointers, what depends on the configuration, AML lengths. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "board/acpi/acpi.h"
#include "board/acpi/aml.h"

#define GIB (1ull << 30)

static uint8_t sum(const uint8_t *bytes, size_t len)
{
    uint8_t total = 0;

    while (len--)
        total = (uint8_t)(total + *bytes++);
    return total;
}

static const struct acpi_table_place *find(const struct acpi_tables *tables, const char *signature)
{
    for (unsigned i = 0; i < tables->count; i++) {
        if (strcmp(tables->tables[i].signature, signature) == 0)
            return &tables->tables[i];
    }
    fail_msg("no table %s", signature);
    return NULL;
}

static struct acpi_tables *build(unsigned cpus, uint64_t ram)
{
    struct acpi_tables *tables = malloc(sizeof(*tables));
    struct memory_map map;
    const struct acpi_config config = {.cpus = cpus, .map = &map};

    memory_map_init(&map, ram, 40);
    assert_int_equal(acpi_build(&config, tables), 0);
    return tables;
}

static uint64_t get(const struct acpi_tables *tables, uint64_t at, size_t size)
{
    uint64_t value = 0;

    assert_in_range(at, ACPI_AREA, ACPI_AREA + ACPI_AREA_SIZE - size);
    memcpy(&value, tables->image + (at - ACPI_AREA), size);
    return value;
}

static void test_map(void **state)
{
    struct memory_map map;

    (void)state;
    memory_map_init(&map, RAM_MINIMUM, 40);
    assert_int_equal(map.low_end, RAM_MINIMUM);
    assert_int_equal(map.high_end, RAM_HIGH);
    memory_map_init(&map, RAM_LOW_MAX, 40);
    assert_int_equal(map.high_end, RAM_HIGH);
    memory_map_init(&map, 8 * GIB, 36);
    assert_int_equal(map.low_end, RAM_LOW_MAX);
    assert_int_equal(map.high_end, RAM_HIGH + 8 * GIB - RAM_LOW_MAX);
    assert_int_equal(map.mmio64_end, 64 * GIB); /* not beyond what 36 bits reach */
    assert_true(map.mmio64_base >= map.high_end);
    for (unsigned i = 1; i < map.count; i++)
        assert_true(map.range[i].base >= map.range[i - 1].base + map.range[i - 1].size);
}

static void test_sums_and_pointers(void **state)
{
    struct acpi_tables *tables = build(4, 8 * GIB);
    uint64_t xsdt = get(tables, tables->rsdp + 24, 8);
    const struct acpi_table_place *fadt = find(tables, "FACP");

    (void)state;
    assert_memory_equal(tables->image, "RSD PTR ", 8);
    assert_int_equal(sum(tables->image, 20), 0);
    assert_int_equal(sum(tables->image, 36), 0);
    assert_int_equal(get(tables, xsdt, 4), 0x54445358);
    assert_int_equal(get(tables, xsdt + 4, 4), 36 + 3 * 8);
    for (unsigned i = 0; i < tables->count; i++) {
        const struct acpi_table_place *place = &tables->tables[i];

        assert_int_equal(get(tables, ACPI_AREA + place->offset + 4, 4), place->length);
        if (strcmp(place->signature, "FACS") != 0)
            assert_int_equal(sum(tables->image + place->offset, place->length), 0);
    }
    assert_int_equal(get(tables, ACPI_AREA + fadt->offset + 40, 4),
                     ACPI_AREA + find(tables, "DSDT")->offset);
    assert_int_equal(get(tables, ACPI_AREA + fadt->offset + 36, 4),
                     ACPI_AREA + find(tables, "FACS")->offset);
    assert_int_equal(get(tables, ACPI_AREA + fadt->offset + 46, 2), ACPI_SCI);
    free(tables);
}

/* One local APIC for each vCPU, with its index as id. */
static void test_madt(void **state)
{
    static const unsigned counts[] = {1, 2, 64};

    (void)state;
    for (unsigned c = 0; c < ARRAY_SIZE(counts); c++) {
        struct acpi_tables *tables = build(counts[c], GIB);
        const struct acpi_table_place *madt = find(tables, "APIC");
        const uint8_t *at = tables->image + madt->offset + 44;
        const uint8_t *end = tables->image + madt->offset + madt->length;
        unsigned cpus = 0, overrides = 0;

        for (; at < end; at += at[1]) {
            assert_true(at[1] >= 2 && at + at[1] <= end);
            if (at[0] == 0)
                assert_int_equal(at[3], cpus++);
            if (at[0] == 2)
                overrides++;
        }
        assert_ptr_equal(at, end);
        assert_int_equal(cpus, counts[c]);
        assert_int_equal(overrides, 2);
        free(tables);
    }
}

/* PkgLength at the borders where it becomes one byte longer (ACPI 20.2.4). */
static void test_package_length(void **state)
{
    static const struct {
        size_t body, encoded;
        uint8_t first;
    } cases[] = {{62, 1, 0x3f}, {63, 2, 0x41}, {4093, 2, 0x4f}, {4094, 3, 0x81}};
    uint8_t *room = malloc(8192);

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct aml aml = {room, 0, 8192, false};
        size_t begin = aml.len;

        for (size_t n = 0; n < cases[i].body; n++)
            aml_byte(&aml, 0xaa);
        aml_end(&aml, begin);
        assert_false(aml.overflow);
        assert_int_equal(aml.len, cases[i].body + cases[i].encoded);
        assert_int_equal(room[0], cases[i].first);
        assert_int_equal(room[cases[i].encoded], 0xaa);
    }
    free(room);
}

static void test_overflow(void **state)
{
    uint8_t room[8] = {0};
    struct aml aml = {room, 0, 4, false};

    (void)state;
    aml_integer(&aml, 0x12345678);
    assert_true(aml.overflow);
    aml_byte(&aml, 1);
    assert_int_equal(room[4], 0);
    assert_true(aml.len <= 4);
}

static void test_eisa_id(void **state)
{
    uint8_t room[8];
    struct aml aml = {room, 0, sizeof(room), false};

    (void)state;
    aml_eisa_id(&aml, "PNP0A08");
    assert_memory_equal(room, "\x0c\x41\xd0\x0a\x08", 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_map),
        cmocka_unit_test(test_sums_and_pointers),
        cmocka_unit_test(test_madt),
        cmocka_unit_test(test_package_length),
        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_eisa_id),
    };

    return cmocka_run_group_tests_name("acpi", tests, NULL, NULL);
}
