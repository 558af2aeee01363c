#include "device/i8042.h"

#include <errno.h>
#include <stdlib.h>

#define I8042_STATUS_OBF  0x01u
#define I8042_STATUS_SYS  0x04u
#define I8042_STATUS_CMD  0x08u
#define I8042_STATUS_KEYL 0x10u /* not locked */
#define I8042_STATUS_AUX  0x20u
#define I8042_STATUS_TO   0x40u /* the device did not answer */

#define I8042_CTR_IRQ1  0x01u
#define I8042_CTR_IRQ12 0x02u
#define I8042_CTR_KBDIS 0x10u
#define I8042_CTR_AUXDIS 0x20u

#define I8042_OUTPUT_RESET 0x01u /* output port: low holds the processor in reset */
#define I8042_OUTPUT_A20   0x02u
#define I8042_OUTPUT_OBF   0x10u /* follow the buffer, for whoever reads the port */
#define I8042_OUTPUT_AUX   0x20u
#define I8042_RESEND     0xfeu

struct i8042 {
    struct device dev;
    struct machine *machine; /* borrowed */
    struct irq_line irq1, irq12;
    uint8_t status, data;
    uint8_t command;   /* one whose parameter byte is awaited; 0: none */
    uint8_t ram[32];   /* ram[0] is the controller command byte */
    uint8_t output;    /* I8042_OUTPUT_RESET and _A20 */
};

static void i8042_set_output(struct i8042 *kbc, uint8_t value)
{
    kbc->output = value & (I8042_OUTPUT_RESET | I8042_OUTPUT_A20);
    mem_set_a20(kbc->machine->mem, MEM_A20_KEYBOARD, kbc->output & I8042_OUTPUT_A20);
    if (!(value & I8042_OUTPUT_RESET))
        machine_request(kbc->machine, MACHINE_RESET, 0, "keyboard controller");
}

static uint8_t i8042_output(const struct i8042 *kbc)
{
    uint8_t value = kbc->output;

    if (kbc->status & I8042_STATUS_OBF)
        value |= kbc->status & I8042_STATUS_AUX ? I8042_OUTPUT_AUX : I8042_OUTPUT_OBF;
    return value;
}

static void i8042_update(struct i8042 *kbc)
{
    bool full = kbc->status & I8042_STATUS_OBF, aux = kbc->status & I8042_STATUS_AUX;

    irq_line_set(&kbc->irq1, full && !aux && (kbc->ram[0] & I8042_CTR_IRQ1));
    irq_line_set(&kbc->irq12, full && aux && (kbc->ram[0] & I8042_CTR_IRQ12));
}

static void i8042_put(struct i8042 *kbc, uint8_t data, uint8_t flags)
{
    kbc->data = data;
    kbc->status = (uint8_t)((kbc->status & ~(I8042_STATUS_AUX | I8042_STATUS_TO)) | flags |
                            I8042_STATUS_OBF);
}

static void i8042_command(struct i8042 *kbc, uint8_t command)
{
    kbc->status |= I8042_STATUS_CMD;
    kbc->command = 0;
    switch (command) {
    case 0x20 ... 0x3f: i8042_put(kbc, kbc->ram[command & 0x1f], 0); break;
    case 0x60 ... 0x7f: /* write RAM */
    case 0xd1:          /* write output port */
    case 0xd2:          /* write as if from the keyboard */
    case 0xd3:          /* write as if from the auxiliary device */
    case 0xd4: kbc->command = command; break; /* write to the auxiliary device */
    case 0xa7: kbc->ram[0] |= I8042_CTR_AUXDIS; break;
    case 0xa8: kbc->ram[0] &= (uint8_t)~I8042_CTR_AUXDIS; break;
    case 0xa9: /* the lines of both ports are sound */
    case 0xab: i8042_put(kbc, 0x00, 0); break;
    case 0xaa: /* self test */
        kbc->status |= I8042_STATUS_SYS;
        i8042_put(kbc, 0x55, 0);
        break;
    case 0xad: kbc->ram[0] |= I8042_CTR_KBDIS; break;
    case 0xae: kbc->ram[0] &= (uint8_t)~I8042_CTR_KBDIS; break;
    case 0xc0: i8042_put(kbc, 0x80, 0); break; /* input port */
    case 0xd0: i8042_put(kbc, i8042_output(kbc), 0); break;
    case 0xdd: /* A20 shut, open: not IBM's, but known to firmware and loaders */
    case 0xdf: i8042_set_output(kbc, I8042_OUTPUT_RESET | (command & I8042_OUTPUT_A20)); break;
    case 0xf0 ... 0xff: /* pulse output lines; line 0 is the CPU's reset */
        if (!(command & 1))
            machine_request(kbc->machine, MACHINE_RESET, 0, "keyboard controller");
        break;
    default: break;
    }
}

static void i8042_data(struct i8042 *kbc, uint8_t value)
{
    uint8_t command = kbc->command;

    kbc->status &= (uint8_t)~I8042_STATUS_CMD;
    kbc->command = 0;
    switch (command) {
    case 0x60 ... 0x7f: kbc->ram[command & 0x1f] = value; break;
    case 0xd1: i8042_set_output(kbc, value); break;
    case 0xd2: i8042_put(kbc, value, 0); break;
    case 0xd3: i8042_put(kbc, value, I8042_STATUS_AUX); break;
    case 0xd4: i8042_put(kbc, I8042_RESEND, I8042_STATUS_AUX | I8042_STATUS_TO); break;
    default: i8042_put(kbc, I8042_RESEND, I8042_STATUS_TO); break;
    }
}

static uint64_t i8042_read_data(void *opaque, uint64_t offset, unsigned size)
{
    struct i8042 *kbc = opaque;

    (void)offset;
    (void)size;
    kbc->status &= (uint8_t)~(I8042_STATUS_OBF | I8042_STATUS_AUX | I8042_STATUS_TO);
    i8042_update(kbc);
    return kbc->data;
}

static void i8042_write_data(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)offset;
    (void)size;
    i8042_data(opaque, (uint8_t)value);
    i8042_update(opaque);
}

static uint64_t i8042_read_status(void *opaque, uint64_t offset, unsigned size)
{
    (void)offset;
    (void)size;
    return ((struct i8042 *)opaque)->status;
}

static void i8042_write_command(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)offset;
    (void)size;
    i8042_command(opaque, (uint8_t)value);
    i8042_update(opaque);
}

static void i8042_reset(struct device *dev)
{
    struct i8042 *kbc = container_of(dev, struct i8042, dev);

    kbc->status = I8042_STATUS_SYS | I8042_STATUS_KEYL;
    kbc->data = 0;
    kbc->command = 0;
    for (unsigned i = 0; i < sizeof(kbc->ram); i++)
        kbc->ram[i] = 0;
    kbc->ram[0] = I8042_STATUS_SYS | I8042_CTR_KBDIS | I8042_CTR_AUXDIS;
    i8042_set_output(kbc, I8042_OUTPUT_RESET | I8042_OUTPUT_A20);
    i8042_update(kbc);
}

static int i8042_loaded(struct device *dev)
{
    struct i8042 *kbc = container_of(dev, struct i8042, dev);

    i8042_set_output(kbc, kbc->output | I8042_OUTPUT_RESET);
    i8042_update(kbc);
    return 0;
}

static void i8042_destroy(struct device *dev)
{
    device_release(dev);
    free(container_of(dev, struct i8042, dev));
}

static const struct state_field i8042_fields[] = {
    STATE_UINT(struct i8042, status),  STATE_UINT(struct i8042, data),
    STATE_UINT(struct i8042, command), STATE_BYTES(struct i8042, ram),
    STATE_UINT(struct i8042, output),  STATE_FIELDS_END,
};

static const struct state_table i8042_state = {"i8042", 2, i8042_fields};

static const struct device_ops i8042_device_ops = {.type = "i8042",
                                                   .reset = i8042_reset,
                                                   .destroy = i8042_destroy,
                                                   .state = &i8042_state,
                                                   .loaded = i8042_loaded};

static const struct bus_ops i8042_data_ops = {i8042_read_data, i8042_write_data};
static const struct bus_ops i8042_command_ops = {i8042_read_status, i8042_write_command};

int i8042_create(struct machine *machine, struct irq_line irq1, struct irq_line irq12)
{
    struct i8042 *kbc = calloc(1, sizeof(*kbc));
    struct bus_region data = {0x60, 1, &i8042_data_ops, kbc, NULL};
    struct bus_region command = {0x64, 1, &i8042_command_ops, kbc, NULL};
    int rc;

    if (!kbc)
        return -ENOMEM;
    device_init(&kbc->dev, &i8042_device_ops, "i8042");
    kbc->machine = machine;
    kbc->irq1 = irq1;
    kbc->irq12 = irq12;
    i8042_reset(&kbc->dev);
    data.dev = command.dev = &kbc->dev;
    rc = bus_add(machine->bus, BUS_PORT, &data);
    if (rc)
        goto err_destroy;
    rc = bus_add(machine->bus, BUS_PORT, &command);
    if (rc)
        goto err_remove_data;
    machine_add_device(machine, &kbc->dev);
    return 0;

err_remove_data:
    bus_remove(machine->bus, BUS_PORT, data.base);
err_destroy:
    i8042_destroy(&kbc->dev);
    return rc;
}
