/*
 * PCI: configuration space, BARs, MSI and MSI-X, and the host bridge that finds functions.
 * Source: PCI Local Bus 3.0, PCI Express Base 3.0 (ECAM 7.2.2); Intel 3 Series (Q35) MCH data
 * sheet.
 *
 * A function embeds struct pci_function and is put on bus 0. Its BARs are mapped on the machine's
 * bus as the guest programs them. INTx: see pci_intx_wire().
 */
#ifndef DEVICE_PCI_H
#define DEVICE_PCI_H

#include "core/machine.h"

#define PCI_ECAM_BASE   0xb0000000u /* 256 buses of 1 MiB */
#define PCI_ECAM_SIZE   0x10000000u
#define PCI_MMIO32_BASE 0xc0000000u /* BARs below 4 GiB: up to PCI_MMIO32_END */
#define PCI_MMIO32_END  0xfec00000u /* the I/O APIC */
#define PCI_MMIO64_TOP  0x10000000000ull /* BARs above RAM: up to a multiple of this */

#define PCI_DEVFN(slot, function) ((unsigned)(slot) << 3 | (function))
#define PCI_DEVFNS                256u /* of bus 0 */

#define PCI_BARS 6u
#define PCI_MSIX_VECTORS_MAX 64u

struct pci_host;
struct pci_function;

struct pci_bar {
    uint64_t size;             /* power of two; 0: none */
    bool io, is64, prefetch;
    bool own_lock;             /* ops take the device lock themselves, where and as long as they need it */
    const struct bus_ops *ops; /* region when decoded; run under the function's device lock unless own_lock */
    void *opaque;
    /* Where it is; the host's mapping lock. `wanted` but not `mapped`: the place is taken. */
    bool wanted, mapped;
    uint64_t base;
};

struct pci_msix {
    pthread_mutex_t lock; /* everything below; a leaf except for the interrupt chips */
    bool enabled;         /* the capability's enable bit */
    bool blocked;         /* function masked, or not a bus master */
    unsigned count;     /* vectors; 0: none */
    unsigned bar;       /* holds the table at 0 and the PBA at 0x800 */
    uint8_t cap;        /* offset of the capability */
    struct pci_msix_vector {
        uint64_t addr;
        uint32_t data, control; /* control bit 0: masked */
    } table[PCI_MSIX_VECTORS_MAX];
    uint64_t pending;   /* PBA; up to 64 vectors */
};

struct pci_msi {
    pthread_mutex_t lock; /* everything below but cap; a leaf except for the interrupt chips */
    bool enabled;         /* the capability's enable bit */
    bool blocked;         /* not a bus master */
    bool pending;         /* to be sent when no longer blocked */
    uint32_t addr, data;
    uint8_t cap;          /* offset of the capability; 0: none */
};

struct pci_function {
    struct device dev;
    struct pci_host *host;
    uint8_t devfn; /* PCI_DEVFN() */
    uint8_t config[4096];
    uint8_t writable[4096];  /* bits the guest may write */
    uint8_t w1c[4096];       /* bits cleared by writing 1 */
    uint16_t cap_end;        /* where the next capability goes */
    uint8_t last_cap;
    struct pci_bar bar[PCI_BARS];
    struct pci_msix msix;
    struct pci_msi msi;
    int intx_level; /* host's interrupt lock, with the three below */
    bool intx_disabled;
    bool intx_driven;
    bool on_bus;             /* device lock is initialised, function is in the host's list */
    /* optional hook; the host's mapping lock held, some function's device lock too: no locks inside
     * but the bus's */
    void (*bar_mapped)(struct pci_function *fn, unsigned bar, bool mapped);
    /* optional hooks; device lock held */
    void (*config_written)(struct pci_function *fn, unsigned offset, unsigned size);
    uint32_t (*config_read)(struct pci_function *fn, unsigned offset, unsigned size, bool *handled);
};

struct pci_ids {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint8_t revision;
    uint8_t class_code[3]; /* base, sub, prog-if */
};

/* Ports CF8h/CFCh, the ECAM window, and the Q35 host bridge as 00:00.0. */
nodiscard int pci_host_create(struct machine *machine, struct pci_host **out);
struct machine *pci_host_machine(struct pci_host *host);

/* The image that is read in 0xc0000-0xfffff where the PAM registers do not show RAM (3 Series MCH
 * data sheet, 5.1.20): its last `len` bytes, up to PCI_BIOS_WINDOW_MAX, end at 1 MiB, and the rest
 * reads as ones. Before vCPUs run; without it all of the area is RAM after reset, as a kernel that
 * is booted directly wants it. */
#define PCI_BIOS_WINDOW_MAX 0x20000u
void pci_host_set_bios(struct pci_host *host, const uint8_t *image, size_t len);

/* Where a function's interrupt pin (1: INTA#) goes: 0 to 3, PIRQA# to PIRQD#, which are GSI 16
 * to 19. */
static inline unsigned pci_intx_wire(unsigned devfn, unsigned pin)
{
    unsigned slot = devfn >> 3;

    /* Pins are rotated by slot; those of the chipset's own functions, from slot 25 on, are not
     * (ICH9 data sheet 10.1). */
    return (slot < 25 ? slot + pin - 1 : pin - 1) & 3;
}

/* Fills in the header of fn (storage of the caller's device) and puts it at PCI_DEVFN `devfn` (< 0:
 * function 0 of the first free slot). Function 0 is found first, so a slot with others must have
 * one. The machine owns fn->dev from here on. */
nodiscard int pci_function_add(struct pci_host *host, struct pci_function *fn, int devfn,
                               const struct pci_ids *ids, const struct device_ops *ops,
                               const char *name);

/* Before pci_function_add's function is seen by a guest. */
void pci_bar_init(struct pci_function *fn, unsigned bar, uint64_t size, bool io, bool is64,
                  const struct bus_ops *ops, void *opaque);
uint8_t pci_capability_add(struct pci_function *fn, uint8_t id, const void *body, uint8_t len);
nodiscard int pci_msix_init(struct pci_function *fn, unsigned bar, unsigned vectors);
void pci_msi_init(struct pci_function *fn); /* one message */

/* From the device's reset op (configuration space back to power-on) and loaded op. */
void pci_function_reset(struct pci_function *fn);
nodiscard int pci_function_loaded(struct pci_function *fn);
/* Frees what the function owns; from the device's destroy op. */
void pci_function_release(struct pci_function *fn);

/* The saved state every function has: put it in the device's table with
 * STATE_STRUCT(type, fn_member, pci_function_state_fields). */
extern const struct state_field pci_function_state_fields[];

/* Configuration access as a bus cycle would do it: size 1, 2 or 4, not crossing a dword; lock held. */
uint32_t pci_config_read(struct pci_function *fn, unsigned offset, unsigned size);
void pci_config_write(struct pci_function *fn, unsigned offset, unsigned size, uint32_t value);

/* Interrupts, from any thread, with or without the device lock. pci_msi*_notify: own lock inside. */
bool pci_msix_enabled(const struct pci_function *fn);
void pci_msix_notify(struct pci_function *fn, unsigned vector);
bool pci_msi_enabled(struct pci_function *fn);
void pci_msi_notify(struct pci_function *fn);
void pci_intx_set(struct pci_function *fn, int level);

/* PCI_DEVFN of the device with this name; negative: none. */
int pci_host_find(const struct pci_host *host, const char *name);

/* Gives every BAR an address and enables decoding, as firmware would: for direct kernel boot. */
void pci_host_assign(struct pci_host *host);

#endif
