/*
 * Multiboot 1: ELF kernels (also 64-bit files, entered in 32-bit mode), and any image with the
 * address fields in its header (the "a.out kludge"). Source: Multiboot Specification 0.6.96.
 */
#include "board/boot.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "board/elf.h"

#define MULTIBOOT_SEARCH       8192u
#define MULTIBOOT_HEADER_MAGIC 0x1badb002u
#define MULTIBOOT_LOADER_MAGIC 0x2badb002u

#define MULTIBOOT_PAGE_ALIGN   (1u << 0)
#define MULTIBOOT_MEMORY       (1u << 1)
#define MULTIBOOT_VIDEO        (1u << 2) /* a wish; there is no display */
#define MULTIBOOT_ADDRESSES    (1u << 16)
#define MULTIBOOT_MUST_KNOW    0xffffu

#define MBI_MEMORY  (1u << 0)
#define MBI_CMDLINE (1u << 2)
#define MBI_MODULES (1u << 3)
#define MBI_MMAP    (1u << 6)
#define MBI_LOADER  (1u << 9)

struct multiboot_header {
    uint32_t magic, flags, checksum;
    uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

struct multiboot_info {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline;
    uint32_t mods_count, mods_addr;
    uint32_t syms[4];
    uint32_t mmap_length, mmap_addr;
    uint32_t drives_length, drives_addr, config_table, boot_loader_name;
};

struct multiboot_module {
    uint32_t start, end, string, reserved;
};

struct multiboot_mmap {
    uint32_t size; /* of the rest of the entry */
    uint64_t addr, len;
    uint32_t type;
} __attribute__((packed));

#define MULTIBOOT_STRINGS_SIZE 0x6000u

/* Everything the kernel is told, in one block at BOOT_PARAMS. */
struct multiboot_page {
    struct multiboot_info info;
    struct multiboot_module modules[BOOT_MODULES_MAX];
    struct multiboot_mmap mmap[MEMORY_RANGES_MAX];
    char loader[16];
    char strings[MULTIBOOT_STRINGS_SIZE]; /* of the modules */
    uint32_t strings_used;
};

static_assert(sizeof(struct multiboot_page) <= BOOT_PARAMS_SIZE, "fits its place");

#define PAGE_ADDRESS(member) ((uint32_t)(BOOT_PARAMS + offsetof(struct multiboot_page, member)))

/* Finds the header: on a 4-byte boundary, wholly within the first 8192 bytes. */
static bool multiboot_find(const struct boot_file *file, struct multiboot_header *header,
                           uint64_t *offset)
{
    uint64_t end = file->size < MULTIBOOT_SEARCH ? file->size : MULTIBOOT_SEARCH;

    for (uint64_t at = 0; at + 12 <= end; at += 4) {
        uint64_t have = end - at < sizeof(*header) ? end - at : sizeof(*header);

        *header = (struct multiboot_header){0};
        memcpy(header, file->data + at, have);
        if (header->magic != MULTIBOOT_HEADER_MAGIC ||
            header->magic + header->flags + header->checksum != 0)
            continue;
        if ((header->flags & MULTIBOOT_ADDRESSES) && have < sizeof(*header))
            continue;
        *offset = at;
        return true;
    }
    return false;
}

bool multiboot_matches(const struct boot_file *file)
{
    struct multiboot_header header;
    uint64_t offset;

    return multiboot_find(file, &header, &offset);
}

/* By the header's addresses: [load_addr, load_end_addr) from the file, then zeroes up to bss_end. */
static int multiboot_load_addresses(const struct boot_file *file,
                                    const struct multiboot_header *header, uint64_t offset,
                                    const struct boot_target *target, uint64_t *entry,
                                    uint64_t *high, struct error *err)
{
    uint64_t before = (uint64_t)header->header_addr - header->load_addr;
    uint64_t start, size, memory;
    int r;

    if (header->header_addr < header->load_addr || before > offset)
        return error_set(err, -ENOEXEC, "'%s' is damaged: its multiboot load address does not match the file",
                         file->path);
    start = offset - before;
    size = file->size - start;
    if (header->load_end_addr) {
        if (header->load_end_addr < header->load_addr)
            return error_set(err, -ENOEXEC, "'%s' is damaged: its multiboot image ends before it starts",
                             file->path);
        size = header->load_end_addr - header->load_addr;
    }
    if (size > file->size - start)
        return error_set(err, -ENOEXEC, "'%s' is truncated: its multiboot header speaks of %llu bytes, "
                         "the file has %llu", file->path, (unsigned long long)(start + size),
                         (unsigned long long)file->size);
    memory = size;
    if (header->bss_end_addr > header->load_addr && header->bss_end_addr - header->load_addr > size)
        memory = header->bss_end_addr - header->load_addr;
    if (header->load_addr < BOOT_IMAGE_LOW)
        return error_set(err, -ENOEXEC, "'%s' wants to be loaded at 0x%x; kernels start at 1 MiB",
                         file->path, header->load_addr);
    r = boot_check_fits(target, file, header->load_addr, memory, err);
    if (r < 0)
        return r;
    if (mem_write(target->mem, header->load_addr, file->data + start, size) < 0 ||
        mem_fill(target->mem, header->load_addr + size, 0, memory - size) < 0)
        return error_set(err, -EFAULT, "cannot write '%s' to guest memory", file->path);
    *entry = header->entry_addr;
    *high = header->load_addr + memory;
    return 0;
}

/* e_entry is physical in 32-bit kernels; some link it virtually: then it is moved with its segment. */
static uint64_t multiboot_elf_entry(const struct elf_image *elf)
{
    for (unsigned i = 0; i < elf->phnum; i++) {
        struct elf_segment segment;
        struct error ignored = {0};

        if (elf_segment_get(elf, i, &segment, &ignored) < 0 || segment.type != ELF_PT_LOAD)
            continue;
        if (elf->entry >= segment.vaddr && elf->entry - segment.vaddr < segment.memsz)
            return elf->entry - segment.vaddr + segment.paddr;
    }
    return elf->entry;
}

static int multiboot_load_elf(const struct boot_file *file, const struct boot_target *target,
                              uint64_t *entry, uint64_t *high, struct error *err)
{
    struct elf_image elf;
    uint64_t low;
    int r = elf_open(file, &elf, err);

    if (r == 0)
        r = elf_load(&elf, target, &low, high, err);
    if (r == 0)
        *entry = multiboot_elf_entry(&elf);
    return r;
}

static int multiboot_add_string(struct multiboot_page *page, const char *text, uint32_t *address,
                                struct error *err)
{
    size_t len = strlen(text) + 1;

    if (len > MULTIBOOT_STRINGS_SIZE - page->strings_used)
        return error_set(err, -E2BIG, "the strings of the multiboot modules are too long");
    memcpy(page->strings + page->strings_used, text, len);
    *address = PAGE_ADDRESS(strings) + page->strings_used;
    page->strings_used += (uint32_t)len;
    return 0;
}

/* Modules follow the kernel, each on a page boundary. */
static int multiboot_put_modules(const struct boot_images *images,
                                 const struct boot_target *target, uint64_t high,
                                 struct multiboot_page *page, struct error *err)
{
    for (unsigned i = 0; i < images->module_count; i++) {
        const struct boot_file *file = &images->modules[i];
        struct multiboot_module *module = &page->modules[i];
        uint64_t base = align_up(high, PAGE_SIZE);
        int r = boot_check_fits(target, file, base, file->size, err);

        if (r == 0)
            r = multiboot_add_string(page, file->path, &module->string, err);
        if (r < 0)
            return r;
        if (mem_write(target->mem, base, file->data, file->size) < 0)
            return error_set(err, -EFAULT, "cannot write '%s' to guest memory", file->path);
        module->start = (uint32_t)base;
        module->end = (uint32_t)(base + file->size);
        high = base + file->size;
    }
    return 0;
}

static void multiboot_fill_info(const struct boot_images *images, const struct boot_target *target,
                                struct multiboot_page *page)
{
    const struct memory_map *map = target->map;

    page->info = (struct multiboot_info){
        .flags = MBI_MEMORY | MBI_CMDLINE | MBI_MODULES | MBI_MMAP | MBI_LOADER,
        .mem_lower = BOOT_LOW_END / 1024,
        .mem_upper = (uint32_t)((map->low_end - BOOT_IMAGE_LOW) / 1024),
        .cmdline = BOOT_CMDLINE,
        .mods_count = images->module_count,
        .mods_addr = PAGE_ADDRESS(modules),
        .mmap_length = (uint32_t)(map->count * sizeof(struct multiboot_mmap)),
        .mmap_addr = PAGE_ADDRESS(mmap),
        .boot_loader_name = PAGE_ADDRESS(loader),
    };
    snprintf(page->loader, sizeof(page->loader), "lodge");
    for (unsigned i = 0; i < map->count; i++)
        page->mmap[i] = (struct multiboot_mmap){
            .size = sizeof(struct multiboot_mmap) - sizeof(uint32_t),
            .addr = map->range[i].base,
            .len = map->range[i].size,
            .type = (uint32_t)map->range[i].type,
        };
}

static int multiboot_put_info(const struct boot_images *images, const struct boot_target *target,
                              uint64_t high, struct multiboot_page *page, struct error *err)
{
    char prefix[4096 + 2];
    int r;

    multiboot_fill_info(images, target, page);
    r = multiboot_put_modules(images, target, high, page, err);
    if (r < 0)
        return r;
    /* The first word of the command line is the kernel's own name, as boot loaders do it. */
    snprintf(prefix, sizeof(prefix), "%.4096s%s", images->kernel.path, *images->cmdline ? " " : "");
    r = boot_put_cmdline(target, prefix, images->cmdline, UINT64_MAX, err);
    if (r == 0 && mem_write(target->mem, BOOT_PARAMS, page, sizeof(*page)) < 0)
        r = error_set(err, -EFAULT, "cannot write the multiboot information to guest memory");
    return r;
}

int multiboot_load(const struct boot_images *images, const struct boot_target *target,
                   struct error *err)
{
    const struct boot_file *kernel = &images->kernel;
    struct multiboot_page page = {0};
    struct multiboot_header header;
    uint64_t offset, entry = 0, high = 0;
    int r;

    if (!multiboot_find(kernel, &header, &offset))
        return error_set(err, -ENOEXEC, "'%s' has no multiboot header", kernel->path);
    if (header.flags & MULTIBOOT_MUST_KNOW &
        ~(MULTIBOOT_PAGE_ALIGN | MULTIBOOT_MEMORY | MULTIBOOT_VIDEO))
        return error_set(err, -ENOEXEC, "'%s' asks for multiboot features that are unknown (flags 0x%x)",
                         kernel->path, header.flags);
    if (header.flags & MULTIBOOT_ADDRESSES)
        r = multiboot_load_addresses(kernel, &header, offset, target, &entry, &high, err);
    else if (elf_matches(kernel->data, kernel->size))
        r = multiboot_load_elf(kernel, target, &entry, &high, err);
    else
        r = error_set(err, -ENOEXEC, "'%s' has a multiboot header, but is neither ELF nor gives addresses",
                      kernel->path);
    if (r < 0)
        return r;
    if (entry < BOOT_IMAGE_LOW || entry >= high)
        return error_set(err, -ENOEXEC, "'%s' is damaged: its entry 0x%llx is outside what was loaded",
                         kernel->path, (unsigned long long)entry);
    r = multiboot_put_info(images, target, high, &page, err);
    if (r < 0)
        return r;
    boot_state_protected(target->state, entry);
    target->state->gpr[GPR_RAX] = MULTIBOOT_LOADER_MAGIC;
    target->state->gpr[GPR_RBX] = BOOT_PARAMS;
    return 0;
}
