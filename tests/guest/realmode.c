/*
 * Leaves long mode: 32-bit protected mode with 32-bit and PAE paging, 16-bit protected mode, real
 * mode, virtual-8086 mode and hardware task switches, in one walk that reports by bits. The walk
 * is assembly (lib has none of these modes); SDM vol. 3A chapters 4, 7, 20. GUEST: cpus=1
 */
#include "guest.h"

#define SEL_TSS_A 0x60 /* the 32-bit TSS of the walk */
#define SEL_TSS_B 0x68 /* the task switched to */
#define SEL_TSS_V 0x70 /* whose ring 0 stack virtual-8086 mode uses */
#define SEL_GATE  0x78 /* a task gate's TSS is B again, by IDT entry 0x60 */

struct tss32 {
    uint32_t link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags;
    uint32_t eax, ecx, edx, ebx, esp, ebp, esi, edi;
    uint32_t es, cs, ss, ds, fs, gs, ldt, trap_map;
};

uint32_t mode_walk(void);
uint32_t walk_results[16]; /* filled in by the walk; see main() */
struct tss32 tss_a, tss_b;
uint32_t walk_idt[256][2];
uint8_t task_stack[1024], v86_stack0[1024];
uint32_t walk_pd[1024] __attribute__((aligned(4096)));
uint64_t walk_pdpt[4] __attribute__((aligned(4096)));
uint64_t walk_pae_pd[512] __attribute__((aligned(4096)));
extern const uint8_t walk_task_b[], walk_int30[], walk_gp[], walk_int31[];
extern const uint8_t low_start[], low_end[], low_handler[];

#define LOW 0x9000u /* where the code for real and virtual-8086 mode is copied */

static uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t type, uint32_t flags)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)type << 40 |
           (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;
}

static uint32_t low32(const void *p) { return (uint32_t)(uintptr_t)p; }

static void set_gate(unsigned vector, const void *code, uint32_t type)
{
    walk_idt[vector][0] = (low32(code) & 0xffff) | SEL_CODE32 << 16;
    walk_idt[vector][1] = (low32(code) & 0xffff0000) | type << 8;
}

/* A pointer that the compiler does not know to be next to NULL. */
static void *low_memory(uint64_t address)
{
    void *p;

    __asm__("" : "=r"(p) : "0"(address));
    return p;
}

static void prepare(void)
{
    /* 32-bit paging: 4 MiB pages, identity, and linear 1 GiB is physical 0 */
    for (uint32_t i = 0; i < 1024; i++)
        walk_pd[i] = i << 22 | 0x83;
    walk_pd[256] = 0x87; /* for ring 3 too */
    walk_pd[0] |= 4;     /* virtual-8086 mode is ring 3 */
    /* PAE: the first and second GiB */
    walk_pdpt[0] = walk_pdpt[1] = low32(walk_pae_pd) | 1;
    for (uint32_t i = 0; i < 512; i++)
        walk_pae_pd[i] = (uint64_t)i << 21 | 0x83;
    boot_gdt[SEL_TSS_A / 8] = descriptor(low32(&tss_a), sizeof(tss_a) - 1, 0x89, 0);
    boot_gdt[SEL_TSS_B / 8] = descriptor(low32(&tss_b), sizeof(tss_b) - 1, 0x89, 0);
    tss_a.esp0 = low32(v86_stack0 + sizeof(v86_stack0));
    tss_a.ss0 = SEL_DATA;
    tss_a.trap_map = sizeof(tss_a) << 16;
    tss_a.cr3 = tss_b.cr3 = low32(walk_pd);
    tss_b.eip = low32(walk_task_b);
    tss_b.eflags = 2;
    tss_b.esp = low32(task_stack + sizeof(task_stack));
    tss_b.esi = 0x600df00d;
    tss_b.cs = SEL_CODE32;
    tss_b.ss = tss_b.ds = tss_b.es = tss_b.fs = tss_b.gs = SEL_DATA;
    tss_b.trap_map = sizeof(tss_b) << 16;
    set_gate(13, walk_gp, 0x8e);
    set_gate(0x30, walk_int30, 0xee);
    set_gate(0x31, walk_int31, 0x8e);
    walk_idt[0x60][0] = SEL_TSS_B << 16; /* a task gate */
    walk_idt[0x60][1] = 0x8500;
    memcpy(low_memory(LOW), low_start, (size_t)(low_end - low_start));
    *(uint32_t *)low_memory(0x20 * 4) = LOW + (uint32_t)(low_handler - low_start);
}

int main(void)
{
    prepare();
    mode_walk();
    CHECK_EQ(walk_results[0], 0x32323232); /* 32-bit paging: a word read through the alias at 1 GiB */
    CHECK_EQ(walk_results[1], 0x9a9a9a9a); /* the same with PAE paging */
    CHECK_EQ(walk_results[2], 0x600df00d); /* task B ran with its registers */
    CHECK_EQ(walk_results[3], SEL_TSS_A);  /* and was linked to its caller by CALL */
    CHECK_EQ(walk_results[4], 2);          /* it ran once by CALL, once by the task gate */
    CHECK_EQ(walk_results[5], 0x5678);     /* real mode: an addition in 16 bits */
    CHECK_EQ(walk_results[6], 0x2020);     /* INT 20h through the real-mode table */
    CHECK_EQ(walk_results[7], 0x00ffabcd); /* big real mode is 64 KiB again: segment arithmetic */
    CHECK_EQ(walk_results[8], 0x8086);     /* virtual-8086 mode ran */
    CHECK_EQ(walk_results[9] & 0x20000, 0x20000); /* EFLAGS.VM on its stack frame */
    CHECK_EQ(walk_results[10], 0x31);      /* 32-bit interrupt through a 32-bit IDT */
    CHECK_EQ(walk_results[11], 1);         /* CLI in virtual-8086 mode with IOPL 0 is #GP */
    TRY("ud2", ::: "memory"); /* long mode is whole again */
    CHECK_TRAP(6, 0);
    return 0;
}

__asm__(
    ".text\n"
    ".code64\n"
    "mode_walk:\n"
    "pushq %rbx\n pushq %rbp\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    "movq %rsp, walk_rsp(%rip)\n"
    "sidt walk_idtr64(%rip)\n"
    "ljmpl *walk_to32(%rip)\n"
    "walk_to32: .long walk32\n .word 0x18\n"

    ".code32\n"
    "walk32:\n"
    "movw $0x10, %ax\n movw %ax, %ds\n movw %ax, %es\n movw %ax, %ss\n"
    "movw %ax, %fs\n movw %ax, %gs\n"
    "movl %cr0, %eax\n andl $0x7fffffff, %eax\n movl %eax, %cr0\n" /* paging off: leaves long mode */
    "movl $0xc0000080, %ecx\n rdmsr\n andl $~0x100, %eax\n wrmsr\n"
    "lidt walk_idtr32\n"
    "int $0x31\n"

    /* 32-bit paging with 4 MiB pages */
    "movl %cr4, %eax\n andl $~0x20, %eax\n orl $0x10, %eax\n movl %eax, %cr4\n"
    "movl $walk_pd, %eax\n movl %eax, %cr3\n"
    "movl %cr0, %eax\n orl $0x80000000, %eax\n movl %eax, %cr0\n"
    "jmp 1f\n"
    "1: movl $0x32323232, walk_scratch\n"
    "movl walk_scratch + 0x40000000, %eax\n"
    "movl %eax, walk_results\n"

    /* tasks: CALL to a TSS, then through a task gate */
    "movw $0x60, %ax\n ltr %ax\n"
    "lcall $0x68, $0\n"
    "int $0x60\n"

    /* virtual-8086 mode: IRET to it; it ends by INT 30h (IOPL 3) */
    "movl %esp, walk_esp\n"
    "pushl $0\n pushl $0\n pushl $0\n pushl $0\n" /* GS, FS, DS, ES */
    "pushl $0\n pushl $0x8ff0\n"                  /* SS:ESP */
    "pushl $0x23002\n"                            /* VM, IOPL 3 */
    "pushl $0\n pushl $(0x9000 + low_v86 - low_start)\n"
    "iretl\n"
    "walk_int30:\n" /* from virtual-8086 mode: EFLAGS is third on the ring 0 stack */
    "movw $0x10, %ax\n movw %ax, %ds\n movw %ax, %es\n"
    "movl 8(%esp), %eax\n movl %eax, walk_results + 36\n"
    "cmpl $0, walk_phase\n jne walk_pae\n"
    "movl $1, walk_phase\n"
    "andl $~0x3000, 8(%esp)\n" /* go on with IOPL 0: the next CLI faults */
    "iretl\n"
    "walk_gp:\n"
    "movw $0x10, %ax\n movw %ax, %ds\n movw %ax, %es\n"
    "movl walk_phase, %eax\n movl %eax, walk_results + 44\n"

    "walk_pae:\n"
    "movl walk_esp, %esp\n"
    "movl %cr0, %eax\n andl $0x7fffffff, %eax\n movl %eax, %cr0\n"
    "movl %cr4, %eax\n orl $0x20, %eax\n movl %eax, %cr4\n"
    "movl $walk_pdpt, %eax\n movl %eax, %cr3\n"
    "movl %cr0, %eax\n orl $0x80000000, %eax\n movl %eax, %cr0\n"
    "jmp 1f\n"
    "1: movl $0x9a9a9a9a, walk_scratch\n"
    "movl walk_scratch + 0x40000000, %eax\n"
    "movl %eax, walk_results + 4\n"
    "movl %cr0, %eax\n andl $0x7fffffff, %eax\n movl %eax, %cr0\n"

    /* real mode */
    "lidt walk_idtr16\n"
    "ljmp $0x38, $(0x9000 + low_protected16 - low_start)\n"

    "walk_back:\n" /* from real mode, in 32-bit protected mode again */
    "movw $0x10, %ax\n movw %ax, %ds\n movw %ax, %es\n movw %ax, %ss\n"
    "movw %ax, %fs\n movw %ax, %gs\n"
    "movl $boot_pml4, %eax\n movl %eax, %cr3\n"
    "movl $0xc0000080, %ecx\n rdmsr\n orl $0x100, %eax\n wrmsr\n"
    "movl %cr0, %eax\n orl $0x80000000, %eax\n movl %eax, %cr0\n"
    "ljmp $0x08, $2f\n"
    ".code64\n"
    "2: movw $0x10, %ax\n movw %ax, %ds\n movw %ax, %es\n movw %ax, %ss\n"
    "lidt walk_idtr64(%rip)\n"
    "andl $~0x200, boot_gdt + 0x4c(%rip)\n" /* the 64-bit TSS: not busy */
    "movw $0x48, %ax\n ltr %ax\n"
    "movq walk_rsp(%rip), %rsp\n"
    "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbp\n popq %rbx\n"
    "ret\n"

    ".code32\n"
    "walk_int31: movl $0x31, walk_results + 40\n iretl\n"
    "walk_task_b:\n"
    "movl %esi, walk_results + 8\n"
    "movzwl tss_b, %eax\n movl %eax, walk_results + 12\n"
    "incl walk_results + 16\n"
    "iretl\n" /* NT is set: back to the caller's task */
    "jmp walk_task_b\n"

    /* copied to 0x9000 */
    ".section .rodata\n"
    "low_start:\n"
    ".code16\n"
    "low_protected16:\n"
    "movw $0x40, %ax\n movw %ax, %ds\n movw %ax, %es\n movw %ax, %ss\n"
    "movl %cr0, %eax\n andl $~1, %eax\n movl %eax, %cr0\n"
    "ljmp $0, $(0x9000 + low_real - low_start)\n"
    "low_real:\n"
    "xorw %ax, %ax\n movw %ax, %ds\n movw %ax, %es\n movw %ax, %ss\n movw $0x8ff0, %sp\n"
    "movw $0x1234, %ax\n addw $0x4444, %ax\n movw %ax, 0x8800\n"
    "int $0x20\n"
    "movw %ax, 0x8802\n"
    "movw $0x0fff, %bx\n movw %bx, %ds\n" /* 0fff:0010 is linear 10000 */
    "movw $0xabcd, 0x10\n"
    "movw $0x1000, %bx\n movw %bx, %es\n"
    "movw %es:0, %ax\n"
    "xorw %bx, %bx\n movw %bx, %ds\n movw %bx, %es\n"
    "movw %ax, 0x8804\n"
    "movl %cr0, %eax\n orl $1, %eax\n movl %eax, %cr0\n"
    "ljmpl $0x18, $low_finish_32\n"
    "low_handler: movw $0x2020, %ax\n iretw\n"
    "low_v86:\n" /* CS 0; offset counts from linear 0 */
    "movw $0x8086, 0x8806\n"
    "cli\n sti\n"       /* IOPL 3: allowed */
    "int $0x30\n"
    "cli\n"             /* IOPL 0 now: #GP */
    "jmp .\n"
    ".balign 4\n"
    "low_end:\n"
    ".text\n"
    ".code32\n"
    "low_finish_32:\n"
    "movw $0x10, %ax\n movw %ax, %ds\n"
    "movzwl 0x8800, %eax\n movl %eax, walk_results + 20\n"
    "movzwl 0x8802, %eax\n movl %eax, walk_results + 24\n"
    "movzwl 0x8804, %eax\n orl $0x00ff0000, %eax\n movl %eax, walk_results + 28\n"
    "movzwl 0x8806, %eax\n movl %eax, walk_results + 32\n"
    "jmp walk_back\n"
    ".data\n"
    ".balign 8\n"
    "walk_rsp: .quad 0\n"
    "walk_esp: .long 0\n"
    "walk_phase: .long 0\n"
    "walk_scratch: .long 0\n"
    "walk_idtr64: .word 0\n .quad 0\n"
    "walk_idtr32: .word 0x7ff\n .long walk_idt\n"
    "walk_idtr16: .word 0x3ff\n .long 0\n"
    ".text\n"
    ".code64\n");
