#include "core/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int mem_create(struct mem **out)
{
    struct mem *mem = calloc(1, sizeof(*mem));

    if (!mem)
        return -ENOMEM;
    mem->a20 = MEM_A20_KEYBOARD;
    *out = mem;
    return 0;
}

static void slot_release(struct mem_slot *slot)
{
    munmap(slot->host, slot->size);
    close(slot->fd);
    free(slot->page);
}

void mem_destroy(struct mem *mem)
{
    if (!mem)
        return;
    for (unsigned i = 0; i < mem->slot_count; i++)
        slot_release(&mem->slots[i]);
    free(mem);
}

static int slot_init(struct mem_slot *slot, gpa_t gpa, uint64_t size, struct error *err)
{
    int ret;

    *slot = (struct mem_slot){.gpa = gpa, .size = size};
    slot->fd = memfd_create("lodge-memory", MFD_CLOEXEC);
    if (slot->fd < 0)
        return error_set(err, -errno, "cannot create guest memory: %s", strerror(errno));
    if (ftruncate(slot->fd, (off_t)size)) {
        ret = error_set(err, -errno, "cannot size guest memory to %llu MiB: %s",
                        (unsigned long long)(size >> 20), strerror(errno));
        goto err_close;
    }
    slot->host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, slot->fd, 0);
    if (slot->host == MAP_FAILED) {
        ret = error_set(err, -errno, "cannot map %llu MiB of guest memory: %s",
                        (unsigned long long)(size >> 20), strerror(errno));
        goto err_close;
    }
    slot->page = calloc(size / PAGE_SIZE, sizeof(*slot->page));
    if (!slot->page) {
        ret = error_set(err, -ENOMEM, "cannot allocate the page flags of guest memory");
        goto err_unmap;
    }
    return 0;

err_unmap:
    munmap(slot->host, size);
err_close:
    close(slot->fd);
    return ret;
}

static int mem_add_slot(struct mem *mem, gpa_t gpa, uint64_t size, struct mem_slot **out,
                        struct error *err)
{
    unsigned at = 0;
    uint64_t end;
    int ret;

    if (size == 0 || (gpa | size) & ~PAGE_MASK || add_overflows(gpa, size, &end))
        return error_set(err, -EINVAL, "guest memory must be whole pages");
    if (mem->slot_count == MEM_SLOTS_MAX)
        return error_set(err, -ENOSPC, "too many pieces of guest memory");
    while (at < mem->slot_count && mem->slots[at].gpa + mem->slots[at].size <= gpa)
        at++;
    if (at < mem->slot_count && mem->slots[at].gpa < end)
        return error_set(err, -EEXIST, "guest memory overlaps at 0x%llx", (unsigned long long)gpa);
    memmove(&mem->slots[at + 1], &mem->slots[at],
            (mem->slot_count - at) * sizeof(mem->slots[0]));
    ret = slot_init(&mem->slots[at], gpa, size, err);
    if (ret) {
        memmove(&mem->slots[at], &mem->slots[at + 1],
                (mem->slot_count - at) * sizeof(mem->slots[0]));
        return ret;
    }
    mem->slot_count++;
    *out = &mem->slots[at];
    return 0;
}

int mem_add_ram(struct mem *mem, gpa_t gpa, uint64_t size, struct error *err)
{
    struct mem_slot *slot;

    return mem_add_slot(mem, gpa, size, &slot, err);
}

int mem_add_rom(struct mem *mem, gpa_t gpa, const void *image, uint64_t size, struct error *err)
{
    struct mem_slot *slot;
    int ret = mem_add_slot(mem, gpa, align_up(size, PAGE_SIZE), &slot, err);

    if (ret)
        return ret;
    memcpy(slot->host, image, size);
    slot->readonly = true;
    mem_set_rom(mem, gpa, slot->size, true);
    return 0;
}

uint64_t mem_ram_size(const struct mem *mem)
{
    uint64_t size = 0;

    for (unsigned i = 0; i < mem->slot_count; i++) {
        if (!mem->slots[i].readonly)
            size += mem->slots[i].size;
    }
    return size;
}

struct mem_slot *mem_slot_any(const struct mem *mem, gpa_t gpa)
{
    for (unsigned i = 0; i < mem->slot_count; i++) {
        const struct mem_slot *slot = &mem->slots[i];

        if (gpa - slot->gpa < slot->size)
            return (struct mem_slot *)slot;
    }
    return NULL;
}

struct mem_slot *mem_slot_find(const struct mem *mem, gpa_t gpa)
{
    struct mem_slot *slot = mem_slot_any(mem, gpa);

    return slot && !atomic_load_explicit(&slot->hidden, memory_order_relaxed) ? slot : NULL;
}

static void mem_map_changed(const struct mem *mem)
{
    if (mem->map_changed)
        mem->map_changed(mem->map_changed_opaque);
}

static void slot_widen_rom(struct mem_slot *slot, gpa_t gpa, uint64_t len)
{
    if (slot->rom_base == slot->rom_end) {
        slot->rom_base = gpa;
        slot->rom_end = gpa + len;
    }
    BUG_ON(gpa < slot->rom_base || gpa + len > slot->rom_end);
}

void mem_set_rom(struct mem *mem, gpa_t gpa, uint64_t len, bool rom)
{
    struct mem_slot *slot = mem_slot_any(mem, gpa);

    BUG_ON(!slot || (gpa | len) & ~PAGE_MASK || len > slot->size - (gpa - slot->gpa));
    slot_widen_rom(slot, gpa, len);
    for (uint64_t i = (gpa - slot->gpa) / PAGE_SIZE, end = i + len / PAGE_SIZE; i < end; i++) {
        if (rom)
            atomic_fetch_or(&slot->page[i], MEM_PAGE_ROM);
        else
            atomic_fetch_and(&slot->page[i], (uint8_t)~MEM_PAGE_ROM);
    }
    mem_map_changed(mem);
}

void mem_set_hidden(struct mem *mem, gpa_t gpa, bool hidden)
{
    struct mem_slot *slot = mem_slot_any(mem, gpa);

    BUG_ON(!slot || !slot->readonly);
    if (atomic_exchange(&slot->hidden, hidden) != hidden)
        mem_map_changed(mem);
}

void mem_set_a20(struct mem *mem, uint32_t source, bool open)
{
    uint32_t old = open ? atomic_fetch_or(&mem->a20, source) : atomic_fetch_and(&mem->a20, ~source);
    uint32_t now = open ? old | source : old & ~source;

    if (!old != !now)
        mem_map_changed(mem);
}

/* Whether a guest's write to any byte would not be stored. */
static bool slot_range_is_rom(const struct mem_slot *slot, gpa_t gpa, uint64_t len)
{
    gpa_t at = gpa > slot->rom_base ? gpa : slot->rom_base;
    gpa_t end = gpa + len < slot->rom_end ? gpa + len : slot->rom_end;

    for (; at < end; at = (at & PAGE_MASK) + PAGE_SIZE) {
        if (mem_page_is_rom(slot, at))
            return true;
    }
    return false;
}

static bool mem_range_ok(const struct mem *mem, gpa_t gpa, size_t len, bool writable)
{
    while (len) {
        const struct mem_slot *slot = mem_slot_find(mem, gpa);
        uint64_t room;

        if (!slot)
            return false;
        room = slot->size - (gpa - slot->gpa);
        if (writable && slot_range_is_rom(slot, gpa, len < room ? len : room))
            return false;
        if (len <= room)
            return true;
        gpa += room;
        len -= room;
    }
    return true;
}

/* The piece of [gpa, gpa+len) that lies in one slot; the range was checked. */
static uint8_t *mem_piece(const struct mem *mem, gpa_t gpa, size_t len, size_t *piece)
{
    const struct mem_slot *slot = mem_slot_find(mem, gpa);
    uint64_t offset = gpa - slot->gpa;

    *piece = len < slot->size - offset ? len : slot->size - offset;
    return slot->host + offset;
}

int mem_read(const struct mem *mem, gpa_t gpa, void *buf, size_t len)
{
    uint8_t *to = buf;
    size_t piece;

    if (!mem_range_ok(mem, gpa, len, false))
        return -EFAULT;
    for (; len; gpa += piece, to += piece, len -= piece) {
        const uint8_t *from = mem_piece(mem, gpa, len, &piece);

        memcpy(to, from, piece);
    }
    return 0;
}

int mem_write(struct mem *mem, gpa_t gpa, const void *buf, size_t len)
{
    const uint8_t *from = buf;
    size_t piece;

    if (!mem_range_ok(mem, gpa, len, true))
        return -EFAULT;
    for (; len; gpa += piece, from += piece, len -= piece) {
        uint8_t *to = mem_piece(mem, gpa, len, &piece);

        memcpy(to, from, piece);
        mem_mark_written(mem, gpa, piece);
    }
    return 0;
}

int mem_fill(struct mem *mem, gpa_t gpa, uint8_t byte, size_t len)
{
    size_t piece;

    if (!mem_range_ok(mem, gpa, len, true))
        return -EFAULT;
    for (; len; gpa += piece, len -= piece) {
        uint8_t *to = mem_piece(mem, gpa, len, &piece);

        memset(to, byte, piece);
        mem_mark_written(mem, gpa, piece);
    }
    return 0;
}

uint16_t mem_read16(const struct mem *mem, gpa_t gpa)
{
    uint16_t value = UINT16_MAX;

    (void)!mem_read(mem, gpa, &value, sizeof(value));
    return value;
}

uint32_t mem_read32(const struct mem *mem, gpa_t gpa)
{
    uint32_t value = UINT32_MAX;

    (void)!mem_read(mem, gpa, &value, sizeof(value));
    return value;
}

uint64_t mem_read64(const struct mem *mem, gpa_t gpa)
{
    uint64_t value = UINT64_MAX;

    (void)!mem_read(mem, gpa, &value, sizeof(value));
    return value;
}

void mem_write16(struct mem *mem, gpa_t gpa, uint16_t value)
{
    (void)!mem_write(mem, gpa, &value, sizeof(value));
}

void mem_write32(struct mem *mem, gpa_t gpa, uint32_t value)
{
    (void)!mem_write(mem, gpa, &value, sizeof(value));
}

void mem_write64(struct mem *mem, gpa_t gpa, uint64_t value)
{
    (void)!mem_write(mem, gpa, &value, sizeof(value));
}

void *mem_pin(const struct mem *mem, gpa_t gpa, size_t len, bool writable)
{
    const struct mem_slot *slot = mem_slot_find(mem, gpa);
    uint64_t offset;

    if (!slot)
        return NULL;
    offset = gpa - slot->gpa;
    if (len > slot->size - offset || (writable && slot_range_is_rom(slot, gpa, len)))
        return NULL;
    return slot->host + offset;
}

static void slot_mark_written(struct mem *mem, const struct mem_slot *slot, gpa_t gpa, uint64_t len)
{
    uint8_t seen = 0;
    uint64_t first, last;

    /* Partner: the engine sets MEM_PAGE_CODE, then reads the bytes; here they are written first. */
    atomic_thread_fence(memory_order_seq_cst);
    if (len > slot->size - (gpa - slot->gpa))
        len = slot->size - (gpa - slot->gpa);
    first = (gpa - slot->gpa) / PAGE_SIZE;
    last = (gpa - slot->gpa + len - 1) / PAGE_SIZE;
    for (uint64_t page = first; page <= last; page++) {
        uint8_t flags = atomic_load_explicit(&slot->page[page], memory_order_relaxed);

        seen |= flags;
        if (!(flags & MEM_PAGE_DIRTY))
            atomic_fetch_or_explicit(&slot->page[page], MEM_PAGE_DIRTY, memory_order_relaxed);
    }
    if ((seen & MEM_PAGE_CODE) && mem->code_written)
        mem->code_written(mem->code_written_opaque, gpa, len);
}

void mem_mark_written(struct mem *mem, gpa_t gpa, size_t len)
{
    const struct mem_slot *slot = mem_slot_find(mem, gpa);

    if (slot && len)
        slot_mark_written(mem, slot, gpa, len);
}

int mem_program(struct mem *mem, gpa_t gpa, const void *buf, size_t len)
{
    struct mem_slot *slot = mem_slot_any(mem, gpa);

    if (!slot || len > slot->size - (gpa - slot->gpa))
        return -EFAULT;
    memcpy(slot->host + (gpa - slot->gpa), buf, len);
    if (len)
        slot_mark_written(mem, slot, gpa, len);
    return 0;
}
