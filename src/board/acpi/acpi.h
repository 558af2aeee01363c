/*
 * The ACPI tables of the PC. Source: ACPI 6.4 chapter 5; PCI Firmware 3.2 4.1.2 (MCFG).
 * Made from the configuration alone, so that they can be looked at without a machine.
 */
#ifndef BOARD_ACPI_ACPI_H
#define BOARD_ACPI_ACPI_H

#include "board/memory_map.h"

#define ACPI_PM_BASE   0x600u /* I/O port of the fixed hardware (chip/acpi_pm.h) */
#define ACPI_SCI       9u
#define ACPI_TABLES_MAX 8u
#define ACPI_POINTERS_MAX 16u
#define ACPI_RSDP_SIZE    36u

struct acpi_config {
    unsigned cpus;
    const struct memory_map *map; /* borrowed */
    bool has_i8042;
};

struct acpi_tables {
    uint8_t image[ACPI_AREA_SIZE]; /* goes to ACPI_AREA */
    uint32_t used;
    gpa_t rsdp;
    struct acpi_table_place {
        char signature[5];
        uint32_t offset, length; /* in image */
    } tables[ACPI_TABLES_MAX];
    unsigned count;
    struct acpi_pointer { /* the addresses in the image, for who puts it elsewhere; not the RSDP's */
        uint32_t offset;  /* in image */
        uint8_t size;
    } pointers[ACPI_POINTERS_MAX];
    unsigned pointer_count;
};

/* -ENOSPC when the area is too small (more vCPUs than it can describe). */
nodiscard int acpi_build(const struct acpi_config *config, struct acpi_tables *tables);

/* Writes each table to DIR/SIGNATURE.dat, lower case, for iasl. */
nodiscard int acpi_dump(const struct acpi_tables *tables, const char *directory,
                        struct error *err);

#endif
