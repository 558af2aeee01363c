#include <errno.h>

#include "base/log.h"
#include "device/pci_internal.h"

/* Offset of BAR n in the header. */
static unsigned bar_offset(unsigned bar)
{
    return PCI_BAR0 + 4 * bar;
}

void pci_bar_init(struct pci_function *fn, unsigned bar, uint64_t size, bool io, bool is64,
                  const struct bus_ops *ops, void *opaque)
{
    unsigned at = bar_offset(bar);
    uint64_t address_bits = ~(size - 1);

    BUG_ON(bar >= PCI_BARS || (is64 && bar + 1 >= PCI_BARS) || size < 16 || size & (size - 1));
    fn->bar[bar] = (struct pci_bar){
        .size = size, .io = io, .is64 = is64, .ops = ops, .opaque = opaque};
    /* The bits below the size are not writable: that is how a guest finds the size. */
    pci_put(&fn->writable[at], 4, (uint32_t)address_bits);
    pci_put(&fn->config[at], 4, io ? 1u : is64 ? 4u : 0u);
    if (is64)
        pci_put(&fn->writable[at + 4], 4, (uint32_t)(address_bits >> 32));
}

static uint64_t bar_programmed(const struct pci_function *fn, unsigned bar)
{
    const struct pci_bar *b = &fn->bar[bar];
    unsigned at = bar_offset(bar);
    uint64_t base = pci_get(&fn->config[at], 4) & (b->io ? ~3u : ~15u);

    if (b->is64)
        base |= (uint64_t)pci_get(&fn->config[at + 4], 4) << 32;
    return base;
}

/* Where the guest wants the BAR now; false: nowhere. */
static bool bar_decoded(const struct pci_function *fn, unsigned bar, uint64_t *base)
{
    const struct pci_bar *b = &fn->bar[bar];
    uint32_t command = pci_get(&fn->config[PCI_COMMAND], 2);
    uint64_t last;

    *base = bar_programmed(fn, bar);
    if (!(command & (b->io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY)))
        return false;
    /* Zero is "not programmed", and all ones is what a guest writes to find the size. */
    if (*base == 0 || add_overflows(*base, b->size, &last))
        return false;
    return last <= (b->io ? 0x10000ull : b->is64 ? 1ull << 52 : 0xfffff000ull);
}

static enum bus_space bar_space(const struct pci_bar *bar)
{
    return bar->io ? BUS_PORT : BUS_MEMORY;
}

static void bar_unmap_locked(struct pci_function *fn, unsigned bar)
{
    struct pci_bar *b = &fn->bar[bar];

    b->mapped = false;
    if (fn->bar_mapped)
        fn->bar_mapped(fn, bar, false);
    bus_remove(fn->host->machine->bus, bar_space(b), b->base);
}

static void bar_map_locked(struct pci_function *fn, unsigned bar)
{
    struct pci_bar *b = &fn->bar[bar];
    const struct bus_region region = {.base = b->base, .len = b->size, .ops = b->ops,
                                      .opaque = b->opaque,
                                      .dev = b->own_lock ? NULL : &fn->dev};

    if (bus_add(fn->host->machine->bus, bar_space(b), &region))
        return;
    b->mapped = true;
    if (fn->bar_mapped)
        fn->bar_mapped(fn, bar, true);
}

/* Room has appeared: BARs that could not have their place before may have it now. */
static void host_retry_locked(struct pci_host *host)
{
    for (unsigned devfn = 0; devfn < PCI_DEVFNS; devfn++) {
        struct pci_function *fn = host->function[devfn];

        for (unsigned i = 0; fn && i < PCI_BARS; i++) {
            if (fn->bar[i].wanted && !fn->bar[i].mapped)
                bar_map_locked(fn, i);
        }
    }
}

/* True when the BAR left a place. */
static bool bar_update_locked(struct pci_function *fn, unsigned bar)
{
    struct pci_bar *b = &fn->bar[bar];
    uint64_t base;
    bool wanted = bar_decoded(fn, bar, &base);
    bool left = false;

    if (wanted == b->wanted && (!wanted || base == b->base))
        return false;
    if (b->mapped) {
        bar_unmap_locked(fn, bar);
        left = true;
    }
    b->wanted = wanted;
    b->base = base;
    if (!wanted)
        return left;
    bar_map_locked(fn, bar);
    if (!b->mapped)
        log_guest("%s: BAR %u at 0x%llx overlaps another device; not decoded", fn->dev.name, bar,
                  (unsigned long long)base);
    return left;
}

void pci_bars_update(struct pci_function *fn)
{
    bool left = false;

    pthread_mutex_lock(&fn->host->map_lock);
    for (unsigned i = 0; i < PCI_BARS; i++) {
        if (fn->bar[i].size)
            left |= bar_update_locked(fn, i);
    }
    if (left)
        host_retry_locked(fn->host);
    pthread_mutex_unlock(&fn->host->map_lock);
}
