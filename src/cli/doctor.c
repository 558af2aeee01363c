#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cpu/engine.h"

void cli_doctor_help(void)
{
    printf("usage: lodge doctor [--json]\n\n"
           "Runs a self-test guest on every engine and tells which work here, why the others do\n"
           "not, and what would help. Exit status 0 when at least one engine works, else 1.\n\n"
           "  --json    for programs: {\"engines\": [{\"name\", \"usable\", \"reason\", \"fix\",\n"
           "            \"code_cache\", \"code_cache_most\": the default of --code-cache in bytes, which is\n"
           "            1/code_cache_part of the guest's memory between these, or 0}],\n"
           "            \"chosen\": what --engine auto takes, or null}\n");
}

static int doctor_json(const struct engine_probe *probes, const char *chosen)
{
    json_t *list = json_array(), *root;

    for (unsigned i = 0; engines[i]; i++) {
        json_array_append_new(list, json_pack("{s:s, s:s, s:b, s:s, s:s, s:I, s:I, s:i}", "name",
                                              engines[i]->name, "description",
                                              engines[i]->description, "usable", probes[i].usable,
                                              "reason", probes[i].reason, "fix", probes[i].fix,
                                              "code_cache", (json_int_t)engines[i]->code_cache,
                                              "code_cache_most", (json_int_t)engines[i]->code_cache_most,
                                              "code_cache_part", (int)engines[i]->code_cache_part));
    }
    root = json_pack("{s:o, s:s?}", "engines", list, "chosen", chosen);
    if (!root || json_dumpf(root, stdout, JSON_INDENT(2))) {
        log_error("cannot write JSON");
        return CLI_EXIT_FAILURE;
    }
    printf("\n");
    json_decref(root);
    return chosen ? 0 : CLI_EXIT_FAILURE;
}

static int doctor_text(const struct engine_probe *probes, const char *chosen)
{
    for (unsigned i = 0; engines[i]; i++) {
        printf("%-6s %-9s %s\n", engines[i]->name, probes[i].usable ? "works" : "unusable",
               engines[i]->description);
        printf("       %s\n", probes[i].reason);
        if (!probes[i].usable && probes[i].fix[0])
            printf("       to fix: %s\n", probes[i].fix);
        if (engines[i]->code_cache)
            printf("       code cache: 1/%u of the guest's memory, %llu MiB to %llu MiB, unless --code-cache says otherwise\n",
                   engines[i]->code_cache_part, (unsigned long long)(engines[i]->code_cache >> 20),
                   (unsigned long long)(engines[i]->code_cache_most >> 20));
    }
    if (chosen)
        printf("\n--engine auto takes %s.\n", chosen);
    else
        printf("\nNo engine works here.\n");
    return chosen ? 0 : CLI_EXIT_FAILURE;
}

int cli_doctor(int argc, char **argv)
{
    struct engine_probe probes[8] = {0};
    const char *chosen = NULL;
    bool json = false;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") != 0) {
            log_error("doctor: unknown option '%s' (it takes --json)", argv[i]);
            return CLI_EXIT_USAGE;
        }
        json = true;
    }
    for (unsigned i = 0; engines[i]; i++) {
        engines[i]->probe(&probes[i]);
        if (probes[i].usable && !chosen)
            chosen = engines[i]->name;
    }
    return json ? doctor_json(probes, chosen) : doctor_text(probes, chosen);
}
