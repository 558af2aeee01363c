/*
 * A vCPU's registers between KVM's structures and struct cpu_state.
 *
 * PDPTRs are not part of cpu_state: the plain SREGS calls make KVM load them from memory again, as
 * MOV CR3 does. Bits of XSAVE state beyond CPU_XSAVE_SIZE (AMX tiles) are not offered to guests.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "cpu/kvm/vm.h"
#include "x86/arch.h"

#define KVM_MSRS_MAX 64u

#define MSR_MTRR_FIX64K_00000 0x250u
#define MSR_MTRR_FIX16K_80000 0x258u
#define MSR_MTRR_FIX16K_A0000 0x259u
#define MSR_MTRR_FIX4K_C0000  0x268u /* to 0x26f */
#define MSR_KVM_POLL_CONTROL  0x4b564d05u

struct kvm_msr_place {
    uint32_t msr;
    uint32_t offset; /* of the uint64_t in struct cpu_state */
};

#define AT(number, member) {number, offsetof(struct cpu_state, member)}

/* In the order they are set. TSC first: TSC_ADJUST and TSC_DEADLINE mean something against it. */
static const struct kvm_msr_place kvm_msr_places[] = {
    AT(MSR_IA32_TSC, tsc),
    AT(MSR_IA32_TSC_ADJUST, msr.tsc_adjust),
    AT(MSR_IA32_SPEC_CTRL, msr.spec_ctrl),
    AT(MSR_IA32_SYSENTER_CS, msr.sysenter_cs),
    AT(MSR_IA32_SYSENTER_ESP, msr.sysenter_esp),
    AT(MSR_IA32_SYSENTER_EIP, msr.sysenter_eip),
    AT(MSR_IA32_MISC_ENABLE, msr.misc_enable),
    AT(MSR_IA32_PAT, msr.pat),
    AT(MSR_STAR, msr.star),
    AT(MSR_LSTAR, msr.lstar),
    AT(MSR_CSTAR, msr.cstar),
    AT(MSR_SFMASK, msr.sfmask),
    AT(MSR_KERNEL_GS_BASE, msr.kernel_gs_base),
    AT(MSR_TSC_AUX, msr.tsc_aux),
    AT(MSR_IA32_XSS, msr.xss),
    AT(MSR_IA32_DEBUGCTL, msr.debugctl),
    AT(MSR_IA32_MTRR_DEF_TYPE, msr.mtrr_def_type),
    AT(MSR_MTRR_FIX64K_00000, msr.mtrr_fixed[0]),
    AT(MSR_MTRR_FIX16K_80000, msr.mtrr_fixed[1]),
    AT(MSR_MTRR_FIX16K_A0000, msr.mtrr_fixed[2]),
    AT(MSR_MTRR_FIX4K_C0000 + 0, msr.mtrr_fixed[3]),
    AT(MSR_MTRR_FIX4K_C0000 + 1, msr.mtrr_fixed[4]),
    AT(MSR_MTRR_FIX4K_C0000 + 2, msr.mtrr_fixed[5]),
    AT(MSR_MTRR_FIX4K_C0000 + 3, msr.mtrr_fixed[6]),
    AT(MSR_MTRR_FIX4K_C0000 + 4, msr.mtrr_fixed[7]),
    AT(MSR_MTRR_FIX4K_C0000 + 5, msr.mtrr_fixed[8]),
    AT(MSR_MTRR_FIX4K_C0000 + 6, msr.mtrr_fixed[9]),
    AT(MSR_MTRR_FIX4K_C0000 + 7, msr.mtrr_fixed[10]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 0, msr.mtrr_phys_base[0]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 1, msr.mtrr_phys_mask[0]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 2, msr.mtrr_phys_base[1]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 3, msr.mtrr_phys_mask[1]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 4, msr.mtrr_phys_base[2]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 5, msr.mtrr_phys_mask[2]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 6, msr.mtrr_phys_base[3]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 7, msr.mtrr_phys_mask[3]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 8, msr.mtrr_phys_base[4]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 9, msr.mtrr_phys_mask[4]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 10, msr.mtrr_phys_base[5]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 11, msr.mtrr_phys_mask[5]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 12, msr.mtrr_phys_base[6]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 13, msr.mtrr_phys_mask[6]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 14, msr.mtrr_phys_base[7]),
    AT(MSR_IA32_MTRR_PHYSBASE0 + 15, msr.mtrr_phys_mask[7]),
    AT(MSR_KVM_WALL_CLOCK_NEW, msr.kvm_wall_clock),
    AT(MSR_KVM_SYSTEM_TIME_NEW, msr.kvm_system_time),
    AT(MSR_KVM_POLL_CONTROL, msr.kvm_poll_control),
    AT(MSR_IA32_TSC_DEADLINE, msr.tsc_deadline),
};

static_assert(ARRAY_SIZE(kvm_msr_places) <= KVM_MSRS_MAX, "room for every MSR");

union kvm_msr_batch {
    struct kvm_msrs msrs;
    uint8_t room[sizeof(struct kvm_msrs) + KVM_MSRS_MAX * sizeof(struct kvm_msr_entry)];
};

static uint64_t *kvm_msr_field(struct cpu_state *state, const struct kvm_msr_place *place)
{
    return (uint64_t *)(void *)((char *)state + place->offset);
}

/* KVM stops at the first MSR it does not have for this CPU model (api.rst 4.18): that one reads 0. */
static int kvm_msrs_get(struct kvm_vcpu *vcpu, struct cpu_state *state)
{
    unsigned count = ARRAY_SIZE(kvm_msr_places);
    union kvm_msr_batch batch = {.room = {0}};

    for (unsigned first = 0; first < count;) {
        int done;

        batch.msrs.nmsrs = count - first;
        for (unsigned i = first; i < count; i++)
            batch.msrs.entries[i - first].index = kvm_msr_places[i].msr;
        done = ioctl(vcpu->fd, KVM_GET_MSRS, &batch);
        if (done < 0)
            return -errno;
        for (unsigned i = 0; i < (unsigned)done; i++)
            *kvm_msr_field(state, &kvm_msr_places[first + i]) = batch.msrs.entries[i].data;
        first += (unsigned)done;
        if (first < count)
            *kvm_msr_field(state, &kvm_msr_places[first++]) = 0;
    }
    return 0;
}

/* An MSR that this model does not have is skipped; that matters only if something was in it. */
static void kvm_msr_refused(struct kvm_vcpu *vcpu, const struct kvm_msr_entry *entry)
{
    if (entry->data != 0)
        log_debug("kvm: vCPU %u has no MSR 0x%x for value 0x%llx", vcpu->vcpu.index, entry->index,
                  (unsigned long long)entry->data);
}

/* The entries to write: what is 0 and shall be 0 is left alone, so that no MSR is touched, nor
 * complained about in the host's log, that neither the guest nor this CPU model uses. */
static unsigned kvm_msrs_fill(union kvm_msr_batch *batch, struct cpu_state *now,
                              struct cpu_state *wanted)
{
    unsigned count = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(kvm_msr_places); i++) {
        uint64_t value = *kvm_msr_field(wanted, &kvm_msr_places[i]);

        if (value || *kvm_msr_field(now, &kvm_msr_places[i]))
            batch->msrs.entries[count++] =
                (struct kvm_msr_entry){.index = kvm_msr_places[i].msr, .data = value};
    }
    return count;
}

static int kvm_msrs_set(struct kvm_vcpu *vcpu, const struct cpu_state *state)
{
    struct cpu_state now, wanted = *state;
    union kvm_msr_batch batch = {.room = {0}};
    unsigned count;
    int done = kvm_msrs_get(vcpu, &now);

    if (done < 0)
        return done;
    count = kvm_msrs_fill(&batch, &now, &wanted);
    for (;;) {
        batch.msrs.nmsrs = count;
        done = ioctl(vcpu->fd, KVM_SET_MSRS, &batch);
        if (done < 0)
            return -errno;
        if ((unsigned)done >= count)
            return 0;
        kvm_msr_refused(vcpu, &batch.msrs.entries[done]);
        count -= (unsigned)done + 1;
        memmove(batch.msrs.entries, batch.msrs.entries + done + 1,
                count * sizeof(batch.msrs.entries[0]));
        if (count == 0)
            return 0;
    }
}

int kvm_apic_base_set(struct kvm_vcpu *vcpu, uint64_t base)
{
    const uint64_t off = base & ~(uint64_t)(APIC_BASE_ENABLE | APIC_BASE_X2APIC);
    union kvm_msr_batch batch = {.room = {0}};
    int done;

    batch.msrs.nmsrs = 2;
    batch.msrs.entries[0] = (struct kvm_msr_entry){.index = MSR_IA32_APIC_BASE, .data = off};
    batch.msrs.entries[1] = (struct kvm_msr_entry){.index = MSR_IA32_APIC_BASE, .data = base};
    done = ioctl(vcpu->fd, KVM_SET_MSRS, &batch);
    if (done < 0)
        return -errno;
    return done == 2 ? 0 : -EINVAL;
}

static struct cpu_segment kvm_segment_get(const struct kvm_segment *from)
{
    return (struct cpu_segment){
        .base = from->base,
        .limit = from->limit,
        .selector = from->selector,
        .attr = from->type | (from->s ? CPU_SEG_S : 0) | (uint32_t)(from->dpl & 3) << 5 |
                (from->present ? CPU_SEG_P : 0) | (from->avl ? CPU_SEG_AVL : 0) |
                (from->l ? CPU_SEG_L : 0) | (from->db ? CPU_SEG_DB : 0) |
                (from->g ? CPU_SEG_G : 0) | (from->unusable ? CPU_SEG_UNUSABLE : 0),
    };
}

static struct kvm_segment kvm_segment_set(const struct cpu_segment *from)
{
    return (struct kvm_segment){
        .base = from->base,
        .limit = from->limit,
        .selector = from->selector,
        .type = CPU_SEG_TYPE(from->attr),
        .s = (from->attr & CPU_SEG_S) != 0,
        .dpl = CPU_SEG_DPL(from->attr),
        .present = (from->attr & CPU_SEG_P) != 0,
        .avl = (from->attr & CPU_SEG_AVL) != 0,
        .l = (from->attr & CPU_SEG_L) != 0,
        .db = (from->attr & CPU_SEG_DB) != 0,
        .g = (from->attr & CPU_SEG_G) != 0,
        .unusable = (from->attr & CPU_SEG_UNUSABLE) != 0,
    };
}

static void kvm_sregs_to_state(const struct kvm_sregs *sregs, struct cpu_state *state)
{
    const struct kvm_segment *const segments[SEG_COUNT] = {
        [SEG_ES] = &sregs->es, [SEG_CS] = &sregs->cs, [SEG_SS] = &sregs->ss,
        [SEG_DS] = &sregs->ds, [SEG_FS] = &sregs->fs, [SEG_GS] = &sregs->gs,
    };

    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->seg[i] = kvm_segment_get(segments[i]);
    state->ldtr = kvm_segment_get(&sregs->ldt);
    state->tr = kvm_segment_get(&sregs->tr);
    state->gdtr = (struct cpu_table){sregs->gdt.base, sregs->gdt.limit};
    state->idtr = (struct cpu_table){sregs->idt.base, sregs->idt.limit};
    state->cr0 = sregs->cr0;
    state->cr2 = sregs->cr2;
    state->cr3 = sregs->cr3;
    state->cr4 = sregs->cr4;
    state->cr8 = sregs->cr8;
    state->efer = sregs->efer;
    state->msr.apic_base = sregs->apic_base;
}

static void kvm_state_to_sregs(const struct cpu_state *state, struct kvm_sregs *sregs)
{
    struct kvm_segment *const segments[SEG_COUNT] = {
        [SEG_ES] = &sregs->es, [SEG_CS] = &sregs->cs, [SEG_SS] = &sregs->ss,
        [SEG_DS] = &sregs->ds, [SEG_FS] = &sregs->fs, [SEG_GS] = &sregs->gs,
    };

    memset(sregs, 0, sizeof(*sregs));
    for (unsigned i = 0; i < SEG_COUNT; i++)
        *segments[i] = kvm_segment_set(&state->seg[i]);
    sregs->ldt = kvm_segment_set(&state->ldtr);
    sregs->tr = kvm_segment_set(&state->tr);
    sregs->gdt = (struct kvm_dtable){.base = state->gdtr.base, .limit = state->gdtr.limit};
    sregs->idt = (struct kvm_dtable){.base = state->idtr.base, .limit = state->idtr.limit};
    sregs->cr0 = state->cr0;
    sregs->cr2 = state->cr2;
    sregs->cr3 = state->cr3;
    sregs->cr4 = state->cr4;
    sregs->cr8 = state->cr8;
    sregs->efer = state->efer;
    sregs->apic_base = state->msr.apic_base;
}

/* Order of enum cpu_gpr. */
static void kvm_regs_to_state(const struct kvm_regs *regs, struct cpu_state *state)
{
    const uint64_t gpr[GPR_COUNT] = {
        regs->rax, regs->rcx, regs->rdx, regs->rbx, regs->rsp, regs->rbp, regs->rsi, regs->rdi,
        regs->r8,  regs->r9,  regs->r10, regs->r11, regs->r12, regs->r13, regs->r14, regs->r15,
    };

    memcpy(state->gpr, gpr, sizeof(gpr));
    state->rip = regs->rip;
    state->rflags = regs->rflags;
}

static void kvm_state_to_regs(const struct cpu_state *state, struct kvm_regs *regs)
{
    const uint64_t *gpr = state->gpr;

    *regs = (struct kvm_regs){
        .rax = gpr[GPR_RAX], .rbx = gpr[GPR_RBX], .rcx = gpr[GPR_RCX], .rdx = gpr[GPR_RDX],
        .rsi = gpr[GPR_RSI], .rdi = gpr[GPR_RDI], .rsp = gpr[GPR_RSP], .rbp = gpr[GPR_RBP],
        .r8 = gpr[GPR_R8],   .r9 = gpr[GPR_R9],   .r10 = gpr[GPR_R10], .r11 = gpr[GPR_R11],
        .r12 = gpr[GPR_R12], .r13 = gpr[GPR_R13], .r14 = gpr[GPR_R14], .r15 = gpr[GPR_R15],
        .rip = state->rip,   .rflags = state->rflags,
    };
}

/* The event that was cut off in the middle of its delivery: at most one. */
static void kvm_events_to_state(const struct kvm_vcpu_events *events, struct cpu_state *state)
{
    state->event_valid = 1;
    state->event_has_error = 0;
    state->event_error = 0;
    if (events->exception.injected) {
        state->event_type = 3;
        state->event_vector = events->exception.nr;
        state->event_has_error = events->exception.has_error_code;
        state->event_error = events->exception.error_code;
    } else if (events->interrupt.injected) {
        state->event_type = events->interrupt.soft ? 4 : 0;
        state->event_vector = events->interrupt.nr;
    } else if (events->nmi.injected) {
        state->event_type = 2;
        state->event_vector = VECTOR_NMI;
    } else {
        state->event_valid = 0;
        state->event_type = 0;
        state->event_vector = 0;
    }
    state->interrupt_shadow = (events->interrupt.shadow & KVM_X86_SHADOW_INT_STI ? 1u : 0u) |
                              (events->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS ? 2u : 0u);
    state->nmi_blocked = events->nmi.masked;
    state->nmi_pending = events->nmi.pending;
    state->smm = 0;
}

static void kvm_state_to_events(const struct cpu_state *state, struct kvm_vcpu_events *events)
{
    memset(events, 0, sizeof(*events));
    events->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    events->interrupt.shadow =
        (uint8_t)((state->interrupt_shadow & 1 ? KVM_X86_SHADOW_INT_STI : 0) |
                  (state->interrupt_shadow & 2 ? KVM_X86_SHADOW_INT_MOV_SS : 0));
    events->nmi.masked = state->nmi_blocked;
    events->nmi.pending = state->nmi_pending;
    if (state->sipi_pending) {
        events->flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
        events->sipi_vector = state->sipi_vector;
    }
    if (!state->event_valid)
        return;
    switch (state->event_type) {
    case 2:
        events->nmi.injected = 1;
        break;
    case 3:
        events->exception.injected = 1;
        events->exception.nr = state->event_vector;
        events->exception.has_error_code = state->event_has_error;
        events->exception.error_code = state->event_error;
        break;
    default:
        events->interrupt.injected = 1;
        events->interrupt.soft = state->event_type == 4;
        events->interrupt.nr = state->event_vector;
        break;
    }
}

/* CPU_SHUTDOWN has no counterpart: KVM leaves a shut-down vCPU runnable and says so in its exit. */
static uint8_t kvm_activity(uint32_t mp_state)
{
    switch (mp_state) {
    case KVM_MP_STATE_HALTED:
        return CPU_HALTED;
    case KVM_MP_STATE_UNINITIALIZED:
    case KVM_MP_STATE_INIT_RECEIVED:
        return CPU_WAIT_SIPI;
    default:
        return CPU_RUNNING;
    }
}

static uint32_t kvm_mp_state(const struct cpu_state *state)
{
    switch (state->activity) {
    case CPU_HALTED:
        return KVM_MP_STATE_HALTED;
    case CPU_WAIT_SIPI: /* not UNINITIALIZED, which waits for an INIT first */
        return state->sipi_pending ? KVM_MP_STATE_SIPI_RECEIVED : KVM_MP_STATE_INIT_RECEIVED;
    default:
        return KVM_MP_STATE_RUNNABLE;
    }
}

static int kvm_fpu_get(struct kvm_vcpu *vcpu, struct cpu_state *state)
{
    struct kvm_vm *kvm = kvm_vm_of(vcpu->vcpu.vm);
    struct kvm_xcrs xcrs = {0};

    memset(vcpu->xsave, 0, kvm->xsave_size);
    if (ioctl(vcpu->fd, kvm->has_xsave2 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, vcpu->xsave) < 0)
        return -errno;
    memcpy(state->xsave, vcpu->xsave, sizeof(state->xsave));
    state->xcr0 = XCR0_X87;
    if (!kvm->has_xcrs)
        return 0;
    if (ioctl(vcpu->fd, KVM_GET_XCRS, &xcrs) < 0)
        return -errno;
    for (uint32_t i = 0; i < xcrs.nr_xcrs && i < KVM_MAX_XCRS; i++) {
        if (xcrs.xcrs[i].xcr == 0)
            state->xcr0 = xcrs.xcrs[i].value;
    }
    return 0;
}

static int kvm_fpu_set(struct kvm_vcpu *vcpu, const struct cpu_state *state)
{
    struct kvm_vm *kvm = kvm_vm_of(vcpu->vcpu.vm);
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = state->xcr0}};

    if (kvm->has_xcrs && state->xcr0 && ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs) < 0)
        return -errno;
    memset(vcpu->xsave, 0, kvm->xsave_size);
    memcpy(vcpu->xsave, state->xsave, sizeof(state->xsave));
    return ioctl(vcpu->fd, KVM_SET_XSAVE, vcpu->xsave) < 0 ? -errno : 0;
}

int kvm_state_get(struct vcpu *opaque, struct cpu_state *state)
{
    struct kvm_vcpu *vcpu = kvm_vcpu_of(opaque);
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debug;
    struct kvm_mp_state mp_state;
    int ret;

    memset(state, 0, sizeof(*state));
    /* First: asking for it makes KVM act on an INIT or SIPI that waits. */
    if (ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp_state) < 0 ||
        ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0 || ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0 ||
        ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events) < 0 ||
        ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &debug) < 0)
        return -errno;
    kvm_regs_to_state(&regs, state);
    kvm_sregs_to_state(&sregs, state);
    kvm_events_to_state(&events, state);
    memcpy(state->dr, debug.db, sizeof(state->dr));
    state->dr6 = debug.dr6;
    state->dr7 = debug.dr7;
    state->activity = kvm_activity(mp_state.mp_state);
    ret = kvm_fpu_get(vcpu, state);
    return ret ? ret : kvm_msrs_get(vcpu, state);
}

int kvm_state_set(struct vcpu *opaque, const struct cpu_state *state)
{
    struct kvm_vcpu *vcpu = kvm_vcpu_of(opaque);
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debug = {.dr6 = state->dr6, .dr7 = state->dr7};
    struct kvm_mp_state mp_state = {.mp_state = kvm_mp_state(state)};
    int ret;

    kvm_state_to_regs(state, &regs);
    kvm_state_to_sregs(state, &sregs);
    kvm_state_to_events(state, &events);
    memcpy(debug.db, state->dr, sizeof(state->dr));
    ret = kvm_apic_base_set(vcpu, state->msr.apic_base);
    if (ret)
        return ret;
    if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0)
        return -errno;
    ret = kvm_fpu_set(vcpu, state);
    if (ret)
        return ret;
    ret = kvm_msrs_set(vcpu, state);
    if (ret)
        return ret;
    if (ioctl(vcpu->fd, KVM_SET_REGS, &regs) < 0 || ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &debug) < 0 ||
        ioctl(vcpu->fd, KVM_SET_MP_STATE, &mp_state) < 0 ||
        ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events) < 0)
        return -errno;
    return 0;
}
