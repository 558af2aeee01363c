/*
 * A multiboot guest that obeys single characters from its serial port, by polling:
 * q powers off, r resets by port CF9h, t ends in a triple fault, x writes 5 to the debug-exit
 * port, k halts for good; anything else comes back. The power button powers off too. It says READY when it starts.
 */
        .code32
        .section .text
        .align 4
header: .long 0x1badb002, 0x10000, -(0x1badb002 + 0x10000)
        .long header, header, 0, 0, start
start:  mov $0x9000, %esp
        mov $ready, %esi
        call print
loop:   mov $0x600, %dx                 /* PM1a status: the power button is bit 8 */
        in %dx, %ax
        test $0x100, %ax
        jnz button
        mov $0x3fd, %dx
        in %dx, %al
        test $1, %al
        jz loop
        mov $0x3f8, %dx
        in %dx, %al
        cmp $'q', %al
        je off
        cmp $'r', %al
        je reset
        cmp $'t', %al
        je triple
        cmp $'x', %al
        je exit
        cmp $'k', %al
        je halt
        out %al, %dx
        jmp loop
button: mov $pressed, %esi
        call print
off:    mov $0x604, %dx                 /* PM1a control: SLP_EN with the type of S5 */
        mov $0x2000, %ax
        out %ax, %dx
        hlt
reset:  mov $0xcf9, %dx
        mov $6, %al
        out %al, %dx
        hlt
triple: lidt no_idt
        int3
halt:   mov $halting, %esi
        call print
        cli
1:      hlt
        jmp 1b
exit:   mov $5, %al
        out %al, $0xf4
        jmp loop
print:  lodsb
        test %al, %al
        jz 1f
        mov $0x3f8, %dx
        out %al, %dx
        jmp print
1:      ret
ready:  .asciz "READY\r\n"
pressed: .asciz "BUTTON\r\n"
halting: .asciz "HALT\r\n"
no_idt: .word 0
        .long 0
