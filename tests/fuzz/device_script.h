/*
 * Fuzz input as a script against one PCI device: configuration and BAR accesses, writes to the rings,
 * offers of descriptors, doorbells, resets. A valid set-up is one step, so that the fuzzer gets far. The
 * device is a virtio one, or brings its own set-up and commands.
 */
#ifndef TESTS_FUZZ_DEVICE_SCRIPT_H
#define TESTS_FUZZ_DEVICE_SCRIPT_H

#include "../unit/device/virtio_driver.h"

/* Runs the script on the function in `slot`, which has `queues` queues. */
void device_script_run(struct driver_machine *dm, unsigned slot, unsigned queues,
                       const uint8_t *data, size_t size);

/* Instead of virtio's set-up, rings and doorbells. */
struct device_script_ops {
    void (*start)(void *opaque, struct driver *d); /* a valid set-up; d->bar0: where the registers are */
    unsigned register_mask;                        /* of offsets into them */
    /* A command, or whatever else the device can be made to do, out of fuzz bytes. */
    void (*command)(void *opaque, struct driver *d, const uint8_t *bytes);
    void (*quiesce)(void *opaque); /* before a reset: nothing may be in flight on the test's side */
};
#define DEVICE_SCRIPT_BYTES 40u /* of a command */

void device_script_run_own(struct driver_machine *dm, unsigned slot,
                           const struct device_script_ops *ops, void *opaque, const uint8_t *data,
                           size_t size);

#endif
