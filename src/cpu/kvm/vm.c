#include "cpu/kvm/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/log.h"
#include "cpu/kvm/kvm.h"

/* Intel hosts without unrestricted guest need four pages of the guest's address space
 * (api.rst 4.35, 4.40). Between the MSI window and the firmware, where no board puts anything. */
#define KVM_IDENTITY_MAP 0xfeffc000ull
#define KVM_TSS          0xfeffd000ull

int kvm_open(struct error *err)
{
    int fd = open(KVM_DEVICE, O_RDWR | O_CLOEXEC);
    int code, version;

    if (fd < 0) {
        code = -errno;
        return error_set(err, code, code == -ENOENT ? KVM_DEVICE " does not exist"
                                                    : "cannot open " KVM_DEVICE ": %s",
                         strerror(-code));
    }
    version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION) {
        close(fd);
        return error_set(err, -ENOTSUP, KVM_DEVICE " speaks version %d of its interface, not %d",
                         version, KVM_API_VERSION);
    }
    return fd;
}

int kvm_has(int fd, int capability)
{
    int answer = ioctl(fd, KVM_CHECK_EXTENSION, capability);

    return answer < 0 ? 0 : answer;
}

static int kvm_map_memory(struct kvm_vm *kvm, const struct mem *mem, struct error *err)
{
    for (unsigned i = 0; i < mem->slot_count; i++) {
        const struct mem_slot *slot = &mem->slots[i];
        struct kvm_userspace_memory_region region = {
            .slot = i,
            .flags = slot->readonly ? KVM_MEM_READONLY : 0,
            .guest_phys_addr = slot->gpa,
            .memory_size = slot->size,
            .userspace_addr = (uint64_t)(uintptr_t)slot->host,
        };

        if (ioctl(kvm->fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
            return error_set(err, -errno, "KVM refuses guest memory of %llu bytes at 0x%llx: %s",
                             (unsigned long long)slot->size, (unsigned long long)slot->gpa,
                             strerror(errno));
    }
    return 0;
}

int kvm_dirty_log(struct vm *vm, unsigned slot, uint64_t *bitmap)
{
    struct kvm_vm *kvm = kvm_vm_of(vm);
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bitmap};

    return ioctl(kvm->fd, KVM_GET_DIRTY_LOG, &log) < 0 ? -errno : 0;
}

/* Without an ioeventfd, or when the kernel has none to give, the write exits and the bus rings. */
static void kvm_doorbell_changed(void *opaque, const struct bus_doorbell *bell, bool added)
{
    struct kvm_vm *kvm = opaque;
    struct kvm_ioeventfd event = {
        .datamatch = bell->match ? bell->value : 0,
        .addr = bell->addr,
        .len = bell->size,
        .fd = bell->event_fd,
        .flags = (bell->match ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0) |
                 (bell->space == BUS_PORT ? KVM_IOEVENTFD_FLAG_PIO : 0) |
                 (added ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
    };

    if (bell->event_fd < 0 || (bell->size == 0 && (bell->match || !kvm->any_length_doorbells)))
        return;
    if (ioctl(kvm->fd, KVM_IOEVENTFD, &event) < 0 && added)
        log_debug("kvm: doorbell at 0x%llx rings by exits: %s", (unsigned long long)bell->addr,
                  strerror(errno));
}

static void kvm_find_capabilities(struct kvm_vm *kvm)
{
    int xsave_size = kvm_has(kvm->fd, KVM_CAP_XSAVE2);

    kvm->has_xsave2 = xsave_size > 0;
    kvm->xsave_size = sizeof(struct kvm_xsave);
    if (kvm->has_xsave2 && (size_t)xsave_size > kvm->xsave_size)
        kvm->xsave_size = (size_t)xsave_size;
    kvm->has_xcrs = kvm_has(kvm->fd, KVM_CAP_XCRS) > 0;
    kvm->has_tsc_control = kvm_has(kvm->fd, KVM_CAP_TSC_CONTROL) > 0;
    kvm->any_length_doorbells = kvm_has(kvm->fd, KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0;
}

static int kvm_check_capabilities(int device_fd, unsigned cpus, struct error *err)
{
    static const struct { int cap; const char *name; } needed[] = {
        {KVM_CAP_IRQCHIP, "interrupt chips"},     {KVM_CAP_PIT2, "an interval timer"},
        {KVM_CAP_USER_MEMORY, "user memory"},     {KVM_CAP_READONLY_MEM, "read-only memory"},
        {KVM_CAP_SIGNAL_MSI, "message interrupts"}, {KVM_CAP_IRQ_ROUTING, "interrupt routing"},
        {KVM_CAP_XSAVE, "XSAVE state"},           {KVM_CAP_IMMEDIATE_EXIT, "immediate exit"},
        {KVM_CAP_DEBUGREGS, "debug registers"},   {KVM_CAP_VCPU_EVENTS, "vCPU events"},
    };
    int max = kvm_has(device_fd, KVM_CAP_MAX_VCPUS);

    for (unsigned i = 0; i < ARRAY_SIZE(needed); i++) {
        if (!kvm_has(device_fd, needed[i].cap))
            return error_set(err, -ENOTSUP, "this host's KVM lacks %s; use a newer kernel",
                             needed[i].name);
    }
    if (cpus == 0 || cpus > KVM_VCPUS_MAX || (max > 0 && cpus > (unsigned)max))
        return error_set(err, -EINVAL, "KVM here runs at most %u virtual CPUs, not %u",
                         max > 0 && (unsigned)max < KVM_VCPUS_MAX ? (unsigned)max : KVM_VCPUS_MAX,
                         cpus);
    return 0;
}

static int kvm_create_fd(struct kvm_vm *kvm, struct error *err)
{
    uint64_t identity_map = KVM_IDENTITY_MAP;
    int run_size;

    do {
        kvm->fd = ioctl(kvm->device_fd, KVM_CREATE_VM, 0);
    } while (kvm->fd < 0 && errno == EINTR);
    if (kvm->fd < 0)
        return error_set(err, -errno, "KVM cannot make a machine: %s", strerror(errno));
    if (ioctl(kvm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0 ||
        ioctl(kvm->fd, KVM_SET_TSS_ADDR, KVM_TSS) < 0)
        return error_set(err, -errno, "KVM refuses its own pages at 0x%llx: %s",
                         KVM_IDENTITY_MAP, strerror(errno));
    run_size = ioctl(kvm->device_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (run_size < (int)sizeof(struct kvm_run))
        return error_set(err, -ENOTSUP, "KVM's vCPU area is %d bytes, too small", run_size);
    kvm->run_size = (size_t)run_size;
    kvm_find_capabilities(kvm);
    return 0;
}

static void kvm_vm_free(struct kvm_vm *kvm)
{
    if (kvm->fd >= 0)
        close(kvm->fd);
    if (kvm->device_fd >= 0)
        close(kvm->device_fd);
    pthread_mutex_destroy(&kvm->vcpu_lock);
    free(kvm);
}

static int kvm_vm_build(struct kvm_vm *kvm, struct machine *machine, struct error *err)
{
    int ret = kvm_check_capabilities(kvm->device_fd, kvm->vm.cpus, err);

    if (ret)
        return ret;
    ret = kvm_create_fd(kvm, err);
    if (ret)
        return ret;
    ret = kvm_chips_create(kvm, err);
    if (ret)
        return ret;
    ret = kvm_map_memory(kvm, machine->mem, err);
    if (ret)
        return ret;
    ret = kvm_kick_signal_prepare();
    if (ret)
        return error_set(err, ret, "cannot install the vCPU kick signal: %s", strerror(-ret));
    ret = kvm_chips_attach(kvm, machine);
    if (ret)
        return error_set(err, ret, "out of memory for the interrupt chips' device");
    return 0;
}

int kvm_vm_create(struct machine *machine, const struct cpu_model *model, unsigned cpus,
                  struct vm **out, struct error *err)
{
    struct kvm_vm *kvm = calloc(1, sizeof(*kvm));
    int ret;

    if (!kvm)
        return error_set(err, -ENOMEM, "out of memory for a machine");
    kvm->fd = -1;
    pthread_mutex_init(&kvm->vcpu_lock, NULL);
    kvm->vm.ops = &kvm_engine;
    kvm->vm.machine = machine;
    kvm->vm.model = model;
    kvm->vm.cpus = cpus;
    kvm->device_fd = kvm_open(err);
    ret = kvm->device_fd < 0 ? kvm->device_fd : kvm_vm_build(kvm, machine, err);
    if (ret) {
        kvm_vm_free(kvm);
        return ret;
    }
    bus_watch_doorbells(machine->bus, kvm_doorbell_changed, kvm);
    *out = &kvm->vm;
    return 0;
}

void kvm_vm_destroy(struct vm *vm)
{
    bus_watch_doorbells(vm->machine->bus, NULL, NULL);
    kvm_vm_free(kvm_vm_of(vm));
}

/* gsi 0 is the timer: 8259 pin 0 and I/O APIC pin 2 (chips.c). */
void kvm_gsi_set(struct vm *vm, unsigned gsi, int level)
{
    struct kvm_irq_level line = {.irq = gsi, .level = (uint32_t)level};

    if (ioctl(kvm_vm_of(vm)->fd, KVM_IRQ_LINE, &line) < 0)
        log_debug("kvm: interrupt line %u: %s", gsi, strerror(errno));
}

void kvm_msi_send(struct vm *vm, uint64_t addr, uint32_t data)
{
    struct kvm_msi msi = {
        .address_lo = (uint32_t)addr,
        .address_hi = (uint32_t)(addr >> 32),
        .data = data,
    };

    if (ioctl(kvm_vm_of(vm)->fd, KVM_SIGNAL_MSI, &msi) < 0)
        log_guest("kvm: message interrupt to 0x%llx, data 0x%x: %s", (unsigned long long)addr, data,
                  strerror(errno));
}
