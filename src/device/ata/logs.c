/* SMART (ACS-3, 7.48) as far as a healthy disk needs it, and the general purpose logs (9). */
#include <string.h>

#include "device/ata/ata_internal.h"

#define SMART_READ_DATA       0xd0u
#define SMART_READ_THRESHOLDS 0xd1u /* obsolete, and still asked for */
#define SMART_AUTOSAVE        0xd2u
#define SMART_OFF_LINE        0xd4u
#define SMART_READ_LOG        0xd5u
#define SMART_ENABLE          0xd8u
#define SMART_DISABLE         0xd9u
#define SMART_STATUS          0xdau
#define SMART_LBA             0xc24f00u /* bits 23:8, without which it is not SMART */

#define LOG_DIRECTORY    0x00u
#define LOG_SMART_ERROR  0x01u
#define LOG_SELF_TEST    0x06u
#define LOG_QUEUED_ERROR 0x10u

/* The last byte of a SMART structure or of log 10h makes the sum of all zero. */
static void checksum(uint8_t *page)
{
    uint8_t sum = 0;

    for (unsigned i = 0; i < ATA_SECTOR - 1; i++)
        sum = (uint8_t)(sum + page[i]);
    page[ATA_SECTOR - 1] = (uint8_t)-sum;
}

static void smart_data(uint8_t *page)
{
    page[0] = 0x10;   /* revision of the attribute table, which is empty */
    page[362] = 0x00; /* off-line data collection never started */
    page[363] = 0x00; /* last self-test: none */
    page[367] = 0x00;
    page[368] = 0x03; /* saves its data by itself */
    checksum(page);
}

static void smart_answer(struct ata_task *task)
{
    task->protocol = ATA_PIO_IN;
    ata_good(task);
    drive_data_in(&task->io, ATA_SECTOR);
}

/* The directory, and the two that say "nothing happened". */
static void smart_read_log(struct ata_task *task)
{
    uint8_t *page = task->io.data;

    if ((task->tf.count & 0xff) != 1) {
        ata_fail(task, ATA_ERROR_ABRT);
        return;
    }
    switch (task->tf.lba & 0xff) {
    case LOG_DIRECTORY:
        page[0] = 1; /* version */
        page[2 * LOG_SMART_ERROR] = 1;
        page[2 * LOG_SELF_TEST] = 1;
        break;
    case LOG_SMART_ERROR:
    case LOG_SELF_TEST:
        page[0] = 1;
        checksum(page);
        break;
    default: ata_fail(task, ATA_ERROR_ABRT); return;
    }
    smart_answer(task);
}

void ata_smart(struct ata_device *dev, struct ata_task *task)
{
    uint8_t what = (uint8_t)task->tf.feature;

    if ((task->tf.lba & 0xffff00) != SMART_LBA || (!dev->smart && what != SMART_ENABLE)) {
        ata_fail(task, ATA_ERROR_ABRT);
        return;
    }
    ata_good(task);
    memset(task->io.data, 0, ATA_SECTOR);
    switch (what) {
    case SMART_READ_DATA:
        smart_data(task->io.data);
        smart_answer(task);
        break;
    case SMART_READ_THRESHOLDS:
        task->io.data[0] = 0x10;
        checksum(task->io.data);
        smart_answer(task);
        break;
    case SMART_READ_LOG: smart_read_log(task); break;
    case SMART_ENABLE: dev->smart = true; break;
    case SMART_DISABLE: dev->smart = false; break;
    case SMART_AUTOSAVE:
    case SMART_OFF_LINE:
    case SMART_STATUS: break; /* the address as it came says: no threshold exceeded */
    default: ata_fail(task, ATA_ERROR_ABRT); break;
    }
}

static bool log_page(struct ata_device *dev, uint8_t log, uint8_t *page)
{
    switch (log) {
    case LOG_DIRECTORY:
        page[0] = 1;
        page[2 * LOG_QUEUED_ERROR] = 1;
        return true;
    case LOG_QUEUED_ERROR:
        memcpy(page, dev->failed, sizeof(dev->failed));
        checksum(page);
        memset(dev->failed, 0, sizeof(dev->failed)); /* reading it ends the error (9.15.1) */
        dev->failed[0] = 0x80;
        return true;
    default: return false;
    }
}

/* Log address in bits 7:0, first page in 39:32 and 15:8 (ACS-3, 7.24); all logs here have one page.
 */
void ata_read_log(struct ata_device *dev, struct ata_task *task)
{
    uint64_t lba = task->tf.lba;
    bool first = (lba >> 8 & 0xff) == 0 && (lba >> 32 & 0xff) == 0;

    memset(task->io.data, 0, ATA_SECTOR);
    if (task->tf.count != 1 || !first || !log_page(dev, (uint8_t)lba, task->io.data)) {
        ata_fail(task, ATA_ERROR_ABRT);
        return;
    }
    smart_answer(task);
}

void ata_log_failed(struct ata_device *dev, const struct ata_task *task)
{
    const struct ata_taskfile *tf = &task->tf;

    memset(dev->failed, 0, sizeof(dev->failed));
    dev->failed[0] = task->tag;
    dev->failed[2] = tf->status;
    dev->failed[3] = tf->error;
    for (unsigned i = 0; i < 3; i++) {
        dev->failed[4 + i] = (uint8_t)(tf->lba >> (8 * i));
        dev->failed[8 + i] = (uint8_t)(tf->lba >> (24 + 8 * i));
    }
    dev->failed[7] = tf->device;
}
