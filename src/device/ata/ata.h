/*
 * An ATA device without its cable: a disk, or a packet device (ATAPI) with a SCSI CD-ROM behind it.
 * AHCI carries its task file in FISes; an IDE channel would in registers. Source: ACS-3 (INCITS
 * 522) 7 commands, 9 logs; ATA8-AAM; for packets ATA/ATAPI-7 vol. 1, 6.24.
 *
 * The transport sets the task file and calls ata_command(); task->io and task->protocol then say
 * what to do (device/drive.h). Commands that are not queued run one at a time. Threads: under the
 * lock of the device that carries it.
 */
#ifndef DEVICE_ATA_ATA_H
#define DEVICE_ATA_ATA_H

#include "device/scsi/cd.h"

#define ATA_SECTOR     512u
#define ATA_QUEUE      32u
#define ATA_SERIAL_MAX 20u
#define ATA_MODEL_MAX  40u

/* Status and error registers (ACS-3, 6.2 and 6.3). */
#define ATA_STATUS_ERR  0x01u /* packet devices: CHK */
#define ATA_STATUS_DRQ  0x08u
#define ATA_STATUS_DSC  0x10u
#define ATA_STATUS_DF   0x20u
#define ATA_STATUS_DRDY 0x40u
#define ATA_STATUS_BSY  0x80u
#define ATA_ERROR_ABRT  0x04u
#define ATA_ERROR_IDNF  0x10u
#define ATA_ERROR_UNC   0x40u

#define ATA_DEVICE_LBA   0x40u
#define ATA_DEVICE_FUA   0x80u /* of the queued writes */
#define ATA_CONTROL_SRST 0x04u

#define ATA_PACKET_DEVICE_RESET 0x08u
#define ATA_PACKET              0xa0u

enum ata_kind { ATA_DISK, ATA_CD };

/* In: the command. Out: what the device leaves in the registers. */
struct ata_taskfile {
    uint8_t command, device, status, error;
    uint16_t feature, count;
    uint64_t lba; /* 48 bits */
};

enum ata_protocol {
    ATA_NON_DATA,
    ATA_PIO_IN,
    ATA_PIO_OUT,
    ATA_DMA,         /* either direction */
    ATA_QUEUED,      /* FPDMA */
    ATA_PACKET_DATA, /* PACKET: data by DMA or PIO, as the feature register asked */
};

struct ata_task {
    struct ata_taskfile tf;
    struct drive_io io;
    enum ata_protocol protocol; /* out; for PACKET set before its command block is known */
    uint8_t tag;                /* of a queued command */
    bool flush_after;           /* a write that must be on the disk when it is done */
    uint32_t ranges, range;     /* DATA SET MANAGEMENT: entries in io.data, next to look at */
    struct scsi_task scsi;
};

struct ata_device {
    enum ata_kind kind;
    struct block *block; /* owned: a disk's */
    struct scsi_cd cd;   /* a packet device's */
    char serial[ATA_SERIAL_MAX + 1], model[ATA_MODEL_MAX + 1];
    uint64_t sectors;
    /* what commands set */
    uint8_t multiple;      /* sectors a DRQ block of READ MULTIPLE; 0: not set */
    uint8_t transfer_mode; /* SET FEATURES 03h */
    bool write_cache, look_ahead, smart, standby;
    uint8_t failed[16]; /* the queued command that failed, as log 10h tells it (ACS-3, 9.15) */
};

/* Takes ownership of block (ATA_CD: the medium, or NULL) also when it fails. `number` makes the
 * serial number. */
nodiscard int ata_device_init(struct ata_device *dev, enum ata_kind kind, struct block *block,
                              unsigned number);
void ata_device_release(struct ata_device *dev);

/* Power-on, else COMRESET or software reset. Then the task file holds ata_signature(). */
void ata_reset(struct ata_device *dev, bool power);
void ata_signature(const struct ata_device *dev, struct ata_taskfile *tf);

/* True for the commands that may be outstanding together. */
bool ata_is_queued(const struct ata_device *dev, uint8_t command);

/* Starts the command in task->tf. For PACKET `cdb` is its command block, else NULL. io.data is set.
 */
void ata_command(struct ata_device *dev, struct ata_task *task, const uint8_t *cdb);
/* After DRIVE_DATA_OUT: the bytes are there. After DRIVE_BLOCK: its result. Both set the next step.
 */
void ata_data_out(struct ata_device *dev, struct ata_task *task);
void ata_block_done(struct ata_device *dev, struct ata_task *task, int result);
/* The transport gives up on the command: its registers say aborted, and it is done. */
void ata_abort(struct ata_device *dev, struct ata_task *task);

extern const struct state_field ata_device_state_fields[];

#endif
