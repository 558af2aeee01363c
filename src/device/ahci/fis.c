/* Frame information structures: Serial ATA 3.0, 10.5. */
#include <string.h>

#include "device/ahci/ahci_internal.h"

#define FIS_H2D       0x27u
#define FIS_D2H       0x34u
#define FIS_DMA_SETUP 0x41u
#define FIS_PIO_SETUP 0x5fu
#define FIS_SET_BITS  0xa1u
#define FIS_COMMAND   0x80u /* second byte, host to device */
#define FIS_TO_HOST   0x20u /* second byte, the set-ups */
#define FIS_INTERRUPT 0x40u

/* Places in the received FIS area (4.2.1). */
#define AREA_DMA_SETUP 0x00u
#define AREA_PIO_SETUP 0x20u
#define AREA_REGISTER  0x40u
#define AREA_SET_BITS  0x58u

static void fis_store(struct ahci_port *port, unsigned at, const uint8_t *fis, size_t len)
{
    if (port->cmd & PX_CMD_FRE)
        (void)!mem_write(port->hba->mem, port->fb + at, fis,
                         len); /* nowhere: lost, as on the bus */
}

static void fis_put_registers(uint8_t *fis, const struct ata_taskfile *tf)
{
    fis[2] = tf->status;
    fis[3] = tf->error;
    for (unsigned i = 0; i < 3; i++) {
        fis[4 + i] = (uint8_t)(tf->lba >> (8 * i));
        fis[8 + i] = (uint8_t)(tf->lba >> (24 + 8 * i));
    }
    fis[7] = tf->device;
    fis[12] = (uint8_t)tf->count;
    fis[13] = (uint8_t)(tf->count >> 8);
}

static void fis_task_file(struct ahci_port *port, uint8_t status, uint8_t error)
{
    port->tfd = (uint32_t)error << 8 | status;
}

void ahci_fis_register(struct ahci_port *port, const struct ata_taskfile *tf, bool interrupt)
{
    uint8_t fis[20] = {FIS_D2H, interrupt ? FIS_INTERRUPT : 0};

    fis_put_registers(fis, tf);
    fis_store(port, AREA_REGISTER, fis, sizeof(fis));
    fis_task_file(port, tf->status, tf->error);
    if (interrupt)
        ahci_port_raise(port, PX_IS_DHRS);
}

/* The status before the data says DRQ; the one after it is the command's end for data to the host.
 */
void ahci_fis_pio_setup(struct ahci_port *port, const struct ata_taskfile *tf, uint32_t bytes,
                        bool to_host, bool interrupt)
{
    uint8_t fis[20] = {FIS_PIO_SETUP,
                       (uint8_t)((to_host ? FIS_TO_HOST : 0) | (interrupt ? FIS_INTERRUPT : 0))};

    fis_put_registers(fis, tf);
    fis[2] = (uint8_t)(tf->status | ATA_STATUS_DRQ);
    fis[15] = tf->status;
    fis[16] = (uint8_t)bytes;
    fis[17] = (uint8_t)(bytes >> 8);
    fis_store(port, AREA_PIO_SETUP, fis, sizeof(fis));
    fis_task_file(port, tf->status, tf->error);
    if (interrupt)
        ahci_port_raise(port, PX_IS_PSS);
}

void ahci_fis_dma_setup(struct ahci_port *port, unsigned tag, uint32_t bytes, bool to_host)
{
    uint8_t fis[28] = {FIS_DMA_SETUP, to_host ? FIS_TO_HOST : 0};

    fis[4] = (uint8_t)tag;
    for (unsigned i = 0; i < 4; i++)
        fis[20 + i] = (uint8_t)(bytes >> (8 * i));
    fis_store(port, AREA_DMA_SETUP, fis, sizeof(fis));
}

void ahci_fis_device_bits(struct ahci_port *port, const struct ata_taskfile *tf, uint32_t done)
{
    uint8_t status = tf->status & 0x77;
    uint8_t fis[8] = {FIS_SET_BITS, FIS_INTERRUPT, status, tf->error};

    for (unsigned i = 0; i < 4; i++)
        fis[4 + i] = (uint8_t)(done >> (8 * i));
    fis_store(port, AREA_SET_BITS, fis, sizeof(fis));
    fis_task_file(port, status, tf->error);
    port->sact &= ~done;
    ahci_port_raise(port, PX_IS_SDBS);
}

bool ahci_fis_parse(const uint8_t *fis, struct ata_taskfile *tf, bool *command, uint8_t *control)
{
    if (fis[0] != FIS_H2D)
        return false;
    *command = fis[1] & FIS_COMMAND;
    *control = fis[15];
    *tf = (struct ata_taskfile){
        .command = fis[2],
        .device = fis[7],
        .feature = (uint16_t)(fis[3] | fis[11] << 8),
        .count = (uint16_t)(fis[12] | fis[13] << 8),
    };
    for (unsigned i = 0; i < 3; i++)
        tf->lba |= (uint64_t)fis[4 + i] << (8 * i) | (uint64_t)fis[8 + i] << (24 + 8 * i);
    return true;
}
