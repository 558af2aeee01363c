/*
 * A small virtio driver that lives in the test: it finds the device through ECAM, programs it through
 * its BARs, and builds rings in guest memory, like a guest would.
 */
#ifndef TESTS_UNIT_DEVICE_VIRTIO_DRIVER_H
#define TESTS_UNIT_DEVICE_VIRTIO_DRIVER_H

#include "device/pci.h"

#define DRIVER_RAM   (8u << 20)
#define DRIVER_QUEUE 16u          /* entries */
#define DRIVER_RINGS 0x10000u     /* 64 KiB a queue from here */
#define DRIVER_DATA  0x100000u    /* free for tests */
#define DRIVER_MSIS  64u

struct driver_machine {
    struct machine *machine;
    struct pci_host *host;
    _Atomic unsigned msi_count[DRIVER_MSIS]; /* by data */
    _Atomic int gsi_level[GSI_COUNT];
};

void driver_machine_init(struct driver_machine *dm);
void driver_machine_release(struct driver_machine *dm);

struct driver {
    struct machine *machine;
    unsigned slot;
    uint64_t bar0, bar2;
    uint64_t desc[4], avail[4], used[4]; /* of each queue */
    uint16_t avail_idx[4], used_idx[4];
};

uint64_t driver_config_read(struct driver *d, unsigned offset, unsigned size);
void driver_config_write(struct driver *d, unsigned offset, unsigned size, uint64_t value);
uint64_t driver_read(struct driver *d, unsigned offset, unsigned size); /* BAR 0 */
void driver_write(struct driver *d, unsigned offset, unsigned size, uint64_t value);

/* Up to FEATURES_OK, with `features` of what is offered; MSI-X vector q + 1 for queue q when `msix`. */
void driver_init(struct driver *d, struct driver_machine *dm, unsigned slot, uint64_t features,
                 bool msix);
void driver_queue_setup(struct driver *d, unsigned queue, bool msix);
void driver_ok(struct driver *d);
uint8_t driver_status(struct driver *d);

void driver_desc(struct driver *d, unsigned queue, unsigned index, uint64_t addr, uint32_t len,
                 uint16_t flags, uint16_t next);
void driver_desc_at(struct driver *d, uint64_t table, unsigned index, uint64_t addr, uint32_t len,
                    uint16_t flags, uint16_t next);
void driver_offer(struct driver *d, unsigned queue, uint16_t head); /* without a doorbell */
void driver_kick(struct driver *d, unsigned queue);
/* Waits up to 10 s for the next used entry; false when none came. */
bool driver_wait(struct driver *d, unsigned queue, uint32_t *id, uint32_t *len);

#define D_NEXT     1u
#define D_WRITE    2u
#define D_INDIRECT 4u
#define F_INDIRECT  (1ull << 28)
#define F_EVENT_IDX (1ull << 29)
#define F_VERSION_1 (1ull << 32)

#endif
