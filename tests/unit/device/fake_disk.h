/*
 * A disk in host memory for tests of what uses disks: it can hold requests until told to finish
 * them, fail them, and it counts. Requests outside it, or that a device must never make, end the
 * test.
 */
#ifndef TESTS_UNIT_DEVICE_FAKE_DISK_H
#define TESTS_UNIT_DEVICE_FAKE_DISK_H

#include "block/block.h"

#define FAKE_DISK_HELD 64u

struct fake_disk {
    struct block block;
    uint8_t *bytes; /* owned; sector n starts as bytes of (uint8_t)(n + 1) */
    bool hold;      /* requests wait for fake_disk_finish */
    int result;     /* what requests end with */
    unsigned count[BLOCK_WRITE_ZEROES + 1]; /* requests, by operation */
    uint64_t discarded;                     /* bytes */
    struct block_request *held[FAKE_DISK_HELD];
    unsigned held_count;
    bool *closed; /* set to true when closed; or NULL */
};

struct fake_disk *fake_disk_create(uint64_t size);
/* Finishes the held request with this index; later ones move up. */
void fake_disk_finish(struct fake_disk *disk, unsigned index);

#endif
