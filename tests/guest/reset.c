/* A reset through port CF9h. GUEST: cpus=1 expect=reset */
#include "chips.h"

int main(void)
{
    print("READY TO RESET\n");
    outb(0xcf9, 0x02);
    outb(0xcf9, 0x06);
    pm_wait_ms(2000);
    print("FAIL: still here\n");
    return 1;
}
