#include "board/pc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "board/acpi/acpi.h"
#include "chip/acpi_pm.h"
#include "chip/i8254.h"
#include "chip/i8259.h"
#include "chip/ioapic.h"
#include "chip/lapic.h"
#include "chip/mc146818.h"
#include "device/ahci/ahci.h"
#include "device/debug_exit.h"
#include "device/i8042.h"
#include "device/ich9_lpc.h"
#include "device/pci.h"
#include "device/virtio/virtio.h"

#define PC_COM1_PORT 0x3f8u
#define PC_COM1_IRQ  4u
#define PC_PIT_IRQ   0u
#define PC_RTC_IRQ   8u
#define PC_ISA_IRQS  16u
#define PC_AHCI_DEVFN PCI_DEVFN(0x1f, 2)

/* ISA interrupts reach the 8259 pair and the I/O APIC; there, number 0 is pin 2 (MADT override).
 * PCI's reach the I/O APIC, and the pair where firmware has routed them. */
static void pc_gsi_set(void *opaque, unsigned gsi, int level)
{
    struct pc *pc = opaque;

    if (gsi == 2)
        return; /* the cascade of the 8259 pair: nothing is wired to it */
    if (gsi < PC_ISA_IRQS)
        i8259_set(pc->i8259, gsi, level);
    else if (pc->lpc)
        ich9_lpc_pirq(pc->lpc, gsi - PC_ISA_IRQS, level);
    ioapic_set(pc->ioapic, gsi == 0 ? 2 : gsi, level);
}

static void pc_pic_set(void *opaque, unsigned input, int level)
{
    struct pc *pc = opaque;

    i8259_set(pc->i8259, input, level);
}

static void pc_msi_send(void *opaque, uint64_t addr, uint32_t data)
{
    struct pc *pc = opaque;

    lapic_group_msi(pc->lapics, addr, data);
}

static void pc_engine_gsi_set(void *opaque, unsigned gsi, int level)
{
    struct pc *pc = opaque;

    if (gsi >= PC_ISA_IRQS && pc->lpc)
        ich9_lpc_pirq(pc->lpc, gsi - PC_ISA_IRQS, level);
    pc->engine->gsi_set(pc->vm, gsi, level);
}

/* The kernel's pair has no input of its own: the I/O APIC's pin of the same number is asserted with
 * it. */
static void pc_engine_pic_set(void *opaque, unsigned input, int level)
{
    struct pc *pc = opaque;

    pc->engine->gsi_set(pc->vm, input, level);
}

static void pc_engine_msi_send(void *opaque, uint64_t addr, uint32_t data)
{
    struct pc *pc = opaque;

    pc->engine->msi_send(pc->vm, addr, data);
}

static void pc_wire_interrupts(struct pc *pc, void (*gsi_set)(void *, unsigned, int),
                               void (*send)(void *, uint64_t, uint32_t))
{
    for (unsigned i = 0; i < GSI_COUNT; i++)
        pc->machine->gsi[i] = (struct irq_line){gsi_set, pc, i};
    pc->machine->msi = (struct msi_sink){send, pc};
}

static int pc_add_interrupt_chips(struct pc *pc, struct error *err)
{
    int r;

    if (pc->engine->flags & ENGINE_IRQCHIP) {
        pc_wire_interrupts(pc, pc_engine_gsi_set, pc_engine_msi_send);
        return 0;
    }
    r = lapic_group_create(pc->machine, pc->cpus, pc->model.tsc_khz, &pc->lapics);
    if (r == 0)
        r = ioapic_create(pc->machine, pc->lapics, &pc->ioapic);
    if (r == 0)
        r = i8259_create(pc->machine, pc->lapics, &pc->i8259);
    if (r < 0)
        return error_set(err, r, "cannot make the interrupt chips: %s", strerror(-r));
    pc_wire_interrupts(pc, pc_gsi_set, pc_msi_send);
    return 0;
}

static int pc_add_legacy_devices(struct pc *pc, const struct pc_config *config,
                                 const struct uart16550_sink *com1, struct error *err)
{
    struct machine *machine = pc->machine;
    int r = 0;

    if (!(pc->engine->flags & ENGINE_PIT))
        r = i8254_create(machine, machine->gsi[PC_PIT_IRQ]);
    if (r == 0)
        r = mc146818_create(machine, machine->gsi[PC_RTC_IRQ], &pc->rtc);
    if (r == 0)
        r = acpi_pm_create(machine, ACPI_PM_BASE, machine->gsi[ACPI_SCI], &pc->pm);
    if (r == 0)
        r = uart16550_create(machine, PC_COM1_PORT, machine->gsi[PC_COM1_IRQ], com1, "com1",
                             &pc->com1);
    if (r == 0) /* for its reset line; the ACPI tables do not speak of it: nothing is plugged in */
        r = i8042_create(machine, machine->gsi[1], machine->gsi[12]);
    if (r == 0 && config->debug_exit)
        r = debug_exit_create(machine);
    if (r < 0)
        return error_set(err, r, "cannot make the machine's chips: %s", strerror(-r));
    return 0;
}

static int pc_add_virtio_disk(struct pc *pc, unsigned number, struct block *block)
{
    char name[32];

    snprintf(name, sizeof(name), "virtio-blk%u", number);
    return virtio_blk_create(pc->pci, block, name);
}

/* On the next free port; each full adapter is followed by another. The first is where ICH9 has its own.
 * Takes block. */
static int pc_add_ahci_drive(struct pc *pc, enum ata_kind kind, struct block *block)
{
    unsigned number = pc->ahci_drives++, port = number % AHCI_PORTS;
    char name[32];
    int r = 0;

    if (port == 0) {
        snprintf(name, sizeof(name), "ahci%u", number / AHCI_PORTS);
        r = ahci_create(pc->pci, number == 0 ? (int)PC_AHCI_DEVFN : -1, name, &pc->ahci);
    }
    if (r < 0) {
        block_close(block);
        return r;
    }
    return ahci_plug(pc->ahci, port, kind, block, number);
}

static int pc_add_disk(struct pc *pc, unsigned number, enum pc_disk_bus bus,
                       const struct block_options *image, struct error *err)
{
    struct block *block;
    int r = block_open(image, &block, err);

    if (r < 0)
        return r;
    r = bus == PC_DISK_AHCI ? pc_add_ahci_drive(pc, ATA_DISK, block)
                            : pc_add_virtio_disk(pc, number, block);
    if (r < 0)
        return error_set(err, r, "cannot make disk '%s': %s", image->path, strerror(-r));
    return 0;
}

static int pc_add_disks(struct pc *pc, const struct pc_config *config, enum pc_disk_bus bus,
                        struct error *err)
{
    unsigned added = 0;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < config->disk_count; i++) {
        if (config->disk_bus[i] == bus)
            r = pc_add_disk(pc, added++, bus, &config->disks[i], err);
    }
    return r;
}

static int pc_add_cdroms(struct pc *pc, const struct pc_config *config, struct error *err)
{
    for (unsigned i = 0; i < config->cdrom_count; i++) {
        struct block *block;
        int r = block_open(&config->cdroms[i], &block, err);

        if (r < 0)
            return r;
        r = pc_add_ahci_drive(pc, ATA_CD, block);
        if (r < 0)
            return error_set(err, r, "cannot make the drive of CD '%s': %s", config->cdroms[i].path,
                             strerror(-r));
    }
    return 0;
}

/* Virtio disks first: the others' adapters do not move them to other slots. */
static int pc_add_drives(struct pc *pc, const struct pc_config *config, struct error *err)
{
    int r = pc_add_disks(pc, config, PC_DISK_VIRTIO, err);

    if (r == 0)
        r = pc_add_disks(pc, config, PC_DISK_AHCI, err);
    return r == 0 ? pc_add_cdroms(pc, config, err) : r;
}

/* A stable address of our own: locally administered, from the machine's name (FNV-1a). */
static void pc_mac(const char *name, uint8_t mac[6])
{
    uint32_t hash = 2166136261u;

    for (const char *c = name; *c; c++)
        hash = (hash ^ (uint8_t)*c) * 16777619u;
    mac[0] = 0x52;
    mac[1] = 0x4c;
    mac[2] = (uint8_t)(hash >> 24);
    mac[3] = (uint8_t)(hash >> 16);
    mac[4] = (uint8_t)(hash >> 8);
    mac[5] = (uint8_t)hash;
}

static int pc_add_net(struct pc *pc, const struct pc_config *config, struct error *err)
{
    struct net *net;
    uint8_t mac[6];
    int r;

    if (!config->net_user)
        return 0;
    r = net_user_create(&config->net, &net, err);
    if (r < 0)
        return r;
    pc_mac(config->name, mac);
    r = virtio_net_create(pc->pci, net, mac, "virtio-net0");
    if (r < 0)
        return error_set(err, r, "cannot make the network card: %s", strerror(-r));
    return 0;
}

static int pc_add_pci(struct pc *pc, const struct pc_config *config, struct error *err)
{
    const struct irq_line pic = {pc->i8259 ? pc_pic_set : pc_engine_pic_set, pc, 0};
    int r = pci_host_create(pc->machine, &pc->pci);

    if (r < 0)
        return error_set(err, r, "cannot make the PCI host bridge: %s", strerror(-r));
    r = ich9_lpc_create(pc->pci, pc->pm, &pic, &pc->lpc);
    if (r < 0)
        return error_set(err, r, "cannot make the LPC bridge: %s", strerror(-r));
    r = pc_add_net(pc, config, err);
    if (r < 0)
        return r;
    r = virtio_rng_create(pc->pci, "virtio-rng0");
    if (r < 0)
        return error_set(err, r, "cannot make the random number device: %s", strerror(-r));
    return pc_add_drives(pc, config, err);
}

/* Where pc_add_drives() has put them. How many. */
static unsigned pc_list_drives(const struct pc_config *config,
                               struct firmware_drive drives[PC_DISKS_MAX + PC_CDROMS_MAX])
{
    unsigned count = 0, virtio = 0, sata = 0;

    for (unsigned i = 0; i < config->disk_count; i++) {
        bool ahci = config->disk_bus[i] == PC_DISK_AHCI;

        drives[count++] =
            (struct firmware_drive){FIRMWARE_BOOT_DISK, ahci, ahci ? sata++ : virtio++};
    }
    for (unsigned i = 0; i < config->cdrom_count; i++)
        drives[count++] = (struct firmware_drive){FIRMWARE_BOOT_CDROM, true, sata++};
    return count;
}

/* After all devices: firmware is told of them. */
static int pc_add_firmware(struct pc *pc, const struct pc_config *config, struct error *err)
{
    struct firmware_drive drives[PC_DISKS_MAX + PC_CDROMS_MAX];
    const struct firmware_machine machine = {.name = config->name,
                                             .cpus = pc->cpus,
                                             .memory = config->memory,
                                             .map = &pc->map,
                                             .model = &pc->model,
                                             .options = &config->firmware,
                                             .pci = pc->pci,
                                             .drives = drives,
                                             .drive_count = pc_list_drives(config, drives),
                                             .serial_console = true};
    int r;

    firmware_set_cmos(&machine, pc->rtc);
    if (!pc->firmware.image)
        return 0;
    pci_host_set_bios(pc->pci, pc->firmware.image, pc->firmware.size);
    r = firmware_add_flash(&pc->firmware, pc->machine);
    if (r < 0)
        return error_set(err, r, "cannot make the firmware's flash chip: %s", strerror(-r));
    r = fw_cfg_create(pc->machine, &pc->fw_cfg);
    if (r < 0)
        return error_set(err, r, "cannot make the firmware configuration device: %s", strerror(-r));
    return firmware_describe(&machine, pc->fw_cfg, err);
}

static int pc_init_model(struct pc *pc, const struct pc_config *config, struct error *err)
{
    const struct cpu_topology topology = {
        .cpus = config->cpus, .phys_bits_max = config->firmware.image ? FIRMWARE_PHYS_BITS : 0};
    struct cpuid_support support = {0};

    pc->engine->cpuid_support(&support);
    return cpu_model_init(&pc->model, config->cpu_model, &support, &topology, err);
}

static int pc_add_devices(struct pc *pc, const struct pc_config *config,
                          const struct uart16550_sink *com1, struct error *err)
{
    int r = pc_add_interrupt_chips(pc, err);

    if (r == 0)
        r = pc_add_legacy_devices(pc, config, com1, err);
    if (r == 0)
        r = pc_add_pci(pc, config, err);
    if (r == 0)
        r = pc_add_firmware(pc, config, err);
    return r;
}

int pc_create(const struct pc_config *config, const struct engine_ops *engine,
              const struct uart16550_sink *com1, struct pc **out, struct error *err)
{
    struct pc *pc = calloc(1, sizeof(*pc));
    int r;

    if (!pc)
        return error_set(err, -ENOMEM, "no memory for the machine");
    pc->engine = engine;
    pc->cpus = config->cpus;
    r = boot_source_open(&pc->boot, &config->boot, err);
    if (r < 0)
        goto err_free;
    r = firmware_open(&pc->firmware, &config->firmware, err);
    if (r < 0)
        goto err_boot;
    r = pc_init_model(pc, config, err);
    if (r < 0)
        goto err_boot;
    memory_map_init(&pc->map, config->memory, pc->model.phys_bits);
    r = machine_create(&pc->machine);
    if (r < 0) {
        error_set(err, r, "cannot make the machine: %s", strerror(-r));
        goto err_boot;
    }
    r = memory_map_add_ram(&pc->map, pc->machine->mem, err);
    if (r == 0)
        r = firmware_add_rom(&pc->firmware, pc->machine->mem, err);
    if (r < 0)
        goto err_machine;
    pc->machine->code_cache = config->code_cache;
    r = engine->vm_create(pc->machine, &pc->model, pc->cpus, &pc->vm, err);
    if (r < 0)
        goto err_machine;
    pc->vm->trace_unknown = config->trace_unknown;
    r = pc_add_devices(pc, config, com1, err);
    if (r < 0)
        goto err_devices;
    *out = pc;
    return 0;

err_devices:
    machine_destroy_devices(pc->machine);
    engine->vm_destroy(pc->vm);
err_machine:
    machine_destroy(pc->machine);
err_boot:
    firmware_close(&pc->firmware);
    boot_source_close(&pc->boot);
err_free:
    free(pc);
    return r;
}

void pc_remove_devices(struct pc *pc)
{
    machine_destroy_devices(pc->machine);
}

void pc_destroy(struct pc *pc)
{
    pc->engine->vm_destroy(pc->vm);
    machine_destroy(pc->machine);
    firmware_close(&pc->firmware);
    boot_source_close(&pc->boot);
    free(pc);
}

int pc_vcpu_create(struct pc *pc, unsigned index, struct vcpu **out, struct error *err)
{
    int r = pc->engine->vcpu_create(pc->vm, index, out, err);

    if (r < 0 || !pc->lapics)
        return r;
    (*out)->apic_ops = &lapic_ops;
    (*out)->apic = lapic_group_apic(pc->lapics, index);
    lapic_group_attach(pc->lapics, index, *out);
    return 0;
}

static int pc_put_acpi(struct pc *pc, gpa_t *rsdp, struct error *err)
{
    const struct acpi_config config = {.cpus = pc->cpus, .map = &pc->map, .has_i8042 = false};
    struct acpi_tables *tables = calloc(1, sizeof(*tables));
    int r = -ENOMEM;

    if (tables)
        r = acpi_build(&config, tables);
    if (r == 0)
        r = mem_write(pc->machine->mem, ACPI_AREA, tables->image, sizeof(tables->image));
    if (r == 0)
        *rsdp = tables->rsdp;
    else
        error_set(err, r, "cannot make the ACPI tables: %s", strerror(-r));
    free(tables);
    return r;
}

static int pc_set_states(struct pc *pc, struct vcpu *const vcpus[], struct cpu_state *state,
                         struct error *err)
{
    for (unsigned i = 0; i < pc->cpus; i++) {
        int r;

        if (i > 0)
            cpu_state_reset(state, false);
        r = pc->engine->state_set(vcpus[i], state);
        if (r < 0)
            return error_set(err, r, "the %s engine refuses the state of vCPU %u: %s",
                             pc->engine->name, i, strerror(-r));
    }
    return 0;
}

/* In place of firmware: what it would have set up, and then the kernel. */
static int pc_boot_directly(struct pc *pc, struct cpu_state *state, struct error *err)
{
    struct boot_target target = {.mem = pc->machine->mem, .map = &pc->map, .state = state};
    int r;

    pci_host_assign(pc->pci);
    ich9_lpc_assign(pc->lpc, ACPI_PM_BASE);
    r = pc_put_acpi(pc, &target.rsdp, err);
    return r < 0 ? r : boot_source_load(&pc->boot, &target, err);
}

int pc_reset(struct pc *pc, struct vcpu *const vcpus[], struct error *err)
{
    struct cpu_state *state = aligned_alloc(64, align_up(sizeof(*state), 64));
    int r = 0;

    if (!state)
        return error_set(err, -ENOMEM, "no memory for the vCPU's state");
    machine_reset_devices(pc->machine);
    cpu_state_reset(state, true);
    if (!pc->firmware.image)
        r = pc_boot_directly(pc, state, err);
    if (r == 0)
        r = pc_set_states(pc, vcpus, state, err);
    free(state);
    return r;
}

bool pc_power_button(struct pc *pc)
{
    return acpi_pm_power_button(pc->pm);
}
