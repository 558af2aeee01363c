/* The isa-debug-exit port that test guests end with: a write of V ends the machine with status (V << 1) | 1. */
#ifndef DEVICE_DEBUG_EXIT_H
#define DEVICE_DEBUG_EXIT_H

#include "core/machine.h"

#define DEBUG_EXIT_PORT 0xf4u

nodiscard int debug_exit_create(struct machine *machine);

#endif
