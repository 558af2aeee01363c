#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"

const struct cli_command *const cli_commands[] = {
    &(const struct cli_command){"run", "run a machine in the foreground", cli_run, cli_run_help},
    &(const struct cli_command){"doctor", "tell which engines work on this machine, and why",
                                cli_doctor, cli_doctor_help},
    NULL,
};

static const struct cli_command *command_find(const char *name)
{
    for (unsigned i = 0; cli_commands[i]; i++) {
        if (strcmp(cli_commands[i]->name, name) == 0)
            return cli_commands[i];
    }
    return NULL;
}

static int command_unknown(const char *name)
{
    const char *names[8];
    const char *nearest;
    size_t count = 0;

    while (cli_commands[count]) {
        names[count] = cli_commands[count]->name;
        count++;
    }
    nearest = cli_nearest(name, names, count);
    if (nearest)
        log_error("there is no command '%s' (did you mean 'lodge %s'?)", name, nearest);
    else
        log_error("there is no command '%s' (see 'lodge --help')", name);
    return CLI_EXIT_USAGE;
}

static int help(int argc, char **argv)
{
    const struct cli_command *command;

    if (argc > 2) {
        command = command_find(argv[2]);
        if (!command)
            return command_unknown(argv[2]);
        command->help();
        return 0;
    }
    printf("Lodge " LODGE_VERSION ": runs whole operating systems on this machine.\n\n"
           "usage: lodge COMMAND [options]\n\n");
    for (unsigned i = 0; cli_commands[i]; i++)
        printf("  %-10s %s\n", cli_commands[i]->name, cli_commands[i]->summary);
    printf("  %-10s %s\n", "help", "explain a command");
    printf("\n'lodge help COMMAND' lists its options; the manual is lodge(1).\n");
    return 0;
}

int cli_fail(const struct error *err, int status)
{
    log_error("%s", err->message);
    return status;
}

/* The terminal as we found it: given back also when the program dies. */
static struct termios terminal_saved;
static bool terminal_is_saved;

static void terminal_on_crash(int number)
{
    tcsetattr(STDIN_FILENO, TCSANOW, &terminal_saved); /* async-signal-safe: POSIX 2.4.3 */
    raise(number); /* SA_RESETHAND: this time it kills */
}

static void terminal_guard(void)
{
    static const int numbers[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS};
    struct sigaction action = {.sa_handler = terminal_on_crash, .sa_flags = (int)SA_RESETHAND};

    if (tcgetattr(STDIN_FILENO, &terminal_saved) < 0)
        return;
    terminal_is_saved = true;
    for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++)
        sigaction(numbers[i], &action, NULL);
}

void cli_abandon(void)
{
    if (terminal_is_saved)
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal_saved);
    _exit(CLI_EXIT_FAILURE);
}

int main(int argc, char **argv)
{
    const struct cli_command *command;

    if (argc < 2) {
        log_error("which command? (see 'lodge --help')");
        return CLI_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return help(2, argv);
    if (strcmp(argv[1], "help") == 0)
        return help(argc, argv);
    if (strcmp(argv[1], "--version") == 0) {
        printf("lodge " LODGE_VERSION "\n");
        return 0;
    }
    command = command_find(argv[1]);
    if (!command)
        return command_unknown(argv[1]);
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            command->help();
            return 0;
        }
    }
    terminal_guard();
    return command->run(argc - 1, argv + 1);
}
