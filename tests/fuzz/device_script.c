#include "device_script.h"

#include <string.h>

#define STEPS_MAX 400u

struct script {
    const uint8_t *data;
    size_t left;
    struct driver d;
    struct driver_machine *dm;
    unsigned queues;
    const struct device_script_ops *own; /* NULL: a virtio device */
    void *opaque;
};

static uint64_t take(struct script *s, unsigned bytes)
{
    uint64_t value = 0;

    if (bytes > s->left)
        bytes = (unsigned)s->left;
    memcpy(&value, s->data, bytes);
    s->data += bytes;
    s->left -= bytes;
    return value;
}

static unsigned take_size(struct script *s)
{
    return 1u << (take(s, 1) & 3);
}

/* Mostly inside memory, sometimes not. */
static uint64_t take_address(struct script *s)
{
    uint64_t value = take(s, 4);

    return value & 0x80000000 ? value << 16 : value % (DRIVER_RAM + 0x1000);
}

static void virtio_start(struct script *s)
{
    static const uint64_t rings[] = {0x4002, 0x8002};
    uint64_t features = F_VERSION_1 | (take(s, 1) & 1 ? F_INDIRECT | F_EVENT_IDX : 0);
    bool msix = take(s, 1) & 1;

    driver_init(&s->d, s->dm, s->d.slot, features | (take(s, 2) & 0x8001), msix);
    for (unsigned q = 0; q < s->queues; q++) {
        for (unsigned i = 0; i < 2; i++)
            mem_write16(s->dm->machine->mem, DRIVER_RINGS + q * 0x10000 + rings[i], 0);
        driver_queue_setup(&s->d, q, msix);
    }
    driver_ok(&s->d);
}

static void start(struct script *s)
{
    if (s->own)
        s->own->start(s->opaque, &s->d);
    else
        virtio_start(s);
}

static void own_command(struct script *s)
{
    uint8_t bytes[DEVICE_SCRIPT_BYTES];

    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)take(s, 1);
    s->own->command(s->opaque, &s->d, bytes);
}

static void reset(struct script *s)
{
    if (s->own)
        s->own->quiesce(s->opaque);
    machine_reset_devices(s->dm->machine);
}

static void step(struct script *s)
{
    unsigned op = (unsigned)take(s, 1), queue = (op >> 4) % s->queues, size, at;
    unsigned mask = s->own ? s->own->register_mask : 0x3fff;
    struct bus *bus = s->dm->machine->bus;
    uint8_t bytes[16];
    uint64_t address;

    if (s->own && (op & 15) >= 6 && (op & 15) <= 12) {
        own_command(s);
        return;
    }
    switch (op & 15) {
    case 0: start(s); break;
    case 1:
        at = (unsigned)take(s, 1);
        size = take_size(s);
        driver_config_write(&s->d, at, size, take(s, size));
        break;
    case 2:
        at = (unsigned)take(s, 2) & mask;
        size = take_size(s);
        driver_write(&s->d, at, size, take(s, size));
        break;
    case 3:
        at = (unsigned)take(s, 2);
        (void)driver_read(&s->d, at & mask, take_size(s));
        (void)driver_config_read(&s->d, at & 0xfff, take_size(s));
        break;
    case 4: case 5:
        address = take_address(s);
        for (unsigned i = 0; i < sizeof(bytes); i++)
            bytes[i] = (uint8_t)take(s, 1);
        (void)!mem_write(s->dm->machine->mem, address, bytes, sizeof(bytes));
        break;
    case 6: case 7: case 8: case 9:
        at = (unsigned)take(s, 1);
        address = take_address(s);
        size = (unsigned)take(s, 2);
        driver_desc_at(&s->d, DRIVER_RINGS + queue * 0x10000, at % DRIVER_QUEUE, address,
                       op & 1 ? size : size % 64, (uint16_t)(take(s, 1) & 7),
                       (uint16_t)(take(s, 1) % (DRIVER_QUEUE + 1)));
        break;
    case 10: case 11:
        s->d.avail[queue] = DRIVER_RINGS + queue * 0x10000 + 0x4000;
        driver_offer(&s->d, queue, (uint16_t)(take(s, 1) % (DRIVER_QUEUE + 1)));
        driver_kick(&s->d, queue);
        break;
    case 12: driver_kick(&s->d, queue); break;
    case 13:
        address = 0xcf8 + (take(s, 1) & 7);
        size = take_size(s) & 7;
        bus_write(bus, BUS_PORT, address, size ? size : 1, take(s, 4));
        (void)bus_read(bus, BUS_PORT, address, size ? size : 1);
        break;
    case 14:
        at = (unsigned)take(s, 2) & 0xfff;
        size = take_size(s);
        bus_write(bus, BUS_MEMORY, s->d.bar2 + at, size, take(s, size));
        (void)bus_read(bus, BUS_MEMORY, s->d.bar2 + at, size);
        break;
    default: reset(s); break;
    }
}

static void run(struct script *s, unsigned slot)
{
    s->d = (struct driver){.machine = s->dm->machine, .slot = slot};
    start(s);
    for (unsigned n = 0; s->left && n < STEPS_MAX; n++)
        step(s);
}

void device_script_run(struct driver_machine *dm, unsigned slot, unsigned queues,
                       const uint8_t *data, size_t size)
{
    struct script s = {.data = data, .left = size, .dm = dm, .queues = queues};

    run(&s, slot);
}

void device_script_run_own(struct driver_machine *dm, unsigned slot,
                           const struct device_script_ops *ops, void *opaque, const uint8_t *data,
                           size_t size)
{
    struct script s = {
        .data = data, .left = size, .dm = dm, .queues = 1, .own = ops, .opaque = opaque};

    run(&s, slot);
}
