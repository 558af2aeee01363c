#include "device/ich9_lpc.h"

#include <errno.h>
#include <stdlib.h>

#include "device/pci_internal.h"

#define LPC_PMBASE       0x40u /* 13.1.13 */
#define LPC_PMBASE_MASK  0xff80u
#define LPC_ACPI_CNTL    0x44u /* 13.1.14 */
#define LPC_ACPI_CNTL_EN 0x80u
#define LPC_PIRQA_ROUT   0x60u /* 13.1.17: A to D; E to H at 68h */
#define LPC_PIRQE_ROUT   0x68u
#define LPC_PIRQ_OFF     0x80u
#define LPC_RCBA         0xf0u /* 13.1.35 */
#define LPC_RCBA_MASK    0xffffc001u

#define PORT92      0x92u /* 13.7.3 */
#define PORT92_INIT 0x01u
#define PORT92_A20  0x02u
#define PORT_APM    0xb2u /* 13.8.1: control, status */
#define PIC_INPUTS  16u

struct ich9_lpc {
    struct pci_function fn; /* first: its device lock guards the ports' registers */
    struct acpi_pm *pm;     /* borrowed */
    struct irq_line pic;    /* its number is chosen for each call */
    uint8_t port92;
    uint8_t apm[2];       /* APM_CNT, APM_STS */
    pthread_mutex_t lock; /* the two below */
    uint8_t pirq_levels;  /* a bit for each */
    uint8_t rout[ICH9_LPC_PIRQS];
};

static struct ich9_lpc *lpc_of(struct device *dev)
{
    return container_of(dev, struct ich9_lpc, fn.dev);
}

static void lpc_drive(const struct ich9_lpc *lpc, unsigned input, int level)
{
    if (lpc->pic.set)
        lpc->pic.set(lpc->pic.opaque, input, level);
}

/* The input that a PIRQ leads to, or PIC_INPUTS: none. Only 3-7, 9-12, 14 and 15 can be chosen. */
static unsigned rout_input(uint8_t rout)
{
    unsigned input = rout & 15;

    return (rout & LPC_PIRQ_OFF) || !(0xdef8u >> input & 1) ? PIC_INPUTS : input;
}

/* Lock held. Several PIRQs may share an input. */
static void lpc_update_input_locked(const struct ich9_lpc *lpc, unsigned input)
{
    int level = 0;

    for (unsigned i = 0; i < ICH9_LPC_PIRQS; i++)
        level |= rout_input(lpc->rout[i]) == input && (lpc->pirq_levels >> i & 1);
    if (input < PIC_INPUTS)
        lpc_drive(lpc, input, level);
}

void ich9_lpc_pirq(struct ich9_lpc *lpc, unsigned pirq, int level)
{
    BUG_ON(pirq >= ICH9_LPC_PIRQS);
    pthread_mutex_lock(&lpc->lock);
    lpc->pirq_levels = (uint8_t)((lpc->pirq_levels & ~(1u << pirq)) | (level ? 1u << pirq : 0));
    lpc_update_input_locked(lpc, rout_input(lpc->rout[pirq]));
    pthread_mutex_unlock(&lpc->lock);
}

static uint8_t lpc_rout(const struct ich9_lpc *lpc, unsigned pirq)
{
    return lpc->fn.config[pirq < 4 ? LPC_PIRQA_ROUT + pirq : LPC_PIRQE_ROUT + pirq - 4];
}

static void lpc_route(struct ich9_lpc *lpc)
{
    pthread_mutex_lock(&lpc->lock);
    for (unsigned i = 0; i < ICH9_LPC_PIRQS; i++) {
        uint8_t old = lpc->rout[i];

        if (old == lpc_rout(lpc, i))
            continue;
        lpc->rout[i] = lpc_rout(lpc, i);
        lpc_update_input_locked(lpc, rout_input(old));
        lpc_update_input_locked(lpc, rout_input(lpc->rout[i]));
    }
    pthread_mutex_unlock(&lpc->lock);
}

static void lpc_apply(struct ich9_lpc *lpc)
{
    bool on = lpc->fn.config[LPC_ACPI_CNTL] & LPC_ACPI_CNTL_EN;
    uint32_t base = pci_get(&lpc->fn.config[LPC_PMBASE], 2) & LPC_PMBASE_MASK;

    acpi_pm_set_base(lpc->pm, on ? (uint16_t)base : 0);
    lpc_route(lpc);
}

static void lpc_config_written(struct pci_function *fn, unsigned offset, unsigned size)
{
    (void)offset;
    (void)size; /* applying again what did not change does nothing */
    lpc_apply(lpc_of(&fn->dev));
}

static uint64_t port92_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)offset;
    (void)size;
    return ((struct ich9_lpc *)opaque)->port92;
}

/* INIT on the rising edge of bit 0. Here it resets the machine, as the chipset's other ways do. */
static void port92_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ich9_lpc *lpc = opaque;
    uint8_t old = lpc->port92;

    (void)offset;
    (void)size;
    lpc->port92 = value & (PORT92_INIT | PORT92_A20);
    mem_set_a20(pci_host_machine(lpc->fn.host)->mem, MEM_A20_PORT92, lpc->port92 & PORT92_A20);
    if (lpc->port92 & ~old & PORT92_INIT)
        machine_request(pci_host_machine(lpc->fn.host), MACHINE_RESET, 0, "port 92h");
}

static const struct bus_ops port92_ops = {port92_read, port92_write};

/* No SMI follows: nobody would handle it. */
static uint64_t apm_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct ich9_lpc *lpc = opaque;

    (void)size; /* the bus cuts the value to it */
    return offset == 0 ? (uint64_t)(lpc->apm[0] | lpc->apm[1] << 8) : lpc->apm[1];
}

static void apm_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ich9_lpc *lpc = opaque;

    for (unsigned i = 0; i < size; i++)
        lpc->apm[offset + i] = (uint8_t)(value >> 8 * i);
}

static const struct bus_ops apm_ops = {apm_read, apm_write};

static void lpc_reset(struct device *dev)
{
    struct ich9_lpc *lpc = lpc_of(dev);

    pci_function_reset(&lpc->fn);
    pci_put(&lpc->fn.config[LPC_PMBASE], 4, 1); /* an I/O base */
    for (unsigned i = 0; i < 4; i++) {
        lpc->fn.config[LPC_PIRQA_ROUT + i] = LPC_PIRQ_OFF;
        lpc->fn.config[LPC_PIRQE_ROUT + i] = LPC_PIRQ_OFF;
    }
    lpc->port92 = 0;
    lpc->apm[0] = lpc->apm[1] = 0;
    mem_set_a20(pci_host_machine(lpc->fn.host)->mem, MEM_A20_PORT92, false);
    lpc_apply(lpc);
}

static int lpc_loaded(struct device *dev)
{
    struct ich9_lpc *lpc = lpc_of(dev);

    mem_set_a20(pci_host_machine(lpc->fn.host)->mem, MEM_A20_PORT92, lpc->port92 & PORT92_A20);
    lpc_apply(lpc);
    return pci_function_loaded(&lpc->fn);
}

static void lpc_destroy(struct device *dev)
{
    struct ich9_lpc *lpc = lpc_of(dev);

    pci_function_release(&lpc->fn);
    pthread_mutex_destroy(&lpc->lock);
    free(lpc);
}

static const struct state_field lpc_fields[] = {
    STATE_STRUCT(struct ich9_lpc, fn, pci_function_state_fields),
    STATE_UINT(struct ich9_lpc, port92),
    STATE_BYTES(struct ich9_lpc, apm),
    STATE_UINT(struct ich9_lpc, pirq_levels),
    STATE_FIELDS_END,
};

static const struct state_table lpc_state = {"ich9-lpc", 1, lpc_fields};

static const struct device_ops lpc_device_ops = {
    .type = "ich9-lpc",
    .reset = lpc_reset,
    .destroy = lpc_destroy,
    .state = &lpc_state,
    .loaded = lpc_loaded,
};

static const struct pci_ids lpc_ids = {
    .vendor = 0x8086,
    .device = 0x2918,
    .subsystem_vendor = 0x1af4,
    .subsystem = 0x1100,
    .revision = 2,
    .class_code = {0x06, 0x01, 0x00},
};

static void lpc_make_writable(struct pci_function *fn)
{
    pci_put(&fn->writable[LPC_PMBASE], 2, LPC_PMBASE_MASK);
    fn->writable[LPC_ACPI_CNTL] =
        LPC_ACPI_CNTL_EN | 7; /* the SCI's input can be read back, but stays where it is */
    for (unsigned i = 0; i < 4; i++) {
        fn->writable[LPC_PIRQA_ROUT + i] = LPC_PIRQ_OFF | 15;
        fn->writable[LPC_PIRQE_ROUT + i] = LPC_PIRQ_OFF | 15;
    }
    pci_put(&fn->writable[LPC_RCBA], 4, LPC_RCBA_MASK);
    fn->config_written = lpc_config_written;
}

static int lpc_map(struct ich9_lpc *lpc)
{
    const struct bus_region port92 = {PORT92, 1, &port92_ops, lpc, &lpc->fn.dev};
    const struct bus_region apm = {PORT_APM, 2, &apm_ops, lpc, &lpc->fn.dev};
    struct bus *bus = pci_host_machine(lpc->fn.host)->bus;
    int ret = bus_add(bus, BUS_PORT, &port92);

    return ret ? ret : bus_add(bus, BUS_PORT, &apm);
}

int ich9_lpc_create(struct pci_host *host, struct acpi_pm *pm, const struct irq_line *pic,
                    struct ich9_lpc **out)
{
    struct ich9_lpc *lpc = calloc(1, sizeof(*lpc));
    int ret;

    if (!lpc)
        return -ENOMEM;
    lpc->pm = pm;
    lpc->pic = *pic;
    pthread_mutex_init(&lpc->lock, NULL);
    ret = pci_function_add(host, &lpc->fn, (int)PCI_DEVFN(ICH9_LPC_SLOT, 0), &lpc_ids,
                           &lpc_device_ops, "ich9-lpc");
    if (ret) {
        pthread_mutex_destroy(&lpc->lock);
        free(lpc);
        return ret;
    }
    lpc_make_writable(&lpc->fn);
    lpc_reset(&lpc->fn.dev);
    *out = lpc;
    return lpc_map(lpc); /* the machine owns the device by now, also when this fails */
}

void ich9_lpc_assign(struct ich9_lpc *lpc, uint16_t base)
{
    device_lock(&lpc->fn.dev);
    pci_config_write(&lpc->fn, LPC_PMBASE, 2, base);
    pci_config_write(&lpc->fn, LPC_ACPI_CNTL, 1, LPC_ACPI_CNTL_EN);
    device_unlock(&lpc->fn.dev);
}
