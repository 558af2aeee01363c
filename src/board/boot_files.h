/*
 * The files that a machine boots from. They are opened once and kept open: a reset loads the same
 * files again, also when they have been replaced or deleted meanwhile.
 */
#ifndef BOARD_BOOT_FILES_H
#define BOARD_BOOT_FILES_H

#include "board/boot.h"

struct boot_paths {
    const char *kernel; /* borrowed, as all strings here; NULL: nothing is loaded */
    const char *modules[BOOT_MODULES_MAX];
    unsigned module_count;
    const char *cmdline; /* NULL: empty */
};

struct boot_source {
    struct boot_paths paths;
    int kernel_fd;                    /* owned; -1: none */
    int module_fds[BOOT_MODULES_MAX]; /* owned */
};

/* Opens every file. The error names the one that is missing, unreadable or no regular file. */
nodiscard int boot_source_open(struct boot_source *source, const struct boot_paths *paths,
                               struct error *err);
void boot_source_close(struct boot_source *source);

/* Reads the files, loads them as boot_load() does, and frees what it read. */
nodiscard int boot_source_load(const struct boot_source *source, const struct boot_target *target,
                               struct error *err);

#endif
