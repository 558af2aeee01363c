/*
 * The virtio transport over PCI (virtio 1.2, 4.1; modern only), common to every virtio device.
 *
 * BAR 0 (64-bit) holds the common, ISR, device and notification structures; BAR 2 the MSI-X table.
 * A device embeds struct virtio_device as its first member and gives a table of operations.
 *
 * Threads and locks, in order: device lock (registers), a queue's lock, the back end's locks,
 * another queue's lock (the receive queue's, from the network back end), irq_lock. `kick` runs on
 * whichever thread rang: a vCPU's, or the device's I/O thread when an engine rings by eventfd.
 */
#ifndef DEVICE_VIRTIO_VIRTIO_PCI_H
#define DEVICE_VIRTIO_VIRTIO_PCI_H

#include <poll.h>

#include "device/pci.h"
#include "device/virtio/virtqueue.h"

#define VIRTIO_QUEUES_MAX     4u
#define VIRTIO_CONFIG_MAX     64u
#define VIRTIO_IO_FDS_MAX     2u /* of a device's own, in its I/O thread's poll set */

#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX     (1ull << 29)
#define VIRTIO_F_VERSION_1     (1ull << 32)

enum virtio_type { VIRTIO_NET = 1, VIRTIO_BLK = 2, VIRTIO_CONSOLE = 3, VIRTIO_RNG = 4 };

struct virtio_device;

struct virtio_ops {
    /* A buffer may be waiting in queue `index`. No queue lock held. */
    void (*kick)(struct virtio_device *dev, unsigned index);
    /* Optional: waits until no chain is in flight. Queues are stopped; device lock held. */
    void (*quiesce)(struct virtio_device *dev);
    /* Optional, I/O thread: fills in what to poll, returns how many; then told what poll() said. */
    unsigned (*io_prepare)(struct virtio_device *dev, struct pollfd fds[VIRTIO_IO_FDS_MAX]);
    void (*io_ready)(struct virtio_device *dev, const struct pollfd *fds, unsigned count);
};

struct virtio_bell { /* one queue's doorbell */
    struct virtio_device *dev;
    unsigned index;
    int event_fd; /* owned */
};

struct virtio_device {
    struct pci_function fn; /* first */
    const struct virtio_ops *ops;
    struct mem *mem;        /* borrowed */
    unsigned queue_count;
    struct virtqueue vq[VIRTIO_QUEUES_MAX];
    struct virtio_bell bell[VIRTIO_QUEUES_MAX];
    uint64_t offered;       /* feature bits; constant */
    uint8_t config[VIRTIO_CONFIG_MAX]; /* device-specific configuration as the guest reads it */
    unsigned config_len;
    uint8_t cfg_cap;        /* offset of the PCI configuration access capability */

    /* Device lock; `accepted` is constant while queues run. */
    uint64_t accepted;
    uint32_t offered_select, accepted_select;
    uint16_t queue_select;
    _Atomic uint16_t config_vector;
    _Atomic uint8_t status; /* NEEDS_RESET is set by data paths */

    pthread_mutex_t irq_lock;
    uint8_t isr; /* irq_lock */

    pthread_t io_thread;
    bool io_started;
    int io_wake_fd; /* owned */
    atomic_bool io_stop;
};

struct virtio_info {
    enum virtio_type type;
    uint8_t class_code[3];
    unsigned queue_count;
    uint64_t features; /* of the device; those of the transport are added */
    unsigned config_len;
    const struct virtio_ops *ops;
    const struct device_ops *device_ops;
};

extern const struct state_field virtio_device_state_fields[];

/* Fills in zeroed storage, starts the I/O thread, puts the function on the bus as the last step:
 * on failure the machine does not own it, and virtio_device_release() is still to be called. */
nodiscard int virtio_device_init(struct virtio_device *dev, struct pci_host *host,
                                 const struct virtio_info *info, const char *name);
/* Stops the I/O thread and frees what init made. */
void virtio_device_release(struct virtio_device *dev);

/* For the device_ops table of every virtio device. */
void virtio_device_reset(struct device *dev);
int virtio_device_loaded(struct device *dev);

static inline bool virtio_has(const struct virtio_device *dev, uint64_t feature)
{
    return dev->accepted & feature;
}

/* Interrupts the driver if it wants to know about what was published. Queue lock held. */
void virtio_notify(struct virtio_device *dev, struct virtqueue *vq);

/*
 * Serves a queue: `handle` for each chain until none is left, with the queue's lock held; it pushes the
 * chain, or answers false to stop with the chain given back (and no doorbell asked for). Interrupts as
 * needed. Bounded: a driver that never stops adding is left to the I/O thread after a while.
 */
typedef bool virtio_handle_fn(struct virtio_device *dev, struct virtqueue *vq,
                              struct virtqueue_chain *chain);
void virtio_serve(struct virtio_device *dev, unsigned index, struct virtqueue_chain *chain,
                  virtio_handle_fn *handle);

/* The rings are broken: tell the driver to reset the device. Any lock may be held but irq_lock. */
void virtio_needs_reset(struct virtio_device *dev);

/* Makes the I/O thread prepare its poll set again. */
void virtio_io_wake(struct virtio_device *dev);

#endif
