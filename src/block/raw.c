#include "block/raw.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define ZERO_CHUNK 65536u

int raw_check(const struct block *block, const struct block_request *request)
{
    bool writes = request->op != BLOCK_READ && request->op != BLOCK_FLUSH;

    if (writes && block->readonly)
        return -EROFS;
    if (request->op == BLOCK_FLUSH)
        return 0;
    if (request->offset > block->size || request->length > block->size - request->offset)
        return -EINVAL;
    return (request->offset | request->length) % BLOCK_SECTOR ? -EINVAL : 0;
}

/* One segment, less its first `skip` bytes. */
static int segment_transfer(int fd, const struct block_request *request, const struct iovec *iov,
                            uint64_t skip, uint64_t offset)
{
    uint8_t *at = (uint8_t *)iov->iov_base + skip;
    size_t left = iov->iov_len - skip;

    while (left) {
        ssize_t n = request->op == BLOCK_READ ? pread(fd, at, left, (off_t)offset)
                                              : pwrite(fd, at, left, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EIO; /* the image has become shorter than it was */
        at += n;
        offset += (uint64_t)n;
        left -= (size_t)n;
    }
    return 0;
}

static int transfer(int fd, const struct block_request *request, uint64_t done)
{
    uint64_t start = 0; /* of the segment, in the request */

    for (unsigned i = 0; i < request->iov_count; i++) {
        const struct iovec *iov = &request->iov[i];
        uint64_t end = start + iov->iov_len;

        if (end > done) {
            uint64_t skip = done > start ? done - start : 0;
            int ret = segment_transfer(fd, request, iov, skip, request->offset + start + skip);

            if (ret)
                return ret;
        }
        start = end;
    }
    return 0;
}

static int write_zeroes(int fd, uint64_t offset, uint64_t length)
{
    static const uint8_t zeroes[ZERO_CHUNK];

    while (length) {
        size_t part = length < ZERO_CHUNK ? length : ZERO_CHUNK;
        ssize_t n = pwrite(fd, zeroes, part, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        offset += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return 0;
}

int raw_fallocate_mode(enum block_op op)
{
    return FALLOC_FL_KEEP_SIZE |
           (op == BLOCK_DISCARD ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

int raw_range_result(int fd, const struct block_request *request, int result)
{
    if (result != -EOPNOTSUPP && result != -ENOSYS)
        return result;
    if (request->op == BLOCK_DISCARD)
        return 0; /* a hint */
    return write_zeroes(fd, request->offset, request->length);
}

int raw_execute(int fd, const struct block_request *request, uint64_t done)
{
    int ret;

    switch (request->op) {
    case BLOCK_READ:
    case BLOCK_WRITE:
        return transfer(fd, request, done);
    case BLOCK_FLUSH:
        return fdatasync(fd) ? -errno : 0;
    case BLOCK_DISCARD:
    case BLOCK_WRITE_ZEROES:
        if (request->length == 0)
            return 0;
        ret = fallocate(fd, raw_fallocate_mode(request->op), (off_t)request->offset,
                        (off_t)request->length);
        return raw_range_result(fd, request, ret ? -errno : 0);
    }
    return -EINVAL;
}
