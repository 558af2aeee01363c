/* What translated code needs of the thread it runs on (thread.h). */
#include "cpu/soft/thread.h"

#include <asm/prctl.h>
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/soft/run.h"

#define THREAD_STACK_SIZE (64u << 10)
#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif

int soft_thread_init(struct soft_thread *thread)
{
    void *map = mmap(NULL, THREAD_STACK_SIZE + PAGE_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (map == MAP_FAILED)
        return -errno;
    if (mprotect(map, PAGE_SIZE, PROT_NONE) < 0) {
        munmap(map, THREAD_STACK_SIZE + PAGE_SIZE);
        return -ENOMEM;
    }
    thread->stack = map;
    return 0;
}

void soft_thread_release(struct soft_thread *thread)
{
    if (thread->stack)
        munmap(thread->stack, THREAD_STACK_SIZE + PAGE_SIZE);
    thread->stack = NULL;
}

/* The kernel would put a frame of any other handler where the guest's RSP points. */
static void block_other_signals(struct soft_thread *thread)
{
    sigset_t set;

    sigfillset(&set);
    sigdelset(&set, SIGFPE);
    sigdelset(&set, SIGILL);
    sigdelset(&set, SIGSEGV);
    sigdelset(&set, SIGBUS);
    sigdelset(&set, SIGABRT);
    sigdelset(&set, soft_timer_signal());
    pthread_sigmask(SIG_SETMASK, &set, &thread->mask);
}

int soft_thread_enter(struct soft_thread *thread, struct soft_vcpu *cpu)
{
    stack_t stack = {.ss_sp = thread->stack + PAGE_SIZE,
                     .ss_size = THREAD_STACK_SIZE,
                     .ss_flags = (int)SS_AUTODISARM};

    if (sigaltstack(&stack, &thread->previous) < 0)
        return -errno;
    if (syscall(SYS_arch_prctl, ARCH_SET_GS, cpu) < 0) {
        int ret = -errno;

        sigaltstack(&thread->previous, NULL);
        return ret;
    }
    block_other_signals(thread);
    return 0;
}

void soft_thread_leave(struct soft_thread *thread)
{
    pthread_sigmask(SIG_SETMASK, &thread->mask, NULL);
    sigaltstack(&thread->previous, NULL);
}
