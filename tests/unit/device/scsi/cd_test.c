/* The CD-ROM drive as its commands show it, without any transport. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "../fake_disk.h"
#include "device/scsi/cd.h"

#define SECTORS 64u

static struct {
    struct scsi_cd cd;
    struct scsi_task task;
    struct drive_io io;
    uint8_t data[DRIVE_DATA_MIN];
    struct fake_disk *disk;
} f;

static int setup(void **state)
{
    (void)state;
    memset(&f, 0, sizeof(f));
    f.disk = fake_disk_create((uint64_t)SECTORS * SCSI_CD_SECTOR);
    scsi_cd_init(&f.cd, &f.disk->block, "SERIAL1");
    f.io.data = f.data;
    f.io.capacity = sizeof(f.data);
    f.task.io = &f.io;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scsi_cd_release(&f.cd);
    return 0;
}

/* Up to 12 bytes of command; what it leaves is in f. */
static void command(size_t len, const uint8_t *cdb)
{
    memset(f.task.cdb, 0, sizeof(f.task.cdb));
    memcpy(f.task.cdb, cdb, len);
    memset(f.data, 0xee, sizeof(f.data));
    scsi_cd_command(&f.cd, &f.task);
}
#define COMMAND(...) command(sizeof((const uint8_t[]){__VA_ARGS__}), (const uint8_t[]){__VA_ARGS__})

static void assert_sense(uint8_t key, uint8_t asc, uint8_t ascq)
{
    assert_int_equal(f.io.step, DRIVE_DONE);
    assert_int_equal(f.task.status, SCSI_CHECK_CONDITION);
    assert_int_equal(f.task.sense.key, key);
    assert_int_equal(f.task.sense.asc, asc);
    assert_int_equal(f.task.sense.ascq, ascq);
}

static void assert_good(void)
{
    assert_int_equal(f.task.status, SCSI_GOOD);
    assert_int_equal(f.io.step, DRIVE_DONE);
}

static void assert_answer(uint32_t len)
{
    assert_int_equal(f.task.status, SCSI_GOOD);
    assert_int_equal(f.io.step, DRIVE_DATA_IN);
    assert_int_equal(f.io.len, len);
}

static void clear_attention(void)
{
    COMMAND(0x00);
    COMMAND(0x03, 0, 0, 0, 18);
}

static void test_reset_is_told_once(void **state)
{
    (void)state;
    COMMAND(0x12, 0, 0, 0, 36); /* INQUIRY does not consume it */
    assert_answer(36);
    COMMAND(0x00);
    assert_sense(6, 0x29, 0);
    COMMAND(0x03, 0, 0, 0, 18);
    assert_answer(18);
    assert_int_equal(f.data[0], 0x70);
    assert_int_equal(f.data[2], 6);
    assert_int_equal(f.data[12], 0x29);
    COMMAND(0x00);
    assert_good();
    scsi_cd_reset(&f.cd, false);
    COMMAND(0x03, 0, 0, 0, 18); /* REQUEST SENSE tells a pending one, and that ends it */
    assert_int_equal(f.data[12], 0x29);
    COMMAND(0x00);
    assert_good();
}

static void test_inquiry(void **state)
{
    (void)state;
    COMMAND(0x12, 0, 0, 0, 36);
    assert_int_equal(f.data[0], 5);
    assert_int_equal(f.data[1], 0x80);
    assert_int_equal(f.data[4], 31);
    assert_memory_equal(f.data + 8, "LODGE   CD-ROM          1.0 ", 28);
    COMMAND(0x12, 0, 0, 0, 5); /* the allocation length cuts */
    assert_answer(5);
    COMMAND(0x12, 1, 0x80, 0, 255);
    assert_answer(11);
    assert_memory_equal(f.data + 4, "SERIAL1", 7);
    COMMAND(0x12, 1, 0x00, 0, 255);
    assert_answer(7);
    COMMAND(0x12, 1, 0x83, 0, 255);
    assert_int_equal(f.io.len, 4u + f.data[3]);
    COMMAND(0x12, 1, 0xb0, 0, 255);
    assert_sense(5, 0x24, 0);
    COMMAND(0x12, 0, 0x80, 0, 255); /* a page without EVPD */
    assert_sense(5, 0x24, 0);
}

static void test_capacity_and_read(void **state)
{
    (void)state;
    clear_attention();
    COMMAND(0x25);
    assert_answer(8);
    assert_int_equal(scsi_get(f.data, 4), SECTORS - 1);
    assert_int_equal(scsi_get(f.data + 4, 4), 2048);
    COMMAND(0x28, 0, 0, 0, 0, 10, 0, 0, 3);
    assert_int_equal(f.io.step, DRIVE_BLOCK);
    assert_int_equal(f.io.op, BLOCK_READ);
    assert_ptr_equal(f.io.block, &f.disk->block);
    assert_int_equal(f.io.offset, 10 * 2048);
    assert_int_equal(f.io.length, 3 * 2048);
    scsi_cd_block_done(&f.cd, &f.task, 0);
    assert_good();
    COMMAND(0xa8, 0, 0, 0, 0, SECTORS - 2, 0, 0, 0, 2);
    assert_int_equal(f.io.length, 2 * 2048);
    scsi_cd_block_done(&f.cd, &f.task, -5);
    assert_sense(3, 0x11, 0);
    COMMAND(0x28, 0, 0, 0, 0, 10, 0, 0, 0); /* no sectors: nothing to do */
    assert_good();
    COMMAND(0x28, 0, 0, 0, 0, SECTORS - 1, 0, 0, 2);
    assert_sense(5, 0x21, 0);
    COMMAND(0xa8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff);
    assert_sense(5, 0x21, 0);
    COMMAND(0x2a, 0, 0, 0, 0, 0, 0, 0, 1); /* WRITE */
    assert_sense(5, 0x20, 0);
}

static void test_toc(void **state)
{
    (void)state;
    clear_attention();
    COMMAND(0x43, 0, 0, 0, 0, 0, 0, 0, 255);
    assert_answer(20);
    assert_int_equal(scsi_get(f.data, 2), 18);
    assert_int_equal(f.data[2], 1);
    assert_int_equal(f.data[3], 1);
    assert_int_equal(f.data[5], 0x14);
    assert_int_equal(scsi_get(f.data + 8, 4), 0);
    assert_int_equal(f.data[14], 0xaa);
    assert_int_equal(scsi_get(f.data + 16, 4), SECTORS);
    COMMAND(0x43, 2, 0, 0, 0, 0, 0xaa, 0, 255); /* minutes, seconds, frames; the lead-out alone */
    assert_answer(12);
    assert_int_equal(scsi_get(f.data + 8, 4), 2 << 8 | SECTORS);
    COMMAND(0x43, 0, 1, 0, 0, 0, 0, 0, 255); /* sessions */
    assert_answer(12);
    COMMAND(0x43, 0, 0, 0, 0, 0, 2, 0, 255); /* there is no track 2 */
    assert_sense(5, 0x24, 0);
    COMMAND(0x43, 0, 4, 0, 0, 0, 0, 0, 255); /* nor ATIP */
    assert_sense(5, 0x24, 0);
}

static void test_configuration(void **state)
{
    unsigned seen = 0;

    (void)state;
    COMMAND(0x46, 0, 0, 0, 0, 0, 0, 1, 0);
    assert_int_equal(f.io.step, DRIVE_DATA_IN);
    assert_int_equal(scsi_get(f.data, 4), f.io.len - 4);
    assert_int_equal(scsi_get(f.data + 6, 2), 0x08);
    for (uint32_t at = 8; at < f.io.len; at += 4u + f.data[at + 3]) {
        assert_true(at + 4u + f.data[at + 3] <= f.io.len);
        seen++;
    }
    assert_int_equal(seen, 6);
    COMMAND(0x46, 2, 0, 0x03, 0, 0, 0, 1, 0);
    assert_answer(16);
    assert_int_equal(scsi_get(f.data + 8, 2), 3);
    COMMAND(0x46, 1, 0, 0, 0, 0, 0, 1, 0); /* without what is for DVDs */
    assert_int_equal(f.io.len, 8 + 12 + 12 + 8 + 12 + 8);
    COMMAND(0x46, 3, 0, 0, 0, 0, 0, 1, 0);
    assert_sense(5, 0x24, 0);
    f.disk->block.size = 700000ull * SCSI_CD_SECTOR; /* too much for a CD */
    COMMAND(0x46, 0, 0, 0, 0, 0, 0, 1, 0);
    assert_int_equal(scsi_get(f.data + 6, 2), 0x10);
}

static void test_mode_sense(void **state)
{
    (void)state;
    clear_attention();
    COMMAND(0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255);
    assert_answer(8 + 2 + 0x14);
    assert_int_equal(scsi_get(f.data, 2), f.io.len - 2);
    assert_int_equal(f.data[8], 0x2a);
    assert_int_equal(f.data[14] & 0x02, 0);
    COMMAND(0x1e, 0, 0, 0, 1);
    COMMAND(0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 255);
    assert_int_equal(f.data[14] & 0x02, 0x02);  /* locked */
    COMMAND(0x5a, 0, 0x6a, 0, 0, 0, 0, 0, 255); /* changeable: nothing */
    assert_int_equal(f.data[14], 0);
    COMMAND(0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 255);
    assert_answer(8 + 12 + 12 + 10 + 22);
    COMMAND(0x5a, 0, 0xea, 0, 0, 0, 0, 0, 255);
    assert_sense(5, 0x39, 0);
    COMMAND(0x5a, 0, 0x05, 0, 0, 0, 0, 0, 255);
    assert_sense(5, 0x24, 0);
}

static uint8_t media_event(uint8_t *status)
{
    COMMAND(0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8);
    assert_answer(8);
    *status = f.data[5];
    return f.data[4];
}

static void test_tray(void **state)
{
    uint8_t status;

    (void)state;
    clear_attention();
    assert_int_equal(media_event(&status), 2); /* there since power-on */
    assert_int_equal(media_event(&status), 0); /* told once */
    assert_int_equal(status, 2);
    COMMAND(0x1b, 0, 0, 0, 2);
    assert_good();
    assert_int_equal(media_event(&status), 3);
    assert_int_equal(status, 1);
    COMMAND(0x00);
    assert_sense(2, 0x3a, 2);
    COMMAND(0x28, 0, 0, 0, 0, 0, 0, 0, 1);
    assert_sense(2, 0x3a, 2);
    COMMAND(0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8);
    assert_answer(8);
    assert_int_equal(f.data[1], 0x10);
    COMMAND(0x46, 0, 0, 0, 0, 0, 0, 1, 0);
    assert_int_equal(scsi_get(f.data + 6, 2), 0); /* no profile is current */
    COMMAND(0x1b, 0, 0, 0, 3);
    assert_good();
    COMMAND(0x00);
    assert_sense(6, 0x28, 0);
    COMMAND(0x00);
    assert_good();
    assert_int_equal(media_event(&status), 2);
    assert_int_equal(status, 2);
}

static void test_locked_tray(void **state)
{
    uint8_t status;

    (void)state;
    clear_attention();
    (void)media_event(&status);
    COMMAND(0x1e, 0, 0, 0, 1);
    assert_good();
    COMMAND(0x1b, 0, 0, 0, 2);
    assert_sense(5, 0x53, 2);
    assert_int_equal(scsi_cd_eject(&f.cd), -16);
    assert_int_equal(media_event(&status), 1); /* the operator's wish */
    assert_int_equal(status, 2);
    COMMAND(0x1e, 0, 0, 0, 0);
    assert_int_equal(scsi_cd_eject(&f.cd), 0);
    assert_int_equal(media_event(&status), 3);
    COMMAND(0x00);
    assert_sense(2, 0x3a, 2);
    COMMAND(0x1e, 0, 0, 0, 1);
    scsi_cd_reset(&f.cd, false);
    assert_false(f.cd.locked);
    assert_true(f.cd.tray_open); /* only power-on pulls it in */
}

static void test_change_of_medium(void **state)
{
    struct fake_disk *other = fake_disk_create(SCSI_CD_SECTOR * 8);
    bool closed = false;
    uint8_t status;

    (void)state;
    clear_attention();
    (void)media_event(&status);
    f.disk->closed = &closed;
    scsi_cd_insert(&f.cd, &other->block);
    assert_true(closed);
    COMMAND(0x25);
    assert_sense(6, 0x28, 0);
    COMMAND(0x25);
    assert_int_equal(scsi_get(f.data, 4), 7);
    assert_int_equal(media_event(&status), 2);
    scsi_cd_insert(&f.cd, NULL);
    COMMAND(0x00);
    assert_sense(2, 0x3a, 1);
    assert_int_equal(media_event(&status), 3);
    assert_int_equal(status, 0);
    COMMAND(0x51, 0, 0, 0, 0, 0, 0, 0, 34);
    assert_sense(2, 0x3a, 1);
}

static void test_disc_and_track_information(void **state)
{
    (void)state;
    clear_attention();
    COMMAND(0x51, 0, 0, 0, 0, 0, 0, 0, 255);
    assert_answer(34);
    assert_int_equal(f.data[2], 0x0e);
    COMMAND(0x51, 1, 0, 0, 0, 0, 0, 0, 255);
    assert_sense(5, 0x24, 0);
    COMMAND(0x52, 1, 0, 0, 0, 1, 0, 0, 255);
    assert_answer(36);
    assert_int_equal(scsi_get(f.data + 24, 4), SECTORS);
    COMMAND(0x52, 0, 0, 0, 0, SECTORS, 0, 0, 255);
    assert_sense(5, 0x24, 0);
    COMMAND(0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8); /* asynchronous events */
    assert_sense(5, 0x24, 0);
    COMMAND(0x4a, 1, 0, 0, 0x02, 0, 0, 0, 8); /* classes that are not there */
    assert_answer(4);
    assert_int_equal(f.data[2], 0x80);
    COMMAND(0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16);
    assert_answer(16);
    COMMAND(0x12, 0, 0, 0, 0); /* no room: no data */
    assert_good();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_reset_is_told_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_inquiry, setup, teardown),
        cmocka_unit_test_setup_teardown(test_capacity_and_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_toc, setup, teardown),
        cmocka_unit_test_setup_teardown(test_configuration, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mode_sense, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tray, setup, teardown),
        cmocka_unit_test_setup_teardown(test_locked_tray, setup, teardown),
        cmocka_unit_test_setup_teardown(test_change_of_medium, setup, teardown),
        cmocka_unit_test_setup_teardown(test_disc_and_track_information, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
