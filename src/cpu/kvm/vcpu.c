#include "cpu/kvm/vm.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "x86/arch.h"

#define KVM_KICK_SIGNAL SIGRTMIN

static void kvm_kick_handler(int signal)
{
    (void)signal; /* its work is done: KVM_RUN was interrupted */
}

int kvm_kick_signal_prepare(void)
{
    struct sigaction action = {.sa_handler = kvm_kick_handler};

    sigemptyset(&action.sa_mask);
    return sigaction(KVM_KICK_SIGNAL, &action, NULL) < 0 ? -errno : 0;
}

static int kvm_set_tsc_frequency(struct kvm_vcpu *vcpu)
{
    struct kvm_vm *kvm = kvm_vm_of(vcpu->vcpu.vm);
    uint32_t wanted = kvm->vm.model->tsc_khz;
    int now = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0);

    if (wanted == 0 || now == (int)wanted)
        return 0;
    if (kvm->has_tsc_control && ioctl(vcpu->fd, KVM_SET_TSC_KHZ, (unsigned long)wanted) == 0)
        return 0;
    if (vcpu->vcpu.index == 0)
        log_debug("kvm: the guest's TSC runs at the host's %d kHz, not at %u kHz", now, wanted);
    return 0;
}

static int kvm_vcpu_open(struct kvm_vcpu *vcpu, struct error *err)
{
    struct kvm_vm *kvm = kvm_vm_of(vcpu->vcpu.vm);
    unsigned index = vcpu->vcpu.index;

    vcpu->fd = ioctl(kvm->fd, KVM_CREATE_VCPU, (unsigned long)index);
    if (vcpu->fd < 0)
        return error_set(err, -errno, "KVM cannot make vCPU %u: %s", index, strerror(errno));
    vcpu->run = mmap(NULL, kvm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (vcpu->run == MAP_FAILED) {
        vcpu->run = NULL;
        return error_set(err, -errno, "cannot map vCPU %u: %s", index, strerror(errno));
    }
    vcpu->xsave = calloc(1, kvm->xsave_size);
    if (!vcpu->xsave)
        return error_set(err, -ENOMEM, "out of memory for vCPU %u", index);
    if (ioctl(vcpu->fd, KVM_GET_LAPIC, &vcpu->reset_lapic) < 0)
        return error_set(err, -errno, "KVM does not show the local APIC of vCPU %u: %s", index,
                         strerror(errno));
    return 0;
}

static void kvm_vcpu_free(struct kvm_vcpu *vcpu)
{
    if (vcpu->run)
        munmap(vcpu->run, kvm_vm_of(vcpu->vcpu.vm)->run_size);
    if (vcpu->fd >= 0)
        close(vcpu->fd);
    free(vcpu->xsave);
    free(vcpu);
}

static void kvm_vcpu_register(struct kvm_vm *kvm, unsigned index, struct kvm_vcpu *vcpu)
{
    pthread_mutex_lock(&kvm->vcpu_lock);
    kvm->vcpus[index] = vcpu;
    pthread_mutex_unlock(&kvm->vcpu_lock);
}

static void kvm_unblock_kick_signal(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, KVM_KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

int kvm_vcpu_create(struct vm *vm, unsigned index, struct vcpu **out, struct error *err)
{
    struct kvm_vcpu *vcpu = calloc(1, sizeof(*vcpu));
    int ret;

    if (!vcpu)
        return error_set(err, -ENOMEM, "out of memory for vCPU %u", index);
    vcpu->vcpu.vm = vm;
    vcpu->vcpu.index = index;
    vcpu->fd = -1;
    vcpu->thread = pthread_self();
    ret = kvm_vcpu_open(vcpu, err);
    if (ret == 0)
        ret = kvm_cpuid_set(vcpu, err);
    if (ret == 0)
        ret = kvm_set_tsc_frequency(vcpu);
    if (ret) {
        kvm_vcpu_free(vcpu);
        return ret;
    }
    kvm_unblock_kick_signal();
    kvm_vcpu_register(kvm_vm_of(vm), index, vcpu);
    *out = &vcpu->vcpu;
    return 0;
}

void kvm_vcpu_destroy(struct vcpu *vcpu)
{
    kvm_vcpu_register(kvm_vm_of(vcpu->vm), vcpu->index, NULL);
    kvm_vcpu_free(kvm_vcpu_of(vcpu));
}

/* Partner: kvm_vcpu_take_kick(). The flag first, then immediate_exit, then the signal: a kick
 * that comes before KVM_RUN is seen in immediate_exit, one during it interrupts it. */
void kvm_vcpu_kick(struct vcpu *opaque)
{
    struct kvm_vcpu *vcpu = kvm_vcpu_of(opaque);

    atomic_store(&vcpu->kicked, true);
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    if (!pthread_equal(pthread_self(), vcpu->thread))
        pthread_kill(vcpu->thread, KVM_KICK_SIGNAL);
}

/* immediate_exit is cleared before the flag is read: a kick between the two is at worst taken
 * now and once more as a spurious EINTR, never lost. */
static bool kvm_vcpu_take_kick(struct kvm_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    return atomic_exchange(&vcpu->kicked, false);
}

/* A vCPU's ioctls wait while it runs, so events go as messages of the APIC bus (SDM vol. 3A 11.11):
 * delivery mode in data bits 10:8, fixed physical destination in address bits 19:12. */
void kvm_vcpu_post(struct vcpu *vcpu, enum vcpu_event event, uint8_t vector)
{
    uint64_t addr = APIC_DEFAULT_PHYS | (uint64_t)vcpu->index << 12;

    switch (event) {
    case VCPU_EVENT_NMI:
        kvm_msi_send(vcpu->vm, addr, 4u << 8);
        break;
    case VCPU_EVENT_INIT:
        kvm_msi_send(vcpu->vm, addr, 5u << 8);
        break;
    case VCPU_EVENT_SIPI:
        kvm_msi_send(vcpu->vm, addr, 6u << 8 | vector);
        break;
    case VCPU_EVENT_INTERRUPT:
    case VCPU_EVENT_TIMER:
        break; /* the kernel's local APIC tells its vCPU by itself */
    }
}

static uint64_t kvm_load(const uint8_t *from, unsigned size)
{
    uint64_t value = 0;

    memcpy(&value, from, size);
    return value;
}

/* A string instruction comes as `count` items at once. */
static void kvm_handle_io(struct kvm_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    struct bus *bus = vcpu->vcpu.vm->machine->bus;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    unsigned size = run->io.size;

    for (uint32_t i = 0; i < run->io.count; i++, data += size) {
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            bus_write(bus, BUS_PORT, run->io.port, size, kvm_load(data, size));
        } else {
            uint64_t value = bus_read(bus, BUS_PORT, run->io.port, size);

            memcpy(data, &value, size);
        }
    }
}

/* The largest power of two that is aligned at addr and fits in len: an access that was cut at a
 * page's end can have any length. */
static unsigned kvm_mmio_chunk(uint64_t addr, unsigned len)
{
    unsigned size = 8;

    while (size > len || (len != size && (addr & (size - 1))))
        size /= 2;
    return size;
}

static void kvm_handle_mmio(struct kvm_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    struct bus *bus = vcpu->vcpu.vm->machine->bus;
    uint64_t addr = run->mmio.phys_addr;
    uint8_t *data = run->mmio.data;
    unsigned len = run->mmio.len;

    if (len > sizeof(run->mmio.data))
        len = sizeof(run->mmio.data);
    while (len > 0) {
        unsigned size = kvm_mmio_chunk(addr, len);

        if (run->mmio.is_write) {
            bus_write(bus, BUS_MEMORY, addr, size, kvm_load(data, size));
        } else {
            uint64_t value = bus_read(bus, BUS_MEMORY, addr, size);

            memcpy(data, &value, size);
        }
        addr += size;
        data += size;
        len -= size;
    }
}

static void kvm_handle_system_event(struct kvm_vcpu *vcpu)
{
    struct machine *machine = vcpu->vcpu.vm->machine;

    switch (vcpu->run->system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
        machine_request(machine, MACHINE_POWER_OFF, 0, NULL);
        break;
    case KVM_SYSTEM_EVENT_CRASH:
        machine_request(machine, MACHINE_STOP, 1, "the guest reported that it crashed");
        break;
    default:
        machine_request(machine, MACHINE_RESET, 0, NULL);
        break;
    }
}

static uint64_t kvm_rip(struct kvm_vcpu *vcpu)
{
    struct kvm_regs regs;

    return ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0 ? 0 : regs.rip;
}

/* The bytes KVM could not emulate, when it says (api.rst 5, emulation_failure). */
static void kvm_failed_bytes(const struct kvm_run *run, char *out, size_t size)
{
    unsigned count = run->emulation_failure.insn_size;
    size_t used;

    snprintf(out, size, "of unknown bytes");
    if (run->emulation_failure.ndata < 3 ||
        !(run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES))
        return;
    if (count > sizeof(run->emulation_failure.insn_bytes))
        count = sizeof(run->emulation_failure.insn_bytes);
    used = (size_t)snprintf(out, size, "with bytes");
    for (unsigned i = 0; i < count && used + 4 < size; i++)
        used += (size_t)snprintf(out + used, size - used, " %02x",
                                 run->emulation_failure.insn_bytes[i]);
}

static enum vcpu_exit kvm_internal_error(struct kvm_vcpu *vcpu, struct error *err)
{
    const struct kvm_run *run = vcpu->run;
    unsigned long long rip = kvm_rip(vcpu);
    char bytes[64];

    if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION) {
        kvm_failed_bytes(run, bytes, sizeof(bytes));
        error_set(err, -EIO, "KVM cannot emulate the instruction at 0x%llx (%s) on vCPU %u", rip,
                  bytes, vcpu->vcpu.index);
    } else {
        error_set(err, -EIO, "KVM stopped vCPU %u at 0x%llx with internal error %u",
                  vcpu->vcpu.index, rip, run->internal.suberror);
    }
    return VCPU_EXIT_ERROR;
}

static enum vcpu_exit kvm_fail_entry(struct kvm_vcpu *vcpu, struct error *err)
{
    error_set(err, -EIO, "the processor refused to enter vCPU %u at 0x%llx (hardware reason 0x%llx)",
              vcpu->vcpu.index, (unsigned long long)kvm_rip(vcpu),
              (unsigned long long)vcpu->run->fail_entry.hardware_entry_failure_reason);
    return VCPU_EXIT_ERROR;
}

/* True: go on running. */
static bool kvm_handle_exit(struct kvm_vcpu *vcpu, enum vcpu_exit *result, struct error *err)
{
    struct kvm_vm *kvm = kvm_vm_of(vcpu->vcpu.vm);

    atomic_fetch_add_explicit(&kvm->exits, 1, memory_order_relaxed);
    switch (vcpu->run->exit_reason) {
    case KVM_EXIT_IO:
        atomic_fetch_add_explicit(&kvm->io_exits, 1, memory_order_relaxed);
        kvm_handle_io(vcpu);
        return true;
    case KVM_EXIT_MMIO:
        atomic_fetch_add_explicit(&kvm->mmio_exits, 1, memory_order_relaxed);
        kvm_handle_mmio(vcpu);
        return true;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        return true;
    case KVM_EXIT_SYSTEM_EVENT:
        kvm_handle_system_event(vcpu);
        return true;
    case KVM_EXIT_SHUTDOWN:
        *result = VCPU_EXIT_SHUTDOWN;
        return false;
    case KVM_EXIT_FAIL_ENTRY:
        *result = kvm_fail_entry(vcpu, err);
        return false;
    case KVM_EXIT_INTERNAL_ERROR:
        *result = kvm_internal_error(vcpu, err);
        return false;
    default:
        error_set(err, -EIO, "KVM stopped vCPU %u for reason %u, which Lodge does not know",
                  vcpu->vcpu.index, vcpu->run->exit_reason);
        *result = VCPU_EXIT_ERROR;
        return false;
    }
}

/* KVM finishes an I/O exit's instruction on the next KVM_RUN, so a kick is answered only there:
 * with immediate_exit set it completes the instruction and returns EINTR (api.rst 4.10). */
enum vcpu_exit kvm_vcpu_run(struct vcpu *opaque, struct error *err)
{
    struct kvm_vcpu *vcpu = kvm_vcpu_of(opaque);
    enum vcpu_exit result = VCPU_EXIT_KICKED;

    for (;;) {
        if (ioctl(vcpu->fd, KVM_RUN, 0) == 0) {
            if (!kvm_handle_exit(vcpu, &result, err))
                return result;
        } else if (errno == EINTR) {
            if (kvm_vcpu_take_kick(vcpu))
                return VCPU_EXIT_KICKED;
        } else if (errno != EAGAIN) {
            error_set(err, -errno, "KVM cannot run vCPU %u at 0x%llx: %s", opaque->index,
                      (unsigned long long)kvm_rip(vcpu), strerror(errno));
            return VCPU_EXIT_ERROR;
        }
    }
}
