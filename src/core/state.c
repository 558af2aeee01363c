#include "core/state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void state_buf_init(struct state_buf *buf)
{
    *buf = (struct state_buf){0};
}

void state_buf_release(struct state_buf *buf)
{
    free(buf->data);
    state_buf_init(buf);
}

static int buf_append(struct state_buf *buf, const void *bytes, size_t len)
{
    if (len > buf->capacity - buf->len) {
        size_t capacity = 2 * buf->capacity + len + 256;
        uint8_t *data = realloc(buf->data, capacity);

        if (!data)
            return -ENOMEM;
        buf->data = data;
        buf->capacity = capacity;
    }
    memcpy(buf->data + buf->len, bytes, len);
    buf->len += len;
    return 0;
}

static size_t fields_size(const struct state_field *field)
{
    size_t size = 0;

    for (; field->kind != STATE_END; field++) {
        size_t one = field->kind == STATE_TABLE ? fields_size(field->fields) : field->size;

        size += one * field->count;
    }
    return size;
}

/* The host is little-endian, as the saved form is: integers are copied as they are. */
static int fields_save(struct state_buf *buf, const struct state_field *field, const void *object)
{
    int ret = 0;

    for (; ret == 0 && field->kind != STATE_END; field++) {
        const uint8_t *at = (const uint8_t *)object + field->offset;

        if (field->kind != STATE_TABLE) {
            ret = buf_append(buf, at, (size_t)field->size * field->count);
            continue;
        }
        for (uint32_t i = 0; ret == 0 && i < field->count; i++)
            ret = fields_save(buf, field->fields, at + (size_t)i * field->size);
    }
    return ret;
}

/* The caller has checked that fields_size() bytes are there. */
static const uint8_t *fields_load(const uint8_t *data, const struct state_field *field,
                                  void *object)
{
    for (; field->kind != STATE_END; field++) {
        uint8_t *at = (uint8_t *)object + field->offset;
        size_t len = (size_t)field->size * field->count;

        if (field->kind != STATE_TABLE) {
            memcpy(at, data, len);
            data += len;
            continue;
        }
        for (uint32_t i = 0; i < field->count; i++)
            data = fields_load(data, field->fields, at + (size_t)i * field->size);
    }
    return data;
}

int state_save(struct state_buf *buf, const struct state_table *table, const char *instance,
               const void *object)
{
    uint32_t head[2] = {table->version, (uint32_t)fields_size(table->fields)};
    size_t start = buf->len;
    int ret = buf_append(buf, instance, strlen(instance) + 1);

    if (ret == 0)
        ret = buf_append(buf, head, sizeof(head));
    if (ret == 0)
        ret = fields_save(buf, table->fields, object);
    if (ret)
        buf->len = start;
    return ret;
}

int state_load(const uint8_t *data, size_t len, size_t *pos, const struct state_table *table,
               const char *instance, void *object, struct error *err)
{
    size_t left = len - *pos, name_len;
    uint32_t head[2];
    const uint8_t *at = data + *pos;

    name_len = strnlen((const char *)at, left);
    if (name_len == left || left - name_len - 1 < sizeof(head))
        return error_set(err, -EINVAL, "the saved state ends before section '%s'", instance);
    if (strcmp((const char *)at, instance) != 0)
        return error_set(err, -EINVAL, "the saved state has section '%.64s' where '%s' is expected",
                         (const char *)at, instance);
    at += name_len + 1;
    left -= name_len + 1;
    memcpy(head, at, sizeof(head));
    at += sizeof(head);
    left -= sizeof(head);
    if (head[0] != table->version)
        return error_set(err, -EINVAL, "section '%s' has version %u, this program reads %u",
                         instance, head[0], table->version);
    if (head[1] != fields_size(table->fields) || head[1] > left)
        return error_set(err, -EINVAL, "section '%s' has %u bytes where %zu are expected",
                         instance, head[1], fields_size(table->fields));
    at = fields_load(at, table->fields, object);
    *pos = (size_t)(at - data);
    return 0;
}
