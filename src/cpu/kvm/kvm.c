#include "cpu/kvm/kvm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cpu/kvm/vm.h"
#include "cpu/selftest.h"

static const char KVM_FIX_HARDWARE[] =
    "run on a host with VT-x or SVM, or have nested virtualization enabled for this one";

static const char *kvm_open_fix(int code)
{
    switch (code) {
    case -ENOENT:
    case -ENODEV:
    case -ENXIO:
        return "load the module (modprobe kvm-intel or kvm-amd); if that fails, enable "
               "virtualization in the firmware, or nested virtualization on the outer host";
    case -EACCES:
    case -EPERM:
        return "join the group that owns it: sudo usermod -aG kvm $USER, then log in again";
    default:
        return KVM_FIX_HARDWARE;
    }
}

static void kvm_say(char *out, size_t size, const char *text)
{
    snprintf(out, size, "%s", text);
}

static void kvm_probe(struct engine_probe *probe)
{
    struct error err = {0};
    struct selftest_result result;
    bool emulates;
    int fd = kvm_open(&err);

    memset(probe, 0, sizeof(*probe));
    if (fd < 0) {
        kvm_say(probe->reason, sizeof(probe->reason), err.message);
        kvm_say(probe->fix, sizeof(probe->fix), kvm_open_fix(fd));
        return;
    }
    close(fd);
    selftest_run(&kvm_engine, &result);
    probe->usable = result.passed;
    if (result.passed) {
        kvm_say(probe->reason, sizeof(probe->reason), KVM_DEVICE " runs the self-test guest");
        return;
    }
    kvm_say(probe->fix, sizeof(probe->fix), KVM_FIX_HARDWARE);
    /* An instruction that a processor runs by itself came back as "cannot emulate". */
    emulates = result.engine_error && strstr(result.detail, "cannot emulate");
    snprintf(probe->reason, sizeof(probe->reason),
             KVM_DEVICE " opens, but its guests stop at %s%s: %.120s", result.step,
             emulates ? "; this KVM emulates kernel-mode code" : "", result.detail);
}

static unsigned kvm_counters(struct vm *vm, struct engine_counter *out, unsigned capacity)
{
    struct kvm_vm *kvm = kvm_vm_of(vm);
    const struct engine_counter all[] = {
        {"exits", atomic_load(&kvm->exits)},
        {"io_exits", atomic_load(&kvm->io_exits)},
        {"mmio_exits", atomic_load(&kvm->mmio_exits)},
    };
    unsigned count = 0;

    for (; count < ARRAY_SIZE(all) && count < capacity; count++)
        out[count] = all[count];
    return count;
}

const struct engine_ops kvm_engine = {
    .name = "kvm",
    .description = "Linux KVM: the processor's virtualization hardware",
    .flags = ENGINE_IRQCHIP | ENGINE_PIT,
    .probe = kvm_probe,
    .cpuid_support = kvm_cpuid_support,
    .vm_create = kvm_vm_create,
    .vm_destroy = kvm_vm_destroy,
    .vcpu_create = kvm_vcpu_create,
    .vcpu_destroy = kvm_vcpu_destroy,
    .vcpu_run = kvm_vcpu_run,
    .vcpu_kick = kvm_vcpu_kick,
    .vcpu_post = kvm_vcpu_post,
    .state_get = kvm_state_get,
    .state_set = kvm_state_set,
    .gsi_set = kvm_gsi_set,
    .msi_send = kvm_msi_send,
    .counters = kvm_counters,
};
