/*
 * Linux bzImage by the 64-bit boot protocol, or the 32-bit one when the kernel is 32-bit.
 * Source: Documentation/arch/x86/boot.rst and zero-page.rst; the layout is <asm/bootparam.h>.
 */
#include "board/boot.h"

#include <asm/bootparam.h>
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "x86/arch.h"

#define LINUX_HEADER_OFFSET 0x1f1u
#define LINUX_HEADER_MAX    0x290u /* the setup header ends before this offset */
#define LINUX_MAGIC         0x53726448u /* "HdrS" */
#define LINUX_BOOT_FLAG     0xaa55u
#define LINUX_VERSION_MIN   0x020au /* pref_address and init_size */
#define LINUX_VERSION_64    0x020cu /* xloadflags */
#define LINUX_ENTRY_64      0x200u
#define LINUX_SECTOR        512u
#define LINUX_INITRD_ALIGN  4u /* archives that follow each other start on 4 bytes */

struct linux_image {
    const struct boot_file *file;
    struct setup_header hdr;
    bool is64;
    const uint8_t *payload; /* the protected-mode part, in the file */
    uint64_t payload_size;
    uint64_t load;          /* where it goes */
    uint64_t span;          /* memory it needs there before it has found its own */
};

static_assert(sizeof(struct boot_params) == 4096, "the zero page is one page");

bool linux_matches(const struct boot_file *file)
{
    uint32_t magic;
    uint16_t flag;

    if (file->size < LINUX_HEADER_MAX)
        return false;
    memcpy(&magic, file->data + 0x202, sizeof(magic));
    memcpy(&flag, file->data + 0x1fe, sizeof(flag));
    return magic == LINUX_MAGIC && flag == LINUX_BOOT_FLAG;
}

static int linux_parse(struct linux_image *image, struct error *err)
{
    const struct boot_file *file = image->file;
    struct setup_header *hdr = &image->hdr;
    uint64_t sects, setup, payload;

    /* The header's own length is in the jump at 0x200; what is beyond it is not header (boot.rst). */
    uint64_t end = 0x202u + file->data[0x201];
    uint64_t len = (end < LINUX_HEADER_MAX ? end : LINUX_HEADER_MAX) - LINUX_HEADER_OFFSET;

    memcpy(hdr, file->data + LINUX_HEADER_OFFSET, len < sizeof(*hdr) ? len : sizeof(*hdr));
    if (hdr->version < LINUX_VERSION_MIN)
        return error_set(err, -ENOEXEC,
                         "'%s' speaks Linux boot protocol %u.%02u; 2.10 (Linux 2.6.31) or newer is needed",
                         file->path, hdr->version >> 8, hdr->version & 0xffu);
    if (!(hdr->loadflags & LOADED_HIGH))
        return error_set(err, -ENOEXEC, "'%s' is a zImage; only bzImage kernels can be booted",
                         file->path);
    sects = hdr->setup_sects ? hdr->setup_sects : 4;
    setup = (sects + 1) * LINUX_SECTOR;
    payload = (uint64_t)hdr->syssize * 16;
    if (setup >= file->size || payload > align_up(file->size - setup, 16))
        return error_set(err, -ENOEXEC,
                         "'%s' is truncated: its header speaks of %llu bytes, the file has %llu",
                         file->path, (unsigned long long)(setup + payload),
                         (unsigned long long)file->size);
    image->payload = file->data + setup;
    image->payload_size = file->size - setup;
    image->is64 = hdr->version >= LINUX_VERSION_64 && (hdr->xloadflags & XLF_KERNEL_64);
    return 0;
}

/* At the preferred address, else (a relocatable kernel) where low memory begins. */
static int linux_place(struct linux_image *image, const struct boot_target *target,
                       struct error *err)
{
    const struct setup_header *hdr = &image->hdr;
    uint64_t alignment = hdr->kernel_alignment, end;

    image->span = hdr->init_size > image->payload_size ? hdr->init_size : image->payload_size;
    image->load = hdr->pref_address;
    if (image->load >= BOOT_IMAGE_LOW && !add_overflows(image->load, image->span, &end) &&
        end <= target->map->low_end)
        return 0;
    if (hdr->relocatable_kernel && alignment >= PAGE_SIZE && !(alignment & (alignment - 1)))
        image->load = align_up(BOOT_IMAGE_LOW, alignment);
    if (image->load < BOOT_IMAGE_LOW)
        return error_set(err, -ENOEXEC, "'%s' wants to be loaded at 0x%llx, below 1 MiB",
                         image->file->path, (unsigned long long)image->load);
    return boot_check_fits(target, image->file, image->load, image->span, err);
}

static uint64_t linux_initrd_size(const struct boot_images *images)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < images->module_count; i++)
        total += align_up(images->modules[i].size, LINUX_INITRD_ALIGN);
    return total;
}

/* As high as the kernel allows; several archives one after the other. */
static int linux_put_initrd(const struct linux_image *image, const struct boot_images *images,
                            const struct boot_target *target, struct boot_params *params,
                            struct error *err)
{
    uint64_t size = linux_initrd_size(images), pos;
    uint64_t limit = (uint64_t)image->hdr.initrd_addr_max + 1;

    if (size == 0)
        return 0;
    pos = boot_place_high(target, size, image->load + image->span, limit);
    if (pos == 0)
        return error_set(err, -ENOMEM,
                         "'%s' (%llu KiB) does not fit into the machine's memory beside the kernel "
                         "(give more with --memory)",
                         images->modules[0].path, (unsigned long long)(size >> 10));
    params->hdr.ramdisk_image = (uint32_t)pos;
    params->hdr.ramdisk_size = (uint32_t)size;
    for (unsigned i = 0; i < images->module_count; i++) {
        const struct boot_file *module = &images->modules[i];

        if (mem_write(target->mem, pos, module->data, module->size) < 0)
            return error_set(err, -EFAULT, "cannot write '%s' to guest memory", module->path);
        pos += align_up(module->size, LINUX_INITRD_ALIGN);
    }
    return 0;
}

static void linux_fill_params(const struct linux_image *image, const struct boot_target *target,
                              struct boot_params *params)
{
    const struct memory_map *map = target->map;

    params->hdr = image->hdr;
    params->hdr.type_of_loader = 0xff; /* no id of our own */
    params->hdr.ext_loader_type = 0;
    params->hdr.ext_loader_ver = 0;
    params->hdr.code32_start = (uint32_t)image->load;
    params->hdr.cmd_line_ptr = BOOT_CMDLINE;
    params->hdr.loadflags &= (uint8_t)~CAN_USE_HEAP;
    params->acpi_rsdp_addr = target->rsdp;
    for (unsigned i = 0; i < map->count; i++) {
        params->e820_table[i].addr = map->range[i].base;
        params->e820_table[i].size = map->range[i].size;
        params->e820_table[i].type = (uint32_t)map->range[i].type;
    }
    params->e820_entries = (uint8_t)map->count;
}

static int linux_start(const struct linux_image *image, const struct boot_target *target,
                       struct error *err)
{
    if (image->is64) {
        if (boot_state_long(target, image->load + LINUX_ENTRY_64) < 0)
            return error_set(err, -EFAULT, "cannot write page tables to guest memory");
    } else {
        boot_state_protected(target->state, image->load);
    }
    target->state->gpr[GPR_RSI] = BOOT_PARAMS;
    return 0;
}

int linux_load(const struct boot_images *images, const struct boot_target *target,
               struct error *err)
{
    struct linux_image image = {.file = &images->kernel};
    struct boot_params params = {0};
    uint64_t cmdline_max;
    int r = linux_parse(&image, err);

    if (r == 0)
        r = linux_place(&image, target, err);
    if (r < 0)
        return r;
    cmdline_max = image.hdr.cmdline_size ? image.hdr.cmdline_size : 255;
    linux_fill_params(&image, target, &params);
    r = boot_put_cmdline(target, "", images->cmdline, cmdline_max, err);
    if (r == 0)
        r = linux_put_initrd(&image, images, target, &params, err);
    if (r < 0)
        return r;
    if (mem_write(target->mem, image.load, image.payload, image.payload_size) < 0 ||
        mem_write(target->mem, BOOT_PARAMS, &params, sizeof(params)) < 0)
        return error_set(err, -EFAULT, "cannot write '%s' to guest memory", images->kernel.path);
    return linux_start(&image, target, err);
}
