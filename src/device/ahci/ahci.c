#include "device/ahci/ahci.h"

#include <errno.h>
#include <stdlib.h>

#include "device/ahci/ahci_internal.h"
#include "device/pci_internal.h"

#define AHCI_BAR      5u
#define AHCI_BAR_SIZE 0x800u

/* Configuration space of ICH9's controller (data sheet, 15.1). */
#define ICH9_MSI_CAP  0x80u
#define ICH9_MAP      0x90u
#define ICH9_MAP_AHCI 0x40u
#define ICH9_PCS      0x92u /* port control and status: enabled, present */

/* Generic host control (3.1). */
#define HBA_CAP 0x00u
#define HBA_GHC 0x04u
#define HBA_IS  0x08u
#define HBA_PI  0x0cu
#define HBA_VS  0x10u

/* 64-bit addresses, queued commands, command list override, 3 Gb/s, no legacy interface, PIO
 * blocks, 32 slots. */
#define CAP_VALUE                                                                                  \
    (1u << 31 | 1u << 30 | 1u << 24 | 2u << 20 | 1u << 18 | 1u << 15 | (AHCI_SLOTS - 1) << 8 |     \
     (AHCI_PORTS - 1))
#define VS_VALUE  0x00010301u
#define GHC_AE    0x80000000u /* always on: there is no legacy interface */
#define GHC_IE    0x00000002u
#define GHC_HR    0x00000001u
#define PORTS_ALL ((1u << AHCI_PORTS) - 1)

/*
 * A port's bit in IS is set while it has an interrupt pending, and again after it was cleared too
 * early. With MSI one message is sent when the first appears, and when clearing IS has left some
 * (10.7.2).
 */
void ahci_interrupt_update(struct ahci *hba)
{
    bool level;

    for (unsigned i = 0; i < AHCI_PORTS; i++) {
        if (hba->port[i].is & hba->port[i].ie)
            hba->is |= 1u << i;
    }
    level = (hba->ghc & GHC_IE) && hba->is;
    if (!pci_msi_enabled(&hba->fn))
        pci_intx_set(&hba->fn, level);
    else if (level && !hba->level)
        pci_msi_notify(&hba->fn);
    hba->level = level;
}

static void hba_reset(struct ahci *hba, bool power)
{
    hba->ghc = GHC_AE;
    hba->is = 0;
    hba->level = false;
    hba->resetting = false;
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        ahci_port_reset(&hba->port[i], power);
    ahci_interrupt_update(hba);
}

void ahci_port_idle(struct ahci *hba)
{
    if (!hba->resetting)
        return;
    for (unsigned i = 0; i < AHCI_PORTS; i++) {
        if (hba->port[i].active)
            return;
    }
    hba_reset(hba, false);
}

/* Bit HR reads as 1 until nothing is in flight any more; meanwhile nothing else can be written
 * (10.4.3). */
static void hba_write_ghc(struct ahci *hba, uint32_t value)
{
    hba->ghc = GHC_AE | (value & GHC_IE);
    if (!(value & GHC_HR))
        return;
    hba->resetting = true;
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        hba->port[i].draining = hba->port[i].active != 0;
    ahci_port_idle(hba);
}

static uint32_t hba_read32(struct ahci *hba, unsigned reg)
{
    unsigned port = (reg - AHCI_PORT_BASE) / AHCI_PORT_SIZE;

    if (reg >= AHCI_PORT_BASE)
        return port < AHCI_PORTS ? ahci_port_read(&hba->port[port], reg % AHCI_PORT_SIZE) : 0;
    switch (reg) {
    case HBA_CAP: return CAP_VALUE;
    case HBA_GHC: return hba->ghc | (hba->resetting ? GHC_HR : 0);
    case HBA_IS: return hba->is;
    case HBA_PI: return PORTS_ALL;
    case HBA_VS: return VS_VALUE;
    default: return 0;
    }
}

static void hba_write32(struct ahci *hba, unsigned reg, uint32_t value)
{
    unsigned port = (reg - AHCI_PORT_BASE) / AHCI_PORT_SIZE;

    if (hba->resetting)
        return;
    if (reg >= AHCI_PORT_BASE) {
        if (port < AHCI_PORTS)
            ahci_port_write(&hba->port[port], reg % AHCI_PORT_SIZE, value);
        return;
    }
    if (reg == HBA_GHC)
        hba_write_ghc(hba, value);
    if (reg == HBA_IS) {
        hba->is &= ~value;
        hba->level = false;
    }
    ahci_interrupt_update(hba);
}

static uint64_t ahci_bar_read(void *opaque, uint64_t offset, unsigned size)
{
    struct ahci *hba = opaque;
    unsigned at = (unsigned)align_down(offset, 4);
    uint64_t value;

    device_lock(&hba->fn.dev);
    value = hba_read32(hba, at);
    if (offset + size > at + 4u)
        value |= (uint64_t)hba_read32(hba, at + 4) << 32;
    device_unlock(&hba->fn.dev);
    return value >> (8 * (offset - at)); /* the bus cuts it to size */
}

/* Registers whose bits act when one is written, and zero does nothing. */
static bool bits_act(unsigned reg)
{
    unsigned port_reg = reg % AHCI_PORT_SIZE;

    if (reg < AHCI_PORT_BASE)
        return reg == HBA_IS;
    return port_reg == PX_IS || port_reg == PX_SERR || port_reg == PX_SACT || port_reg == PX_CI;
}

/* A write of less than a register leaves the rest of it as it is. */
static uint32_t write_merged(struct ahci *hba, unsigned reg, unsigned shift, unsigned size,
                             uint32_t value)
{
    uint32_t mask = size < 4 ? ((1u << (8 * size)) - 1) << shift : UINT32_MAX;
    uint32_t rest = size < 4 && !bits_act(reg) ? hba_read32(hba, reg) : 0;

    return (rest & ~mask) | (value << shift & mask);
}

static void ahci_bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ahci *hba = opaque;
    unsigned reg = (unsigned)align_down(offset, 4), shift = 8 * (offset & 3);

    if (offset % size)
        return;
    device_lock(&hba->fn.dev);
    hba_write32(hba, reg, write_merged(hba, reg, shift, size, (uint32_t)value));
    if (size == 8)
        hba_write32(hba, (unsigned)offset + 4, (uint32_t)(value >> 32));
    ahci_submit(hba);
    device_unlock(&hba->fn.dev);
}

static const struct bus_ops ahci_bar_ops = {.read = ahci_bar_read, .write = ahci_bar_write};

/* MSI was switched on or off: what is asserted goes the new way. */
static void ahci_config_written(struct pci_function *fn, unsigned offset, unsigned size)
{
    struct ahci *hba = container_of(fn, struct ahci, fn);

    if (offset >= ICH9_MSI_CAP + 4 || offset + size <= ICH9_MSI_CAP)
        return;
    if (pci_msi_enabled(fn))
        pci_intx_set(fn, 0);
    hba->level = false;
    ahci_interrupt_update(hba);
}

/* Nothing new starts, and the back ends have nothing of ours any more. */
static void hba_quiesce(struct ahci *hba)
{
    for (unsigned i = 0; i < AHCI_PORTS; i++) {
        struct ahci_port *port = &hba->port[i];

        port->held = true;
        port->draining = port->active != 0;
        ahci_port_wait_idle(port);
    }
}

static void ahci_reset(struct device *dev)
{
    struct ahci *hba = container_of(dev, struct ahci, fn.dev);

    hba_quiesce(hba);
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        hba->port[i].held = false;
    pci_function_reset(&hba->fn);
    hba_reset(hba, true);
}

/* Commands under way are not part of the state: they are finished first. No vCPU runs that could
 * add to them. */
static void ahci_saving(struct device *dev)
{
    struct ahci *hba = container_of(dev, struct ahci, fn.dev);

    for (unsigned i = 0; i < AHCI_PORTS; i++)
        ahci_port_wait_idle(&hba->port[i]);
}

static int ahci_loaded(struct device *dev)
{
    struct ahci *hba = container_of(dev, struct ahci, fn.dev);
    int ret = pci_function_loaded(&hba->fn);

    if (ret)
        return ret;
    device_lock(dev);
    hba->level = false;
    ahci_interrupt_update(hba);
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        ahci_port_run(&hba->port[i]);
    ahci_submit(hba);
    device_unlock(dev);
    return 0;
}

/* Takes the drive out of a port that nothing uses any more. Without the lock: closing joins
 * threads. */
static void port_release_drive(struct ahci_port *port)
{
    ata_device_release(&port->drive);
    ahci_commands_destroy(port);
}

static void ahci_destroy(struct device *dev)
{
    struct ahci *hba = container_of(dev, struct ahci, fn.dev);

    device_lock(dev);
    hba_quiesce(hba);
    device_unlock(dev);
    for (unsigned i = 0; i < AHCI_PORTS; i++) {
        if (hba->port[i].command)
            port_release_drive(&hba->port[i]);
    }
    pthread_cond_destroy(&hba->idle);
    pci_function_release(&hba->fn);
    free(hba);
}

static const struct state_field ahci_fields[] = {
    STATE_STRUCT(struct ahci, fn, pci_function_state_fields),
    STATE_UINT(struct ahci, ghc),
    STATE_UINT(struct ahci, is),
    STATE_STRUCT_ARRAY(struct ahci, port, ahci_port_state_fields),
    STATE_FIELDS_END,
};

static const struct state_table ahci_state = {.name = "ahci", .version = 1, .fields = ahci_fields};

static const struct device_ops ahci_device_ops = {
    .type = "ahci",
    .reset = ahci_reset,
    .destroy = ahci_destroy,
    .saving = ahci_saving,
    .loaded = ahci_loaded,
    .state = &ahci_state,
};

static const struct pci_ids ahci_ids = {
    .vendor = 0x8086,
    .device = 0x2922,
    .subsystem_vendor = 0x1af4,
    .subsystem = 0x1100,
    .revision = 2,
    .class_code = {0x01, 0x06, 0x01},
};

static void ahci_config_init(struct pci_function *fn)
{
    fn->config[PCI_INTERRUPT_PIN] = 1;
    fn->cap_end = ICH9_MSI_CAP;
    pci_msi_init(fn);
    fn->config[ICH9_MAP] = ICH9_MAP_AHCI;
    fn->writable[ICH9_PCS] = PORTS_ALL;
    fn->config_written = ahci_config_written;
}

int ahci_create(struct pci_host *host, int devfn, const char *name, struct ahci **out)
{
    struct ahci *hba = calloc(1, sizeof(*hba));
    int ret;

    if (!hba)
        return -ENOMEM;
    hba->mem = pci_host_machine(host)->mem;
    pthread_cond_init(&hba->idle, NULL);
    for (unsigned i = 0; i < AHCI_PORTS; i++) {
        hba->port[i].hba = hba;
        hba->port[i].index = i;
        hba->port[i].ready_end = &hba->port[i].ready;
    }
    ret = pci_function_add(host, &hba->fn, devfn, &ahci_ids, &ahci_device_ops, name);
    if (ret) {
        pthread_cond_destroy(&hba->idle);
        free(hba);
        return ret;
    }
    ahci_config_init(&hba->fn);
    pci_bar_init(&hba->fn, AHCI_BAR, AHCI_BAR_SIZE, false, false, &ahci_bar_ops, hba);
    hba->fn.bar[AHCI_BAR].own_lock = true;
    hba_reset(hba, true);
    *out = hba;
    return 0;
}

int ahci_plug(struct ahci *hba, unsigned index, enum ata_kind kind, struct block *block,
              unsigned number)
{
    struct ahci_port *port = &hba->port[index];
    int ret = -EBUSY;

    BUG_ON(index >= AHCI_PORTS);
    device_lock(&hba->fn.dev);
    if (!port->command)
        ret = ahci_commands_create(port);
    if (ret) {
        device_unlock(&hba->fn.dev);
        block_close(block);
        return ret;
    }
    ret = ata_device_init(&port->drive, kind, block, number);
    if (ret) {
        ahci_commands_destroy(port);
    } else {
        port->present = true;
        hba->fn.config[ICH9_PCS + 1] |= (uint8_t)(1u << index);
        if ((port->sctl & PX_SCTL_DET) == 0)
            ahci_port_attach(port);
    }
    device_unlock(&hba->fn.dev);
    return ret;
}

void ahci_unplug(struct ahci *hba, unsigned index)
{
    struct ahci_port *port = &hba->port[index];

    BUG_ON(index >= AHCI_PORTS);
    device_lock(&hba->fn.dev);
    if (!port->present) {
        device_unlock(&hba->fn.dev);
        return;
    }
    port->present = false;
    hba->fn.config[ICH9_PCS + 1] &= (uint8_t) ~(1u << index);
    port->draining = port->active != 0;
    ahci_port_wait_idle(port);
    ahci_port_detach(port);
    device_unlock(&hba->fn.dev);
    port_release_drive(port);
}

/* The port's CD-ROM drive with nothing in flight, and the lock held; NULL: there is none. */
static struct scsi_cd *port_cd_hold(struct ahci_port *port)
{
    device_lock(&port->hba->fn.dev);
    if (!port->present || port->drive.kind != ATA_CD) {
        device_unlock(&port->hba->fn.dev);
        return NULL;
    }
    port->held = true;
    ahci_port_wait_idle(port);
    return &port->drive.cd;
}

static void port_cd_let_go(struct ahci_port *port)
{
    port->held = false;
    ahci_port_run(port);
    ahci_submit(port->hba);
    device_unlock(&port->hba->fn.dev);
}

int ahci_eject(struct ahci *hba, unsigned index)
{
    struct ahci_port *port = &hba->port[index];
    struct scsi_cd *cd;
    int ret;

    BUG_ON(index >= AHCI_PORTS);
    cd = port_cd_hold(port);
    if (!cd)
        return -ENODEV;
    ret = scsi_cd_eject(cd);
    port_cd_let_go(port);
    return ret;
}

int ahci_insert(struct ahci *hba, unsigned index, struct block *block)
{
    struct ahci_port *port = &hba->port[index];
    struct scsi_cd *cd;

    BUG_ON(index >= AHCI_PORTS);
    cd = port_cd_hold(port);
    if (!cd) {
        block_close(block);
        return -ENODEV;
    }
    scsi_cd_insert(cd, block);
    port_cd_let_go(port);
    return 0;
}
