/* Ports and memory-mapped I/O in every width, string I/O, and ports nobody answers. GUEST: cpus=1 */
#include "guest.h"

#define PCI_ADDRESS 0xcf8
#define PCI_DATA    0xcfc
#define CMOS_INDEX  0x70
#define SCRATCH     (0x3f8 + 7) /* the UART's scratch register: a byte that stays */

static uint8_t buffer[64] __attribute__((aligned(16)));

static void test_widths(void)
{
    uint32_t id;

    outb(SCRATCH, 0x5a);
    CHECK_EQ(inb(SCRATCH), 0x5a);
    outb(SCRATCH, 0xa5);
    CHECK_EQ(inb(SCRATCH), 0xa5);
    outl(PCI_ADDRESS, 0x80000000);
    CHECK_EQ(inl(PCI_ADDRESS), 0x80000000);
    id = inl(PCI_DATA);
    CHECK(id != 0xffffffff);
    CHECK_EQ(inw(PCI_DATA), id & 0xffff);
    CHECK_EQ(inw(PCI_DATA + 2), id >> 16);
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(inb((uint16_t)(PCI_DATA + i)), id >> (8 * i) & 0xff);
    CHECK_EQ(inb(0x5678), 0xff); /* nobody there */
    CHECK_EQ(inw(0x5678), 0xffff);
    CHECK_EQ(inl(0x5678), 0xffffffff);
    outl(0x5678, 1);
}

static void test_upper_bits(void)
{
    uint64_t rax = 0x1122334455667788;

    outb(SCRATCH, 0x99);
    __asm__ volatile("inb %%dx, %%al" : "+a"(rax) : "d"(SCRATCH));
    CHECK_EQ(rax, 0x1122334455667799); /* only AL */
    rax = 0x1122334455667788;
    __asm__ volatile("inl %%dx, %%eax" : "+a"(rax) : "d"(0x5678));
    CHECK_EQ(rax, 0xffffffff); /* a 32-bit result clears the rest */
}

static void test_strings(void)
{
    void *to = buffer;
    const void *from = buffer;
    uint64_t count = 8;

    memset(buffer, 0x11, sizeof(buffer));
    outb(SCRATCH, 0x42);
    __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(SCRATCH) : "memory");
    CHECK_EQ((uint64_t)to, (uint64_t)buffer + 8);
    CHECK_EQ(count, 0);
    for (unsigned i = 0; i < 8; i++)
        CHECK_EQ(buffer[i], 0x42);
    CHECK_EQ(buffer[8], 0x11);

    for (unsigned i = 0; i < 8; i++)
        buffer[i] = (uint8_t)(0x60 + i);
    count = 8;
    __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(SCRATCH) : "memory");
    CHECK_EQ((uint64_t)from, (uint64_t)buffer + 8);
    CHECK_EQ(inb(SCRATCH), 0x67); /* in order: the last one stays */

    to = buffer + 16;
    count = 3;
    __asm__ volatile("std\n rep insl\n cld" : "+D"(to), "+c"(count) : "d"(PCI_ADDRESS) : "memory");
    CHECK_EQ((uint64_t)to, (uint64_t)buffer + 4);
    CHECK_EQ(*(uint32_t *)(buffer + 8), inl(PCI_ADDRESS));
    CHECK_EQ(*(uint32_t *)(buffer + 16), inl(PCI_ADDRESS));
    count = 0;
    to = buffer;
    buffer[0] = 0x33;
    __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(SCRATCH) : "memory");
    CHECK_EQ(buffer[0], 0x33);
    CHECK_EQ((uint64_t)to, (uint64_t)buffer);
}

/* INS into a page that is not there: nothing is read, registers stay for the restart. */
static void test_string_fault(void)
{
    TRY("movl $4, %%ecx\n rep insb", ::"D"(0x40000000000ull), "d"(SCRATCH) : "rcx", "memory");
    CHECK_TRAP(14, 2);
    CHECK_EQ(trap_last.cr2, 0x40000000000ull);
}

/* The I/O APIC: an index register, and a 32-bit window whose redirection entries can be written. */
static void test_mmio(void)
{
    volatile uint32_t *index = (uint32_t *)0xfec00000, *window = (uint32_t *)0xfec00010;
    uint64_t local = rdmsr(0x1b) & ~0xfffull;
    volatile uint32_t *lapic = (uint32_t *)local;
    uint32_t spurious;

    *index = 0x10 + 2 * 20;
    *window = 0x10055; /* masked, vector 55h */
    CHECK_EQ(*window & 0x100ff, 0x10055);
    *index = 0x11 + 2 * 20;
    *window = 0x03000000;
    CHECK_EQ(*window, 0x03000000);
    *index = 0x10 + 2 * 20;
    CHECK_EQ(*window & 0x100ff, 0x10055);
    CHECK_EQ(*index & 0xff, 0x10 + 2 * 20);
    spurious = lapic[0xf0 / 4];
    lapic[0xf0 / 4] = spurious | 0x1ff;
    CHECK_EQ(lapic[0xf0 / 4] & 0x1ff, 0x1ff);
    /* every way an instruction can reach it */
    lapic[0x80 / 4] = 0x20;
    CHECK_EQ(lapic[0x80 / 4], 0x20);
    __asm__ volatile("movl $0x30, (%0)" ::"r"(local + 0x80) : "memory");
    CHECK_EQ(lapic[0x80 / 4], 0x30);
    __asm__ volatile("orl $0x40, (%0)" ::"r"(local + 0x80) : "memory", "cc");
    CHECK_EQ(lapic[0x80 / 4], 0x70);
    __asm__ volatile("movl $0x50, %%ecx\n xchgl %%ecx, (%0)" ::"r"(local + 0x80) : "rcx", "memory");
    CHECK_EQ(lapic[0x80 / 4], 0x50);
    lapic[0x80 / 4] = 0;
    lapic[0xf0 / 4] = spurious;
}

int main(void)
{
    test_widths();
    test_upper_bits();
    test_strings();
    test_string_fault();
    test_mmio();
    return 0;
}
