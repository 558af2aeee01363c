/* Resets the machine in each way a PC knows, and looks each time whether it came up fresh. A byte of CMOS
 * RAM counts. GUEST: reboot=yes timeout=90 */
#include "guest.h"

#define CMOS_COUNT 0x6f

static uint8_t cmos_read(uint8_t index)
{
    outb(0x70, index);
    return inb(0x71);
}

static void cmos_write(uint8_t index, uint8_t value)
{
    outb(0x70, index);
    outb(0x71, value);
}

static void check_fresh(void)
{
    volatile uint32_t *lapic = (uint32_t *)0xfee00000;

    CHECK_EQ(rdmsr(0x1b) & 0xfffffffffffff400, 0xfee00000); /* enabled or not, but not x2APIC, not moved */
    CHECK_EQ(lapic[0x320 / 4], 0x10000);                    /* the timer's LVT is masked */
    CHECK_EQ(lapic[0x80 / 4], 0);
    CHECK_EQ(lapic[0x380 / 4], 0);
    CHECK_EQ(rdmsr(0xc0000102), 0);
    CHECK_EQ(read_dr7(), 0x400);
    CHECK_EQ(read_cr2(), 0);
    CHECK_EQ(inb(0x3f8 + 7), 0); /* the UART's scratch register */
}

static void make_dirty(void)
{
    volatile uint32_t *lapic = (uint32_t *)0xfee00000;

    lapic[0xf0 / 4] = 0x1ff;
    lapic[0x80 / 4] = 0x30;
    lapic[0x320 / 4] = 0x000ef;
    lapic[0x380 / 4] = 0x7fffffff;
    wrmsr(0xc0000102, 0x1234);
    write_dr7(0x401);
    write_cr2(0x5678);
    outb(0x3f8 + 7, 0x77);
    if (cpuid(1, 0).ecx & 1u << 21)
        wrmsr(0x1b, rdmsr(0x1b) | 0xc00); /* x2APIC */
}

int main(void)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) none = {0, 0};
    uint8_t count = cmos_read(CMOS_COUNT);

    if (count < 0xa0 || count > 0xa3)
        count = 0xa0;
    print("start %d\n", count - 0xa0);
    check_fresh();
    if (count == 0xa3 || checks_wrong)
        return 0;
    make_dirty();
    cmos_write(CMOS_COUNT, (uint8_t)(count + 1));
    if (count == 0xa0)
        __asm__ volatile("lidt %0\n ud2" ::"m"(none)); /* triple fault */
    else if (count == 0xa1)
        outb(0xcf9, 6);
    else
        outb(0x64, 0xfe); /* the keyboard controller's reset line */
    for (;;)
        __asm__ volatile("hlt");
}
