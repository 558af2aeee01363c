#include "board/acpi/aml.h"

#include <string.h>

#define AML_ZERO      0x00u
#define AML_ONE       0x01u
#define AML_NAME      0x08u
#define AML_BYTE      0x0au
#define AML_WORD      0x0bu
#define AML_DWORD     0x0cu
#define AML_STRING    0x0du
#define AML_QWORD     0x0eu
#define AML_SCOPE     0x10u
#define AML_BUFFER    0x11u
#define AML_PACKAGE   0x12u
#define AML_METHOD    0x14u
#define AML_EXT       0x5bu
#define AML_EXT_DEVICE 0x82u

/* Address space descriptors (6.4.3.5). */
#define RESOURCE_DWORD 0x87u
#define RESOURCE_WORD  0x88u
#define RESOURCE_QWORD 0x8au
#define RANGE_MEMORY   0u
#define RANGE_IO       1u
#define RANGE_BUS      2u
#define RANGE_FIXED    0x0cu /* minimum and maximum are fixed; produced; positive decode */
#define RESOURCE_END   0x79u

void aml_bytes(struct aml *aml, const void *bytes, size_t len)
{
    if (aml->overflow || len > aml->capacity - aml->len) {
        aml->overflow = true;
        return;
    }
    memcpy(aml->data + aml->len, bytes, len);
    aml->len += len;
}

void aml_byte(struct aml *aml, uint8_t byte)
{
    aml_bytes(aml, &byte, 1);
}

static void aml_le(struct aml *aml, uint64_t value, unsigned size)
{
    aml_bytes(aml, &value, size); /* the host is little-endian, as the guest */
}

void aml_name_string(struct aml *aml, const char *name)
{
    aml_bytes(aml, name, strlen(name));
}

void aml_integer(struct aml *aml, uint64_t value)
{
    if (value <= 1) {
        aml_byte(aml, value ? AML_ONE : AML_ZERO);
    } else if (value <= UINT8_MAX) {
        aml_byte(aml, AML_BYTE);
        aml_le(aml, value, 1);
    } else if (value <= UINT16_MAX) {
        aml_byte(aml, AML_WORD);
        aml_le(aml, value, 2);
    } else if (value <= UINT32_MAX) {
        aml_byte(aml, AML_DWORD);
        aml_le(aml, value, 4);
    } else {
        aml_byte(aml, AML_QWORD);
        aml_le(aml, value, 8);
    }
}

void aml_string(struct aml *aml, const char *text)
{
    aml_byte(aml, AML_STRING);
    aml_bytes(aml, text, strlen(text) + 1);
}

static uint32_t aml_hex(char c)
{
    return (uint32_t)(c <= '9' ? c - '0' : c - 'A' + 10);
}

void aml_eisa_id(struct aml *aml, const char *id)
{
    uint32_t letters = ((uint32_t)(id[0] - '@') & 31) << 10 | ((uint32_t)(id[1] - '@') & 31) << 5 |
                       ((uint32_t)(id[2] - '@') & 31);
    uint32_t number = aml_hex(id[3]) << 12 | aml_hex(id[4]) << 8 | aml_hex(id[5]) << 4 |
                      aml_hex(id[6]);

    aml_byte(aml, AML_DWORD); /* big-endian, whatever it is in */
    aml_le(aml, __builtin_bswap32(letters << 16 | number), 4);
}

void aml_name(struct aml *aml, const char *name)
{
    aml_byte(aml, AML_NAME);
    aml_name_string(aml, name);
}

void aml_name_integer(struct aml *aml, const char *name, uint64_t value)
{
    aml_name(aml, name);
    aml_integer(aml, value);
}

void aml_name_eisa_id(struct aml *aml, const char *name, const char *id)
{
    aml_name(aml, name);
    aml_eisa_id(aml, id);
}

size_t aml_begin_scope(struct aml *aml, const char *name)
{
    size_t begin;

    aml_byte(aml, AML_SCOPE);
    begin = aml->len;
    aml_name_string(aml, name);
    return begin;
}

size_t aml_begin_device(struct aml *aml, const char *name)
{
    size_t begin;

    aml_byte(aml, AML_EXT);
    aml_byte(aml, AML_EXT_DEVICE);
    begin = aml->len;
    aml_name_string(aml, name);
    return begin;
}

size_t aml_begin_method(struct aml *aml, const char *name, unsigned args, bool serialized)
{
    size_t begin;

    aml_byte(aml, AML_METHOD);
    begin = aml->len;
    aml_name_string(aml, name);
    aml_byte(aml, (uint8_t)((args & 7) | (serialized ? 8 : 0)));
    return begin;
}

size_t aml_begin_package(struct aml *aml, unsigned elements)
{
    size_t begin;

    aml_byte(aml, AML_PACKAGE);
    begin = aml->len;
    aml_byte(aml, (uint8_t)elements);
    return begin;
}

/* PkgLength (20.2.4) counts itself, and is as short as it can be. */
static size_t aml_encode_length(size_t body, uint8_t out[4])
{
    size_t total = body + 1;
    unsigned extra = 0;

    if (total > 0x3f) {
        extra = 1;
        while (body + 1 + extra >= (size_t)1 << (4 + 8 * extra))
            extra++;
        total = body + 1 + extra;
    }
    out[0] = (uint8_t)(extra ? extra << 6 | (total & 15) : total);
    for (unsigned i = 0; i < extra; i++)
        out[1 + i] = (uint8_t)(total >> (4 + 8 * i));
    return 1 + extra;
}

void aml_end(struct aml *aml, size_t begin)
{
    uint8_t length[4];
    size_t body = aml->len - begin;
    size_t n = aml_encode_length(body, length);

    if (aml->overflow || n > aml->capacity - aml->len) {
        aml->overflow = true;
        return;
    }
    memmove(aml->data + begin + n, aml->data + begin, body);
    memcpy(aml->data + begin, length, n);
    aml->len += n;
}

/* The buffer's size comes before its bytes: two bytes are kept for it. */
size_t aml_begin_resources(struct aml *aml)
{
    size_t begin;

    aml_byte(aml, AML_BUFFER);
    begin = aml->len;
    aml_byte(aml, AML_WORD);
    aml_le(aml, 0, 2);
    return begin;
}

void aml_end_resources(struct aml *aml, size_t begin)
{
    uint16_t size;

    aml_byte(aml, RESOURCE_END);
    aml_byte(aml, 0); /* checksum zero: not computed */
    if (!aml->overflow) {
        size = (uint16_t)(aml->len - begin - 3);
        memcpy(aml->data + begin + 1, &size, sizeof(size));
    }
    aml_end(aml, begin);
}

void aml_resource_io(struct aml *aml, uint16_t base, uint8_t len)
{
    aml_byte(aml, 0x47); /* I/O port descriptor, 7 bytes */
    aml_byte(aml, 1);    /* decodes 16 bits */
    aml_le(aml, base, 2);
    aml_le(aml, base, 2);
    aml_byte(aml, 1);
    aml_byte(aml, len);
}

void aml_resource_irq(struct aml *aml, unsigned irq)
{
    aml_byte(aml, 0x22); /* IRQ descriptor, 2 bytes: edge, active high, exclusive */
    aml_le(aml, 1u << irq, 2);
}

void aml_resource_memory32(struct aml *aml, uint32_t base, uint32_t len)
{
    aml_byte(aml, 0x86); /* 32-bit fixed memory range */
    aml_le(aml, 9, 2);
    aml_byte(aml, 1);
    aml_le(aml, base, 4);
    aml_le(aml, len, 4);
}

static void aml_resource_range(struct aml *aml, uint8_t tag, uint8_t type, uint8_t flags,
                               uint64_t first, uint64_t last, unsigned size)
{
    aml_byte(aml, tag);
    aml_le(aml, 3 + 5 * size, 2);
    aml_byte(aml, type);
    aml_byte(aml, RANGE_FIXED);
    aml_byte(aml, flags);
    aml_le(aml, 0, size); /* granularity */
    aml_le(aml, first, size);
    aml_le(aml, last, size);
    aml_le(aml, 0, size); /* translation */
    aml_le(aml, last - first + 1, size);
}

void aml_resource_bus(struct aml *aml, uint16_t first, uint16_t last)
{
    aml_resource_range(aml, RESOURCE_WORD, RANGE_BUS, 0, first, last, 2);
}

void aml_resource_io_range(struct aml *aml, uint16_t first, uint16_t last)
{
    aml_resource_range(aml, RESOURCE_WORD, RANGE_IO, 3, first, last, 2); /* ISA and not ISA */
}

void aml_resource_memory_range(struct aml *aml, uint64_t first, uint64_t last, bool is64)
{
    aml_resource_range(aml, is64 ? RESOURCE_QWORD : RESOURCE_DWORD, RANGE_MEMORY, 1, first, last,
                       is64 ? 8 : 4); /* read and write, not cacheable */
}
