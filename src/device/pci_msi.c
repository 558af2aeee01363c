/* MSI: one message, 32-bit address, as the functions of ICH9 have it (PCI 3.0, 6.8.1). */
#include "device/pci_internal.h"

#define MSI_CONTROL        2u /* in the capability */
#define MSI_CONTROL_ENABLE 0x0001u
#define MSI_ADDRESS        4u
#define MSI_DATA           8u
#define MSI_LEN            8u /* of the body */

static void msi_flush_locked(struct pci_function *fn)
{
    struct pci_msi *msi = &fn->msi;

    if (!msi->enabled || msi->blocked || !msi->pending)
        return;
    msi->pending = false;
    msi_send(&fn->host->machine->msi, msi->addr, msi->data);
}

void pci_msi_notify(struct pci_function *fn)
{
    pthread_mutex_lock(&fn->msi.lock);
    fn->msi.pending = fn->msi.enabled;
    msi_flush_locked(fn);
    pthread_mutex_unlock(&fn->msi.lock);
}

bool pci_msi_enabled(struct pci_function *fn)
{
    bool enabled;

    pthread_mutex_lock(&fn->msi.lock);
    enabled = fn->msi.enabled;
    pthread_mutex_unlock(&fn->msi.lock);
    return enabled;
}

void pci_msi_update(struct pci_function *fn)
{
    struct pci_msi *msi = &fn->msi;
    const uint8_t *cap = &fn->config[msi->cap];

    if (!msi->cap)
        return;
    pthread_mutex_lock(&msi->lock);
    msi->enabled = pci_get(&cap[MSI_CONTROL], 2) & MSI_CONTROL_ENABLE;
    msi->addr = pci_get(&cap[MSI_ADDRESS], 4);
    msi->data = pci_get(&cap[MSI_DATA], 2);
    /* A message is a memory write: without bus mastering it stays pending. */
    msi->blocked = !(pci_get(&fn->config[PCI_COMMAND], 2) & PCI_COMMAND_MASTER);
    if (!msi->enabled)
        msi->pending = false;
    msi_flush_locked(fn);
    pthread_mutex_unlock(&msi->lock);
}

void pci_msi_init(struct pci_function *fn)
{
    const uint8_t body[MSI_LEN] = {0};
    uint8_t cap = pci_capability_add(fn, PCI_CAP_ID_MSI, body, sizeof(body));

    fn->msi.cap = cap;
    pci_put(&fn->writable[cap + MSI_CONTROL], 2, MSI_CONTROL_ENABLE);
    pci_put(&fn->writable[cap + MSI_ADDRESS], 4, 0xfffffffcu);
    pci_put(&fn->writable[cap + MSI_DATA], 2, 0xffff);
}
