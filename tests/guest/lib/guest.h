/*
 * What a freestanding guest has: long mode on one CPU, an identity map of 4 GiB, an IDT that reports
 * or catches every exception, COM1, and an exit code.
 *
 * A guest is one C file, tests/guest/NAME.c, with `int main(void)` and CHECKs in it, built into
 * build/guests/NAME.elf: a multiboot 1 kernel that runs under `lodge run --kernel` and
 * `qemu-system-x86_64 -kernel` alike. A line "GUEST: key=value ..." in its first comment tells
 * test_guests.py how to run it.
 *
 * Compiled without SSE: vector registers are the test's to use, in assembly.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Written to the debug-exit port, so exit statuses are 33, 35 and 37. */
#define EXIT_PASS 0x10
#define EXIT_FAIL 0x11
#define EXIT_TRAP 0x12

/* Selectors of the GDT in start.S. */
#define SEL_CODE64 0x08
#define SEL_DATA   0x10
#define SEL_CODE32 0x18
#define SEL_USER32 0x23
#define SEL_USERDS 0x2b
#define SEL_USER64 0x33
#define SEL_CODE16 0x38
#define SEL_DATA16 0x40
#define SEL_TSS    0x48
#define SEL_FREE   0x58 /* from here to 0xf8: 8-byte slots for tests */

struct frame { /* as trap_common in start.S pushes it */
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

#define NO_TRAP 0xffffffffu

struct trap { /* the last exception that TRY or user_run caught */
    uint32_t vector; /* NO_TRAP: none */
    uint32_t error;
    uint64_t rip, cs, rflags, rsp, cr2, rax;
};

extern struct trap trap_last;
extern uint64_t trap_fixup, trap_rsp;

/* A handler of one vector; before TRY looks. False: not handled after all. */
typedef bool trap_handler(struct frame *frame);
void trap_set_handler(unsigned vector, trap_handler *handler);

/* Executes `insn`; an exception ends it and is described in trap_last. The rest of the arguments
 * are the constraints of an asm statement, beginning with its colons. */
#define TRY(insn, ...)                                                                             \
    do {                                                                                           \
        __asm__ volatile("" ::: "memory");                                                         \
        __asm__ volatile("movq $9999f, trap_fixup(%%rip)\n"                                        \
                         "movq %%rsp, trap_rsp(%%rip)\n"                                           \
                         "movl $0xffffffff, trap_last(%%rip)\n" insn "\n"                          \
                         "9999: movq $0, trap_fixup(%%rip)\n" __VA_ARGS__);                        \
        __asm__ volatile("" ::: "memory");                                                         \
    } while (0)

/* Runs code (position independent assembly) in ring 3 until it traps; `int $0x80` is its normal end.
 * RDI and RSI as given; RAX at the end is trap_last.rax. Ring 3 sees memory at USER(address). */
#define USER_BASE 0x10000000000ull
#define USER(p)   ((uint64_t)(uintptr_t)(p) + USER_BASE)
void user_run(const void *code, uint64_t rdi, uint64_t rsi);

/* Printing: %d %u %x %s %c, with l and ll; width and zero padding for numbers. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void put_char(char c);
_Noreturn void guest_exit(uint8_t value);

/* The kernel command line, and whether it has `word` or `word=number`. */
extern const char *guest_command_line;
uint64_t guest_option(const char *name, uint64_t otherwise);

void check_failed(const char *file, int line, const char *what, uint64_t got, uint64_t expected);
extern unsigned checks_done, checks_wrong;

#define CHECK_EQ(got, expected)                                                                    \
    do {                                                                                           \
        uint64_t got_ = (uint64_t)(got), expected_ = (uint64_t)(expected);                         \
        checks_done++;                                                                             \
        if (got_ != expected_)                                                                     \
            check_failed(__FILE__, __LINE__, #got, got_, expected_);                               \
    } while (0)
#define CHECK(condition) CHECK_EQ(!!(condition), 1)
#define CHECK_TRAP(number, code)                                                                   \
    do {                                                                                           \
        CHECK_EQ(trap_last.vector, number);                                                        \
        CHECK_EQ(trap_last.error, code);                                                           \
    } while (0)
#define CHECK_NO_TRAP() CHECK_EQ(trap_last.vector, NO_TRAP)

void *memset(void *to, int byte, size_t size);
void *memcpy(void *to, const void *from, size_t size);
int memcmp(const void *a, const void *b, size_t size);

/* Tables of start.S that tests may change. */
extern uint64_t boot_gdt[32], boot_pml4[512];
struct gate { uint16_t offset0, selector, type, offset1; uint32_t offset2, zero; };
extern struct gate boot_idt[256];
struct tss64 {
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7];
    uint64_t reserved2;
    uint16_t reserved3, io_map;
} __attribute__((packed));
extern struct tss64 boot_tss;

#define PTE_P  1ull
#define PTE_W  2ull
#define PTE_U  4ull
#define PTE_A  0x20ull
#define PTE_D  0x40ull
#define PTE_PS 0x80ull
#define PTE_G  0x100ull
#define PTE_NX (1ull << 63)

/* Zeroed 4 KiB pages below 4 GiB; never given back. */
void *page_alloc(void);

/* Instructions. */
static inline void outb(uint16_t port, uint8_t v) { __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port)); }
static inline void outw(uint16_t port, uint16_t v) { __asm__ volatile("outw %0, %1" ::"a"(v), "Nd"(port)); }
static inline void outl(uint16_t port, uint32_t v) { __asm__ volatile("outl %0, %1" ::"a"(v), "Nd"(port)); }
static inline uint8_t inb(uint16_t port) { uint8_t v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline uint16_t inw(uint16_t port) { uint16_t v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline uint32_t inl(uint16_t port) { uint32_t v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

#define READ_REGISTER(name)                                                                        \
    static inline uint64_t read_##name(void)                                                       \
    {                                                                                              \
        uint64_t v;                                                                                \
        __asm__ volatile("movq %%" #name ", %0" : "=r"(v));                                        \
        return v;                                                                                  \
    }
#define WRITE_REGISTER(name)                                                                       \
    static inline void write_##name(uint64_t v)                                                    \
    {                                                                                              \
        __asm__ volatile("movq %0, %%" #name ::"r"(v) : "memory");                                 \
    }
READ_REGISTER(cr0) READ_REGISTER(cr2) READ_REGISTER(cr3) READ_REGISTER(cr4) READ_REGISTER(cr8)
WRITE_REGISTER(cr0) WRITE_REGISTER(cr2) WRITE_REGISTER(cr3) WRITE_REGISTER(cr4) WRITE_REGISTER(cr8)
READ_REGISTER(dr0) READ_REGISTER(dr1) READ_REGISTER(dr2) READ_REGISTER(dr3) READ_REGISTER(dr6) READ_REGISTER(dr7)
WRITE_REGISTER(dr0) WRITE_REGISTER(dr1) WRITE_REGISTER(dr2) WRITE_REGISTER(dr3) WRITE_REGISTER(dr6) WRITE_REGISTER(dr7)

static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}
static inline void wrmsr(uint32_t msr, uint64_t v)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
static inline uint64_t rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}
static inline uint64_t read_flags(void)
{
    uint64_t v;
    __asm__ volatile("pushfq\n popq %0" : "=r"(v));
    return v;
}
static inline void invlpg(const void *p) { __asm__ volatile("invlpg (%0)" ::"r"(p) : "memory"); }

struct cpuid { uint32_t eax, ebx, ecx, edx; };
static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid r;
    __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "0"(leaf), "2"(subleaf));
    return r;
}

#endif
