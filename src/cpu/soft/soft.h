/*
 * The soft engine: executes x86-64 guests on x86-64 hosts without virtualization hardware.
 * This is its only public header; the design is in docs/soft-engine.md.
 */
#ifndef CPU_SOFT_SOFT_H
#define CPU_SOFT_SOFT_H

#include "cpu/engine.h"

extern const struct engine_ops soft_engine;

#endif
