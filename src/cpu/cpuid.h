/*
 * CPU models: what CPUID tells the guest.
 *
 * A model is a table of leaves, made once per machine from the host's CPUID ("host"), or from a
 * named baseline, then masked by what the engine can run. Engines answer CPUID from the table
 * and fill in only what depends on the vCPU (APIC id, OSXSAVE, XSAVE sizes by XCR0).
 */
#ifndef CPU_CPUID_H
#define CPU_CPUID_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define CPUID_ENTRIES_MAX 96u

struct cpuid_regs {
    uint32_t eax, ebx, ecx, edx;
};

struct cpuid_entry {
    uint32_t leaf, subleaf;
    bool has_subleaf; /* the answer depends on ECX */
    struct cpuid_regs regs;
};

struct cpu_model {
    char name[32];
    uint32_t tsc_khz;      /* the guest's TSC frequency */
    uint32_t phys_bits;    /* guest physical address width, MAXPHYADDR */
    uint64_t xcr0_mask;    /* XCR0 bits the guest may set */
    unsigned count;
    struct cpuid_entry entries[CPUID_ENTRIES_MAX];
};

struct cpu_topology {
    unsigned cpus; /* one package, `cpus` cores, one thread each */
    unsigned phys_bits_max; /* at most this physical address width; 0: the host's */
};

/* Bits an engine can run: the model is masked with it. Registers as in the leaf named. */
struct cpuid_support {
    uint32_t leaf1_ecx, leaf1_edx;
    uint32_t leaf7_ebx, leaf7_ecx, leaf7_edx;
    uint32_t leaf7_1_eax;
    uint32_t leafd_1_eax;
    uint32_t ext1_ecx, ext1_edx; /* 0x80000001 */
    uint32_t ext7_edx;           /* 0x80000007 */
    uint32_t ext8_ebx;           /* 0x80000008 */
    uint64_t xcr0;
    /* Immunities to side channels that the engine answers for, whatever the host: its guests'
     * branches and loads are not the host's, so that work-arounds in a guest would only cost. */
    struct {
        uint32_t leaf7_edx;              /* shown on Intel: the IA32_ARCH_CAPABILITIES way */
        uint32_t ext8_ebx;               /* shown on AMD: 0x80000008 EBX */
        uint32_t ext21_eax, ext21_ecx;   /* and 0x80000021 */
    } immune;
    bool kvm_clock;              /* leaf 0x40000000: KVM signature with the paravirtual clock */
};

/* `name`: "host" or a name from cpu_model_names(). -EINVAL names the nearest good one in err. */
nodiscard int cpu_model_init(struct cpu_model *model, const char *name,
                             const struct cpuid_support *support,
                             const struct cpu_topology *topology, struct error *err);

/* NULL-terminated list of names, "host" first. */
const char *const *cpu_model_names(void);

/* The table's raw answer, with Intel's/AMD's rules for leaves out of range (all zeroes). */
struct cpuid_regs cpu_model_lookup(const struct cpu_model *model, uint32_t leaf, uint32_t subleaf);

/* The model has this feature: bit of the register given in the leaf (subleaf 0). */
bool cpu_model_has(const struct cpu_model *model, uint32_t leaf, char reg, unsigned bit);

#endif
