/*
 * How signals end a machine: first the power button, so that the guest can end in order; then, when it has not
 * within a time of grace or a second signal comes, the plug.
 *
 * SIGTERM, SIGINT and SIGHUP ask for the end. SIGCONT is passed on, for the terminal. Main thread only.
 */
#ifndef VM_STOP_H
#define VM_STOP_H

#include <stdbool.h>
#include <uv.h>

/* In seconds. As long as service managers wait before they kill; and what is enough for a guest that only polls. */
#define STOP_GRACE      90u
#define STOP_GRACE_DEAF 5u

struct stop_events {
    bool (*button)(void *opaque);                   /* presses it; true: the guest listens to it */
    void (*plug)(void *opaque, const char *reason); /* ends the machine now, as a failure */
    void (*resumed)(void *opaque);                  /* SIGCONT */
    void *opaque;
};

enum { STOP_SIGNALS = 4 };

struct stop {
    struct stop_events events;
    uv_signal_t signals[STOP_SIGNALS];
    uv_timer_t grace;
    unsigned asked;   /* how often the operator asked to end it */
    int number;       /* the first signal that did */
    unsigned seconds; /* of grace */
};

/* The handles live in *stop until the loop has closed them after stop_unwatch(). */
void stop_watch(struct stop *stop, uv_loop_t *loop, const struct stop_events *events);
void stop_unwatch(struct stop *stop);

#endif
