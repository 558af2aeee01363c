/* virtio-rng (virtio 1.2, 5.4): bytes from the host's random number generator. */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "device/virtio/virtio.h"
#include "device/virtio/virtio_pci.h"

#define RNG_CHUNK_MAX 65536u /* of one buffer: the vCPU waits for it */

struct virtio_rng {
    struct virtio_device dev;
    struct virtqueue_chain chain; /* queue lock */
};

/* Returns the bytes filled in. */
static uint32_t rng_fill(const struct virtqueue_chain *chain)
{
    uint32_t filled = 0;

    for (unsigned i = chain->out; i < chain->out + chain->in && filled < RNG_CHUNK_MAX; i++) {
        size_t want = chain->iov[i].iov_len;
        ssize_t got;

        if (want > RNG_CHUNK_MAX - filled)
            want = RNG_CHUNK_MAX - filled;
        got = getrandom(chain->iov[i].iov_base, want, 0);
        if (got <= 0)
            break;
        filled += (uint32_t)got;
        if ((size_t)got < chain->iov[i].iov_len)
            break;
    }
    return filled;
}

static bool rng_handle(struct virtio_device *dev, struct virtqueue *vq,
                       struct virtqueue_chain *chain)
{
    (void)dev;
    virtqueue_push(vq, chain, rng_fill(chain));
    return true;
}

static void rng_kick(struct virtio_device *dev, unsigned index)
{
    struct virtio_rng *rng = container_of(dev, struct virtio_rng, dev);

    virtio_serve(dev, index, &rng->chain, rng_handle);
}

static void rng_destroy(struct device *device)
{
    struct virtio_rng *rng = container_of(device, struct virtio_rng, dev.fn.dev);

    virtio_device_release(&rng->dev);
    free(rng);
}

static const struct state_table rng_state = {
    .name = "virtio-rng", .version = 1, .fields = virtio_device_state_fields};

static const struct device_ops rng_device_ops = {
    .type = "virtio-rng",
    .reset = virtio_device_reset,
    .destroy = rng_destroy,
    .loaded = virtio_device_loaded,
    .state = &rng_state,
};

static const struct virtio_ops rng_ops = {.kick = rng_kick};

static const struct virtio_info rng_info = {
    .type = VIRTIO_RNG,
    .class_code = {0x00, 0xff, 0x00},
    .queue_count = 1,
    .ops = &rng_ops,
    .device_ops = &rng_device_ops,
};

int virtio_rng_create(struct pci_host *host, const char *name)
{
    struct virtio_rng *rng = calloc(1, sizeof(*rng));
    int ret;

    if (!rng)
        return -ENOMEM;
    ret = virtio_device_init(&rng->dev, host, &rng_info, name);
    if (ret)
        rng_destroy(&rng->dev.fn.dev);
    return ret;
}
