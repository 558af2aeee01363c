/* MSI-X: the capability, its table and its pending bits (PCI 3.0, 6.8.2). */
#include "device/pci_internal.h"

#define MSIX_CONTROL         2u /* in the capability */
#define MSIX_CONTROL_ENABLE  0x8000u
#define MSIX_CONTROL_MASK    0x4000u
#define MSIX_PBA_OFFSET      0x800u
#define MSIX_BAR_SIZE        0x1000u
#define MSIX_ENTRY_SIZE      16u
#define MSIX_VECTOR_MASKED   1u

/* Sends what is pending and no longer masked. */
static void msix_flush_locked(struct pci_function *fn)
{
    struct pci_msix *msix = &fn->msix;

    if (!msix->enabled || msix->blocked || !msix->pending)
        return;
    for (unsigned i = 0; i < msix->count; i++) {
        const struct pci_msix_vector *vector = &msix->table[i];

        if (!(msix->pending & (1ull << i)) || (vector->control & MSIX_VECTOR_MASKED))
            continue;
        msix->pending &= ~(1ull << i);
        msi_send(&fn->host->machine->msi, vector->addr, vector->data);
    }
}

void pci_msix_notify(struct pci_function *fn, unsigned vector)
{
    struct pci_msix *msix = &fn->msix;

    pthread_mutex_lock(&msix->lock);
    if (msix->enabled && vector < msix->count) {
        msix->pending |= 1ull << vector;
        msix_flush_locked(fn);
    }
    pthread_mutex_unlock(&msix->lock);
}

bool pci_msix_enabled(const struct pci_function *fn)
{
    struct pci_msix *msix = (struct pci_msix *)&fn->msix;
    bool enabled;

    if (!msix->count)
        return false;
    pthread_mutex_lock(&msix->lock);
    enabled = msix->enabled;
    pthread_mutex_unlock(&msix->lock);
    return enabled;
}

void pci_msix_update(struct pci_function *fn)
{
    struct pci_msix *msix = &fn->msix;
    uint32_t control, command;

    if (!msix->count)
        return;
    control = pci_get(&fn->config[msix->cap + MSIX_CONTROL], 2);
    command = pci_get(&fn->config[PCI_COMMAND], 2);
    pthread_mutex_lock(&msix->lock);
    msix->enabled = control & MSIX_CONTROL_ENABLE;
    /* A message is a memory write: without bus mastering it stays pending. */
    msix->blocked = (control & MSIX_CONTROL_MASK) || !(command & PCI_COMMAND_MASTER);
    msix_flush_locked(fn);
    pthread_mutex_unlock(&msix->lock);
}

/* One dword of the BAR. */
static uint32_t msix_read32_locked(const struct pci_msix *msix, uint64_t offset)
{
    const struct pci_msix_vector *vector;

    if (offset == MSIX_PBA_OFFSET)
        return (uint32_t)msix->pending;
    if (offset == MSIX_PBA_OFFSET + 4)
        return (uint32_t)(msix->pending >> 32);
    if (offset / MSIX_ENTRY_SIZE >= msix->count)
        return 0;
    vector = &msix->table[offset / MSIX_ENTRY_SIZE];
    switch (offset % MSIX_ENTRY_SIZE) {
    case 0: return (uint32_t)vector->addr;
    case 4: return (uint32_t)(vector->addr >> 32);
    case 8: return vector->data;
    default: return vector->control;
    }
}

static void msix_write32_locked(struct pci_msix *msix, uint64_t offset, uint32_t value)
{
    struct pci_msix_vector *vector;

    if (offset / MSIX_ENTRY_SIZE >= msix->count)
        return; /* the pending bits are read-only, the rest is reserved */
    vector = &msix->table[offset / MSIX_ENTRY_SIZE];
    switch (offset % MSIX_ENTRY_SIZE) {
    case 0: vector->addr = (vector->addr & ~0xffffffffull) | (value & ~3u); break;
    case 4: vector->addr = (vector->addr & 0xffffffffull) | (uint64_t)value << 32; break;
    case 8: vector->data = value; break;
    default: vector->control = value & MSIX_VECTOR_MASKED; break;
    }
}

static uint64_t msix_bar_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_function *fn = opaque;
    uint64_t at = align_down(offset, 4), value;

    (void)size; /* the bus cuts the value to it */
    pthread_mutex_lock(&fn->msix.lock);
    value = msix_read32_locked(&fn->msix, at) |
            (uint64_t)msix_read32_locked(&fn->msix, at + 4) << 32;
    pthread_mutex_unlock(&fn->msix.lock);
    return value >> (8 * (offset - at));
}

/* Only aligned dwords and qwords are defined (6.8.2); anything else is ignored. */
static void msix_bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_function *fn = opaque;

    if (size < 4 || offset % size)
        return;
    pthread_mutex_lock(&fn->msix.lock);
    msix_write32_locked(&fn->msix, offset, (uint32_t)value);
    if (size == 8)
        msix_write32_locked(&fn->msix, offset + 4, (uint32_t)(value >> 32));
    msix_flush_locked(fn);
    pthread_mutex_unlock(&fn->msix.lock);
}

static const struct bus_ops msix_bar_ops = {.read = msix_bar_read, .write = msix_bar_write};

int pci_msix_init(struct pci_function *fn, unsigned bar, unsigned vectors)
{
    struct pci_msix *msix = &fn->msix;
    uint8_t body[10];

    BUG_ON(vectors == 0 || vectors > PCI_MSIX_VECTORS_MAX);
    pci_put(&body[0], 2, vectors - 1);
    pci_put(&body[2], 4, bar);
    pci_put(&body[6], 4, MSIX_PBA_OFFSET | bar);
    msix->cap = pci_capability_add(fn, PCI_CAP_ID_MSIX, body, sizeof(body));
    pci_put(&fn->writable[msix->cap + MSIX_CONTROL], 2, MSIX_CONTROL_ENABLE | MSIX_CONTROL_MASK);
    pci_bar_init(fn, bar, MSIX_BAR_SIZE, false, false, &msix_bar_ops, fn);
    msix->count = vectors;
    for (unsigned i = 0; i < vectors; i++)
        msix->table[i].control = MSIX_VECTOR_MASKED;
    return 0;
}
