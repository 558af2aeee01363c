/*
 * The guest side of `make bench`. Usage:
 *   bench [--ms N] NAME...                      times workloads, N milliseconds each
 *   bench [--ms N] --command NAME ARGUMENT...   times a program; each starts warm
 *   bench --list                                names, classes, CPUs
 *   bench --mark WORD                           prints WORD and the clock
 *   bench --power-off                           in a guest's first process only
 * Without arguments, as the first process of a guest: takes names from the kernel's command line,
 * then powers off. One line for each: NAME NANOSECONDS-PER-OPERATION OPERATIONS, or NAME
 * skipped|failed WHY.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

enum { SAMPLES = 25, PATIENCE_SECONDS = 90 };

static const struct workload *const families[] = {integer_workloads, vector_workloads,
                                                  memory_workloads,  code_workloads,
                                                  kernel_workloads,  process_workloads};
static const char *current = "bench"; /* the workload that runs, for die() */

void die(const char *why)
{
    printf("%s failed %s\n", current, why);
    fflush(stdout);
    _exit(2);
}

void check(int ok, const char *what)
{
    if (!ok)
        die(what);
}

void *take(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
                    -1, 0);
    check(at != MAP_FAILED, "no memory");
    return at;
}

uint32_t next_random(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static uint64_t timed(void (*run)(uint64_t), uint64_t n)
{
    uint64_t start = now_ns();
    run(n);
    return now_ns() - start;
}

/*
 * How many operations take a share of the budget. The first run of a size may be slow, while
 * caches and translators warm up, so only a repeated one decides; `*spent` is what that one took.
 */
static uint64_t calibrate(void (*run)(uint64_t), uint64_t budget, uint64_t *spent)
{
    uint64_t share = budget / (2 * SAMPLES);
    for (uint64_t n = 1;;) {
        *spent = timed(run, n);
        if (*spent >= share)
            *spent = timed(run, n);
        if (*spent >= share)
            return n;
        n = *spent < budget / 1000 ? n * 8 : n * (budget / SAMPLES) / *spent + 1;
    }
}

/*
 * Up to SAMPLES runs, all together about `budget` ns. The lower quartile counts: what else the host
 * does only ever adds time.
 */
static void measure(void (*run)(uint64_t), uint64_t budget)
{
    double per_op[SAMPLES];
    uint64_t spent, total = 0, used = 0;
    uint64_t n = calibrate(run, budget, &spent);
    int samples = 0;
    do {
        per_op[samples++] = (double)spent / (double)n;
        total += n;
        used += spent;
        if (used + spent / 2 >= budget)
            break;
        spent = timed(run, n);
    } while (samples < SAMPLES);
    qsort(per_op, (size_t)samples, sizeof *per_op, compare);
    printf("%s %.2f %llu\n", current, per_op[samples / 4], (unsigned long long)total);
}

static char **command;

static void command_run(uint64_t n)
{
    while (n--) {
        int status;
        pid_t child = fork();
        if (child == 0) {
            int null = open("/dev/null", O_WRONLY);
            dup2(null, STDOUT_FILENO);
            execvp(command[0], command);
            _exit(127);
        }
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
            die("the program failed");
    }
}

static const struct workload *find(const char *name)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        for (const struct workload *w = families[i]; w->name; w++)
            if (strcmp(w->name, name) == 0)
                return w;
    return NULL;
}

/* In a process of its own, with a limit to its time: a workload that fails takes nothing else down.
 */
static int run_one(const char *name, uint64_t budget)
{
    int status;
    const struct workload *w = find(name);
    current = name;
    if (!w) {
        printf("%s failed there is no such workload\n", name);
        return 1;
    }
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(PATIENCE_SECONDS);
        const char *why = w->setup ? w->setup() : NULL;
        if (why)
            printf("%s skipped %s\n", name, why);
        else
            measure(w->run, budget);
        exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        status = 1;
    if (WIFSIGNALED(status))
        printf("%s failed %s\n", name,
               WTERMSIG(status) == SIGALRM ? "out of time" : strsignal(WTERMSIG(status)));
    fflush(stdout);
    return status != 0;
}

static int list(void)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        for (const struct workload *w = families[i]; w->name; w++)
            printf("%s %s %d\n", w->name, w->class, w->cpus);
    return 0;
}

/* --- as a guest's first process --- */

/* The value of a word NAME=VALUE of the kernel's command line, or "". */
static const char *kernel_option(char *line, const char *name)
{
    char *save = NULL;
    for (char *word = strtok_r(line, " \n", &save); word; word = strtok_r(NULL, " \n", &save))
        if (strncmp(word, name, strlen(name)) == 0 && word[strlen(name)] == '=')
            return word + strlen(name) + 1;
    return "";
}

static _Noreturn void power_off(void)
{
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

static void read_command_line(char *line, size_t size)
{
    int fd = open("/proc/cmdline", O_RDONLY);
    ssize_t got = fd < 0 ? 0 : read(fd, line, size - 1);
    line[got < 0 ? 0 : got] = 0;
    close(fd);
}

static void init_mount(void)
{
    static const char *const mounts[][2] = {
        {"proc", "/proc"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/dev/shm"}};
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        mkdir(mounts[i][1], 0755);
        mount(mounts[i][0], mounts[i][1], mounts[i][0], 0, NULL);
    }
    int console = open("/dev/console", O_RDWR);
    for (int fd = 0; console >= 0 && fd < 3; fd++)
        dup2(console, fd);
}

static _Noreturn void init_main(void)
{
    static char line[4096], copy[4096];
    char *save = NULL;
    init_mount();
    read_command_line(line, sizeof line);
    memcpy(copy, line, sizeof copy);
    uint64_t budget = strtoull(kernel_option(copy, "bench.ms"), NULL, 10) * 1000000;
    memcpy(copy, line, sizeof copy);
    printf("BENCH-START %llu\n", (unsigned long long)now_ns());
    for (char *name = strtok_r((char *)kernel_option(copy, "bench.run"), ",", &save); name;
         name = strtok_r(NULL, ",", &save))
        run_one(name, budget);
    printf("BENCH-END %llu\n", (unsigned long long)now_ns());
    power_off();
}

/* What is not timing. Returns -1 if the option is none of these. */
static int side_job(const char *option, const char *argument)
{
    if (strcmp(option, "--nothing") == 0) /* what the fork-exec workload starts */
        return 0;
    if (strcmp(option, "--list") == 0)
        return list();
    if (strcmp(option, "--mark") == 0 && argument)
        return printf("%s %llu\n", argument, (unsigned long long)now_ns()) < 0;
    if (strcmp(option, "--power-off") == 0 && getpid() == 1)
        power_off();
    return -1;
}

int main(int argc, char **argv)
{
    uint64_t budget = 300000000;
    int bad, at = 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 1 && getpid() == 1)
        init_main();
    if (argc > 2 && strcmp(argv[1], "--ms") == 0) {
        budget = strtoull(argv[2], NULL, 10) * 1000000;
        at = 3;
    }
    if (at == argc) {
        fprintf(
            stderr,
            "usage: bench [--ms N] NAME... | --command NAME ARGUMENT... | --list | --mark WORD\n");
        return 64;
    }
    if ((bad = side_job(argv[at], argv[at + 1])) >= 0)
        return bad;
    if (strcmp(argv[at], "--command") == 0 && argc > at + 2) {
        current = argv[at + 1];
        command = argv + at + 2;
        measure(command_run, budget);
        return 0;
    }
    for (bad = 0; at < argc; at++)
        bad |= run_one(argv[at], budget);
    return bad;
}
