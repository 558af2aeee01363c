/*
 * The `lodge` command: a table of subcommands, and what they share.
 *
 * A command returns the process's exit status. Usage errors print one sentence on standard error
 * and exit 64, all other failures 1.
 */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define CLI_EXIT_FAILURE 1
#define CLI_EXIT_USAGE   64

struct cli_command {
    const char *name;
    const char *summary; /* one line of `lodge --help` */
    int (*run)(int argc, char **argv); /* argv[0] is the command's name */
    void (*help)(void);  /* on standard output */
};

extern const struct cli_command *const cli_commands[]; /* NULL-terminated */

int cli_run(int argc, char **argv);
void cli_run_help(void);
int cli_doctor(int argc, char **argv);
void cli_doctor_help(void);

/* Prints err's message with the program's name; returns the exit status for it. */
int cli_fail(const struct error *err, int status);

/* main.c: gives the terminal back and ends the process as failed, whatever its threads are doing. Any thread. */
_Noreturn void cli_abandon(void);

/* suggest.c: the candidate nearest to `word` by edit distance, or NULL when none is near.
 * `names` is `count` strings, `stride` bytes apart. */
const char *cli_nearest(const char *word, const char *const *names, size_t count);

/* parse.c */
/* Whole decimal number in [min, max]. */
nodiscard int cli_parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *out);
/* Bytes: a number with an optional suffix K, M, G or T (powers of 1024). -ERANGE on overflow. */
nodiscard int cli_parse_size(const char *text, uint64_t *out);

#endif
