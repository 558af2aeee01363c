/*
 * The architectural state of one vCPU, in the one form that every engine reads and writes.
 *
 * Names and encodings follow the Intel SDM and the AMD APM. The struct is plain data: it is
 * copied, compared, saved and sent; it holds no pointer. The local APIC's registers are saved
 * with the APIC device, in the same form whether the kernel or src/chip emulates it.
 */
#ifndef CPU_CPU_STATE_H
#define CPU_CPU_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/state.h"

enum cpu_gpr {
    GPR_RAX, GPR_RCX, GPR_RDX, GPR_RBX, GPR_RSP, GPR_RBP, GPR_RSI, GPR_RDI,
    GPR_R8, GPR_R9, GPR_R10, GPR_R11, GPR_R12, GPR_R13, GPR_R14, GPR_R15,
    GPR_COUNT
};

enum cpu_segment_name { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_COUNT };

/* A segment register with its hidden part. `limit` is in bytes, granularity already applied. */
struct cpu_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    /* Descriptor bits 40-55 as in VMCS access rights (SDM vol. 3C 24.4.1): type 3:0, S 4, DPL 6:5,
     * P 7, AVL 12, L 13, D/B 14, G 15; CPU_SEG_UNUSABLE: loaded with a null selector. */
    uint32_t attr;
};

#define CPU_SEG_TYPE(attr) ((attr) & 0xfu)
#define CPU_SEG_S          (1u << 4)
#define CPU_SEG_DPL(attr)  (((attr) >> 5) & 3u)
#define CPU_SEG_P          (1u << 7)
#define CPU_SEG_AVL        (1u << 12)
#define CPU_SEG_L          (1u << 13)
#define CPU_SEG_DB         (1u << 14)
#define CPU_SEG_G          (1u << 15)
#define CPU_SEG_UNUSABLE   (1u << 16)

struct cpu_table { /* GDTR, IDTR */
    uint64_t base;
    uint16_t limit;
};

/* Enough for x87, SSE, AVX, AVX-512 and PKRU in standard (non-compacted) format. */
#define CPU_XSAVE_SIZE 2752u

enum cpu_activity {
    CPU_RUNNING,
    CPU_HALTED,       /* HLT: waits for an interrupt */
    CPU_WAIT_SIPI,    /* after INIT, an application processor */
    CPU_SHUTDOWN,     /* triple fault */
};

/* Model-specific registers that are plain storage or have effects an engine applies on set. */
struct cpu_msrs {
    uint64_t apic_base; /* 0x1b */
    uint64_t tsc_adjust;
    uint64_t spec_ctrl;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t misc_enable;
    uint64_t pat;
    uint64_t star, lstar, cstar, sfmask;
    uint64_t kernel_gs_base; /* FS and GS base are in the segments */
    uint64_t tsc_aux;
    uint64_t tsc_deadline;
    uint64_t xss;
    uint64_t debugctl;
    uint64_t mtrr_def_type;
    uint64_t mtrr_fixed[11];
    uint64_t mtrr_phys_base[8], mtrr_phys_mask[8];
    /* KVM's paravirtual clock (Documentation/virt/kvm/x86/msr.rst) */
    uint64_t kvm_wall_clock, kvm_system_time;
    uint64_t kvm_poll_control;
};

struct cpu_state {
    uint64_t gpr[GPR_COUNT];
    uint64_t rip;
    uint64_t rflags;
    struct cpu_segment seg[SEG_COUNT];
    struct cpu_segment ldtr, tr;
    struct cpu_table gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer;
    uint64_t xcr0;
    uint64_t dr[4], dr6, dr7;
    struct cpu_msrs msr;
    uint64_t tsc; /* the guest's TSC at the moment of saving */

    uint8_t activity;            /* enum cpu_activity */
    uint8_t interrupt_shadow;    /* bit 0: STI, bit 1: MOV SS / POP SS */
    uint8_t nmi_blocked;         /* until IRET */
    uint8_t nmi_pending;
    uint8_t smm;                 /* always 0: SMRAM is disabled */
    uint8_t sipi_vector;         /* valid while sipi_pending */
    uint8_t sipi_pending;
    uint8_t event_valid;         /* an exception or interrupt was being delivered */
    uint8_t event_vector;
    uint8_t event_type;          /* as VM-entry interruption type: 0 ext, 2 NMI, 3 exception, 4 soft int */
    uint8_t event_has_error;
    uint32_t event_error;

    uint8_t xsave[CPU_XSAVE_SIZE] __attribute__((aligned(64))); /* XSAVE standard format */
};

extern const struct state_table cpu_state_table;

/* Power-on (INIT = false) or INIT state, SDM vol. 3A table 9-1. `bsp` sets the APIC base flag. */
void cpu_state_reset(struct cpu_state *state, bool bsp);

#endif
