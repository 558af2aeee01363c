#include "board/acpi/loader.h"

#include <string.h>

#define LOADER_ALLOCATE     1u
#define LOADER_ADD_POINTER  2u
#define LOADER_ADD_CHECKSUM 3u
#define LOADER_ZONE_HIGH    1u
#define LOADER_ZONE_FSEG    2u /* where guests scan for the RSDP */
#define LOADER_NAME         56u

#define TABLES_ALIGNMENT   64u
#define RSDP_ALIGNMENT     16u
#define RSDP_RSDT          16u /* ACPI 6.4, 5.2.5.3 */
#define RSDP_XSDT          24u
#define RSDP_CHECKSUM      8u /* of the first 20 bytes */
#define RSDP_CHECKSUM_SIZE 20u
#define RSDP_EXTENDED      32u /* of all */
#define TABLE_CHECKSUM     9u  /* 5.2.6 */

struct loader_allocate {
    uint32_t command;
    char file[LOADER_NAME];
    uint32_t alignment;
    uint8_t zone;
} __attribute__((packed));

struct loader_pointer { /* at `offset` of `file` a pointer of `size` bytes into `source` */
    uint32_t command;
    char file[LOADER_NAME], source[LOADER_NAME];
    uint32_t offset;
    uint8_t size;
} __attribute__((packed));

struct loader_checksum {
    uint32_t command;
    char file[LOADER_NAME];
    uint32_t offset, start, length;
} __attribute__((packed));

static void loader_command(struct acpi_loader *loader, const void *command, size_t size)
{
    BUG_ON(loader->commands == ACPI_LOADER_MAX || size > ACPI_LOADER_ENTRY);
    memcpy(loader->script[loader->commands++], command, size);
}

static void loader_allocate(struct acpi_loader *loader, const char *file, uint32_t alignment,
                            uint8_t zone)
{
    struct loader_allocate command = {
        .command = LOADER_ALLOCATE, .alignment = alignment, .zone = zone};

    strncpy(command.file, file, LOADER_NAME - 1);
    loader_command(loader, &command, sizeof(command));
}

static void loader_pointer(struct acpi_loader *loader, const char *file, uint32_t offset,
                           uint8_t size)
{
    struct loader_pointer command = {.command = LOADER_ADD_POINTER, .offset = offset, .size = size};

    strncpy(command.file, file, LOADER_NAME - 1);
    strncpy(command.source, ACPI_LOADER_TABLES, LOADER_NAME - 1);
    loader_command(loader, &command, sizeof(command));
}

/* The byte must be 0 before: OVMF sums it up with the others. */
static void loader_checksum(struct acpi_loader *loader, const char *file, uint32_t offset,
                            uint32_t start, uint32_t length)
{
    struct loader_checksum command = {
        .command = LOADER_ADD_CHECKSUM, .offset = offset, .start = start, .length = length};

    strncpy(command.file, file, LOADER_NAME - 1);
    loader_command(loader, &command, sizeof(command));
}

/* From an address in ACPI_AREA to an offset in the blob. */
static void loader_make_relative(uint8_t *at, uint8_t size)
{
    uint64_t value = 0;

    memcpy(&value, at, size);
    value -= ACPI_AREA;
    memcpy(at, &value, size);
}

static bool loader_has_checksum(const struct acpi_table_place *place)
{
    return strcmp(place->signature, "FACS") != 0;
}

void acpi_loader_build(const struct acpi_tables *tables, struct acpi_loader *loader)
{
    memset(loader, 0, sizeof(*loader));
    /* The RSDP is at the image's start, and a blob of its own: what is left of it there is nothing.
     */
    memcpy(loader->rsdp, tables->image, ACPI_RSDP_SIZE);
    memcpy(loader->tables, tables->image, tables->used);
    memset(loader->tables, 0, ACPI_RSDP_SIZE);
    loader->tables_size = tables->used;

    loader_allocate(loader, ACPI_LOADER_TABLES, TABLES_ALIGNMENT, LOADER_ZONE_HIGH);
    loader_allocate(loader, ACPI_LOADER_RSDP, RSDP_ALIGNMENT, LOADER_ZONE_FSEG);
    for (unsigned i = 0; i < tables->pointer_count; i++) {
        const struct acpi_pointer *pointer = &tables->pointers[i];

        loader_make_relative(loader->tables + pointer->offset, pointer->size);
        loader_pointer(loader, ACPI_LOADER_TABLES, pointer->offset, pointer->size);
    }
    for (unsigned i = 0; i < tables->count; i++) {
        const struct acpi_table_place *place = &tables->tables[i];

        if (!loader_has_checksum(place))
            continue;
        loader->tables[place->offset + TABLE_CHECKSUM] = 0;
        loader_checksum(loader, ACPI_LOADER_TABLES, place->offset + TABLE_CHECKSUM, place->offset,
                        place->length);
    }
    loader_make_relative(loader->rsdp + RSDP_RSDT, 4);
    loader_pointer(loader, ACPI_LOADER_RSDP, RSDP_RSDT, 4);
    loader_make_relative(loader->rsdp + RSDP_XSDT, 8);
    loader_pointer(loader, ACPI_LOADER_RSDP, RSDP_XSDT, 8);
    loader->rsdp[RSDP_CHECKSUM] = 0;
    loader->rsdp[RSDP_EXTENDED] = 0;
    loader_checksum(loader, ACPI_LOADER_RSDP, RSDP_CHECKSUM, 0, RSDP_CHECKSUM_SIZE);
    loader_checksum(loader, ACPI_LOADER_RSDP, RSDP_EXTENDED, 0, ACPI_RSDP_SIZE);
}
