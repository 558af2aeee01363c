/* The body of the DSDT: devices that a guest cannot find by probing, and power-off. */
#ifndef BOARD_ACPI_DSDT_H
#define BOARD_ACPI_DSDT_H

#include "board/acpi/acpi.h"
#include "board/acpi/aml.h"

void dsdt_write(struct aml *aml, const struct acpi_config *config);

#endif
