/*
 * Saved state, declared as tables. One table drives snapshot, migration, inspection and fuzzing.
 *
 * A table lists the fields of a struct in order; the saved form of a section is
 *   name (NUL-terminated), u32 version, u32 length, then the fields, little-endian, packed.
 * Loading checks everything before it changes anything: an unknown section, a wrong version or a
 * short section is an error and leaves the struct as it was.
 */
#ifndef CORE_STATE_H
#define CORE_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/error.h"

enum state_kind {
    STATE_END = 0,
    STATE_UINT,  /* `count` little-endian integers (or bool, enum) of `size` bytes each */
    STATE_BYTES, /* `size` raw bytes */
    STATE_TABLE, /* `count` nested structs of `size` bytes each, described by `fields` */
};

struct state_field {
    const char *name;
    enum state_kind kind;
    uint32_t offset;
    uint32_t size;
    uint32_t count;
    const struct state_field *fields;
};

struct state_table {
    const char *name;
    uint32_t version;
    const struct state_field *fields; /* ends with STATE_FIELDS_END */
};

#define STATE_MEMBER(type, member) (((type *)0)->member)
#define STATE_UINT(type, member)                                                                   \
    {#member, STATE_UINT, offsetof(type, member), sizeof(STATE_MEMBER(type, member)), 1, NULL}
#define STATE_UINT_ARRAY(type, member)                                                             \
    {#member, STATE_UINT, offsetof(type, member), sizeof(STATE_MEMBER(type, member)[0]),           \
     sizeof(STATE_MEMBER(type, member)) / sizeof(STATE_MEMBER(type, member)[0]), NULL}
#define STATE_BYTES(type, member)                                                                  \
    {#member, STATE_BYTES, offsetof(type, member), sizeof(STATE_MEMBER(type, member)), 1, NULL}
#define STATE_STRUCT_ARRAY(type, member, table)                                                    \
    {#member, STATE_TABLE, offsetof(type, member), sizeof(STATE_MEMBER(type, member)[0]),          \
     sizeof(STATE_MEMBER(type, member)) / sizeof(STATE_MEMBER(type, member)[0]), table}
#define STATE_STRUCT(type, member, table)                                                          \
    {#member, STATE_TABLE, offsetof(type, member), sizeof(STATE_MEMBER(type, member)), 1, table}
#define STATE_FIELDS_END {NULL, STATE_END, 0, 0, 0, NULL}

/* A growing byte buffer, owned by whoever state_buf_init()ed it. */
struct state_buf {
    uint8_t *data;
    size_t len;
    size_t capacity;
};

void state_buf_init(struct state_buf *buf);
void state_buf_release(struct state_buf *buf);

/* Appends the section of `object`. `instance` (a device's name) makes section names unique. */
nodiscard int state_save(struct state_buf *buf, const struct state_table *table,
                         const char *instance, const void *object);

/* Reads one section at *pos and advances *pos past it. */
nodiscard int state_load(const uint8_t *data, size_t len, size_t *pos,
                         const struct state_table *table, const char *instance, void *object,
                         struct error *err);

#endif
