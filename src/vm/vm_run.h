/*
 * One running machine, from power-on to its end. The calling thread becomes its main thread: it serves the
 * console, signals, and what the guest asks of the machine; vCPUs and devices have threads of their own.
 */
#ifndef VM_VM_RUN_H
#define VM_VM_RUN_H

#include "board/pc.h"
#include "vm/console.h"

struct vm_options {
    struct pc_config pc;
    const struct engine_ops *engine;
    struct console_options serial;
    bool no_reboot; /* a guest's reset ends the machine */
    bool stats;     /* print the engine's counters at the end */
};

/* Runs the machine. 0: it ended as `exit_code` says (0: the guest switched itself off, or the operator left).
 * Else a negative errno and the reason in err; nothing is left behind. */
nodiscard int vm_run(const struct vm_options *options, int *exit_code, struct error *err);

#endif
