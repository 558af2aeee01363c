#include "vm/console.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "base/log.h"
#include "vm/writer.h"

#define CONSOLE_LEAVE_KEY 0x1du /* Ctrl-] */
#define CONSOLE_INPUT     256u

struct console {
    enum console_kind kind;
    const char *path; /* borrowed; of a socket, to unlink it */
    uv_loop_t *loop;
    struct writer *writer;  /* owned */
    struct uart16550 *uart; /* borrowed; NULL: not started */
    void (*leave)(void *opaque);
    void *leave_opaque;

    int in_fd, out_fd, listen_fd; /* -1: none; owned unless standard */
    bool raw;                     /* the terminal is ours */
    struct termios saved;

    uv_poll_t input, listener;
    uv_async_t room; /* the UART takes bytes again */
    bool has_input, has_listener;
    bool closing;
    int stdin_flags; /* of the descriptor we were given; the event loop makes it non-blocking */
    bool direct; /* input that cannot be polled (a file): read when there is room */
    unsigned open_handles;
    uint8_t pending[CONSOLE_INPUT];
    size_t pending_at, pending_len;
};

static void console_read_more(struct console *console);

static void console_set_raw(struct console *console)
{
    struct termios raw = console->saved;

    cfmakeraw(&raw);
    /* Output keeps its processing: kernels send CR LF, and our own messages only LF. */
    raw.c_oflag |= OPOST | ONLCR;
    tcsetattr(console->in_fd, TCSANOW, &raw);
}

void console_resume(struct console *console)
{
    if (console->raw)
        console_set_raw(console);
}

static void console_output(void *opaque, const uint8_t *bytes, size_t len)
{
    struct console *console = opaque;

    if (console->writer)
        writer_put(console->writer, bytes, len);
}

static void console_input_room(void *opaque)
{
    struct console *console = opaque;

    uv_async_send(&console->room);
}

struct uart16550_sink console_sink(struct console *console)
{
    return (struct uart16550_sink){console_output, console_input_room, console};
}

static void console_on_connect(uv_poll_t *poll, int status, int events);

/* The handle may be used again: wait for the next client. */
static void console_on_client_closed(uv_handle_t *handle)
{
    struct console *console = handle->data;

    console->open_handles--;
    if (!console->closing)
        uv_poll_start(&console->listener, UV_READABLE, console_on_connect);
    else if (console->open_handles == 0)
        free(console);
}

static void console_client_gone(struct console *console)
{
    uv_poll_stop(&console->input);
    if (console->kind != CONSOLE_UNIX)
        return;
    shutdown(console->in_fd, SHUT_RDWR);
    writer_set_fd(console->writer, -1);
    close(console->in_fd);
    console->in_fd = -1;
    console->has_input = false;
    console->pending_len = 0;
    console->open_handles++;
    uv_close((uv_handle_t *)&console->input, console_on_client_closed);
}

/* Gives the UART what was read. True when all of it was taken. */
static bool console_feed(struct console *console)
{
    while (console->pending_len && console->uart) {
        size_t n = uart16550_input(console->uart, console->pending + console->pending_at,
                                   console->pending_len);

        if (n == 0)
            return false;
        console->pending_at += n;
        console->pending_len -= n;
    }
    return console->pending_len == 0;
}

/* Takes the key that leaves out of what was typed; what came before it still goes to the guest. */
static bool console_check_leave(struct console *console)
{
    uint8_t *key;

    if (!console->raw)
        return false;
    key = memchr(console->pending, CONSOLE_LEAVE_KEY, console->pending_len);
    if (!key)
        return false;
    console->pending_len = (size_t)(key - console->pending);
    return true;
}

/* False at the end of input. */
static bool console_read(struct console *console)
{
    ssize_t n = read(console->in_fd, console->pending, sizeof(console->pending));

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (n <= 0) {
        console_client_gone(console);
        return false;
    }
    console->pending_at = 0;
    console->pending_len = (size_t)n;
    if (console_check_leave(console))
        console->leave(console->leave_opaque);
    return true;
}

static void console_on_input(uv_poll_t *poll, int status, int events)
{
    struct console *console = poll->data;

    (void)events;
    if (status < 0) {
        console_client_gone(console);
        return;
    }
    if (console->pending_len == 0 && !console_read(console))
        return;
    if (!console_feed(console))
        uv_poll_stop(&console->input); /* until there is room */
}

static void console_read_more(struct console *console)
{
    if (!console->uart)
        return;
    while (console->direct && console_feed(console)) {
        ssize_t n = read(console->in_fd, console->pending, sizeof(console->pending));

        if (n <= 0) {
            console->direct = false;
            return;
        }
        console->pending_at = 0;
        console->pending_len = (size_t)n;
    }
    if (console->has_input && console_feed(console))
        uv_poll_start(&console->input, UV_READABLE, console_on_input);
}

static void console_on_room(uv_async_t *async)
{
    console_read_more(async->data);
}

static int console_watch_input(struct console *console)
{
    int r = uv_poll_init(console->loop, &console->input, console->in_fd);

    if (r < 0)
        return r;
    console->input.data = console;
    console->has_input = true;
    return 0;
}

static void console_on_connect(uv_poll_t *poll, int status, int events)
{
    struct console *console = poll->data;
    int fd = accept4(console->listen_fd, NULL, NULL, SOCK_CLOEXEC);

    (void)status;
    (void)events;
    if (fd < 0)
        return;
    uv_poll_stop(&console->listener); /* one client at a time; others wait in the queue */
    console->in_fd = fd;
    if (console_watch_input(console) < 0) {
        close(fd);
        console->in_fd = -1;
        uv_poll_start(&console->listener, UV_READABLE, console_on_connect);
        return;
    }
    writer_set_fd(console->writer, fd);
    console_read_more(console);
}

static int console_open_stdio(struct console *console, struct error *err)
{
    console->in_fd = STDIN_FILENO;
    console->out_fd = STDOUT_FILENO;
    /* A background job that touched the terminal would be stopped. */
    if (isatty(STDIN_FILENO) && tcgetpgrp(STDIN_FILENO) == getpgrp() &&
        tcgetattr(STDIN_FILENO, &console->saved) == 0) {
        console->raw = true;
        console_set_raw(console);
    } else if (isatty(STDIN_FILENO)) {
        console->in_fd = -1;
        return 0;
    }
    console->stdin_flags = fcntl(STDIN_FILENO, F_GETFL);
    if (console->stdin_flags < 0) {
        console->in_fd = -1; /* closed */
        return 0;
    }
    if (console_watch_input(console) < 0)
        console->direct = true;
    (void)err;
    return 0;
}

static int console_open_file(struct console *console, struct error *err)
{
    console->out_fd = open(console->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (console->out_fd < 0)
        return error_set(err, -errno, "cannot write the serial port's file '%s': %s", console->path,
                         strerror(errno));
    return 0;
}

/* A socket that a machine left behind is replaced; a live one, and any other file, is not. */
static int console_bind(int fd, const struct sockaddr_un *address)
{
    const struct sockaddr *sa = (const struct sockaddr *)address;

    if (bind(fd, sa, sizeof(*address)) == 0)
        return 0;
    if (errno != EADDRINUSE)
        return -errno;
    if (connect(fd, sa, sizeof(*address)) == 0 || errno != ECONNREFUSED)
        return -EADDRINUSE;
    if (unlink(address->sun_path) < 0 || bind(fd, sa, sizeof(*address)) < 0)
        return -errno;
    return 0;
}

static int console_listen(const char *path, int *out)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd, r;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    r = console_bind(fd, &address);
    if (r == 0 && listen(fd, 4) < 0)
        r = -errno;
    if (r < 0) {
        close(fd);
        return r;
    }
    *out = fd;
    return 0;
}

static int console_open_unix(struct console *console, struct error *err)
{
    int r = console_listen(console->path, &console->listen_fd);

    if (r == 0) {
        r = uv_poll_init(console->loop, &console->listener, console->listen_fd);
        console->has_listener = r == 0;
    }
    if (r < 0)
        return error_set(err, r, "cannot make the serial port's socket '%s': %s", console->path,
                         strerror(-r));
    console->listener.data = console;
    return uv_poll_start(&console->listener, UV_READABLE, console_on_connect);
}

static int console_open_kind(struct console *console, struct error *err)
{
    switch (console->kind) {
    case CONSOLE_STDIO: return console_open_stdio(console, err);
    case CONSOLE_FILE: return console_open_file(console, err);
    case CONSOLE_UNIX: return console_open_unix(console, err);
    case CONSOLE_NONE: return 0;
    }
    return 0;
}

int console_open(const struct console_options *options, uv_loop_t *loop,
                 void (*leave)(void *opaque), void *opaque, struct console **out,
                 struct error *err)
{
    struct console *console = calloc(1, sizeof(*console));
    int r;

    if (!console)
        return error_set(err, -ENOMEM, "no memory for the console");
    *console = (struct console){.kind = options->kind, .path = options->path, .loop = loop,
                                .leave = leave, .leave_opaque = opaque,
                                .in_fd = -1, .out_fd = -1, .listen_fd = -1};
    console->room.data = console;
    r = uv_async_init(loop, &console->room, console_on_room);
    if (r < 0) {
        free(console);
        return error_set(err, r, "cannot make the console: %s", uv_strerror(r));
    }
    console->room.data = console;
    r = writer_create(console->kind == CONSOLE_UNIX, &console->writer);
    if (r < 0)
        error_set(err, r, "cannot start the console's thread: %s", strerror(-r));
    else
        r = console_open_kind(console, err);
    if (r < 0) {
        console_close(console);
        return r;
    }
    writer_set_fd(console->writer, console->out_fd);
    *out = console;
    return 0;
}

void console_start(struct console *console, struct uart16550 *uart)
{
    console->uart = uart;
    console_read_more(console);
}

void console_stop(struct console *console)
{
    console->uart = NULL;
    if (console->has_input)
        uv_poll_stop(&console->input);
}

void console_discard(struct console *console)
{
    if (console->writer)
        writer_discard(console->writer);
}

static void console_on_closed(uv_handle_t *handle)
{
    struct console *console = handle->data;

    if (--console->open_handles == 0)
        free(console);
}

static void console_close_handle(struct console *console, uv_handle_t *handle)
{
    console->open_handles++;
    uv_close(handle, console_on_closed);
}

void console_close(struct console *console)
{
    if (console->writer)
        writer_destroy(console->writer);
    console->closing = true;
    if (console->raw)
        tcsetattr(console->in_fd, TCSADRAIN, &console->saved);
    if (console->kind == CONSOLE_STDIO && console->in_fd >= 0)
        fcntl(STDIN_FILENO, F_SETFL, console->stdin_flags);
    if (console->has_input)
        console_close_handle(console, (uv_handle_t *)&console->input);
    if (console->has_listener)
        console_close_handle(console, (uv_handle_t *)&console->listener);
    console_close_handle(console, (uv_handle_t *)&console->room);
    if (console->kind == CONSOLE_UNIX && console->listen_fd >= 0)
        unlink(console->path);
    if (console->listen_fd >= 0)
        close(console->listen_fd);
    if (console->in_fd > STDERR_FILENO)
        close(console->in_fd);
    if (console->out_fd > STDERR_FILENO)
        close(console->out_fd);
}
