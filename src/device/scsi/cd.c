#include "device/scsi/cd.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "device/scsi/mmc.h"

/* Operation codes (SPC-4 table 62, MMC-6 table 243). */
#define TEST_UNIT_READY       0x00u
#define REQUEST_SENSE         0x03u
#define INQUIRY               0x12u
#define START_STOP_UNIT       0x1bu
#define PREVENT_ALLOW         0x1eu
#define READ_CAPACITY         0x25u
#define READ_10               0x28u
#define SEEK_10               0x2bu
#define SYNCHRONIZE_CACHE     0x35u
#define READ_TOC              0x43u
#define GET_CONFIGURATION     0x46u
#define GET_EVENT_STATUS      0x4au
#define READ_DISC_INFORMATION 0x51u
#define READ_TRACK            0x52u
#define MODE_SENSE_10         0x5au
#define REPORT_LUNS           0xa0u
#define READ_12               0xa8u
#define SET_CD_SPEED          0xbbu
#define MECHANISM_STATUS      0xbdu

/* Media events (MMC-6, table 345). */
#define EVENT_NONE          0u
#define EVENT_EJECT_REQUEST 1u
#define EVENT_NEW_MEDIA     2u
#define EVENT_REMOVAL       3u
#define EVENT_CLASS_MEDIA   4u

const struct state_field scsi_cd_state_fields[] = {
    STATE_UINT(struct scsi_cd, tray_open),
    STATE_UINT(struct scsi_cd, locked),
    STATE_UINT(struct scsi_cd, event),
    STATE_STRUCT(struct scsi_cd, sense, scsi_sense_state_fields),
    STATE_STRUCT(struct scsi_cd, attention, scsi_sense_state_fields),
    STATE_FIELDS_END,
};

static void cd_good(struct scsi_cd *cd, struct scsi_task *task)
{
    cd->sense = task->sense = SCSI_SENSE_NONE;
    task->status = SCSI_GOOD;
    task->io->step = DRIVE_DONE;
}

static void cd_check(struct scsi_cd *cd, struct scsi_task *task, struct scsi_sense sense)
{
    cd->sense = task->sense = sense;
    task->status = SCSI_CHECK_CONDITION;
    task->io->step = DRIVE_DONE;
}

/* The answer is in io->data: as much of it as the guest has room for. */
static void cd_answer(struct scsi_cd *cd, struct scsi_task *task, uint32_t len, uint32_t room)
{
    cd_good(cd, task);
    if (room > 0)
        drive_data_in(task->io, len < room ? len : room);
}

static void cd_test_unit_ready(struct scsi_cd *cd, struct scsi_task *task)
{
    cd_good(cd, task);
}

/* Tells of a pending unit attention as well, and so ends it (SPC-4, 6.39). */
static void cd_request_sense(struct scsi_cd *cd, struct scsi_task *task)
{
    struct scsi_sense sense = cd->sense;

    if (sense.key == SCSI_NO_SENSE && cd->attention.key) {
        sense = cd->attention;
        cd->attention = SCSI_SENSE_NONE;
    }
    scsi_sense_put(&sense, task->io->data);
    cd_answer(cd, task, SCSI_SENSE_BYTES, task->cdb[4]);
}

static void cd_tray(struct scsi_cd *cd, bool open)
{
    if (cd->tray_open == open)
        return;
    cd->tray_open = open;
    if (!cd->medium)
        return;
    cd->event = open ? EVENT_REMOVAL : EVENT_NEW_MEDIA;
    if (!open)
        cd->attention = SCSI_SENSE_MEDIUM_CHANGED;
}

static void cd_start_stop(struct scsi_cd *cd, struct scsi_task *task)
{
    bool load_eject = task->cdb[4] & 2, start = task->cdb[4] & 1;

    if (task->cdb[4] & 0xf0 || !load_eject) {
        cd_good(cd, task); /* power conditions; spinning up or down */
        return;
    }
    if (!start && cd->locked) {
        cd_check(cd, task, SCSI_SENSE_REMOVAL_PREVENTED);
        return;
    }
    cd_tray(cd, !start);
    cd_good(cd, task);
}

static void cd_prevent_allow(struct scsi_cd *cd, struct scsi_task *task)
{
    cd->locked = task->cdb[4] & 1;
    cd_good(cd, task);
}

static void cd_read_capacity(struct scsi_cd *cd, struct scsi_task *task)
{
    uint32_t sectors = scsi_cd_sectors(cd);

    scsi_put(task->io->data, 4, sectors ? sectors - 1 : 0);
    scsi_put(task->io->data + 4, 4, SCSI_CD_SECTOR);
    cd_answer(cd, task, 8, 8);
}

static void cd_read(struct scsi_cd *cd, struct scsi_task *task)
{
    bool long_form = task->cdb[0] == READ_12;
    uint32_t lba = scsi_get(&task->cdb[2], 4), sectors = scsi_cd_sectors(cd);
    uint32_t count = long_form ? scsi_get(&task->cdb[6], 4) : scsi_get(&task->cdb[7], 2);

    if (lba > sectors || count > sectors - lba) {
        cd_check(cd, task, SCSI_SENSE_LBA_OUT_OF_RANGE);
        return;
    }
    cd_good(cd, task);
    if (count > 0)
        drive_block(task->io, cd->medium, BLOCK_READ, (uint64_t)lba * SCSI_CD_SECTOR,
                    (uint64_t)count * SCSI_CD_SECTOR);
}

static void cd_seek(struct scsi_cd *cd, struct scsi_task *task)
{
    if (scsi_get(&task->cdb[2], 4) < scsi_cd_sectors(cd))
        cd_good(cd, task);
    else
        cd_check(cd, task, SCSI_SENSE_LBA_OUT_OF_RANGE);
}

/* Polled only, and only the media class (MMC-6, 6.6). */
static void cd_get_event(struct scsi_cd *cd, struct scsi_task *task)
{
    uint8_t *out = task->io->data;
    uint32_t room = scsi_get(&task->cdb[7], 2);

    if (!(task->cdb[1] & 1)) {
        cd_check(cd, task, SCSI_SENSE_INVALID_FIELD);
        return;
    }
    memset(out, 0, 8);
    out[3] = 1 << EVENT_CLASS_MEDIA;
    if (!(task->cdb[4] & 1 << EVENT_CLASS_MEDIA)) {
        out[1] = 2;
        out[2] = 0x80; /* none of the classes asked for */
        cd_answer(cd, task, 4, room);
        return;
    }
    out[1] = 6;
    out[2] = EVENT_CLASS_MEDIA;
    out[4] = cd->event;
    out[5] = (uint8_t)((scsi_cd_loaded(cd) ? 2 : 0) | (cd->tray_open ? 1 : 0));
    if (room >= 5) /* the guest has seen the event */
        cd->event = EVENT_NONE;
    cd_answer(cd, task, 8, room);
}

static void cd_mode_sense(struct scsi_cd *cd, struct scsi_task *task)
{
    uint32_t len;

    if (task->cdb[2] >> 6 == 3) {
        cd_check(cd, task, SCSI_SENSE_NO_SAVED_PAGES);
        return;
    }
    memset(task->io->data, 0, MMC_ANSWER_MAX);
    len = mmc_mode_sense(cd, task->cdb, task->io->data);
    if (len)
        cd_answer(cd, task, len, scsi_get(&task->cdb[7], 2));
    else
        cd_check(cd, task, SCSI_SENSE_INVALID_FIELD);
}

/* One logical unit, number 0 (SPC-4, 6.33). */
static void cd_report_luns(struct scsi_cd *cd, struct scsi_task *task)
{
    memset(task->io->data, 0, 16);
    task->io->data[3] = 8;
    cd_answer(cd, task, 16, scsi_get(&task->cdb[6], 4));
}

#define NEEDS_DISC   1u /* NOT READY without one */
#define NO_ATTENTION 2u /* answers even though a unit attention is pending (SPC-4, 5.14) */

struct cd_command {
    void (*run)(struct scsi_cd *cd, struct scsi_task *task);
    /* instead of run: bytes that mmc.c makes, with the allocation length at `room_at` of the
     * command */
    uint32_t (*answer)(const struct scsi_cd *cd, const uint8_t *cdb, uint8_t *out);
    uint8_t room_at;
    uint8_t flags;
};

static const struct cd_command cd_commands[256] = {
    [TEST_UNIT_READY] = {.run = cd_test_unit_ready, .flags = NEEDS_DISC},
    [REQUEST_SENSE] = {.run = cd_request_sense, .flags = NO_ATTENTION},
    [INQUIRY] = {.answer = mmc_inquiry, .room_at = 3, .flags = NO_ATTENTION},
    [START_STOP_UNIT] = {.run = cd_start_stop},
    [PREVENT_ALLOW] = {.run = cd_prevent_allow},
    [READ_CAPACITY] = {.run = cd_read_capacity, .flags = NEEDS_DISC},
    [READ_10] = {.run = cd_read, .flags = NEEDS_DISC},
    [SEEK_10] = {.run = cd_seek, .flags = NEEDS_DISC},
    [SYNCHRONIZE_CACHE] = {.run = cd_test_unit_ready, .flags = NEEDS_DISC},
    [READ_TOC] = {.answer = mmc_read_toc, .room_at = 7, .flags = NEEDS_DISC},
    [GET_CONFIGURATION] = {.answer = mmc_get_configuration, .room_at = 7, .flags = NO_ATTENTION},
    [GET_EVENT_STATUS] = {.run = cd_get_event, .flags = NO_ATTENTION},
    [READ_DISC_INFORMATION] = {.answer = mmc_disc_information, .room_at = 7, .flags = NEEDS_DISC},
    [READ_TRACK] = {.answer = mmc_track_information, .room_at = 7, .flags = NEEDS_DISC},
    [MODE_SENSE_10] = {.run = cd_mode_sense},
    [REPORT_LUNS] = {.run = cd_report_luns, .flags = NO_ATTENTION},
    [READ_12] = {.run = cd_read, .flags = NEEDS_DISC},
    [SET_CD_SPEED] = {.run = cd_test_unit_ready},
    [MECHANISM_STATUS] = {.answer = mmc_mechanism_status, .room_at = 8},
};

static void cd_answer_made(struct scsi_cd *cd, struct scsi_task *task,
                           const struct cd_command *command)
{
    uint32_t len;

    memset(task->io->data, 0, MMC_ANSWER_MAX);
    len = command->answer(cd, task->cdb, task->io->data);
    if (len)
        cd_answer(cd, task, len, scsi_get(&task->cdb[command->room_at], 2));
    else
        cd_check(cd, task, SCSI_SENSE_INVALID_FIELD);
}

void scsi_cd_command(struct scsi_cd *cd, struct scsi_task *task)
{
    const struct cd_command *command = &cd_commands[task->cdb[0]];

    if (cd->attention.key && !(command->flags & NO_ATTENTION)) {
        cd_check(cd, task, cd->attention);
        cd->attention = SCSI_SENSE_NONE;
    } else if (!command->run && !command->answer) {
        cd_check(cd, task, SCSI_SENSE_INVALID_COMMAND);
    } else if ((command->flags & NEEDS_DISC) && !scsi_cd_loaded(cd)) {
        cd_check(cd, task, cd->tray_open ? SCSI_SENSE_NO_MEDIUM_OPEN : SCSI_SENSE_NO_MEDIUM_CLOSED);
    } else if (command->run) {
        command->run(cd, task);
    } else {
        cd_answer_made(cd, task, command);
    }
}

void scsi_cd_block_done(struct scsi_cd *cd, struct scsi_task *task, int result)
{
    if (result)
        cd_check(cd, task, SCSI_SENSE_READ_ERROR);
    else
        cd_good(cd, task);
}

void scsi_cd_init(struct scsi_cd *cd, struct block *medium, const char *serial)
{
    *cd = (struct scsi_cd){.medium = medium, .serial = serial};
    scsi_cd_reset(cd, true);
}

void scsi_cd_release(struct scsi_cd *cd)
{
    block_close(cd->medium);
    cd->medium = NULL;
}

void scsi_cd_reset(struct scsi_cd *cd, bool power)
{
    cd->locked = false;
    cd->sense = SCSI_SENSE_NONE;
    cd->attention = SCSI_SENSE_RESET;
    if (!power)
        return;
    cd->tray_open = false;
    cd->event = cd->medium ? EVENT_NEW_MEDIA : EVENT_NONE;
}

int scsi_cd_eject(struct scsi_cd *cd)
{
    if (cd->locked) {
        cd->event = EVENT_EJECT_REQUEST;
        return -EBUSY;
    }
    cd_tray(cd, true);
    return 0;
}

void scsi_cd_insert(struct scsi_cd *cd, struct block *medium)
{
    cd_tray(cd, true);
    block_close(cd->medium);
    cd->medium = medium;
    cd_tray(cd, false);
}
