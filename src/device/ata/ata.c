#include "device/ata/ata_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LBA28_MASK 0x0fffffffull

const struct state_field ata_device_state_fields[] = {
    STATE_UINT(struct ata_device, multiple),
    STATE_UINT(struct ata_device, transfer_mode),
    STATE_UINT(struct ata_device, write_cache),
    STATE_UINT(struct ata_device, look_ahead),
    STATE_UINT(struct ata_device, smart),
    STATE_UINT(struct ata_device, standby),
    STATE_BYTES(struct ata_device, failed),
    STATE_STRUCT(struct ata_device, cd, scsi_cd_state_fields),
    STATE_FIELDS_END,
};

void ata_good(struct ata_task *task)
{
    task->tf.status = ATA_READY;
    task->tf.error = 0;
    task->io.step = DRIVE_DONE;
}

void ata_fail(struct ata_task *task, uint8_t error)
{
    task->tf.status = ATA_READY | ATA_STATUS_ERR;
    task->tf.error = error;
    task->io.step = DRIVE_DONE;
}

/* What kind of transfer a read or write command is. */
#define IO_WRITE    0x01u
#define IO_EXT      0x02u /* 48-bit address and 16-bit count */
#define IO_PIO      0x04u
#define IO_QUEUED   0x08u
#define IO_FUA      0x10u
#define IO_VERIFY   0x20u /* checks the range, moves nothing */
#define IO_MULTIPLE 0x40u /* only after SET MULTIPLE MODE */

struct ata_entry {
    void (*run)(struct ata_device *dev, struct ata_task *task, unsigned flags);
    uint8_t kinds; /* KIND() of those that know it */
    uint8_t flags;
};

/* First sector and count of a command; a count of zero is the most the field can say. */
static uint64_t io_lba(const struct ata_taskfile *tf, unsigned flags)
{
    if (flags & (IO_EXT | IO_QUEUED))
        return tf->lba;
    return (tf->lba & 0xffffff) | (uint64_t)(tf->device & 0x0f) << 24;
}

static uint32_t io_count(const struct ata_taskfile *tf, unsigned flags)
{
    uint16_t count = flags & IO_QUEUED ? tf->feature : tf->count;

    if (flags & (IO_EXT | IO_QUEUED))
        return count ? count : 65536;
    return count & 0xff ? count & 0xffu : 256;
}

static enum ata_protocol io_protocol(unsigned flags)
{
    if (flags & IO_QUEUED)
        return ATA_QUEUED;
    if (flags & IO_VERIFY)
        return ATA_NON_DATA;
    if (flags & IO_PIO)
        return flags & IO_WRITE ? ATA_PIO_OUT : ATA_PIO_IN;
    return ATA_DMA;
}

static void io_fail(struct ata_device *dev, struct ata_task *task, uint8_t error)
{
    ata_fail(task, error);
    if (task->protocol == ATA_QUEUED)
        ata_log_failed(dev, task);
}

static void run_io(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    uint64_t lba = io_lba(&task->tf, flags);
    uint32_t count = io_count(&task->tf, flags);
    bool fua = flags & IO_FUA || (flags & IO_QUEUED && task->tf.device & ATA_DEVICE_FUA);

    task->protocol = io_protocol(flags);
    if (!(task->tf.device & ATA_DEVICE_LBA) || ((flags & IO_MULTIPLE) && !dev->multiple)) {
        io_fail(dev, task, ATA_ERROR_ABRT); /* cylinders and heads are not taken */
        return;
    }
    if (lba > dev->sectors || count > dev->sectors - lba) {
        io_fail(dev, task, ATA_ERROR_IDNF);
        return;
    }
    dev->standby = false;
    ata_good(task);
    if (flags & IO_VERIFY)
        return;
    task->flush_after = flags & IO_WRITE && (fua || !dev->write_cache);
    drive_block(&task->io, dev->block, flags & IO_WRITE ? BLOCK_WRITE : BLOCK_READ,
                lba * ATA_SECTOR, (uint64_t)count * ATA_SECTOR);
}

static void run_flush(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    (void)flags;
    ata_good(task);
    drive_block(&task->io, dev->block, BLOCK_FLUSH, 0, 0);
}

/* DATA SET MANAGEMENT with TRIM (ACS-3, 7.5): first its list of ranges. */
static void run_trim(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    uint32_t blocks = task->tf.count;

    (void)flags;
    if (!dev->block->can_discard || task->tf.feature != 1 || blocks == 0 ||
        blocks > ATA_DSM_BLOCKS) {
        ata_fail(task, ATA_ERROR_ABRT);
        return;
    }
    task->protocol = ATA_DMA;
    task->ranges = blocks * ATA_DSM_PER_BLOCK;
    task->range = 0;
    task->io.step = DRIVE_DATA_OUT;
    task->io.len = blocks * ATA_SECTOR;
}

/* An entry: 48 bits of address, 16 of length; length 0 is padding. */
static uint64_t trim_entry(const struct ata_task *task, uint32_t index)
{
    uint64_t entry;

    memcpy(&entry, task->io.data + 8 * (size_t)index, sizeof(entry));
    return entry;
}

/* All ranges are checked before the first is acted on. */
static bool trim_ok(const struct ata_device *dev, const struct ata_task *task)
{
    for (uint32_t i = 0; i < task->ranges; i++) {
        uint64_t entry = trim_entry(task, i), lba = entry & 0xffffffffffffull, count = entry >> 48;

        if (count && (lba > dev->sectors || count > dev->sectors - lba))
            return false;
    }
    return true;
}

static void trim_next(struct ata_device *dev, struct ata_task *task)
{
    while (task->range < task->ranges) {
        uint64_t entry = trim_entry(task, task->range++), count = entry >> 48;

        if (!count)
            continue;
        drive_block(&task->io, dev->block, BLOCK_DISCARD, (entry & 0xffffffffffffull) * ATA_SECTOR,
                    count * ATA_SECTOR);
        return;
    }
    ata_good(task);
}

void ata_data_out(struct ata_device *dev, struct ata_task *task)
{
    if (trim_ok(dev, task))
        trim_next(dev, task);
    else
        ata_fail(task, ATA_ERROR_IDNF);
}

static void run_identify(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    (void)flags;
    if (dev->kind == ATA_DISK)
        ata_identify_disk(dev, task->io.data);
    else
        ata_identify_packet(dev, task->io.data);
    task->protocol = ATA_PIO_IN;
    ata_good(task);
    drive_data_in(&task->io, ATA_SECTOR);
}

static void run_smart(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    (void)flags;
    ata_smart(dev, task);
}

static void run_read_log(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    (void)flags;
    ata_read_log(dev, task);
}

/* A refused command of a packet device leaves its signature, by which it is known (ACS-3, 7.12.3).
 */
static void run_signature_abort(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    (void)flags;
    ata_signature(dev, &task->tf);
    ata_fail(task, ATA_ERROR_ABRT);
}

static void run_nothing(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    (void)dev, (void)flags;
    ata_good(task);
}

static void run_diagnostic(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    (void)flags;
    ata_signature(dev, &task->tf);
    task->io.step = DRIVE_DONE;
}

static void run_set_multiple(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    uint8_t count = (uint8_t)task->tf.count;

    (void)flags;
    if (count > ATA_MULTIPLE_MAX || count & (count - 1)) {
        ata_fail(task, ATA_ERROR_ABRT);
        return;
    }
    dev->multiple = count;
    ata_good(task);
}

static bool transfer_mode_ok(uint8_t mode)
{
    switch (mode) {
    case 0x00 ... 0x01:              /* PIO as it comes */
    case 0x08 ... 0x0c:              /* PIO 0 to 4 */
    case 0x20 ... 0x22:              /* multiword DMA */
    case 0x40 ... 0x46: return true; /* Ultra DMA */
    default: return false;
    }
}

/* ACS-3, 7.45. */
static void run_set_features(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    uint8_t value = (uint8_t)task->tf.count;

    (void)flags;
    ata_good(task);
    switch (task->tf.feature & 0xff) {
    case 0x02: dev->write_cache = true; break;
    case 0x82: dev->write_cache = false; break;
    case 0x55: dev->look_ahead = false; break;
    case 0xaa: dev->look_ahead = true; break;
    case 0x66: /* keep or forget settings at a software reset: they are kept */
    case 0xcc: break;
    case 0x03:
        if (transfer_mode_ok(value))
            dev->transfer_mode = value;
        else
            ata_fail(task, ATA_ERROR_ABRT);
        break;
    default: ata_fail(task, ATA_ERROR_ABRT); break;
    }
    if (task->tf.status == ATA_READY && (task->tf.feature & 0xff) == 0x82 && dev->kind == ATA_DISK)
        run_flush(dev, task, 0); /* what the cache holds */
}

#define POWER_STANDBY 1u
#define POWER_FLUSH   2u

/* Standby writes back what is cached (ACS-3, 7.49); a sleeping drive wakes up like one in standby.
 */
static void run_power(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    dev->standby = flags & POWER_STANDBY;
    if (dev->kind == ATA_DISK && flags & POWER_FLUSH)
        run_flush(dev, task, 0);
    else
        ata_good(task);
}

static void run_check_power(struct ata_device *dev, struct ata_task *task, unsigned flags)
{
    (void)flags;
    task->tf.count = dev->standby ? 0x00 : 0xff;
    ata_good(task);
}

/* After a packet command: interrupt reason "command done, to the host", sense key in the error
 * register. */
static void packet_result(struct ata_task *task)
{
    if (task->io.step == DRIVE_BLOCK)
        return;
    task->tf.count = 0x03;
    task->tf.status = ATA_READY;
    task->tf.error = 0;
    if (task->scsi.status == SCSI_GOOD)
        return;
    task->tf.status |= ATA_STATUS_ERR;
    task->tf.error = (uint8_t)(task->scsi.sense.key << 4 | ATA_ERROR_ABRT);
}

static void run_packet(struct ata_device *dev, struct ata_task *task, const uint8_t *cdb)
{
    task->protocol = ATA_PACKET_DATA;
    memset(task->scsi.cdb, 0, sizeof(task->scsi.cdb));
    memcpy(task->scsi.cdb, cdb, 12); /* as long as word 0 of IDENTIFY PACKET DEVICE says */
    task->scsi.io = &task->io;
    scsi_cd_command(&dev->cd, &task->scsi);
    packet_result(task);
}

#define KIND(kind) (1u << (kind))
#define DISK       KIND(ATA_DISK)
#define CD         KIND(ATA_CD)

static const struct ata_entry entries[256] = {
    [0x06] = {run_trim, DISK, 0},
    [0x08] = {run_diagnostic, CD, 0}, /* DEVICE RESET */
    [0x10] = {run_nothing, DISK, 0},  /* RECALIBRATE */
    [0x20] = {run_io, DISK, IO_PIO},
    [0x21] = {run_io, DISK, IO_PIO},
    [0x24] = {run_io, DISK, IO_PIO | IO_EXT},
    [0x25] = {run_io, DISK, IO_EXT},
    [0x29] = {run_io, DISK, IO_PIO | IO_EXT | IO_MULTIPLE},
    [0x2f] = {run_read_log, DISK, 0},
    [0x30] = {run_io, DISK, IO_WRITE | IO_PIO},
    [0x31] = {run_io, DISK, IO_WRITE | IO_PIO},
    [0x34] = {run_io, DISK, IO_WRITE | IO_PIO | IO_EXT},
    [0x35] = {run_io, DISK, IO_WRITE | IO_EXT},
    [0x39] = {run_io, DISK, IO_WRITE | IO_PIO | IO_EXT | IO_MULTIPLE},
    [0x3d] = {run_io, DISK, IO_WRITE | IO_EXT | IO_FUA},
    [0x40] = {run_io, DISK, IO_VERIFY},
    [0x41] = {run_io, DISK, IO_VERIFY},
    [0x42] = {run_io, DISK, IO_VERIFY | IO_EXT},
    [0x60] = {run_io, DISK, IO_QUEUED},
    [0x61] = {run_io, DISK, IO_QUEUED | IO_WRITE},
    [0x90] = {run_diagnostic, DISK | CD, 0},
    [0x91] = {run_nothing, DISK, 0}, /* INITIALIZE DEVICE PARAMETERS */
    [0xa1] = {run_identify, CD, 0},
    [0xb0] = {run_smart, DISK, 0},
    [0xc4] = {run_io, DISK, IO_PIO | IO_MULTIPLE},
    [0xc5] = {run_io, DISK, IO_WRITE | IO_PIO | IO_MULTIPLE},
    [0xc6] = {run_set_multiple, DISK, 0},
    [0xc8] = {run_io, DISK, 0},
    [0xc9] = {run_io, DISK, 0},
    [0xca] = {run_io, DISK, IO_WRITE},
    [0xcb] = {run_io, DISK, IO_WRITE},
    [0xe0] = {run_power, DISK | CD, POWER_STANDBY | POWER_FLUSH},
    [0xe1] = {run_power, DISK | CD, 0},
    [0xe2] = {run_power, DISK | CD, POWER_STANDBY | POWER_FLUSH},
    [0xe3] = {run_power, DISK | CD, 0},
    [0xe5] = {run_check_power, DISK | CD, 0},
    [0xe6] = {run_power, DISK | CD, POWER_STANDBY | POWER_FLUSH}, /* SLEEP */
    [0xe7] = {run_flush, DISK, 0},
    [0xea] = {run_flush, DISK, 0},
    [0xec] = {run_identify, DISK, 0},
    [0xef] = {run_set_features, DISK | CD, 0},
};

bool ata_is_queued(const struct ata_device *dev, uint8_t command)
{
    const struct ata_entry *entry = &entries[command];

    return entry->run == run_io && entry->kinds & KIND(dev->kind) && entry->flags & IO_QUEUED;
}

void ata_command(struct ata_device *dev, struct ata_task *task, const uint8_t *cdb)
{
    const struct ata_entry *entry = &entries[task->tf.command];

    BUG_ON(task->io.capacity < DRIVE_DATA_MIN && !ata_is_queued(dev, task->tf.command));
    task->protocol = ATA_NON_DATA;
    task->flush_after = false;
    task->ranges = 0;
    if (task->tf.command == ATA_PACKET && dev->kind == ATA_CD && cdb)
        run_packet(dev, task, cdb);
    else if (entry->run && entry->kinds & KIND(dev->kind))
        entry->run(dev, task, entry->flags);
    else if (dev->kind == ATA_CD && (task->tf.command == 0xec || task->tf.command == 0x20))
        run_signature_abort(dev, task, 0);
    else
        ata_fail(task, ATA_ERROR_ABRT);
    /* A driver asks a packet device for sense data whatever failed. */
    if (dev->kind == ATA_CD && task->protocol != ATA_PACKET_DATA &&
        task->tf.status & ATA_STATUS_ERR)
        dev->cd.sense = SCSI_SENSE_INVALID_COMMAND;
}

/* A read fails where it could not be read; a failed write or flush is the device's fault
 * (ACS-3, 6.2.6). */
static void block_failed(struct ata_device *dev, struct ata_task *task)
{
    if (task->io.op == BLOCK_READ) {
        io_fail(dev, task, ATA_ERROR_UNC);
        return;
    }
    ata_fail(task, ATA_ERROR_ABRT);
    task->tf.status |= ATA_STATUS_DF;
    if (task->protocol == ATA_QUEUED)
        ata_log_failed(dev, task);
}

void ata_block_done(struct ata_device *dev, struct ata_task *task, int result)
{
    if (task->protocol == ATA_PACKET_DATA) {
        scsi_cd_block_done(&dev->cd, &task->scsi, result);
        packet_result(task);
    } else if (result) {
        block_failed(dev, task);
    } else if (task->ranges) {
        trim_next(dev, task);
    } else if (task->flush_after) {
        task->flush_after = false;
        drive_block(&task->io, dev->block, BLOCK_FLUSH, 0, 0);
    } else {
        ata_good(task);
    }
}

void ata_abort(struct ata_device *dev, struct ata_task *task)
{
    io_fail(dev, task, ATA_ERROR_ABRT);
}

void ata_signature(const struct ata_device *dev, struct ata_taskfile *tf)
{
    *tf = (struct ata_taskfile){.command = tf->command, .count = 1, .error = 1};
    tf->status =
        dev->kind == ATA_DISK ? ATA_READY : 0; /* a packet device is not ready by this bit */
    tf->lba = dev->kind == ATA_DISK ? 0x000001 : 0xeb1401;
}

void ata_reset(struct ata_device *dev, bool power)
{
    dev->standby = false;
    memset(dev->failed, 0, sizeof(dev->failed));
    dev->failed[0] = 0x80;
    if (power) {
        dev->transfer_mode = 0x45;
        dev->multiple = ATA_MULTIPLE_MAX;
        dev->write_cache = dev->look_ahead = dev->smart = true;
    }
    if (dev->kind == ATA_CD)
        scsi_cd_reset(&dev->cd, power);
}

int ata_device_init(struct ata_device *dev, enum ata_kind kind, struct block *block,
                    unsigned number)
{
    *dev = (struct ata_device){.kind = kind};
    snprintf(dev->serial, sizeof(dev->serial), "LODGE%05u", number);
    snprintf(dev->model, sizeof(dev->model), "%s",
             kind == ATA_DISK ? "LODGE DISK" : "LODGE CD-ROM");
    if (kind == ATA_DISK && block->readonly) {
        block_close(block);
        return -EROFS; /* ATA has no way to say it */
    }
    if (kind == ATA_DISK) {
        dev->block = block;
        dev->sectors = block->size / ATA_SECTOR;
    } else {
        scsi_cd_init(&dev->cd, block, dev->serial);
    }
    ata_reset(dev, true);
    return 0;
}

void ata_device_release(struct ata_device *dev)
{
    block_close(dev->block);
    dev->block = NULL;
    if (dev->kind == ATA_CD)
        scsi_cd_release(&dev->cd);
}
