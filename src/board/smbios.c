#include "board/smbios.h"

#include <string.h>

#define KIB 1024ull
#define MIB (1024 * KIB)

#define MEMORY_DEVICE_MAX 0x7fffull /* MiB that a type 17 says in 16 bits */

#define HANDLE_SYSTEM  0x100u
#define HANDLE_CHASSIS 0x300u
#define HANDLE_CPU     0x400u
#define HANDLE_ARRAY   0x1000u
#define HANDLE_DEVICE  0x1100u
#define HANDLE_MAPPED  0x1300u
#define HANDLE_BOOT    0x2000u
#define HANDLE_END     0x7f00u

#define UNKNOWN_WORD 0xfffeu /* "no such": handles that are not provided are FFFEh or FFFFh */
#define NO_HANDLE    0xffffu

struct smbios_header {
    uint8_t type, length;
    uint16_t handle;
} __attribute__((packed));

struct smbios_system { /* 7.2 */
    struct smbios_header header;
    uint8_t manufacturer, product, version, serial;
    uint8_t uuid[16];
    uint8_t wake_up, sku, family;
} __attribute__((packed));

struct smbios_chassis { /* 7.4 */
    struct smbios_header header;
    uint8_t manufacturer, type, version, serial, asset;
    uint8_t boot_state, power_state, thermal_state, security;
    uint32_t oem;
    uint8_t height, cords, elements, element_length, sku;
} __attribute__((packed));

struct smbios_processor { /* 7.5, up to 2.6 */
    struct smbios_header header;
    uint8_t socket, type, family, manufacturer;
    uint32_t signature, features;
    uint8_t version, voltage;
    uint16_t clock, max_speed, speed;
    uint8_t status, upgrade;
    uint16_t cache[3];
    uint8_t serial, asset, part, cores, enabled, threads;
    uint16_t characteristics, family2;
} __attribute__((packed));

struct smbios_array { /* 7.17 */
    struct smbios_header header;
    uint8_t location, use, correction;
    uint32_t capacity;
    uint16_t error_handle, devices;
    uint64_t extended_capacity;
} __attribute__((packed));

struct smbios_device { /* 7.18, up to 2.8 */
    struct smbios_header header;
    uint16_t array, error_handle, total_width, data_width, size;
    uint8_t form, set, locator, bank, type;
    uint16_t detail, speed;
    uint8_t manufacturer, serial, asset, part, attributes;
    uint32_t extended_size;
    uint16_t configured_speed, minimum_voltage, maximum_voltage, configured_voltage;
} __attribute__((packed));

struct smbios_mapped { /* 7.20 */
    struct smbios_header header;
    uint32_t first, last; /* KiB */
    uint16_t array;
    uint8_t width;
    uint64_t extended_first, extended_last; /* bytes */
} __attribute__((packed));

struct smbios_boot { /* 7.33 */
    struct smbios_header header;
    uint8_t reserved[6], status;
} __attribute__((packed));

struct smbios_entry { /* 5.2.1 */
    char anchor[4];
    uint8_t checksum, length, major, minor;
    uint16_t largest;
    uint8_t revision, formatted[5];
    char anchor2[5];
    uint8_t checksum2;
    uint16_t table_length;
    uint32_t table_address;
    uint16_t count;
    uint8_t bcd;
} __attribute__((packed));

_Static_assert(sizeof(struct smbios_system) == 27 && sizeof(struct smbios_chassis) == 22 &&
                   sizeof(struct smbios_processor) == 42 && sizeof(struct smbios_array) == 23 &&
                   sizeof(struct smbios_device) == 40 && sizeof(struct smbios_mapped) == 31 &&
                   sizeof(struct smbios_boot) == 11 && sizeof(struct smbios_entry) == SMBIOS_ANCHOR,
               "as in DSP0134");

/* A structure: its fixed part, its strings one after the other, an empty string (6.1.3). */
static void smbios_add(struct smbios *smbios, void *structure, uint8_t type, size_t length,
                       unsigned handle, const char *const strings[])
{
    struct smbios_header *header = structure;
    uint32_t start = smbios->size;

    header->type = type;
    header->length = (uint8_t)length;
    header->handle = (uint16_t)handle;
    memcpy(smbios->tables + smbios->size, structure, length);
    smbios->size += (uint32_t)length;
    for (unsigned i = 0; strings && strings[i]; i++) {
        size_t len = strlen(strings[i]) + 1;

        BUG_ON(smbios->size + len + 2 > SMBIOS_TABLES_MAX);
        memcpy(smbios->tables + smbios->size, strings[i], len);
        smbios->size += (uint32_t)len;
    }
    if (!strings)
        smbios->tables[smbios->size++] = 0;
    smbios->tables[smbios->size++] = 0;
    smbios->count++;
    if (smbios->size - start > smbios->largest)
        smbios->largest = (uint16_t)(smbios->size - start);
    BUG_ON(smbios->size + 512 > SMBIOS_TABLES_MAX);
}

/* The same for the same name (FNV-1a, twice), marked as a custom UUID (RFC 9562, version 8). */
static void smbios_uuid(const char *name, uint8_t uuid[16])
{
    uint64_t hash = 14695981039346656037ull;

    for (unsigned half = 0; half < 2; half++) {
        for (const char *c = name; *c; c++)
            hash = (hash ^ (uint8_t)*c) * 1099511628211ull;
        hash = (hash ^ (half + 1)) * 1099511628211ull;
        memcpy(uuid + 8 * half, &hash, 8);
    }
    uuid[7] = (uint8_t)((uuid[7] & 0x0f) | 0x80); /* the third field is little-endian here */
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

static void smbios_add_system(const struct smbios_config *config, struct smbios *smbios)
{
    struct smbios_system system = {.manufacturer = 1,
                                   .product = 2,
                                   .version = 3,
                                   .serial = 4,
                                   .wake_up = 6 /* power switch */};
    struct smbios_chassis chassis = {.manufacturer = 1,
                                     .type = 1, /* other */
                                     .version = 2,
                                     .boot_state = 3,
                                     .power_state = 3,
                                     .thermal_state = 3,
                                     .security = 2};
    const char *const strings[] = {"Lodge", "Lodge PC (Q35)", LODGE_VERSION, "0", NULL};
    const char *const chassis_strings[] = {"Lodge", LODGE_VERSION, NULL};

    smbios_uuid(config->name, system.uuid);
    smbios_add(smbios, &system, 1, sizeof(system), HANDLE_SYSTEM, strings);
    smbios_add(smbios, &chassis, 3, sizeof(chassis), HANDLE_CHASSIS, chassis_strings);
}

/* As the guest's topology has it: one socket, a core for each vCPU. */
static void smbios_add_processor(const struct smbios_config *config, struct smbios *smbios)
{
    struct smbios_processor processor = {
        .socket = 1,
        .type = 3,   /* central */
        .family = 1, /* other */
        .manufacturer = 2,
        .signature = config->cpu_signature,
        .features = config->cpu_features,
        .version = 3,
        .status = 0x41, /* populated, enabled */
        .upgrade = 1,
        .cache = {NO_HANDLE, NO_HANDLE, NO_HANDLE},
        .cores = (uint8_t)config->cpus,
        .enabled = (uint8_t)config->cpus,
        .threads = (uint8_t)config->cpus,
        .characteristics = 0x0c, /* 64-bit, multi-core */
        .family2 = 1,
    };
    const char *const strings[] = {"CPU 0", "Lodge", "virtual", NULL};

    smbios_add(smbios, &processor, 4, sizeof(processor), HANDLE_CPU, strings);
}

static void smbios_add_mapped(struct smbios *smbios, unsigned index, uint64_t base, uint64_t end)
{
    bool wide = end / KIB > UINT32_MAX - 1;
    struct smbios_mapped mapped = {
        .first = wide ? UINT32_MAX : (uint32_t)(base / KIB),
        .last = wide ? UINT32_MAX : (uint32_t)(end / KIB - 1),
        .array = HANDLE_ARRAY,
        .width = 1,
        .extended_first = wide ? base : 0,
        .extended_last = wide ? end - 1 : 0,
    };

    smbios_add(smbios, &mapped, 19, sizeof(mapped), HANDLE_MAPPED + index, NULL);
}

static void smbios_add_memory(const struct smbios_config *config, struct smbios *smbios)
{
    uint64_t mib = (config->memory + MIB - 1) / MIB;
    bool wide = config->memory / KIB >= 0x80000000ull;
    struct smbios_array array = {
        .location = 1,
        .use = 3,        /* system memory */
        .correction = 3, /* none */
        .capacity = wide ? 0x80000000u : (uint32_t)(config->memory / KIB),
        .error_handle = UNKNOWN_WORD,
        .devices = 1,
        .extended_capacity = wide ? config->memory : 0,
    };
    struct smbios_device device = {
        .array = HANDLE_ARRAY,
        .error_handle = UNKNOWN_WORD,
        .total_width = 64,
        .data_width = 64,
        .size = mib >= MEMORY_DEVICE_MAX ? MEMORY_DEVICE_MAX : (uint16_t)mib,
        .form = 9, /* DIMM */
        .locator = 1,
        .type = 7, /* RAM */
        .detail = 2,
        .manufacturer = 2,
        .extended_size = mib >= MEMORY_DEVICE_MAX ? (uint32_t)mib : 0,
    };
    const char *const strings[] = {"DIMM 0", "Lodge", NULL};

    smbios_add(smbios, &array, 16, sizeof(array), HANDLE_ARRAY, NULL);
    smbios_add(smbios, &device, 17, sizeof(device), HANDLE_DEVICE, strings);
    smbios_add_mapped(smbios, 0, 0, config->map->low_end);
    if (config->map->high_end > RAM_HIGH)
        smbios_add_mapped(smbios, 1, RAM_HIGH, config->map->high_end);
}

static uint8_t smbios_negative_sum(const void *data, size_t len)
{
    const uint8_t *bytes = data;
    uint8_t sum = 0;

    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + bytes[i]);
    return (uint8_t)-sum;
}

/* Firmware puts the address in and makes the sums again. */
static void smbios_make_anchor(struct smbios *smbios)
{
    struct smbios_entry entry = {.length = sizeof(entry),
                                 .major = 2,
                                 .minor = 8,
                                 .largest = smbios->largest,
                                 .table_length = (uint16_t)smbios->size,
                                 .count = smbios->count,
                                 .bcd = 0x28};

    memcpy(entry.anchor, "_SM_", 4);
    memcpy(entry.anchor2, "_DMI_", 5);
    entry.checksum2 = smbios_negative_sum(entry.anchor2, 15);
    entry.checksum = smbios_negative_sum(&entry, sizeof(entry));
    memcpy(smbios->anchor, &entry, sizeof(entry));
}

void smbios_build(const struct smbios_config *config, struct smbios *smbios)
{
    struct smbios_boot boot = {.status = 0};
    struct smbios_header end;

    memset(smbios, 0, sizeof(*smbios));
    smbios_add_system(config, smbios);
    smbios_add_processor(config, smbios);
    smbios_add_memory(config, smbios);
    smbios_add(smbios, &boot, 32, sizeof(boot), HANDLE_BOOT, NULL);
    smbios_add(smbios, &end, 127, sizeof(end), HANDLE_END, NULL);
    smbios_make_anchor(smbios);
}
