/* The Internet checksum (RFC 1071). */
#ifndef DEVICE_VIRTIO_CHECKSUM_H
#define DEVICE_VIRTIO_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* One's complement sum of the bytes as 16-bit words in memory order, not inverted. */
uint16_t checksum_ones(const void *bytes, size_t len);

#endif
