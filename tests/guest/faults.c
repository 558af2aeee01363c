/*
 * Every exception that an instruction can raise: vector, error code, where RIP points, IST and stack
 * switch, and a double fault. SDM vol. 3A chapter 6. GUEST: cpus=1
 */
#include "guest.h"

/* The error code of a bad gate: QEMU's emulation puts the vector one bit too high. */
static uint32_t gate_error(unsigned vector)
{
    return vector << (guest_option("tcg", 0) ? 4 : 3) | 2;
}

static void test_simple(void)
{
    TRY("xorl %%ecx, %%ecx\n divl %%ecx", ::: "rax", "rcx", "rdx", "cc");
    CHECK_TRAP(0, 0);
    TRY("movl $0x80000000, %%eax\n cltd\n movl $-1, %%ecx\n idivl %%ecx", ::: "rax", "rcx", "rdx", "cc");
    CHECK_TRAP(0, 0);
    TRY("movq $1, %%rdx\n xorl %%eax, %%eax\n movl $1, %%ecx\n divq %%rcx", ::: "rax", "rcx", "rdx", "cc");
    CHECK_TRAP(0, 0); /* the quotient does not fit */
    TRY("ud2", ::: "memory");
    CHECK_TRAP(6, 0);
    TRY(".byte 0x0f, 0xff, 0xc0", ::: "memory"); /* UD0 */
    CHECK_TRAP(6, 0);
    TRY(".byte 0xf0, 0x90", ::: "memory"); /* LOCK NOP */
    CHECK_TRAP(6, 0);
    TRY(".byte 0xf0, 0x01, 0xc0", ::: "cc"); /* LOCK ADD EAX, EAX: no memory operand */
    CHECK_TRAP(6, 0);
    TRY(".byte 0x06", ::: "memory"); /* PUSH ES is not there in 64-bit mode */
    CHECK_TRAP(6, 0);
}

static void test_software(void)
{
    TRY("int3", ::: "memory");
    CHECK_TRAP(3, 0);
    CHECK_EQ(*(uint8_t *)(trap_last.rip - 1), 0xcc); /* a trap: RIP is after it */
    TRY(".byte 0xcd, 3", ::: "memory"); /* INT 3 in two bytes */
    CHECK_TRAP(3, 0);
    CHECK_EQ(*(uint8_t *)(trap_last.rip - 2), 0xcd);
    TRY("int $0x55", ::: "memory");
    CHECK_TRAP(0x55, 0);
    TRY("int $0xff", ::: "memory");
    CHECK_TRAP(0xff, 0);
    boot_idt[0x55].type &= 0x7fff; /* not present */
    TRY("int $0x55", ::: "memory");
    CHECK_TRAP(11, gate_error(0x55));
    boot_idt[0x55].type = 0; /* not a gate */
    TRY("int $0x55", ::: "memory");
    CHECK_TRAP(13, gate_error(0x55));
    boot_idt[0x55].type = 0x8e00;
    boot_idt[0x55].selector = SEL_DATA;
    TRY("int $0x55", ::: "memory");
    CHECK_TRAP(13, SEL_DATA);
    boot_idt[0x55].selector = 0;
    TRY("int $0x55", ::: "memory");
    CHECK_TRAP(13, 0);
    boot_idt[0x55].selector = SEL_CODE64;
    TRY("int $0x55", ::: "memory");
    CHECK_TRAP(0x55, 0);
}

static void test_segments(void)
{
    uint64_t *slot = &boot_gdt[SEL_FREE / 8];

    TRY("movw %w0, %%ds", ::"r"(0x1000) : "memory"); /* beyond the GDT */
    CHECK_TRAP(13, 0x1000);
    TRY("movw %w0, %%ds", ::"r"(SEL_TSS) : "memory"); /* not a data segment */
    CHECK_TRAP(13, SEL_TSS);
    TRY("movw %w0, %%ss", ::"r"(SEL_USERDS) : "memory"); /* RPL and DPL are not CPL */
    CHECK_TRAP(13, SEL_USERDS & ~3);
    *slot = 0x00cf13000000ffff; /* data, not present */
    TRY("movw %w0, %%ds", ::"r"(SEL_FREE) : "memory");
    CHECK_TRAP(11, SEL_FREE);
    TRY("movw %w0, %%ss", ::"r"(SEL_FREE) : "memory");
    CHECK_TRAP(12, SEL_FREE);
    *slot = 0x00cf92000000ffff; /* present: loading marks it accessed */
    TRY("movw %w0, %%es", ::"r"(SEL_FREE) : "memory");
    CHECK_NO_TRAP();
    CHECK_EQ(*slot >> 40 & 1, 1);
    TRY("movw %w0, %%es\n movw %w0, %%ds", ::"r"(0) : "memory"); /* null is fine for data */
    CHECK_NO_TRAP();
    TRY("movw %w0, %%es\n movw %w0, %%ds", ::"r"(SEL_DATA) : "memory");
    TRY("lldt %w0", ::"r"(SEL_DATA));
    CHECK_TRAP(13, SEL_DATA);
    TRY("ltr %w0", ::"r"(SEL_TSS)); /* busy already */
    CHECK_TRAP(13, SEL_TSS);
    TRY("pushq %0\n pushq $0\n lretq", ::"r"((uint64_t)SEL_DATA));
    CHECK_TRAP(13, SEL_DATA);
}

static void test_general_protection(void)
{
    uint64_t cr4 = read_cr4(), cr0 = read_cr0();

    TRY("movl $0xdeadbeef, %%ecx\n rdmsr", ::: "rax", "rcx", "rdx");
    CHECK_TRAP(13, 0);
    TRY("wrmsr", ::"c"(0xc0000080), "a"(~0u), "d"(~0u)); /* reserved bits of EFER */
    CHECK_TRAP(13, 0);
    TRY("wrmsr", ::"c"(0xc0000082), "a"(0), "d"(0x800000)); /* not canonical */
    CHECK_TRAP(13, 0);
    TRY("movq %0, %%cr4", ::"r"(cr4 | 1ull << 31));
    CHECK_TRAP(13, 0);
    TRY("movq %0, %%cr4", ::"r"(cr4 & ~0x20ull)); /* PAE may not go in long mode */
    CHECK_TRAP(13, 0);
    TRY("movq %0, %%cr0", ::"r"(cr0 & ~1ull)); /* PG without PE */
    CHECK_TRAP(13, 0);
    TRY("movq %0, %%cr0", ::"r"((cr0 | 1ull << 29) & ~(1ull << 30))); /* NW without CD */
    CHECK_TRAP(13, 0);
    TRY("movq %0, %%cr0", ::"r"(cr0 | 1ull << 40));
    CHECK_TRAP(13, 0);
    TRY("movq %0, %%cr8", ::"r"(0x10ull));
    CHECK_TRAP(13, 0);
    TRY(".byte 0x66, 0x0f, 0x6f, 0x41, 0x01", ::"c"(boot_gdt)); /* MOVDQA, misaligned */
    CHECK_TRAP(13, 0);
    CHECK_EQ(read_cr0(), cr0);
    CHECK_EQ(read_cr4(), cr4);
}

/* Ring 3 code: position independent, at its USER alias. */
#define USER_CODE(name, code)                                                                      \
    extern const uint8_t name[];                                                                   \
    __asm__(".text\n" #name ": " code "\n int $0x80\n")
USER_CODE(user_hlt, "hlt");
USER_CODE(user_cli, "cli");
USER_CODE(user_in, "inb $0x80, %al");
USER_CODE(user_cr0, "movq %cr0, %rax");
USER_CODE(user_lgdt, "lgdt (%rsp)");
USER_CODE(user_rdmsr, "rdmsr");
USER_CODE(user_int, "int $0x55");
USER_CODE(user_int3, "int3");
USER_CODE(user_nothing, "movl $7, %eax");
USER_CODE(user_align, "pushfq\n orl $0x40000, (%rsp)\n popfq\n movl 1(%rsp), %eax");
USER_CODE(user_popf, "pushfq\n orl $0x3200, (%rsp)\n andl $~0x200, (%rsp)\n popfq\n pushfq\n popq %rax");

static void test_user(void)
{
    user_run(user_nothing, 0, 0);
    CHECK_EQ(trap_last.vector, 0x80);
    CHECK_EQ(trap_last.rax, 7);
    CHECK_EQ(trap_last.cs, SEL_USER64);
    user_run(user_hlt, 0, 0);
    CHECK_TRAP(13, 0);
    CHECK_EQ(trap_last.rip, USER(user_hlt));
    user_run(user_cli, 0, 0);
    CHECK_TRAP(13, 0);
    user_run(user_in, 0, 0);
    CHECK_TRAP(13, 0);
    user_run(user_cr0, 0, 0);
    CHECK_TRAP(13, 0);
    user_run(user_lgdt, 0, 0);
    CHECK_TRAP(13, 0);
    user_run(user_rdmsr, 0, 0);
    CHECK_TRAP(13, 0);
    user_run(user_int, 0, 0); /* the gate's DPL is 0 */
    CHECK_TRAP(13, gate_error(0x55));
    user_run(user_int3, 0, 0); /* this one's is 3 */
    CHECK_TRAP(3, 0);
    user_run(user_popf, 0, 0); /* IF and IOPL are not ring 3's to change, silently */
    CHECK_EQ(trap_last.vector, 0x80);
    CHECK_EQ(trap_last.rax & 0x3200, 0x200);
    write_cr0(read_cr0() | 1u << 18);
    user_run(user_align, 0, 0);
    if (!guest_option("tcg", 0)) /* QEMU's emulation knows no alignment check */
        CHECK_TRAP(17, 0);
    write_cr0(read_cr0() & ~(1ull << 18));
    user_run(user_align, 0, 0);
    CHECK_EQ(trap_last.vector, 0x80);
}

static volatile unsigned nested;
static bool count_and_fault(struct frame *frame)
{
    (void)frame;
    nested++;
    return false;
}

/* #GP while the #UD gate is unusable: contributory twice makes a double fault, on its own stack. */
static void test_double_fault(void)
{
    struct gate ud = boot_idt[6], gp = boot_idt[13];

    boot_idt[13].type = 0;
    TRY("movq (%0), %%rax", ::"r"(0x800000000000ull) : "rax"); /* not canonical */
    CHECK_TRAP(8, 0);
    boot_idt[13] = gp;
    boot_idt[6].type = 0; /* #UD is benign: its bad gate is a plain #GP */
    trap_set_handler(13, count_and_fault);
    TRY("ud2", ::: "memory");
    CHECK_EQ(trap_last.vector, 13);
    CHECK_EQ(trap_last.error & ~1u, gate_error(6)); /* EXT: by vendor */
    CHECK_EQ(nested, 1);
    trap_set_handler(13, NULL);
    boot_idt[6] = ud;
}

int main(void)
{
    test_simple();
    test_software();
    test_segments();
    if (!guest_option("tcg", 0)) /* QEMU's emulation checks none of this */
        test_general_protection();
    test_user();
    test_double_fault();
    return 0;
}
