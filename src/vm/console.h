/*
 * The host side of the guest's first serial port: standard input and output, a file, a socket, or nothing.
 *
 * On a terminal, every key goes to the guest; Ctrl-] leaves. The terminal is put back by
 * console_close(). Everything from the main thread, except the sink's functions.
 */
#ifndef VM_CONSOLE_H
#define VM_CONSOLE_H

#include <uv.h>

#include "base/error.h"
#include "device/uart16550.h"

enum console_kind { CONSOLE_STDIO, CONSOLE_NONE, CONSOLE_FILE, CONSOLE_UNIX };

struct console_options {
    enum console_kind kind;
    const char *path; /* of a file or socket */
};

struct console;

/* `leave` is called on the main thread when the operator presses Ctrl-]. */
nodiscard int console_open(const struct console_options *options, uv_loop_t *loop,
                           void (*leave)(void *opaque), void *opaque, struct console **out,
                           struct error *err);
struct uart16550_sink console_sink(struct console *console);
/* Input flows to `uart` from here on, until console_stop(). */
void console_start(struct console *console, struct uart16550 *uart);
void console_stop(struct console *console);
/* Puts a terminal that was changed meanwhile (SIGCONT) back into raw mode. */
void console_resume(struct console *console);
/* Output that cannot be written is given up from here on. */
void console_discard(struct console *console);
/* Writes what is left, restores the terminal. The handles are closing: run the loop once more before it
 * is closed; the console is freed by then. */
void console_close(struct console *console);

#endif
