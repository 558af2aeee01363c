#include "device/virtio/checksum.h"

#include <string.h>

/* The sum does not care about word size: add 32-bit words into 64 bits, fold at the end. */
uint16_t checksum_ones(const void *bytes, size_t len)
{
    const uint8_t *at = bytes;
    uint64_t sum = 0;
    uint32_t word;

    for (; len >= 4; len -= 4, at += 4) {
        memcpy(&word, at, 4);
        sum += word;
    }
    if (len) {
        word = 0;
        memcpy(&word, at, len);
        sum += word;
    }
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}
