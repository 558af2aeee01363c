/*
 * A CD/DVD-ROM drive as a SCSI logical unit: tray, lock, medium, and the commands of SPC-4 and
 * MMC-6 that operating systems and firmware use. Whatever carries SCSI commands can hold one.
 *
 * The medium is an image of 2048-byte sectors, one data track. A new or changed medium is reported
 * once as a unit attention, and once as a media event (MMC-6, 6.6).
 *
 * Threads: under the lock of the device that carries it. scsi_cd_eject and scsi_cd_insert are the
 * operator's hand at the tray; no read may be in flight.
 */
#ifndef DEVICE_SCSI_CD_H
#define DEVICE_SCSI_CD_H

#include "device/scsi/scsi.h"

#define SCSI_CD_SECTOR 2048u

struct scsi_cd {
    struct block *medium; /* owned; NULL: none. In the tray, so out of reach while that is open */
    const char *serial;   /* borrowed, at most 20 characters */
    bool tray_open;
    bool locked;                 /* PREVENT ALLOW MEDIUM REMOVAL */
    uint8_t event;               /* media event not yet told (MMC-6, table 345) */
    struct scsi_sense sense;     /* of the last command, for REQUEST SENSE */
    struct scsi_sense attention; /* not yet told; key 0: none */
};

/* Takes ownership of medium (NULL: an empty drive). */
void scsi_cd_init(struct scsi_cd *cd, struct block *medium, const char *serial);
void scsi_cd_release(struct scsi_cd *cd);

/* Power-on and every reset of the drive: unlocked, tray closed when `power`, reset told as a unit
 * attention. */
void scsi_cd_reset(struct scsi_cd *cd, bool power);

/* Starts task->cdb: sets task->io to the first step. */
void scsi_cd_command(struct scsi_cd *cd, struct scsi_task *task);
/* After a DRIVE_BLOCK step: its result, 0 or negative errno. Sets the next step. */
void scsi_cd_block_done(struct scsi_cd *cd, struct scsi_task *task, int result);

/* The operator presses the button: -EBUSY when the guest holds the tray locked, which is told of
 * the wish. */
nodiscard int scsi_cd_eject(struct scsi_cd *cd);
/* Puts a medium in (owned from here; NULL: none), whatever was there is closed, and shuts the tray.
 */
void scsi_cd_insert(struct scsi_cd *cd, struct block *medium);

/* The guest sees a medium: it is there and the tray is shut. */
static inline bool scsi_cd_loaded(const struct scsi_cd *cd)
{
    return cd->medium && !cd->tray_open;
}

static inline uint32_t scsi_cd_sectors(const struct scsi_cd *cd)
{
    uint64_t sectors = cd->medium->size / SCSI_CD_SECTOR;

    return sectors > UINT32_MAX ? UINT32_MAX : (uint32_t)sectors;
}

extern const struct state_field scsi_cd_state_fields[];

#endif
