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

struct mem_slot *mem_slot_find(const struct mem *mem, gpa_t gpa)
{
    for (unsigned i = 0; i < mem->slot_count; i++) {
        const struct mem_slot *slot = &mem->slots[i];

        if (gpa - slot->gpa < slot->size)
            return (struct mem_slot *)slot;
    }
    return NULL;
}

static bool mem_range_ok(const struct mem *mem, gpa_t gpa, size_t len, bool writable)
{
    while (len) {
        const struct mem_slot *slot = mem_slot_find(mem, gpa);
        uint64_t room;

        if (!slot || (writable && slot->readonly))
            return false;
        room = slot->size - (gpa - slot->gpa);
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

    if (!slot || (writable && slot->readonly))
        return NULL;
    offset = gpa - slot->gpa;
    if (len > slot->size - offset)
        return NULL;
    return slot->host + offset;
}

void mem_mark_written(struct mem *mem, gpa_t gpa, size_t len)
{
    const struct mem_slot *slot = mem_slot_find(mem, gpa);
    uint8_t seen = 0;
    uint64_t first, last;

    if (!slot || len == 0)
        return;
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
