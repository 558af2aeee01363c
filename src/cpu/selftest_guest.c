#include "cpu/selftest_guest.h"

#include <assert.h>
#include <stddef.h>

static_assert(offsetof(struct selftest_memory, swap_old) == 0x18, "as in the assembly");
static_assert(offsetof(struct selftest_memory, port) == 0x38, "as in the assembly");
static_assert(offsetof(struct selftest_memory, has_xsave) == 0x58, "as in the assembly");

/*
 * Loaded at 0x1000, entered in real mode with CS = DS = SS = 0. Memory: page tables at 0x3000-0x5fff
 * (made here), IDT at 0x6000, stack below 0x7ff0, results at 0x8000 (RBX), an aligned cell for
 * CMPXCHG16B at 0x9000, the XSAVE area at 0xa000. `P(label)` is where the label is in the guest.
 */
#define P(label) "(" label " - selftest_guest_start + 0x1000)"
#define STEP(n)  "movb $" #n ", %al\n outb %al, $0xf0\n"

__asm__(
    ".section .rodata\n"
    ".balign 16\n"
    ".global selftest_guest_start, selftest_guest_end, selftest_guest_after_int3\n"
    "selftest_guest_start:\n"
    ".code16\n"
    STEP(1)
    "cli\n"
    "lgdtl " P("1f") "\n"
    "movl %cr0, %eax\n"
    "orb $1, %al\n"
    "movl %eax, %cr0\n"
    "ljmpl $0x08, $" P("2f") "\n"

    ".balign 8\n"
    "3: .quad 0\n"                  /* GDT: null, 32-bit code, data, 64-bit code */
    ".quad 0x00cf9b000000ffff\n"
    ".quad 0x00cf93000000ffff\n"
    ".quad 0x00af9b000000ffff\n"
    "1: .word 31\n .long " P("3b") "\n"

    ".code32\n"
    "2: movw $0x10, %ax\n"
    "movw %ax, %ds\n movw %ax, %es\n movw %ax, %ss\n"
    "movl $0x7ff0, %esp\n"
    STEP(2)
    "movl $0x3000, %edi\n"          /* clear tables and IDT */
    "xorl %eax, %eax\n"
    "movl $0x1000, %ecx\n"
    "cld\n"
    "rep stosl\n"
    "movl $0x4003, 0x3000\n"        /* PML4 -> PDPT -> PD: two 2 MiB pages, RAM and MMIO */
    "movl $0x5003, 0x4000\n"
    "movl $0x000083, 0x5000\n"
    "movl $0x200083, 0x5008\n"
    "movl $0x3000, %eax\n"
    "movl %eax, %cr3\n"
    "movl %cr4, %eax\n"
    "orl $0x620, %eax\n"            /* PAE, OSFXSR, OSXMMEXCPT */
    "movl %eax, %cr4\n"
    "movl $0xc0000080, %ecx\n"      /* EFER.LME */
    "rdmsr\n"
    "orl $0x100, %eax\n"
    "wrmsr\n"
    "movl %cr0, %eax\n"
    "andl $~0x4, %eax\n"            /* not EM; PG, WP, MP */
    "orl $0x80010002, %eax\n"
    "movl %eax, %cr0\n"
    "ljmpl $0x18, $" P("4f") "\n"

    ".code64\n"
    "4: " STEP(3)
    "movl $0x8000, %ebx\n"
    "movl $" P("5f") ", %eax\n"     /* IDT entry 3: 64-bit interrupt gate, selector 0x18 */
    "movw %ax, 0x6030\n"
    "movw $0x18, 0x6032\n"
    "movw $0x8e00, 0x6034\n"
    "shrl $16, %eax\n"
    "movw %ax, 0x6036\n"
    "lidt " P("6f") "\n"
    STEP(4)
    "int3\n"
    "selftest_guest_after_int3:\n"
    "jmp 7f\n"
    "6: .word 0xfff\n .quad 0x6000\n"
    "5: movq (%rsp), %rax\n"
    "subq $0x1000, %rax\n"
    "movq %rax, 0x00(%rbx)\n"
    "iretq\n"

    "7: " STEP(5)
    "movl $2, %eax\n"
    "movd %eax, %xmm0\n"
    "pshufd $0, %xmm0, %xmm0\n"
    "movl $3, %eax\n"
    "movd %eax, %xmm1\n"
    "pshufd $0, %xmm1, %xmm1\n"
    "paddd %xmm1, %xmm0\n"
    "movdqu %xmm0, 0x08(%rbx)\n"

    STEP(6)
    "movl $0x9000, %esi\n"          /* cell = {1, 2}: one exchange that succeeds, one that fails */
    "movq $1, (%rsi)\n"
    "movq $2, 8(%rsi)\n"
    "movq %rbx, %rbp\n"
    "movl $1, %eax\n movl $2, %edx\n"
    "movl $3, %ebx\n movl $4, %ecx\n"
    "lock cmpxchg16b (%rsi)\n"
    "xorl %eax, %eax\n xorl %edx, %edx\n"
    "lock cmpxchg16b (%rsi)\n"
    "movq %rbp, %rbx\n"
    "movq %rax, 0x18(%rbx)\n"
    "movq %rdx, 0x20(%rbx)\n"
    "movups (%rsi), %xmm2\n"
    "movups %xmm2, 0x28(%rbx)\n"

    STEP(7)
    "movq %rbx, %rbp\n"
    "movl $1, %eax\n"
    "xorl %ecx, %ecx\n"
    "cpuid\n"
    "movq %rbp, %rbx\n"
    "btl $26, %ecx\n"
    "jnc 8f\n"
    "movq %cr4, %rax\n"
    "orl $0x40000, %eax\n"          /* OSXSAVE */
    "movq %rax, %cr4\n"
    "xorl %ecx, %ecx\n xorl %edx, %edx\n"
    "movl $3, %eax\n"
    "xsetbv\n"
    "movl $0xa000, %edi\n"
    "pushq %rdi\n"
    "xorl %eax, %eax\n"
    "movl $144, %ecx\n"             /* 576 bytes: legacy area and header */
    "rep stosl\n"
    "popq %rdi\n"
    "movl $3, %eax\n"
    "xsave64 (%rdi)\n"
    "pxor %xmm0, %xmm0\n"
    "xrstor64 (%rdi)\n"
    "movdqu %xmm0, 0x48(%rbx)\n"
    "movq $1, 0x58(%rbx)\n"

    "8: " STEP(8)
    "movl $0xf2, %edx\n"
    "inl %dx, %eax\n"
    "movl %eax, %eax\n"
    "movq %rax, 0x38(%rbx)\n"

    STEP(9)
    "movl $0x200000, %esi\n"
    "movq (%rsi), %rax\n"
    "movq %rax, 0x40(%rbx)\n"
    "notq %rax\n"
    "movq %rax, (%rsi)\n"

    STEP(10)
    "9: hlt\n"
    "jmp 9b\n"
    "selftest_guest_end:\n"
    ".text\n");
