/*
 * What the machine says of itself in SMBIOS structures. Source: DMTF DSP0134 2.8: entry
 * point 5.2.1, structures 7. Firmware is handed the structures and an entry point that lacks their
 * address, and adds what describes itself (type 0).
 */
#ifndef BOARD_SMBIOS_H
#define BOARD_SMBIOS_H

#include "board/memory_map.h"

#define SMBIOS_TABLES_MAX 16384u
#define SMBIOS_ANCHOR     31u

struct smbios_config {
    const char *name; /* of the machine; its UUID is made from it */
    unsigned cpus;
    uint32_t cpu_signature; /* CPUID leaf 1 EAX and EDX */
    uint32_t cpu_features;
    uint64_t memory; /* bytes */
    const struct memory_map *map;
};

struct smbios {
    uint8_t tables[SMBIOS_TABLES_MAX];
    uint32_t size;
    uint16_t count, largest; /* structures; bytes of the largest one */
    uint8_t anchor[SMBIOS_ANCHOR];
};

void smbios_build(const struct smbios_config *config, struct smbios *smbios);

#endif
