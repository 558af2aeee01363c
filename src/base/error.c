#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int error_set(struct error *err, int code, const char *fmt, ...)
{
    va_list args;

    if (err->code)
        return err->code;
    err->code = code;
    va_start(args, fmt);
    (void)vsnprintf(err->message, sizeof(err->message), fmt, args);
    va_end(args);
    return code;
}

int error_prefix(struct error *err, const char *fmt, ...)
{
    char text[sizeof(err->message)];
    va_list args;
    int len;

    va_start(args, fmt);
    len = vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (len < 0)
        return err->code;
    if ((size_t)len < sizeof(text) && err->message[0])
        (void)snprintf(text + len, sizeof(text) - (size_t)len, ": %s", err->message);
    memcpy(err->message, text, sizeof(text));
    return err->code;
}
