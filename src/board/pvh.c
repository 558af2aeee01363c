/*
 * ELF kernels by the PVH boot protocol: 32-bit entry, hvm_start_info in EBX.
 * Source: Xen docs/misc/pvh.pandoc; public/arch-x86/hvm/start_info.h, version 1.
 */
#include "board/boot.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "board/elf.h"

#define PVH_MAGIC   0x336ec578u
#define PVH_VERSION 1u

struct pvh_start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
    uint32_t memmap_entries, reserved;
};

struct pvh_module {
    uint64_t paddr, size, cmdline_paddr, reserved;
};

struct pvh_memmap {
    uint64_t addr, size;
    uint32_t type, reserved;
};

/* The start page: everything the kernel is told, in one block at BOOT_PARAMS. */
struct pvh_page {
    struct pvh_start_info info;
    struct pvh_module modules[BOOT_MODULES_MAX];
    struct pvh_memmap memmap[MEMORY_RANGES_MAX];
};

static_assert(sizeof(struct pvh_start_info) == 56, "as in start_info.h");
static_assert(sizeof(struct pvh_page) <= BOOT_PARAMS_SIZE, "fits its place");

static int pvh_put_modules(const struct boot_images *images, const struct boot_target *target,
                           uint64_t kernel_end, struct pvh_page *page, struct error *err)
{
    uint64_t limit = RAM_LOW_MAX;

    for (unsigned i = 0; i < images->module_count; i++) {
        const struct boot_file *module = &images->modules[i];
        gpa_t base = boot_place_high(target, module->size, kernel_end, limit);

        if (base == 0)
            return error_set(err, -ENOMEM,
                             "'%s' (%llu KiB) does not fit into the machine's memory beside the "
                             "kernel (give more with --memory)",
                             module->path, (unsigned long long)(module->size >> 10));
        if (mem_write(target->mem, base, module->data, module->size) < 0)
            return error_set(err, -EFAULT, "cannot write '%s' to guest memory", module->path);
        page->modules[i] = (struct pvh_module){.paddr = base, .size = module->size};
        limit = base;
    }
    return 0;
}

static void pvh_fill_info(const struct boot_images *images, const struct boot_target *target,
                          struct pvh_page *page)
{
    const struct memory_map *map = target->map;

    page->info = (struct pvh_start_info){
        .magic = PVH_MAGIC,
        .version = PVH_VERSION,
        .nr_modules = images->module_count,
        .cmdline_paddr = BOOT_CMDLINE,
        .rsdp_paddr = target->rsdp,
        .memmap_paddr = BOOT_PARAMS + offsetof(struct pvh_page, memmap),
        .memmap_entries = map->count,
    };
    if (images->module_count)
        page->info.modlist_paddr = BOOT_PARAMS + offsetof(struct pvh_page, modules);
    for (unsigned i = 0; i < map->count; i++)
        page->memmap[i] = (struct pvh_memmap){map->range[i].base, map->range[i].size,
                                              (uint32_t)map->range[i].type, 0};
}

int pvh_load(const struct boot_images *images, const struct boot_target *target,
             struct error *err)
{
    const struct boot_file *kernel = &images->kernel;
    struct pvh_page page = {0};
    struct elf_image elf;
    uint64_t entry, low, high;
    int r = elf_open(kernel, &elf, err);

    if (r < 0)
        return r;
    if (!elf_pvh_entry(&elf, &entry))
        return error_set(err, -ENOEXEC,
                         "'%s' is an ELF file without a PVH entry note (boot the bzImage instead, "
                         "or build the kernel with CONFIG_PVH=y)",
                         kernel->path);
    r = elf_load(&elf, target, &low, &high, err);
    if (r < 0)
        return r;
    if (entry < low || entry >= high)
        return error_set(err, -ENOEXEC, "'%s' is damaged: its PVH entry 0x%llx is outside its segments",
                         kernel->path, (unsigned long long)entry);
    r = boot_put_cmdline(target, "", images->cmdline, UINT64_MAX, err);
    if (r == 0)
        r = pvh_put_modules(images, target, high, &page, err);
    if (r < 0)
        return r;
    pvh_fill_info(images, target, &page);
    if (mem_write(target->mem, BOOT_PARAMS, &page, sizeof(page)) < 0)
        return error_set(err, -EFAULT, "cannot write the start info to guest memory");
    boot_state_protected(target->state, entry);
    target->state->gpr[GPR_RBX] = BOOT_PARAMS;
    return 0;
}
