#include "device/debug_exit.h"

#include <errno.h>
#include <stdlib.h>

struct debug_exit {
    struct device dev;
    struct machine *machine; /* borrowed */
};

static uint64_t debug_exit_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque;
    (void)offset;
    (void)size;
    return 0;
}

static void debug_exit_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct debug_exit *port = opaque;

    (void)offset;
    (void)size;
    machine_request(port->machine, MACHINE_DEBUG_EXIT, (int)((value << 1 | 1) & 0x7fffffff), NULL);
}

static void debug_exit_reset(struct device *dev)
{
    (void)dev;
}

static void debug_exit_destroy(struct device *dev)
{
    device_release(dev);
    free(container_of(dev, struct debug_exit, dev));
}

static const struct device_ops debug_exit_device_ops = {
    .type = "debug_exit", .reset = debug_exit_reset, .destroy = debug_exit_destroy};

static const struct bus_ops debug_exit_bus_ops = {debug_exit_read, debug_exit_write};

int debug_exit_create(struct machine *machine)
{
    struct debug_exit *port = calloc(1, sizeof(*port));
    struct bus_region region = {DEBUG_EXIT_PORT, 4, &debug_exit_bus_ops, port, NULL};
    int rc;

    if (!port)
        return -ENOMEM;
    device_init(&port->dev, &debug_exit_device_ops, "debug_exit");
    port->machine = machine;
    region.dev = &port->dev;
    rc = bus_add(machine->bus, BUS_PORT, &region);
    if (rc) {
        debug_exit_destroy(&port->dev);
        return rc;
    }
    machine_add_device(machine, &port->dev);
    return 0;
}
