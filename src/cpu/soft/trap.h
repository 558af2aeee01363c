/*
 * Host faults inside native stubs (stub.h) become the guest's exceptions.
 *
 * SIGFPE: unmasked x87 exceptions (#MF) and SIMD exceptions (#XM, or #UD without
 * CR4.OSXMMEXCPT). SIGILL: the host lacks the instruction (#UD). SIGSEGV by #GP: a stub that
 * loads state the host finds invalid (#GP). A page fault inside a stub is Lodge's own bug: it is
 * reported and the process ends. Faults elsewhere go to whoever handled them before.
 */
#ifndef CPU_SOFT_TRAP_H
#define CPU_SOFT_TRAP_H

#include "base/compiler.h"
#include "cpu/soft/vcpu.h"

/* Installs the signal handlers once per process; safe to repeat. 0 or negative errno. */
nodiscard int soft_trap_install(void);

/* From here on, faults in stubs on this thread belong to `cpu`. Cheap. */
void soft_trap_enter(struct soft_vcpu *cpu);

#endif
