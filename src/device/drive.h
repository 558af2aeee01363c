/*
 * What a drive (ATA disk, SCSI CD-ROM) asks of whatever it is plugged into, one step at a time.
 *
 * A transport (AHCI; IDE, virtio-scsi, USB later) hands a command to the drive's module and gets a
 * step back: move the drive's own bytes to or from the guest, let the block back end work on a
 * range, or done. It does the step, tells the drive, and gets the next one. The drive never sees
 * guest memory, and the transport never sees what a command means. Every command comes to
 * DRIVE_DONE in a bounded number of steps.
 *
 * Ownership: `data` is the transport's, `capacity` bytes that stay valid until the command is done.
 * Threads: everything under the transport's device lock.
 */
#ifndef DEVICE_DRIVE_H
#define DEVICE_DRIVE_H

#include "block/block.h"

#define DRIVE_DATA_MIN 4096u /* least `capacity`: no command needs more */

enum drive_step {
    DRIVE_DONE,     /* status and result registers are set */
    DRIVE_DATA_IN,  /* give the first `len` bytes of `data` to the guest; then it is done */
    DRIVE_DATA_OUT, /* fetch `len` bytes from the guest into `data` */
    DRIVE_BLOCK,    /* `op` on the range of `block`: the guest's buffer holds the bytes of a read or
                       write */
};

struct drive_io {
    enum drive_step step;
    uint8_t *data;     /* borrowed; set by the transport before the command */
    uint32_t capacity; /* of data, at least DRIVE_DATA_MIN */
    uint32_t len;
    struct block *block; /* borrowed */
    enum block_op op;
    uint64_t offset, length; /* bytes; length 0 only for a flush */
};

static inline void drive_data_in(struct drive_io *io, uint32_t len)
{
    io->step = DRIVE_DATA_IN;
    io->len = len;
}

static inline void drive_block(struct drive_io *io, struct block *block, enum block_op op,
                               uint64_t offset, uint64_t length)
{
    io->step = DRIVE_BLOCK;
    io->block = block;
    io->op = op;
    io->offset = offset;
    io->length = length;
}

#endif
