/*
 * Fuzz input as a script against one PCI device: configuration and BAR accesses, writes to the rings,
 * offers of descriptors, doorbells, resets. A valid set-up is one step, so that the fuzzer gets far.
 */
#ifndef TESTS_FUZZ_DEVICE_SCRIPT_H
#define TESTS_FUZZ_DEVICE_SCRIPT_H

#include "../unit/device/virtio_driver.h"

/* Runs the script on the function in `slot`, which has `queues` queues. */
void device_script_run(struct driver_machine *dm, unsigned slot, unsigned queues,
                       const uint8_t *data, size_t size);

#endif
