#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/block.h"
#include "block/raw.h"

static char path[64];

static int setup(void **state)
{
    int fd;

    (void)state;
    strcpy(path, "/tmp/lodge-block-XXXXXX");
    fd = mkstemp(path);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    close(fd);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

struct waiter {
    sem_t done;
    int result;
};

static void finished(struct block_request *request, int result)
{
    struct waiter *waiter = request->opaque;

    waiter->result = result;
    sem_post(&waiter->done);
}

static int run(struct block *block, enum block_op op, uint64_t offset, void *data, size_t len)
{
    /* Two segments, so that short and split transfers are met. */
    struct iovec iov[2] = {{data, len / 3}, {(uint8_t *)data + len / 3, len - len / 3}};
    struct waiter waiter;
    struct block_request request = {.op = op,
                                    .offset = offset,
                                    .length = len,
                                    .iov = iov,
                                    .iov_count = data ? 2 : 0,
                                    .done = finished,
                                    .opaque = &waiter};

    sem_init(&waiter.done, 0, 0);
    block_submit(block, &request);
    sem_wait(&waiter.done);
    sem_destroy(&waiter.done);
    return waiter.result;
}

static void exercise(struct block *block)
{
    static uint8_t out[65536], in[65536];

    for (unsigned round = 0; round < 200; round++) {
        uint64_t offset = (uint64_t)(rand() % 1800) * 512;
        size_t len = (size_t)(1 + rand() % 128) * 512;

        for (size_t i = 0; i < len; i++)
            out[i] = (uint8_t)rand();
        assert_int_equal(run(block, BLOCK_WRITE, offset, out, len), 0);
        memset(in, 0, len);
        assert_int_equal(run(block, BLOCK_READ, offset, in, len), 0);
        assert_memory_equal(in, out, len);
    }
    assert_int_equal(run(block, BLOCK_FLUSH, 0, NULL, 0), 0);
    assert_int_equal(run(block, BLOCK_WRITE_ZEROES, 4096, NULL, 8192), 0);
    assert_int_equal(run(block, BLOCK_READ, 4096, in, 8192), 0);
    for (unsigned i = 0; i < 8192; i++)
        assert_int_equal(in[i], 0);
    assert_int_equal(run(block, BLOCK_DISCARD, 0, NULL, 4096), 0);
    assert_int_equal(run(block, BLOCK_READ, 1 << 20, in, 512), -EINVAL);
    assert_int_equal(run(block, BLOCK_READ, 100, in, 512), -EINVAL);
    assert_int_equal(run(block, BLOCK_READ, UINT64_MAX - 511, in, 1024), -EINVAL);
}

static void test_uring(void **state)
{
    int fd = open(path, O_RDWR);
    struct block *block;

    (void)state;
    if (raw_uring_create(fd, &block)) {
        close(fd);
        skip(); /* io_uring is refused here */
    }
    block->size = 1 << 20;
    exercise(block);
    block_close(block);
}

static void test_pool(void **state)
{
    int fd = open(path, O_RDWR);
    struct block *block;

    (void)state;
    assert_int_equal(raw_pool_create(fd, &block), 0);
    block->size = 1 << 20;
    exercise(block);
    block_close(block);
}

static int open_image(bool readonly, struct block **block, struct error *err)
{
    const struct block_options options = {.path = path, .readonly = readonly};

    *err = (struct error){0};
    return block_open(&options, block, err);
}

static void test_locking(void **state)
{
    struct block *a, *b;
    struct error err;

    (void)state;
    assert_int_equal(open_image(false, &a, &err), 0);
    assert_int_equal(open_image(false, &b, &err), -EBUSY);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(open_image(true, &b, &err), -EBUSY);
    block_close(a);
    assert_int_equal(open_image(true, &a, &err), 0);
    assert_int_equal(open_image(true, &b, &err), 0);
    block_close(b);
    assert_int_equal(open_image(false, &b, &err), -EBUSY);
    block_close(a);
    assert_int_equal(open_image(false, &a, &err), 0);
    block_close(a);
}

static void test_readonly(void **state)
{
    struct block *block;
    struct error err;
    uint8_t data[512] = {0};

    (void)state;
    assert_int_equal(open_image(true, &block, &err), 0);
    assert_true(block->readonly);
    assert_int_equal(run(block, BLOCK_WRITE, 0, data, 512), -EROFS);
    assert_int_equal(run(block, BLOCK_DISCARD, 0, NULL, 512), -EROFS);
    assert_int_equal(run(block, BLOCK_READ, 0, data, 512), 0);
    block_close(block);
}

static void test_sizes_and_refusals(void **state)
{
    struct block_options options = {.path = "/nonexistent/disk"};
    struct block *block;
    struct error err = {0};

    (void)state;
    assert_int_equal(block_open(&options, &block, &err), -ENOENT);
    assert_non_null(strstr(err.message, "/nonexistent/disk"));
    options.path = "/tmp";
    assert_true(block_open(&options, &block, &err) < 0);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(open_image(false, &block, &err), -EINVAL);
    assert_int_equal(truncate(path, 1500), 0);
    assert_int_equal(open_image(false, &block, &err), 0);
    assert_int_equal(block->size, 1024);
    block_close(block);
}

static void test_foreign_format(void **state)
{
    struct block_options options = {.path = path, .format = BLOCK_FORMAT_RAW};
    struct block *block;
    struct error err = {0};
    int fd = open(path, O_WRONLY);

    (void)state;
    assert_int_equal(write(fd, "QFI\xfb\0\0\0\3", 8), 8);
    close(fd);
    assert_int_equal(open_image(false, &block, &err), -ENOTSUP);
    assert_non_null(strstr(err.message, "qcow2"));
    assert_int_equal(block_open(&options, &block, &err), 0);
    block_close(block);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_uring),    TEST(test_pool),
        TEST(test_locking),  TEST(test_readonly),
        TEST(test_sizes_and_refusals), TEST(test_foreign_format),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
