#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "board/acpi/acpi.h"
#include "cli/cli.h"
#include "cli/options.h"

void cli_run_help(void)
{
    printf("usage: lodge run {--kernel FILE | --disk FILE} [options]\n\n"
           "Runs one machine in the foreground, its first serial port on standard input and output.\n"
           "Ctrl-] leaves. Exit status: 0 the guest powered off; 64 wrong usage; 1 any other failure.\n\n");
    run_options_help();
}

/* More than the host has cannot work; sparse use below that is the operator's business. */
static int check_memory(uint64_t memory, struct error *err)
{
    uint64_t host = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);

    if (memory <= host)
        return 0;
    return error_set(err, -ENOMEM,
                     "--memory: %llu MiB are more than the %llu MiB this host has (give less)",
                     (unsigned long long)(memory >> 20), (unsigned long long)(host >> 20));
}

/* With "auto" the first usable engine in order of preference, and a line that says why it is that one. */
static int choose_engine(struct run_options *options, struct error *err)
{
    struct engine_probe probe = {0};
    char passed[384] = "";

    for (unsigned i = 0; engines[i]; i++) {
        bool automatic = strcmp(options->engine, "auto") == 0;

        if (!automatic && strcmp(options->engine, engines[i]->name) != 0)
            continue;
        memset(&probe, 0, sizeof(probe));
        engines[i]->probe(&probe);
        if (probe.usable) {
            options->config.engine = engines[i];
            if (automatic)
                log_info("engine %s%s%s", engines[i]->name, passed[0] ? ": " : "", passed);
            return 0;
        }
        if (!automatic)
            return error_set(err, -ENODEV, "engine '%s' cannot be used here: %s%s%s%s",
                             engines[i]->name, probe.reason, probe.fix[0] ? " (" : "", probe.fix,
                             probe.fix[0] ? ")" : "");
        (void)snprintf(passed + strlen(passed), sizeof(passed) - strlen(passed),
                       "%s%s is not usable here, %s", passed[0] ? "; " : "", engines[i]->name,
                       probe.reason);
    }
    if (!passed[0])
        return error_set(err, -ENODEV, "engine '%s' is not part of this build (see 'lodge doctor')",
                         options->engine);
    return error_set(err, -ENODEV, "no engine works here: %s (see 'lodge doctor')", passed);
}

static int dump_acpi(const struct run_options *options, struct error *err)
{
    const struct vm_config *vm = &options->config;
    struct acpi_tables *tables = calloc(1, sizeof(*tables));
    struct memory_map map;
    const struct acpi_config config = {.cpus = vm->cpus, .map = &map};
    int ret = -ENOMEM;

    /* No engine is asked here, so the address width is the least that processors have. */
    memory_map_init(&map, vm->memory, 36);
    if (tables)
        ret = acpi_build(&config, tables);
    if (ret)
        error_set(err, ret, "cannot make the ACPI tables: %s", strerror(-ret));
    else
        ret = acpi_dump(tables, options->dump_acpi, err);
    free(tables);
    return ret;
}

static int run(struct run_options *options, int *status, struct error *err)
{
    int ret;

    if (options->dump_acpi)
        return dump_acpi(options, err);
    ret = check_memory(options->config.memory, err);
    if (ret == 0)
        ret = choose_engine(options, err);
    if (ret == 0)
        ret = vm_run(&options->config, status, err);
    return ret;
}

int cli_run(int argc, char **argv)
{
    struct run_options options;
    struct error err = {0};
    int status = 0, ret;

    ret = run_options_parse(&options, argc, argv, &err);
    if (ret) {
        run_options_release(&options);
        return cli_fail(&err, CLI_EXIT_USAGE);
    }
    if (options.config.verbose)
        log_set_level(LOG_DEBUG);
    ret = run(&options, &status, &err);
    run_options_release(&options);
    return ret ? cli_fail(&err, CLI_EXIT_FAILURE) : status;
}
