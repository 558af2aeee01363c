/*
 * A machine with RAM and one or more soft vCPUs in a chosen mode, for unit tests of the engine.
 *
 * Memory: FIXTURE_RAM bytes from 0. 64-bit mode has identity paging with 2 MiB pages (all of RAM,
 * user accessible, global off) from page tables at FIXTURE_TABLES; the other modes begin
 * without paging, with flat segments (16-bit: real mode). A fixture_run ends at HLT, or with the
 * number of the first exception that has no handler: every event is caught unless an IDT is set.
 */
#ifndef TESTS_SOFT_FIXTURE_H
#define TESTS_SOFT_FIXTURE_H

#include "cpu/engine.h"
#include "cpu/soft/vcpu.h"

#define FIXTURE_RAM    (16u << 20)
#define FIXTURE_TABLES 0x100000u /* PML4, then PDPT, then PD */
#define FIXTURE_CODE   0x10000u
#define FIXTURE_STACK  0x80000u
#define FIXTURE_CPUS   4u

struct fixture {
    struct machine *machine;
    struct cpu_model model;
    struct vm *vm;
    struct vcpu *vcpu[FIXTURE_CPUS];
    unsigned cpus;
    uint8_t *ram; /* of guest address 0 */
};

void fixture_init(struct fixture *f, unsigned cpus);
void fixture_release(struct fixture *f);

/* Puts vCPU `index` into 16-bit real, 32-bit protected or 64-bit mode, ready to run at FIXTURE_CODE. */
void fixture_mode(struct fixture *f, unsigned index, unsigned bits);
struct soft_vcpu *fixture_cpu(struct fixture *f, unsigned index);
struct cpu_state *fixture_state(struct fixture *f, unsigned index);

/* Bytes into guest memory as a device would write them. */
void fixture_load(struct fixture *f, gpa_t gpa, const void *bytes, size_t len);

/* Runs vCPU `index` until it halts (true) or shuts down (false). With no IDT a fault shuts down. */
bool fixture_run(struct fixture *f, unsigned index);

/* fixture_load at FIXTURE_CODE, and run vCPU 0 from there. */
bool fixture_execute(struct fixture *f, const void *bytes, size_t len);

#endif
