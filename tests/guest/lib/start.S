/* From the multiboot 1 loader (32-bit, paging off) to main() in long mode; and the way into the IDT. */

#define FLAGS 0x00000003 /* page-aligned modules, memory information */

    .section .multiboot, "a"
    .balign 4
    .long 0x1badb002, FLAGS, -(0x1badb002 + FLAGS)

    .section .text
    .code32
    .global _start
_start:
    cli
    cld
    movl $boot_stack_end, %esp
    movl %ebx, boot_info
    /* PML4 0 -> PDPT (supervisor); PML4 2 (USER_BASE) -> the same memory again, for ring 3 */
    movl $boot_pdpt + 3, boot_pml4
    movl $boot_user_pdpt + 7, boot_pml4 + 16
    movl $boot_pd + 3, %eax
    movl $boot_user_pd + 7, %edx
    xorl %ecx, %ecx
1:  movl %eax, boot_pdpt(, %ecx, 8)
    movl %edx, boot_user_pdpt(, %ecx, 8)
    addl $0x1000, %eax
    addl $0x1000, %edx
    incl %ecx
    cmpl $4, %ecx
    jne 1b
    movl $0x83, %eax
    xorl %ecx, %ecx
2:  movl %eax, boot_pd(, %ecx, 8)
    movl %eax, %edx
    orl $4, %edx
    movl %edx, boot_user_pd(, %ecx, 8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $2048, %ecx
    jne 2b

    .global boot_enter_long
boot_enter_long:
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax            /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $0xc0000080, %ecx      /* EFER: LME, NXE, SCE */
    rdmsr
    orl $0x901, %eax
    wrmsr
    movl %cr0, %eax
    andl $~0xc, %eax            /* not EM, TS */
    orl $0x80010022, %eax       /* PG, WP, NE, MP */
    movl %eax, %cr0
    lgdt boot_gdtr
    ljmp $0x08, $3f
    .code64
3:  movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    xorl %ebp, %ebp
    movl boot_info, %edi
    call guest_start
4:  hlt
    jmp 4b

    /* One entry a vector: each pushes an error code, real or 0, and the vector. */
    .balign 16
    .global trap_entries
trap_entries:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) | ((vector >= 10) & (vector <= 14)) | (vector == 17) | (vector == 21) | (vector == 29) | (vector == 30)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbp
    andq $-16, %rsp
    call trap_dispatch
    movq %rbp, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

    /* void user_enter(rip, rsp, rdi, rsi): its catcher resumes at user_resume with user_stack */
    .global user_enter, user_resume
user_enter:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    movq %rsp, user_kernel_rsp(%rip)
    pushq $0x2b
    pushq %rsi
    pushq $0x202
    pushq $0x33
    pushq %rdi
    movq %rdx, %rdi
    movq %rcx, %rsi
    iretq
user_resume:
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    .section .data
    .balign 16
    .global boot_gdt, boot_gdtr
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 08 64-bit code */
    .quad 0x00cf93000000ffff    /* 10 data */
    .quad 0x00cf9b000000ffff    /* 18 32-bit code */
    .quad 0x00cffb000000ffff    /* 20 user 32-bit code */
    .quad 0x00cff3000000ffff    /* 28 user data */
    .quad 0x00affb000000ffff    /* 30 user 64-bit code */
    .quad 0x00009b000000ffff    /* 38 16-bit code */
    .quad 0x000093000000ffff    /* 40 16-bit data */
    .quad 0, 0                  /* 48 TSS, made in guest_start */
    .fill 21, 8, 0
boot_gdtr:
    .word 255
    .quad boot_gdt

    .section .bss
    .balign 4096
    .global boot_pml4, boot_stack_end, user_kernel_rsp
boot_pml4:      .skip 4096
boot_pdpt:      .skip 4096
boot_user_pdpt: .skip 4096
boot_pd:        .skip 4 * 4096
boot_user_pd:   .skip 4 * 4096
boot_stack:     .skip 32768
boot_stack_end:
boot_info:       .skip 8
user_kernel_rsp: .skip 8

    .section .note.GNU-stack, "", @progbits
