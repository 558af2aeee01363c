/*
 * One running machine, from its configuration to its end: what `lodge run` does.
 *
 * vm_run() builds the PC, starts a thread for each vCPU, runs the event loop on the calling thread
 * and comes back when the machine has ended. Everything it opened is closed again.
 */
#ifndef VM_VM_H
#define VM_VM_H

#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"
#include "board/firmware.h"
#include "board/pc.h"
#include "cpu/engine.h"
#include "net/net.h"

#define VM_CPUS_MAX  64u
#define VM_DISKS_MAX 16u
#define VM_CDROMS_MAX 8u
#define VM_INITRDS_MAX 32u

enum vm_serial {
    VM_SERIAL_STDIO, /* raw mode on a terminal; Ctrl-] leaves */
    VM_SERIAL_NONE,
    VM_SERIAL_FILE,  /* output only */
    VM_SERIAL_UNIX,  /* listening socket, one client at a time, may reconnect */
};

/* All strings are borrowed and outlive vm_run(). */
struct vm_config {
    const char *name;                 /* for messages */
    const struct engine_ops *engine;
    const char *cpu_model;            /* "host" or a name of cpu_model_names() */
    unsigned cpus;
    uint64_t memory;                  /* bytes, whole pages */
    uint64_t code_cache;              /* bytes, for engines that translate; 0: as the engine likes */
    const char *kernel;               /* NULL: firmware starts the machine */
    struct firmware_options firmware;
    const char *initrd[VM_INITRDS_MAX];
    unsigned initrd_count;
    const char *append;               /* never NULL */
    struct block_options disk[VM_DISKS_MAX];
    enum pc_disk_bus disk_bus[VM_DISKS_MAX]; /* of each */
    unsigned disk_count;
    struct block_options cdrom[VM_CDROMS_MAX];
    unsigned cdrom_count;
    bool net;                         /* user-mode NAT */
    struct net_user_options net_user;
    enum vm_serial serial;
    const char *serial_path;          /* file or unix */
    bool no_reboot;
    bool debug_exit;
    bool stats;                       /* print the engine's counters at the end */
    bool verbose;
    void (*abandon)(void);            /* any thread: must end the process; the machine cannot be taken down */
};

/* 0 when the guest powered itself off (or reset, with no_reboot: said in one line on standard error); then *status is
 * 0. With debug_exit *status may be what the guest asked for. Negative errno with err set when it could not start or go on. */
nodiscard int vm_run(const struct vm_config *config, int *status, struct error *err);

#endif
