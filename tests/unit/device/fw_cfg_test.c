/* The firmware configuration device by its ports and by DMA. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/fw_cfg.h"

#define DESCRIPTOR 0x1000u
#define BUFFER     0x2000u

#define DMA_ERROR  1u
#define DMA_READ   2u
#define DMA_SKIP   4u
#define DMA_SELECT 8u
#define DMA_WRITE  16u

struct fixture {
    struct machine *machine;
    struct fw_cfg *fw;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct error err = {0};

    assert_int_equal(machine_create(&f->machine), 0);
    assert_int_equal(mem_add_ram(f->machine->mem, 0, 0x10000, &err), 0);
    assert_int_equal(fw_cfg_create(f->machine, &f->fw), 0);
    assert_int_equal(fw_cfg_add_file(f->fw, "etc/first", "0123456789", 10), 0);
    assert_int_equal(fw_cfg_add_file_integer(f->fw, "etc/second", 0x1122334455667788), 0);
    assert_int_equal(fw_cfg_add_integer(f->fw, FW_CFG_NB_CPUS, 2, 3), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    machine_destroy(((struct fixture *)*state)->machine);
    free(*state);
    return 0;
}

static void select_key(struct fixture *f, uint16_t key)
{
    bus_write(f->machine->bus, BUS_PORT, 0x510, 2, key);
}

static uint64_t next(struct fixture *f, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++)
        value |= bus_read(f->machine->bus, BUS_PORT, 0x511, 1) << 8 * i;
    return value;
}

/* The control word afterwards. */
static uint32_t dma(struct fixture *f, uint32_t control, uint32_t len, uint64_t address)
{
    struct mem *mem = f->machine->mem;

    mem_write32(mem, DESCRIPTOR, __builtin_bswap32(control));
    mem_write32(mem, DESCRIPTOR + 4, __builtin_bswap32(len));
    mem_write64(mem, DESCRIPTOR + 8, __builtin_bswap64(address));
    bus_write(f->machine->bus, BUS_PORT, 0x514, 4, 0);
    bus_write(f->machine->bus, BUS_PORT, 0x518, 4, __builtin_bswap32(DESCRIPTOR));
    return __builtin_bswap32(mem_read32(mem, DESCRIPTOR));
}

static void test_ports(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(next(f, 4), 0x554d4551); /* selected after reset */
    assert_int_equal(next(f, 4), 0);
    select_key(f, FW_CFG_ID);
    assert_int_equal(next(f, 4), 3);
    select_key(f, FW_CFG_NB_CPUS);
    assert_int_equal(next(f, 2), 3);
    select_key(f, 0x7777);
    assert_int_equal(next(f, 8), 0);
    assert_int_equal(bus_read(f->machine->bus, BUS_PORT, 0x514, 4), 0x554d4551);
    assert_int_equal(bus_read(f->machine->bus, BUS_PORT, 0x518, 4), 0x47464320);
}

static void test_directory(void **state)
{
    struct fixture *f = *state;
    char name[FW_CFG_NAME_MAX];

    select_key(f, FW_CFG_FILE_DIR);
    assert_int_equal(next(f, 4), __builtin_bswap32(2));
    assert_int_equal(next(f, 4), __builtin_bswap32(10));
    assert_int_equal(next(f, 2), __builtin_bswap16(FW_CFG_FILE_FIRST));
    assert_int_equal(next(f, 2), 0);
    for (unsigned i = 0; i < sizeof(name); i++)
        name[i] = (char)next(f, 1);
    assert_string_equal(name, "etc/first");
    select_key(f, FW_CFG_FILE_FIRST + 1);
    assert_true(next(f, 8) == 0x1122334455667788);
}

static void test_refusals(void **state)
{
    struct fixture *f = *state;
    char name[FW_CFG_NAME_MAX + 1];
    int r = 0;

    assert_int_equal(fw_cfg_add_file(f->fw, "etc/first", "", 0), -EEXIST);
    assert_int_equal(fw_cfg_add(f->fw, FW_CFG_ID, "", 0), -EEXIST);
    assert_int_equal(fw_cfg_add(f->fw, FW_CFG_FILE_DIR, "", 0), -EEXIST);
    memset(name, 'x', FW_CFG_NAME_MAX);
    name[FW_CFG_NAME_MAX] = '\0';
    assert_int_equal(fw_cfg_add_file(f->fw, name, "", 0), -ENAMETOOLONG);
    for (unsigned i = 0; r == 0; i++) {
        name[0] = (char)('a' + i);
        name[1] = '\0';
        r = fw_cfg_add_file(f->fw, name, "", 0);
        assert_true(i <= FW_CFG_FILES_MAX);
    }
    assert_int_equal(r, -ENOSPC);
}

static void test_dma(void **state)
{
    struct fixture *f = *state;
    struct mem *mem = f->machine->mem;
    char text[16] = {0};

    assert_int_equal(dma(f, FW_CFG_FILE_FIRST << 16 | DMA_SELECT | DMA_READ, 4, BUFFER), 0);
    assert_int_equal(dma(f, DMA_SKIP, 3, 0), 0);
    assert_int_equal(dma(f, DMA_READ, 8, BUFFER + 4), 0); /* three are there, then zeroes */
    assert_int_equal(mem_read(mem, BUFFER, text, 12), 0);
    assert_memory_equal(text, "0123789\0\0\0\0", 12);
    assert_int_equal(dma(f, DMA_SKIP, UINT32_MAX, 0), 0);
    assert_int_equal(next(f, 1), 0);
}

static void test_dma_errors(void **state)
{
    struct fixture *f = *state;
    uint32_t key = FW_CFG_FILE_FIRST << 16 | DMA_SELECT;

    assert_int_equal(dma(f, key | DMA_READ, 10, 0xfffc), DMA_ERROR);
    assert_int_equal(dma(f, key | DMA_READ, 10, UINT64_MAX - 3), DMA_ERROR);
    assert_int_equal(dma(f, key | DMA_READ, UINT32_MAX, BUFFER), DMA_ERROR);
    assert_int_equal(dma(f, key | DMA_WRITE, 1, BUFFER), DMA_ERROR);
    select_key(f, FW_CFG_FILE_FIRST);
    assert_int_equal(next(f, 1), '0');
    /* A descriptor outside memory: nothing happens. */
    bus_write(f->machine->bus, BUS_PORT, 0x518, 4, __builtin_bswap32(0xfffc));
    bus_write(f->machine->bus, BUS_PORT, 0x514, 4, 1);
    bus_write(f->machine->bus, BUS_PORT, 0x518, 4, __builtin_bswap32(DESCRIPTOR));
    assert_int_equal(next(f, 1), '1');
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_ports), TEST(test_directory),  TEST(test_refusals),
        TEST(test_dma),   TEST(test_dma_errors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
