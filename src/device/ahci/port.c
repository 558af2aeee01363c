/* The registers of a port (AHCI 1.3.1, 3.3), its link and its resets (10.4). */
#include "device/ahci/ahci_internal.h"

#define TFD_NO_DEVICE 0x7fu /* until a device has sent its first FIS (3.3.8) */
#define SIG_NO_DEVICE 0xffffffffu
#define CMD_AT_RESET  (PX_CMD_SUD | PX_CMD_POD | PX_CMD_HPCP) /* what is read-only, as CAP says */
#define CMD_WRITABLE  (PX_CMD_ST | PX_CMD_FRE | PX_CMD_ATAPI | PX_CMD_DLAE)
#define IS_MIRRORS    (PX_IS_PCS | PX_IS_PRCS)
#define SCTL_WRITABLE 0x00000fffu
#define DET_RESET     1u
#define DET_OFF       4u

const struct state_field ahci_port_state_fields[] = {
    STATE_UINT(struct ahci_port, clb),
    STATE_UINT(struct ahci_port, fb),
    STATE_UINT(struct ahci_port, is),
    STATE_UINT(struct ahci_port, ie),
    STATE_UINT(struct ahci_port, cmd),
    STATE_UINT(struct ahci_port, tfd),
    STATE_UINT(struct ahci_port, sig),
    STATE_UINT(struct ahci_port, ssts),
    STATE_UINT(struct ahci_port, sctl),
    STATE_UINT(struct ahci_port, serr),
    STATE_UINT(struct ahci_port, sact),
    STATE_UINT(struct ahci_port, ci),
    STATE_UINT(struct ahci_port, halted),
    STATE_UINT(struct ahci_port, resetting),
    STATE_UINT(struct ahci_port, soft_reset),
    STATE_UINT(struct ahci_port, signature_held),
    STATE_STRUCT(struct ahci_port, drive, ata_device_state_fields),
    STATE_FIELDS_END,
};

void ahci_port_raise(struct ahci_port *port, uint32_t bits)
{
    port->is |= bits;
    ahci_interrupt_update(port->hba);
}

static void port_serr_raise(struct ahci_port *port, uint32_t bits)
{
    port->serr |= bits;
    ahci_port_raise(port, (bits & PX_SERR_X ? PX_IS_PCS : 0) | (bits & PX_SERR_N ? PX_IS_PRCS : 0));
}

/* The first FIS after a reset. Its registers are taken at once, its bytes wait for FRE (5.3.2). */
static void port_signature(struct ahci_port *port)
{
    struct ata_taskfile tf = {0};

    ata_signature(&port->drive, &tf);
    port->signature_held = !(port->cmd & PX_CMD_FRE);
    port->sig = (uint32_t)tf.lba << 8 | tf.count;
    ahci_fis_register(port, &tf, false);
}

void ahci_port_attach(struct ahci_port *port)
{
    if (!port->present) {
        ahci_port_detach(port);
        return;
    }
    port->ssts = PX_SSTS_UP;
    port->soft_reset = false;
    port_serr_raise(port, PX_SERR_N | PX_SERR_X);
    ata_reset(&port->drive, false);
    port_signature(port);
}

void ahci_port_detach(struct ahci_port *port)
{
    port->tfd = TFD_NO_DEVICE;
    port->sig = SIG_NO_DEVICE;
    port->signature_held = false;
    if (port->ssts == PX_SSTS_UP)
        port_serr_raise(port, PX_SERR_N);
    port->ssts = 0;
}

void ahci_port_reset(struct ahci_port *port, bool power)
{
    if (power)
        port->clb = port->fb = 0; /* an adapter reset leaves them (10.4.3) */
    port->is = port->ie = port->serr = port->sact = port->ci = port->sctl = 0;
    port->cmd = CMD_AT_RESET;
    port->halted = port->resetting = port->draining = false;
    port->ssts = 0;
    ahci_port_detach(port);
    if (power && port->present)
        ata_reset(&port->drive, true);
    ahci_port_attach(port);
}

void ahci_port_settle(struct ahci_port *port)
{
    if (port->active)
        return;
    if (port->draining) {
        port->draining = false;
        if (port->tfd & ATA_STATUS_BSY) /* the drive's own end of the command still comes */
            port->tfd = ATA_STATUS_DRDY | ATA_STATUS_DSC;
        if (!(port->cmd & PX_CMD_ST))
            port->cmd &= ~PX_CMD_CR;
    }
    if (port->resetting && (port->sctl & PX_SCTL_DET) == 0) {
        port->resetting = false;
        ahci_port_attach(port);
    }
    ahci_port_idle(port->hba);
}

/* ST goes from 1 to 0 (3.3.7): the slots are empty at once, CR tells when the last transfer is
 * over. */
static void port_stop(struct ahci_port *port)
{
    port->ci = port->sact = 0;
    port->cmd &= ~PX_CMD_CCS;
    port->halted = false;
    port->draining = true;
    ahci_port_settle(port);
}

static void port_write_cmd(struct ahci_port *port, uint32_t value)
{
    bool ran = port->cmd & PX_CMD_ST;

    port->cmd = (port->cmd & ~CMD_WRITABLE) | (value & CMD_WRITABLE);
    if (value & PX_CMD_FRE)
        port->cmd |= PX_CMD_FR;
    else
        port->cmd &= ~PX_CMD_FR;
    if ((value & PX_CMD_CLO) && !(value & PX_CMD_ST))
        port->tfd &= ~(uint32_t)(ATA_STATUS_BSY | ATA_STATUS_DRQ);
    if (port->signature_held && (value & PX_CMD_FRE))
        port_signature(port);
    if (ran && !(value & PX_CMD_ST))
        port_stop(port);
    else if (value & PX_CMD_ST)
        port->cmd |= PX_CMD_CR;
}

/* COMRESET lasts while DET is 1; the device answers when it is 0 again (10.4.2). */
static void port_write_sctl(struct ahci_port *port, uint32_t value)
{
    unsigned det = value & PX_SCTL_DET, old = port->sctl & PX_SCTL_DET;

    port->sctl = value & SCTL_WRITABLE;
    if (det == old)
        return;
    if (det == DET_RESET || det == DET_OFF) {
        ahci_port_detach(port);
        port->ssts = det == DET_OFF ? DET_OFF : 0;
        port->resetting = true;
        port->halted = port->cmd & PX_CMD_ST; /* should it still run: until it is stopped */
    }
    ahci_port_settle(port);
}

static void port_write_serr(struct ahci_port *port, uint32_t value)
{
    port->serr &= ~value;
    if (!(port->serr & PX_SERR_X))
        port->is &= ~PX_IS_PCS;
    if (!(port->serr & PX_SERR_N))
        port->is &= ~PX_IS_PRCS;
}

static void address_write(uint64_t *address, bool high, uint32_t value, uint32_t low_mask)
{
    if (high)
        *address = (*address & 0xffffffffull) | (uint64_t)value << 32;
    else
        *address = (*address & ~0xffffffffull) | (value & low_mask);
}

void ahci_port_write(struct ahci_port *port, unsigned reg, uint32_t value)
{
    switch (reg) {
    case PX_CLB:
    case PX_CLBU: address_write(&port->clb, reg == PX_CLBU, value, ~0x3ffu); break;
    case PX_FB:
    case PX_FBU: address_write(&port->fb, reg == PX_FBU, value, ~0xffu); break;
    case PX_IS: port->is &= ~value | IS_MIRRORS; break;
    case PX_IE: port->ie = value & PX_IE_MASK; break;
    case PX_CMD: port_write_cmd(port, value); break;
    case PX_SCTL: port_write_sctl(port, value); break;
    case PX_SERR: port_write_serr(port, value); break;
    case PX_SACT: port->sact |= port->cmd & PX_CMD_ST ? value : 0; break;
    case PX_CI: port->ci |= port->cmd & PX_CMD_ST ? value : 0; break;
    default: break; /* read-only or reserved */
    }
    ahci_interrupt_update(port->hba);
    ahci_port_run(port);
}

uint32_t ahci_port_read(struct ahci_port *port, unsigned reg)
{
    switch (reg) {
    case PX_CLB: return (uint32_t)port->clb;
    case PX_CLBU: return (uint32_t)(port->clb >> 32);
    case PX_FB: return (uint32_t)port->fb;
    case PX_FBU: return (uint32_t)(port->fb >> 32);
    case PX_IS: return port->is;
    case PX_IE: return port->ie;
    case PX_CMD: return port->cmd;
    case PX_TFD: return port->tfd;
    case PX_SIG: return port->sig;
    case PX_SSTS: return port->ssts;
    case PX_SCTL: return port->sctl;
    case PX_SERR: return port->serr;
    case PX_SACT: return port->sact;
    case PX_CI: return port->ci;
    default: return 0;
    }
}
