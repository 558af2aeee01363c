/* The guest side of `make bench`: small workloads, each timed for a fixed wall time. */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>

/* What a workload is. Each runs in a process of its own, so that setup need not undo anything. */
struct workload {
    const char *name;
    const char *class; /* the row of targets it counts in (bench/report.py) */
    int cpus;          /* CPUs it needs */
    /* Makes what run needs and checks one answer. Returns NULL, or why the CPU or kernel cannot do
     * this one. */
    const char *(*setup)(void);
    void (*run)(uint64_t n); /* n operations */
};

extern const struct workload integer_workloads[], vector_workloads[], memory_workloads[],
    code_workloads[], kernel_workloads[], process_workloads[]; /* each ends with a NULL name */

#define NOINLINE __attribute__((noipa))

/* Keeps the compiler from dropping the computation of a value. */
#define USE(value) __asm__ volatile("" : : "g"(value) : "memory")

/* Ends this workload as failed. */
_Noreturn void die(const char *why);
void check(int ok, const char *what);

/* Page-aligned zeroed memory, touched. */
void *take(size_t bytes);

/* A small generator with a fixed start: every peer gets the same data. */
uint32_t next_random(uint32_t *state);

/* The work that one CPU and two CPUs are compared with (integer.c). */
void interpreter_run(uint64_t n);
const char *interpreter_setup(void);

#endif
