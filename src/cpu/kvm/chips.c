/*
 * The interrupt chips and the interval timer in the kernel: made once, reset with the machine.
 *
 * The saved form of the chips is that of src/chip; turning the kernel's form into it belongs
 * here, as the state table of this device (not there yet: the device has no state table).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "cpu/kvm/vm.h"
#include "x86/arch.h"

struct kvm_chips_device {
    struct device dev;
    struct kvm_vm *kvm; /* borrowed; gone after vm_destroy, when nobody resets any more */
};

/* ISA interrupts reach both the 8259 pair and the I/O APIC. As the ACPI MADT's override says,
 * interrupt 0 (the timer) is I/O APIC pin 2; interrupt 2 is the cascade and reaches nothing. */
static int kvm_route_gsis(struct kvm_vm *kvm)
{
    union {
        struct kvm_irq_routing table;
        uint8_t room[sizeof(struct kvm_irq_routing) +
                     (16 + GSI_COUNT) * sizeof(struct kvm_irq_routing_entry)];
    } routing = {.room = {0}};
    struct kvm_irq_routing_entry *entries = routing.table.entries;
    unsigned count = 0;

    for (unsigned gsi = 0; gsi < GSI_COUNT; gsi++) {
        if (gsi == 2)
            continue;
        if (gsi < 16)
            entries[count++] = (struct kvm_irq_routing_entry){
                .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP,
                .u.irqchip = {gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi % 8}};
        entries[count++] = (struct kvm_irq_routing_entry){
            .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP,
            .u.irqchip = {KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi}};
    }
    routing.table.nr = count;
    return ioctl(kvm->fd, KVM_SET_GSI_ROUTING, &routing) < 0 ? -errno : 0;
}

static int kvm_chips_remember(struct kvm_vm *kvm)
{
    struct kvm_chips *chips = &kvm->reset_chips;

    chips->pic_master.chip_id = KVM_IRQCHIP_PIC_MASTER;
    chips->pic_slave.chip_id = KVM_IRQCHIP_PIC_SLAVE;
    chips->ioapic.chip_id = KVM_IRQCHIP_IOAPIC;
    if (ioctl(kvm->fd, KVM_GET_IRQCHIP, &chips->pic_master) < 0 ||
        ioctl(kvm->fd, KVM_GET_IRQCHIP, &chips->pic_slave) < 0 ||
        ioctl(kvm->fd, KVM_GET_IRQCHIP, &chips->ioapic) < 0 ||
        ioctl(kvm->fd, KVM_GET_PIT2, &chips->pit) < 0)
        return -errno;
    return 0;
}

int kvm_chips_create(struct kvm_vm *kvm, struct error *err)
{
    /* With the speaker port (61h) in the kernel too: channel 2 is timed by polling it. */
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    int ret;

    if (ioctl(kvm->fd, KVM_CREATE_IRQCHIP, 0) < 0 || ioctl(kvm->fd, KVM_CREATE_PIT2, &pit) < 0)
        return error_set(err, -errno, "KVM cannot make its interrupt chips: %s", strerror(errno));
    ret = kvm_route_gsis(kvm);
    if (ret)
        return error_set(err, ret, "KVM refuses the interrupt routing: %s", strerror(-ret));
    ret = kvm_chips_remember(kvm);
    if (ret)
        return error_set(err, ret, "KVM does not show its interrupt chips: %s", strerror(-ret));
    return 0;
}

static void kvm_lapic_reset(struct kvm_vcpu *vcpu)
{
    uint64_t base = APIC_DEFAULT_PHYS | APIC_BASE_ENABLE |
                    (vcpu->vcpu.index == 0 ? APIC_BASE_BSP : 0);

    if (kvm_apic_base_set(vcpu, base) || ioctl(vcpu->fd, KVM_SET_LAPIC, &vcpu->reset_lapic) < 0)
        log_warning("kvm: cannot reset the local APIC of vCPU %u", vcpu->vcpu.index);
}

static void kvm_chips_reset(struct device *dev)
{
    struct kvm_vm *kvm = container_of(dev, struct kvm_chips_device, dev)->kvm;
    struct kvm_chips chips = kvm->reset_chips;

    if (ioctl(kvm->fd, KVM_SET_IRQCHIP, &chips.pic_master) < 0 ||
        ioctl(kvm->fd, KVM_SET_IRQCHIP, &chips.pic_slave) < 0 ||
        ioctl(kvm->fd, KVM_SET_IRQCHIP, &chips.ioapic) < 0 ||
        ioctl(kvm->fd, KVM_SET_PIT2, &chips.pit) < 0)
        log_warning("kvm: cannot reset the interrupt chips: %s", strerror(errno));
    pthread_mutex_lock(&kvm->vcpu_lock);
    for (unsigned i = 0; i < kvm->vm.cpus; i++) {
        if (kvm->vcpus[i])
            kvm_lapic_reset(kvm->vcpus[i]);
    }
    pthread_mutex_unlock(&kvm->vcpu_lock);
}

static void kvm_chips_destroy(struct device *dev)
{
    device_release(dev);
    free(container_of(dev, struct kvm_chips_device, dev));
}

static const struct device_ops kvm_chips_ops = {
    .type = "kvm-irqchip",
    .reset = kvm_chips_reset,
    .destroy = kvm_chips_destroy,
};

int kvm_chips_attach(struct kvm_vm *kvm, struct machine *machine)
{
    struct kvm_chips_device *chips = calloc(1, sizeof(*chips));

    if (!chips)
        return -ENOMEM;
    chips->kvm = kvm;
    device_init(&chips->dev, &kvm_chips_ops, "kvm-irqchip");
    machine_add_device(machine, &chips->dev);
    return 0;
}
