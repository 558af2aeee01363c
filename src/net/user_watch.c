#include "net/user_watch.h"

#include <errno.h>
#include <slirp/libslirp.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include "base/clock.h"

static int watch_own(struct user_watch *watch, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

    return fd < 0 || epoll_ctl(watch->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

int user_watch_init(struct user_watch *watch)
{
    int ret;

    watch->deadline = CLOCK_NEVER;
    watch->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (watch->epoll_fd < 0)
        return -errno;
    watch->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    watch->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ret = watch_own(watch, watch->timer_fd);
    if (!ret)
        ret = watch_own(watch, watch->wake_fd);
    if (ret)
        user_watch_release(watch);
    return ret;
}

void user_watch_release(struct user_watch *watch)
{
    close(watch->epoll_fd);
    if (watch->timer_fd >= 0)
        close(watch->timer_fd);
    if (watch->wake_fd >= 0)
        close(watch->wake_fd);
    free(watch->fds);
}

void user_watch_begin(struct user_watch *watch)
{
    watch->count = 0;
    watch->round++;
}

/* A descriptor that was closed has left the set by itself: what the kernel says counts. */
static void watch_set(struct user_watch *watch, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    bool there = watch->known[fd].events != 0;

    if (events == 0)
        (void)epoll_ctl(watch->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    else if (epoll_ctl(watch->epoll_fd, there ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event))
        (void)epoll_ctl(watch->epoll_fd, there ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event);
    watch->known[fd].events = events;
}

void user_watch_forget(struct user_watch *watch, int fd)
{
    if (fd >= 0 && fd < USER_WATCH_FDS)
        watch->known[fd].events = 0;
}

static short poll_events(int slirp_events)
{
    return (short)((slirp_events & SLIRP_POLL_IN ? POLLIN : 0) |
                   (slirp_events & SLIRP_POLL_OUT ? POLLOUT : 0) |
                   (slirp_events & SLIRP_POLL_PRI ? POLLPRI : 0));
}

int user_watch_add(int fd, int slirp_events, void *opaque)
{
    struct user_watch *watch = opaque;
    short events = poll_events(slirp_events);

    if (fd < 0 || fd >= USER_WATCH_FDS)
        return -1;
    if (watch->count == watch->capacity) {
        unsigned capacity = watch->capacity ? 2 * watch->capacity : 64;
        struct pollfd *fds = realloc(watch->fds, capacity * sizeof(*fds));

        if (!fds)
            return -1;
        watch->fds = fds;
        watch->capacity = capacity;
    }
    watch->fds[watch->count] = (struct pollfd){.fd = fd, .events = events};
    watch->known[fd].round = watch->round;
    if ((unsigned)fd >= watch->known_end)
        watch->known_end = (unsigned)fd + 1;
    /* The bits of poll() and epoll are the same. An error on a socket is always reported. */
    if (watch->known[fd].events != ((uint32_t)(uint16_t)events | EPOLLERR))
        watch_set(watch, fd, (uint32_t)(uint16_t)events | EPOLLERR);
    return (int)watch->count++;
}

static void watch_deadline(struct user_watch *watch, uint32_t timeout_ms)
{
    uint64_t now = clock_now();
    uint64_t deadline = timeout_ms == UINT32_MAX ? CLOCK_NEVER : now + timeout_ms * NSEC_PER_MSEC;
    struct itimerspec spec = {0};

    /* An earlier wake-up that is set already does no harm, and setting costs. */
    if (deadline == CLOCK_NEVER || (watch->deadline > now && watch->deadline <= deadline))
        return;
    spec.it_value.tv_sec = (time_t)(deadline / NSEC_PER_SEC);
    spec.it_value.tv_nsec = (long)(deadline % NSEC_PER_SEC);
    if (timerfd_settime(watch->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL) == 0)
        watch->deadline = deadline;
}

void user_watch_end(struct user_watch *watch, uint32_t timeout_ms)
{
    for (unsigned fd = 0; fd < watch->known_end; fd++) {
        if (watch->known[fd].events && watch->known[fd].round != watch->round)
            watch_set(watch, (int)fd, 0);
    }
    while (watch->known_end && !watch->known[watch->known_end - 1].events)
        watch->known_end--;
    watch_deadline(watch, timeout_ms);
}

void user_watch_wait(struct user_watch *watch)
{
    struct epoll_event events[16];
    uint64_t count;
    int n = epoll_wait(watch->epoll_fd, events, ARRAY_SIZE(events), -1);

    for (int i = 0; i < n; i++) {
        int fd = events[i].data.fd;

        if ((fd == watch->timer_fd || fd == watch->wake_fd) &&
            read(fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
            return;
    }
}

void user_watch_wake(struct user_watch *watch)
{
    uint64_t one = 1;

    while (write(watch->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

void user_watch_check(struct user_watch *watch)
{
    if (poll(watch->fds, watch->count, 0) < 0)
        watch->count = 0;
}

int user_watch_revents(int index, void *opaque)
{
    const struct user_watch *watch = opaque;
    short revents;

    if (index < 0 || (unsigned)index >= watch->count)
        return 0;
    revents = watch->fds[index].revents;
    return (revents & POLLIN ? SLIRP_POLL_IN : 0) | (revents & POLLOUT ? SLIRP_POLL_OUT : 0) |
           (revents & POLLPRI ? SLIRP_POLL_PRI : 0) | (revents & POLLERR ? SLIRP_POLL_ERR : 0) |
           (revents & POLLHUP ? SLIRP_POLL_HUP : 0);
}
