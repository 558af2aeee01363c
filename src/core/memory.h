/*
 * Guest physical memory: RAM and ROM as the guest's physical address map sees them.
 *
 * RAM is anonymous shared memory (memfd), mapped once; a machine has at most MEM_SLOTS_MAX slots.
 * Slots are added while the machine is being wired, before vCPUs run, and live until
 * mem_destroy(). Addresses outside every slot are not memory (the bus may have a device there).
 *
 * Pages can be ROM: a guest's write to one is not stored but goes to the bus, where a chip may have
 * a region at the same address (a chipset that shadows, a flash chip). A ROM slot can be hidden:
 * then reads go there as well. The engine is told of both through `map_changed`.
 *
 * Everything except the vCPU engines reaches guest memory through mem_read/mem_write and the
 * typed helpers: they check bounds, mark dirty pages and tell the engine about writes to pages
 * that hold translated code. mem_pin() is for bulk data (disk, network): it gives a pointer that
 * is valid for `len` bytes until mem_destroy(), and the caller must mem_mark_written() what it
 * wrote.
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
#define MEM_PAGE_ROM   0x04u /* guest writes go to the bus */

/* Who can hold address line 20 open: it is masked while none does (mem_set_a20). */
#define MEM_A20_KEYBOARD 0x01u /* the keyboard controller's output port */
#define MEM_A20_PORT92   0x02u
#define MEM_A20_BIT      0x100000ull

struct mem_slot {
    gpa_t gpa;             /* page aligned */
    uint64_t size;         /* page aligned */
    uint8_t *host;         /* owned mapping */
    int fd;                /* memfd behind it, owned */
    bool readonly;         /* a ROM slot: not counted as RAM */
    _Atomic bool hidden;   /* mem_slot_find() does not find it */
    gpa_t rom_base, rom_end; /* what can be ROM lies in between; constant once vCPUs run */
    _Atomic uint8_t *page; /* flags of each page, size / PAGE_SIZE entries, owned */
};

/* Told after a device wrote to pages with MEM_PAGE_CODE. Any thread. */
typedef void mem_code_written_fn(void *opaque, gpa_t gpa, uint64_t len);

/* Told after pages became ROM or RAM, a slot was hidden or shown, or address line 20 changed:
 * translations that were made before must go, the calling vCPU's before its next instruction. Any
 * thread, device locks held. */
typedef void mem_map_changed_fn(void *opaque);

struct mem {
    struct mem_slot slots[MEM_SLOTS_MAX]; /* sorted by gpa */
    unsigned slot_count;
    _Atomic uint32_t a20;              /* MEM_A20_* that hold the line open */
    mem_code_written_fn *code_written; /* set by the engine, or NULL */
    void *code_written_opaque;
    mem_map_changed_fn *map_changed; /* set by the engine, or NULL */
    void *map_changed_opaque;
};

nodiscard int mem_create(struct mem **out);
void mem_destroy(struct mem *mem);

/* Reserves zeroed memory of `size` bytes at gpa. -EEXIST when it overlaps, -ENOSPC when out of slots. */
nodiscard int mem_add_ram(struct mem *mem, gpa_t gpa, uint64_t size, struct error *err);
nodiscard int mem_add_rom(struct mem *mem, gpa_t gpa, const void *image, uint64_t size,
                          struct error *err);

/* Total bytes of RAM. */
uint64_t mem_ram_size(const struct mem *mem);

/* The slot that holds gpa and is not hidden, or NULL. */
struct mem_slot *mem_slot_find(const struct mem *mem, gpa_t gpa);

/* Also one that is hidden. */
struct mem_slot *mem_slot_any(const struct mem *mem, gpa_t gpa);

/* Makes whole pages of one slot ROM, or writable RAM. Before vCPUs run, the first call for a slot
 * must cover all that later calls will. */
void mem_set_rom(struct mem *mem, gpa_t gpa, uint64_t len, bool rom);
/* The slot at gpa, a ROM slot, is memory to nobody while hidden. */
void mem_set_hidden(struct mem *mem, gpa_t gpa, bool hidden);
/* As mem_write(), but to ROM as well, also a hidden one: the chip's or the board's own doing. The
 * range lies in one slot. */
nodiscard int mem_program(struct mem *mem, gpa_t gpa, const void *buf, size_t len);

/* The A20 gate (ICH9 data sheet 13.7.3): while no source holds it open, vCPUs see address bit 20 as
 * 0. Device accesses are not masked. Engines that cannot mask it leave it open. */
void mem_set_a20(struct mem *mem, uint32_t source, bool open);

static inline uint64_t mem_a20_mask(const struct mem *mem)
{
    return atomic_load_explicit(&mem->a20, memory_order_relaxed) ? UINT64_MAX : ~MEM_A20_BIT;
}

static inline bool mem_page_is_rom(const struct mem_slot *slot, gpa_t gpa)
{
    return atomic_load_explicit(&slot->page[(gpa - slot->gpa) / PAGE_SIZE], memory_order_relaxed) &
           MEM_PAGE_ROM;
}

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
