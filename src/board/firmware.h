/*
 * Firmware: the image that a machine starts from when no kernel is given, where it lies, and what
 * it is told of the machine (fw_cfg files, CMOS). SeaBIOS and OVMF from the distribution run as
 * they are.
 *
 * Source for what they read: SeaBIOS docs/Runtime_config.md and Memory_Model.md; OVMF README;
 * device/fw_cfg.h.
 */
#ifndef BOARD_FIRMWARE_H
#define BOARD_FIRMWARE_H

#include "board/acpi/acpi.h"
#include "chip/mc146818.h"
#include "cpu/cpuid.h"
#include "device/fw_cfg.h"
#include "device/pci.h"

#define FIRMWARE_MAX       (8u << 20)
#define FIRMWARE_BOOTS_MAX 3u

/* UEFI firmware maps all that the processor can address before it does anything else: more would
 * take it minutes, and memory for the tables. */
#define FIRMWARE_PHYS_BITS 40u

enum firmware_boot { FIRMWARE_BOOT_DISK, FIRMWARE_BOOT_CDROM, FIRMWARE_BOOT_NET };

struct firmware_options {
    const char *image; /* "bios", "uefi", or a file; NULL: no firmware. Borrowed */
    const char *vars;  /* uefi: the file of the machine's variables, made when it is missing; NULL:
                          they are forgotten */
    enum firmware_boot boot[FIRMWARE_BOOTS_MAX]; /* in order; what is not in it comes last */
    unsigned boot_count;
};

struct firmware {
    uint8_t *image; /* owned; NULL: none */
    uint64_t size;
    uint8_t
        *vars; /* owned: what the flash chip below the image holds at first; NULL: there is none */
    uint64_t vars_size;
    int vars_fd; /* owned; -1: none */
};

/* Reads the image, and the variables, which are locked. The error names the package that has the
 * image. */
nodiscard int firmware_open(struct firmware *firmware, const struct firmware_options *options,
                            struct error *err);
void firmware_close(struct firmware *firmware);

/* Puts it at the end of the first 4 GiB, as ROM, the variables below. Before the engine makes the
 * VM. */
nodiscard int firmware_add_rom(const struct firmware *firmware, struct mem *mem, struct error *err);
/* Makes the variables' place a flash chip. */
nodiscard int firmware_add_flash(struct firmware *firmware, struct machine *machine);

/* A disk or CD-ROM drive and where it is plugged in. */
struct firmware_drive {
    enum firmware_boot kind;
    bool sata;       /* else virtio */
    unsigned number; /* virtio-blkN; SATA: of the ports of all adapters */
};

/* What firmware is told. All borrowed. */
struct firmware_machine {
    const char *name;
    unsigned cpus;
    uint64_t memory;
    const struct memory_map *map;
    const struct cpu_model *model;
    const struct firmware_options *options;
    struct pci_host *pci; /* with all devices in it */
    const struct firmware_drive *drives; /* as the user gave them */
    unsigned drive_count;
    bool serial_console;  /* there is no display: use the first serial port */
};

nodiscard int firmware_describe(const struct firmware_machine *machine, struct fw_cfg *fw,
                                struct error *err);
/* Memory sizes and boot order where a PC's firmware keeps them: for guests that look there, and
 * SeaBIOS. */
void firmware_set_cmos(const struct firmware_machine *machine, struct mc146818 *rtc);

#endif
