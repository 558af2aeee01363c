#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "device/virtio/virtio.h"
#include "device_script.h"

#define DISK_SIZE 65536u

/* A disk in host memory that checks what the device promises. */
struct memory_disk {
    struct block block;
    uint8_t bytes[DISK_SIZE];
};

static void disk_submit(struct block *block, struct block_request *request)
{
    struct memory_disk *disk = container_of(block, struct memory_disk, block);
    uint64_t at = request->offset;

    if (request->offset > DISK_SIZE || request->length > DISK_SIZE - request->offset) {
        request->done(request, -22);
        return;
    }
    for (unsigned i = 0; i < request->iov_count; i++) {
        const struct iovec *iov = &request->iov[i];

        if (request->op == BLOCK_READ)
            memcpy(iov->iov_base, disk->bytes + at, iov->iov_len);
        else
            memcpy(disk->bytes + at, iov->iov_base, iov->iov_len);
        at += iov->iov_len;
    }
    request->done(request, 0);
}

static void disk_close(struct block *block)
{
    free(container_of(block, struct memory_disk, block));
}

static const struct block_ops disk_ops = {.submit = disk_submit, .close = disk_close};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct memory_disk *disk = calloc(1, sizeof(*disk));
    struct driver_machine dm;

    log_set_level(LOG_ERROR);
    disk->block = (struct block){
        .ops = &disk_ops, .size = DISK_SIZE, .can_discard = true, .name = "memory"};
    driver_machine_init(&dm);
    if (virtio_blk_create(dm.host, &disk->block, "disk0"))
        abort();
    device_script_run(&dm, 1, 1, data, size);
    driver_machine_release(&dm);
    return 0;
}
