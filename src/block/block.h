/*
 * A disk as a device sees it: sectors read and written asynchronously, whatever is behind.
 *
 * A request is owned by the caller until its `done` is called, exactly once, on the back end's thread (or on the
 * submitting thread when it completed at once). Errors are negative errno. Data buffers are
 * host memory that stays valid until done. Order between requests in flight is not kept; a flush
 * covers the writes that were done before it was submitted.
 */
#ifndef BLOCK_BLOCK_H
#define BLOCK_BLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/error.h"

#define BLOCK_SECTOR 512u

enum block_op { BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES };

struct block_request {
    enum block_op op;
    uint64_t offset;         /* bytes, sector aligned */
    uint64_t length;         /* bytes: sum of iov; discard and write-zeroes: the range */
    const struct iovec *iov; /* borrowed */
    unsigned iov_count;
    void (*done)(struct block_request *request, int result); /* 0 or negative errno */
    void *opaque;
    void *backend[8]; /* the back end's own scratch space */
};

struct block;

struct block_ops {
    void (*submit)(struct block *block, struct block_request *request);
    void (*close)(struct block *block); /* no request in flight */
};

struct block {
    const struct block_ops *ops;
    uint64_t size; /* bytes, whole sectors */
    bool readonly;
    bool can_discard;
    char name[256]; /* as the user gave it, for messages */
};

enum block_format { BLOCK_FORMAT_AUTO, BLOCK_FORMAT_RAW };

struct block_options {
    const char *path;
    enum block_format format;
    bool readonly;
};

/* Locks the image (shared when read-only, exclusive else; refusal says who may hold it). */
nodiscard int block_open(const struct block_options *options, struct block **out, struct error *err);
void block_close(struct block *block);

static inline void block_submit(struct block *block, struct block_request *request)
{
    block->ops->submit(block, request);
}

#endif
