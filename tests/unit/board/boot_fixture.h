/* A small machine's memory, and hand-made kernels of every format, for the tests of the loaders. */
#ifndef TESTS_UNIT_BOARD_BOOT_FIXTURE_H
#define TESTS_UNIT_BOARD_BOOT_FIXTURE_H

#include <elf.h>
#undef PF_W /* a name of x86/arch.h too */
#include <stdlib.h>
#include <string.h>

#include <asm/bootparam.h>

#include "board/boot.h"

#define FIXTURE_RAM (32ull << 20)

struct fixture {
    struct mem *mem;
    struct memory_map map;
    struct cpu_state *state;
    struct boot_target target;
    struct boot_images images;
    struct error err;
};

static inline void fixture_init(struct fixture *f, const void *kernel, size_t size)
{
    struct error ignored = {0};

    memset(f, 0, sizeof(*f));
    memory_map_init(&f->map, FIXTURE_RAM, 40);
    if (mem_create(&f->mem) < 0 || memory_map_add_ram(&f->map, f->mem, &ignored) < 0)
        abort();
    f->state = aligned_alloc(64, align_up(sizeof(*f->state), 64));
    memset(f->state, 0, sizeof(*f->state));
    f->target = (struct boot_target){f->mem, &f->map, 0xe0000, f->state};
    f->images.kernel = (struct boot_file){"kernel", kernel, size};
    f->images.cmdline = "console=ttyS0";
}

static inline void fixture_release(struct fixture *f)
{
    mem_destroy(f->mem);
    free(f->state);
}

static inline int fixture_load(struct fixture *f)
{
    f->err = (struct error){0};
    return boot_load(&f->images, &f->target, &f->err);
}

#define BZIMAGE_SIZE (5 * 512 + 4096)

/* Five sectors of set-up code and a payload of 0x90 bytes. */
static inline void make_bzimage(uint8_t image[BZIMAGE_SIZE])
{
    struct setup_header hdr = {
        .setup_sects = 4,
        .syssize = 4096 / 16,
        .boot_flag = 0xaa55,
        .jump = 0x6aeb, /* the header ends at 0x202 + 0x6a */
        .header = 0x53726448,
        .version = 0x20f,
        .loadflags = LOADED_HIGH,
        .initrd_addr_max = 0x7fffffff,
        .kernel_alignment = 0x200000,
        .relocatable_kernel = 1,
        .xloadflags = XLF_KERNEL_64,
        .cmdline_size = 2047,
        .pref_address = 0x1000000,
        .init_size = 0x10000,
    };

    memset(image, 0, BZIMAGE_SIZE);
    memset(image + 5 * 512, 0x90, 4096);
    memcpy(image + 0x1f1, &hdr, sizeof(hdr));
}

#define ELF_SIZE 4096

/* One segment at 2 MiB (64 bytes in the file, 4096 in memory), and a PVH note. */
static inline void make_elf64(uint8_t image[ELF_SIZE], bool with_note)
{
    const struct {
        Elf64_Nhdr note;
        char name[4];
        uint32_t entry;
    } note = {{4, 4, 18}, "Xen", 0x200010};
    Elf64_Ehdr header = {.e_type = ET_EXEC, .e_machine = EM_X86_64, .e_version = 1,
                         .e_entry = 0x200020, .e_phoff = 64, .e_ehsize = 64,
                         .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = with_note ? 2 : 1};
    Elf64_Phdr segments[2] = {
        {.p_type = PT_LOAD, .p_offset = 512, .p_vaddr = 0xffffffff80200000, .p_paddr = 0x200000,
         .p_filesz = 64, .p_memsz = 4096},
        {.p_type = PT_NOTE, .p_offset = 1024, .p_filesz = sizeof(note)},
    };

    memset(image, 0, ELF_SIZE);
    memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    memcpy(image, &header, sizeof(header));
    memcpy(image + 64, segments, sizeof(segments));
    memset(image + 512, 0xcc, 64);
    memcpy(image + 1024, &note, sizeof(note));
}

/* A multiboot header at offset 2048; with `addresses`, the a.out kludge for a load address of 1 MiB. */
static inline void put_multiboot(uint8_t *image, uint32_t flags, bool addresses)
{
    uint32_t header[8] = {0x1badb002, flags | (addresses ? 1u << 16 : 0)};

    header[2] = 0u - header[0] - header[1];
    if (addresses) {
        header[3] = 0x100000 + 2048; /* header_addr */
        header[4] = 0x100000;        /* load_addr: the whole file */
        header[6] = 0x110000;        /* bss_end_addr */
        header[7] = 0x100010;        /* entry_addr */
    }
    memcpy(image + 2048, header, addresses ? sizeof(header) : 12);
}

#endif
