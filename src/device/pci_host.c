/* The Q35 host bridge and the two ways to configuration space (3 Series MCH data sheet, 3.1 and 5.1). */
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "device/pci_internal.h"

#define CONFIG_ADDRESS        0xcf8u
#define CONFIG_PORTS          8u
#define CONFIG_ADDRESS_ENABLE 0x80000000u
#define RESET_CONTROL         1u /* CF9h, from CONFIG_ADDRESS */
#define RESET_CONTROL_CPU     0x04u
#define BRIDGE_PCIEXBAR       0x60u
#define BRIDGE_PAM0           0x90u

static struct pci_function *host_function(struct pci_host *host, unsigned bus, unsigned devfn)
{
    return bus == 0 && (devfn & 7) == 0 ? host->slot[devfn >> 3] : NULL;
}

/* A read of nothing ends in a master abort: all ones. */
static uint32_t host_config_read(struct pci_function *fn, unsigned offset, unsigned size)
{
    uint32_t value;

    if (!fn)
        return UINT32_MAX;
    device_lock(&fn->dev);
    value = pci_config_read(fn, offset, size);
    device_unlock(&fn->dev);
    return value;
}

static void host_config_write(struct pci_function *fn, unsigned offset, unsigned size,
                              uint32_t value)
{
    if (!fn)
        return;
    device_lock(&fn->dev);
    pci_config_write(fn, offset, size, value);
    device_unlock(&fn->dev);
}

/* Splits what crosses a dword, as the bridge does. */
static uint64_t config_read_split(struct pci_function *fn, unsigned offset, unsigned size)
{
    uint64_t value = 0;

    for (unsigned done = 0, part; done < size; done += part) {
        part = 4 - ((offset + done) & 3);
        if (part > size - done)
            part = size - done;
        value |= (host_config_read(fn, offset + done, part) & (uint64_t)UINT32_MAX >> (32 - 8 * part))
                 << (8 * done);
    }
    return value;
}

static void config_write_split(struct pci_function *fn, unsigned offset, unsigned size,
                               uint64_t value)
{
    for (unsigned done = 0, part; done < size; done += part) {
        part = 4 - ((offset + done) & 3);
        if (part > size - done)
            part = size - done;
        host_config_write(fn, offset + done, part, (uint32_t)(value >> (8 * done)));
    }
}

/* ECAM: bus, device, function and register are the address (PCI Express Base 3.0, 7.2.2). */
static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_function *fn =
        host_function(opaque, (unsigned)(offset >> 20), (unsigned)(offset >> 12) & 0xff);
    unsigned reg = (unsigned)offset & 0xfff;

    return reg + size <= 4096 ? config_read_split(fn, reg, size) : UINT64_MAX;
}

static void ecam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_function *fn =
        host_function(opaque, (unsigned)(offset >> 20), (unsigned)(offset >> 12) & 0xff);
    unsigned reg = (unsigned)offset & 0xfff;

    if (reg + size <= 4096)
        config_write_split(fn, reg, size, value);
}

static const struct bus_ops ecam_ops = {.read = ecam_read, .write = ecam_write};

/* The function and register that CONFIG_ADDRESS selects; NULL: none. */
static struct pci_function *address_decode(struct pci_host *host, uint32_t *address)
{
    device_lock(&host->bridge.dev);
    *address = host->address;
    device_unlock(&host->bridge.dev);
    if (!(*address & CONFIG_ADDRESS_ENABLE))
        return NULL;
    return host_function(host, (*address >> 16) & 0xff, (*address >> 8) & 0xff);
}

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_host *host = opaque;
    struct pci_function *fn;
    uint32_t address;

    fn = address_decode(host, &address);
    if (offset >= 4)
        return config_read_split(fn, (address & 0xfc) + ((unsigned)offset & 3), size);
    if (offset == 0 && size == 4)
        return address;
    return offset == RESET_CONTROL && size == 1 ? host->reset_control : UINT32_MAX;
}

/* Only a whole dword reaches CONFIG_ADDRESS; a byte to CF9h is the reset control register (ICH9 13.7.5). */
static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *host = opaque;
    struct pci_function *fn;
    uint32_t address;

    if (offset >= 4) {
        fn = address_decode(host, &address);
        config_write_split(fn, (address & 0xfc) + ((unsigned)offset & 3), size, value);
        return;
    }
    device_lock(&host->bridge.dev);
    if (offset == 0 && size == 4)
        host->address = (uint32_t)value & 0x80fffffcu;
    else if (offset == RESET_CONTROL && size == 1)
        host->reset_control = (uint8_t)(value & ~RESET_CONTROL_CPU);
    device_unlock(&host->bridge.dev);
    if (offset == RESET_CONTROL && size == 1 && (value & RESET_CONTROL_CPU))
        machine_request(host->machine, MACHINE_RESET, 0, "reset control register (port CF9h)");
}

static const struct bus_ops port_ops = {.read = port_read, .write = port_write};

static void host_reset(struct device *dev)
{
    struct pci_host *host = container_of(dev, struct pci_host, bridge.dev);

    host->address = 0;
    host->reset_control = 0;
    pci_function_reset(&host->bridge);
}

static int host_loaded(struct device *dev)
{
    return pci_function_loaded(container_of(dev, struct pci_function, dev));
}

/* Functions are destroyed before the host: devices go last to first. */
static void host_destroy(struct device *dev)
{
    struct pci_host *host = container_of(dev, struct pci_host, bridge.dev);

    pci_function_release(&host->bridge);
    pthread_mutex_destroy(&host->map_lock);
    pthread_mutex_destroy(&host->irq_lock);
    free(host);
}

static const struct state_field host_fields[] = {
    STATE_STRUCT(struct pci_host, bridge, pci_function_state_fields),
    STATE_UINT(struct pci_host, address),
    STATE_UINT(struct pci_host, reset_control),
    STATE_FIELDS_END,
};

static const struct state_table host_state = {
    .name = "pci-host", .version = 1, .fields = host_fields};

static const struct device_ops host_device_ops = {
    .type = "pci-host",
    .reset = host_reset,
    .destroy = host_destroy,
    .loaded = host_loaded,
    .state = &host_state,
};

static const struct pci_ids bridge_ids = {
    .vendor = 0x8086,
    .device = 0x29c0,
    .subsystem_vendor = 0x1af4,
    .subsystem = 0x1100,
    .class_code = {0x06, 0x00, 0x00},
};

static int host_map(struct pci_host *host)
{
    const struct bus_region ports = {
        .base = CONFIG_ADDRESS, .len = CONFIG_PORTS, .ops = &port_ops, .opaque = host};
    const struct bus_region ecam = {
        .base = PCI_ECAM_BASE, .len = PCI_ECAM_SIZE, .ops = &ecam_ops, .opaque = host};
    int ret = bus_add(host->machine->bus, BUS_PORT, &ports);

    return ret ? ret : bus_add(host->machine->bus, BUS_MEMORY, &ecam);
}

int pci_host_create(struct machine *machine, struct pci_host **out)
{
    struct pci_host *host = calloc(1, sizeof(*host));
    int ret;

    if (!host)
        return -ENOMEM;
    host->machine = machine;
    pthread_mutex_init(&host->map_lock, NULL);
    pthread_mutex_init(&host->irq_lock, NULL);
    ret = pci_function_add(host, &host->bridge, 0, &bridge_ids, &host_device_ops, "pci-host");
    if (ret)
        BUG("slot 0 of a new PCI host is taken");
    /* The ECAM window does not move; firmware that programs it writes this very value. */
    pci_put(&host->bridge.config[BRIDGE_PCIEXBAR], 4, PCI_ECAM_BASE | 1);
    for (unsigned i = 0; i < 7; i++)
        host->bridge.writable[BRIDGE_PAM0 + i] = 0x33;
    *out = host;
    return host_map(host);
}

struct machine *pci_host_machine(struct pci_host *host)
{
    return host->machine;
}

/* Next place for a BAR of `size`, counted from *next. */
static bool assign_take(uint64_t *next, uint64_t end, uint64_t size, uint64_t *base)
{
    *base = align_up(*next, size);
    if (*base > end || size > end - *base)
        return false;
    *next = *base + size;
    return true;
}

static void assign_bars(struct pci_function *fn, uint64_t *next_mem, uint64_t *next_io)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        const struct pci_bar *bar = &fn->bar[i];
        unsigned at = PCI_BAR0 + 4 * i;
        uint64_t base;
        bool ok;

        if (!bar->size)
            continue;
        ok = bar->io ? assign_take(next_io, 0x10000, bar->size, &base)
                     : assign_take(next_mem, PCI_MMIO32_END, bar->size, &base);
        if (!ok) {
            log_warning("%s: no room for BAR %u", fn->dev.name, i);
            continue;
        }
        host_config_write(fn, at, 4, (uint32_t)base);
        if (bar->is64)
            host_config_write(fn, at + 4, 4, (uint32_t)(base >> 32));
    }
}

void pci_host_assign(struct pci_host *host)
{
    uint64_t next_mem = PCI_MMIO32_BASE, next_io = 0xc000;

    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        struct pci_function *fn = host->slot[slot];
        unsigned pin;

        if (!fn)
            continue;
        assign_bars(fn, &next_mem, &next_io);
        pin = fn->config[PCI_INTERRUPT_PIN];
        if (pin)
            host_config_write(fn, PCI_INTERRUPT_LINE, 1, 16 + ((slot + pin - 1) & 3));
        if (slot)
            host_config_write(fn, PCI_COMMAND, 2, PCI_COMMAND_IO | PCI_COMMAND_MEMORY |
                                                      PCI_COMMAND_MASTER);
    }
}
