/* What firmware is told: the ACPI blobs after their script was executed, SMBIOS structures, CMOS.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "board/acpi/loader.h"
#include "board/firmware.h"
#include "board/smbios.h"

#define GIB (1ull << 30)

#define TABLES_AT 0x7f000000u /* where the firmware of this test puts them */

static uint8_t sum(const uint8_t *bytes, size_t len)
{
    uint8_t total = 0;

    while (len--)
        total = (uint8_t)(total + *bytes++);
    return total;
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static uint8_t *blob(struct acpi_loader *loader, const char *name, uint32_t *size)
{
    if (strcmp(name, ACPI_LOADER_RSDP) == 0) {
        *size = sizeof(loader->rsdp);
        return loader->rsdp;
    }
    assert_string_equal(name, ACPI_LOADER_TABLES);
    *size = loader->tables_size;
    return loader->tables;
}

static void add_pointer(struct acpi_loader *loader, const uint8_t *command)
{
    uint32_t offset = get32(command + 116), size;
    uint8_t *at = blob(loader, (const char *)command + 4, &size);
    uint8_t width = command[120];
    uint64_t value = 0;

    assert_string_equal((const char *)command + 60, ACPI_LOADER_TABLES);
    assert_true(offset + width <= size);
    memcpy(&value, at + offset, width);
    assert_true(value < loader->tables_size);
    value += TABLES_AT;
    memcpy(at + offset, &value, width);
}

static void add_checksum(struct acpi_loader *loader, const uint8_t *command)
{
    uint32_t offset = get32(command + 60), start = get32(command + 64),
             length = get32(command + 68);
    uint32_t size;
    uint8_t *at = blob(loader, (const char *)command + 4, &size);

    assert_true(start + length <= size && offset >= start && offset < start + length);
    assert_int_equal(at[offset], 0); /* one firmware subtracts from it, another assigns */
    at[offset] = (uint8_t)-sum(at + start, length);
}

/* As SeaBIOS and OVMF do it. */
static void execute(struct acpi_loader *loader)
{
    unsigned allocated = 0;

    for (unsigned i = 0; i < loader->commands; i++) {
        const uint8_t *command = loader->script[i];

        switch (get32(command)) {
        case 1: allocated++; break;
        case 2: add_pointer(loader, command); break;
        case 3: add_checksum(loader, command); break;
        default: fail_msg("command %u", get32(command));
        }
    }
    assert_int_equal(allocated, 2);
}

static uint64_t pointer(const uint8_t *at, unsigned width)
{
    uint64_t value = 0;

    memcpy(&value, at, width);
    assert_in_range(value, TABLES_AT, TABLES_AT + ACPI_AREA_SIZE);
    return value - TABLES_AT;
}

static void test_loader(void **state)
{
    struct acpi_tables *tables = malloc(sizeof(*tables));
    struct acpi_loader *loader = malloc(sizeof(*loader));
    struct memory_map map;
    const struct acpi_config config = {.cpus = 4, .map = &map};
    const uint8_t *rsdt, *xsdt, *fadt;

    (void)state;
    memory_map_init(&map, 8 * GIB, 40);
    assert_int_equal(acpi_build(&config, tables), 0);
    acpi_loader_build(tables, loader);
    execute(loader);
    assert_int_equal(sum(loader->rsdp, 20), 0);
    assert_int_equal(sum(loader->rsdp, 36), 0);
    xsdt = loader->tables + pointer(loader->rsdp + 24, 8);
    assert_memory_equal(xsdt, "XSDT", 4);
    assert_int_equal(sum(xsdt, get32(xsdt + 4)), 0);
    rsdt = loader->tables + pointer(loader->rsdp + 16, 4);
    assert_memory_equal(rsdt, "RSDT", 4);
    assert_int_equal(get32(rsdt + 4), 36 + 3 * 4);
    assert_int_equal(get32(rsdt + 36), get32(xsdt + 36));
    assert_int_equal(get32(rsdt + 44), get32(xsdt + 52));
    fadt = loader->tables + pointer(xsdt + 36, 8);
    assert_memory_equal(fadt, "FACP", 4);
    assert_int_equal(sum(fadt, get32(fadt + 4)), 0);
    assert_memory_equal(loader->tables + pointer(fadt + 36, 4), "FACS", 4);
    assert_memory_equal(loader->tables + pointer(fadt + 40, 4), "DSDT", 4);
    assert_memory_equal(loader->tables + pointer(fadt + 140, 8), "DSDT", 4);
    assert_memory_equal(loader->tables + pointer(xsdt + 44, 8), "APIC", 4);
    assert_memory_equal(loader->tables + pointer(xsdt + 52, 8), "MCFG", 4);
    for (unsigned i = 0; i < tables->count; i++) {
        const struct acpi_table_place *place = &tables->tables[i];

        if (strcmp(place->signature, "FACS") != 0)
            assert_int_equal(sum(loader->tables + place->offset, place->length), 0);
    }
    free(tables);
    free(loader);
}

/* The structure of a type; the number of those in the table through `count`. */
static const uint8_t *find(const struct smbios *smbios, uint8_t type, unsigned *count)
{
    const uint8_t *at = smbios->tables, *end = at + smbios->size, *found = NULL;
    unsigned seen = 0, largest = 0;

    *count = 0;
    while (at < end) {
        const uint8_t *start = at;

        if (at[0] == type && ++*count == 1)
            found = at;
        at += at[1];
        while (at[0] || at[1])
            at++;
        at += 2;
        seen++;
        largest = (unsigned)(at - start) > largest ? (unsigned)(at - start) : largest;
    }
    assert_ptr_equal(at, end);
    assert_int_equal(seen, smbios->count);
    assert_int_equal(largest, smbios->largest);
    return found;
}

static void test_smbios(void **state)
{
    struct smbios *a = malloc(sizeof(*a)), *b = malloc(sizeof(*b));
    struct memory_map map;
    struct smbios_config config = {.name = "a", .cpus = 64, .memory = 48 * GIB, .map = &map};
    const uint8_t *at;
    unsigned count;

    (void)state;
    memory_map_init(&map, config.memory, 40);
    smbios_build(&config, a);
    assert_int_equal(sum(a->anchor, 31), 0);
    assert_int_equal(sum(a->anchor + 16, 15), 0);
    assert_int_equal(get32(a->anchor + 22) & 0xffff, a->size);
    at = find(a, 4, &count);
    assert_int_equal(at[0x23], 64);
    at = find(a, 17, &count);
    assert_int_equal(get32(at + 12) & 0xffff, 0x7fff);
    assert_int_equal(get32(at + 0x1c), 48 << 10);
    at = find(a, 19, &count);
    assert_int_equal(count, 2);
    assert_int_equal(get32(at + 8), RAM_LOW_MAX / 1024 - 1);
    at = find(a, 127, &count);
    assert_int_equal(count, 1);
    assert_ptr_equal(at + 6, a->tables + a->size);
    find(a, 0, &count);
    assert_int_equal(count, 0); /* firmware's own */

    config.name = "b";
    smbios_build(&config, b);
    assert_int_equal(a->size, b->size);
    assert_memory_not_equal(find(a, 1, &count) + 8, find(b, 1, &count) + 8, 16);
    free(a);
    free(b);
}

static uint8_t cmos(struct machine *machine, uint8_t index)
{
    bus_write(machine->bus, BUS_PORT, 0x70, 1, index);
    return (uint8_t)bus_read(machine->bus, BUS_PORT, 0x71, 1);
}

static void check_cmos(uint64_t memory, unsigned extended, unsigned above16, unsigned high)
{
    static const struct firmware_options options = {
        .boot = {FIRMWARE_BOOT_CDROM, FIRMWARE_BOOT_NET, FIRMWARE_BOOT_DISK}, .boot_count = 3};
    const struct irq_line none = {0};
    struct memory_map map;
    struct firmware_machine m = {.cpus = 4, .map = &map, .options = &options};
    struct machine *machine;
    struct mc146818 *rtc;

    memory_map_init(&map, memory, 40);
    assert_int_equal(machine_create(&machine), 0);
    assert_int_equal(mc146818_create(machine, none, &rtc), 0);
    firmware_set_cmos(&m, rtc);
    assert_int_equal(cmos(machine, 0x15) | cmos(machine, 0x16) << 8, 640);
    assert_int_equal(cmos(machine, 0x17) | cmos(machine, 0x18) << 8, extended);
    assert_int_equal(cmos(machine, 0x30) | cmos(machine, 0x31) << 8, extended);
    assert_int_equal(cmos(machine, 0x34) | cmos(machine, 0x35) << 8, above16);
    assert_int_equal(cmos(machine, 0x5b) | cmos(machine, 0x5c) << 8 | cmos(machine, 0x5d) << 16,
                     high);
    assert_int_equal(cmos(machine, 0x5f), 3);
    assert_int_equal(cmos(machine, 0x3d), 0x43);
    assert_int_equal(cmos(machine, 0x38), 0x20);
    machine_destroy(machine);
}

static void test_cmos(void **state)
{
    (void)state;
    check_cmos(8u << 20, 7 * 1024, 0, 0);
    check_cmos(32u << 20, 31 * 1024, 256, 0);
    check_cmos(5 * GIB, 0xffff, (RAM_LOW_MAX - (16u << 20)) >> 16, (5 * GIB - RAM_LOW_MAX) >> 16);
}

static void add_device(struct pci_host *host, struct pci_function *fn, int devfn, const char *name)
{
    static const struct pci_ids ids = {.vendor = 0x1af4};
    static const struct device_ops ops = {.type = "test"};

    assert_int_equal(pci_function_add(host, fn, devfn, &ids, &ops, name), 0);
    pci_host_machine(host)->devices = fn->dev.next; /* the test's to release */
}

static void check_order(const struct firmware_options *options, const char *expected)
{
    static const struct firmware_drive drives[] = {
        {FIRMWARE_BOOT_DISK, true, 7}, /* the second adapter's second port */
        {FIRMWARE_BOOT_DISK, false, 0},
        {FIRMWARE_BOOT_DISK, false, 1},
        {FIRMWARE_BOOT_CDROM, true, 5},
    };
    static struct pci_function fn[5];
    const struct cpu_model model = {0};
    struct memory_map map;
    struct firmware_machine m = {.name = "test",
                                 .cpus = 1,
                                 .map = &map,
                                 .model = &model,
                                 .options = options,
                                 .drives = drives,
                                 .drive_count = ARRAY_SIZE(drives),
                                 .serial_console = true};
    struct machine *machine;
    struct error err = {0};
    struct fw_cfg *fw;
    const char *text;
    size_t size;

    memory_map_init(&map, GIB, 40);
    assert_int_equal(machine_create(&machine), 0);
    assert_int_equal(pci_host_create(machine, &m.pci), 0);
    memset(fn, 0, sizeof(fn));
    add_device(m.pci, &fn[0], -1, "virtio-net0");
    add_device(m.pci, &fn[1], -1, "virtio-blk0");
    add_device(m.pci, &fn[2], -1, "virtio-blk1");
    add_device(m.pci, &fn[3], PCI_DEVFN(0x1f, 2), "ahci0");
    add_device(m.pci, &fn[4], -1, "ahci1");
    assert_int_equal(fw_cfg_create(machine, &fw), 0);
    assert_int_equal(firmware_describe(&m, fw, &err), 0);
    text = (const char *)fw_cfg_file(fw, "bootorder", &size);
    assert_non_null(text);
    assert_int_equal(size, strlen(expected) + 1);
    assert_string_equal(text, expected);
    assert_non_null(fw_cfg_file(fw, "etc/sercon-port", &size));
    assert_non_null(fw_cfg_file(fw, "etc/e820", &size));
    assert_int_equal(size, 20);
    for (size_t i = 0; i < ARRAY_SIZE(fn); i++)
        pci_function_release(&fn[i]);
    machine_destroy(machine);
}

#define DISKS                                                                                      \
    "/pci@i0cf8/pci8086,2922@4/drive@1/disk@0\n/pci@i0cf8/scsi@2/disk@0,0\n"                       \
    "/pci@i0cf8/scsi@3/disk@0,0\n"
#define CD "/pci@i0cf8/pci8086,2922@1f,2/drive@5/disk@0\n"

static void test_boot_order(void **state)
{
    const struct firmware_options usual = {
        .boot = {FIRMWARE_BOOT_DISK, FIRMWARE_BOOT_CDROM, FIRMWARE_BOOT_NET}, .boot_count = 3};
    const struct firmware_options net_first = {.boot = {FIRMWARE_BOOT_NET, FIRMWARE_BOOT_DISK},
                                               .boot_count = 2};
    const struct firmware_options cdrom = {.boot = {FIRMWARE_BOOT_CDROM}, .boot_count = 1};

    (void)state;
    check_order(&usual, DISKS CD "/pci@i0cf8/ethernet@1/ethernet-phy@0\n");
    check_order(&net_first, "/pci@i0cf8/ethernet@1/ethernet-phy@0\n" DISKS);
    check_order(&cdrom, CD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loader),
        cmocka_unit_test(test_smbios),
        cmocka_unit_test(test_cmos),
        cmocka_unit_test(test_boot_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
