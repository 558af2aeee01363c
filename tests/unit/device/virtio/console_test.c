/* The console and the random number generator: short devices, served on the thread that rings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "../virtio_driver.h"
#include "device/virtio/virtio.h"

#define RX 0u
#define TX 1u

struct fixture {
    struct driver_machine dm;
    struct driver d, rng;
    int to_guest[2], from_guest[2]; /* pipes */
};

static struct fixture f;

static void start(void)
{
    driver_init(&f.d, &f.dm, 1, F_VERSION_1 | F_EVENT_IDX, true);
    for (unsigned q = 0; q < 2; q++) {
        mem_write16(f.dm.machine->mem, DRIVER_RINGS + q * 0x10000 + 0x4002, 0);
        mem_write16(f.dm.machine->mem, DRIVER_RINGS + q * 0x10000 + 0x8002, 0);
        driver_queue_setup(&f.d, q, true);
    }
    driver_ok(&f.d);
}

static int setup(void **state)
{
    (void)state;
    f = (struct fixture){0};
    assert_int_equal(pipe(f.to_guest) || pipe(f.from_guest), 0);
    driver_machine_init(&f.dm);
    assert_int_equal(
        virtio_console_create(f.dm.host, f.to_guest[0], f.from_guest[1], "console0"), 0);
    assert_int_equal(virtio_rng_create(f.dm.host, "rng0"), 0);
    start();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    driver_machine_release(&f.dm);
    for (unsigned i = 0; i < 2; i++) {
        close(f.to_guest[i]);
        close(f.from_guest[i]);
    }
    return 0;
}

static void send_bytes(uint16_t head, uint64_t gpa, uint32_t len)
{
    driver_desc(&f.d, TX, head, gpa, len, 0, 0);
    driver_offer(&f.d, TX, head);
    driver_kick(&f.d, TX);
}

static void test_output(void **state)
{
    char text[32] = {0};

    (void)state;
    assert_int_equal(mem_write(f.dm.machine->mem, DRIVER_DATA, "hello", 5), 0);
    send_bytes(0, DRIVER_DATA, 5);
    assert_true(driver_wait(&f.d, TX, NULL, NULL));
    assert_int_equal(read(f.from_guest[0], text, sizeof(text)), 5);
    assert_string_equal(text, "hello");
}

static void test_input(void **state)
{
    uint32_t len;
    char text[8] = {0};

    (void)state;
    assert_int_equal(write(f.to_guest[1], "typed", 5), 5);
    driver_desc(&f.d, RX, 0, DRIVER_DATA, 64, D_WRITE, 0);
    driver_offer(&f.d, RX, 0);
    driver_kick(&f.d, RX);
    assert_true(driver_wait(&f.d, RX, NULL, &len));
    assert_int_equal(len, 5);
    assert_int_equal(mem_read(f.dm.machine->mem, DRIVER_DATA, text, 5), 0);
    assert_string_equal(text, "typed");
}

/* More than a pipe holds: the rest follows, in order, when the reader gets on. */
static void test_output_waits_for_the_reader(void **state)
{
    const size_t total = 1 << 20;
    static uint8_t bytes[1 << 20];
    size_t done = 0;

    (void)state;
    for (size_t i = 0; i < total; i += 4)
        mem_write32(f.dm.machine->mem, DRIVER_DATA + i, (uint32_t)i);
    send_bytes(0, DRIVER_DATA, (uint32_t)total);
    while (done < total) {
        ssize_t n = read(f.from_guest[0], bytes + done, total - done);

        assert_true(n > 0);
        done += (size_t)n;
    }
    for (size_t i = 0; i < total; i += 4)
        assert_memory_equal(bytes + i, &(uint32_t){(uint32_t)i}, 4);
    assert_true(driver_wait(&f.d, TX, NULL, NULL));
}

/* Nobody reads, and the driver resets: it must not wait for the reader. */
static void test_reset_while_blocked(void **state)
{
    char text[16];

    (void)state;
    send_bytes(0, DRIVER_DATA, 1 << 20);
    usleep(10000);
    start();
    assert_int_equal(driver_status(&f.d), 0xf);
    fcntl(f.from_guest[0], F_SETFL, O_NONBLOCK);
    while (read(f.from_guest[0], text, sizeof(text)) > 0)
        ;
    fcntl(f.from_guest[0], F_SETFL, 0);
    assert_int_equal(mem_write(f.dm.machine->mem, DRIVER_DATA, "again", 5), 0);
    send_bytes(0, DRIVER_DATA, 5);
    assert_true(driver_wait(&f.d, TX, NULL, NULL));
    assert_int_equal(read(f.from_guest[0], text, sizeof(text)), 5);
    assert_memory_equal(text, "again", 5);
}

static void test_random_bytes(void **state)
{
    uint8_t bytes[64], zero[64] = {0};
    uint32_t len;

    (void)state;
    driver_init(&f.rng, &f.dm, 2, F_VERSION_1, true);
    mem_write16(f.dm.machine->mem, DRIVER_RINGS + 0x4002, 0);
    mem_write16(f.dm.machine->mem, DRIVER_RINGS + 0x8002, 0);
    driver_queue_setup(&f.rng, 0, true);
    driver_ok(&f.rng);
    driver_desc(&f.rng, 0, 0, DRIVER_DATA + 1, 64, D_WRITE, 0);
    driver_offer(&f.rng, 0, 0);
    driver_kick(&f.rng, 0);
    assert_true(driver_wait(&f.rng, 0, NULL, &len));
    assert_int_equal(len, 64);
    assert_int_equal(mem_read(f.dm.machine->mem, DRIVER_DATA + 1, bytes, 64), 0);
    assert_memory_not_equal(bytes, zero, 64);
    assert_int_equal(mem_read16(f.dm.machine->mem, DRIVER_DATA + 65), 0);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_output),
        TEST(test_input),
        TEST(test_output_waits_for_the_reader),
        TEST(test_reset_while_blocked),
        TEST(test_random_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
