/*
 * The answers of MMC-6 commands that tell about the drive and its disc, as bytes. Not for
 * transports.
 *
 * Each takes the command block and a buffer of MMC_ANSWER_MAX bytes, all zero, and returns how many
 * bytes the answer has (before the allocation length cuts it), or 0 when a field of the command
 * asks for what is not there. Those that speak of the disc are called with one loaded.
 */
#ifndef DEVICE_SCSI_MMC_H
#define DEVICE_SCSI_MMC_H

#include "device/scsi/cd.h"

#define MMC_ANSWER_MAX 256u

uint32_t mmc_inquiry(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out);
uint32_t mmc_read_toc(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out);
uint32_t mmc_get_configuration(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out);
uint32_t mmc_disc_information(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out);
uint32_t mmc_track_information(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out);
uint32_t mmc_mode_sense(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out);
uint32_t mmc_mechanism_status(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out);

#endif
