#include "virtio_driver.h"

#include <stdlib.h>
#include <time.h>

#include "base/clock.h"

static void msi_seen(void *opaque, uint64_t addr, uint32_t data)
{
    struct driver_machine *dm = opaque;

    if (addr >> 20 == 0xfee && data < DRIVER_MSIS)
        dm->msi_count[data]++;
}

static void gsi_seen(void *opaque, unsigned number, int level)
{
    struct driver_machine *dm = opaque;

    dm->gsi_level[number] = level;
}

void driver_machine_init(struct driver_machine *dm)
{
    struct error err = {0};

    *dm = (struct driver_machine){0};
    if (machine_create(&dm->machine) || mem_add_ram(dm->machine->mem, 0, DRIVER_RAM, &err))
        abort();
    dm->machine->msi = (struct msi_sink){.send = msi_seen, .opaque = dm};
    for (unsigned i = 0; i < GSI_COUNT; i++)
        dm->machine->gsi[i] = (struct irq_line){.set = gsi_seen, .opaque = dm, .number = i};
    if (pci_host_create(dm->machine, &dm->host))
        abort();
}

void driver_machine_release(struct driver_machine *dm)
{
    machine_destroy(dm->machine);
}

uint64_t driver_config_read(struct driver *d, unsigned offset, unsigned size)
{
    return bus_read(d->machine->bus, BUS_MEMORY, PCI_ECAM_BASE + (d->slot << 15) + offset, size);
}

void driver_config_write(struct driver *d, unsigned offset, unsigned size, uint64_t value)
{
    bus_write(d->machine->bus, BUS_MEMORY, PCI_ECAM_BASE + (d->slot << 15) + offset, size, value);
}

uint64_t driver_read(struct driver *d, unsigned offset, unsigned size)
{
    return bus_read(d->machine->bus, BUS_MEMORY, d->bar0 + offset, size);
}

void driver_write(struct driver *d, unsigned offset, unsigned size, uint64_t value)
{
    bus_write(d->machine->bus, BUS_MEMORY, d->bar0 + offset, size, value);
}

static void driver_msix_enable(struct driver *d)
{
    for (unsigned cap = (unsigned)driver_config_read(d, 0x34, 1); cap;
         cap = (unsigned)driver_config_read(d, cap + 1, 1)) {
        if (driver_config_read(d, cap, 1) == 0x11)
            driver_config_write(d, cap + 2, 2, 0x8000);
    }
    for (unsigned v = 0; v < 3; v++) {
        bus_write(d->machine->bus, BUS_MEMORY, d->bar2 + 16 * v, 8, 0xfee00000);
        bus_write(d->machine->bus, BUS_MEMORY, d->bar2 + 16 * v + 8, 8, v);
    }
}

void driver_init(struct driver *d, struct driver_machine *dm, unsigned slot, uint64_t features,
                 bool msix)
{
    *d = (struct driver){.machine = dm->machine, .slot = slot};
    pci_host_assign(dm->host);
    d->bar0 = driver_config_read(d, 0x10, 8) & ~15ull;
    d->bar2 = driver_config_read(d, 0x18, 4) & ~15ull;
    if (msix)
        driver_msix_enable(d);
    driver_write(d, 0x14, 1, 0);
    driver_write(d, 0x14, 1, 3);
    driver_write(d, 0x08, 4, 0);
    driver_write(d, 0x0c, 4, (uint32_t)features);
    driver_write(d, 0x08, 4, 1);
    driver_write(d, 0x0c, 4, features >> 32);
    driver_write(d, 0x14, 1, 0xb);
}

void driver_queue_setup(struct driver *d, unsigned queue, bool msix)
{
    uint64_t base = DRIVER_RINGS + queue * 0x10000u;

    d->desc[queue] = base;
    d->avail[queue] = base + 0x4000;
    d->used[queue] = base + 0x8000;
    driver_write(d, 0x16, 2, queue);
    driver_write(d, 0x18, 2, DRIVER_QUEUE);
    if (msix)
        driver_write(d, 0x1a, 2, queue + 1);
    driver_write(d, 0x20, 8, d->desc[queue]);
    driver_write(d, 0x28, 4, d->avail[queue]);
    driver_write(d, 0x2c, 4, 0);
    driver_write(d, 0x30, 8, d->used[queue]);
    driver_write(d, 0x1c, 2, 1);
}

void driver_ok(struct driver *d)
{
    driver_write(d, 0x14, 1, 0xf);
}

uint8_t driver_status(struct driver *d)
{
    return (uint8_t)driver_read(d, 0x14, 1);
}

void driver_desc_at(struct driver *d, uint64_t table, unsigned index, uint64_t addr, uint32_t len,
                    uint16_t flags, uint16_t next)
{
    mem_write64(d->machine->mem, table + 16 * index, addr);
    mem_write32(d->machine->mem, table + 16 * index + 8, len);
    mem_write16(d->machine->mem, table + 16 * index + 12, flags);
    mem_write16(d->machine->mem, table + 16 * index + 14, next);
}

void driver_desc(struct driver *d, unsigned queue, unsigned index, uint64_t addr, uint32_t len,
                 uint16_t flags, uint16_t next)
{
    driver_desc_at(d, d->desc[queue], index, addr, len, flags, next);
}

void driver_offer(struct driver *d, unsigned queue, uint16_t head)
{
    struct mem *mem = d->machine->mem;

    mem_write16(mem, d->avail[queue] + 4 + 2 * (d->avail_idx[queue] % DRIVER_QUEUE), head);
    atomic_thread_fence(memory_order_seq_cst);
    mem_write16(mem, d->avail[queue] + 2, ++d->avail_idx[queue]);
    atomic_thread_fence(memory_order_seq_cst);
}

void driver_kick(struct driver *d, unsigned queue)
{
    driver_write(d, 0x3000 + 4 * queue, 2, queue);
}

bool driver_wait(struct driver *d, unsigned queue, uint32_t *id, uint32_t *len)
{
    struct mem *mem = d->machine->mem;
    uint64_t end = clock_now() + 10 * NSEC_PER_SEC;
    uint64_t entry = d->used[queue] + 4 + 8 * (d->used_idx[queue] % DRIVER_QUEUE);

    while (mem_read16(mem, d->used[queue] + 2) == d->used_idx[queue]) {
        struct timespec nap = {.tv_nsec = 100000};

        if (clock_now() > end)
            return false;
        nanosleep(&nap, NULL);
    }
    atomic_thread_fence(memory_order_seq_cst);
    d->used_idx[queue]++;
    if (id)
        *id = mem_read32(mem, entry);
    if (len)
        *len = mem_read32(mem, entry + 4);
    return true;
}
