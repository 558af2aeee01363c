/*
 * The vCPU threads of one machine: one host thread each, that runs the guest or is parked.
 *
 * vcpus_pause() and vcpus_resume() come from the main thread. While paused, every thread is parked and the
 * vCPUs' states may be read and written from the main thread.
 */
#ifndef VM_VCPUS_H
#define VM_VCPUS_H

#include "board/pc.h"

/* What a vCPU reports from its own thread; it then waits to be paused. */
struct vcpus_events {
    void (*shutdown)(void *opaque);                     /* triple fault */
    void (*failed)(void *opaque, const char *message);  /* the engine cannot go on */
    void *opaque;
};

struct vcpus;

/* Starts the threads, parked, each with its vCPU made. */
nodiscard int vcpus_create(struct pc *pc, const struct vcpus_events *events, struct vcpus **out,
                           struct error *err);
void vcpus_resume(struct vcpus *vcpus);
void vcpus_pause(struct vcpus *vcpus);
/* The array of the machine's vCPUs, by index. */
struct vcpu *const *vcpus_array(const struct vcpus *vcpus);
/* Ends the threads, each destroying its vCPU. They must be paused. */
void vcpus_destroy(struct vcpus *vcpus);

#endif
