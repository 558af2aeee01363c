/* ACPI: the PM timer runs, and S5 ends the machine. GUEST: cpus=1 expect=poweroff */
#include "chips.h"

int main(void)
{
    uint32_t start = pm_ticks();
    uint64_t tsc = rdtsc();

    while (pm_since(start) < PM_HZ / 100)
        __asm__ volatile("pause");
    CHECK(rdtsc() > tsc);
    CHECK_EQ(inw(PM_BASE + 4) & (1u << 13), 0);
    if (checks_wrong)
        return 1;
    print("READY TO POWER OFF\n");
    outw(PM_BASE + 4, 0u << 10 | 1u << 13);
    pm_wait_ms(2000);
    print("still here\n");
    return 1;
}
