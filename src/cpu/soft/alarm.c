#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "cpu/soft/run.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

int soft_timer_signal(void)
{
    return SIGRTMIN + 4;
}

static void alarm_handler(int number, siginfo_t *info, void *context)
{
    struct soft_vcpu *cpu = info->si_value.sival_ptr;

    (void)number;
    (void)context;
    if (info->si_code == SI_TIMER && cpu)
        atomic_fetch_or(&cpu->attention, SOFT_ATTN_TIMER);
}

int soft_timer_install(void)
{
    struct sigaction action;

    soft_zero(&action, sizeof(action));
    action.sa_sigaction = alarm_handler;
    action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
    return sigaction(soft_timer_signal(), &action, NULL) < 0 ? -errno : 0;
}

int soft_timer_attach(struct soft_vcpu *cpu)
{
    int thread = (int)syscall(SYS_gettid);
    struct sigevent event;
    timer_t timer;

    if (cpu->thread == thread)
        return 0;
    soft_timer_release(cpu);
    soft_zero(&event, sizeof(event));
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = soft_timer_signal();
    event.sigev_value.sival_ptr = cpu;
    event.sigev_notify_thread_id = thread;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0)
        return -errno;
    cpu->timer = timer;
    cpu->thread = thread;
    cpu->timer_armed = CLOCK_NEVER;
    return 0;
}

void soft_timer_release(struct soft_vcpu *cpu)
{
    if (cpu->thread)
        timer_delete((timer_t)cpu->timer);
    cpu->thread = 0;
}

void soft_timer_arm(struct soft_vcpu *cpu, uint64_t deadline)
{
    struct itimerspec spec = {0};
    uint64_t now = clock_now();

    if (cpu->timer_armed <= now)
        cpu->timer_armed = CLOCK_NEVER; /* it has rung */
    if (!cpu->thread || deadline == CLOCK_NEVER || deadline >= cpu->timer_armed)
        return;
    spec.it_value.tv_sec = (time_t)(deadline / NSEC_PER_SEC);
    spec.it_value.tv_nsec = (long)(deadline % NSEC_PER_SEC);
    if (timer_settime((timer_t)cpu->timer, TIMER_ABSTIME, &spec, NULL) == 0)
        cpu->timer_armed = deadline;
}
