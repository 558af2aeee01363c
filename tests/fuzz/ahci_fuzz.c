/* The AHCI adapter with a disk, a CD-ROM drive and an empty port, under a hostile driver. */
#include <stdlib.h>
#include <string.h>

#include "../unit/device/ahci_driver.h"
#include "../unit/device/fake_disk.h"
#include "base/log.h"
#include "device/ahci/ahci.h"
#include "device_script.h"

#define DISK_SIZE 32768u
#define PRDS_MAX  12u

struct rig {
    struct driver_machine dm;
    struct ahci_driver a;
    struct ahci *hba;
    struct fake_disk *disk[2];
};

static struct fake_disk *rig_disk(void)
{
    struct fake_disk *disk = fake_disk_create(DISK_SIZE);

    memset(disk->bytes, 0x5a, DISK_SIZE);
    return disk;
}

static void rig_quiesce(void *opaque)
{
    struct rig *rig = opaque;

    for (unsigned i = 0; i < 2; i++) {
        rig->disk[i]->hold = false;
        while (rig->disk[i]->held_count)
            fake_disk_finish(rig->disk[i], 0);
    }
}

static void rig_start(void *opaque, struct driver *d)
{
    struct rig *rig = opaque;

    ahci_driver_init(&rig->a, &rig->dm, d->slot);
    d->bar0 = rig->a.abar;
    ahci_msi_enable(&rig->a, 3);
    ahci_write(&rig->a, 0x04, 2);
    for (unsigned port = 0; port < 3; port++) {
        ahci_port_set(&rig->a, port, 0x18, 0);
        ahci_port_set(&rig->a, port, 0x2c, 1);
        ahci_port_set(&rig->a, port, 0x2c, 0);
        ahci_port_start(&rig->a, port);
    }
}

/* A command that means something, with some fields that do not. */
static void rig_issue(struct rig *rig, const uint8_t *b)
{
    static const uint8_t commands[] = {0x60, 0x61, 0x25, 0x35, 0xc8, 0xca, 0x20, 0x30, 0xec, 0xa1,
                                       0x06, 0xef, 0xb0, 0x2f, 0xe7, 0xea, 0x3d, 0xe0, 0xe5, 0x90};
    unsigned port = b[1] % 3, slot = b[2] & 31, prds = b[3] % (PRDS_MAX + 1);
    struct ahci_issue issue = {
        .command = b[4] & 0x80 ? b[5] : commands[b[4] % sizeof(commands)],
        .device = (uint8_t)(0x40 | b[6]),
        .control = b[7] & 0xf0 ? 0 : b[7],
        .is_control = (b[7] & 0xf0) == 0x10,
        .feature = (uint16_t)(b[8] & 0x0f),
        .count = (uint16_t)(b[9] & 0x0f),
        .lba = b[10] | (uint64_t)(b[11] & 1) << 47,
        .flags = (uint16_t)((b[12] & 0x07) << 8),
        .cdb = b[13] & 1 ? &b[16] : NULL,
    };
    struct ahci_prd prd[PRDS_MAX];

    if (issue.cdb)
        issue.command = 0xa0;
    if ((issue.command & 0xfe) == 0x60 && b[14] & 7)
        issue.count = (uint16_t)(slot << 3);
    for (unsigned i = 0; i < prds; i++) {
        unsigned len = (b[28 + i] & 0x1f) + 1u;

        prd[i].addr =
            b[28 + i] == 0xff ? UINT64_MAX - 64 : DRIVER_DATA + i * 0x10000u + (b[15] & 3);
        prd[i].len = b[28 + i] & 0x80 ? len * 512 : len * 2;
    }
    if (b[13] & 2)
        ahci_build(&rig->a, port, slot, &issue, prd, prds);
    else
        ahci_issue(&rig->a, port, slot, &issue, prd, prds);
}

/* What happens on the host's side: completions in any order, errors, the operator. */
static void rig_host(struct rig *rig, const uint8_t *b)
{
    struct fake_disk *disk = rig->disk[b[1] & 1];

    switch (b[2] & 7) {
    case 0: disk->hold = true; break;
    case 1: disk->hold = false; break;
    case 2: disk->result = b[3] & 1 ? -5 : 0; break;
    case 3:
        rig_quiesce(rig); /* it waits for what is in flight */
        (void)!ahci_eject(rig->hba, 1);
        break;
    case 4:
        rig_quiesce(rig);
        rig->disk[1] = rig_disk();
        if (ahci_insert(rig->hba, 1, &rig->disk[1]->block))
            abort();
        break;
    case 5:
        rig_quiesce(rig);
        rig->disk[0] = rig_disk();
        ahci_unplug(rig->hba, 0);
        if (ahci_plug(rig->hba, 0, ATA_DISK, &rig->disk[0]->block, 0))
            abort();
        break;
    default:
        if (disk->held_count)
            fake_disk_finish(disk, b[3] % disk->held_count);
        break;
    }
}

static void rig_command(void *opaque, struct driver *d, const uint8_t *b)
{
    struct rig *rig = opaque;

    (void)d;
    if (b[0] & 0x80)
        rig_host(rig, b);
    else if (b[0] & 0x40)
        ahci_port_set(&rig->a, b[1] % 3, 4u * (b[2] % 16),
                      (uint32_t)(b[3] | b[4] << 8 | (uint32_t)b[5] << 24));
    else
        rig_issue(rig, b);
}

static const struct device_script_ops rig_ops = {
    .start = rig_start, .register_mask = 0x7ff, .command = rig_command, .quiesce = rig_quiesce};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rig rig = {0};

    log_set_level(LOG_ERROR);
    driver_machine_init(&rig.dm);
    rig.disk[0] = rig_disk();
    rig.disk[1] = rig_disk();
    if (ahci_create(rig.dm.host, -1, "ahci0", &rig.hba) ||
        ahci_plug(rig.hba, 0, ATA_DISK, &rig.disk[0]->block, 0) ||
        ahci_plug(rig.hba, 1, ATA_CD, &rig.disk[1]->block, 1))
        abort();
    device_script_run_own(&rig.dm, 1, &rig_ops, &rig, data, size);
    rig_quiesce(&rig);
    driver_machine_release(&rig.dm);
    return 0;
}
