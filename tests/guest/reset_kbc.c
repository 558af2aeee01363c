/* A reset through the keyboard controller. GUEST: cpus=1 expect=reset */
#include "chips.h"

int main(void)
{
    print("READY TO RESET\n");
    while (inb(0x64) & 2)
        __asm__ volatile("pause");
    outb(0x64, 0xfe);
    pm_wait_ms(2000);
    print("FAIL: still here\n");
    return 1;
}
