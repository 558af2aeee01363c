/*
 * An error as the user will read it: one sentence that names the object and the next step.
 *
 * Functions that can fail for a reason the user can act on take a `struct error *` (never NULL)
 * and return 0 or a negative errno; the first error_set() wins, so the innermost cause is kept.
 * The struct is owned by the caller; no allocation.
 */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include "base/compiler.h"

struct error {
    int code;          /* 0 or negative errno */
    char message[512]; /* no trailing newline, no program name */
};

/* Returns `code` (a negative errno), so that callers can `return error_set(err, -EINVAL, ...)`. */
int error_set(struct error *err, int code, const char *fmt, ...) printf_like(3, 4);

/* Puts "context: " in front of the message already there. Returns err->code. */
int error_prefix(struct error *err, const char *fmt, ...) printf_like(2, 3);

#endif
