/*
 * System architecture of the soft engine: segments, gates, tasks, control registers, MSRs, CPUID.
 * Each raises guest exceptions by soft_raise*. References: SDM vol. 3A chapters 3, 5, 6, 7; APM vol. 2.
 */
#ifndef CPU_SOFT_SYSTEM_H
#define CPU_SOFT_SYSTEM_H

#include "cpu/soft/vcpu.h"

/* event.c: delivers through IVT, IDT or task gate; sets next_rip to the handler (the caller commits
 * s.rip = next_rip, so INT n may call it from inside its instruction). Pushes s.rip for
 * exceptions, external interrupts and NMI, next_rip for the software ones. May itself raise: the run loop then combines the two into
 * #DF or shutdown by soft_event_combine(). */
void soft_event_deliver(struct soft_vcpu *cpu, const struct soft_event *event);
/* SDM vol. 3A table 6-5. False: shutdown (triple fault). */
bool soft_event_combine(const struct soft_event *first, const struct soft_event *second,
                        struct soft_event *out);

/* segment.c: MOV/POP/Lxx to a segment register other than CS. */
void soft_segment_load(struct soft_vcpu *cpu, unsigned seg, uint16_t selector);
/* Real and virtual-8086 mode form: base = selector * 16. */
void soft_segment_load_real(struct soft_vcpu *cpu, unsigned seg, uint16_t selector);

/* control.c: with all checks and TLB effects. */
void soft_cr_write(struct soft_vcpu *cpu, unsigned cr, uint64_t value);
uint64_t soft_cr_read(struct soft_vcpu *cpu, unsigned cr);
void soft_xcr0_write(struct soft_vcpu *cpu, uint64_t value);

/* msr.c: 0, or -1 when the guest gets #GP(0). */
int soft_msr_read(struct soft_vcpu *cpu, uint32_t msr, uint64_t *value);
int soft_msr_write(struct soft_vcpu *cpu, uint32_t msr, uint64_t value);

/* RFLAGS as POPF, IRET and SYSRET write them: only bits in mask change, reserved bits stay; sets
 * end_block when IF, TF, AC or VM changed. control.c */
void soft_rflags_write(struct soft_vcpu *cpu, uint64_t value, uint64_t mask);

/* Fixed contents of the segments that SYSCALL and friends load: present, accessed, 4 GiB. */
#define SOFT_FLAT_CODE64 0xa09bu
#define SOFT_FLAT_CODE32 0xc09bu
#define SOFT_FLAT_DATA   0xc093u
#define SOFT_FLAT_USER   0x60u /* DPL 3 */

#define SOFT_SYSRET_FLAGS 0x3c7fd7u /* SDM vol. 2B SYSRET: not RF, VM, reserved */

/* #GP(0) unless the I/O permission (IOPL or the TSS bitmap) allows `size` ports from port. control.c */
void soft_io_check(struct soft_vcpu *cpu, uint16_t port, unsigned size);

/* Hardware breakpoints after a data or I/O access, and the trap of single-step: run loop. debug.c */
void soft_debug_trap(struct soft_vcpu *cpu, uint64_t dr6_bits);
/* Data breakpoints (SDM vol. 3B 17.2.4). A page that one lies in is never in the TLB, so that every access
 * to it takes the slow path, which notes what it touched; the run loop raises the #DB. debug.c */
bool soft_debug_watched(const struct soft_vcpu *cpu, gva_t gva); /* some breakpoint is in gva's page */
void soft_debug_note(struct soft_vcpu *cpu, gva_t gva, unsigned len, bool write);

#endif
