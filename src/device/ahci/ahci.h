/*
 * AHCI host bus adapter, as the SATA controller of ICH9 in AHCI mode: six ports for disks and
 * CD-ROM drives. Source: Serial ATA AHCI 1.3.1; Intel ICH9 data sheet, chapter 15; Serial ATA 3.0,
 * 10 (FISes).
 *
 * The ports have 32 command slots, queued commands, and can be plugged while the machine runs.
 * There is no port multiplier, no command completion coalescing, no link power management. Links
 * come up by themselves: staggered spin-up is not offered.
 *
 * Threads: ahci_create and the first ahci_plug calls while the machine is wired; afterwards any
 * thread, without the device's lock, and not one that completes the I/O of these disks: calls wait
 * for it.
 */
#ifndef DEVICE_AHCI_AHCI_H
#define DEVICE_AHCI_AHCI_H

#include "device/ata/ata.h"
#include "device/pci.h"

#define AHCI_PORTS 6u

struct ahci;

/* At PCI_DEVFN devfn (< 0: function 0 of the first free slot). The machine owns it. */
nodiscard int ahci_create(struct pci_host *host, int devfn, const char *name, struct ahci **out);

/*
 * Plugs a drive into a free port (-EBUSY: not free). Takes ownership of block (ATA_CD: the medium
 * or NULL) also when it fails. `number` makes the drive's serial number. A running guest sees the
 * link come up.
 */
nodiscard int ahci_plug(struct ahci *hba, unsigned port, enum ata_kind kind, struct block *block,
                        unsigned number);

/* Pulls the drive out when its I/O in flight is done; its image is closed. Nothing happens to an
 * empty port. */
void ahci_unplug(struct ahci *hba, unsigned port);

/* The operator at the tray of a CD-ROM drive. -ENODEV: there is none; -EBUSY: the guest has locked
 * it. */
nodiscard int ahci_eject(struct ahci *hba, unsigned port);
/* Takes ownership of block (NULL: closes the empty tray) also when it fails. */
nodiscard int ahci_insert(struct ahci *hba, unsigned port, struct block *block);

#endif
