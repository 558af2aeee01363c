#include "board/elf.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

#define ELF_PHNUM_MAX 256u /* more than any kernel has; bounds the loops */
#define NOTE_NAME_XEN "Xen"
#define XEN_ELFNOTE_PHYS32_ENTRY 18u /* Xen public/elfnote.h */

bool elf_matches(const uint8_t *data, uint64_t size)
{
    return size >= SELFMAG && memcmp(data, ELFMAG, SELFMAG) == 0;
}

static int elf_truncated(const struct boot_file *file, struct error *err)
{
    return error_set(err, -ENOEXEC, "'%s' is truncated: its ELF headers point past its end (%llu bytes)",
                     file->path, (unsigned long long)file->size);
}

static int elf_check_machine(const struct boot_file *file, unsigned type, unsigned machine,
                             struct error *err)
{
    if (machine != EM_X86_64 && machine != EM_386)
        return error_set(err, -ENOEXEC, "'%s' is an ELF file for another processor (machine %u)",
                         file->path, machine);
    if (type != ET_EXEC && type != ET_DYN)
        return error_set(err, -ENOEXEC, "'%s' is an ELF file, but not an executable one (type %u)",
                         file->path, type);
    return 0;
}

static int elf_read_header64(struct elf_image *elf, struct error *err)
{
    Elf64_Ehdr header;
    int r;

    if (elf->file->size < sizeof(header))
        return elf_truncated(elf->file, err);
    memcpy(&header, elf->file->data, sizeof(header));
    r = elf_check_machine(elf->file, header.e_type, header.e_machine, err);
    elf->entry = header.e_entry;
    elf->phoff = header.e_phoff;
    elf->phnum = header.e_phnum;
    elf->phentsize = header.e_phentsize;
    return r;
}

static int elf_read_header32(struct elf_image *elf, struct error *err)
{
    Elf32_Ehdr header;
    int r;

    if (elf->file->size < sizeof(header))
        return elf_truncated(elf->file, err);
    memcpy(&header, elf->file->data, sizeof(header));
    r = elf_check_machine(elf->file, header.e_type, header.e_machine, err);
    elf->entry = header.e_entry;
    elf->phoff = header.e_phoff;
    elf->phnum = header.e_phnum;
    elf->phentsize = header.e_phentsize;
    return r;
}

int elf_open(const struct boot_file *file, struct elf_image *elf, struct error *err)
{
    uint64_t end;
    int r;

    *elf = (struct elf_image){.file = file};
    if (!elf_matches(file->data, file->size))
        return error_set(err, -ENOEXEC, "'%s' is not an ELF file", file->path);
    if (file->size <= EI_DATA)
        return elf_truncated(file, err);
    if (file->data[EI_DATA] != ELFDATA2LSB)
        return error_set(err, -ENOEXEC, "'%s' is a big-endian ELF file", file->path);
    elf->is64 = file->data[EI_CLASS] == ELFCLASS64;
    r = elf->is64 ? elf_read_header64(elf, err) : elf_read_header32(elf, err);
    if (r < 0)
        return r;
    if (elf->phnum == 0 || elf->phnum > ELF_PHNUM_MAX ||
        elf->phentsize < (elf->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)))
        return error_set(err, -ENOEXEC, "'%s' has no program headers that can be loaded",
                         file->path);
    if (add_overflows(elf->phoff, (uint64_t)elf->phnum * elf->phentsize, &end) || end > file->size)
        return elf_truncated(file, err);
    return 0;
}

int elf_segment_get(const struct elf_image *elf, unsigned i, struct elf_segment *segment,
                    struct error *err)
{
    const uint8_t *at = elf->file->data + elf->phoff + (uint64_t)i * elf->phentsize;
    uint64_t end;

    if (elf->is64) {
        Elf64_Phdr p;

        memcpy(&p, at, sizeof(p));
        *segment = (struct elf_segment){p.p_type,  p.p_offset, p.p_vaddr,
                                        p.p_paddr, p.p_filesz, p.p_memsz};
    } else {
        Elf32_Phdr p;

        memcpy(&p, at, sizeof(p));
        *segment = (struct elf_segment){p.p_type,  p.p_offset, p.p_vaddr,
                                        p.p_paddr, p.p_filesz, p.p_memsz};
    }
    if (segment->type != ELF_PT_LOAD && segment->type != ELF_PT_NOTE)
        return 0;
    if (add_overflows(segment->offset, segment->filesz, &end) || end > elf->file->size)
        return elf_truncated(elf->file, err);
    return 0;
}

/* Walks the notes of one PT_NOTE segment. Names and descriptors are padded to 4 bytes. */
static bool elf_find_pvh_note(const uint8_t *notes, uint64_t size, uint64_t *entry)
{
    uint64_t pos = 0;

    while (size - pos >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr note;
        uint64_t name, desc, next;

        memcpy(&note, notes + pos, sizeof(note));
        name = pos + sizeof(note);
        desc = name + align_up(note.n_namesz, 4);
        next = desc + align_up(note.n_descsz, 4); /* cannot overflow: each is below 2^33 */
        if (desc + note.n_descsz > size)
            return false;
        if (note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && note.n_namesz == sizeof(NOTE_NAME_XEN) &&
            memcmp(notes + name, NOTE_NAME_XEN, sizeof(NOTE_NAME_XEN)) == 0 &&
            (note.n_descsz == 4 || note.n_descsz == 8)) {
            *entry = 0;
            memcpy(entry, notes + desc, note.n_descsz);
            return true;
        }
        if (next > size)
            return false;
        pos = next;
    }
    return false;
}

bool elf_pvh_entry(const struct elf_image *elf, uint64_t *entry)
{
    for (unsigned i = 0; i < elf->phnum; i++) {
        struct elf_segment segment;
        struct error ignored = {0};

        if (elf_segment_get(elf, i, &segment, &ignored) < 0 || segment.type != ELF_PT_NOTE)
            continue;
        if (elf_find_pvh_note(elf->file->data + segment.offset, segment.filesz, entry))
            return true;
    }
    return false;
}

bool elf_has_pvh_entry(const uint8_t *data, uint64_t size)
{
    struct boot_file file = {"", data, size};
    struct error ignored = {0};
    struct elf_image elf;
    uint64_t entry;

    return elf_open(&file, &elf, &ignored) == 0 && elf_pvh_entry(&elf, &entry);
}

static int elf_load_segment(const struct elf_image *elf, const struct boot_target *target,
                            const struct elf_segment *segment, struct error *err)
{
    const struct boot_file *file = elf->file;
    int r;

    if (segment->memsz < segment->filesz)
        return error_set(err, -ENOEXEC, "'%s' is damaged: a segment is larger in the file than in memory",
                         file->path);
    if (segment->paddr < BOOT_IMAGE_LOW)
        return error_set(err, -ENOEXEC, "'%s' wants to be loaded at 0x%llx; kernels start at 1 MiB",
                         file->path, (unsigned long long)segment->paddr);
    r = boot_check_fits(target, file, segment->paddr, segment->memsz, err);
    if (r < 0)
        return r;
    r = mem_write(target->mem, segment->paddr, file->data + segment->offset, segment->filesz);
    if (r == 0)
        r = mem_fill(target->mem, segment->paddr + segment->filesz, 0,
                     segment->memsz - segment->filesz);
    if (r < 0)
        return error_set(err, r, "cannot write '%s' to guest memory", file->path);
    return 0;
}

int elf_load(const struct elf_image *elf, const struct boot_target *target, uint64_t *low,
             uint64_t *high, struct error *err)
{
    *low = UINT64_MAX;
    *high = 0;
    for (unsigned i = 0; i < elf->phnum; i++) {
        struct elf_segment segment;
        int r = elf_segment_get(elf, i, &segment, err);

        if (r < 0)
            return r;
        if (segment.type != ELF_PT_LOAD || segment.memsz == 0)
            continue;
        r = elf_load_segment(elf, target, &segment, err);
        if (r < 0)
            return r;
        *low = segment.paddr < *low ? segment.paddr : *low;
        *high = segment.paddr + segment.memsz > *high ? segment.paddr + segment.memsz : *high;
    }
    if (*high == 0)
        return error_set(err, -ENOEXEC, "'%s' is an ELF file with nothing to load", elf->file->path);
    return 0;
}
