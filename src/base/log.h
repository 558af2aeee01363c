/*
 * Messages for the operator on standard error, one line each, safe from any thread.
 * log_guest() is for odd things a guest did: it is rate-limited by call site.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include "base/compiler.h"

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

/* Default LOG_INFO; --verbose sets LOG_DEBUG. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);

void log_write(enum log_level level, const char *fmt, ...) printf_like(2, 3);

#define log_error(...)   log_write(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_WARNING, __VA_ARGS__)
#define log_info(...)    log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)   log_write(LOG_DEBUG, __VA_ARGS__)

/* State of one rate-limited call site; zero-initialised static storage. */
struct log_limit {
    uint64_t window_start; /* ns */
    uint32_t in_window;
    uint32_t suppressed;
};
void log_write_limited(struct log_limit *limit, const char *fmt, ...) printf_like(2, 3);

#define log_guest(...)                                                                             \
    do {                                                                                           \
        static struct log_limit log_limit_here;                                                    \
        log_write_limited(&log_limit_here, __VA_ARGS__);                                           \
    } while (0)

#endif
