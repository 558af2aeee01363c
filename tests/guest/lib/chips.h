/* The interrupt and time chips as guests use them: local APIC, I/O APIC, 8259, 8254, ACPI timer. */
#ifndef GUEST_CHIPS_H
#define GUEST_CHIPS_H

#include "guest.h"

#define APIC_BASE   0xfee00000ul
#define IOAPIC_BASE 0xfec00000ul
#define PM_BASE     0x600
#define PM_HZ       3579545u

#define APIC_ID    0x20
#define APIC_TPR   0x80
#define APIC_PPR   0xa0
#define APIC_EOI   0xb0
#define APIC_LDR   0xd0
#define APIC_DFR   0xe0
#define APIC_SVR   0xf0
#define APIC_ISR   0x100
#define APIC_IRR   0x200
#define APIC_ICR   0x300
#define APIC_ICR2  0x310
#define APIC_TIMER 0x320
#define APIC_LINT0 0x350
#define APIC_LINT1 0x360
#define APIC_TMICT 0x380
#define APIC_TMCCT 0x390
#define APIC_TDCR  0x3e0

#define MSR_APIC_BASE    0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC       0x800

static inline uint32_t apic_read(unsigned reg)
{
    return *(volatile uint32_t *)(APIC_BASE + reg);
}

static inline void apic_write(unsigned reg, uint32_t v)
{
    *(volatile uint32_t *)(APIC_BASE + reg) = v;
}

/* To physical APIC id `dest`; waits until it is accepted. */
static inline void apic_ipi(unsigned dest, uint32_t command)
{
    apic_write(APIC_ICR2, dest << 24);
    apic_write(APIC_ICR, command);
    while (apic_read(APIC_ICR) & 0x1000)
        __asm__ volatile("pause");
}

static inline uint32_t ioapic_read(unsigned reg)
{
    *(volatile uint32_t *)IOAPIC_BASE = reg;
    return *(volatile uint32_t *)(IOAPIC_BASE + 0x10);
}

static inline void ioapic_write(unsigned reg, uint32_t v)
{
    *(volatile uint32_t *)IOAPIC_BASE = reg;
    *(volatile uint32_t *)(IOAPIC_BASE + 0x10) = v;
}

static inline void ioapic_route(unsigned pin, uint32_t low, unsigned dest)
{
    ioapic_write(0x10 + 2 * pin, 0x10000);
    ioapic_write(0x11 + 2 * pin, dest << 24);
    ioapic_write(0x10 + 2 * pin, low);
}

/* Vectors from `base`; both chips' masks as given. */
static inline void pic_init(uint8_t base, uint8_t mask1, uint8_t mask2)
{
    outb(0x20, 0x11);
    outb(0x21, base);
    outb(0x21, 4);
    outb(0x21, 1);
    outb(0xa0, 0x11);
    outb(0xa1, (uint8_t)(base + 8));
    outb(0xa1, 2);
    outb(0xa1, 1);
    outb(0x21, mask1);
    outb(0xa1, mask2);
}

static inline void pit_program(unsigned channel, unsigned mode, unsigned count)
{
    outb(0x43, (uint8_t)(channel << 6 | 0x30 | mode << 1));
    outb((uint16_t)(0x40 + channel), (uint8_t)count);
    outb((uint16_t)(0x40 + channel), (uint8_t)(count >> 8));
}

/* Host time by the PM timer, in its ticks; 24 bits are enough for what is measured here (4.6 s). */
static inline uint32_t pm_ticks(void)
{
    return inl(PM_BASE + 8) & 0xffffff;
}

static inline uint32_t pm_since(uint32_t start)
{
    return (pm_ticks() - start) & 0xffffff;
}

static inline void pm_wait_ms(unsigned ms)
{
    uint32_t start = pm_ticks();

    while (pm_since(start) < (uint64_t)PM_HZ * ms / 1000)
        __asm__ volatile("pause");
}

static inline void irq_on(void)
{
    __asm__ volatile("sti" ::: "memory");
}

static inline void irq_off(void)
{
    __asm__ volatile("cli" ::: "memory");
}

/* Waits with HLT, interrupts on, until *counter reaches `value` or about 3 s have passed: true if it did. */
static inline bool irq_wait(volatile unsigned *counter, unsigned value)
{
    uint32_t start = pm_ticks();

    while (*counter < value && pm_since(start) < 3 * PM_HZ) {
        irq_off();
        if (*counter < value)
            __asm__ volatile("sti\n hlt" ::: "memory");
    }
    irq_on();
    return *counter >= value;
}

#endif
