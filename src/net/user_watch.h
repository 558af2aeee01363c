/*
 * What the user network waits for: sockets that come and go with every packet, and one deadline.
 *
 * Begin, add each descriptor, end: only what changed since the last time goes to the kernel. One thread waits
 * without the owner's lock; everything else is called with it.
 */
#ifndef NET_USER_WATCH_H
#define NET_USER_WATCH_H

#include <poll.h>
#include <stdint.h>

#include "base/compiler.h"

#define USER_WATCH_FDS 4096 /* descriptors above are not waited for */

struct user_watch {
    int epoll_fd, timer_fd, wake_fd; /* owned */
    struct pollfd *fds;              /* owned; in the order they were added */
    unsigned count, capacity;
    uint64_t deadline;               /* ns; what timer_fd is set to */
    uint32_t round;
    struct {
        uint32_t round;              /* of the last add */
        uint32_t events;             /* in the epoll set; 0: not there */
    } known[USER_WATCH_FDS];
    unsigned known_end;              /* above the highest descriptor there */
};

nodiscard int user_watch_init(struct user_watch *watch);
void user_watch_release(struct user_watch *watch);

void user_watch_begin(struct user_watch *watch);
/* libslirp's call-back: returns the index to ask user_watch_revents() for, or -1. */
int user_watch_add(int fd, int slirp_events, void *watch);
/* The descriptor was closed, or is a new one. */
void user_watch_forget(struct user_watch *watch, int fd);
/* timeout_ms: UINT32_MAX for none. */
void user_watch_end(struct user_watch *watch, uint32_t timeout_ms);

/* Sleeps until something may be ready. No lock. */
void user_watch_wait(struct user_watch *watch);
void user_watch_wake(struct user_watch *watch);

/* Asks what is ready among what was added last. */
void user_watch_check(struct user_watch *watch);
int user_watch_revents(int index, void *watch);

#endif
