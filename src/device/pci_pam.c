/*
 * The programmable attribute map (3 Series MCH data sheet, 5.1.20): whether 0xc0000-0xfffff shows
 * RAM or the firmware's ROM, and whether writes reach the RAM, each for itself. Guest memory holds
 * what is seen, so that engines need not know of it; RAM that cannot be seen waits in pam.ram.
 * Where reads and writes go different ways the pages are ROM to the engine, and writes come here
 * over the bus.
 */
#include <string.h>

#include "device/pci_internal.h"

#define PAM_READ  1u
#define PAM_WRITE 2u

/* RAM unless it was written where only ROM can be seen: that is told to nobody until it is shown.
 */
static void pam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *host = opaque;

    if (host->pam.attr[offset / PCI_PAM_PIECE] == PAM_WRITE)
        memcpy(&host->pam.ram[offset], &value, size); /* the host is little-endian, as the guest */
}

static uint64_t pam_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_host *host = opaque;
    uint64_t value = 0;

    (void)!mem_read(host->machine->mem, PCI_PAM_BASE + offset, &value, size);
    return value;
}

static const struct bus_ops pam_ops = {.read = pam_read, .write = pam_write};

static void pam_show(struct pci_host *host, unsigned piece, bool ram)
{
    struct mem *mem = host->machine->mem;
    uint8_t *hidden = &host->pam.ram[piece * PCI_PAM_PIECE];
    const uint8_t *image = &host->pam.image[piece * PCI_PAM_PIECE];
    gpa_t gpa = PCI_PAM_BASE + piece * PCI_PAM_PIECE;
    int ret = 0;

    if (!ram)
        ret = mem_read(mem, gpa, hidden, PCI_PAM_PIECE);
    if (ret == 0)
        ret = mem_program(mem, gpa, ram ? hidden : image, PCI_PAM_PIECE);
    BUG_ON(ret != 0);
}

static void pam_set(struct pci_host *host, unsigned piece, uint8_t attr)
{
    uint8_t old = host->pam.attr[piece];

    if (attr == old)
        return;
    host->pam.attr[piece] = attr;
    if ((attr ^ old) & PAM_READ)
        pam_show(host, piece, attr & PAM_READ);
    mem_set_rom(host->machine->mem, PCI_PAM_BASE + piece * PCI_PAM_PIECE, PCI_PAM_PIECE,
                attr != (PAM_READ | PAM_WRITE));
}

void pci_pam_apply(struct pci_host *host, const uint8_t *pam)
{
    if (!mem_slot_find(host->machine->mem, PCI_PAM_BASE))
        return;                                   /* a machine of a test, without memory there */
    for (unsigned piece = 0; piece < 12; piece++) /* PAM1 to PAM6: two pieces each */
        pam_set(host, piece, pam[1 + piece / 2] >> (piece & 1 ? 4 : 0) & 3);
    for (unsigned piece = 12; piece < PCI_PAM_PIECES; piece++) /* PAM0: 0xf0000 on */
        pam_set(host, piece, pam[0] >> 4 & 3);
}

int pci_pam_init(struct pci_host *host)
{
    const struct bus_region area = {.base = PCI_PAM_BASE,
                                    .len = PCI_PAM_SIZE,
                                    .ops = &pam_ops,
                                    .opaque = host,
                                    .dev = &host->bridge.dev};
    struct pci_pam *pam = &host->pam;

    memset(pam->attr, PAM_READ | PAM_WRITE, sizeof(pam->attr));
    memset(pam->image, 0xff, sizeof(pam->image));
    if (mem_slot_find(host->machine->mem, PCI_PAM_BASE))
        mem_set_rom(host->machine->mem, PCI_PAM_BASE, PCI_PAM_SIZE, false);
    return bus_add(host->machine->bus, BUS_MEMORY, &area);
}
