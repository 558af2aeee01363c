/*
 * The engine seam: what executes guest instructions.
 *
 * One `struct engine_ops` per engine (soft, kvm, later metal), listed in engine.c. An engine makes
 * a `struct vm` for a machine and a `struct vcpu` for each virtual CPU; it does port, memory and
 * MSR I/O by itself through the machine's bus and comes back from `vcpu_run` only when the vCPU's
 * thread has to look: it was kicked, it reset, or it cannot go on.
 *
 * Interrupt chips: an engine either brings its own (kvm: ENGINE_IRQCHIP; it then answers
 * `gsi_set`, `msi_send`, and the board makes no src/chip interrupt chips) or takes a local APIC
 * for each vCPU (`struct local_apic_ops`, given at vcpu_create). Either way the saved form of the
 * chips is that of src/chip.
 *
 * Threads: probe, vm_create, vm_destroy from one thread. vcpu_create, vcpu_run, state get/set on
 * the vCPU's own thread (state get/set also from another while the vCPU's thread is parked).
 * vcpu_kick, vcpu_post, gsi_set, msi_send: any thread, any device lock held.
 */
#ifndef CPU_ENGINE_H
#define CPU_ENGINE_H

#include <stdatomic.h>

#include "base/error.h"
#include "core/machine.h"
#include "cpu/cpu_state.h"
#include "cpu/cpuid.h"

struct engine_ops;

/* Why an engine can or cannot be used here: for `lodge doctor`. */
struct engine_probe {
    bool usable;
    char reason[256]; /* what was found; when unusable: the cause */
    char fix[256];    /* when unusable: what the user can do, or empty */
};

enum vcpu_exit {
    VCPU_EXIT_KICKED,    /* vcpu_kick() was called; state is consistent; run again or not */
    VCPU_EXIT_SHUTDOWN,  /* triple fault: a PC resets */
    VCPU_EXIT_ERROR,     /* cannot go on; err says why */
};

/* What may be posted to a vCPU from outside (by its local APIC, or the monitor). */
enum vcpu_event {
    VCPU_EVENT_INTERRUPT, /* the local APIC has something deliverable: look again */
    VCPU_EVENT_NMI,
    VCPU_EVENT_INIT,
    VCPU_EVENT_SIPI,      /* with vector */
    VCPU_EVENT_TIMER,     /* the local APIC's timer deadline changed */
};

struct vm {
    const struct engine_ops *ops;
    struct machine *machine;       /* borrowed */
    const struct cpu_model *model; /* borrowed */
    unsigned cpus;
    bool trace_unknown;            /* log accesses to unknown MSRs (--verbose) */
};

/* The clock of the local APIC's timer before division (1 tick = 1 ns, as KVM's); a core crystal
 * clock in CPUID leaf 15H must say the same. */
#define LOCAL_APIC_TIMER_HZ 1000000000u

/* A local APIC as the engine drives it (implemented by src/chip/lapic.c). Called on the vCPU's
 * own thread. Times are clock_now() nanoseconds. MSR results: 0, or -1 for #GP. */
struct local_apic_ops {
    bool (*has_interrupt)(void *apic);   /* deliverable above TPR/PPR, or ExtINT; cheap */
    int (*accept_interrupt)(void *apic); /* vector, now in service; -1: gone meanwhile */
    uint64_t (*mmio_read)(void *apic, uint32_t offset, unsigned size);
    void (*mmio_write)(void *apic, uint32_t offset, unsigned size, uint64_t value);
    int (*msr_read)(void *apic, uint32_t msr, uint64_t *value); /* APIC_BASE, TSC_DEADLINE, x2APIC */
    int (*msr_write)(void *apic, uint32_t msr, uint64_t value);
    uint64_t (*base)(void *apic);        /* IA32_APIC_BASE: enabled, x2APIC mode, page */
    uint64_t (*cr8_read)(void *apic);
    void (*cr8_write)(void *apic, uint64_t value);
    uint64_t (*timer_deadline)(void *apic); /* CLOCK_NEVER when idle; cheap */
    void (*timer_poll)(void *apic);      /* deadline has passed: raise the timer interrupt */
    void (*reset)(void *apic, bool init); /* power-on or INIT */
};

struct vcpu {
    struct vm *vm;
    unsigned index;                    /* also the APIC id */
    const struct local_apic_ops *apic_ops; /* NULL when the engine has its own chips */
    void *apic;                        /* borrowed */
};

/* Named counters of an engine, for --stats; each value is monotonic. */
struct engine_counter {
    const char *name;
    uint64_t value;
};

/* The engine has its own local APICs, I/O APIC and 8259 pair: the board makes no lapic, ioapic or
 * i8259, and wires machine->gsi and machine->msi to gsi_set and msi_send. gsi_set(0) is ISA
 * interrupt 0: 8259 pin 0 and I/O APIC pin 2 (the MADT needs the override 0 -> 2); 2 is nothing.
 * The engine adds a device of its own to the machine that resets these chips. */
#define ENGINE_IRQCHIP 0x1u
/* What an engine with a code cache takes for it. */
#define ENGINE_CODE_CACHE_LEAST (4ull << 20)
#define ENGINE_CODE_CACHE_MOST  (1ull << 30)
/* The engine has its own 8254 with ports 40h-43h and 61h: the board makes no i8254. */
#define ENGINE_PIT     0x2u

struct engine_ops {
    const char *name;        /* "soft" */
    const char *description; /* one line for doctor */
    unsigned flags;
    /* machine->code_cache when it is 0: this part of the guest's memory between these sizes; 0: the engine has none. */
    uint64_t code_cache, code_cache_most;
    unsigned code_cache_part; /* one of so many */

    /* Runs a self-test guest; judged by what it did, never by what could be opened. */
    void (*probe)(struct engine_probe *probe);
    /* CPUID bits this engine can run on this host. */
    void (*cpuid_support)(struct cpuid_support *support);

    /* The machine's memory slots are all there when this is called. */
    int (*vm_create)(struct machine *machine, const struct cpu_model *model, unsigned cpus,
                     struct vm **out, struct error *err);
    void (*vm_destroy)(struct vm *vm);

    int (*vcpu_create)(struct vm *vm, unsigned index, struct vcpu **out, struct error *err);
    void (*vcpu_destroy)(struct vcpu *vcpu);
    enum vcpu_exit (*vcpu_run)(struct vcpu *vcpu, struct error *err);
    void (*vcpu_kick)(struct vcpu *vcpu);
    void (*vcpu_post)(struct vcpu *vcpu, enum vcpu_event event, uint8_t vector);
    int (*state_get)(struct vcpu *vcpu, struct cpu_state *state);
    int (*state_set)(struct vcpu *vcpu, const struct cpu_state *state);
    /* The guest's TSC now, for the APIC's TSC-deadline timer; on the vCPU's own thread. After the
     * guest has changed its TSC, read and write back IA32_TSC_DEADLINE. NULL with ENGINE_IRQCHIP. */
    uint64_t (*tsc)(struct vcpu *vcpu);

    /* Only with ENGINE_IRQCHIP. */
    void (*gsi_set)(struct vm *vm, unsigned gsi, int level);
    void (*msi_send)(struct vm *vm, uint64_t addr, uint32_t data);

    unsigned (*counters)(struct vm *vm, struct engine_counter *out, unsigned capacity);
};

/* NULL-terminated, in the order of preference for --engine auto. */
extern const struct engine_ops *const engines[];

const struct engine_ops *engine_find(const char *name);

/* The first usable engine; probes in order. NULL, with every engine's reason in err. */
const struct engine_ops *engine_choose(struct error *err);

#endif
