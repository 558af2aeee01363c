#include "board/memory_map.h"

#include "device/pci.h"

#define GIB (1ull << 30)

static void memory_map_add(struct memory_map *map, uint64_t base, uint64_t end,
                           enum memory_type type)
{
    BUG_ON(map->count == MEMORY_RANGES_MAX);
    if (end > base)
        map->range[map->count++] = (struct memory_range){base, end - base, type};
}

static void memory_map_set_mmio64(struct memory_map *map, unsigned phys_bits)
{
    uint64_t limit = phys_bits < 52 ? 1ull << phys_bits : 1ull << 52;
    uint64_t base = align_up(map->high_end, GIB);
    uint64_t end = align_up(base + 1, PCI_MMIO64_TOP);

    map->mmio64_base = base;
    map->mmio64_end = end < limit ? end : limit;
    if (map->mmio64_end < base)
        map->mmio64_end = base;
}

void memory_map_init(struct memory_map *map, uint64_t ram, unsigned phys_bits)
{
    *map = (struct memory_map){0};
    map->low_end = ram < RAM_LOW_MAX ? ram : RAM_LOW_MAX;
    map->high_end = RAM_HIGH + (ram - map->low_end);

    memory_map_add(map, 0, BOOT_LOW_END, MEMORY_RAM);
    memory_map_add(map, BOOT_LOW_END, 0xa0000, MEMORY_RESERVED);
    memory_map_add(map, ACPI_AREA, ACPI_AREA + ACPI_AREA_SIZE, MEMORY_RESERVED);
    memory_map_add(map, BOOT_IMAGE_LOW, map->low_end, MEMORY_RAM);
    /* Linux takes ECAM into use only where the map or the DSDT reserves it. */
    memory_map_add(map, PCI_ECAM_BASE, PCI_ECAM_BASE + PCI_ECAM_SIZE, MEMORY_RESERVED);
    memory_map_add(map, RAM_HIGH, map->high_end, MEMORY_RAM);
    memory_map_set_mmio64(map, phys_bits);
}

int memory_map_add_ram(const struct memory_map *map, struct mem *mem, struct error *err)
{
    int r = mem_add_ram(mem, 0, map->low_end, err);

    if (r == 0 && map->high_end > RAM_HIGH)
        r = mem_add_ram(mem, RAM_HIGH, map->high_end - RAM_HIGH, err);
    return r;
}
