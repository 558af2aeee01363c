#include "ahci_driver.h"

#include <string.h>

void ahci_driver_init(struct ahci_driver *a, struct driver_machine *dm, unsigned slot)
{
    *a = (struct ahci_driver){.d = {.machine = dm->machine, .slot = slot}, .mem = dm->machine->mem};
    pci_host_assign(dm->host);
    a->abar = driver_config_read(&a->d, 0x24, 4) & ~15ull;
}

uint32_t ahci_read(struct ahci_driver *a, unsigned reg)
{
    return (uint32_t)bus_read(a->d.machine->bus, BUS_MEMORY, a->abar + reg, 4);
}

void ahci_write(struct ahci_driver *a, unsigned reg, uint32_t value)
{
    bus_write(a->d.machine->bus, BUS_MEMORY, a->abar + reg, 4, value);
}

uint32_t ahci_port_get(struct ahci_driver *a, unsigned port, unsigned reg)
{
    return ahci_read(a, 0x100 + 0x80 * port + reg);
}

void ahci_port_set(struct ahci_driver *a, unsigned port, unsigned reg, uint32_t value)
{
    ahci_write(a, 0x100 + 0x80 * port + reg, value);
}

void ahci_msi_enable(struct ahci_driver *a, uint16_t data)
{
    for (unsigned cap = (unsigned)driver_config_read(&a->d, 0x34, 1); cap;
         cap = (unsigned)driver_config_read(&a->d, cap + 1, 1)) {
        if (driver_config_read(&a->d, cap, 1) != 0x05)
            continue;
        driver_config_write(&a->d, cap + 4, 4, 0xfee00000);
        driver_config_write(&a->d, cap + 8, 2, data);
        driver_config_write(&a->d, cap + 2, 2, 1);
    }
}

void ahci_port_start(struct ahci_driver *a, unsigned port)
{
    ahci_port_set(a, port, 0x00, AHCI_LIST(port));
    ahci_port_set(a, port, 0x04, 0);
    ahci_port_set(a, port, 0x08, AHCI_FIS(port));
    ahci_port_set(a, port, 0x0c, 0);
    ahci_port_set(a, port, 0x18, 0x10);
    ahci_port_set(a, port, 0x30, UINT32_MAX);
    ahci_port_set(a, port, 0x10, UINT32_MAX);
    ahci_write(a, 0x08, UINT32_MAX);
    ahci_port_set(a, port, 0x14, UINT32_MAX);
    ahci_port_set(a, port, 0x18, 0x11);
}

static void fis_make(const struct ahci_issue *issue, uint8_t fis[20])
{
    memset(fis, 0, 20);
    fis[0] = 0x27;
    fis[1] = issue->is_control ? 0 : 0x80;
    fis[2] = issue->command;
    fis[3] = (uint8_t)issue->feature;
    fis[11] = (uint8_t)(issue->feature >> 8);
    fis[7] = issue->device;
    for (unsigned i = 0; i < 3; i++) {
        fis[4 + i] = (uint8_t)(issue->lba >> (8 * i));
        fis[8 + i] = (uint8_t)(issue->lba >> (24 + 8 * i));
    }
    fis[12] = (uint8_t)issue->count;
    fis[13] = (uint8_t)(issue->count >> 8);
    fis[15] = issue->control;
}

void ahci_build(struct ahci_driver *a, unsigned port, unsigned slot, const struct ahci_issue *issue,
                const struct ahci_prd *prd, unsigned count)
{
    uint64_t header = AHCI_LIST(port) + slot * 32, table = AHCI_TABLE(port, slot);
    uint8_t fis[20];

    fis_make(issue, fis);
    mem_write32(a->mem, header,
                5u | (issue->cdb ? 0x20u : 0) | issue->flags | (uint32_t)count << 16);
    mem_write32(a->mem, header + 4, 0);
    mem_write64(a->mem, header + 8, table);
    (void)!mem_write(a->mem, table, fis, sizeof(fis));
    if (issue->cdb)
        (void)!mem_write(a->mem, table + 0x40, issue->cdb, 12);
    for (unsigned i = 0; i < count; i++) {
        mem_write64(a->mem, table + 0x80 + 16 * i, prd[i].addr);
        mem_write32(a->mem, table + 0x88 + 16 * i, 0);
        mem_write32(a->mem, table + 0x8c + 16 * i,
                    ((prd[i].len & ~AHCI_PRD_INTERRUPT) - 1) | (prd[i].len & AHCI_PRD_INTERRUPT));
    }
}

void ahci_issue(struct ahci_driver *a, unsigned port, unsigned slot, const struct ahci_issue *issue,
                const struct ahci_prd *prd, unsigned count)
{
    ahci_build(a, port, slot, issue, prd, count);
    if (issue->command == 0x60 || issue->command == 0x61)
        ahci_port_set(a, port, 0x34, 1u << slot);
    ahci_port_set(a, port, 0x38, 1u << slot);
}
