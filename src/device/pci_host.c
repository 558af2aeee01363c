/* The Q35 host bridge and the two ways to configuration space (3 Series MCH data sheet, 3.1 and 5.1). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "device/pci_internal.h"

#define CONFIG_ADDRESS        0xcf8u
#define CONFIG_PORTS          8u
#define CONFIG_ADDRESS_ENABLE 0x80000000u
#define RESET_CONTROL         1u /* CF9h, from CONFIG_ADDRESS */
#define RESET_CONTROL_CPU     0x04u
#define BRIDGE_PCIEXBAR       0x60u /* 5.1.16 */
#define BRIDGE_PCIEXBAR_MASK  0xff0000000ull
#define BRIDGE_PCIEXBAR_EN    0x01u
#define BRIDGE_PAM0           0x90u /* 5.1.20 and on: seven registers */
#define BRIDGE_PAMS           7u
#define BRIDGE_PAM_ALL        0x33u
#define BRIDGE_SMRAM          0x9du /* 5.1.29 */
#define BRIDGE_SMRAM_BASE_SEG 0x02u /* C_BASE_SEG: reads as 010b */

static struct pci_function *host_function(struct pci_host *host, unsigned bus, unsigned devfn)
{
    return bus == 0 ? host->function[devfn & 0xff] : NULL;
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

/* Length 0 is 256 buses, 1 half, 2 a quarter of them; 3 is reserved. */
static void ecam_decode(const struct pci_function *bridge, uint64_t *base, uint64_t *len)
{
    uint64_t value = pci_get(&bridge->config[BRIDGE_PCIEXBAR], 4) |
                     (uint64_t)pci_get(&bridge->config[BRIDGE_PCIEXBAR + 4], 4) << 32;
    unsigned length = (unsigned)value >> 1 & 3;

    *len = (value & BRIDGE_PCIEXBAR_EN) && length != 3 ? PCI_ECAM_SIZE >> length : 0;
    *base = value & BRIDGE_PCIEXBAR_MASK;
}

static void ecam_update(struct pci_host *host)
{
    struct bus_region window = {.ops = &ecam_ops, .opaque = host};

    ecam_decode(&host->bridge, &window.base, &window.len);
    if (window.base == host->ecam_base && window.len == host->ecam_len)
        return;
    if (host->ecam_len)
        bus_remove(host->machine->bus, BUS_MEMORY, host->ecam_base);
    host->ecam_base = window.base;
    host->ecam_len = window.len;
    if (window.len && bus_add(host->machine->bus, BUS_MEMORY, &window)) {
        log_guest(
            "pci-host: the configuration window at 0x%llx overlaps another device; not decoded",
            (unsigned long long)window.base);
        host->ecam_len = 0;
    }
}

static bool touches(unsigned offset, unsigned size, unsigned first, unsigned len)
{
    return offset < first + len && first < offset + size;
}

static void host_config_written(struct pci_function *fn, unsigned offset, unsigned size)
{
    struct pci_host *host = container_of(fn, struct pci_host, bridge);

    if (touches(offset, size, BRIDGE_PCIEXBAR, 8))
        ecam_update(host);
    if (touches(offset, size, BRIDGE_PAM0, BRIDGE_PAMS))
        pci_pam_apply(host, &fn->config[BRIDGE_PAM0]);
}

/* The data sheet has the window off at power-on. Here it is on, where firmware puts it: so kernels
 * that are booted directly have it without more ado. */
static void host_reset_bridge(struct pci_host *host)
{
    uint8_t *config = host->bridge.config;

    pci_put(&config[BRIDGE_PCIEXBAR], 4, PCI_ECAM_BASE | BRIDGE_PCIEXBAR_EN);
    pci_put(&config[BRIDGE_PCIEXBAR + 4], 4, 0);
    for (unsigned i = 0; i < BRIDGE_PAMS; i++)
        config[BRIDGE_PAM0 + i] = host->pam.rom ? 0
                                  : i == 0      ? BRIDGE_PAM_ALL & 0xf0
                                                : BRIDGE_PAM_ALL;
    config[BRIDGE_SMRAM] = BRIDGE_SMRAM_BASE_SEG;
    ecam_update(host);
    pci_pam_apply(host, &config[BRIDGE_PAM0]);
}

static void host_reset(struct device *dev)
{
    struct pci_host *host = container_of(dev, struct pci_host, bridge.dev);

    host->address = 0;
    host->reset_control = 0;
    pci_function_reset(&host->bridge);
    host_reset_bridge(host);
}

/* What PAM shows is in the saved RAM already. */
static int host_loaded(struct device *dev)
{
    struct pci_host *host = container_of(dev, struct pci_host, bridge.dev);

    ecam_update(host);
    return pci_function_loaded(&host->bridge);
}

void pci_host_set_bios(struct pci_host *host, const uint8_t *image, size_t len)
{
    size_t shown = len < PCI_BIOS_WINDOW_MAX ? len : PCI_BIOS_WINDOW_MAX;

    device_lock(&host->bridge.dev);
    host->pam.rom = true;
    memcpy(host->pam.image + PCI_PAM_SIZE - shown, image + len - shown, shown);
    host_reset_bridge(host);
    device_unlock(&host->bridge.dev);
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
    STATE_BYTES(struct pci_host, pam.attr),
    STATE_BYTES(struct pci_host, pam.ram),
    STATE_FIELDS_END,
};

static const struct state_table host_state = {
    .name = "pci-host", .version = 2, .fields = host_fields};

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
    int ret = bus_add(host->machine->bus, BUS_PORT, &ports);

    return ret ? ret : pci_pam_init(host);
}

static void host_make_writable(struct pci_function *bridge)
{
    pci_put(&bridge->writable[BRIDGE_PCIEXBAR], 4, (uint32_t)BRIDGE_PCIEXBAR_MASK | 7);
    pci_put(&bridge->writable[BRIDGE_PCIEXBAR + 4], 4, (uint32_t)(BRIDGE_PCIEXBAR_MASK >> 32));
    bridge->writable[BRIDGE_PAM0] = BRIDGE_PAM_ALL & 0xf0;
    for (unsigned i = 1; i < BRIDGE_PAMS; i++)
        bridge->writable[BRIDGE_PAM0 + i] = BRIDGE_PAM_ALL;
    bridge->config_written = host_config_written;
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
    host_make_writable(&host->bridge);
    *out = host;
    ret = host_map(host);
    if (ret == 0)
        host_reset_bridge(host);
    return ret;
}

struct machine *pci_host_machine(struct pci_host *host)
{
    return host->machine;
}

int pci_host_find(const struct pci_host *host, const char *name)
{
    for (unsigned devfn = 0; devfn < PCI_DEVFNS; devfn++) {
        if (host->function[devfn] && strcmp(host->function[devfn]->dev.name, name) == 0)
            return (int)devfn;
    }
    return -ENOENT;
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

    for (unsigned devfn = 0; devfn < PCI_DEVFNS; devfn++) {
        struct pci_function *fn = host->function[devfn];
        unsigned pin;

        if (!fn)
            continue;
        assign_bars(fn, &next_mem, &next_io);
        pin = fn->config[PCI_INTERRUPT_PIN];
        if (pin)
            host_config_write(fn, PCI_INTERRUPT_LINE, 1, 16 + pci_intx_wire(devfn, pin));
        if (devfn)
            host_config_write(fn, PCI_COMMAND, 2, PCI_COMMAND_IO | PCI_COMMAND_MEMORY |
                                                      PCI_COMMAND_MASTER);
    }
}
