/* The flash chip: what drivers do to find, erase and program it, and that the file follows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "device/cfi_flash.h"

#define BASE 0xfff00000u
#define SIZE 0x4000u

struct fixture {
    struct machine *machine;
    int fd;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    uint8_t image[SIZE];
    struct error err = {0};

    memset(image, 0xa5, sizeof(image));
    f->fd = memfd_create("flash", MFD_CLOEXEC);
    assert_int_equal(pwrite(f->fd, image, sizeof(image), 0), sizeof(image));
    assert_int_equal(machine_create(&f->machine), 0);
    assert_int_equal(mem_add_rom(f->machine->mem, BASE, image, sizeof(image), &err), 0);
    assert_int_equal(cfi_flash_create(f->machine, BASE, SIZE, dup(f->fd)), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    machine_destroy(f->machine);
    close(f->fd);
    free(f);
    return 0;
}

static void put(struct fixture *f, uint64_t offset, uint8_t value)
{
    bus_write(f->machine->bus, BUS_MEMORY, BASE + offset, 1, value);
}

/* As a vCPU reads: memory where it is found, else the bus. */
static uint8_t get(struct fixture *f, uint64_t offset)
{
    uint8_t value;

    if (mem_read(f->machine->mem, BASE + offset, &value, 1) == 0)
        return value;
    return (uint8_t)bus_read(f->machine->bus, BUS_MEMORY, BASE + offset, 1);
}

static uint8_t in_file(struct fixture *f, off_t offset)
{
    uint8_t value = 0;

    assert_int_equal(pread(f->fd, &value, 1, offset), 1);
    return value;
}

/* How OVMF tells flash from RAM and ROM. */
static void test_detection(void **state)
{
    struct fixture *f = *state;

    put(f, 0, 0x50);
    assert_int_equal(get(f, 0), 0xa5);
    put(f, 0, 0x70);
    assert_int_equal(get(f, 0), 0x00);
    put(f, 0, 0xff);
    assert_int_equal(get(f, 0), 0xa5);
}

static void test_erase_and_program(void **state)
{
    struct fixture *f = *state;

    put(f, 0x1234, 0x20);
    put(f, 0x1234, 0xd0);
    assert_int_equal(get(f, 0x1234), 0x80); /* ready, no error */
    put(f, 0x1100, 0x10);
    put(f, 0x1100, 0x5a);
    put(f, 0x1101, 0x40);
    put(f, 0x1101, 0x0f);
    put(f, 0x1101, 0x40);
    put(f, 0x1101, 0xf1); /* only ones become zeroes */
    assert_int_equal(in_file(f, 0x1100), 0xa5);
    put(f, 0, 0xff);
    assert_int_equal(get(f, 0xfff), 0xa5);
    assert_int_equal(get(f, 0x1000), 0xff);
    assert_int_equal(get(f, 0x1100), 0x5a);
    assert_int_equal(get(f, 0x1101), 0x01);
    assert_int_equal(get(f, 0x1fff), 0xff);
    assert_int_equal(get(f, 0x2000), 0xa5);
    for (unsigned i = 0; i < SIZE; i++)
        assert_int_equal(in_file(f, i), get(f, i));
}

static void test_buffered_program(void **state)
{
    struct fixture *f = *state;

    put(f, 0x2000, 0x20);
    put(f, 0x2000, 0xd0);
    put(f, 0x2100, 0xe8);
    assert_int_equal(get(f, 0x2100), 0x80);
    put(f, 0x2100, 3); /* four bytes */
    for (unsigned i = 0; i < 4; i++)
        put(f, 0x2110 + i, (uint8_t)i);
    put(f, 0x2100, 0xd0);
    assert_int_equal(get(f, 0x2100), 0x80);
    put(f, 0, 0xff);
    assert_int_equal(get(f, 0x210f), 0xff);
    assert_int_equal(get(f, 0x2110), 0);
    assert_int_equal(get(f, 0x2113), 3);
    assert_int_equal(get(f, 0x2114), 0xff);
}

static void test_wrong_sequences(void **state)
{
    struct fixture *f = *state;

    put(f, 0, 0x20);
    put(f, 0, 0xff);
    assert_int_equal(get(f, 0), 0xb0);
    put(f, 0, 0x50);
    put(f, 0, 0xe8);
    put(f, 0, 1);
    put(f, 0, 0);
    put(f, 0x1000, 0); /* another buffer */
    put(f, 0, 0xd0);
    assert_int_equal(get(f, 0) & 0x30, 0x30);
    put(f, 0, 0xff);
    assert_int_equal(get(f, 0x1000), 0xa5);
}

static void test_query(void **state)
{
    struct fixture *f = *state;

    put(f, 0, 0x98);
    assert_int_equal(get(f, 0x10), 'Q');
    assert_int_equal(get(f, 0x12), 'Y');
    assert_int_equal(get(f, 0x27), 14);
    assert_int_equal(get(f, 0x2d), SIZE / 4096 - 1);
    put(f, 0, 0x90);
    assert_int_equal(get(f, 0), 0x89);
}

static void test_reset_shows_the_array(void **state)
{
    struct fixture *f = *state;

    put(f, 5, 0x10);
    put(f, 5, 0);
    machine_reset_devices(f->machine);
    assert_int_equal(get(f, 5), 0);
    assert_int_equal(in_file(f, 5), 0);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_detection),
        TEST(test_erase_and_program),
        TEST(test_buffered_program),
        TEST(test_wrong_sequences),
        TEST(test_query),
        TEST(test_reset_shows_the_array),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
