/*
 * SCSI: a command on its way through a logical unit, and the sense data it leaves.
 * Source: SPC-4 (INCITS 513) 4.5 sense data, 6 commands; SAM-5 5.3.1 status.
 */
#ifndef DEVICE_SCSI_SCSI_H
#define DEVICE_SCSI_SCSI_H

#include "core/state.h"
#include "device/drive.h"

#define SCSI_CDB_MAX 16u

#define SCSI_GOOD            0x00u
#define SCSI_CHECK_CONDITION 0x02u

/* Sense keys (SPC-4, 4.5.6). */
#define SCSI_NO_SENSE        0x0u
#define SCSI_NOT_READY       0x2u
#define SCSI_MEDIUM_ERROR    0x3u
#define SCSI_ILLEGAL_REQUEST 0x5u
#define SCSI_UNIT_ATTENTION  0x6u

struct scsi_sense {
    uint8_t key, asc, ascq; /* additional sense code and its qualifier */
};

/* Reads better than three bytes (SPC-4, annex D). */
#define SCSI_SENSE_NONE              ((struct scsi_sense){SCSI_NO_SENSE, 0x00, 0x00})
#define SCSI_SENSE_READ_ERROR        ((struct scsi_sense){SCSI_MEDIUM_ERROR, 0x11, 0x00})
#define SCSI_SENSE_INVALID_COMMAND   ((struct scsi_sense){SCSI_ILLEGAL_REQUEST, 0x20, 0x00})
#define SCSI_SENSE_LBA_OUT_OF_RANGE  ((struct scsi_sense){SCSI_ILLEGAL_REQUEST, 0x21, 0x00})
#define SCSI_SENSE_INVALID_FIELD     ((struct scsi_sense){SCSI_ILLEGAL_REQUEST, 0x24, 0x00})
#define SCSI_SENSE_NO_SAVED_PAGES    ((struct scsi_sense){SCSI_ILLEGAL_REQUEST, 0x39, 0x00})
#define SCSI_SENSE_REMOVAL_PREVENTED ((struct scsi_sense){SCSI_ILLEGAL_REQUEST, 0x53, 0x02})
#define SCSI_SENSE_NO_MEDIUM_CLOSED  ((struct scsi_sense){SCSI_NOT_READY, 0x3a, 0x01})
#define SCSI_SENSE_NO_MEDIUM_OPEN    ((struct scsi_sense){SCSI_NOT_READY, 0x3a, 0x02})
#define SCSI_SENSE_MEDIUM_CHANGED    ((struct scsi_sense){SCSI_UNIT_ATTENTION, 0x28, 0x00})
#define SCSI_SENSE_RESET             ((struct scsi_sense){SCSI_UNIT_ATTENTION, 0x29, 0x00})

struct scsi_task {
    uint8_t cdb[SCSI_CDB_MAX]; /* in; bytes beyond the command's length are zero */
    struct drive_io *io;       /* borrowed: the transport's */
    uint8_t status;            /* out, at DRIVE_DONE and DRIVE_DATA_IN */
    struct scsi_sense sense;   /* out, with CHECK CONDITION */
};

/* The bytes of a REQUEST SENSE answer, and of autosense (fixed format: SPC-4, 4.5.3). */
#define SCSI_SENSE_BYTES 18u
void scsi_sense_put(const struct scsi_sense *sense, uint8_t bytes[SCSI_SENSE_BYTES]);

extern const struct state_field scsi_sense_state_fields[];

/* Big-endian numbers, as SCSI has them. */
static inline uint32_t scsi_get(const uint8_t *at, unsigned bytes)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | at[i];
    return value;
}

static inline void scsi_put(uint8_t *at, unsigned bytes, uint32_t value)
{
    for (unsigned i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
}

#endif
