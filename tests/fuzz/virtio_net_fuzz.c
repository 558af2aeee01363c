#include <stdlib.h>

#include "base/log.h"
#include "device/virtio/virtio.h"
#include "device_script.h"

/* Every frame out comes back in, so that the receive queue is worked too. */
struct echo {
    struct net net;
    struct net_peer peer;
};

static void echo_send(struct net *net, const struct iovec *iov, unsigned count)
{
    struct echo *echo = container_of(net, struct echo, net);

    (void)echo->peer.receive(echo->peer.opaque, iov, count);
}

static void echo_room(struct net *net)
{
    static uint8_t frame[3000];
    const struct iovec iov = {.iov_base = frame, .iov_len = sizeof(frame)};

    echo_send(net, &iov, 1);
}

static void echo_start(struct net *net, const struct net_peer *peer)
{
    container_of(net, struct echo, net)->peer = *peer;
}

static void echo_close(struct net *net)
{
    (void)net;
}

static const struct net_ops echo_ops = {
    .send = echo_send, .room = echo_room, .start = echo_start, .close = echo_close};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};
    struct echo echo = {.net.ops = &echo_ops};
    struct driver_machine dm;

    log_set_level(LOG_ERROR);
    driver_machine_init(&dm);
    if (virtio_net_create(dm.host, &echo.net, mac, "net0"))
        abort();
    device_script_run(&dm, 1, 2, data, size);
    driver_machine_release(&dm);
    return 0;
}
