#include "board/firmware.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "board/acpi/loader.h"
#include "board/smbios.h"
#include "device/ahci/ahci.h"
#include "device/cfi_flash.h"

#define FOUR_GIB 0x100000000ull

/* Images with a name of their own, and the package that brings them. */
static const struct firmware_known {
    const char *name, *path, *vars, *package;
} known[] = {
    {"bios", "/usr/share/seabios/bios-256k.bin", NULL, "seabios"},
    {"uefi", "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", "ovmf"},
};

static int read_whole(int fd, const char *path, uint8_t *data, uint64_t size, struct error *err)
{
    uint64_t done = 0;

    while (done < size) {
        ssize_t n = pread(fd, data + done, size - done, (off_t)done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_set(err, n < 0 ? -errno : -ENODATA, "cannot read firmware '%s': %s", path,
                             n < 0 ? strerror(errno) : "it became shorter");
        done += (uint64_t)n;
    }
    return 0;
}

/* The reset vector is 16 bytes before an image's end; ROMs are whole pages. */
static int read_image(int fd, const char *path, uint8_t **data, uint64_t *size, struct error *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return error_set(err, -errno, "cannot read firmware '%s': %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return error_set(err, -EINVAL, "cannot use firmware '%s': not a regular file", path);
    if (st.st_size == 0 || st.st_size > FIRMWARE_MAX || st.st_size % PAGE_SIZE)
        return error_set(
            err, -EINVAL,
            "cannot use firmware '%s': its size is not a multiple of 4 KiB up to %u MiB", path,
            FIRMWARE_MAX >> 20);
    *size = (uint64_t)st.st_size;
    *data = malloc(*size);
    if (!*data)
        return error_set(err, -ENOMEM, "no memory to read firmware '%s'", path);
    return read_whole(fd, path, *data, *size, err);
}

static int open_image(const char *path, const char *package, uint8_t **data, uint64_t *size,
                      struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), r;

    if (fd < 0 && errno == ENOENT && package)
        return error_set(err, -ENOENT,
                         "cannot open firmware '%s': no such file (install the package %s, or give "
                         "--firmware FILE)",
                         path, package);
    if (fd < 0)
        return error_set(err, -errno, "cannot open firmware '%s': %s", path, strerror(errno));
    r = read_image(fd, path, data, size, err);
    close(fd);
    return r;
}

static int vars_error(const char *path, int code, struct error *err)
{
    return error_set(err, code, "cannot use the firmware's variables '%s': %s", path,
                     code == -EWOULDBLOCK ? "another machine has them" : strerror(-code));
}

/* A new file gets the template's bytes, which are in firmware->vars; else the file's come there. */
static int open_vars(struct firmware *firmware, const char *path, struct error *err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
    struct stat st;

    if (fd < 0)
        return vars_error(path, -errno, err);
    firmware->vars_fd = fd;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 || fstat(fd, &st) < 0)
        return vars_error(path, -errno, err);
    if (!S_ISREG(st.st_mode))
        return vars_error(path, -EINVAL, err);
    if (st.st_size == 0) {
        if (pwrite(fd, firmware->vars, firmware->vars_size, 0) == (ssize_t)firmware->vars_size)
            return 0;
        return vars_error(path, errno ? -errno : -EIO, err);
    }
    if ((uint64_t)st.st_size != firmware->vars_size)
        return error_set(
            err, -EINVAL,
            "cannot use the firmware's variables '%s': the file has %llu bytes, not %llu "
            "(another firmware's?)",
            path, (unsigned long long)st.st_size, (unsigned long long)firmware->vars_size);
    return read_whole(fd, path, firmware->vars, firmware->vars_size, err);
}

int firmware_open(struct firmware *firmware, const struct firmware_options *options,
                  struct error *err)
{
    const struct firmware_known *image = NULL;
    int r;

    *firmware = (struct firmware){.vars_fd = -1};
    if (!options->image)
        return 0;
    for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
        if (strcmp(options->image, known[i].name) == 0)
            image = &known[i];
    }
    if (options->vars && !(image && image->vars))
        return error_set(err, -EINVAL, "--firmware: only uefi has variables");
    r = open_image(image ? image->path : options->image, image ? image->package : NULL,
                   &firmware->image, &firmware->size, err);
    if (r == 0 && image && image->vars)
        r = open_image(image->vars, image->package, &firmware->vars, &firmware->vars_size, err);
    if (r == 0 && options->vars)
        r = open_vars(firmware, options->vars, err);
    if (r < 0)
        firmware_close(firmware);
    return r;
}

void firmware_close(struct firmware *firmware)
{
    free(firmware->image);
    free(firmware->vars);
    if (firmware->vars_fd >= 0)
        close(firmware->vars_fd);
    *firmware = (struct firmware){.vars_fd = -1};
}

static gpa_t vars_place(const struct firmware *firmware)
{
    return FOUR_GIB - firmware->size - firmware->vars_size;
}

int firmware_add_rom(const struct firmware *firmware, struct mem *mem, struct error *err)
{
    int r;

    if (!firmware->image)
        return 0;
    r = mem_add_rom(mem, FOUR_GIB - firmware->size, firmware->image, firmware->size, err);
    if (r == 0 && firmware->vars)
        r = mem_add_rom(mem, vars_place(firmware), firmware->vars, firmware->vars_size, err);
    return r;
}

int firmware_add_flash(struct firmware *firmware, struct machine *machine)
{
    int fd = firmware->vars_fd;

    if (!firmware->vars)
        return 0;
    firmware->vars_fd = -1; /* the chip's now */
    return cfi_flash_create(machine, vars_place(firmware), firmware->vars_size, fd);
}

/* "etc/e820": RAM alone; firmware knows what it reserves. */
static int describe_memory(const struct memory_map *map, struct fw_cfg *fw)
{
    struct {
        uint64_t base, size;
        uint32_t type;
    } __attribute__((packed)) range[2] = {
        {0, map->low_end, MEMORY_RAM},
        {RAM_HIGH, map->high_end - RAM_HIGH, MEMORY_RAM},
    };

    return fw_cfg_add_file(fw, "etc/e820", range,
                           map->high_end > RAM_HIGH ? sizeof(range) : sizeof(range[0]));
}

static int describe_acpi(const struct firmware_machine *machine, struct fw_cfg *fw)
{
    const struct acpi_config config = {.cpus = machine->cpus, .map = machine->map};
    struct acpi_tables *tables = calloc(1, sizeof(*tables));
    struct acpi_loader *loader = calloc(1, sizeof(*loader));
    int r = tables && loader ? acpi_build(&config, tables) : -ENOMEM;

    if (r == 0) {
        acpi_loader_build(tables, loader);
        r = fw_cfg_add_file(fw, ACPI_LOADER_TABLES, loader->tables, loader->tables_size);
    }
    if (r == 0)
        r = fw_cfg_add_file(fw, ACPI_LOADER_RSDP, loader->rsdp, sizeof(loader->rsdp));
    if (r == 0)
        r = fw_cfg_add_file(fw, ACPI_LOADER_SCRIPT, loader->script,
                            loader->commands * ACPI_LOADER_ENTRY);
    free(tables);
    free(loader);
    return r;
}

static int describe_smbios(const struct firmware_machine *machine, struct fw_cfg *fw)
{
    struct cpuid_regs leaf1 = cpu_model_lookup(machine->model, 1, 0);
    const struct smbios_config config = {.name = machine->name,
                                         .cpus = machine->cpus,
                                         .cpu_signature = leaf1.eax,
                                         .cpu_features = leaf1.edx,
                                         .memory = machine->memory,
                                         .map = machine->map};
    struct smbios *smbios = calloc(1, sizeof(*smbios));
    int r = -ENOMEM;

    if (smbios) {
        smbios_build(&config, smbios);
        r = fw_cfg_add_file(fw, "etc/smbios/smbios-tables", smbios->tables, smbios->size);
    }
    if (r == 0)
        r = fw_cfg_add_file(fw, "etc/smbios/smbios-anchor", smbios->anchor, sizeof(smbios->anchor));
    free(smbios);
    return r;
}

/* Adds to the lines in `text`; the room is enough for all devices a machine can have. */
static void printf_like(3, 4) line_add(char *text, size_t room, const char *format, ...)
{
    size_t used = strlen(text);
    va_list args;
    int len;

    va_start(args, format);
    len = vsnprintf(text + used, room - used, format, args);
    va_end(args);
    BUG_ON(len < 0 || (size_t)len >= room - used);
}

/* The bus and the unit on it, as "@slot" or "@slot,function". */
static void unit_add(const struct firmware_machine *machine, const char *name, unsigned number,
                     const char *type, char *text, size_t room)
{
    char device[32];
    int devfn;

    snprintf(device, sizeof(device), "%s%u", name, number);
    devfn = pci_host_find(machine->pci, device);
    BUG_ON(devfn < 0);
    line_add(text, room, "/pci@i0cf8/%s@%x", type, (unsigned)devfn >> 3);
    if (devfn & 7)
        line_add(text, room, ",%x", (unsigned)devfn & 7);
}

static void drive_line(const struct firmware_machine *machine, const struct firmware_drive *drive,
                       char *text, size_t room)
{
    if (drive->sata) {
        unit_add(machine, "ahci", drive->number / AHCI_PORTS, "pci8086,2922", text, room);
        line_add(text, room, "/drive@%x/disk@0\n", drive->number % AHCI_PORTS);
    } else {
        unit_add(machine, "virtio-blk", drive->number, "scsi", text, room);
        line_add(text, room, "/disk@0,0\n");
    }
}

/* The devices of one kind, each a line with its Open Firmware path (IEEE 1275 PCI binding, 2.2.1).
 */
static void boot_lines(const struct firmware_machine *machine, enum firmware_boot kind, char *text,
                       size_t room)
{
    for (unsigned i = 0; i < machine->drive_count; i++) {
        if (machine->drives[i].kind == kind)
            drive_line(machine, &machine->drives[i], text, room);
    }
    if (kind == FIRMWARE_BOOT_NET && pci_host_find(machine->pci, "virtio-net0") >= 0) {
        unit_add(machine, "virtio-net", 0, "ethernet", text, room);
        line_add(text, room, "/ethernet-phy@0\n");
    }
}

static int describe_boot(const struct firmware_machine *machine, struct fw_cfg *fw)
{
    const struct firmware_options *options = machine->options;
    char order[4096] = "";
    int r;

    for (unsigned i = 0; i < options->boot_count; i++)
        boot_lines(machine, options->boot[i], order, sizeof(order));
    r = fw_cfg_add_file(fw, "bootorder", order, strlen(order) + 1);
    if (r == 0)
        r = fw_cfg_add_file_integer(fw, "etc/boot-menu-wait", 0);
    if (r == 0) /* milliseconds; then it looks again whether there is something to boot */
        r = fw_cfg_add_file_integer(fw, "etc/boot-fail-wait", 60000);
    if (r == 0)
        r = fw_cfg_add_integer(fw, FW_CFG_BOOT_MENU, 2, 0);
    return r;
}

/* Which sleep states there are: S3 and S4 not, S5 with its type (0x80: there). */
static int describe_sleep(struct fw_cfg *fw)
{
    static const uint8_t states[6] = {[5] = 0x80};

    return fw_cfg_add_file(fw, "etc/system-states", states, sizeof(states));
}

static int describe_cpus(const struct firmware_machine *machine, struct fw_cfg *fw)
{
    int r = fw_cfg_add_integer(fw, FW_CFG_NB_CPUS, 2, machine->cpus);

    if (r == 0)
        r = fw_cfg_add_integer(fw, FW_CFG_MAX_CPUS, 2, machine->cpus);
    if (r == 0)
        r = fw_cfg_add_integer(fw, FW_CFG_IRQ0_OVERRIDE, 1, 1);
    return r;
}

int firmware_describe(const struct firmware_machine *machine, struct fw_cfg *fw, struct error *err)
{
    int r = describe_cpus(machine, fw);

    if (r == 0)
        r = describe_memory(machine->map, fw);
    if (r == 0)
        r = describe_acpi(machine, fw);
    if (r == 0)
        r = describe_smbios(machine, fw);
    if (r == 0)
        r = describe_boot(machine, fw);
    if (r == 0)
        r = describe_sleep(fw);
    if (r == 0 && machine->serial_console)
        r = fw_cfg_add_file_integer(fw, "etc/sercon-port", 0x3f8);
    if (r < 0)
        error_set(err, r, "cannot describe the machine to its firmware: %s", strerror(-r));
    return r;
}

static void cmos_put(struct mc146818 *rtc, uint8_t index, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        mc146818_set_cmos(rtc, (uint8_t)(index + i), (uint8_t)(value >> 8 * i));
}

static uint64_t at_most(uint64_t value, uint64_t limit)
{
    return value < limit ? value : limit;
}

/* A nibble for each: 1 floppy, 2 disk, 3 CD-ROM, 4 network; the first in 3Dh low, then high, then
 * 38h high. */
static uint16_t cmos_boot_order(const struct firmware_options *options)
{
    static const uint8_t code[] = {
        [FIRMWARE_BOOT_DISK] = 2, [FIRMWARE_BOOT_CDROM] = 3, [FIRMWARE_BOOT_NET] = 4};
    uint16_t order = 0;

    for (unsigned i = 0; i < options->boot_count; i++)
        order = (uint16_t)(order | code[options->boot[i]] << 4 * i);
    return order;
}

/* IBM PC AT Technical Reference, CMOS RAM; from 34h on and 5Bh on as SeaBIOS reads them. */
void firmware_set_cmos(const struct firmware_machine *machine, struct mc146818 *rtc)
{
    uint64_t low = machine->map->low_end, high = machine->map->high_end - RAM_HIGH;
    uint64_t extended = low > 0x100000 ? (low - 0x100000) >> 10 : 0;
    uint64_t above16 = low > 0x1000000 ? (low - 0x1000000) >> 16 : 0;
    uint16_t order = cmos_boot_order(machine->options);

    cmos_put(rtc, 0x0f, 0, 1);    /* shutdown status: a cold start */
    cmos_put(rtc, 0x10, 0, 1);    /* no floppy drives */
    cmos_put(rtc, 0x14, 0x02, 1); /* equipment: a coprocessor */
    cmos_put(rtc, 0x15, 640, 2);
    cmos_put(rtc, 0x17, at_most(extended, 0xffff), 2);
    cmos_put(rtc, 0x30, at_most(extended, 0xffff), 2);
    cmos_put(rtc, 0x34, at_most(above16, 0xffff), 2);
    cmos_put(rtc, 0x5b, high >> 16, 3);
    cmos_put(rtc, 0x5f, machine->cpus - 1, 1);
    cmos_put(rtc, 0x38, (order >> 8 & 15) << 4, 1);
    cmos_put(rtc, 0x3d, order & 0xff, 1);
}
