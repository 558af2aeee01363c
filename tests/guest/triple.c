/* A fault that cannot be delivered, nor its double fault: the machine resets. GUEST: expect=reset */
#include "guest.h"

int main(void)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) none = {0, 0};

    print("READY TO RESET\n");
    __asm__ volatile("lidt %0\n ud2" ::"m"(none));
    print("FAIL: still here\n");
    return 1;
}
