/* The I/O thread of a virtio device: serves doorbells rung by eventfd, and descriptors of the device's own. */
#ifndef DEVICE_VIRTIO_VIRTIO_IO_H
#define DEVICE_VIRTIO_VIRTIO_IO_H

#include "device/virtio/virtio_pci.h"

nodiscard int virtio_io_start(struct virtio_device *dev);
void virtio_io_stop(struct virtio_device *dev);

/* Rings the bell on the I/O thread instead of here. */
void virtio_bell_post(struct virtio_bell *bell);

#endif
