/*
 * A small writer of ACPI machine language. Source: ACPI 6.4 chapter 20 (AML) and 6.4 (resources).
 *
 * Bytes go into the caller's buffer; the first that does not fit sets `overflow`, and from then on nothing
 * is written: check it once at the end. Packages nest: aml_begin_*() returns where the package's
 * length belongs, aml_end() puts it there.
 */
#ifndef BOARD_ACPI_AML_H
#define BOARD_ACPI_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct aml {
    uint8_t *data; /* borrowed */
    size_t len, capacity;
    bool overflow;
};

void aml_byte(struct aml *aml, uint8_t byte);
void aml_bytes(struct aml *aml, const void *bytes, size_t len);
/* `name`: "_SB_", or "\\_S5_" with a root prefix; segments have four characters. */
void aml_name_string(struct aml *aml, const char *name);
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
/* The compressed id of a name such as "PNP0A08" (19.3.4). */
void aml_eisa_id(struct aml *aml, const char *id);

void aml_name(struct aml *aml, const char *name); /* Name (NAME, ...): the object follows */
void aml_name_integer(struct aml *aml, const char *name, uint64_t value);
void aml_name_eisa_id(struct aml *aml, const char *name, const char *id);

size_t aml_begin_scope(struct aml *aml, const char *name);
size_t aml_begin_device(struct aml *aml, const char *name);
size_t aml_begin_method(struct aml *aml, const char *name, unsigned args, bool serialized);
size_t aml_begin_package(struct aml *aml, unsigned elements);
void aml_end(struct aml *aml, size_t begin);

/* A buffer of resource descriptors, for _CRS. */
size_t aml_begin_resources(struct aml *aml);
void aml_end_resources(struct aml *aml, size_t begin);
void aml_resource_io(struct aml *aml, uint16_t base, uint8_t len);
void aml_resource_irq(struct aml *aml, unsigned irq);
void aml_resource_memory32(struct aml *aml, uint32_t base, uint32_t len);
void aml_resource_bus(struct aml *aml, uint16_t first, uint16_t last);
void aml_resource_io_range(struct aml *aml, uint16_t first, uint16_t last);
void aml_resource_memory_range(struct aml *aml, uint64_t first, uint64_t last, bool is64);

#endif
