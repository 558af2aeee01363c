/*
 * Guest physical memory: RAM and ROM as the guest's physical address map sees them.
 *
 * RAM is anonymous shared memory (memfd), mapped once; a machine has at most MEM_SLOTS_MAX slots.
 * Slots are added while the machine is being wired, before vCPUs run, and live until
 * mem_destroy(). Addresses outside every slot are not memory (the bus may have a device there).
 *
 * Everything except the vCPU engines reaches guest memory through mem_read/mem_write and the
 * typed helpers: they check bounds, mark dirty pages and tell the engine about writes to pages
 * that hold translated code. mem_pin() is for bulk data (disk, network): it gives a pointer that
 * is valid for `len` bytes until mem_destroy(), and the caller must mem_mark_written() what it wrote.
 *
 * Threads: reads and writes from any thread; concurrent access to the same bytes is as racy as
 * DMA on hardware. All sizes in bytes.
 */
#ifndef CORE_MEMORY_H
#define CORE_MEMORY_H

#include <stdatomic.h>
#include <stddef.h>

#include "base/compiler.h"
#include "base/error.h"
#include "base/types.h"

#define MEM_SLOTS_MAX 16u

/* Per-page flags, one byte a page, changed atomically. */
#define MEM_PAGE_DIRTY 0x01u /* written since the dirty log was last read */
#define MEM_PAGE_CODE  0x02u /* an engine holds decoded or translated code of this page */

struct mem_slot {
    gpa_t gpa;             /* page aligned */
    uint64_t size;         /* page aligned */
    uint8_t *host;         /* owned mapping */
    int fd;                /* memfd behind it, owned */
    bool readonly;         /* ROM: guest writes are ignored */
    _Atomic uint8_t *page; /* flags of each page, size / PAGE_SIZE entries, owned */
};

/* Told after a device wrote to pages with MEM_PAGE_CODE. Any thread. */
typedef void mem_code_written_fn(void *opaque, gpa_t gpa, uint64_t len);

struct mem {
    struct mem_slot slots[MEM_SLOTS_MAX]; /* sorted by gpa */
    unsigned slot_count;
    mem_code_written_fn *code_written; /* set by the engine, or NULL */
    void *code_written_opaque;
};

nodiscard int mem_create(struct mem **out);
void mem_destroy(struct mem *mem);

/* Reserves zeroed memory of `size` bytes at gpa. -EEXIST when it overlaps, -ENOSPC when out of slots. */
nodiscard int mem_add_ram(struct mem *mem, gpa_t gpa, uint64_t size, struct error *err);
nodiscard int mem_add_rom(struct mem *mem, gpa_t gpa, const void *image, uint64_t size,
                          struct error *err);

/* Total bytes of RAM. */
uint64_t mem_ram_size(const struct mem *mem);

/* The slot that holds gpa, or NULL. */
struct mem_slot *mem_slot_find(const struct mem *mem, gpa_t gpa);

/* -EFAULT, with nothing copied, unless the whole range is memory (a write: RAM). Ranges may span slots. */
nodiscard int mem_read(const struct mem *mem, gpa_t gpa, void *buf, size_t len);
nodiscard int mem_write(struct mem *mem, gpa_t gpa, const void *buf, size_t len);
nodiscard int mem_fill(struct mem *mem, gpa_t gpa, uint8_t byte, size_t len);

/* Little-endian scalars; a failed read gives all ones. */
uint16_t mem_read16(const struct mem *mem, gpa_t gpa);
uint32_t mem_read32(const struct mem *mem, gpa_t gpa);
uint64_t mem_read64(const struct mem *mem, gpa_t gpa);
void mem_write16(struct mem *mem, gpa_t gpa, uint16_t value);
void mem_write32(struct mem *mem, gpa_t gpa, uint32_t value);
void mem_write64(struct mem *mem, gpa_t gpa, uint64_t value);

/* Host address of [gpa, gpa+len), which must lie inside one slot (RAM if `writable`), else NULL. */
void *mem_pin(const struct mem *mem, gpa_t gpa, size_t len, bool writable);

/* Marks pages dirty and invalidates code on them, after a write through a pinned pointer. */
void mem_mark_written(struct mem *mem, gpa_t gpa, size_t len);

#endif
