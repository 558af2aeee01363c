#include "board/acpi/dsdt.h"

#include <stdio.h>

#include "chip/acpi_pm.h"
#include "device/pci.h"

#define PCI_SLOTS_ROUTED 32u
#define PCI_PINS         4u
#define PCI_FIRST_GSI    16u

/* _PRT: pins as device/pci.h wires them (6.2.13). */
static void dsdt_write_routing(struct aml *aml)
{
    size_t table;

    aml_name(aml, "_PRT");
    table = aml_begin_package(aml, PCI_SLOTS_ROUTED * PCI_PINS);
    for (unsigned slot = 0; slot < PCI_SLOTS_ROUTED; slot++) {
        for (unsigned pin = 0; pin < PCI_PINS; pin++) {
            size_t entry = aml_begin_package(aml, 4);

            aml_integer(aml, (uint64_t)slot << 16 | 0xffff);
            aml_integer(aml, pin);
            aml_integer(aml, 0);
            aml_integer(aml, PCI_FIRST_GSI + pci_intx_wire(PCI_DEVFN(slot, 0), pin + 1));
            aml_end(aml, entry);
        }
    }
    aml_end(aml, table);
}

static void dsdt_write_windows(struct aml *aml, const struct memory_map *map)
{
    size_t resources;

    aml_name(aml, "_CRS");
    resources = aml_begin_resources(aml);
    aml_resource_bus(aml, 0, 255);
    aml_resource_io(aml, 0xcf8, 8);
    aml_resource_io_range(aml, 0, 0xcf7);
    aml_resource_io_range(aml, 0xd00, 0xffff);
    aml_resource_memory_range(aml, PCI_MMIO32_BASE, PCI_MMIO32_END - 1, false);
    if (map->mmio64_end > map->mmio64_base)
        aml_resource_memory_range(aml, map->mmio64_base, map->mmio64_end - 1, true);
    aml_end_resources(aml, resources);
}

/* An ISA device with one port range and perhaps an interrupt. */
static void dsdt_write_isa(struct aml *aml, const char *name, const char *id, uint16_t port,
                           uint8_t ports, int irq)
{
    size_t device = aml_begin_device(aml, name), resources;

    aml_name_eisa_id(aml, "_HID", id);
    aml_name(aml, "_CRS");
    resources = aml_begin_resources(aml);
    aml_resource_io(aml, port, ports);
    if (irq >= 0)
        aml_resource_irq(aml, (unsigned)irq);
    aml_end_resources(aml, resources);
    aml_end(aml, device);
}

static void dsdt_write_host_bridge(struct aml *aml, const struct acpi_config *config)
{
    size_t device = aml_begin_device(aml, "PCI0");

    aml_name_eisa_id(aml, "_HID", "PNP0A08");
    aml_name_eisa_id(aml, "_CID", "PNP0A03");
    aml_name_integer(aml, "_UID", 0);
    aml_name_integer(aml, "_BBN", 0);
    aml_name_integer(aml, "_SEG", 0);
    dsdt_write_windows(aml, config->map);
    dsdt_write_routing(aml);
    aml_end(aml, device);
}

/* Motherboard resources: the ECAM window and the ports of the power management chip. */
static void dsdt_write_board(struct aml *aml)
{
    size_t device = aml_begin_device(aml, "MBRD"), resources;

    aml_name_eisa_id(aml, "_HID", "PNP0C02");
    aml_name(aml, "_CRS");
    resources = aml_begin_resources(aml);
    aml_resource_memory32(aml, PCI_ECAM_BASE, PCI_ECAM_SIZE);
    aml_resource_io(aml, ACPI_PM_BASE, ACPI_PM_SIZE);
    aml_end_resources(aml, resources);
    aml_end(aml, device);
}

static void dsdt_write_keyboard(struct aml *aml)
{
    size_t device = aml_begin_device(aml, "KBD_"), resources;

    aml_name_eisa_id(aml, "_HID", "PNP0303");
    aml_name(aml, "_CRS");
    resources = aml_begin_resources(aml);
    aml_resource_io(aml, 0x60, 1);
    aml_resource_io(aml, 0x64, 1);
    aml_resource_irq(aml, 1);
    aml_end_resources(aml, resources);
    aml_end(aml, device);
}

static void dsdt_write_cpus(struct aml *aml, unsigned cpus)
{
    for (unsigned i = 0; i < cpus; i++) {
        char name[5];
        size_t device;

        snprintf(name, sizeof(name), "C%03X", i & 0xfffu);
        device = aml_begin_device(aml, name);
        aml_name(aml, "_HID");
        aml_string(aml, "ACPI0007");
        aml_name_integer(aml, "_UID", i);
        aml_end(aml, device);
    }
}

static void dsdt_write_s5(struct aml *aml)
{
    size_t package;

    aml_name(aml, "\\_S5_");
    package = aml_begin_package(aml, 4);
    aml_integer(aml, ACPI_S5_TYPE);
    aml_integer(aml, ACPI_S5_TYPE);
    aml_integer(aml, 0);
    aml_integer(aml, 0);
    aml_end(aml, package);
}

void dsdt_write(struct aml *aml, const struct acpi_config *config)
{
    size_t scope;

    dsdt_write_s5(aml);
    scope = aml_begin_scope(aml, "\\_SB_");
    dsdt_write_host_bridge(aml, config);
    dsdt_write_board(aml);
    dsdt_write_isa(aml, "COM1", "PNP0501", 0x3f8, 8, 4);
    dsdt_write_isa(aml, "RTC_", "PNP0B00", 0x70, 4, 8);
    dsdt_write_isa(aml, "PIT_", "PNP0100", 0x40, 4, 0);
    if (config->has_i8042)
        dsdt_write_keyboard(aml);
    dsdt_write_cpus(aml, config->cpus);
    aml_end(aml, scope);
}
