/* The options of `lodge run`: text in, struct vm_config out. Nothing is opened here. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include "base/error.h"
#include "vm/vm.h"

struct run_options {
    struct vm_config config; /* config.engine is left to the caller */
    const char *engine;      /* "auto" or an engine's name */
    const char *dump_acpi;   /* a directory for the ACPI tables, instead of running; or NULL */
    char *storage[VM_DISKS_MAX]; /* owned copies of --disk arguments, cut into pieces */
    unsigned storage_count;
    char *firmware_copy;     /* owned copy of --firmware's argument, cut into pieces */
};

/* argv[0] is the command's name. -EINVAL with err set on a usage error; release either way. */
nodiscard int run_options_parse(struct run_options *options, int argc, char **argv,
                                struct error *err);
void run_options_release(struct run_options *options);

/* The table as text, for `lodge help run`. */
void run_options_help(void);

#endif
