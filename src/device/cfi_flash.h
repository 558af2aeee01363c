/*
 * A NOR flash chip with Intel's command set, x8, blocks of 4 KiB: where UEFI firmware keeps its
 * variables. Source: Intel StrataFlash P30 data sheet (commands, status register), JEDEC JESD68
 * (CFI). One thing is as OVMF needs it to tell flash from ROM and RAM: Clear Status clears the
 * ready bit too, until the next command that sets it.
 *
 * The array is a ROM slot of guest memory, so that reads cost nothing; in every mode but Read Array
 * the slot is hidden and reads come here. A change goes to the file, if there is one, when the
 * guest returns to Read Array.
 */
#ifndef DEVICE_CFI_FLASH_H
#define DEVICE_CFI_FLASH_H

#include "core/machine.h"

#define CFI_FLASH_BLOCK 4096u

/* The ROM slot [gpa, gpa+size), whole blocks, is there already and holds the array. `fd` (owned
 * from here on, also on failure; -1: none) is a file of `size` bytes that is kept the same. */
nodiscard int cfi_flash_create(struct machine *machine, gpa_t gpa, uint64_t size, int fd);

#endif
