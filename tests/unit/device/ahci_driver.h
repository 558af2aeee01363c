/*
 * A small AHCI driver that lives in the test: it finds the adapter through ECAM, programs its
 * ports, and builds command lists and tables in guest memory, like a guest would.
 */
#ifndef TESTS_UNIT_DEVICE_AHCI_DRIVER_H
#define TESTS_UNIT_DEVICE_AHCI_DRIVER_H

#include "virtio_driver.h"

/* Where a port's structures are in guest memory. */
#define AHCI_LIST(port)        (0x20000u + (port)*0x400u)
#define AHCI_FIS(port)         (0x30000u + (port)*0x100u)
#define AHCI_TABLE(port, slot) (0x40000u + (port)*0x20000u + (slot)*0x1000u)

struct ahci_driver {
    struct driver d;
    struct mem *mem;
    uint64_t abar;
};

/* One command. The H2D FIS is made of it. */
struct ahci_issue {
    uint8_t command, device, control;
    bool is_control; /* a FIS without the C bit */
    uint16_t feature, count;
    uint64_t lba;
    const uint8_t *cdb; /* 12 bytes: the ATAPI bit is set */
    uint16_t flags;     /* more of the command header's */
};

struct ahci_prd {
    uint64_t addr;
    uint32_t len; /* bytes; with AHCI_PRD_INTERRUPT */
};
#define AHCI_PRD_INTERRUPT 0x80000000u

void ahci_driver_init(struct ahci_driver *a, struct driver_machine *dm, unsigned slot);
uint32_t ahci_read(struct ahci_driver *a, unsigned reg);
void ahci_write(struct ahci_driver *a, unsigned reg, uint32_t value);
uint32_t ahci_port_get(struct ahci_driver *a, unsigned port, unsigned reg);
void ahci_port_set(struct ahci_driver *a, unsigned port, unsigned reg, uint32_t value);

void ahci_msi_enable(struct ahci_driver *a, uint16_t data);
/* Addresses, FRE, ST, all interrupts. */
void ahci_port_start(struct ahci_driver *a, unsigned port);
void ahci_build(struct ahci_driver *a, unsigned port, unsigned slot, const struct ahci_issue *issue,
                const struct ahci_prd *prd, unsigned count);
/* Builds, then writes PxSACT for the queued ones and PxCI. */
void ahci_issue(struct ahci_driver *a, unsigned port, unsigned slot, const struct ahci_issue *issue,
                const struct ahci_prd *prd, unsigned count);

#endif
