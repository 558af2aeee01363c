/* What the guest's kernel does for one process: calls, clocks, files, faults, signals. */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "bench.h"

enum { PAGE = 4096 };

static void getppid_run(uint64_t n)
{
    while (n--)
        syscall(SYS_getppid);
}

static void clock_run(uint64_t n)
{
    struct timespec now;
    while (n--)
        clock_gettime(CLOCK_MONOTONIC, &now);
}

/* --- files, in memory --- */

static int file;
static char file_name[64];

static const char *pread_setup(void)
{
    static char block[PAGE];
    file = memfd_create("bench", 0);
    check(file >= 0, "memfd_create");
    for (int i = 0; i < 256; i++)
        check(write(file, block, PAGE) == PAGE, "write");
    return NULL;
}

static void pread_run(uint64_t n)
{
    static char block[PAGE];
    while (n--)
        if (pread(file, block, PAGE, (off_t)(n * 37 % 256 * PAGE)) != PAGE)
            die("pread");
}

static void open_done(void)
{
    unlink(file_name);
}

static const char *open_setup(void)
{
    static const char *const patterns[] = {"/dev/shm/bench.XXXXXX", "/tmp/bench.XXXXXX"};
    for (size_t i = 0; i < 2; i++) {
        for (size_t at = 0; at < sizeof file_name - 1 && (at == 0 || patterns[i][at - 1]); at++)
            file_name[at] = patterns[i][at];
        if ((file = mkstemp(file_name)) >= 0)
            break;
    }
    check(file >= 0, "mkstemp");
    close(file);
    atexit(open_done);
    return NULL;
}

static void open_run(uint64_t n)
{
    while (n--) {
        int fd = open(file_name, O_RDONLY);
        if (fd < 0)
            die("open");
        close(fd);
    }
}

/* --- memory --- */

static char *map(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        die("mmap");
    return at;
}

enum { FAULTS = 64 };

/* One operation maps 64 pages and touches each. */
static void fault_run(uint64_t n)
{
    while (n--) {
        char *region = map(FAULTS * PAGE);
        for (int i = 0; i < FAULTS; i++)
            *(volatile char *)(region + i * PAGE) = 1;
        munmap(region, FAULTS * PAGE);
    }
}

static void mmap_run(uint64_t n)
{
    while (n--) {
        char *region = map(4 * PAGE);
        *(volatile char *)region = 1;
        munmap(region, 4 * PAGE);
    }
}

static char *page;

static const char *page_setup(void)
{
    page = map(PAGE);
    *page = 1;
    return NULL;
}

static void mprotect_run(uint64_t n)
{
    while (n--) {
        if (mprotect(page, PAGE, PROT_READ) || mprotect(page, PAGE, PROT_READ | PROT_WRITE))
            die("mprotect");
        ++*(volatile char *)page;
    }
}

/* --- signals --- */

static volatile uint64_t signals;

static void count_signal(int number)
{
    (void)number;
    signals++;
}

static const char *signal_setup(void)
{
    struct sigaction action = {.sa_handler = count_signal};
    sigaction(SIGUSR1, &action, NULL);
    return NULL;
}

static void signal_run(uint64_t n)
{
    pid_t self = getpid();
    signals = 0;
    for (uint64_t i = 0; i < n; i++)
        kill(self, SIGUSR1);
    check(signals == n, "every signal arrived");
}

/* Steps over the load in segv_run. */
static void skip_load(int number, siginfo_t *info, void *context)
{
    ucontext_t *user = context;
    (void)number;
    (void)info;
    user->uc_mcontext.gregs[REG_RIP] += 3;
    signals++;
}

static const char *segv_setup(void)
{
    struct sigaction action = {.sa_sigaction = skip_load, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    page = map(PAGE);
    mprotect(page, PAGE, PROT_NONE);
    return NULL;
}

static void segv_run(uint64_t n)
{
    signals = 0;
    for (uint64_t i = 0; i < n; i++)
        __asm__ volatile(".byte 0x48, 0x8b, 0x07"
                         :
                         : "D"(page)
                         : "rax", "memory"); /* mov (%rdi), %rax */
    check(signals == n, "every fault was signalled");
}

const struct workload kernel_workloads[] = {
    {"getppid", "syscall", 1, NULL, getppid_run},
    {"clock_gettime", "syscall", 1, NULL, clock_run},
    {"pread-4k", "pread", 1, pread_setup, pread_run},
    {"open-close", "open", 1, open_setup, open_run},
    {"page-fault", "fault", 1, NULL, fault_run},
    {"mmap-munmap", "fault", 1, NULL, mmap_run},
    {"mprotect", "fault", 1, page_setup, mprotect_run},
    {"signal", "signal", 1, signal_setup, signal_run},
    {"sigsegv", "signal", 1, segv_setup, segv_run},
    {0},
};
