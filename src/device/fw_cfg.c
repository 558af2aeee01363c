#include "device/fw_cfg.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FW_CFG_PORTS         0x510u /* selector, data; the DMA address is at offset 4 */
#define FW_CFG_PORTS_LEN     12u
#define FW_CFG_DMA_PORT      4u
#define FW_CFG_DMA_SIGNATURE 0x51454d5520434647ull /* "QEMU CFG", as the register reads */

#define FW_CFG_ID_PORTS 0x1u
#define FW_CFG_ID_DMA   0x2u

/* FWCfgDmaAccess.control */
#define FW_CFG_DMA_ERROR  0x01u
#define FW_CFG_DMA_READ   0x02u
#define FW_CFG_DMA_SKIP   0x04u
#define FW_CFG_DMA_SELECT 0x08u
#define FW_CFG_DMA_WRITE  0x10u

#define FW_CFG_ITEMS_MAX (FW_CFG_FILES_MAX + 16u)

/* The directory's entries, big-endian. */
struct fw_cfg_entry {
    uint32_t size;
    uint16_t select, reserved;
    char name[FW_CFG_NAME_MAX];
} __attribute__((packed));

struct fw_cfg_dma {
    uint32_t control, length;
    uint64_t address;
} __attribute__((packed));

struct fw_cfg_item {
    uint16_t key;
    uint8_t *data; /* owned */
    size_t size;
};

struct fw_cfg {
    struct device dev;
    struct mem *mem; /* borrowed */
    struct fw_cfg_item item[FW_CFG_ITEMS_MAX];
    unsigned item_count;
    struct { /* the directory as the guest reads it */
        uint32_t count;
        struct fw_cfg_entry file[FW_CFG_FILES_MAX];
    } __attribute__((packed)) directory;
    unsigned file_count;
    /* Device lock. */
    uint16_t selected;
    uint32_t offset;  /* in the selected item */
    uint64_t address; /* of the DMA descriptor, as written so far */
};

static const struct fw_cfg_item *fw_cfg_find(const struct fw_cfg *fw, uint16_t key)
{
    for (unsigned i = 0; i < fw->item_count; i++) {
        if (fw->item[i].key == key)
            return &fw->item[i];
    }
    return NULL;
}

static size_t fw_cfg_bytes(const struct fw_cfg *fw, uint16_t key, const uint8_t **data)
{
    const struct fw_cfg_item *item;

    if (key == FW_CFG_FILE_DIR) {
        *data = (const uint8_t *)&fw->directory;
        return sizeof(fw->directory.count) + fw->file_count * sizeof(struct fw_cfg_entry);
    }
    item = fw_cfg_find(fw, key);
    *data = item ? item->data : NULL;
    return item ? item->size : 0;
}

int fw_cfg_add(struct fw_cfg *fw, uint16_t key, const void *data, size_t size)
{
    struct fw_cfg_item *item = &fw->item[fw->item_count];

    if (size > UINT32_MAX)
        return -E2BIG;
    if (key == FW_CFG_FILE_DIR || fw_cfg_find(fw, key))
        return -EEXIST;
    if (fw->item_count == FW_CFG_ITEMS_MAX)
        return -ENOSPC;
    *item = (struct fw_cfg_item){.key = key, .data = malloc(size ? size : 1), .size = size};
    if (!item->data)
        return -ENOMEM;
    memcpy(item->data, data, size);
    fw->item_count++;
    return 0;
}

static const struct fw_cfg_entry *fw_cfg_entry_find(const struct fw_cfg *fw, const char *name)
{
    for (unsigned i = 0; i < fw->file_count; i++) {
        if (strcmp(fw->directory.file[i].name, name) == 0)
            return &fw->directory.file[i];
    }
    return NULL;
}

int fw_cfg_add_file(struct fw_cfg *fw, const char *name, const void *data, size_t size)
{
    uint16_t key = (uint16_t)(FW_CFG_FILE_FIRST + fw->file_count);
    struct fw_cfg_entry *entry;
    int r;

    if (strlen(name) >= FW_CFG_NAME_MAX)
        return -ENAMETOOLONG;
    if (fw_cfg_entry_find(fw, name))
        return -EEXIST;
    if (fw->file_count == FW_CFG_FILES_MAX)
        return -ENOSPC;
    r = fw_cfg_add(fw, key, data, size);
    if (r < 0)
        return r;
    entry = &fw->directory.file[fw->file_count++];
    entry->size = __builtin_bswap32((uint32_t)size);
    entry->select = __builtin_bswap16(key);
    memcpy(entry->name, name, strlen(name));
    fw->directory.count = __builtin_bswap32(fw->file_count);
    return 0;
}

int fw_cfg_add_integer(struct fw_cfg *fw, uint16_t key, unsigned size, uint64_t value)
{
    BUG_ON(size > sizeof(value));
    return fw_cfg_add(fw, key, &value, size); /* the host is little-endian */
}

int fw_cfg_add_file_integer(struct fw_cfg *fw, const char *name, uint64_t value)
{
    return fw_cfg_add_file(fw, name, &value, sizeof(value));
}

const uint8_t *fw_cfg_file(const struct fw_cfg *fw, const char *name, size_t *size)
{
    const struct fw_cfg_entry *entry = fw_cfg_entry_find(fw, name);
    const uint8_t *data = NULL;

    *size = entry ? fw_cfg_bytes(fw, __builtin_bswap16(entry->select), &data) : 0;
    return data;
}

static uint8_t fw_cfg_next(struct fw_cfg *fw)
{
    const uint8_t *data;
    size_t size = fw_cfg_bytes(fw, fw->selected, &data);

    return fw->offset < size ? data[fw->offset++] : 0;
}

static void fw_cfg_select(struct fw_cfg *fw, uint16_t key)
{
    fw->selected = key;
    fw->offset = 0;
}

/* Copies from the selected item, then zeroes. */
static int fw_cfg_dma_read(struct fw_cfg *fw, gpa_t to, uint32_t len)
{
    const uint8_t *data;
    size_t size = fw_cfg_bytes(fw, fw->selected, &data);
    uint32_t part = fw->offset < size ? (uint32_t)(size - fw->offset) : 0;
    int r = 0;

    if (part > len)
        part = len;
    if (part)
        r = mem_write(fw->mem, to, data + fw->offset, part);
    if (r == 0 && len > part)
        r = mem_fill(fw->mem, to + part, 0, len - part);
    fw->offset += part;
    return r;
}

static void fw_cfg_skip(struct fw_cfg *fw, uint32_t len)
{
    const uint8_t *data;
    size_t size = fw_cfg_bytes(fw, fw->selected, &data);
    uint32_t rest = fw->offset < size ? (uint32_t)size - fw->offset : 0;

    fw->offset += len < rest ? len : rest;
}

/* The control word at the end: 0, or ERROR alone. Nothing here can be written. */
static uint32_t fw_cfg_dma_run(struct fw_cfg *fw, const struct fw_cfg_dma *dma)
{
    uint32_t control = __builtin_bswap32(dma->control), len = __builtin_bswap32(dma->length);
    gpa_t address = __builtin_bswap64(dma->address);
    uint64_t end;

    if (control & FW_CFG_DMA_SELECT)
        fw_cfg_select(fw, (uint16_t)(control >> 16));
    if (control & FW_CFG_DMA_READ) {
        if (add_overflows(address, len, &end) || fw_cfg_dma_read(fw, address, len) < 0)
            return FW_CFG_DMA_ERROR;
    } else if (control & FW_CFG_DMA_WRITE) {
        return FW_CFG_DMA_ERROR;
    } else if (control & FW_CFG_DMA_SKIP) {
        fw_cfg_skip(fw, len);
    }
    return 0;
}

static void fw_cfg_dma(struct fw_cfg *fw)
{
    struct fw_cfg_dma dma;
    gpa_t at = fw->address;

    fw->address = 0;
    if (mem_read(fw->mem, at, &dma, sizeof(dma)) < 0)
        return;
    mem_write32(fw->mem, at, __builtin_bswap32(fw_cfg_dma_run(fw, &dma)));
}

static uint64_t fw_cfg_read(void *opaque, uint64_t offset, unsigned size)
{
    struct fw_cfg *fw = opaque;
    uint64_t value = 0;

    if (offset == 1) {
        for (unsigned i = 0; i < size; i++)
            value |= (uint64_t)(i == 0 ? fw_cfg_next(fw) : 0) << 8 * i;
    } else if (offset >= FW_CFG_DMA_PORT) { /* big-endian */
        value = __builtin_bswap64(FW_CFG_DMA_SIGNATURE) >> 8 * (offset - FW_CFG_DMA_PORT);
    }
    return value;
}

/* The DMA address is big-endian; its low half starts the transfer. */
static void fw_cfg_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct fw_cfg *fw = opaque;

    if (offset == 0 && size == 2) {
        fw_cfg_select(fw, (uint16_t)value);
    } else if (offset == FW_CFG_DMA_PORT && size == 4) {
        fw->address = (uint64_t)__builtin_bswap32((uint32_t)value) << 32;
    } else if (offset == FW_CFG_DMA_PORT + 4 && size == 4) {
        fw->address = (fw->address & ~0xffffffffull) | __builtin_bswap32((uint32_t)value);
        fw_cfg_dma(fw);
    }
}

static const struct bus_ops fw_cfg_bus_ops = {fw_cfg_read, fw_cfg_write};

static void fw_cfg_reset(struct device *dev)
{
    struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);

    fw_cfg_select(fw, FW_CFG_SIGNATURE);
    fw->address = 0;
}

static void fw_cfg_destroy(struct device *dev)
{
    struct fw_cfg *fw = container_of(dev, struct fw_cfg, dev);

    for (unsigned i = 0; i < fw->item_count; i++)
        free(fw->item[i].data);
    device_release(dev);
    free(fw);
}

static const struct state_field fw_cfg_fields[] = {
    STATE_UINT(struct fw_cfg, selected),
    STATE_UINT(struct fw_cfg, offset),
    STATE_UINT(struct fw_cfg, address),
    STATE_FIELDS_END,
};

static const struct state_table fw_cfg_state = {"fw-cfg", 1, fw_cfg_fields};

static const struct device_ops fw_cfg_device_ops = {
    .type = "fw-cfg", .reset = fw_cfg_reset, .destroy = fw_cfg_destroy, .state = &fw_cfg_state};

int fw_cfg_create(struct machine *machine, struct fw_cfg **out)
{
    struct fw_cfg *fw = calloc(1, sizeof(*fw));
    struct bus_region ports = {FW_CFG_PORTS, FW_CFG_PORTS_LEN, &fw_cfg_bus_ops, fw, NULL};
    int r;

    if (!fw)
        return -ENOMEM;
    device_init(&fw->dev, &fw_cfg_device_ops, "fw-cfg");
    fw->mem = machine->mem;
    ports.dev = &fw->dev;
    r = fw_cfg_add(fw, FW_CFG_SIGNATURE, "QEMU", 4);
    if (r == 0)
        r = fw_cfg_add_integer(fw, FW_CFG_ID, 4, FW_CFG_ID_PORTS | FW_CFG_ID_DMA);
    if (r == 0)
        r = bus_add(machine->bus, BUS_PORT, &ports);
    if (r < 0) {
        fw_cfg_destroy(&fw->dev);
        return r;
    }
    machine_add_device(machine, &fw->dev);
    *out = fw;
    return 0;
}
