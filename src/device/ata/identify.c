/* IDENTIFY DEVICE (ACS-3, 7.12) and IDENTIFY PACKET DEVICE (7.13): what the device says it can do.
 */
#include <string.h>

#include "device/ata/ata_internal.h"

#define MODE_MWDMA 0x20u /* transfer modes of SET FEATURES (ACS-3, table 144) */
#define MODE_UDMA  0x40u
#define SERIAL_ATA 0x101fu /* word 222: serial, up to SATA 2.6 */

struct identify {
    uint8_t *out;
};

static void word(struct identify *id, unsigned index, unsigned value)
{
    id->out[2 * index] = (uint8_t)value;
    id->out[2 * index + 1] = (uint8_t)(value >> 8);
}

/* Text has its bytes swapped within words and is filled up with blanks (ACS-3, 3.4.9). */
static void text(struct identify *id, unsigned index, unsigned words, const char *string)
{
    size_t len = strlen(string);

    for (unsigned i = 0; i < 2 * words; i++)
        id->out[2 * index + (i ^ 1)] = i < len ? (uint8_t)string[i] : ' ';
}

/* Modes 0 to 2 and 0 to 6 are supported; the high byte says which one is chosen. */
static void transfer_modes(struct identify *id, const struct ata_device *dev)
{
    unsigned mode = dev->transfer_mode;

    word(id, 53, 0x0006); /* words 64 to 70 and 88 hold */
    word(id, 63, 0x07 | (mode >= MODE_MWDMA && mode < MODE_UDMA ? 0x100u << (mode & 7) : 0));
    word(id, 64, 0x0003); /* PIO 3 and 4 */
    for (unsigned i = 65; i <= 68; i++)
        word(id, i, 120); /* ns a cycle */
    word(id, 88, 0x7f | (mode >= MODE_UDMA ? 0x100u << (mode & 7) : 0));
}

/* Word 255: all bytes sum up to zero (ACS-3, 7.12.7.84). */
static void checksum(struct identify *id)
{
    uint8_t sum = 0xa5;

    id->out[510] = 0xa5;
    for (unsigned i = 0; i < 510; i++)
        sum = (uint8_t)(sum + id->out[i]);
    id->out[511] = (uint8_t)-sum;
}

/* Cylinders, heads and sectors for those who still ask: 16 heads of 63 sectors. */
static void geometry(struct identify *id, uint64_t sectors)
{
    uint64_t cylinders = sectors / (16 * 63);

    word(id, 1, cylinders > 16383 ? 16383 : (unsigned)cylinders);
    word(id, 3, 16);
    word(id, 6, 63);
}

static void capacity(struct identify *id, uint64_t sectors)
{
    uint64_t lba28 = sectors > 0x0fffffff ? 0x0fffffff : sectors;

    for (unsigned i = 0; i < 2; i++)
        word(id, 60 + i, (unsigned)(lba28 >> (16 * i)) & 0xffff);
    for (unsigned i = 0; i < 4; i++)
        word(id, 100 + i, (unsigned)(sectors >> (16 * i)) & 0xffff);
}

/* Words 82 to 87: command sets, supported and then enabled. */
static void command_sets(struct identify *id, const struct ata_device *dev)
{
    word(id, 82, 0x0069); /* SMART, power management, write cache, look-ahead */
    word(id, 83, 0x7400); /* FLUSH CACHE EXT, FLUSH CACHE, 48-bit addresses */
    word(id, 84, 0x4160); /* world wide name, WRITE DMA FUA EXT, general purpose logging */
    word(id, 85,
         0x0008u | (dev->smart ? 0x01 : 0) | (dev->write_cache ? 0x20 : 0) |
             (dev->look_ahead ? 0x40 : 0));
    word(id, 86, 0x3400);
    word(id, 87, 0x4160);
}

/* World wide name: an address of our own making, told from others by the serial number (FNV-1a). */
static void world_wide_name(struct identify *id, const struct ata_device *dev)
{
    uint64_t hash = 0xcbf29ce484222325ull;

    for (const char *c = dev->serial; *c; c++)
        hash = (hash ^ (uint8_t)*c) * 0x100000001b3ull;
    hash = (hash & 0x0fffffffffffffffull) | 0x3000000000000000ull; /* NAA 3: locally assigned */
    for (unsigned i = 0; i < 4; i++)
        word(id, 108 + i, (unsigned)(hash >> (48 - 16 * i)) & 0xffff);
}

static void common(struct identify *id, const struct ata_device *dev)
{
    memset(id->out, 0, ATA_SECTOR);
    text(id, 10, 10, dev->serial);
    text(id, 23, 4, "1.0");
    text(id, 27, 20, dev->model);
    word(id, 49, 0x2f00); /* standby timer, IORDY, LBA, DMA */
    word(id, 50, 0x4000);
    transfer_modes(id, dev);
    word(id, 80, 0x01f0); /* up to ATA8-ACS */
    word(id, 222, SERIAL_ATA);
}

void ata_identify_disk(const struct ata_device *dev, uint8_t out[ATA_SECTOR])
{
    struct identify id = {out};

    common(&id, dev);
    word(&id, 0, 0x0040); /* fixed disk */
    geometry(&id, dev->sectors);
    word(&id, 47, 0x8000 | ATA_MULTIPLE_MAX);
    word(&id, 59, dev->multiple ? 0x0100u | dev->multiple : 0);
    capacity(&id, dev->sectors);
    word(&id, 75, ATA_QUEUE - 1);
    word(&id, 76, 0x0106); /* queued commands; 1.5 and 3 Gb/s */
    command_sets(&id, dev);
    world_wide_name(&id, dev);
    word(&id, 106, 0x4000); /* one logical sector a physical one */
    word(&id, 217, 0x0001); /* does not rotate */
    if (dev->block->can_discard) {
        word(&id, 105, ATA_DSM_BLOCKS);
        word(&id, 169, 0x0001); /* TRIM; what is read afterwards is not promised */
    }
    checksum(&id);
}

void ata_identify_packet(const struct ata_device *dev, uint8_t out[ATA_SECTOR])
{
    struct identify id = {out};

    common(&id, dev);
    word(&id, 0, 0x8580); /* packet device, CD-ROM, removable, 12-byte commands, DRQ within 50 us */
    word(&id, 76, 0x0006);
    word(&id, 82, 0x0218); /* DEVICE RESET, PACKET, power management */
    word(&id, 83, 0x4000);
    word(&id, 84, 0x4000);
    word(&id, 85, 0x0218);
    word(&id, 87, 0x4000);
    checksum(&id);
}
