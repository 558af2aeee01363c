#include "fake_disk.h"

#include <stdlib.h>
#include <string.h>

static void transfer(struct fake_disk *disk, const struct block_request *request)
{
    uint64_t at = request->offset, total = 0;

    for (unsigned i = 0; i < request->iov_count; i++)
        total += request->iov[i].iov_len;
    if (total != request->length || total == 0)
        abort();
    for (unsigned i = 0; i < request->iov_count; i++) {
        const struct iovec *iov = &request->iov[i];

        if (request->op == BLOCK_READ)
            memcpy(iov->iov_base, disk->bytes + at, iov->iov_len);
        else
            memcpy(disk->bytes + at, iov->iov_base, iov->iov_len);
        at += iov->iov_len;
    }
}

static void finish(struct fake_disk *disk, struct block_request *request)
{
    int result = disk->result;

    if (result == 0 && (request->op == BLOCK_READ || request->op == BLOCK_WRITE))
        transfer(disk, request);
    if (result == 0 && request->op == BLOCK_DISCARD)
        disk->discarded += request->length;
    request->done(request, result);
}

static void disk_submit(struct block *block, struct block_request *request)
{
    struct fake_disk *disk = container_of(block, struct fake_disk, block);

    if (request->offset > block->size || request->length > block->size - request->offset ||
        (request->offset | request->length) % BLOCK_SECTOR)
        abort();
    disk->count[request->op]++;
    if (!disk->hold) {
        finish(disk, request);
        return;
    }
    if (disk->held_count == FAKE_DISK_HELD)
        abort();
    disk->held[disk->held_count++] = request;
}

void fake_disk_finish(struct fake_disk *disk, unsigned index)
{
    struct block_request *request = disk->held[index];

    if (index >= disk->held_count)
        abort();
    disk->held_count--;
    memmove(&disk->held[index], &disk->held[index + 1],
            (disk->held_count - index) * sizeof(disk->held[0]));
    finish(disk, request);
}

static void disk_close(struct block *block)
{
    struct fake_disk *disk = container_of(block, struct fake_disk, block);

    if (disk->held_count)
        abort();
    if (disk->closed)
        *disk->closed = true;
    free(disk->bytes);
    free(disk);
}

static const struct block_ops disk_ops = {.submit = disk_submit, .close = disk_close};

struct fake_disk *fake_disk_create(uint64_t size)
{
    struct fake_disk *disk = calloc(1, sizeof(*disk));

    if (!disk || !(disk->bytes = malloc(size)))
        abort();
    disk->block =
        (struct block){.ops = &disk_ops, .size = size, .can_discard = true, .name = "memory"};
    for (uint64_t i = 0; i < size; i++)
        disk->bytes[i] = (uint8_t)(i / BLOCK_SECTOR + 1);
    return disk;
}
