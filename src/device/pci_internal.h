/* What the files of the PCI host bridge share. Not for devices. */
#ifndef DEVICE_PCI_INTERNAL_H
#define DEVICE_PCI_INTERNAL_H

#include <stdatomic.h>

#include "device/pci.h"

#define PCI_SLOTS 32u
#define PCI_PAM_BASE   0xc0000u
#define PCI_PAM_SIZE   0x40000u
#define PCI_PAM_PIECE  0x4000u /* what two bits of a PAM register govern */
#define PCI_PAM_PIECES (PCI_PAM_SIZE / PCI_PAM_PIECE)

/* Configuration header, type 0 (PCI 3.0, 6.1). */
#define PCI_VENDOR_ID        0x00u
#define PCI_DEVICE_ID        0x02u
#define PCI_COMMAND          0x04u
#define PCI_COMMAND_IO       0x0001u
#define PCI_COMMAND_MEMORY   0x0002u
#define PCI_COMMAND_MASTER   0x0004u
#define PCI_COMMAND_PARITY   0x0040u
#define PCI_COMMAND_SERR     0x0100u
#define PCI_COMMAND_INTX_OFF 0x0400u
#define PCI_STATUS           0x06u
#define PCI_STATUS_INTX      0x0008u
#define PCI_STATUS_CAP_LIST  0x0010u
#define PCI_REVISION         0x08u
#define PCI_CLASS            0x09u
#define PCI_CACHE_LINE       0x0cu
#define PCI_BAR0             0x10u
#define PCI_SUBSYSTEM_VENDOR 0x2cu
#define PCI_SUBSYSTEM        0x2eu
#define PCI_HEADER_TYPE      0x0eu
#define PCI_HEADER_MULTI     0x80u
#define PCI_CAP_POINTER      0x34u
#define PCI_INTERRUPT_LINE   0x3cu
#define PCI_INTERRUPT_PIN    0x3du

#define PCI_CAP_ID_MSI  0x05u
#define PCI_CAP_ID_MSIX 0x11u

/* Order of locks: a function's device lock, then map_lock, then the bus's; and a device lock, then
 * irq_lock or a function's msix.lock or msi.lock, then the interrupt chips'. */
struct pci_host {
    struct pci_function bridge;  /* 00:00.0; its device lock guards `address` */
    struct machine *machine;     /* borrowed */
    struct pci_function *function[PCI_DEVFNS]; /* set while wiring, constant afterwards */
    uint32_t address;            /* CONFIG_ADDRESS, port CF8h */
    uint8_t reset_control;       /* port CF9h */
    pthread_mutex_t map_lock;    /* pci_bar.wanted, mapped, base of every function */
    pthread_mutex_t irq_lock;    /* intx_level, intx_disabled of every function; `asserted` */
    unsigned asserted[4];        /* functions that hold GSI 16 + i up */
    uint64_t ecam_base, ecam_len;     /* the window on the bus; 0: none; the bridge's lock */
    struct pci_pam {                  /* the bridge's lock */
        bool rom;                     /* there is an image to show */
        uint8_t attr[PCI_PAM_PIECES]; /* bit 0: reads see RAM; bit 1: writes reach it */
        uint8_t image[PCI_PAM_SIZE];  /* what is seen where reads do not */
        uint8_t ram[PCI_PAM_SIZE];    /* RAM that cannot be seen at the moment */
    } pam;
};

/* pci_pam.c; the bridge's lock held. The registers at `pam` (PAM0 on) are what the guest wrote. */
nodiscard int pci_pam_init(struct pci_host *host);
void pci_pam_apply(struct pci_host *host, const uint8_t *pam);

static inline uint32_t pci_get(const uint8_t *at, unsigned size)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint32_t)at[i] << (8 * i);
    return value;
}

static inline void pci_put(uint8_t *at, unsigned size, uint32_t value)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

/* Device lock held: brings the bus in line with the BARs and the command register. */
void pci_bars_update(struct pci_function *fn);
/* Device lock held: MSI-X or MSI registers or the command register changed. */
void pci_msix_update(struct pci_function *fn);
void pci_msi_update(struct pci_function *fn);
void pci_intx_update(struct pci_function *fn);

#endif
