/*
 * Direct boot: puts a kernel into the guest's RAM and says how its first vCPU starts.
 *
 * Images come from outside and are hostile: every number in them is checked before it is used.
 * A loader writes guest memory only through mem_write/mem_fill, and nothing else has an effect.
 */
#ifndef BOARD_BOOT_H
#define BOARD_BOOT_H

#include "board/memory_map.h"
#include "cpu/cpu_state.h"

#define BOOT_MODULES_MAX 32u

/* A file that was read whole; or, in tests, any bytes. */
struct boot_file {
    const char *path; /* borrowed; for messages, and a multiboot module's string */
    const uint8_t *data;
    uint64_t size;
};

/* What to boot. Borrowed by the loaders. */
struct boot_images {
    struct boot_file kernel;
    struct boot_file modules[BOOT_MODULES_MAX]; /* initrds; for multiboot: modules */
    unsigned module_count;
    const char *cmdline; /* never NULL */
};

/* Where to boot it. */
struct boot_target {
    struct mem *mem;
    const struct memory_map *map;
    gpa_t rsdp;              /* of the ACPI tables, already in place */
    struct cpu_state *state; /* out: the first vCPU; reset state on entry */
};

/* Chooses the loader by what the image is; the error says what is wrong with it. */
nodiscard int boot_load(const struct boot_images *images, const struct boot_target *target,
                        struct error *err);

/* The loaders. *_matches looks at signatures only. */
bool linux_matches(const struct boot_file *file);
nodiscard int linux_load(const struct boot_images *images, const struct boot_target *target,
                         struct error *err);
nodiscard int pvh_load(const struct boot_images *images, const struct boot_target *target,
                       struct error *err);
bool multiboot_matches(const struct boot_file *file);
nodiscard int multiboot_load(const struct boot_images *images, const struct boot_target *target,
                             struct error *err);

/* Help for loaders. */

/* Page-aligned place for `size` bytes in low RAM, as high as possible but below `limit` and above `floor`.
 * 0 when there is none. */
gpa_t boot_place_high(const struct boot_target *target, uint64_t size, uint64_t floor,
                      uint64_t limit);
/* Copies the command line to BOOT_CMDLINE. -E2BIG when it is longer than `max` (without NUL). */
nodiscard int boot_put_cmdline(const struct boot_target *target, const char *prefix,
                               const char *cmdline, uint64_t max, struct error *err);
/* -ENOMEM with the message for an image that [base, base + size) of low RAM cannot hold. */
nodiscard int boot_check_fits(const struct boot_target *target, const struct boot_file *file,
                              uint64_t base, uint64_t size, struct error *err);

/* First instruction of a kernel in flat 32-bit protected mode, paging off. */
void boot_state_protected(struct cpu_state *state, uint64_t entry);
/* In 64-bit mode, the first 4 GiB mapped one to one by tables at BOOT_PAGE_TABLES. */
nodiscard int boot_state_long(const struct boot_target *target, uint64_t entry);

#endif
