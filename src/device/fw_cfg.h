/*
 * The firmware configuration device: named blobs that the board hands to firmware, by ports 510h
 * (selector) and 511h (data), or by DMA started through ports 514h-51Bh. Source: QEMU
 * docs/specs/fw_cfg.rst, the device's specification.
 *
 * Items are added while the machine is wired and constant afterwards; a guest cannot write one.
 * What it asks for beyond an item's end, or from an item that is not there, reads as zeroes.
 */
#ifndef DEVICE_FW_CFG_H
#define DEVICE_FW_CFG_H

#include "core/machine.h"

/* Fixed keys. */
#define FW_CFG_SIGNATURE     0x00u
#define FW_CFG_ID            0x01u
#define FW_CFG_NB_CPUS       0x05u /* u16: running at start */
#define FW_CFG_BOOT_MENU     0x0eu /* u16: offer a menu */
#define FW_CFG_MAX_CPUS      0x0fu /* u16 */
#define FW_CFG_FILE_DIR      0x19u
#define FW_CFG_FILE_FIRST    0x20u
#define FW_CFG_IRQ0_OVERRIDE 0x8002u /* u8: ISA interrupt 0 is on pin 2 of the I/O APIC */

#define FW_CFG_FILES_MAX 32u
#define FW_CFG_NAME_MAX  56u /* with its NUL */

struct fw_cfg;

nodiscard int fw_cfg_create(struct machine *machine, struct fw_cfg **out);

/* Copies `data`. -EEXIST for a key or name that is there, -ENOSPC, -ENAMETOOLONG, -ENOMEM. */
nodiscard int fw_cfg_add(struct fw_cfg *fw, uint16_t key, const void *data, size_t size);
nodiscard int fw_cfg_add_file(struct fw_cfg *fw, const char *name, const void *data, size_t size);
/* A little-endian integer of 1, 2, 4 or 8 bytes. */
nodiscard int fw_cfg_add_integer(struct fw_cfg *fw, uint16_t key, unsigned size, uint64_t value);
nodiscard int fw_cfg_add_file_integer(struct fw_cfg *fw, const char *name, uint64_t value);

/* For tests: what is under the name; NULL: nothing. Valid until the device goes. */
const uint8_t *fw_cfg_file(const struct fw_cfg *fw, const char *name, size_t *size);

#endif
