/*
 * Raw images and block devices: one file descriptor, and two ways to keep several requests in flight,
 * io_uring where the host allows it and a pool of threads where it does not. block_open() chooses.
 */
#ifndef BLOCK_RAW_H
#define BLOCK_RAW_H

#include "block/block.h"

/* Take ownership of fd on success only. Fill in ops; the caller fills in the rest of struct block. */
nodiscard int raw_uring_create(int fd, struct block **out);
nodiscard int raw_pool_create(int fd, struct block **out);

/* 0, or what is wrong with the request (-EINVAL, -EROFS). */
nodiscard int raw_check(const struct block *block, const struct block_request *request);

/* Does the request, less its first `done` bytes, on this thread. 0 or negative errno. */
nodiscard int raw_execute(int fd, const struct block_request *request, uint64_t done);

/* Arguments of fallocate() for a discard or write-zeroes request. */
int raw_fallocate_mode(enum block_op op);

/* What the result of an fallocate() means for the request: a host that cannot is not an error. */
nodiscard int raw_range_result(int fd, const struct block_request *request, int result);

#endif
