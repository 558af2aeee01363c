/* The smallest guest: prints, and knows which processor it is on. GUEST: cpus=1 */
#include "guest.h"

int main(void)
{
    struct cpuid vendor = cpuid(0, 0);
    char name[13] = {0};

    memcpy(name, &vendor.ebx, 4);
    memcpy(name + 4, &vendor.edx, 4);
    memcpy(name + 8, &vendor.ecx, 4);
    print("hello from a guest on %s, command line '%s'\n", name, guest_command_line);
    CHECK((rdmsr(0xc0000080) & 0x500) == 0x500);
    CHECK_EQ(guest_option("answer", 42), 42);
    TRY("ud2", :::"memory");
    CHECK_TRAP(6, 0);
    return 0;
}
