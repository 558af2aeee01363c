#include "device/scsi/scsi.h"

#include <string.h>

const struct state_field scsi_sense_state_fields[] = {
    STATE_UINT(struct scsi_sense, key),
    STATE_UINT(struct scsi_sense, asc),
    STATE_UINT(struct scsi_sense, ascq),
    STATE_FIELDS_END,
};

void scsi_sense_put(const struct scsi_sense *sense, uint8_t bytes[SCSI_SENSE_BYTES])
{
    memset(bytes, 0, SCSI_SENSE_BYTES);
    bytes[0] = 0x70; /* current error, fixed format */
    bytes[2] = sense->key;
    bytes[7] = SCSI_SENSE_BYTES - 8;
    bytes[12] = sense->asc;
    bytes[13] = sense->ascq;
}
