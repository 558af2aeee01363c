/* The loaders: what each puts where, what each refuses, and that damaged images harm nothing. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "boot_fixture.h"
#include "x86/arch.h"

static void refuse(struct fixture *f, int code, const char *words)
{
    assert_int_equal(fixture_load(f), code);
    if (!strstr(f->err.message, words))
        fail_msg("'%s' does not say '%s'", f->err.message, words);
}

static void test_linux(void **state)
{
    static const uint8_t initrd[5] = "abcd";
    uint8_t image[BZIMAGE_SIZE], byte;
    struct boot_params params;
    char cmdline[14], two[13];
    struct fixture f;

    (void)state;
    make_bzimage(image);
    fixture_init(&f, image, sizeof(image));
    f.images.modules[0] = (struct boot_file){"a", initrd, 5};
    f.images.modules[1] = (struct boot_file){"b", initrd, 5};
    f.images.module_count = 2;
    assert_int_equal(fixture_load(&f), 0);

    assert_int_equal(f.state->rip, 0x1000200);
    assert_int_equal(f.state->gpr[GPR_RSI], BOOT_PARAMS);
    assert_int_equal(f.state->efer, EFER_LME | EFER_LMA);
    assert_int_equal(f.state->seg[SEG_CS].selector, 0x10);
    assert_true(f.state->seg[SEG_CS].attr & CPU_SEG_L);
    assert_int_equal(mem_read(f.mem, 0x1000fff, &byte, 1), 0);
    assert_int_equal(byte, 0x90);

    assert_int_equal(mem_read(f.mem, BOOT_PARAMS, &params, sizeof(params)), 0);
    assert_int_equal(params.hdr.header, 0x53726448);
    assert_int_equal(params.hdr.type_of_loader, 0xff);
    assert_int_equal(params.sentinel, 0);
    assert_int_equal(params.acpi_rsdp_addr, 0xe0000);
    assert_int_equal(params.e820_entries, f.map.count);
    assert_int_equal(params.e820_table[0].size, BOOT_LOW_END);
    assert_int_equal(mem_read(f.mem, params.hdr.cmd_line_ptr, cmdline, 14), 0);
    assert_string_equal(cmdline, "console=ttyS0");

    /* Two archives, each on 4 bytes, the whole as high as it fits. */
    assert_int_equal(params.hdr.ramdisk_size, 16);
    assert_int_equal(params.hdr.ramdisk_image, FIXTURE_RAM - PAGE_SIZE);
    assert_int_equal(mem_read(f.mem, params.hdr.ramdisk_image, two, 13), 0);
    assert_memory_equal(two, "abcd\0\0\0\0abcd\0", 13);
    fixture_release(&f);
}

static void test_linux_identity_map(void **state)
{
    uint8_t image[BZIMAGE_SIZE];
    struct fixture f;

    (void)state;
    make_bzimage(image);
    fixture_init(&f, image, sizeof(image));
    assert_int_equal(fixture_load(&f), 0);
    for (uint64_t at = 0; at < 4ull << 30; at += 0x12345678) {
        uint64_t pml4e = mem_read64(f.mem, f.state->cr3);
        uint64_t pdpte = mem_read64(f.mem, (pml4e & ~0xfffull) + 8 * (at >> 30));
        uint64_t pde = mem_read64(f.mem, (pdpte & ~0xfffull) + 8 * ((at >> 21) & 511));

        assert_true(pml4e & pdpte & pde & PTE_P);
        assert_int_equal(pde & ~0x1fffffull, at & ~0x1fffffull);
    }
    fixture_release(&f);
}

static void test_linux_small_memory(void **state)
{
    uint8_t image[BZIMAGE_SIZE];
    struct setup_header *hdr = (struct setup_header *)(image + 0x1f1);
    struct fixture f;

    (void)state;
    make_bzimage(image);
    hdr->pref_address = FIXTURE_RAM; /* does not fit there: moved */
    fixture_init(&f, image, sizeof(image));
    assert_int_equal(fixture_load(&f), 0);
    assert_int_equal(f.state->rip, 0x200200);
    hdr->init_size = (uint32_t)FIXTURE_RAM;
    refuse(&f, -ENOMEM, "does not fit into the machine's memory");
    hdr->init_size = 0xffffffff;
    hdr->pref_address = UINT64_MAX - 100;
    hdr->relocatable_kernel = 0;
    refuse(&f, -ENOMEM, "does not fit into the machine's memory");
    fixture_release(&f);
}

static void test_linux_refusals(void **state)
{
    uint8_t image[BZIMAGE_SIZE];
    struct setup_header *hdr = (struct setup_header *)(image + 0x1f1);
    char long_line[3000];
    struct fixture f;

    (void)state;
    memset(long_line, 'a', sizeof(long_line) - 1);
    long_line[sizeof(long_line) - 1] = '\0';
    make_bzimage(image);
    fixture_init(&f, image, sizeof(image) - 512);
    refuse(&f, -ENOEXEC, "truncated");
    f.images.kernel.size = 1024;
    refuse(&f, -ENOEXEC, "truncated");
    f.images.kernel.size = sizeof(image);
    hdr->version = 0x204;
    refuse(&f, -ENOEXEC, "protocol 2.04");
    hdr->version = 0x20f;
    hdr->loadflags = 0;
    refuse(&f, -ENOEXEC, "zImage");
    hdr->loadflags = LOADED_HIGH;
    f.images.cmdline = long_line;
    refuse(&f, -E2BIG, "2047");
    f.images.cmdline = "";
    f.images.modules[0] = (struct boot_file){"huge.img", image, FIXTURE_RAM};
    f.images.module_count = 1;
    refuse(&f, -ENOMEM, "huge.img");
    fixture_release(&f);
}

static void test_linux_32_bit(void **state)
{
    uint8_t image[BZIMAGE_SIZE];
    struct fixture f;

    (void)state;
    make_bzimage(image);
    ((struct setup_header *)(image + 0x1f1))->xloadflags = 0;
    fixture_init(&f, image, sizeof(image));
    assert_int_equal(fixture_load(&f), 0);
    assert_int_equal(f.state->rip, 0x1000000);
    assert_int_equal(f.state->cr0, CR0_PE | CR0_ET);
    assert_true(f.state->seg[SEG_CS].attr & CPU_SEG_DB);
    fixture_release(&f);
}

static void test_pvh(void **state)
{
    struct {
        uint32_t magic, version, flags, modules;
        uint64_t modlist, cmdline, rsdp, memmap;
        uint32_t entries, reserved;
    } info;
    uint8_t image[ELF_SIZE];
    struct fixture f;

    (void)state;
    make_elf64(image, true);
    fixture_init(&f, image, sizeof(image));
    f.images.modules[0] = (struct boot_file){"m", (const uint8_t *)"module", 6};
    f.images.module_count = 1;
    mem_write32(f.mem, 0x200000 + 100, 0xffffffff);
    assert_int_equal(fixture_load(&f), 0);
    assert_int_equal(f.state->rip, 0x200010);
    assert_int_equal(f.state->tr.limit, 0x67);
    assert_int_equal(mem_read32(f.mem, 0x200000), 0xcccccccc);
    assert_int_equal(mem_read32(f.mem, 0x200000 + 100), 0); /* bss */
    assert_int_equal(mem_read(f.mem, f.state->gpr[GPR_RBX], &info, sizeof(info)), 0);
    assert_int_equal(info.magic, 0x336ec578);
    assert_int_equal(info.version, 1);
    assert_int_equal(info.rsdp, 0xe0000);
    assert_int_equal(info.entries, f.map.count);
    assert_int_equal(mem_read64(f.mem, info.memmap + 24 * 3), BOOT_IMAGE_LOW);
    assert_int_equal(info.modules, 1);
    assert_int_equal(mem_read64(f.mem, info.modlist + 8), 6);
    assert_int_equal(mem_read32(f.mem, mem_read64(f.mem, info.modlist)), 0x75646f6d);
    fixture_release(&f);
}

static void test_elf_refusals(void **state)
{
    uint8_t image[ELF_SIZE];
    Elf64_Ehdr *header = (Elf64_Ehdr *)image;
    Elf64_Phdr *segment = (Elf64_Phdr *)(image + 64);
    struct fixture f;

    (void)state;
    make_elf64(image, false);
    fixture_init(&f, image, sizeof(image));
    refuse(&f, -ENOEXEC, "without a PVH entry note");
    make_elf64(image, true);
    f.images.kernel.size = 40;
    refuse(&f, -ENOEXEC, "truncated");
    f.images.kernel.size = sizeof(image);
    segment->p_filesz = UINT64_MAX - 100;
    refuse(&f, -ENOEXEC, "truncated");
    make_elf64(image, true);
    segment->p_memsz = 1;
    refuse(&f, -ENOEXEC, "damaged");
    segment->p_memsz = FIXTURE_RAM;
    refuse(&f, -ENOMEM, "does not fit");
    segment->p_memsz = UINT64_MAX;
    refuse(&f, -ENOMEM, "does not fit");
    make_elf64(image, true);
    segment->p_paddr = 0x7c00;
    refuse(&f, -ENOEXEC, "kernels start at 1 MiB");
    make_elf64(image, true);
    header->e_machine = EM_AARCH64;
    refuse(&f, -ENOEXEC, "another processor");
    fixture_release(&f);
}

static void test_multiboot_elf(void **state)
{
    uint8_t image[ELF_SIZE];
    uint32_t mbi[22];
    char text[32];
    struct fixture f;

    (void)state;
    make_elf64(image, false);
    put_multiboot(image, 3, false);
    ((Elf64_Ehdr *)image)->e_entry = 0xffffffff80200020; /* virtual: moved with its segment */
    fixture_init(&f, image, sizeof(image));
    f.images.modules[0] = (struct boot_file){"mod one", (const uint8_t *)"12345", 5};
    f.images.modules[1] = (struct boot_file){"mod two", (const uint8_t *)"6", 1};
    f.images.module_count = 2;
    assert_int_equal(fixture_load(&f), 0);
    assert_int_equal(f.state->rip, 0x200020);
    assert_int_equal(f.state->gpr[GPR_RAX], 0x2badb002);
    assert_int_equal(mem_read(f.mem, f.state->gpr[GPR_RBX], mbi, sizeof(mbi)), 0);
    assert_int_equal(mbi[0], 0x24d);
    assert_int_equal(mbi[2], (FIXTURE_RAM - 0x100000) / 1024); /* mem_upper */
    assert_int_equal(mbi[5], 2);
    assert_int_equal(mem_read32(f.mem, mbi[6]), 0x201000);
    assert_int_equal(mem_read32(f.mem, mbi[6] + 4), 0x201005);
    assert_int_equal(mem_read32(f.mem, mbi[6] + 16), 0x202000);
    assert_int_equal(mem_read(f.mem, mem_read32(f.mem, mbi[6] + 16 + 8), text, 8), 0);
    assert_string_equal(text, "mod two");
    assert_int_equal(mem_read(f.mem, mbi[4], text, 21), 0);
    assert_string_equal(text, "kernel console=ttyS0");
    assert_int_equal(mem_read32(f.mem, mbi[12]), 20);
    assert_int_equal(mbi[11], 24 * f.map.count);
    fixture_release(&f);
}

static void test_multiboot_addresses(void **state)
{
    uint8_t image[4096] = {0};
    uint32_t *header = (uint32_t *)(image + 2048);
    struct fixture f;

    (void)state;
    put_multiboot(image, 0, true);
    image[16] = 0xf4;
    fixture_init(&f, image, sizeof(image));
    mem_write32(f.mem, 0x10fffc, 1);
    assert_int_equal(fixture_load(&f), 0);
    assert_int_equal(f.state->rip, 0x100010);
    assert_int_equal(mem_read32(f.mem, 0x100010), 0xf4);
    assert_int_equal(mem_read32(f.mem, 0x10fffc), 0);
    header[5] = 0x100000 + 8192; /* load_end_addr beyond the file */
    refuse(&f, -ENOEXEC, "truncated");
    header[5] = 0xfffff;
    refuse(&f, -ENOEXEC, "ends before it starts");
    header[5] = 0;
    header[3] = 0; /* header_addr below load_addr */
    refuse(&f, -ENOEXEC, "does not match");
    header[3] = 0x100000 + 4096;
    refuse(&f, -ENOEXEC, "does not match");
    header[3] = 0x100000 + 2048;
    header[6] = 0xffffffff;
    refuse(&f, -ENOMEM, "does not fit");
    header[6] = 0;
    header[7] = 0x100; /* entry outside */
    refuse(&f, -ENOEXEC, "outside what was loaded");
    fixture_release(&f);
}

static void test_multiboot_unknown_flag(void **state)
{
    uint8_t image[4096] = {0};
    struct fixture f;

    (void)state;
    put_multiboot(image, 1u << 5, true);
    fixture_init(&f, image, sizeof(image));
    refuse(&f, -ENOEXEC, "unknown");
    fixture_release(&f);
}

static void test_not_a_kernel(void **state)
{
    static const char text[] = "#!/bin/sh\necho hello\n";
    struct fixture f;

    (void)state;
    fixture_init(&f, text, sizeof(text));
    refuse(&f, -ENOEXEC, "not a kernel");
    f.images.kernel.size = 0;
    refuse(&f, -ENOEXEC, "empty");
    fixture_release(&f);
}

/* Every length, and every byte made extreme: an answer, no harm (the sanitizers watch). A refusal says why. */
static void try_damage(struct fixture *f, uint8_t *image, size_t size, size_t interesting)
{
    static const uint8_t values[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    /* Copied to a block of its own size, so that a read past the end is seen. */
    for (size_t len = 0; len <= size; len += len < interesting ? 1 : 97) {
        uint8_t *copy = malloc(len ? len : 1);

        memcpy(copy, image, len);
        f->images.kernel.data = copy;
        f->images.kernel.size = len;
        if (fixture_load(f) < 0)
            assert_true(f->err.message[0]);
        free(copy);
    }
    f->images.kernel.data = image;
    f->images.kernel.size = size;
    for (size_t at = 0; at < interesting; at++) {
        uint8_t was = image[at];

        for (size_t v = 0; v < ARRAY_SIZE(values); v++) {
            image[at] = values[v];
            if (fixture_load(f) < 0)
                assert_true(f->err.message[0]);
        }
        image[at] = was;
    }
    assert_int_equal(fixture_load(f), 0);
}

static void test_damage(void **state)
{
    uint8_t bzimage[BZIMAGE_SIZE], elf[ELF_SIZE], flat[4096] = {0};
    struct fixture f;

    (void)state;
    make_bzimage(bzimage);
    fixture_init(&f, bzimage, sizeof(bzimage));
    try_damage(&f, bzimage, sizeof(bzimage), 0x290);
    fixture_release(&f);
    make_elf64(elf, true);
    fixture_init(&f, elf, sizeof(elf));
    try_damage(&f, elf, sizeof(elf), 1100);
    fixture_release(&f);
    put_multiboot(flat, 3, true);
    fixture_init(&f, flat, sizeof(flat));
    try_damage(&f, flat, sizeof(flat), 2100);
    fixture_release(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linux),
        cmocka_unit_test(test_linux_identity_map),
        cmocka_unit_test(test_linux_small_memory),
        cmocka_unit_test(test_linux_refusals),
        cmocka_unit_test(test_linux_32_bit),
        cmocka_unit_test(test_pvh),
        cmocka_unit_test(test_elf_refusals),
        cmocka_unit_test(test_multiboot_elf),
        cmocka_unit_test(test_multiboot_addresses),
        cmocka_unit_test(test_multiboot_unknown_flag),
        cmocka_unit_test(test_not_a_kernel),
        cmocka_unit_test(test_damage),
    };

    return cmocka_run_group_tests_name("boot", tests, NULL, NULL);
}
