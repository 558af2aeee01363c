#include "device/pci.h"

#include <errno.h>
#include <string.h>

#include "device/pci_internal.h"

static const struct state_field pci_msix_vector_fields[] = {
    STATE_UINT(struct pci_msix_vector, addr),
    STATE_UINT(struct pci_msix_vector, data),
    STATE_UINT(struct pci_msix_vector, control),
    STATE_FIELDS_END,
};

static const struct state_field pci_msix_fields[] = {
    STATE_STRUCT_ARRAY(struct pci_msix, table, pci_msix_vector_fields),
    STATE_UINT(struct pci_msix, pending),
    STATE_FIELDS_END,
};

const struct state_field pci_function_state_fields[] = {
    STATE_BYTES(struct pci_function, config),
    STATE_STRUCT(struct pci_function, msix, pci_msix_fields),
    STATE_UINT(struct pci_function, intx_level),
    STATE_FIELDS_END,
};

static void function_header_init(struct pci_function *fn, const struct pci_ids *ids)
{
    uint8_t *config = fn->config;

    pci_put(&config[PCI_VENDOR_ID], 2, ids->vendor);
    pci_put(&config[PCI_DEVICE_ID], 2, ids->device);
    config[PCI_REVISION] = ids->revision;
    config[PCI_CLASS] = ids->class_code[2];
    config[PCI_CLASS + 1] = ids->class_code[1];
    config[PCI_CLASS + 2] = ids->class_code[0];
    pci_put(&config[PCI_SUBSYSTEM_VENDOR], 2, ids->subsystem_vendor);
    pci_put(&config[PCI_SUBSYSTEM], 2, ids->subsystem);
    pci_put(&fn->writable[PCI_COMMAND], 2,
            PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_PARITY |
                PCI_COMMAND_SERR | PCI_COMMAND_INTX_OFF);
    fn->writable[PCI_CACHE_LINE] = 0xff;
    fn->writable[PCI_INTERRUPT_LINE] = 0xff;
    fn->cap_end = 0x40;
}

static int host_free_slot(const struct pci_host *host)
{
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        if (!host->function[PCI_DEVFN(slot, 0)])
            return (int)PCI_DEVFN(slot, 0);
    }
    return -ENOSPC;
}

/* A slot with more than function 0 says so in each (PCI 3.0, 6.2.1). */
static void slot_update_header(const struct pci_host *host, unsigned devfn)
{
    struct pci_function *const *function = &host->function[devfn & ~7u];
    bool multi = false;

    for (unsigned i = 1; i < 8; i++)
        multi |= function[i] != NULL;
    for (unsigned i = 0; multi && i < 8; i++) {
        if (function[i])
            function[i]->config[PCI_HEADER_TYPE] |= PCI_HEADER_MULTI;
    }
}

int pci_function_add(struct pci_host *host, struct pci_function *fn, int devfn,
                     const struct pci_ids *ids, const struct device_ops *ops, const char *name)
{
    if (devfn < 0)
        devfn = host_free_slot(host);
    if (devfn < 0)
        return devfn;
    if (devfn >= (int)PCI_DEVFNS || host->function[devfn])
        return -EBUSY;
    device_init(&fn->dev, ops, name);
    pthread_mutex_init(&fn->msix.lock, NULL);
    pthread_mutex_init(&fn->msi.lock, NULL);
    fn->host = host;
    fn->devfn = (uint8_t)devfn;
    function_header_init(fn, ids);
    fn->on_bus = true;
    host->function[devfn] = fn;
    slot_update_header(host, (unsigned)devfn);
    machine_add_device(host->machine, &fn->dev);
    return 0;
}

void pci_function_release(struct pci_function *fn)
{
    if (!fn->on_bus)
        return;
    fn->host->function[fn->devfn] = NULL;
    pthread_mutex_destroy(&fn->msix.lock);
    pthread_mutex_destroy(&fn->msi.lock);
    device_release(&fn->dev);
    fn->on_bus = false;
}

uint8_t pci_capability_add(struct pci_function *fn, uint8_t id, const void *body, uint8_t len)
{
    uint8_t at = (uint8_t)fn->cap_end;

    BUG_ON(fn->cap_end + 2u + len > 256);
    fn->config[at] = id;
    memcpy(&fn->config[at + 2], body, len);
    fn->config[fn->last_cap ? fn->last_cap + 1u : PCI_CAP_POINTER] = at;
    fn->config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
    fn->last_cap = at;
    fn->cap_end = (uint16_t)align_up(at + 2u + len, 4);
    return at;
}

/* A GSI is up while any function holds it. */
static void intx_drive_locked(struct pci_function *fn)
{
    struct pci_host *host = fn->host;
    unsigned pin = fn->config[PCI_INTERRUPT_PIN];
    unsigned wire = pci_intx_wire(fn->devfn, pin);
    bool up = fn->intx_level && !fn->intx_disabled;
    bool was_up = host->asserted[wire] != 0;

    if (!pin || up == fn->intx_driven)
        return;
    fn->intx_driven = up;
    host->asserted[wire] += up ? 1u : -1u;
    if (was_up != (host->asserted[wire] != 0))
        irq_line_set(&host->machine->gsi[16 + wire], !was_up);
}

void pci_intx_set(struct pci_function *fn, int level)
{
    pthread_mutex_lock(&fn->host->irq_lock);
    if (fn->intx_level != level) {
        fn->intx_level = level;
        intx_drive_locked(fn);
    }
    pthread_mutex_unlock(&fn->host->irq_lock);
}

void pci_intx_update(struct pci_function *fn)
{
    pthread_mutex_lock(&fn->host->irq_lock);
    fn->intx_disabled = pci_get(&fn->config[PCI_COMMAND], 2) & PCI_COMMAND_INTX_OFF;
    intx_drive_locked(fn);
    pthread_mutex_unlock(&fn->host->irq_lock);
}

static bool intx_pending(struct pci_function *fn)
{
    bool pending;

    pthread_mutex_lock(&fn->host->irq_lock);
    pending = fn->intx_level != 0;
    pthread_mutex_unlock(&fn->host->irq_lock);
    return pending;
}

uint32_t pci_config_read(struct pci_function *fn, unsigned offset, unsigned size)
{
    bool handled = false;
    uint32_t value;

    if (fn->config_read) {
        value = fn->config_read(fn, offset, size, &handled);
        if (handled)
            return value;
    }
    if (offset <= PCI_STATUS && offset + size > PCI_STATUS) {
        fn->config[PCI_STATUS] &= (uint8_t)~PCI_STATUS_INTX;
        if (intx_pending(fn))
            fn->config[PCI_STATUS] |= PCI_STATUS_INTX;
    }
    return pci_get(&fn->config[offset], size);
}

void pci_config_write(struct pci_function *fn, unsigned offset, unsigned size, uint32_t value)
{
    for (unsigned i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i));
        uint8_t mask = fn->writable[offset + i];
        uint8_t *at = &fn->config[offset + i];

        *at = (uint8_t)((*at & ~mask) | (byte & mask));
        *at = (uint8_t)(*at & ~(byte & fn->w1c[offset + i]));
    }
    if (offset < PCI_BAR0 + 4 * PCI_BARS)
        pci_bars_update(fn);
    if (offset < PCI_STATUS)
        pci_intx_update(fn);
    pci_msix_update(fn);
    pci_msi_update(fn);
    if (fn->config_written)
        fn->config_written(fn, offset, size);
}

static void function_apply(struct pci_function *fn)
{
    pci_bars_update(fn);
    pci_intx_update(fn);
    pci_msix_update(fn);
    pci_msi_update(fn);
}

void pci_function_reset(struct pci_function *fn)
{
    struct pci_msix *msix = &fn->msix;

    pci_intx_set(fn, 0);
    pthread_mutex_lock(&msix->lock);
    msix->pending = 0;
    for (unsigned i = 0; i < msix->count; i++)
        msix->table[i] = (struct pci_msix_vector){.control = 1};
    pthread_mutex_unlock(&msix->lock);
    /* What a guest can write is zero at power-on in every register here. */
    for (unsigned i = 0; i < sizeof(fn->config); i++)
        fn->config[i] = (uint8_t)(fn->config[i] & ~fn->writable[i]);
    function_apply(fn);
}

int pci_function_loaded(struct pci_function *fn)
{
    function_apply(fn);
    return 0;
}
