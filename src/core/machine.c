#include "core/machine.h"

#include <errno.h>
#include <stdlib.h>

int machine_create(struct machine **out)
{
    struct machine *machine = calloc(1, sizeof(*machine));
    int ret;

    if (!machine)
        return -ENOMEM;
    ret = mem_create(&machine->mem);
    if (ret)
        goto err_free;
    ret = bus_create(&machine->bus);
    if (ret)
        goto err_mem;
    ret = timer_queue_create(&machine->timers);
    if (ret)
        goto err_bus;
    *out = machine;
    return 0;

err_bus:
    bus_destroy(machine->bus);
err_mem:
    mem_destroy(machine->mem);
err_free:
    free(machine);
    return ret;
}

void machine_destroy_devices(struct machine *machine)
{
    struct device *dev;

    /* The list is newest first: what was built on others goes before them. */
    while ((dev = machine->devices)) {
        machine->devices = dev->next;
        dev->ops->destroy(dev);
    }
}

void machine_destroy(struct machine *machine)
{
    if (!machine)
        return;
    machine_destroy_devices(machine);
    timer_queue_destroy(machine->timers);
    bus_destroy(machine->bus);
    mem_destroy(machine->mem);
    free(machine);
}

void machine_add_device(struct machine *machine, struct device *dev)
{
    dev->next = machine->devices;
    machine->devices = dev;
}

void machine_reset_devices(struct machine *machine)
{
    for (struct device *dev = machine->devices; dev; dev = dev->next) {
        if (!dev->ops->reset)
            continue;
        device_lock(dev);
        dev->ops->reset(dev);
        device_unlock(dev);
    }
}

void machine_request(struct machine *machine, enum machine_request what, int code,
                     const char *reason)
{
    if (machine->request)
        machine->request(machine->request_opaque, what, code, reason);
}
