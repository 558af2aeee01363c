/*
 * Any sequence of register accesses, pin changes and pauses on all chips of one machine must end:
 * no crash, no overrun, no endless timer. Four bytes of input make one step.
 */
#include <string.h>

#include "../unit/chip/fake_time.h"
#include "chip/acpi_pm.h"
#include "chip/i8254.h"
#include "chip/i8259.h"
#include "chip/ioapic.h"
#include "chip/lapic.h"
#include "chip/mc146818.h"
#include "device/debug_exit.h"
#include "device/i8042.h"
#include "device/uart16550.h"
#include "x86/arch.h"

#define CPUS 3u
#define PM_BASE 0x600u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct bench {
    struct machine *machine;
    struct lapic_group *lapics;
    struct ioapic *ioapic;
    struct i8259 *pic;
    struct uart16550 *uart;
};

static const uint16_t ports[] = {
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71, 0x72, 0x73,
    0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x60, 0x64, 0xf4,
};

static void pin_set(void *opaque, unsigned number, int level)
{
    struct bench *b = opaque;

    if (number < 16)
        i8259_set(b->pic, number, level);
    ioapic_set(b->ioapic, number, level);
}

static struct irq_line pin(struct bench *b, unsigned number)
{
    return (struct irq_line){.set = pin_set, .opaque = b, .number = number};
}

static void bench_init(struct bench *b)
{
    struct uart16550_sink sink = {0};
    struct mc146818 *rtc;
    struct acpi_pm *pm;

    BUG_ON(machine_create(&b->machine));
    BUG_ON(lapic_group_create(b->machine, CPUS, 2000000, &b->lapics));
    BUG_ON(ioapic_create(b->machine, b->lapics, &b->ioapic));
    BUG_ON(i8259_create(b->machine, b->lapics, &b->pic));
    BUG_ON(i8254_create(b->machine, pin(b, 0)));
    BUG_ON(mc146818_create(b->machine, pin(b, 8), &rtc));
    BUG_ON(acpi_pm_create(b->machine, PM_BASE, pin(b, 9), &pm));
    BUG_ON(uart16550_create(b->machine, 0x3f8, pin(b, 4), &sink, "serial0", &b->uart));
    BUG_ON(i8042_create(b->machine, pin(b, 1), pin(b, 12)));
    BUG_ON(debug_exit_create(b->machine));
}

static void access_bus(struct bench *b, enum bus_space space, uint64_t addr, unsigned bits,
                       uint64_t value)
{
    unsigned size = 1u << (bits & 3);

    if (space == BUS_PORT && size == 8)
        size = 4;
    if (bits & 4)
        bus_read(b->machine->bus, space, addr, size);
    else
        bus_write(b->machine->bus, space, addr, size, value);
}

static void access_lapic(struct bench *b, unsigned which, uint8_t reg, unsigned bits, uint64_t value)
{
    void *apic = lapic_group_apic(b->lapics, which % CPUS);

    if (bits & 4)
        lapic_ops.mmio_read(apic, (uint32_t)reg << 4 | (bits & 0xb), 1u << (bits & 3));
    else
        lapic_ops.mmio_write(apic, (uint32_t)reg << 4, 4, value);
    if (lapic_ops.has_interrupt(apic))
        lapic_ops.accept_interrupt(apic);
    lapic_ops.timer_poll(apic);
}

static void access_msr(struct bench *b, unsigned which, uint8_t reg, uint64_t value)
{
    void *apic = lapic_group_apic(b->lapics, which % CPUS);
    uint64_t old;

    if (reg == 0) {
        (void)lapic_ops.msr_write(apic, MSR_IA32_APIC_BASE, APIC_DEFAULT_PHYS | (value & 0xfff));
        return;
    }
    (void)lapic_ops.msr_read(apic, MSR_X2APIC_FIRST + reg, &old);
    (void)lapic_ops.msr_write(apic, MSR_X2APIC_FIRST + reg, value);
    (void)lapic_ops.msr_write(apic, MSR_IA32_TSC_DEADLINE, value << 32);
}

static void step(struct bench *b, const uint8_t *s)
{
    uint64_t value = (uint64_t)s[3] * 0x0101010101010101ull;

    switch (s[0] & 7) {
    case 0:
    case 1: access_bus(b, BUS_PORT, ports[s[1] % ARRAY_SIZE(ports)], s[2] & 4, s[3]); break;
    case 2: access_bus(b, BUS_PORT, PM_BASE + (s[1] & 0x7f), s[2], value); break;
    case 3: access_bus(b, BUS_MEMORY, IOAPIC_BASE + (s[1] & 0x7f), s[2], s[3] | value << 8); break;
    case 4: access_lapic(b, s[0] >> 3, s[1], s[2], (uint64_t)s[2] << 8 | s[3]); break;
    case 5: access_msr(b, s[0] >> 3, s[1], (uint64_t)s[2] << 8 | s[3]); break;
    case 6:
        pin_set(b, s[1] % GSI_COUNT, s[2] & 1);
        if (s[2] & 2)
            lapic_group_msi(b->lapics, 0xfee00000u | (uint64_t)s[1] << 12 | (s[2] & 0xc), value & 0xffff);
        (void)uart16550_input(b->uart, s, s[2] & 3);
        break;
    default: fake_time_pass((uint64_t)s[1] << (s[2] & 15)); break; /* up to 8 ms */
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bench b;

    fake_time.now = 1000 * NSEC_PER_SEC;
    fake_time.wall = 1798761590ull * NSEC_PER_SEC;
    bench_init(&b);
    for (size_t i = 0; i + 4 <= size && i < 4096; i += 4)
        step(&b, data + i);
    machine_reset_devices(b.machine);
    machine_destroy(b.machine);
    return 0;
}
