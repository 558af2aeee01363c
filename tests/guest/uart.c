/* The second half of a UART's life, on COM1 in loop back: FIFO, interrupts, modem lines. GUEST: cpus=1 */
#include "chips.h"

#define COM1   0x3f8
#define V_UART 0x54

static volatile unsigned uart_count, uart_iir;

static bool on_uart(struct frame *f)
{
    (void)f;
    uart_iir = inb(COM1 + 2);
    uart_count++;
    apic_write(APIC_EOI, 0);
    return true;
}

int main(void)
{
    uint8_t seen[4];
    unsigned before;

    pic_init(0x40, 0xff, 0xff);
    apic_write(APIC_SVR, 0x1ff);
    trap_set_handler(V_UART, on_uart);
    while ((inb(COM1 + 5) & 0x60) != 0x60)
        __asm__ volatile("pause");
    outb(COM1 + 1, 0);
    outb(COM1 + 7, 0xa5);
    CHECK_EQ(inb(COM1 + 7), 0xa5);
    outb(COM1 + 2, 0x07);
    CHECK_EQ(inb(COM1 + 2) & 0xc1, 0xc1);
    outb(COM1 + 4, 0x1f); /* loop back, all outputs */
    CHECK_EQ(inb(COM1 + 6) & 0xf0, 0xf0);
    outb(COM1 + 4, 0x12);
    CHECK_EQ(inb(COM1 + 6) & 0xf0, 0x10);
    for (unsigned i = 0; i < 4; i++)
        outb(COM1, (uint8_t)(0x30 + i));
    pm_wait_ms(5);
    for (unsigned i = 0; i < 4; i++)
        seen[i] = (inb(COM1 + 5) & 1) ? inb(COM1) : 0;
    outb(COM1 + 4, 0x0b);
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(seen[i], 0x30 + i);
    CHECK_EQ(inb(COM1 + 5) & 1, 0);
    /* The transmitter-empty interrupt through the I/O APIC. */
    ioapic_route(4, V_UART, 0);
    before = uart_count;
    outb(COM1 + 1, 2);
    irq_on();
    for (unsigned i = 0; i < 1000000 && uart_count == before; i++)
        __asm__ volatile("pause");
    irq_off();
    outb(COM1 + 1, 0);
    CHECK_EQ(uart_count, before + 1);
    CHECK_EQ(uart_iir & 0x0f, 2);
    return 0;
}
