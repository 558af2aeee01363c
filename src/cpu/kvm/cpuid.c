#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cpu/kvm/vm.h"

#define KVM_CPUID_ROOM 256u /* entries; KVM's own limit */

#define KVM_CPUID_FEATURES     0x40000001u /* Documentation/virt/kvm/x86/cpuid.rst */
#define KVM_FEATURE_CLOCK2_BIT (1u << 3)

#define CPUID1_ECX_X2APIC       (1u << 21)
#define CPUID1_ECX_TSC_DEADLINE (1u << 24)

static struct kvm_cpuid2 *kvm_cpuid_alloc(void)
{
    struct kvm_cpuid2 *table =
        calloc(1, sizeof(*table) + KVM_CPUID_ROOM * sizeof(struct kvm_cpuid_entry2));

    if (table)
        table->nent = KVM_CPUID_ROOM;
    return table;
}

static struct kvm_cpuid_entry2 kvm_cpuid_find(const struct kvm_cpuid2 *table, uint32_t leaf,
                                              uint32_t subleaf)
{
    struct kvm_cpuid_entry2 none = {0};

    for (uint32_t i = 0; i < table->nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &table->entries[i];

        if (entry->function == leaf && (entry->index == subleaf ||
                                        !(entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
            return *entry;
    }
    return none;
}

static void kvm_support_fill(struct cpuid_support *support, const struct kvm_cpuid2 *table, int fd)
{
    struct kvm_cpuid_entry2 leaf1 = kvm_cpuid_find(table, 1, 0);
    struct kvm_cpuid_entry2 leaf7 = kvm_cpuid_find(table, 7, 0);
    struct kvm_cpuid_entry2 leafd = kvm_cpuid_find(table, 0xd, 0);
    struct kvm_cpuid_entry2 ext1 = kvm_cpuid_find(table, 0x80000001, 0);

    /* KVM's own local APIC has both, but the table leaves the second to us (api.rst 4.46). */
    support->leaf1_ecx = leaf1.ecx | CPUID1_ECX_X2APIC;
    if (kvm_has(fd, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
        support->leaf1_ecx |= CPUID1_ECX_TSC_DEADLINE;
    support->leaf1_edx = leaf1.edx;
    support->leaf7_ebx = leaf7.ebx;
    support->leaf7_ecx = leaf7.ecx;
    support->leaf7_edx = leaf7.edx;
    support->leaf7_1_eax = kvm_cpuid_find(table, 7, 1).eax;
    support->leafd_1_eax = kvm_cpuid_find(table, 0xd, 1).eax;
    support->ext1_ecx = ext1.ecx;
    support->ext1_edx = ext1.edx;
    support->ext7_edx = kvm_cpuid_find(table, 0x80000007, 0).edx;
    support->ext8_ebx = kvm_cpuid_find(table, 0x80000008, 0).ebx;
    support->xcr0 = (uint64_t)leafd.edx << 32 | leafd.eax;
    support->kvm_clock =
        (kvm_cpuid_find(table, KVM_CPUID_FEATURES, 0).eax & KVM_FEATURE_CLOCK2_BIT) != 0;
}

void kvm_cpuid_support(struct cpuid_support *support)
{
    struct error err = {0};
    struct kvm_cpuid2 *table = kvm_cpuid_alloc();
    int fd = kvm_open(&err);

    memset(support, 0, sizeof(*support));
    if (table && fd >= 0 && ioctl(fd, KVM_GET_SUPPORTED_CPUID, table) == 0)
        kvm_support_fill(support, table, fd);
    free(table);
    if (fd >= 0)
        close(fd);
}

/* What depends on the vCPU: its APIC id. KVM itself does OSXSAVE and the sizes in leaf 0xd. */
static void kvm_cpuid_personalize(struct kvm_cpuid_entry2 *entry, unsigned index)
{
    switch (entry->function) {
    case 1:
        entry->ebx = (entry->ebx & 0x00ffffffu) | (uint32_t)index << 24;
        break;
    case 0xb:
    case 0x1f:
        entry->edx = index;
        break;
    case 0x8000001e:
        entry->eax = index;
        entry->ebx = (entry->ebx & ~0xffu) | (index & 0xffu); /* one thread a core */
        break;
    default:
        break;
    }
}

int kvm_cpuid_set(struct kvm_vcpu *vcpu, struct error *err)
{
    const struct cpu_model *model = vcpu->vcpu.vm->model;
    struct kvm_cpuid2 *table = kvm_cpuid_alloc();
    int ret = 0;

    if (!table)
        return error_set(err, -ENOMEM, "out of memory for the CPU model");
    table->nent = model->count;
    for (unsigned i = 0; i < model->count; i++) {
        const struct cpuid_entry *from = &model->entries[i];

        table->entries[i] = (struct kvm_cpuid_entry2){
            .function = from->leaf,
            .index = from->subleaf,
            .flags = from->has_subleaf ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
            .eax = from->regs.eax,
            .ebx = from->regs.ebx,
            .ecx = from->regs.ecx,
            .edx = from->regs.edx,
        };
        kvm_cpuid_personalize(&table->entries[i], vcpu->vcpu.index);
    }
    if (ioctl(vcpu->fd, KVM_SET_CPUID2, table) < 0)
        ret = error_set(err, -errno, "KVM refuses the CPU model '%s': %s", model->name,
                        strerror(errno));
    free(table);
    return ret;
}
