#include "device/cfi_flash.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

#define CFI_READ_ARRAY   0xffu
#define CFI_READ_ID      0x90u
#define CFI_READ_QUERY   0x98u
#define CFI_READ_STATUS  0x70u
#define CFI_CLEAR_STATUS 0x50u
#define CFI_PROGRAM      0x40u
#define CFI_PROGRAM_ALT  0x10u
#define CFI_BUFFERED     0xe8u
#define CFI_ERASE        0x20u
#define CFI_LOCK         0x60u /* lock, unlock: the second cycle says which */
#define CFI_CONFIRM      0xd0u

#define CFI_STATUS_READY   0x80u
#define CFI_STATUS_ERASE   0x20u /* with the next: a wrong sequence */
#define CFI_STATUS_PROGRAM 0x10u

#define CFI_MANUFACTURER 0x89u
#define CFI_DEVICE       0x18u
#define CFI_BUFFER       256u

/* What the second and later cycles of a command are. */
enum cfi_cycle {
    CYCLE_COMMAND,
    CYCLE_PROGRAM,
    CYCLE_ERASE,
    CYCLE_LOCK,
    CYCLE_COUNT,
    CYCLE_DATA,
    CYCLE_CONFIRM
};

struct cfi_flash {
    struct device dev;
    struct mem *mem; /* borrowed */
    gpa_t gpa;
    uint64_t size;
    int fd;                    /* owned; -1: none */
    uint64_t dirty, dirty_end; /* not in the file yet; empty when equal */
    uint8_t mode;              /* CFI_READ_*: what a read gives */
    uint8_t cycle;             /* enum cfi_cycle */
    uint8_t status;
    uint16_t count, filled; /* of a buffered program */
    uint64_t buffer_at;
    uint8_t buffer[CFI_BUFFER];
};

static void flash_mode(struct cfi_flash *flash, uint8_t mode)
{
    flash->mode = mode;
    mem_set_hidden(flash->mem, flash->gpa, mode != CFI_READ_ARRAY);
}

/* Guests have no use for an error of the host's: it is told to the operator. */
static void flash_flush(struct cfi_flash *flash)
{
    const struct mem_slot *slot = mem_slot_any(flash->mem, flash->gpa);
    const uint8_t *array = slot->host + (flash->gpa - slot->gpa);

    while (flash->fd >= 0 && flash->dirty < flash->dirty_end) {
        ssize_t n = pwrite(flash->fd, array + flash->dirty, flash->dirty_end - flash->dirty,
                           (off_t)flash->dirty);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            log_warning("%s: cannot keep the firmware's variables: %s", flash->dev.name,
                        strerror(errno));
            break;
        }
        flash->dirty += (uint64_t)n;
    }
    flash->dirty = flash->dirty_end = 0;
}

static void flash_note_dirty(struct cfi_flash *flash, uint64_t offset, uint64_t len)
{
    if (flash->dirty == flash->dirty_end) {
        flash->dirty = offset;
        flash->dirty_end = offset + len;
        return;
    }
    if (offset < flash->dirty)
        flash->dirty = offset;
    if (offset + len > flash->dirty_end)
        flash->dirty_end = offset + len;
}

static void flash_store(struct cfi_flash *flash, uint64_t offset, const uint8_t *bytes, size_t len)
{
    if (mem_program(flash->mem, flash->gpa + offset, bytes, len) < 0)
        BUG("the flash's slot has gone");
    flash_note_dirty(flash, offset, len);
}

/* Programming only turns ones into zeroes. */
static void flash_program(struct cfi_flash *flash, uint64_t offset, const uint8_t *bytes,
                          size_t len)
{
    const struct mem_slot *slot = mem_slot_any(flash->mem, flash->gpa);
    const uint8_t *array = slot->host + (flash->gpa - slot->gpa) + offset;
    uint8_t next[CFI_BUFFER];

    for (size_t i = 0; i < len; i++)
        next[i] = array[i] & bytes[i];
    flash_store(flash, offset, next, len);
}

static void flash_erase(struct cfi_flash *flash, uint64_t offset)
{
    uint8_t ones[CFI_FLASH_BLOCK];

    memset(ones, 0xff, sizeof(ones));
    flash_store(flash, align_down(offset, CFI_FLASH_BLOCK), ones, sizeof(ones));
}

static void flash_wrong_sequence(struct cfi_flash *flash)
{
    flash->status |= CFI_STATUS_ERASE | CFI_STATUS_PROGRAM;
}

static void flash_command(struct cfi_flash *flash, uint8_t command)
{
    switch (command) {
    case CFI_READ_ARRAY:
        flash_flush(flash);
        flash_mode(flash, CFI_READ_ARRAY);
        return;
    case CFI_READ_ID:
    case CFI_READ_QUERY:
    case CFI_READ_STATUS: flash_mode(flash, command); return;
    case CFI_CLEAR_STATUS: flash->status = 0; return;
    case CFI_PROGRAM:
    case CFI_PROGRAM_ALT: flash->cycle = CYCLE_PROGRAM; break;
    case CFI_BUFFERED: flash->cycle = CYCLE_COUNT; break;
    case CFI_ERASE: flash->cycle = CYCLE_ERASE; break;
    case CFI_LOCK: flash->cycle = CYCLE_LOCK; break;
    default: return; /* nothing that it knows */
    }
    flash->status |= CFI_STATUS_READY;
    flash_mode(flash, CFI_READ_STATUS);
}

/* The bytes of a buffered program may come in any order, within one aligned buffer. */
static void flash_fill(struct cfi_flash *flash, uint64_t offset, uint8_t value)
{
    if (flash->filled == 0) {
        flash->buffer_at = align_down(offset, CFI_BUFFER);
        memset(flash->buffer, 0xff, sizeof(flash->buffer));
    }
    if (align_down(offset, CFI_BUFFER) == flash->buffer_at)
        flash->buffer[offset - flash->buffer_at] = value;
    else
        flash_wrong_sequence(flash);
    if (++flash->filled == flash->count)
        flash->cycle = CYCLE_CONFIRM;
}

static void flash_confirm(struct cfi_flash *flash, uint8_t value)
{
    if (value == CFI_CONFIRM)
        flash_program(flash, flash->buffer_at, flash->buffer, sizeof(flash->buffer));
    else
        flash_wrong_sequence(flash);
}

static void flash_cycle(struct cfi_flash *flash, uint64_t offset, uint8_t value)
{
    enum cfi_cycle cycle = flash->cycle;

    flash->cycle = CYCLE_COMMAND;
    switch (cycle) {
    case CYCLE_COMMAND: flash_command(flash, value); break;
    case CYCLE_PROGRAM: flash_program(flash, offset, &value, 1); break;
    case CYCLE_ERASE:
        if (value == CFI_CONFIRM)
            flash_erase(flash, offset);
        else
            flash_wrong_sequence(flash);
        break;
    case CYCLE_LOCK: break; /* no block is ever locked */
    case CYCLE_COUNT:
        flash->count = (uint16_t)(value + 1u);
        flash->filled = 0;
        flash->cycle = CYCLE_DATA;
        break;
    case CYCLE_DATA:
        flash->cycle = CYCLE_DATA;
        flash_fill(flash, offset, value);
        break;
    case CYCLE_CONFIRM: flash_confirm(flash, value); break;
    }
}

static void flash_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        flash_cycle(opaque, offset + i, (uint8_t)(value >> 8 * i));
}

/* Identification and the query table that drivers need: "QRY", Intel's set, the size and the
 * blocks. */
static uint8_t flash_query(const struct cfi_flash *flash, uint64_t at)
{
    uint32_t blocks = (uint32_t)(flash->size / CFI_FLASH_BLOCK) - 1;
    uint8_t log2 = (uint8_t)(63 - __builtin_clzll(flash->size));

    switch (at) {
    case 0x10: return 'Q';
    case 0x11: return 'R';
    case 0x12: return 'Y';
    case 0x13: return 0x01; /* primary command set: Intel's extended one */
    case 0x15: return 0x31; /* its table would be there: none of its features is offered */
    case 0x27: return log2;
    case 0x2a: return 8; /* buffer: 256 bytes */
    case 0x2c: return 1; /* one region of equal blocks */
    case 0x2d: return (uint8_t)blocks;
    case 0x2e: return (uint8_t)(blocks >> 8);
    case 0x2f: return (uint8_t)(CFI_FLASH_BLOCK >> 8);
    case 0x30: return (uint8_t)(CFI_FLASH_BLOCK >> 16);
    default: return 0;
    }
}

static uint8_t flash_read_byte(const struct cfi_flash *flash, uint64_t offset)
{
    switch (flash->mode) {
    case CFI_READ_STATUS: return flash->status;
    case CFI_READ_QUERY: return flash_query(flash, offset & 0xff);
    case CFI_READ_ID:
        return (offset & 0xff) == 0 ? CFI_MANUFACTURER : (offset & 0xff) == 1 ? CFI_DEVICE : 0;
    default: { /* the array, for a vCPU that looked for it before it was shown again */
        const struct mem_slot *slot = mem_slot_any(flash->mem, flash->gpa);

        return slot->host[flash->gpa - slot->gpa + offset];
    }
    }
}

static uint64_t flash_read(void *opaque, uint64_t offset, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)flash_read_byte(opaque, offset + i) << 8 * i;
    return value;
}

static const struct bus_ops flash_ops = {flash_read, flash_write};

static void flash_reset(struct device *dev)
{
    struct cfi_flash *flash = container_of(dev, struct cfi_flash, dev);

    flash_flush(flash);
    flash->cycle = CYCLE_COMMAND;
    flash->status = CFI_STATUS_READY;
    flash_mode(flash, CFI_READ_ARRAY);
}

static int flash_loaded(struct device *dev)
{
    struct cfi_flash *flash = container_of(dev, struct cfi_flash, dev);

    if (flash->cycle > CYCLE_CONFIRM || flash->count > CFI_BUFFER || flash->filled > flash->count ||
        flash->buffer_at > flash->size - CFI_BUFFER)
        return -EINVAL;
    flash_mode(flash, flash->mode);
    return 0;
}

static void flash_destroy(struct device *dev)
{
    struct cfi_flash *flash = container_of(dev, struct cfi_flash, dev);

    flash_flush(flash);
    if (flash->fd >= 0)
        close(flash->fd);
    device_release(dev);
    free(flash);
}

static const struct state_field flash_fields[] = {
    STATE_UINT(struct cfi_flash, mode),    STATE_UINT(struct cfi_flash, cycle),
    STATE_UINT(struct cfi_flash, status),  STATE_UINT(struct cfi_flash, count),
    STATE_UINT(struct cfi_flash, filled),  STATE_UINT(struct cfi_flash, buffer_at),
    STATE_BYTES(struct cfi_flash, buffer), STATE_FIELDS_END,
};

static const struct state_table flash_state = {"cfi-flash", 1, flash_fields};

static const struct device_ops flash_device_ops = {
    .type = "cfi-flash",
    .reset = flash_reset,
    .destroy = flash_destroy,
    .state = &flash_state,
    .loaded = flash_loaded,
};

int cfi_flash_create(struct machine *machine, gpa_t gpa, uint64_t size, int fd)
{
    struct cfi_flash *flash = calloc(1, sizeof(*flash));
    struct bus_region array = {gpa, size, &flash_ops, flash, NULL};
    int r;

    if (!flash) {
        if (fd >= 0)
            close(fd);
        return -ENOMEM;
    }
    BUG_ON(size == 0 || size % CFI_FLASH_BLOCK || !mem_slot_any(machine->mem, gpa));
    device_init(&flash->dev, &flash_device_ops, "flash0");
    flash->mem = machine->mem;
    flash->gpa = gpa;
    flash->size = size;
    flash->fd = fd;
    flash_reset(&flash->dev);
    array.dev = &flash->dev;
    r = bus_add(machine->bus, BUS_MEMORY, &array);
    if (r < 0) {
        flash_destroy(&flash->dev);
        return r;
    }
    machine_add_device(machine, &flash->dev);
    return 0;
}
