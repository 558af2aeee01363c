/* Compiler helpers used everywhere: attributes, checked arithmetic, invariants. */
#ifndef BASE_COMPILER_H
#define BASE_COMPILER_H

#include <stddef.h>
#include <stdint.h>

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define nodiscard       __attribute__((warn_unused_result))
#define printf_like(f, a) __attribute__((format(printf, f, a)))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

/* Both are true on overflow; the result is then undefined. */
#define add_overflows(a, b, res) __builtin_add_overflow((a), (b), (res))
#define mul_overflows(a, b, res) __builtin_mul_overflow((a), (b), (res))

static inline uint64_t align_down(uint64_t value, uint64_t alignment)
{
    return value & ~(alignment - 1);
}

static inline uint64_t align_up(uint64_t value, uint64_t alignment)
{
    return align_down(value + alignment - 1, alignment);
}

/* An invariant of Lodge's own is broken: print where, and abort. Never for guest input. */
#define BUG(...)      bug_report(__FILE__, __LINE__, __VA_ARGS__)
#define BUG_ON(cond)  do { if (unlikely(cond)) BUG("%s", #cond); } while (0)

_Noreturn void bug_report(const char *file, int line, const char *fmt, ...) printf_like(3, 4);

#endif
