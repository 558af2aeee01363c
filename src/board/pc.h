/*
 * The PC: one wiring function that puts memory, chips and devices together into a Q35-compatible
 * machine for a given engine, and what makes it start.
 *
 * Threads: everything here from the machine's main thread, vCPUs stopped, except
 * pc_vcpu_create/destroy (the vCPU's own thread) and pc_power_button (any).
 *
 * PCI slots are taken in this order: host bridge, network, random numbers, the virtio disks in theirs;
 * the LPC bridge is 00:1f.0, the first AHCI adapter 00:1f.2, more of them take slots after the disks.
 */
#ifndef BOARD_PC_H
#define BOARD_PC_H

#include "block/block.h"
#include "board/boot.h"
#include "board/boot_files.h"
#include "board/firmware.h"
#include "core/machine.h"
#include "cpu/engine.h"
#include "device/uart16550.h"
#include "net/net.h"

#define PC_CPUS_MAX  64u
#define PC_DISKS_MAX 16u
#define PC_CDROMS_MAX 8u

/* What a disk is plugged into. */
enum pc_disk_bus { PC_DISK_VIRTIO, PC_DISK_AHCI };

struct pc_config {
    const char *name;
    unsigned cpus;
    uint64_t memory; /* bytes, page aligned */
    const char *cpu_model;
    uint64_t code_cache; /* bytes; 0: the engine's own choice */
    struct boot_paths boot;           /* without a kernel: */
    struct firmware_options firmware; /* what starts instead */
    struct block_options disks[PC_DISKS_MAX];
    enum pc_disk_bus disk_bus[PC_DISKS_MAX]; /* of each */
    unsigned disk_count;
    struct block_options cdroms[PC_CDROMS_MAX]; /* AHCI drives, after the AHCI disks */
    unsigned cdrom_count;
    bool net_user;
    struct net_user_options net;
    bool debug_exit;
    bool trace_unknown;
};

struct pc {
    struct machine *machine;         /* owned */
    const struct engine_ops *engine; /* borrowed */
    struct vm *vm;                   /* owned */
    struct cpu_model model;
    struct memory_map map;
    unsigned cpus;

    /* Chips and devices below belong to the machine. */
    struct lapic_group *lapics; /* NULL with ENGINE_IRQCHIP, as ioapic and i8259 */
    struct ioapic *ioapic;
    struct i8259 *i8259;
    struct acpi_pm *pm;
    struct mc146818 *rtc;
    struct pci_host *pci;
    struct ich9_lpc *lpc;
    struct uart16550 *com1;
    struct ahci *ahci; /* the newest adapter; NULL: none */
    unsigned ahci_drives;
    struct fw_cfg *fw_cfg; /* NULL without firmware */

    struct boot_source boot; /* owned: the images' open files */
    struct firmware firmware; /* owned */
};

/* Makes the machine. `com1` is what the first serial port sends to. The caller sets machine->request
 * before a vCPU runs. Nothing is left behind on failure. */
nodiscard int pc_create(const struct pc_config *config, const struct engine_ops *engine,
                        const struct uart16550_sink *com1, struct pc **out, struct error *err);

/* Takes the devices out, so that no thread of theirs reaches a vCPU any more. vCPUs are parked, not yet
 * destroyed. */
void pc_remove_devices(struct pc *pc);
/* After pc_remove_devices and the destruction of every vCPU. */
void pc_destroy(struct pc *pc);

/* A vCPU with its local APIC attached. All are made before one runs. */
nodiscard int pc_vcpu_create(struct pc *pc, unsigned index, struct vcpu **out, struct error *err);

/* Power-on or reset: devices reset, every vCPU's state set; without firmware ACPI tables and images
 * in RAM, else RAM is left as it is. */
nodiscard int pc_reset(struct pc *pc, struct vcpu *const vcpus[], struct error *err);

/* True when the guest listens to it. */
bool pc_power_button(struct pc *pc);

#endif
