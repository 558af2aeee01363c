/* The host bridge's memory registers (PAM, PCIEXBAR), functions beside function 0, and the LPC
 * bridge. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chip/acpi_pm.h"
#include "device/ich9_lpc.h"
#include "device/pci.h"
#include "device/pci_internal.h"

#define RAM  0x200000u
#define PAM0 0x90u

struct fixture {
    struct machine *machine;
    struct pci_host *host;
    struct acpi_pm *pm;
    struct ich9_lpc *lpc;
    int pic[16];
    unsigned resets;
};

static void pic_set(void *opaque, unsigned number, int level)
{
    ((struct fixture *)opaque)->pic[number] = level;
}

static void gsi_set(void *opaque, unsigned number, int level)
{
    struct fixture *f = opaque;

    if (number >= 16 && f->lpc)
        ich9_lpc_pirq(f->lpc, number - 16, level);
}

static void requested(void *opaque, enum machine_request what, int code, const char *reason)
{
    (void)code;
    (void)reason;
    ((struct fixture *)opaque)->resets += what == MACHINE_RESET;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    const struct irq_line pic = {.set = pic_set, .opaque = f};
    struct error err = {0};

    assert_int_equal(machine_create(&f->machine), 0);
    assert_int_equal(mem_add_ram(f->machine->mem, 0, RAM, &err), 0);
    for (unsigned i = 0; i < GSI_COUNT; i++)
        f->machine->gsi[i] = (struct irq_line){.set = gsi_set, .opaque = f, .number = i};
    f->machine->request = requested;
    f->machine->request_opaque = f;
    assert_int_equal(acpi_pm_create(f->machine, 0x600, f->machine->gsi[9], &f->pm), 0);
    assert_int_equal(pci_host_create(f->machine, &f->host), 0);
    assert_int_equal(ich9_lpc_create(f->host, f->pm, &pic, &f->lpc), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    machine_destroy(f->machine);
    free(f);
    return 0;
}

static void config(struct fixture *f, unsigned devfn, unsigned reg, unsigned size, uint32_t value)
{
    bus_write(f->machine->bus, BUS_PORT, 0xcf8, 4, 0x80000000u | devfn << 8 | (reg & 0xfc));
    bus_write(f->machine->bus, BUS_PORT, 0xcfc + (reg & 3), size, value);
}

static uint32_t config_get(struct fixture *f, unsigned devfn, unsigned reg, unsigned size)
{
    bus_write(f->machine->bus, BUS_PORT, 0xcf8, 4, 0x80000000u | devfn << 8 | (reg & 0xfc));
    return (uint32_t)bus_read(f->machine->bus, BUS_PORT, 0xcfc + (reg & 3), size);
}

/* As a vCPU does it: ROM pages go to the bus. */
static void store(struct fixture *f, gpa_t gpa, uint32_t value)
{
    struct mem_slot *slot = mem_slot_find(f->machine->mem, gpa);

    if (mem_page_is_rom(slot, gpa))
        bus_write(f->machine->bus, BUS_MEMORY, gpa, 4, value);
    else
        mem_write32(f->machine->mem, gpa, value);
}

static uint32_t load(struct fixture *f, gpa_t gpa)
{
    return mem_read32(f->machine->mem, gpa);
}

static void set_bios(struct fixture *f)
{
    static uint8_t image[0x40000];

    for (unsigned i = 0; i < sizeof(image); i++)
        image[i] = (uint8_t)(i >> 12);
    pci_host_set_bios(f->host, image, sizeof(image));
}

static void test_without_firmware_all_is_ram(void **state)
{
    struct fixture *f = *state;

    store(f, 0xc0000, 1);
    store(f, 0xffffc, 2);
    assert_int_equal(load(f, 0xc0000), 1);
    assert_int_equal(load(f, 0xffffc), 2);
}

static void test_rom_is_seen_after_reset(void **state)
{
    struct fixture *f = *state;

    set_bios(f);
    assert_int_equal(load(f, 0xc0000), UINT32_MAX);
    assert_int_equal(load(f, 0xdfffc), UINT32_MAX);
    assert_int_equal(load(f, 0xe0000), 0x20202020);
    assert_int_equal(load(f, 0xffffc), 0x3f3f3f3f);
    store(f, 0xf0000, 0);
    store(f, 0xc0000, 0);
    assert_int_equal(load(f, 0xf0000), 0x30303030);
    assert_int_equal(load(f, 0xc0000), UINT32_MAX);
}

/* The ways firmware shadows itself: copy at the same address, then lock. */
static void test_pam_switches_reads_and_writes(void **state)
{
    struct fixture *f = *state;

    set_bios(f);
    config(f, 0, PAM0, 1, 0x20); /* read ROM, write RAM */
    store(f, 0xf0000, load(f, 0xf0000));
    store(f, 0xf0004, 0x12345678);
    assert_int_equal(load(f, 0xf0004), 0x30303030);
    config(f, 0, PAM0, 1, 0x10); /* read RAM */
    assert_int_equal(load(f, 0xf0000), 0x30303030);
    assert_int_equal(load(f, 0xf0004), 0x12345678);
    assert_int_equal(load(f, 0xf0008), 0);
    store(f, 0xf0004, 0);
    assert_int_equal(load(f, 0xf0004), 0x12345678);
    config(f, 0, PAM0, 1, 0x30);
    store(f, 0xf0004, 0);
    assert_int_equal(load(f, 0xf0004), 0);
    machine_reset_devices(f->machine);
    assert_int_equal(load(f, 0xf0004), 0x30303030);
    config(f, 0, PAM0, 1, 0x10);
    assert_int_equal(load(f, 0xf0004), 0); /* RAM stays through a reset */
}

/* Each register has two halves: the lower is the lower address. */
static void test_each_pam_field_has_its_place(void **state)
{
    struct fixture *f = *state;

    set_bios(f);
    for (unsigned piece = 0; piece < 12; piece++) {
        gpa_t gpa = 0xc0000 + piece * 0x4000;

        config(f, 0, PAM0 + 1 + piece / 2, 1, piece & 1 ? 0x30 : 0x03);
        store(f, gpa, piece);
        store(f, gpa + 0x3ffc, ~piece);
        assert_int_equal(load(f, gpa), piece);
        assert_int_equal(load(f, gpa + 0x3ffc), ~piece);
        config(f, 0, PAM0 + 1 + piece / 2, 1, 0);
        assert_int_not_equal(load(f, gpa), piece);
    }
}

static void test_the_ecam_window_moves(void **state)
{
    struct fixture *f = *state;
    struct bus *bus = f->machine->bus;

    assert_int_equal(bus_read(bus, BUS_MEMORY, PCI_ECAM_BASE, 4), 0x29c08086);
    config(f, 0, 0x60, 4, 0);
    assert_int_equal(bus_read(bus, BUS_MEMORY, PCI_ECAM_BASE, 4), UINT32_MAX);
    config(f, 0, 0x64, 4, 1);
    config(f, 0, 0x60, 4, 0xe0000005); /* 64 buses */
    assert_int_equal(bus_read(bus, BUS_MEMORY, 0x1e0000000, 4), 0x29c08086);
    assert_int_equal(bus_read(bus, BUS_MEMORY, 0x1e0000000 + (31 << 15), 4), 0x29188086);
    machine_reset_devices(f->machine);
    assert_int_equal(bus_read(bus, BUS_MEMORY, PCI_ECAM_BASE, 4), 0x29c08086);
    assert_int_equal(bus_read(bus, BUS_MEMORY, 0x1e0000000, 4), UINT32_MAX);
}

static void test_functions_beside_the_first(void **state)
{
    static const struct pci_ids ids = {.vendor = 0x8086, .device = 0x2922};
    static const struct device_ops ops = {.type = "test"};
    struct fixture *f = *state;
    static struct pci_function fn;

    memset(&fn, 0, sizeof(fn));
    assert_int_equal(config_get(f, PCI_DEVFN(31, 0), 0x0e, 1), 0);
    assert_int_equal(pci_function_add(f->host, &fn, PCI_DEVFN(31, 2), &ids, &ops, "ahci"), 0);
    assert_int_equal(pci_function_add(f->host, &fn, PCI_DEVFN(31, 2), &ids, &ops, "ahci"), -16);
    f->machine->devices = fn.dev.next; /* it is nobody's to destroy */
    assert_int_equal(config_get(f, PCI_DEVFN(31, 2), 0, 4), 0x29228086);
    assert_int_equal(config_get(f, PCI_DEVFN(31, 1), 0, 4), UINT32_MAX);
    assert_int_equal(config_get(f, PCI_DEVFN(31, 0), 0x0e, 1), 0x80);
    assert_int_equal(config_get(f, PCI_DEVFN(31, 2), 0x0e, 1), 0x80);
    assert_int_equal(pci_host_find(f->host, "ahci"), PCI_DEVFN(31, 2));
    assert_true(pci_host_find(f->host, "ahc") < 0);
    pci_function_release(&fn);
}

static void test_pins_are_rotated_below_slot_25(void **state)
{
    (void)state;
    assert_int_equal(pci_intx_wire(PCI_DEVFN(1, 0), 1), 1);
    assert_int_equal(pci_intx_wire(PCI_DEVFN(3, 0), 2), 0);
    assert_int_equal(pci_intx_wire(PCI_DEVFN(31, 2), 1), 0);
    assert_int_equal(pci_intx_wire(PCI_DEVFN(25, 0), 4), 3);
}

static void test_pmbase_moves_the_ports(void **state)
{
    struct fixture *f = *state;
    struct bus *bus = f->machine->bus;
    unsigned lpc = PCI_DEVFN(31, 0);

    assert_int_equal(config_get(f, lpc, 0x40, 4), 1);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x604, 2), 0xffff); /* nobody has placed them */
    config(f, lpc, 0x40, 4, 0x601);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x604, 2), 0xffff);
    config(f, lpc, 0x44, 1, 0x80);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x604, 2), 1);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x630, 4) & 0x20, 0x20); /* no SMM to set up */
    config(f, lpc, 0x40, 4, 0xb001);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x604, 2), 0xffff);
    assert_int_equal(bus_read(bus, BUS_PORT, 0xb004, 2), 1);
    machine_reset_devices(f->machine);
    assert_int_equal(bus_read(bus, BUS_PORT, 0xb004, 2), 0xffff);
    ich9_lpc_assign(f->lpc, 0x600);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x604, 2), 1);
}

static void test_pirqs_reach_the_8259_pair(void **state)
{
    struct fixture *f = *state;
    unsigned lpc = PCI_DEVFN(31, 0);

    ich9_lpc_pirq(f->lpc, 1, 1); /* routed nowhere yet */
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(f->pic[i], 0);
    config(f, lpc, 0x61, 1, 10);
    assert_int_equal(f->pic[10], 1);
    config(f, lpc, 0x60, 1, 10); /* shares the input */
    ich9_lpc_pirq(f->lpc, 0, 1);
    ich9_lpc_pirq(f->lpc, 1, 0);
    assert_int_equal(f->pic[10], 1);
    config(f, lpc, 0x60, 1, 11);
    assert_int_equal(f->pic[10], 0);
    assert_int_equal(f->pic[11], 1);
    config(f, lpc, 0x60, 1, 8); /* reserved: nothing is routed */
    assert_int_equal(f->pic[8], 0);
    config(f, lpc, 0x68, 1, 5); /* PIRQE */
    ich9_lpc_pirq(f->lpc, 4, 1);
    assert_int_equal(f->pic[5], 1);
    config(f, lpc, 0x68, 1, 0x85);
    assert_int_equal(f->pic[5], 0);
}

static void test_port_92(void **state)
{
    struct fixture *f = *state;
    struct bus *bus = f->machine->bus;

    mem_set_a20(f->machine->mem, MEM_A20_KEYBOARD, false);
    assert_true(mem_a20_mask(f->machine->mem) != UINT64_MAX);
    bus_write(bus, BUS_PORT, 0x92, 1, 2);
    assert_true(mem_a20_mask(f->machine->mem) == UINT64_MAX);
    assert_int_equal(bus_read(bus, BUS_PORT, 0x92, 1), 2);
    bus_write(bus, BUS_PORT, 0x92, 1, 3);
    bus_write(bus, BUS_PORT, 0x92, 1, 3);
    assert_int_equal(f->resets, 1);
    bus_write(bus, BUS_PORT, 0xb2, 2, 0x5aa5);
    assert_int_equal(bus_read(bus, BUS_PORT, 0xb2, 1), 0xa5);
    assert_int_equal(bus_read(bus, BUS_PORT, 0xb3, 1), 0x5a);
    machine_reset_devices(f->machine);
    assert_true(mem_a20_mask(f->machine->mem) != UINT64_MAX);
    assert_int_equal(bus_read(bus, BUS_PORT, 0xb2, 2), 0);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_without_firmware_all_is_ram),    TEST(test_rom_is_seen_after_reset),
        TEST(test_pam_switches_reads_and_writes),  TEST(test_each_pam_field_has_its_place),
        TEST(test_the_ecam_window_moves),          TEST(test_functions_beside_the_first),
        TEST(test_pins_are_rotated_below_slot_25), TEST(test_pmbase_moves_the_ports),
        TEST(test_pirqs_reach_the_8259_pair),      TEST(test_port_92),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
