/* The self-test guest's bytes, its steps and what it leaves in memory; private to src/cpu/selftest*.c. */
#ifndef CPU_SELFTEST_GUEST_H
#define CPU_SELFTEST_GUEST_H

#include <stdint.h>

#define SELFTEST_RAM       0x10000u /* bytes of RAM from 0 */
#define SELFTEST_LOAD      0x1000u  /* where the bytes go, and where real mode starts */
#define SELFTEST_RESULTS   0x8000u  /* struct selftest_memory */
#define SELFTEST_PORT_STEP 0xf0u    /* a byte: enum selftest_step being started */
#define SELFTEST_PORT_DATA 0xf2u    /* 32 bits: reads SELFTEST_PORT_READ */
#define SELFTEST_PORT_READ 0x5a17c0deu
#define SELFTEST_MMIO      0x200000u /* 64 bits: reads SELFTEST_MMIO_READ; a write is remembered */
#define SELFTEST_MMIO_READ 0x0123456789abcdefull

enum selftest_step {
    STEP_START,
    STEP_REAL,
    STEP_PROTECTED,
    STEP_LONG,
    STEP_BREAKPOINT,
    STEP_SSE,
    STEP_CMPXCHG16B,
    STEP_XSAVE,
    STEP_PORT,
    STEP_MMIO,
    STEP_HALT,
    STEP_COUNT
};

/* Offsets are written into the guest's assembly. */
struct selftest_memory {
    uint64_t breakpoint_rip; /* 0x00: pushed by INT3, less SELFTEST_LOAD */
    uint64_t sse[2];         /* 0x08: 2 + 3 in each 32-bit lane */
    uint64_t swap_old[2];    /* 0x18: what CMPXCHG16B found (RDX:RAX), second try */
    uint64_t swap_new[2];    /* 0x28 misaligned on purpose; copied from the 16-byte cell */
    uint64_t port;           /* 0x38 */
    uint64_t mmio;           /* 0x40 */
    uint64_t xsave[2];       /* 0x48: XMM0 after XRSTOR; 5 in each lane when there is XSAVE */
    uint64_t has_xsave;      /* 0x58 */
};

extern const uint8_t selftest_guest_start[], selftest_guest_end[];
extern const uint8_t selftest_guest_after_int3[];

#endif
