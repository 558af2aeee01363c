/* The ATA device as its task file shows it, without any transport. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "../fake_disk.h"
#include "device/ata/ata.h"

#define SECTORS 0x20000000ull /* more than 28 bits say; never touched */

static struct {
    struct ata_device dev;
    struct ata_task task;
    uint8_t data[DRIVE_DATA_MIN];
    struct fake_disk *disk;
} f;

static int setup_kind(enum ata_kind kind)
{
    memset(&f, 0, sizeof(f));
    f.disk = fake_disk_create(65536);
    if (kind == ATA_DISK)
        f.disk->block.size = SECTORS * ATA_SECTOR;
    return ata_device_init(&f.dev, kind, &f.disk->block, 7);
}

static int setup(void **state)
{
    (void)state;
    return setup_kind(ATA_DISK);
}

static int setup_cd(void **state)
{
    (void)state;
    return setup_kind(ATA_CD);
}

static int teardown(void **state)
{
    (void)state;
    ata_device_release(&f.dev);
    return 0;
}

static void start(struct ata_taskfile tf, const uint8_t *cdb)
{
    f.task = (struct ata_task){.tf = tf, .tag = 9};
    f.task.io.data = f.data;
    f.task.io.capacity = sizeof(f.data);
    ata_command(&f.dev, &f.task, cdb);
}

static void start_lba(struct ata_taskfile tf)
{
    tf.device |= ATA_DEVICE_LBA;
    start(tf, NULL);
}
#define START(...) start_lba((struct ata_taskfile){__VA_ARGS__})

static void assert_good(void)
{
    assert_int_equal(f.task.io.step, DRIVE_DONE);
    assert_int_equal(f.task.tf.status, 0x50);
    assert_int_equal(f.task.tf.error, 0);
}

static void assert_failed(uint8_t error)
{
    assert_int_equal(f.task.io.step, DRIVE_DONE);
    assert_int_equal(f.task.tf.status & 0x01, 0x01);
    assert_int_equal(f.task.tf.error, error);
}

static void assert_block(enum block_op op, uint64_t sector, uint64_t sectors)
{
    assert_int_equal(f.task.io.step, DRIVE_BLOCK);
    assert_int_equal(f.task.io.op, op);
    assert_int_equal(f.task.io.offset, sector * ATA_SECTOR);
    assert_int_equal(f.task.io.length, sectors * ATA_SECTOR);
}

static unsigned word(unsigned index)
{
    return f.data[2 * index] | (unsigned)f.data[2 * index + 1] << 8;
}

static void assert_checksum(void)
{
    uint8_t sum = 0;

    for (unsigned i = 0; i < 512; i++)
        sum = (uint8_t)(sum + f.data[i]);
    assert_int_equal(sum, 0);
}

static void test_identify(void **state)
{
    (void)state;
    START(.command = 0xec);
    assert_int_equal(f.task.io.step, DRIVE_DATA_IN);
    assert_int_equal(f.task.io.len, 512);
    assert_int_equal(f.task.protocol, ATA_PIO_IN);
    assert_memory_equal(f.data + 20, "OLGD0E0070  ", 12); /* bytes swapped */
    assert_int_equal(word(60) | word(61) << 16, 0x0fffffff);
    assert_int_equal(word(100), 0);
    assert_int_equal(word(101), 0x2000);
    assert_int_equal(word(75), 31);
    assert_int_equal(word(76) & 0x100, 0x100);
    assert_int_equal(word(169), 1);
    assert_int_equal(word(85) & 0x20, 0x20);
    assert_checksum();
    f.dev.block->can_discard = false;
    START(.command = 0xef, .feature = 0x03, .count = 0x22);
    assert_good();
    START(.command = 0xec);
    assert_int_equal(word(169), 0);
    assert_int_equal(word(63), 0x0407);
    assert_int_equal(word(88) >> 8, 0);
    START(.command = 0xa1); /* it is no packet device */
    assert_failed(0x04);
}

static void test_addresses(void **state)
{
    (void)state;
    START(.command = 0xc8, .device = 0x4f, .lba = 0xab1234ull << 24 | 0x0e1234, .count = 0x100);
    assert_block(BLOCK_READ, 0xf0e1234, 256); /* 28 bits: device register, count 0 of 8 bits */
    START(.command = 0x25, .lba = SECTORS - 65536, .count = 0);
    assert_block(BLOCK_READ, SECTORS - 65536, 65536);
    START(.command = 0x25, .lba = SECTORS - 65535, .count = 0);
    assert_failed(0x10);
    START(.command = 0x35, .lba = 0xffffffffffff, .count = 1);
    assert_failed(0x10);
    START(.command = 0x35, .lba = SECTORS, .count = 1);
    assert_failed(0x10);
    start((struct ata_taskfile){.command = 0xc8, .count = 1}, NULL); /* cylinders and heads */
    assert_failed(0x04);
    START(.command = 0x42, .lba = 5, .count = 8); /* verify moves nothing */
    assert_good();
}

static void test_durable_writes(void **state)
{
    (void)state;
    START(.command = 0xca, .lba = 5, .count = 2);
    assert_block(BLOCK_WRITE, 5, 2);
    ata_block_done(&f.dev, &f.task, 0);
    assert_good();
    START(.command = 0x3d, .lba = 5, .count = 2); /* WRITE DMA FUA EXT */
    ata_block_done(&f.dev, &f.task, 0);
    assert_block(BLOCK_FLUSH, 0, 0);
    ata_block_done(&f.dev, &f.task, 0);
    assert_good();
    START(.command = 0x61, .device = 0xc0, .lba = 5, .feature = 2, .count = 9 << 3);
    assert_block(BLOCK_WRITE, 5, 2);
    ata_block_done(&f.dev, &f.task, 0);
    assert_block(BLOCK_FLUSH, 0, 0);
    START(.command = 0xef, .feature = 0x82); /* cache off: what it holds is written */
    assert_block(BLOCK_FLUSH, 0, 0);
    ata_block_done(&f.dev, &f.task, 0);
    START(.command = 0xca, .lba = 5, .count = 2);
    ata_block_done(&f.dev, &f.task, 0);
    assert_block(BLOCK_FLUSH, 0, 0);
    ata_block_done(&f.dev, &f.task, -5);
    assert_failed(0x04);
    assert_int_equal(f.task.tf.status & 0x20, 0x20);
}

static void test_read_error_and_log(void **state)
{
    (void)state;
    assert_true(ata_is_queued(&f.dev, 0x60));
    assert_false(ata_is_queued(&f.dev, 0x25));
    START(.command = 0x60, .lba = 0x123456789a, .feature = 1, .count = 9 << 3);
    assert_failed(0x10);
    START(.command = 0x60, .lba = 0x1234567, .feature = 1, .count = 9 << 3);
    ata_block_done(&f.dev, &f.task, -5);
    assert_failed(0x40);
    START(.command = 0x2f, .lba = 0x10, .count = 1);
    assert_int_equal(f.task.io.step, DRIVE_DATA_IN);
    assert_int_equal(f.data[0], 9); /* tag */
    assert_int_equal(f.data[3], 0x40);
    assert_int_equal(f.data[4] | f.data[5] << 8 | f.data[6] << 16 | f.data[8] << 24, 0x1234567);
    assert_checksum();
    START(.command = 0x2f, .lba = 0x10, .count = 1);
    assert_int_equal(f.data[0], 0x80); /* told once */
    START(.command = 0x2f, .lba = 0x00, .count = 1);
    assert_int_equal(f.data[0x20], 1);
    START(.command = 0x2f, .lba = 0x10, .count = 2);
    assert_failed(0x04);
    START(.command = 0x2f, .lba = 0x11, .count = 1);
    assert_failed(0x04);
}

static void range(unsigned index, uint64_t lba, uint64_t count)
{
    uint64_t entry = lba | count << 48;

    memcpy(f.data + 8 * index, &entry, 8);
}

static void test_trim(void **state)
{
    (void)state;
    START(.command = 0x06, .feature = 1, .count = 2);
    assert_int_equal(f.task.io.step, DRIVE_DATA_OUT);
    assert_int_equal(f.task.io.len, 1024);
    memset(f.data, 0, sizeof(f.data));
    range(0, 100, 8);
    range(70, 4000, 65535);
    ata_data_out(&f.dev, &f.task);
    assert_block(BLOCK_DISCARD, 100, 8);
    ata_block_done(&f.dev, &f.task, 0);
    assert_block(BLOCK_DISCARD, 4000, 65535);
    ata_block_done(&f.dev, &f.task, 0);
    assert_good();
    START(.command = 0x06, .feature = 1, .count = 1);
    range(0, 100, 8);
    range(1, SECTORS - 1, 2); /* one bad range: none is acted on */
    ata_data_out(&f.dev, &f.task);
    assert_failed(0x10);
    START(.command = 0x06, .feature = 1, .count = 9);
    assert_failed(0x04);
    START(.command = 0x06, .feature = 1, .count = 0);
    assert_failed(0x04);
    START(.command = 0x06, .feature = 0, .count = 1);
    assert_failed(0x04);
    f.dev.block->can_discard = false;
    START(.command = 0x06, .feature = 1, .count = 1);
    assert_failed(0x04);
}

static void test_features_and_power(void **state)
{
    (void)state;
    START(.command = 0xef, .feature = 0x03, .count = 0x7f);
    assert_failed(0x04);
    START(.command = 0xef, .feature = 0x99);
    assert_failed(0x04);
    START(.command = 0xe5);
    assert_int_equal(f.task.tf.count, 0xff);
    START(.command = 0xe0);
    assert_block(BLOCK_FLUSH, 0, 0);
    ata_block_done(&f.dev, &f.task, 0);
    START(.command = 0xe5);
    assert_int_equal(f.task.tf.count, 0x00);
    START(.command = 0x20, .count = 1); /* wakes it */
    START(.command = 0xe5);
    assert_int_equal(f.task.tf.count, 0xff);
    START(.command = 0xc6, .count = 3);
    assert_failed(0x04);
    START(.command = 0xc6, .count = 0);
    assert_good();
    START(.command = 0xc4, .count = 1); /* READ MULTIPLE without a multiple */
    assert_failed(0x04);
    START(.command = 0xc6, .count = 8);
    START(.command = 0xc4, .count = 1);
    assert_block(BLOCK_READ, 0, 1);
    START(.command = 0xf5); /* no security */
    assert_failed(0x04);
    START(.command = 0xff);
    assert_failed(0x04);
}

static void test_smart(void **state)
{
    (void)state;
    START(.command = 0xb0, .feature = 0xda, .lba = 0xc24f00);
    assert_good();
    assert_int_equal(f.task.tf.lba, 0xc24f00);
    START(.command = 0xb0, .feature = 0xd0, .lba = 0xc24f00, .count = 1);
    assert_int_equal(f.task.io.step, DRIVE_DATA_IN);
    assert_checksum();
    START(.command = 0xb0, .feature = 0xd5, .lba = 0xc24f01, .count = 1);
    assert_int_equal(f.task.io.step, DRIVE_DATA_IN);
    START(.command = 0xb0, .feature = 0xd5, .lba = 0xc24f99, .count = 1);
    assert_failed(0x04);
    START(.command = 0xb0, .feature = 0xda, .lba = 0);
    assert_failed(0x04);
    START(.command = 0xb0, .feature = 0xd9, .lba = 0xc24f00);
    assert_good();
    START(.command = 0xb0, .feature = 0xd0, .lba = 0xc24f00);
    assert_failed(0x04);
    START(.command = 0xb0, .feature = 0xd8, .lba = 0xc24f00);
    assert_good();
}

static void test_packet_device(void **state)
{
    const uint8_t ready[12] = {0}, inquiry[12] = {0x12, 0, 0, 0, 36};
    const uint8_t sense[12] = {0x03, 0, 0, 0, 18};
    struct ata_taskfile tf = {0};

    (void)state;
    ata_signature(&f.dev, &tf);
    assert_int_equal(tf.lba, 0xeb1401);
    START(.command = 0xec); /* refused, with the signature */
    assert_failed(0x04);
    assert_int_equal(f.task.tf.lba, 0xeb1401);
    START(.command = 0xa1);
    assert_int_equal(f.task.io.step, DRIVE_DATA_IN);
    assert_int_equal(word(0), 0x8580);
    assert_checksum();
    start((struct ata_taskfile){.command = 0xa0}, ready);
    assert_failed(0x64); /* unit attention in the high bits, aborted */
    assert_int_equal(f.task.tf.count & 7, 3);
    start((struct ata_taskfile){.command = 0xa0}, ready);
    assert_good();
    start((struct ata_taskfile){.command = 0xa0}, inquiry);
    assert_int_equal(f.task.io.step, DRIVE_DATA_IN);
    assert_int_equal(f.task.io.len, 36);
    START(.command = 0xec);
    start((struct ata_taskfile){.command = 0xa0}, sense); /* what the refusal left */
    assert_int_equal(f.data[2], 5);
    assert_int_equal(f.data[12], 0x20);
    START(.command = 0xa0); /* without a command block */
    assert_failed(0x04);
    START(.command = 0x25, .count = 1);
    assert_failed(0x04);
    assert_false(ata_is_queued(&f.dev, 0x60));
}

static void test_readonly_disk_is_refused(void **state)
{
    struct fake_disk *disk = fake_disk_create(65536);
    struct ata_device dev;
    bool closed = false;

    (void)state;
    disk->closed = &closed;
    disk->block.readonly = true;
    assert_int_equal(ata_device_init(&dev, ATA_DISK, &disk->block, 0), -30);
    assert_true(closed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_identify, setup, teardown),
        cmocka_unit_test_setup_teardown(test_addresses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_durable_writes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_read_error_and_log, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trim, setup, teardown),
        cmocka_unit_test_setup_teardown(test_features_and_power, setup, teardown),
        cmocka_unit_test_setup_teardown(test_smart, setup, teardown),
        cmocka_unit_test_setup_teardown(test_packet_device, setup_cd, teardown),
        cmocka_unit_test(test_readonly_disk_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
