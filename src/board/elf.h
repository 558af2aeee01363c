/*
 * The little of ELF (TIS ELF 1.2, System V ABI) that a loader of static kernels needs.
 * `data` and `size` are the whole file; nothing outside is ever touched.
 */
#ifndef BOARD_ELF_H
#define BOARD_ELF_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "core/memory.h"
#include "board/boot.h"

struct elf_image {
    const struct boot_file *file; /* borrowed */
    bool is64;
    uint64_t entry;
    uint64_t phoff;
    unsigned phnum;
    unsigned phentsize;
};

struct elf_segment {
    uint32_t type;
    uint64_t offset, vaddr, paddr, filesz, memsz;
};

#define ELF_PT_LOAD 1u
#define ELF_PT_NOTE 4u

/* The four magic bytes are there. */
bool elf_matches(const uint8_t *data, uint64_t size);
bool elf_has_pvh_entry(const uint8_t *data, uint64_t size);

/* Checks the header and that the program headers are inside the file. x86 executables only. */
nodiscard int elf_open(const struct boot_file *file, struct elf_image *elf, struct error *err);

/* Segment i < phnum; filesz bytes at offset are inside the file. -ENOEXEC: truncated. */
nodiscard int elf_segment_get(const struct elf_image *elf, unsigned i, struct elf_segment *segment,
                              struct error *err);

/* The 32-bit physical entry point of a PVH kernel (note "Xen", type 18). False: no such note. */
bool elf_pvh_entry(const struct elf_image *elf, uint64_t *entry);

/* Copies the PT_LOAD segments to their physical addresses; [*low, *high) is what they took. */
nodiscard int elf_load(const struct elf_image *elf, const struct boot_target *target,
                       uint64_t *low, uint64_t *high, struct error *err);

#endif
