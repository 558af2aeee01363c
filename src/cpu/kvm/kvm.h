/* The kvm engine: guests run by Linux /dev/kvm, with the kernel's interrupt chips. */
#ifndef CPU_KVM_KVM_H
#define CPU_KVM_KVM_H

#include "cpu/engine.h"

extern const struct engine_ops kvm_engine;

#endif
