/* What the files of the ATA device share. Not for transports. */
#ifndef DEVICE_ATA_ATA_INTERNAL_H
#define DEVICE_ATA_ATA_INTERNAL_H

#include <assert.h>

#include "device/ata/ata.h"

#define ATA_DSM_BLOCKS    8u /* most 512-byte blocks of ranges in a DATA SET MANAGEMENT */
#define ATA_DSM_PER_BLOCK 64u
#define ATA_MULTIPLE_MAX  16u
#define ATA_READY         (ATA_STATUS_DRDY | ATA_STATUS_DSC)
static_assert(ATA_DSM_BLOCKS * ATA_SECTOR <= DRIVE_DATA_MIN,
              "ranges fit into the transport's buffer");

void ata_good(struct ata_task *task);
void ata_fail(struct ata_task *task, uint8_t error);

/* `word`: one of 256, little-endian on the wire. */
void ata_identify_disk(const struct ata_device *dev, uint8_t out[ATA_SECTOR]);
void ata_identify_packet(const struct ata_device *dev, uint8_t out[ATA_SECTOR]);

/* SMART (B0h) and READ LOG EXT (2Fh): set the task's first step. */
void ata_smart(struct ata_device *dev, struct ata_task *task);
void ata_read_log(struct ata_device *dev, struct ata_task *task);
/* Remembers a queued command that failed, for log 10h. */
void ata_log_failed(struct ata_device *dev, const struct ata_task *task);

#endif
