/*
 * The ACPI tables in the form in which firmware is given them: blobs with offsets where addresses
 * will be, and a script of commands that places the blobs, adds their addresses and makes the
 * checksums again. Source: QEMU's hw/acpi/bios-linker-loader documentation of "etc/table-loader",
 * as SeaBIOS and OVMF execute it.
 */
#ifndef BOARD_ACPI_LOADER_H
#define BOARD_ACPI_LOADER_H

#include "board/acpi/acpi.h"

#define ACPI_LOADER_RSDP   "etc/acpi/rsdp"
#define ACPI_LOADER_TABLES "etc/acpi/tables"
#define ACPI_LOADER_SCRIPT "etc/table-loader"

#define ACPI_LOADER_ENTRY 128u /* bytes of a command */
#define ACPI_LOADER_MAX   (4u + ACPI_POINTERS_MAX + ACPI_TABLES_MAX + 2u)

struct acpi_loader {
    uint8_t rsdp[ACPI_RSDP_SIZE];
    uint8_t tables[ACPI_AREA_SIZE];
    uint32_t tables_size;
    uint8_t script[ACPI_LOADER_MAX][ACPI_LOADER_ENTRY];
    unsigned commands;
};

void acpi_loader_build(const struct acpi_tables *tables, struct acpi_loader *loader);

#endif
