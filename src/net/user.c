/*
 * User-mode NAT on libslirp: the guest's TCP and UDP become the host's sockets; no root needed.
 *
 * libslirp has no locks: `lock` is held around every call into it, and so around its call-backs. The
 * card's thread brings frames in by itself; a thread of our own waits for the sockets. What it waits for
 * is an epoll set kept in step after every call, so that new sockets need no wake-up: a wake across CPUs
 * costs more than the frame.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "net/net.h"
#include "net/user_watch.h"

#define FRAME_MAX   (65521u + 14u) /* from the card: libslirp's largest IP packet, and the Ethernet header */
#define PACKET_MAX  16000u         /* to the card: the MTU of device/virtio/net.c */
#define BACKLOG_MAX 512u
#define TIMERS_MAX  4u

struct user_timer {
    bool used;
    SlirpTimerId id;
    void *opaque;
    uint64_t deadline; /* ms; UINT64_MAX: idle */
};

struct user_frame { /* waits until the card has room */
    uint8_t *bytes; /* owned */
    size_t len;
};

struct net_user {
    struct net net;
    pthread_mutex_t lock; /* everything below, and libslirp */
    Slirp *slirp;         /* owned */
    struct net_peer peer;
    bool started;
    struct user_watch watch;
    struct user_timer timer[TIMERS_MAX];
    struct user_frame backlog[BACKLOG_MAX]; /* ring */
    unsigned backlog_first, backlog_count;
    uint8_t frame[FRAME_MAX]; /* from the card, made linear */
    pthread_t thread;
    atomic_bool stop;
};

static uint64_t now_ms(void)
{
    return clock_now() / NSEC_PER_MSEC;
}

static bool peer_offer(struct net_user *user, const void *bytes, size_t len)
{
    struct iovec iov = {.iov_base = (void *)bytes, .iov_len = len};

    return user->peer.receive(user->peer.opaque, &iov, 1);
}

/* Keeps a frame for later; a full backlog drops it, as a switch would. */
static void backlog_add(struct net_user *user, const void *bytes, size_t len)
{
    struct user_frame *frame;
    uint8_t *copy;

    if (user->backlog_count == BACKLOG_MAX)
        return;
    copy = malloc(len);
    if (!copy)
        return;
    memcpy(copy, bytes, len);
    frame = &user->backlog[(user->backlog_first + user->backlog_count++) % BACKLOG_MAX];
    *frame = (struct user_frame){.bytes = copy, .len = len};
}

static void backlog_drop_first(struct net_user *user)
{
    free(user->backlog[user->backlog_first].bytes);
    user->backlog_first = (user->backlog_first + 1) % BACKLOG_MAX;
    user->backlog_count--;
}

static void backlog_drain(struct net_user *user)
{
    while (user->backlog_count) {
        const struct user_frame *frame = &user->backlog[user->backlog_first];

        if (!peer_offer(user, frame->bytes, frame->len))
            return;
        backlog_drop_first(user);
    }
}

static ssize_t cb_send_packet(const void *bytes, size_t len, void *opaque)
{
    struct net_user *user = opaque;

    if (user->started && (user->backlog_count || !peer_offer(user, bytes, len)))
        backlog_add(user, bytes, len);
    return (ssize_t)len;
}

static void cb_guest_error(const char *message, void *opaque)
{
    (void)opaque;
    log_guest("user network: %s", message);
}

static int64_t cb_clock(void *opaque)
{
    (void)opaque;
    return (int64_t)clock_now();
}

static void *cb_timer_new(SlirpTimerId id, void *timer_opaque, void *opaque)
{
    struct net_user *user = opaque;

    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        struct user_timer *timer = &user->timer[i];

        if (timer->used)
            continue;
        *timer = (struct user_timer){
            .used = true, .id = id, .opaque = timer_opaque, .deadline = UINT64_MAX};
        return timer;
    }
    return NULL;
}

static void cb_timer_free(void *opaque_timer, void *opaque)
{
    struct user_timer *timer = opaque_timer;

    (void)opaque;
    if (timer)
        timer->used = false;
}

static void cb_timer_mod(void *opaque_timer, int64_t expire_ms, void *opaque)
{
    struct user_timer *timer = opaque_timer;

    (void)opaque;
    if (timer)
        timer->deadline = (uint64_t)expire_ms;
}

/* A new socket may have the number of an old one. */
static void cb_poll_fd(int fd, void *opaque)
{
    struct net_user *user = opaque;

    user_watch_forget(&user->watch, fd);
}

static void cb_notify(void *opaque)
{
    (void)opaque;
}

static const SlirpCb user_callbacks = {
    .send_packet = cb_send_packet,
    .guest_error = cb_guest_error,
    .clock_get_ns = cb_clock,
    .timer_free = cb_timer_free,
    .timer_mod = cb_timer_mod,
    .register_poll_fd = cb_poll_fd,
    .unregister_poll_fd = cb_poll_fd,
    .notify = cb_notify,
    .timer_new_opaque = cb_timer_new,
};

static void timers_run(struct net_user *user)
{
    uint64_t now = now_ms();

    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        struct user_timer *timer = &user->timer[i];

        if (!timer->used || timer->deadline > now)
            continue;
        timer->deadline = UINT64_MAX;
        slirp_handle_timer(user->slirp, timer->id, timer->opaque);
    }
}

/* Brings the epoll set and the timer in line with what libslirp waits for now. */
static void user_rearm(struct net_user *user)
{
    uint32_t timeout = UINT32_MAX;
    uint64_t now = now_ms();

    user_watch_begin(&user->watch);
    slirp_pollfds_fill(user->slirp, &timeout, user_watch_add, &user->watch);
    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        const struct user_timer *timer = &user->timer[i];

        if (timer->used && timer->deadline != UINT64_MAX) {
            uint64_t wait = timer->deadline > now ? timer->deadline - now : 0;

            timeout = wait < timeout ? (uint32_t)wait : timeout;
        }
    }
    /* libslirp asks for a look every second even when it has nothing to wait for. */
    user_watch_end(&user->watch, timeout < 1000 ? timeout : UINT32_MAX);
}

static void user_send(struct net *net, const struct iovec *iov, unsigned count)
{
    struct net_user *user = container_of(net, struct net_user, net);
    size_t len = 0;

    pthread_mutex_lock(&user->lock);
    for (unsigned i = 0; i < count; i++) {
        if (iov[i].iov_len > sizeof(user->frame) - len)
            goto out; /* larger than any IP packet: nobody would take it */
        memcpy(user->frame + len, iov[i].iov_base, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    slirp_input(user->slirp, user->frame, (int)len);
    user_rearm(user);
out:
    pthread_mutex_unlock(&user->lock);
}

static void user_room(struct net *net)
{
    struct net_user *user = container_of(net, struct net_user, net);

    pthread_mutex_lock(&user->lock);
    backlog_drain(user);
    pthread_mutex_unlock(&user->lock);
}

static void *user_main(void *opaque)
{
    struct net_user *user = opaque;

    while (!atomic_load(&user->stop)) {
        user_watch_wait(&user->watch);
        pthread_mutex_lock(&user->lock);
        /* What is ready is asked again under the lock: the set may have changed meanwhile. */
        user_watch_check(&user->watch);
        slirp_pollfds_poll(user->slirp, 0, user_watch_revents, &user->watch);
        timers_run(user);
        user_rearm(user);
        pthread_mutex_unlock(&user->lock);
    }
    return NULL;
}

static void user_start(struct net *net, const struct net_peer *peer)
{
    struct net_user *user = container_of(net, struct net_user, net);

    pthread_mutex_lock(&user->lock);
    user->peer = *peer;
    user->started = true;
    pthread_mutex_unlock(&user->lock);
}

static void user_close(struct net *net)
{
    struct net_user *user = container_of(net, struct net_user, net);

    atomic_store(&user->stop, true);
    user_watch_wake(&user->watch);
    pthread_join(user->thread, NULL);
    user->started = false;
    slirp_cleanup(user->slirp);
    while (user->backlog_count)
        backlog_drop_first(user);
    user_watch_release(&user->watch);
    pthread_mutex_destroy(&user->lock);
    free(user);
}

static const struct net_ops user_ops = {
    .send = user_send, .room = user_room, .start = user_start, .close = user_close};

static int forwards_add(struct net_user *user, const struct net_user_options *options,
                        struct error *err)
{
    const struct in_addr host = {.s_addr = htonl(INADDR_LOOPBACK)};
    const struct in_addr guest = {.s_addr = htonl(0x0a00020f)};

    for (unsigned i = 0; i < options->forward_count; i++) {
        const struct net_forward *f = &options->forward[i];

        if (slirp_add_hostfwd(user->slirp, f->udp, host, f->host_port, guest, f->guest_port))
            return error_set(err, -errno, "cannot forward %s port %u of the host: %s "
                             "(choose another port)", f->udp ? "UDP" : "TCP", f->host_port,
                             strerror(errno));
    }
    return 0;
}

static Slirp *user_slirp_new(struct net_user *user)
{
    const SlirpConfig config = {
        .version = 4,
        .in_enabled = true,
        .vnetwork.s_addr = htonl(0x0a000200),
        .vnetmask.s_addr = htonl(0xffffff00),
        .vhost.s_addr = htonl(0x0a000202),
        .vdhcp_start.s_addr = htonl(0x0a00020f),
        .vnameserver.s_addr = htonl(0x0a000203),
        .in6_enabled = true,
        .vprefix_addr6.s6_addr = {0xfe, 0xc0},
        .vprefix_len = 64,
        .vhost6.s6_addr = {0xfe, 0xc0, [15] = 2},
        .vnameserver6.s6_addr = {0xfe, 0xc0, [15] = 3},
        .if_mtu = PACKET_MAX,
        .if_mru = 65521,
    };

    return slirp_new(&config, &user_callbacks, user);
}

static int user_thread_start(struct net_user *user)
{
    sigset_t all, old;
    int ret;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    ret = pthread_create(&user->thread, NULL, user_main, user);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -ret;
}

int net_user_create(const struct net_user_options *options, struct net **out, struct error *err)
{
    struct net_user *user = calloc(1, sizeof(*user));
    int ret;

    if (!user)
        return error_set(err, -ENOMEM, "cannot start the user network: out of memory");
    user->net.ops = &user_ops;
    pthread_mutex_init(&user->lock, NULL);
    ret = user_watch_init(&user->watch);
    if (ret) {
        error_set(err, ret, "cannot start the user network: %s", strerror(-ret));
        goto err_free;
    }
    user->slirp = user_slirp_new(user);
    if (!user->slirp) {
        ret = error_set(err, -ENOMEM, "cannot start the user network");
        goto err_watch;
    }
    ret = forwards_add(user, options, err);
    if (ret)
        goto err_slirp;
    user_rearm(user);
    ret = user_thread_start(user);
    if (ret) {
        error_set(err, ret, "cannot start the user network: %s", strerror(-ret));
        goto err_slirp;
    }
    *out = &user->net;
    return 0;

err_slirp:
    slirp_cleanup(user->slirp);
err_watch:
    user_watch_release(&user->watch);
err_free:
    pthread_mutex_destroy(&user->lock);
    free(user);
    return ret;
}
