#include "board/boot.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "board/elf.h"

#define MIB (1ull << 20)

gpa_t boot_place_high(const struct boot_target *target, uint64_t size, uint64_t floor,
                      uint64_t limit)
{
    uint64_t end = target->map->low_end < limit ? target->map->low_end : limit;
    uint64_t base;

    if (size > end)
        return 0;
    base = align_down(end - size, PAGE_SIZE);
    return base >= floor ? base : 0;
}

int boot_put_cmdline(const struct boot_target *target, const char *prefix, const char *cmdline,
                     uint64_t max, struct error *err)
{
    size_t head = strlen(prefix), body = strlen(cmdline);
    uint64_t limit = max < BOOT_CMDLINE_MAX - 1 ? max : BOOT_CMDLINE_MAX - 1;

    if (head > limit || body > limit - head)
        return error_set(err, -E2BIG,
                         "the kernel command line has %zu characters, this kernel takes at most "
                         "%llu (shorten --append)",
                         head + body, (unsigned long long)limit);
    if (mem_write(target->mem, BOOT_CMDLINE, prefix, head) < 0 ||
        mem_write(target->mem, BOOT_CMDLINE + head, cmdline, body + 1) < 0)
        return error_set(err, -EFAULT, "cannot write the command line to guest memory");
    return 0;
}

int boot_check_fits(const struct boot_target *target, const struct boot_file *file, uint64_t base,
                    uint64_t size, struct error *err)
{
    uint64_t end;

    if (add_overflows(base, size, &end) || end > target->map->low_end)
        return error_set(err, -ENOMEM,
                         "'%s' does not fit into the machine's memory: it needs %llu MiB at "
                         "0x%llx, and memory ends at 0x%llx (give more with --memory)",
                         file->path, (unsigned long long)((size + MIB - 1) / MIB),
                         (unsigned long long)base, (unsigned long long)target->map->low_end);
    return 0;
}

static int boot_refuse(const struct boot_file *file, struct error *err)
{
    if (file->size == 0)
        return error_set(err, -ENOEXEC, "'%s' is not a kernel: the file is empty", file->path);
    return error_set(err, -ENOEXEC,
                     "'%s' is not a kernel: neither a Linux bzImage, nor an ELF file, nor a "
                     "multiboot image",
                     file->path);
}

int boot_load(const struct boot_images *images, const struct boot_target *target,
              struct error *err)
{
    const struct boot_file *kernel = &images->kernel;

    if (linux_matches(kernel))
        return linux_load(images, target, err);
    /* An ELF file with both a PVH note and a multiboot header starts by PVH: it hands over more. */
    if (elf_has_pvh_entry(kernel->data, kernel->size))
        return pvh_load(images, target, err);
    if (multiboot_matches(kernel))
        return multiboot_load(images, target, err);
    if (elf_matches(kernel->data, kernel->size))
        return pvh_load(images, target, err); /* says what is missing */
    return boot_refuse(kernel, err);
}
