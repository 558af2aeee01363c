#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../virtio_driver.h"
#include "device/virtio/virtio.h"

#define DISK_SECTORS 2048u
#define HEADER (DRIVER_DATA)
#define STATUS (DRIVER_DATA + 0x100)
#define BUFFER (DRIVER_DATA + 0x1000)
#define ALL (F_VERSION_1 | F_INDIRECT | F_EVENT_IDX)

struct fixture {
    struct driver_machine dm;
    struct driver d;
    char path[64];
    int fd;
    struct mem *mem;
};

static struct fixture f;

static int setup_disk(uint64_t features, bool readonly, bool msix)
{
    struct block_options options = {.path = f.path, .readonly = readonly};
    struct block *block;
    struct error err = {0};
    uint8_t sector[512];

    f = (struct fixture){.path = "/tmp/lodge-blk-XXXXXX"};
    f.fd = mkstemp(f.path);
    for (unsigned i = 0; i < DISK_SECTORS; i++) {
        memset(sector, (int)(i * 7 + 1), sizeof(sector));
        assert_int_equal(write(f.fd, sector, sizeof(sector)), sizeof(sector));
    }
    driver_machine_init(&f.dm);
    f.mem = f.dm.machine->mem;
    assert_int_equal(block_open(&options, &block, &err), 0);
    assert_int_equal(virtio_blk_create(f.dm.host, block, "disk0"), 0);
    driver_init(&f.d, &f.dm, 1, features, msix);
    driver_queue_setup(&f.d, 0, msix);
    driver_ok(&f.d);
    return 0;
}

static int setup(void **state)
{
    (void)state;
    return setup_disk(ALL, false, true);
}

static int setup_plain(void **state)
{
    (void)state;
    return setup_disk(F_VERSION_1, false, false);
}

static int setup_readonly(void **state)
{
    (void)state;
    return setup_disk(ALL | 1u << 5, true, true);
}

static int teardown(void **state)
{
    (void)state;
    driver_machine_release(&f.dm);
    close(f.fd);
    unlink(f.path);
    return 0;
}

static void header(uint32_t type, uint64_t sector)
{
    mem_write32(f.mem, HEADER, type);
    mem_write32(f.mem, HEADER + 4, 0);
    mem_write64(f.mem, HEADER + 8, sector);
    assert_int_equal(mem_fill(f.mem, STATUS, 0xee, 1), 0);
}

static uint8_t status(void)
{
    uint8_t byte = 0xee;

    assert_int_equal(mem_read(f.mem, STATUS, &byte, 1), 0);
    return byte;
}

/* One request with one data buffer; returns the status byte. */
static uint8_t request(uint32_t type, uint64_t sector, uint32_t len, bool in, uint32_t *written)
{
    header(type, sector);
    driver_desc(&f.d, 0, 0, HEADER, 16, D_NEXT, len ? 1 : 2);
    driver_desc(&f.d, 0, 1, BUFFER, len, D_NEXT | (in ? D_WRITE : 0), 2);
    driver_desc(&f.d, 0, 2, STATUS, 1, D_WRITE, 0);
    driver_offer(&f.d, 0, 0);
    driver_kick(&f.d, 0);
    assert_true(driver_wait(&f.d, 0, NULL, written));
    return status();
}

static bool buffer_is(uint64_t gpa, uint8_t byte, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if ((mem_read16(f.mem, gpa + i) & 0xff) != byte)
            return false;
    }
    return true;
}

static void test_read_and_write(void **state)
{
    uint8_t bytes[1024];
    uint32_t written;

    (void)state;
    assert_int_equal(driver_read(&f.d, 0x2000, 8), DISK_SECTORS);
    assert_int_equal(request(0, 3, 1024, true, &written), 0);
    assert_int_equal(written, 1025);
    assert_true(buffer_is(BUFFER, 22, 512));
    assert_true(buffer_is(BUFFER + 512, 29, 512));
    assert_int_equal(mem_fill(f.mem, BUFFER, 0xa5, 1024), 0);
    assert_int_equal(request(1, 100, 1024, false, &written), 0);
    assert_int_equal(written, 1);
    assert_int_equal(request(4, 0, 0, false, NULL), 0);
    assert_int_equal(pread(f.fd, bytes, 1024, 100 * 512), 1024);
    for (unsigned i = 0; i < 1024; i++)
        assert_int_equal(bytes[i], 0xa5);
}

static void test_refused_requests(void **state)
{
    (void)state;
    assert_int_equal(request(0, DISK_SECTORS, 512, true, NULL), 1);
    assert_int_equal(request(0, DISK_SECTORS - 1, 1024, true, NULL), 1);
    assert_int_equal(request(0, UINT64_MAX, 512, true, NULL), 1);
    assert_int_equal(request(1, UINT64_MAX / 512, 512, false, NULL), 1);
    assert_int_equal(request(0, 0, 100, true, NULL), 1);
    assert_int_equal(request(77, 0, 512, true, NULL), 2);
    assert_int_equal(request(0, 5, 512, true, NULL), 0); /* and it still works */
}

static void range(uint64_t sector, uint32_t sectors, uint32_t flags)
{
    mem_write64(f.mem, BUFFER, sector);
    mem_write32(f.mem, BUFFER + 8, sectors);
    mem_write32(f.mem, BUFFER + 12, flags);
}

static void test_discard_write_zeroes_id(void **state)
{
    uint8_t bytes[4096];
    uint32_t written;

    (void)state;
    range(8, 8, 0);
    assert_int_equal(request(13, 0, 16, false, NULL), 0);
    assert_int_equal(pread(f.fd, bytes, 4096, 4096), 4096);
    for (unsigned i = 0; i < 4096; i++)
        assert_int_equal(bytes[i], 0);
    range(64, 8, 0);
    assert_int_equal(request(11, 0, 16, false, NULL), 0);
    range(64, 8, 1);
    assert_int_equal(request(11, 0, 16, false, NULL), 2); /* unmap flag is for write-zeroes */
    range(DISK_SECTORS - 1, 2, 0);
    assert_int_equal(request(13, 0, 16, false, NULL), 1);
    range(UINT64_MAX - 1, 8, 0);
    assert_int_equal(request(11, 0, 16, false, NULL), 1);
    assert_int_equal(request(13, 0, 15, false, NULL), 1);
    assert_int_equal(request(8, 0, 20, true, &written), 0);
    assert_int_equal(written, 21);
    assert_true(buffer_is(BUFFER, 'd', 1));
}

static void test_readonly(void **state)
{
    (void)state;
    assert_true(driver_read(&f.d, 4, 4) & 0x20);
    assert_int_equal(request(1, 0, 512, false, NULL), 1);
    assert_int_equal(request(0, 0, 512, true, NULL), 0);
    assert_int_equal(request(4, 0, 0, false, NULL), 0);
    assert_true(buffer_is(BUFFER, 1, 512));
}

/* Header, data and status cut in odd places, through an indirect table. */
static void test_indirect_odd_framing(void **state)
{
    const uint64_t table = DRIVER_DATA + 0x800;

    (void)state;
    header(0, 9);
    driver_desc_at(&f.d, table, 0, HEADER, 7, D_NEXT, 1);
    driver_desc_at(&f.d, table, 1, HEADER + 7, 9, D_NEXT, 2);
    driver_desc_at(&f.d, table, 2, BUFFER, 100, D_NEXT | D_WRITE, 3);
    driver_desc_at(&f.d, table, 3, BUFFER + 100, 0, D_NEXT | D_WRITE, 4);
    driver_desc_at(&f.d, table, 4, BUFFER + 100, 413, D_WRITE, 0); /* status is its last byte */
    driver_desc(&f.d, 0, 5, table, 5 * 16, D_INDIRECT, 0);
    driver_offer(&f.d, 0, 5);
    driver_kick(&f.d, 0);
    assert_true(driver_wait(&f.d, 0, NULL, NULL));
    assert_true(buffer_is(BUFFER, 64, 512));
    assert_true(buffer_is(BUFFER + 512, 0, 1));
}

/* Many rounds over a small ring, so that every index wraps. */
static void test_integrity_over_wraps(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 5000; round++) {
        uint8_t byte = (uint8_t)(round * 31);

        if (round % 2 == 0) {
            assert_int_equal(mem_fill(f.mem, BUFFER, byte, 512), 0);
            assert_int_equal(request(1, round / 2 % DISK_SECTORS, 512, false, NULL), 0);
        } else {
            assert_int_equal(request(0, round / 2 % DISK_SECTORS, 512, true, NULL), 0);
            assert_true(buffer_is(BUFFER, (uint8_t)((round - 1) * 31), 512));
        }
    }
    assert_int_equal(f.d.used_idx[0], 5000);
}

static void test_interrupts_msix_and_event_idx(void **state)
{
    (void)state;
    /* used_event is far away: no interrupt until it is passed. */
    mem_write16(f.mem, f.d.avail[0] + 4 + 2 * DRIVER_QUEUE, 2);
    assert_int_equal(request(0, 0, 512, true, NULL), 0);
    f.dm.msi_count[1] = 0; /* the first one is always sent */
    assert_int_equal(request(0, 0, 512, true, NULL), 0);
    usleep(20000);
    assert_int_equal(f.dm.msi_count[1], 0);
    assert_int_equal(request(0, 0, 512, true, NULL), 0);
    usleep(20000);
    assert_int_equal(f.dm.msi_count[1], 1);
    /* avail_event asks for the next buffer. */
    assert_int_equal(mem_read16(f.mem, f.d.used[0] + 4 + 8 * DRIVER_QUEUE), 3);
}

static void test_interrupts_intx(void **state)
{
    (void)state;
    assert_int_equal(request(0, 0, 512, true, NULL), 0);
    usleep(20000);
    assert_int_equal(f.dm.gsi_level[17], 1);
    assert_int_equal(driver_read(&f.d, 0x1000, 1), 1);
    assert_int_equal(f.dm.gsi_level[17], 0);
    mem_write16(f.mem, f.d.avail[0], 1); /* no interrupt, please */
    assert_int_equal(request(0, 0, 512, true, NULL), 0);
    usleep(20000);
    assert_int_equal(f.dm.gsi_level[17], 0);
}

static void reset_and_restart(void)
{
    driver_init(&f.d, &f.dm, 1, ALL, true);
    mem_write16(f.mem, DRIVER_RINGS + 0x4002, 0);
    mem_write16(f.mem, DRIVER_RINGS + 0x8002, 0);
    driver_queue_setup(&f.d, 0, true);
    driver_ok(&f.d);
}

static void test_reset_in_flight(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 50; round++) {
        for (unsigned i = 0; i < 5; i++) {
            header(i == 4 ? 4 : 1, i * 8);
            driver_desc(&f.d, 0, 3 * i, HEADER, 16, D_NEXT, (uint16_t)(i == 4 ? 3 * i + 2 : 3 * i + 1));
            driver_desc(&f.d, 0, 3 * i + 1, BUFFER + 4096 * i, 4096, D_NEXT, (uint16_t)(3 * i + 2));
            driver_desc(&f.d, 0, 3 * i + 2, STATUS + i, 1, D_WRITE, 0);
            driver_offer(&f.d, 0, (uint16_t)(3 * i));
        }
        driver_kick(&f.d, 0);
        driver_write(&f.d, 0x14, 1, 0);
        assert_int_equal(driver_status(&f.d), 0);
        /* From here on the device must not touch memory: fill it, and look later. */
        assert_int_equal(mem_fill(f.mem, STATUS, 0x33, 8), 0);
        usleep(500);
        assert_true(buffer_is(STATUS, 0x33, 8));
        reset_and_restart();
        assert_int_equal(request(0, 5, 512, true, NULL), 0);
    }
}

static void assert_broken_then_usable(void)
{
    driver_kick(&f.d, 0);
    assert_true(driver_status(&f.d) & 0x40);
    reset_and_restart();
    assert_false(driver_status(&f.d) & 0x40);
    assert_int_equal(request(0, 5, 512, true, NULL), 0);
    assert_true(buffer_is(BUFFER, 36, 512));
}

static void offer_chain(uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    header(0, 0);
    driver_desc(&f.d, 0, 0, HEADER, 16, D_NEXT, 1);
    driver_desc(&f.d, 0, 1, addr, len, flags, next);
    driver_desc(&f.d, 0, 2, STATUS, 1, D_WRITE, 0);
    driver_offer(&f.d, 0, 0);
}

static void test_hostile_rings(void **state)
{
    const uint64_t table = DRIVER_DATA + 0x800;

    (void)state;
    offer_chain(BUFFER, 512, D_NEXT | D_WRITE, 1); /* loop */
    assert_broken_then_usable();
    offer_chain(BUFFER, 512, D_NEXT | D_WRITE, DRIVER_QUEUE); /* next out of range */
    assert_broken_then_usable();
    offer_chain(DRIVER_RAM, 512, D_NEXT | D_WRITE, 2);
    assert_broken_then_usable();
    offer_chain(DRIVER_RAM - 256, 512, D_NEXT | D_WRITE, 2);
    assert_broken_then_usable();
    offer_chain(UINT64_MAX - 100, 512, D_NEXT | D_WRITE, 2);
    assert_broken_then_usable();
    offer_chain(BUFFER, UINT32_MAX, D_NEXT | D_WRITE, 2);
    assert_broken_then_usable();
    offer_chain(BUFFER, 512, 0, 0); /* no status */
    assert_broken_then_usable();
    driver_offer(&f.d, 0, 0xffff); /* head out of range */
    assert_broken_then_usable();
    f.d.avail_idx[0] += 1000; /* index ran away */
    driver_offer(&f.d, 0, 0);
    assert_broken_then_usable();
    driver_desc(&f.d, 0, 0, table, 17, D_INDIRECT, 0); /* odd size */
    driver_offer(&f.d, 0, 0);
    assert_broken_then_usable();
    driver_desc(&f.d, 0, 0, table, 0, D_INDIRECT, 0);
    driver_offer(&f.d, 0, 0);
    assert_broken_then_usable();
    driver_desc(&f.d, 0, 0, DRIVER_RAM - 16, 32, D_INDIRECT, 0);
    driver_offer(&f.d, 0, 0);
    assert_broken_then_usable();
    driver_desc(&f.d, 0, 0, table, 16, D_INDIRECT, 0); /* nested */
    driver_desc_at(&f.d, table, 0, table, 16, D_INDIRECT, 0);
    driver_offer(&f.d, 0, 0);
    assert_broken_then_usable();
    driver_desc(&f.d, 0, 0, table, 16, D_INDIRECT, 0);
    driver_desc_at(&f.d, table, 0, BUFFER, 16, D_NEXT, 0); /* loop inside */
    driver_offer(&f.d, 0, 0);
    assert_broken_then_usable();
    driver_desc(&f.d, 0, 0, 0, 0x100000, D_INDIRECT, 0); /* a huge table of zero-length entries */
    assert_int_equal(mem_fill(f.mem, 0, 0, DRIVER_RINGS), 0);
    driver_offer(&f.d, 0, 0);
    assert_broken_then_usable();
}

static void test_ring_placement(void **state)
{
    static const uint64_t bad[] = {DRIVER_RAM, DRIVER_RAM - 16, UINT64_MAX & ~15ull, 8, 1};

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        for (unsigned reg = 0x20; reg <= 0x30; reg += 8) {
            if (reg == 0x28 && bad[i] == 8)
                continue; /* aligned enough for the available ring */
            if (reg == 0x30 && bad[i] == 8)
                continue;
            driver_init(&f.d, &f.dm, 1, ALL, true);
            driver_queue_setup(&f.d, 0, true);
            driver_write(&f.d, 0x1c, 2, 1);
            driver_init(&f.d, &f.dm, 1, ALL, true);
            driver_write(&f.d, 0x16, 2, 0);
            driver_write(&f.d, 0x20, 8, DRIVER_RINGS);
            driver_write(&f.d, 0x28, 8, DRIVER_RINGS + 0x4000);
            driver_write(&f.d, 0x30, 8, DRIVER_RINGS + 0x8000);
            driver_write(&f.d, reg, 8, bad[i]);
            driver_write(&f.d, 0x1c, 2, 1);
            driver_ok(&f.d);
            assert_true(driver_status(&f.d) & 0x40);
        }
    }
    reset_and_restart();
    assert_int_equal(request(0, 5, 512, true, NULL), 0);
}

static void test_negotiation(void **state)
{
    (void)state;
    driver_init(&f.d, &f.dm, 1, F_INDIRECT, true); /* without VERSION_1 */
    assert_int_equal(driver_status(&f.d), 3);
    driver_init(&f.d, &f.dm, 1, F_VERSION_1 | 1ull << 60, true); /* not offered */
    assert_int_equal(driver_status(&f.d), 3);
    driver_ok(&f.d);
    assert_int_equal(driver_status(&f.d), 3);
    driver_init(&f.d, &f.dm, 1, F_VERSION_1, true);
    assert_int_equal(driver_status(&f.d), 0xb);
    driver_write(&f.d, 0x18, 2, 100); /* not a power of two, too large: ignored */
    driver_write(&f.d, 0x18, 2, 512);
    assert_int_equal(driver_read(&f.d, 0x18, 2), 256);
    driver_write(&f.d, 0x1a, 2, 9); /* no such vector */
    assert_int_equal(driver_read(&f.d, 0x1a, 2), 0xffff);
    driver_write(&f.d, 0x16, 2, 7); /* no such queue */
    assert_int_equal(driver_read(&f.d, 0x18, 2), 0);
    driver_write(&f.d, 0x1c, 2, 1);
}

static void test_short_image(void **state)
{
    (void)state;
    assert_int_equal(ftruncate(f.fd, 512 * 10), 0);
    assert_int_equal(request(0, 9, 1024, true, NULL), 1);
    assert_int_equal(request(0, 9, 512, true, NULL), 0);
    assert_int_equal(request(1, 1000, 512, false, NULL), 0); /* grows back */
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_read_and_write),
        cmocka_unit_test_setup_teardown(test_read_and_write, setup_plain, teardown),
        TEST(test_refused_requests),
        TEST(test_discard_write_zeroes_id),
        cmocka_unit_test_setup_teardown(test_readonly, setup_readonly, teardown),
        TEST(test_indirect_odd_framing),
        TEST(test_integrity_over_wraps),
        TEST(test_interrupts_msix_and_event_idx),
        cmocka_unit_test_setup_teardown(test_interrupts_intx, setup_plain, teardown),
        TEST(test_reset_in_flight),
        TEST(test_hostile_rings),
        TEST(test_ring_placement),
        TEST(test_negotiation),
        TEST(test_short_image),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
