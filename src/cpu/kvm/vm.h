/*
 * Inside the kvm engine: a machine and its vCPUs as file descriptors of /dev/kvm.
 * Source: Linux Documentation/virt/kvm/api.rst (numbers in comments are its sections).
 *
 * Threads and errors are those of cpu/engine.h. Everything here is private to src/cpu/kvm.
 */
#ifndef CPU_KVM_VM_H
#define CPU_KVM_VM_H

#include <linux/kvm.h>
#include <pthread.h>

#include "cpu/engine.h"

#define KVM_DEVICE     "/dev/kvm"
#define KVM_VCPUS_MAX  254u /* xAPIC ids; 255 is the broadcast id */

/* The kernel's chips as they were just after they were made: what a reset puts back. */
struct kvm_chips {
    struct kvm_irqchip pic_master, pic_slave, ioapic;
    struct kvm_pit_state2 pit;
};

struct kvm_vm {
    struct vm vm;
    int device_fd;             /* owned: /dev/kvm */
    int fd;                    /* owned */
    size_t run_size;           /* bytes of a vCPU's shared page(s) */
    size_t xsave_size;         /* bytes of KVM_GET_XSAVE2, at least sizeof(struct kvm_xsave) */
    bool has_xsave2;
    bool has_xcrs;
    bool has_tsc_control;
    bool any_length_doorbells; /* ioeventfd with length 0 */
    struct kvm_chips reset_chips;
    /* Written by vcpu_create/destroy, read by the reset of the chips; vcpu_lock. */
    struct kvm_vcpu *vcpus[KVM_VCPUS_MAX];
    pthread_mutex_t vcpu_lock;
    _Atomic uint64_t exits;    /* sum over vCPUs, for the counters */
    _Atomic uint64_t io_exits;
    _Atomic uint64_t mmio_exits;
};

struct kvm_vcpu {
    struct vcpu vcpu;
    int fd;                      /* owned */
    struct kvm_run *run;         /* owned mapping of run_size bytes, shared with the kernel */
    pthread_t thread;            /* that runs it: where kicks go */
    atomic_bool kicked;
    struct kvm_lapic_state reset_lapic;
    struct kvm_xsave *xsave;     /* owned, xsave_size bytes: scratch of state get/set */
};

static inline struct kvm_vm *kvm_vm_of(struct vm *vm)
{
    return container_of(vm, struct kvm_vm, vm);
}

static inline struct kvm_vcpu *kvm_vcpu_of(struct vcpu *vcpu)
{
    return container_of(vcpu, struct kvm_vcpu, vcpu);
}

/* vm.c. kvm_open(): a descriptor of /dev/kvm with the right API version, or negative errno. */
nodiscard int kvm_open(struct error *err);
int kvm_has(int fd, int capability); /* KVM_CHECK_EXTENSION, 0 when absent */
int kvm_vm_create(struct machine *machine, const struct cpu_model *model, unsigned cpus,
                  struct vm **out, struct error *err);
void kvm_vm_destroy(struct vm *vm);
void kvm_gsi_set(struct vm *vm, unsigned gsi, int level);
void kvm_msi_send(struct vm *vm, uint64_t addr, uint32_t data);
/* Pages of `slot` written since the last call, one bit a page; `bitmap` holds slot pages / 8 bytes. */
nodiscard int kvm_dirty_log(struct vm *vm, unsigned slot, uint64_t *bitmap);

/* chips.c: the interrupt chips in the kernel, and the machine's device that resets them. */
nodiscard int kvm_chips_create(struct kvm_vm *vm, struct error *err);
nodiscard int kvm_chips_attach(struct kvm_vm *vm, struct machine *machine);

/* vcpu.c */
int kvm_vcpu_create(struct vm *vm, unsigned index, struct vcpu **out, struct error *err);
void kvm_vcpu_destroy(struct vcpu *vcpu);
enum vcpu_exit kvm_vcpu_run(struct vcpu *vcpu, struct error *err);
void kvm_vcpu_kick(struct vcpu *vcpu);
void kvm_vcpu_post(struct vcpu *vcpu, enum vcpu_event event, uint8_t vector);
nodiscard int kvm_kick_signal_prepare(void); /* once per machine, before vCPUs */

/* cpuid.c */
void kvm_cpuid_support(struct cpuid_support *support);
nodiscard int kvm_cpuid_set(struct kvm_vcpu *vcpu, struct error *err);

/* state.c */
int kvm_state_get(struct vcpu *vcpu, struct cpu_state *state);
int kvm_state_set(struct vcpu *vcpu, const struct cpu_state *state);
/* IA32_APIC_BASE, through "disabled" as the mode's change rules ask (SDM vol. 3A 11.12.5). */
nodiscard int kvm_apic_base_set(struct kvm_vcpu *vcpu, uint64_t base);

#endif
