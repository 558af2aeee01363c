/* Single steps and the debug registers. SDM vol. 3B chapter 17. GUEST: cpus=1 */
#include "guest.h"

#define DR6_BS (1u << 14)
#define TF     0x100ull

static volatile unsigned steps;
static volatile uint64_t step_rip[16], last_dr6;

static bool on_debug(struct frame *frame)
{
    last_dr6 = read_dr6();
    if (steps < 16)
        step_rip[steps] = frame->rip;
    steps++;
    write_dr6(0xffff0ff0);
    frame->rflags |= 1u << 16; /* RF: go past an instruction breakpoint */
    return true;
}

static void test_single_step(void)
{
    uint64_t first, after;

    steps = 0;
    __asm__ volatile("pushfq\n orq $0x100, (%%rsp)\n popfq\n"
                     "1: nop\n nop\n"
                     "pushfq\n andq $~0x100, (%%rsp)\n popfq\n"
                     "2: leaq 1b(%%rip), %0\n leaq 2b(%%rip), %1"
                     : "=r"(first), "=r"(after)::"memory", "cc");
    /* after each of: nop, nop, pushfq, and, popfq. POPF that sets TF is not itself stepped; the one
     * that clears it is. */
    CHECK_EQ(steps, 5);
    CHECK_EQ(step_rip[0], first + 1);
    CHECK_EQ(step_rip[1], first + 2);
    CHECK_EQ(step_rip[4], after);
    CHECK_EQ(last_dr6 & DR6_BS, DR6_BS);
}

static void test_step_string(void)
{
    static uint8_t bytes[4];

    steps = 0;
    __asm__ volatile("movq %0, %%rdi\n movl $3, %%ecx\n xorl %%eax, %%eax\n"
                     "pushfq\n orq $0x100, (%%rsp)\n popfq\n"
                     "rep stosb\n"
                     "pushfq\n andq $~0x100, (%%rsp)\n popfq\n" ::"r"(bytes)
                     : "rdi", "rcx", "rax", "memory", "cc");
    CHECK_EQ(steps, 6); /* one for each repetition */
}

static void test_breakpoints(void)
{
    static uint32_t watched[4] __attribute__((aligned(16)));
    uint64_t target;

    __asm__ volatile("leaq 3f(%%rip), %0" : "=r"(target));
    write_dr0(target);
    write_dr7(0x402); /* DR0: execution */
    steps = 0;
    __asm__ volatile("nop\n 3: nop\n nop" ::: "memory");
    if (steps) { /* the compiler did not duplicate the label's code */
        CHECK_EQ(steps, 1);
        CHECK_EQ(step_rip[0], target);
        CHECK_EQ(last_dr6 & 0xf, 1);
    }
    write_dr1((uint64_t)&watched[1]);
    write_dr7(0x408 | 1ull << 20 | 3ull << 22); /* DR1: 4-byte writes */
    steps = 0;
    __asm__ volatile("movl %0, %%eax" ::"m"(watched[1]) : "rax");
    CHECK_EQ(steps, 0);
    __asm__ volatile("movl $5, %0\n" : "=m"(watched[0]));
    CHECK_EQ(steps, 0);
    __asm__ volatile("movl $5, %0\n nop" : "=m"(watched[1]));
    CHECK_EQ(steps, 1);
    CHECK_EQ(last_dr6 & 0xf, 2);
    write_dr7(0x408 | 3ull << 20 | 3ull << 22); /* reads too */
    steps = 0;
    __asm__ volatile("movl %0, %%eax\n nop" ::"m"(watched[1]) : "rax");
    CHECK_EQ(steps, 1);
    __asm__ volatile("movb $1, 3+%0\n nop" : "+m"(watched[1])); /* any byte of it */
    CHECK_EQ(steps, 2);
    write_dr7(0x400);
    steps = 0;
    __asm__ volatile("movl $6, %0" : "=m"(watched[1]));
    CHECK_EQ(steps, 0);
}

static void test_registers(void)
{
    write_dr0(0x1234);
    write_dr3(0xffffffff80000000);
    CHECK_EQ(read_dr0(), 0x1234);
    CHECK_EQ(read_dr3(), 0xffffffff80000000);
    CHECK_EQ(read_dr7() & 0x400, 0x400);
    CHECK_EQ(read_dr6() & 0xfffffff0, 0xffff0ff0);
    if (!guest_option("tcg", 0)) {
        TRY("movq %0, %%dr7", ::"r"(1ull << 40));
        CHECK_TRAP(13, 0);
        TRY("movq %0, %%dr6", ::"r"(1ull << 40));
        CHECK_TRAP(13, 0);
    }
    write_dr0(0);
    write_dr3(0);
    TRY(".byte 0xf1", ::: "memory"); /* INT1: no DR6 bit */
}

int main(void)
{
    trap_set_handler(1, on_debug);
    test_single_step();
    test_step_string();
    test_breakpoints();
    test_registers();
    return 0;
}
