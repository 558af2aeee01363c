/*
 * Virtio 1.2 over PCI: the devices a guest knows by standard drivers. Constructors for the board;
 * the transport and queues are in virtio_pci.h and virtqueue.h.
 */
#ifndef DEVICE_VIRTIO_VIRTIO_H
#define DEVICE_VIRTIO_VIRTIO_H

#include "block/block.h"
#include "device/pci.h"
#include "net/net.h"

/* Each takes ownership of its back end, also on failure. `name` is unique in the machine. */
nodiscard int virtio_blk_create(struct pci_host *host, struct block *block, const char *name);
nodiscard int virtio_net_create(struct pci_host *host, struct net *net, const uint8_t mac[6],
                                const char *name);
nodiscard int virtio_rng_create(struct pci_host *host, const char *name);

/* A byte stream between the guest's console and the host; the file descriptors are borrowed. */
struct console_port;
nodiscard int virtio_console_create(struct pci_host *host, int in_fd, int out_fd, const char *name);

#endif
