/*
 * A network back end as a card sees it: Ethernet frames out and in.
 *
 * Frames are whole Ethernet frames without FCS, optionally preceded by a virtio_net_hdr that the back end
 * negotiated (offload); `send` copies or consumes before it returns. `receive` is called on the back end's thread.
 */
#ifndef NET_NET_H
#define NET_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"

struct net;

/* The card's side. */
struct net_peer {
    /* True when taken; false when the card has no room: the back end keeps or drops it, and may offer
     * again after net_ops.room(). */
    bool (*receive)(void *opaque, const struct iovec *iov, unsigned count);
    void *opaque;
};

struct net_ops {
    void (*send)(struct net *net, const struct iovec *iov, unsigned count); /* any one thread at a time */
    void (*room)(struct net *net);   /* the card has room again; any thread */
    void (*start)(struct net *net, const struct net_peer *peer);
    void (*close)(struct net *net);  /* after it returns, receive is not called any more */
};

struct net {
    const struct net_ops *ops;
};

#define NET_FORWARDS_MAX 32u

struct net_forward { /* host TCP or UDP port to guest port */
    bool udp;
    uint16_t host_port, guest_port;
};

struct net_user_options {
    struct net_forward forward[NET_FORWARDS_MAX];
    unsigned forward_count;
};

/* User-mode NAT (libslirp): DHCP 10.0.2.15, gateway 10.0.2.2, DNS 10.0.2.3; no root needed. */
nodiscard int net_user_create(const struct net_user_options *options, struct net **out,
                              struct error *err);

#endif
