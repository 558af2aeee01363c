#include "vm/stop.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

static void stop_on_grace_over(uv_timer_t *timer)
{
    struct stop *stop = timer->data;
    char reason[128];

    snprintf(reason, sizeof(reason), "stopped: the guest did not power itself off within %u s of %s",
             stop->seconds, strsignal(stop->number));
    stop->events.plug(stop->events.opaque, reason);
}

static void stop_press_button(struct stop *stop, int number)
{
    bool listens = stop->events.button(stop->events.opaque);

    stop->number = number;
    stop->seconds = listens ? STOP_GRACE : STOP_GRACE_DEAF;
    log_info("signal %d: pressed the power button%s; the machine is stopped in %u s, or by one more signal",
             number, listens ? "" : ", to which the guest does not listen", stop->seconds);
    uv_timer_start(&stop->grace, stop_on_grace_over, (uint64_t)stop->seconds * 1000, 0);
}

static void stop_on_signal(uv_signal_t *signal, int number)
{
    struct stop *stop = signal->data;

    if (number == SIGCONT)
        stop->events.resumed(stop->events.opaque);
    else if (stop->asked++ == 0)
        stop_press_button(stop, number);
    else
        stop->events.plug(stop->events.opaque, "stopped at once by a second signal");
}

void stop_watch(struct stop *stop, uv_loop_t *loop, const struct stop_events *events)
{
    static const int numbers[STOP_SIGNALS] = {SIGTERM, SIGINT, SIGHUP, SIGCONT};

    *stop = (struct stop){.events = *events};
    uv_timer_init(loop, &stop->grace);
    stop->grace.data = stop;
    for (unsigned i = 0; i < STOP_SIGNALS; i++) {
        uv_signal_init(loop, &stop->signals[i]);
        stop->signals[i].data = stop;
        uv_signal_start(&stop->signals[i], stop_on_signal, numbers[i]);
    }
}

void stop_unwatch(struct stop *stop)
{
    uv_close((uv_handle_t *)&stop->grace, NULL);
    for (unsigned i = 0; i < STOP_SIGNALS; i++)
        uv_close((uv_handle_t *)&stop->signals[i], NULL);
}
