/*
 * What firmware programs: the configuration device by ports and DMA, the host bridge's and the LPC
 * bridge's registers, A20. Any sequence must end, within memory. The state is saved and loaded now
 * and then.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chip/acpi_pm.h"
#include "device/cfi_flash.h"
#include "device/fw_cfg.h"
#include "device/i8042.h"
#include "device/ich9_lpc.h"
#include "device/pci.h"

#define RAM       0x400000u
#define FLASH     0xfff00000u
#define FLASHED   0x4000u
#define STEPS_MAX 400u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct script {
    const uint8_t *data;
    size_t left;
    struct machine *machine;
};

static uint64_t take(struct script *s, unsigned bytes)
{
    uint64_t value = 0;

    if (bytes > s->left)
        bytes = (unsigned)s->left;
    memcpy(&value, s->data, bytes);
    s->data += bytes;
    s->left -= bytes;
    return value;
}

/* A descriptor for the DMA interface, mostly of sensible numbers, and its address, which starts it.
 */
static void dma(struct script *s)
{
    struct {
        uint32_t control, length;
        uint64_t address;
    } d;
    uint32_t at = (uint32_t)take(s, 3) % (RAM + 0x1000);

    d.control = __builtin_bswap32((uint32_t)(take(s, 2) << 16 | take(s, 1)));
    d.length = __builtin_bswap32((uint32_t)take(s, 1) & 0x80 ? (uint32_t)take(s, 4)
                                                             : (uint32_t)take(s, 2));
    d.address = __builtin_bswap64(take(s, 1) & 0x80 ? take(s, 8) : take(s, 3));
    (void)!mem_write(s->machine->mem, at, &d, sizeof(d));
    bus_write(s->machine->bus, BUS_PORT, 0x514, 4, 0);
    bus_write(s->machine->bus, BUS_PORT, 0x518, 4, __builtin_bswap32(at));
}

static void ports(struct script *s)
{
    static const uint16_t first[] = {0x510, 0x514, 0xcf8, 0xcfc, 0x92,
                                     0xb2,  0x60,  0x64,  0x600, 0x630};
    uint64_t at = first[take(s, 1) % ARRAY_SIZE(first)] + (take(s, 1) & 7);
    unsigned size = 1u << take(s, 1) % 3;

    bus_write(s->machine->bus, BUS_PORT, at, size, take(s, 4));
    (void)bus_read(s->machine->bus, BUS_PORT, at, size);
}

static void config(struct script *s)
{
    uint32_t devfn = take(s, 1) & 1 ? PCI_DEVFN(ICH9_LPC_SLOT, 0) : 0;

    bus_write(s->machine->bus, BUS_PORT, 0xcf8, 4, 0x80000000u | devfn << 8 | (take(s, 1) & 0xfc));
    bus_write(s->machine->bus, BUS_PORT, 0xcfc, 4, take(s, 4));
}

static void store(struct script *s)
{
    gpa_t gpa = 0xbf000 + take(s, 3) % 0x42000;
    unsigned size = 1u << (take(s, 1) & 3);

    gpa &= ~(uint64_t)(size - 1);
    bus_write(s->machine->bus, BUS_MEMORY, gpa, size, take(s, 8));
    (void)bus_read(s->machine->bus, BUS_MEMORY, gpa, size);
    mem_write32(s->machine->mem, gpa, (uint32_t)take(s, 4));
}

static void flash(struct script *s)
{
    static const uint8_t commands[] = {0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0x90, 0x98, 0xd0, 0xe8, 0xff};
    unsigned op = (unsigned)take(s, 1), size = 1u << (op & 3);
    gpa_t gpa = FLASH + (take(s, 2) % FLASHED & ~(uint64_t)(size - 1));
    uint64_t value = op & 4 ? take(s, 8) : commands[take(s, 1) % ARRAY_SIZE(commands)];

    bus_write(s->machine->bus, BUS_MEMORY, gpa, size, value);
    (void)bus_read(s->machine->bus, BUS_MEMORY, gpa, size);
}

static void save_and_load(struct script *s)
{
    for (struct device *dev = s->machine->devices; dev; dev = dev->next) {
        struct error err = {0};
        struct state_buf buf;
        size_t pos = 0;

        state_buf_init(&buf);
        if (state_save(&buf, dev->ops->state, dev->name, dev))
            abort();
        if (state_load(buf.data, buf.len, &pos, dev->ops->state, dev->name, dev, &err))
            abort();
        if (dev->ops->loaded) {
            device_lock(dev);
            if (dev->ops->loaded(dev))
                abort();
            device_unlock(dev);
        }
        state_buf_release(&buf);
    }
}

static void step(struct script *s)
{
    unsigned op = (unsigned)take(s, 1);

    switch (op & 7) {
    case 0: dma(s); break;
    case 1: flash(s); break;
    case 2:
    case 3: ports(s); break;
    case 4: config(s); break;
    case 5: store(s); break;
    case 6: irq_line_set(&s->machine->gsi[16 + (op >> 4) % 8], op & 8); break;
    default:
        if (op & 8)
            machine_reset_devices(s->machine);
        else if (!(op & 0xf0)) /* seldom: it takes long */
            save_and_load(s);
    }
}

static void pirq_set(void *opaque, unsigned number, int level)
{
    ich9_lpc_pirq(opaque, number - 16, level);
}

static void build(struct machine *machine)
{
    const struct irq_line none = {0};
    static uint8_t image[0x40000];
    struct ich9_lpc *lpc;
    struct acpi_pm *pm;
    struct pci_host *host;
    struct fw_cfg *fw;
    struct error err = {0};

    if (mem_add_ram(machine->mem, 0, RAM, &err) || acpi_pm_create(machine, 0x600, none, &pm) ||
        i8042_create(machine, none, none) || pci_host_create(machine, &host) ||
        ich9_lpc_create(host, pm, &none, &lpc) || fw_cfg_create(machine, &fw) ||
        mem_add_rom(machine->mem, FLASH, image, FLASHED, &err) ||
        cfi_flash_create(machine, FLASH, FLASHED, -1) || fw_cfg_add_file(fw, "etc/one", "one", 3) || fw_cfg_add_file(fw, "etc/two", image, 5000))
        abort();
    for (unsigned i = 16; i < GSI_COUNT; i++)
        machine->gsi[i] = (struct irq_line){.set = pirq_set, .opaque = lpc, .number = i};
    pci_host_set_bios(host, image, sizeof(image));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct script s = {.data = data, .left = size};

    log_set_level(LOG_ERROR);
    if (machine_create(&s.machine))
        abort();
    build(s.machine);
    for (unsigned n = 0; s.left && n < STEPS_MAX; n++)
        step(&s);
    machine_destroy(s.machine);
    return 0;
}
