#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "virtio_driver.h"
#include "device/virtio/virtio.h"

struct fixture {
    struct driver_machine dm;
    struct driver a, b;
};

static int setup(void **state)
{
    static struct fixture f;

    driver_machine_init(&f.dm);
    assert_int_equal(virtio_rng_create(f.dm.host, "rng0"), 0);
    assert_int_equal(virtio_rng_create(f.dm.host, "rng1"), 0);
    driver_init(&f.a, &f.dm, 1, F_VERSION_1, false);
    driver_init(&f.b, &f.dm, 2, F_VERSION_1, false);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    driver_machine_release(&((struct fixture *)*state)->dm);
    return 0;
}

static void port_config_select(struct fixture *f, unsigned slot, unsigned reg)
{
    bus_write(f->dm.machine->bus, BUS_PORT, 0xcf8, 4, 0x80000000u | slot << 11 | reg);
}

static void test_identity_by_both_ways(void **state)
{
    struct fixture *f = *state;
    struct driver bridge = {.machine = f->dm.machine, .slot = 0};
    struct bus *bus = f->dm.machine->bus;

    assert_int_equal(driver_config_read(&bridge, 0, 4), 0x29c08086);
    assert_int_equal(driver_config_read(&f->a, 0, 8) & 0xffffffff, 0x10441af4);
    port_config_select(f, 1, 0);
    assert_int_equal(bus_read(bus, BUS_PORT, 0xcfc, 4), 0x10441af4);
    assert_int_equal(bus_read(bus, BUS_PORT, 0xcfe, 2), 0x1044);
    assert_int_equal(bus_read(bus, BUS_PORT, 0xcfd, 1), 0x1a);
    port_config_select(f, 9, 0);
    assert_int_equal(bus_read(bus, BUS_PORT, 0xcfc, 4), 0xffffffff);
    /* A byte to CF9h must not disturb the address; without the enable bit nothing answers. */
    bus_write(bus, BUS_PORT, 0xcf8, 4, 0);
    assert_int_equal(bus_read(bus, BUS_PORT, 0xcfc, 4), 0xffffffff);
}

static void test_bar_sizing_and_move(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->a;
    uint64_t old = d->bar0;

    driver_config_write(d, 4, 2, 0);
    driver_config_write(d, 0x10, 4, 0xffffffff);
    driver_config_write(d, 0x14, 4, 0xffffffff);
    assert_int_equal(driver_config_read(d, 0x10, 4), 0xffffc004);
    assert_int_equal(driver_config_read(d, 0x14, 4), 0xffffffff);
    assert_int_equal(bus_read(d->machine->bus, BUS_MEMORY, old + 0x12, 2), 0xffff);
    driver_config_write(d, 0x10, 8, 0x1234500000ull);
    driver_config_write(d, 4, 2, 6);
    d->bar0 = 0x1234500000ull;
    assert_int_equal(driver_read(d, 0x12, 2), 1);
    assert_int_equal(bus_read(d->machine->bus, BUS_MEMORY, old + 0x12, 2), 0xffff);
}

static void test_overlap_waits_for_room(void **state)
{
    struct fixture *f = *state;
    uint64_t place = f->a.bar0;

    /* b on top of a: a keeps its place; when a goes, b gets it. */
    driver_config_write(&f->b, 0x10, 8, place);
    driver_write(&f->a, 0x16, 2, 0x55);
    assert_int_equal(driver_read(&f->a, 0x16, 2), 0x55);
    driver_config_write(&f->a, 0x10, 8, 0xd0000000);
    f->b.bar0 = place;
    assert_int_equal(driver_read(&f->b, 0x16, 2), 0);
    f->a.bar0 = 0xd0000000;
    assert_int_equal(driver_read(&f->a, 0x16, 2), 0x55);
    /* Over ECAM, over its own other BAR, at the very top: not decoded, nothing breaks. */
    driver_config_write(&f->a, 0x10, 8, PCI_ECAM_BASE);
    assert_int_equal(driver_config_read(&f->a, 0, 2), 0x1af4);
    driver_config_write(&f->a, 0x10, 8, f->a.bar2 & ~0x3fffull);
    driver_config_write(&f->a, 0x10, 8, ~0ull);
    driver_config_write(&f->a, 0x10, 8, 0xd0000000);
    assert_int_equal(driver_read(&f->a, 0x16, 2), 0x55);
}

static void test_read_only_bits_stay(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->a;

    for (unsigned reg = 0; reg < 4096; reg += 4) {
        if (reg == 0x10 || reg == 0x14 || reg == 0x18 || reg == 4)
            continue;
        driver_config_write(d, reg, 4, 0xffffffff);
    }
    assert_int_equal(driver_config_read(d, 0, 4), 0x10441af4);
    assert_int_equal(driver_config_read(d, 0x3d, 1), 1);
    assert_int_equal(driver_config_read(d, 0x34, 1), 0x40);
    assert_int_equal(driver_config_read(d, 0xffc, 4), 0);
}

static void test_msix_masks(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->a;
    struct pci_function *fn;
    struct bus *bus = f->dm.machine->bus;
    unsigned cap = (unsigned)driver_config_read(d, 0x34, 1);

    driver_init(d, &f->dm, 1, F_VERSION_1, true);
    fn = container_of(f->dm.machine->devices, struct pci_function, dev);
    for (struct device *dev = f->dm.machine->devices; dev; dev = dev->next) {
        if (dev->name[3] == '0')
            fn = container_of(dev, struct pci_function, dev);
    }
    while (driver_config_read(d, cap, 1) != 0x11)
        cap = (unsigned)driver_config_read(d, cap + 1, 1);
    pci_msix_notify(fn, 1);
    assert_int_equal(f->dm.msi_count[1], 1);
    /* Vector mask: pending, then sent on unmask. */
    bus_write(bus, BUS_MEMORY, d->bar2 + 16 + 12, 4, 1);
    pci_msix_notify(fn, 1);
    assert_int_equal(f->dm.msi_count[1], 1);
    assert_int_equal(bus_read(bus, BUS_MEMORY, d->bar2 + 0x800, 8), 2);
    bus_write(bus, BUS_MEMORY, d->bar2 + 16 + 8, 8, 1);
    assert_int_equal(f->dm.msi_count[1], 2);
    assert_int_equal(bus_read(bus, BUS_MEMORY, d->bar2 + 0x800, 4), 0);
    /* Function mask. */
    driver_config_write(d, cap + 2, 2, 0xc000);
    pci_msix_notify(fn, 1);
    assert_int_equal(f->dm.msi_count[1], 2);
    driver_config_write(d, cap + 2, 2, 0x8000);
    assert_int_equal(f->dm.msi_count[1], 3);
    /* No bus mastering: nothing leaves. A vector that is not there is ignored. */
    driver_config_write(d, 4, 2, 2);
    pci_msix_notify(fn, 1);
    assert_int_equal(f->dm.msi_count[1], 3);
    driver_config_write(d, 4, 2, 6);
    assert_int_equal(f->dm.msi_count[1], 4);
    pci_msix_notify(fn, 63);
    pci_msix_notify(fn, 64);
    assert_int_equal(driver_config_read(d, cap + 2, 2), 0x8001);
}

static void test_intx_is_shared_by_or(void **state)
{
    struct fixture *f = *state;
    struct pci_function *fn[2] = {NULL, NULL};

    for (struct device *dev = f->dm.machine->devices; dev; dev = dev->next) {
        if (dev->name[0] == 'r')
            fn[dev->name[3] - '0'] = container_of(dev, struct pci_function, dev);
    }
    pci_intx_set(fn[0], 1);
    assert_int_equal(f->dm.gsi_level[17], 1); /* slot 1, pin A */
    assert_true(driver_config_read(&f->a, 6, 2) & 8);
    driver_config_write(&f->a, 4, 2, 0x406);
    assert_int_equal(f->dm.gsi_level[17], 0);
    driver_config_write(&f->a, 4, 2, 6);
    assert_int_equal(f->dm.gsi_level[17], 1);
    pci_intx_set(fn[0], 0);
    assert_int_equal(f->dm.gsi_level[17], 0);
    assert_int_equal(f->dm.gsi_level[18], 0);
}

static void test_cfg_access_capability(void **state)
{
    struct fixture *f = *state;
    struct driver *d = &f->a;
    unsigned cap = (unsigned)driver_config_read(d, 0x34, 1);

    while (driver_config_read(d, cap, 1) != 9 || driver_config_read(d, cap + 3, 1) != 5)
        cap = (unsigned)driver_config_read(d, cap + 1, 1);
    driver_config_write(d, cap + 4, 1, 0);
    driver_config_write(d, cap + 8, 4, 0x12);
    driver_config_write(d, cap + 12, 4, 2);
    assert_int_equal(driver_config_read(d, cap + 16, 2), 1); /* one queue */
    driver_config_write(d, cap + 8, 4, 0x16);
    driver_config_write(d, cap + 16, 4, 7);
    assert_int_equal(driver_read(d, 0x16, 2), 7);
    /* Outside the BAR, on no BAR, of odd length: nothing. */
    driver_config_write(d, cap + 8, 4, 0x3fff);
    driver_config_read(d, cap + 16, 4);
    driver_config_write(d, cap + 8, 4, 0xffffffff);
    driver_config_read(d, cap + 16, 4);
    driver_config_write(d, cap + 4, 1, 0xff);
    driver_config_read(d, cap + 16, 4);
}

static void test_saved_state_comes_back(void **state)
{
    struct fixture *f = *state;
    struct state_buf buf;
    struct error err = {0};
    struct device *dev = f->dm.machine->devices;
    size_t pos = 0;

    while (dev->name[0] != 'r' || dev->name[3] != '0')
        dev = dev->next;
    driver_queue_setup(&f->a, 0, false);
    driver_ok(&f->a);
    state_buf_init(&buf);
    assert_int_equal(state_save(&buf, dev->ops->state, dev->name, dev), 0);
    device_lock(dev);
    dev->ops->reset(dev);
    device_unlock(dev);
    assert_int_equal(bus_read(f->dm.machine->bus, BUS_MEMORY, f->a.bar0 + 0x14, 1), 0xff);
    assert_int_equal(
        state_load(buf.data, buf.len, &pos, dev->ops->state, dev->name, dev, &err), 0);
    device_lock(dev);
    assert_int_equal(dev->ops->loaded(dev), 0);
    device_unlock(dev);
    assert_int_equal(driver_status(&f->a), 0xf);
    driver_desc(&f->a, 0, 0, DRIVER_DATA, 64, D_WRITE, 0);
    driver_offer(&f->a, 0, 0);
    driver_kick(&f->a, 0);
    assert_true(driver_wait(&f->a, 0, NULL, NULL));
    state_buf_release(&buf);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_identity_by_both_ways), TEST(test_bar_sizing_and_move),
        TEST(test_overlap_waits_for_room), TEST(test_read_only_bits_stay),
        TEST(test_msix_masks),            TEST(test_intx_is_shared_by_or),
        TEST(test_cfg_access_capability), TEST(test_saved_state_comes_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
