/*
 * Where things are in the guest's physical address space.
 *
 *   0 .. 640 KiB             RAM; the boot loaders put their tables here (BOOT_* below)
 *   0xe0000 .. 1 MiB         ACPI tables, reserved
 *   1 MiB .. RAM_LOW_MAX     RAM
 *   0xb0000000               PCI configuration space (ECAM), then BARs, chips, local APICs
 *   4 GiB ..                 the rest of RAM, then 64-bit BARs
 *
 * The map is plain data: it is what e820, hvm_start_info and multiboot's memory map are made from.
 */
#ifndef BOARD_MEMORY_MAP_H
#define BOARD_MEMORY_MAP_H

#include "base/types.h"
#include "core/memory.h"

#define RAM_LOW_MAX 0xb0000000ull
#define RAM_HIGH    0x100000000ull
#define RAM_MINIMUM 0x200000ull /* 2 MiB */

#define ACPI_AREA      0xe0000u
#define ACPI_AREA_SIZE 0x20000u

/* Below 640 KiB, what a loader leaves for the kernel it starts. */
#define BOOT_GDT         0x500u
#define BOOT_PAGE_TABLES 0x2000u /* 6 pages */
#define BOOT_PARAMS      0x10000u /* Linux's zero page, hvm_start_info, or multiboot's */
#define BOOT_PARAMS_SIZE 0x10000u
#define BOOT_CMDLINE     0x20000u
#define BOOT_CMDLINE_MAX 0x10000u
#define BOOT_LOW_END     0x9fc00u /* end of base memory, where a BIOS would have its data area */
#define BOOT_IMAGE_LOW   0x100000u /* images are loaded from here on */

enum memory_type { /* numbers of e820 and hvm_memmap */
    MEMORY_RAM = 1,
    MEMORY_RESERVED = 2,
    MEMORY_ACPI = 3,
};

struct memory_range {
    uint64_t base;
    uint64_t size;
    enum memory_type type;
};

#define MEMORY_RANGES_MAX 8u

struct memory_map {
    struct memory_range range[MEMORY_RANGES_MAX]; /* sorted, no overlap */
    unsigned count;
    uint64_t low_end;  /* end of RAM below 4 GiB */
    uint64_t high_end; /* end of RAM above 4 GiB, or 4 GiB when there is none */
    uint64_t mmio64_base, mmio64_end; /* window for 64-bit BARs; empty when it does not fit */
};

/* `ram`: bytes, page aligned, at least RAM_MINIMUM. `phys_bits`: the guest's address width. */
void memory_map_init(struct memory_map *map, uint64_t ram, unsigned phys_bits);

/* Adds the RAM slots that the map describes. */
nodiscard int memory_map_add_ram(const struct memory_map *map, struct mem *mem, struct error *err);

#endif
