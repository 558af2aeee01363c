/*
 * Architecture constants, named as in the Intel SDM (vol. 3A chapters 2, 4, 6; vol. 4) and the AMD APM
 * (vol. 2). Shared with the freestanding bare-metal hypervisor: constants only.
 */
#ifndef X86_ARCH_H
#define X86_ARCH_H

/* RFLAGS */
#define RFLAGS_CF   (1u << 0)
#define RFLAGS_ONE  (1u << 1)
#define RFLAGS_PF   (1u << 2)
#define RFLAGS_AF   (1u << 4)
#define RFLAGS_ZF   (1u << 6)
#define RFLAGS_SF   (1u << 7)
#define RFLAGS_TF   (1u << 8)
#define RFLAGS_IF   (1u << 9)
#define RFLAGS_DF   (1u << 10)
#define RFLAGS_OF   (1u << 11)
#define RFLAGS_IOPL (3u << 12)
#define RFLAGS_NT   (1u << 14)
#define RFLAGS_RF   (1u << 16)
#define RFLAGS_VM   (1u << 17)
#define RFLAGS_AC   (1u << 18)
#define RFLAGS_VIF  (1u << 19)
#define RFLAGS_VIP  (1u << 20)
#define RFLAGS_ID   (1u << 21)
#define RFLAGS_IOPL_SHIFT 12
#define RFLAGS_ARITH (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF)

/* Control registers */
#define CR0_PE (1u << 0)
#define CR0_MP (1u << 1)
#define CR0_EM (1u << 2)
#define CR0_TS (1u << 3)
#define CR0_ET (1u << 4)
#define CR0_NE (1u << 5)
#define CR0_WP (1u << 16)
#define CR0_AM (1u << 18)
#define CR0_NW (1u << 29)
#define CR0_CD (1u << 30)
#define CR0_PG (1u << 31)

#define CR3_PCID_MASK 0xfffull
#define CR3_NOFLUSH   (1ull << 63)

#define CR4_VME        (1u << 0)
#define CR4_PVI        (1u << 1)
#define CR4_TSD        (1u << 2)
#define CR4_DE         (1u << 3)
#define CR4_PSE        (1u << 4)
#define CR4_PAE        (1u << 5)
#define CR4_MCE        (1u << 6)
#define CR4_PGE        (1u << 7)
#define CR4_PCE        (1u << 8)
#define CR4_OSFXSR     (1u << 9)
#define CR4_OSXMMEXCPT (1u << 10)
#define CR4_UMIP       (1u << 11)
#define CR4_LA57       (1u << 12)
#define CR4_VMXE       (1u << 13)
#define CR4_FSGSBASE   (1u << 16)
#define CR4_PCIDE      (1u << 17)
#define CR4_OSXSAVE    (1u << 18)
#define CR4_SMEP       (1u << 20)
#define CR4_SMAP       (1u << 21)
#define CR4_PKE        (1u << 22)

#define XCR0_X87       (1u << 0)
#define XCR0_SSE       (1u << 1)
#define XCR0_AVX       (1u << 2)
#define XCR0_OPMASK    (1u << 5)
#define XCR0_ZMM_HI256 (1u << 6)
#define XCR0_HI16_ZMM  (1u << 7)
#define XCR0_PKRU      (1u << 9)
#define XCR0_AVX512    (XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM)

#define EFER_SCE   (1u << 0)
#define EFER_LME   (1u << 8)
#define EFER_LMA   (1u << 10)
#define EFER_NXE   (1u << 11)
#define EFER_FFXSR (1u << 14)
#define EFER_AUTOIBRS (1u << 21)

/* Exceptions */
#define VECTOR_DE 0u
#define VECTOR_DB 1u
#define VECTOR_NMI 2u
#define VECTOR_BP 3u
#define VECTOR_OF 4u
#define VECTOR_BR 5u
#define VECTOR_UD 6u
#define VECTOR_NM 7u
#define VECTOR_DF 8u
#define VECTOR_TS 10u
#define VECTOR_NP 11u
#define VECTOR_SS 12u
#define VECTOR_GP 13u
#define VECTOR_PF 14u
#define VECTOR_MF 16u
#define VECTOR_AC 17u
#define VECTOR_MC 18u
#define VECTOR_XM 19u

/* Page-fault error code */
#define PF_P    (1u << 0)
#define PF_W    (1u << 1)
#define PF_U    (1u << 2)
#define PF_RSVD (1u << 3)
#define PF_I    (1u << 4)
#define PF_PK   (1u << 5)

/* Page-table entries */
#define PTE_P   (1ull << 0)
#define PTE_W   (1ull << 1)
#define PTE_U   (1ull << 2)
#define PTE_PWT (1ull << 3)
#define PTE_PCD (1ull << 4)
#define PTE_A   (1ull << 5)
#define PTE_D   (1ull << 6)
#define PTE_PS  (1ull << 7)
#define PTE_G   (1ull << 8)
#define PTE_NX  (1ull << 63)

/* MSRs */
#define MSR_IA32_TSC            0x10u
#define MSR_IA32_APIC_BASE      0x1bu
#define MSR_IA32_FEATURE_CONTROL 0x3au
#define MSR_IA32_TSC_ADJUST     0x3bu
#define MSR_IA32_SPEC_CTRL      0x48u
#define MSR_IA32_PRED_CMD       0x49u
#define MSR_IA32_BIOS_SIGN_ID   0x8bu
#define MSR_IA32_MTRRCAP        0xfeu
#define MSR_IA32_ARCH_CAPABILITIES 0x10au
#define MSR_IA32_SYSENTER_CS    0x174u
#define MSR_IA32_SYSENTER_ESP   0x175u
#define MSR_IA32_SYSENTER_EIP   0x176u
#define MSR_IA32_MCG_CAP        0x179u
#define MSR_IA32_MCG_STATUS     0x17au
#define MSR_IA32_MISC_ENABLE    0x1a0u
#define MSR_IA32_DEBUGCTL       0x1d9u
#define MSR_IA32_MTRR_PHYSBASE0 0x200u
#define MSR_IA32_PAT            0x277u
#define MSR_IA32_MTRR_DEF_TYPE  0x2ffu
#define MSR_IA32_TSC_DEADLINE   0x6e0u
#define MSR_X2APIC_FIRST        0x800u
#define MSR_X2APIC_LAST         0x8ffu
#define MSR_IA32_XSS            0xda0u
#define MSR_EFER                0xc0000080u
#define MSR_STAR                0xc0000081u
#define MSR_LSTAR               0xc0000082u
#define MSR_CSTAR               0xc0000083u
#define MSR_SFMASK              0xc0000084u
#define MSR_FS_BASE             0xc0000100u
#define MSR_GS_BASE             0xc0000101u
#define MSR_KERNEL_GS_BASE      0xc0000102u
#define MSR_TSC_AUX             0xc0000103u
#define MSR_KVM_WALL_CLOCK_NEW  0x4b564d00u
#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01u

#define APIC_BASE_BSP    (1u << 8)
#define APIC_BASE_X2APIC (1u << 10)
#define APIC_BASE_ENABLE (1u << 11)
#define APIC_DEFAULT_PHYS 0xfee00000u

#endif
