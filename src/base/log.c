#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"

#define LOG_LIMIT_WINDOW   (10 * NSEC_PER_SEC)
#define LOG_LIMIT_MESSAGES 5u

/* The one piece of process-wide state: how much the operator wants to read. */
static _Atomic int log_level = LOG_INFO;

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&log_level, (int)level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
    return (enum log_level)atomic_load_explicit(&log_level, memory_order_relaxed);
}

static void log_vwrite(enum log_level level, const char *fmt, va_list args)
{
    static const char *const prefix[] = {
        [LOG_ERROR] = "lodge: ",
        [LOG_WARNING] = "lodge: warning: ",
        [LOG_INFO] = "lodge: ",
        [LOG_DEBUG] = "lodge: debug: ",
    };
    char line[1024];
    int head, body;
    size_t len;

    if (level > log_get_level())
        return;
    head = snprintf(line, sizeof(line), "%s", prefix[level]);
    body = vsnprintf(line + head, sizeof(line) - (size_t)head - 1, fmt, args);
    if (body < 0)
        return;
    len = (size_t)head + (size_t)body;
    if (len > sizeof(line) - 2)
        len = sizeof(line) - 2;
    line[len++] = '\n';
    /* One write, so that lines of several threads do not mix. Nothing can be done if it fails. */
    if (write(STDERR_FILENO, line, len) < 0)
        return;
}

void log_write(enum log_level level, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    log_vwrite(level, fmt, args);
    va_end(args);
}

void log_write_limited(struct log_limit *limit, const char *fmt, ...)
{
    uint64_t now = clock_now();
    va_list args;

    /* Counts may be off by a little when threads race: it only limits noise. */
    if (now - limit->window_start > LOG_LIMIT_WINDOW) {
        if (limit->suppressed)
            log_debug("%u similar messages were not shown", limit->suppressed);
        limit->window_start = now;
        limit->in_window = 0;
        limit->suppressed = 0;
    }
    if (limit->in_window >= LOG_LIMIT_MESSAGES) {
        limit->suppressed++;
        return;
    }
    limit->in_window++;
    va_start(args, fmt);
    log_vwrite(LOG_DEBUG, fmt, args);
    va_end(args);
}

void bug_report(const char *file, int line, const char *fmt, ...)
{
    char text[512];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    log_error("internal error at %s:%d: %s", file, line, text);
    abort();
}
