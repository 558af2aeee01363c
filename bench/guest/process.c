/* Processes, threads, pipes, and two CPUs at once. */
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

static void reap(pid_t child)
{
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        die("the child failed");
}

static void fork_run(uint64_t n)
{
    while (n--) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        reap(child);
    }
}

static void exec_run(uint64_t n)
{
    while (n--) {
        pid_t child = fork();
        if (child == 0) {
            execl("/proc/self/exe", "bench", "--nothing", (char *)NULL);
            _exit(1);
        }
        reap(child);
    }
}

static void *nothing(void *argument)
{
    return argument;
}

static void thread_run(uint64_t n)
{
    while (n--) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, nothing, NULL))
            die("pthread_create");
        pthread_join(thread, NULL);
    }
}

/* The number-th CPU that this process may use. */
static int cpu_at(int number)
{
    cpu_set_t allowed;
    sched_getaffinity(0, sizeof allowed, &allowed);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && number-- == 0)
            return cpu;
    return -1;
}

static void pin(int cpu)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}

/* --- a byte to and fro between two processes on one CPU --- */

static int there[2], back[2];

static const char *pipe_setup(void)
{
    char byte;
    pin(cpu_at(0));
    check(!pipe(there) && !pipe(back), "pipe");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
            ;
        _exit(0);
    }
    return NULL; /* the child ends with our end of the pipe */
}

static void pipe_run(uint64_t n)
{
    char byte = 0;
    while (n--)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            die("the pipe broke");
}

/* --- the same work on one CPU, and on two at once --- */

struct part {
    int cpu;
    uint64_t n;
};

static void *part_run(void *argument)
{
    struct part *part = argument;
    pin(part->cpu);
    interpreter_run(part->n);
    return NULL;
}

static const char *smp_setup(void)
{
    if (cpu_at(1) < 0)
        return "one CPU only";
    return interpreter_setup();
}

static void parts_run(uint64_t n, int parts)
{
    struct part part[2];
    pthread_t thread[2];
    for (int i = 0; i < parts; i++) {
        part[i] = (struct part){cpu_at(i), n};
        if (pthread_create(&thread[i], NULL, part_run, &part[i]))
            die("pthread_create");
    }
    for (int i = 0; i < parts; i++)
        pthread_join(thread[i], NULL);
}

static void one_cpu_run(uint64_t n)
{
    parts_run(n, 1);
}

static void two_cpus_run(uint64_t n)
{
    parts_run(n, 2);
}

const struct workload process_workloads[] = {
    {"fork", "fork", 1, NULL, fork_run},
    {"fork-exec", "exec", 1, NULL, exec_run},
    {"thread", "thread", 1, NULL, thread_run},
    {"pipe", "pipe", 1, pipe_setup, pipe_run},
    {"one-cpu", "smp", 2, smp_setup, one_cpu_run},
    {"two-cpus", "smp", 2, smp_setup, two_cpus_run},
    {0},
};
