/* The console's writer: order, nothing lost at the end, back pressure, readers that go away. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "vm/writer.h"

#define MANY 300000u /* more than the writer's buffer and a pipe's together */

static void put_many(struct writer *writer)
{
    for (unsigned i = 0; i < MANY; i++) {
        uint8_t byte = (uint8_t)(i % 251);

        writer_put(writer, &byte, 1);
    }
}

static void *read_many(void *opaque)
{
    int fd = *(int *)opaque;
    unsigned *good = malloc(sizeof(*good));
    uint8_t bytes[4096];
    ssize_t n;

    *good = 0;
    while ((n = read(fd, bytes, sizeof(bytes))) > 0) {
        for (ssize_t i = 0; i < n; i++)
            *good += bytes[i] == (uint8_t)(*good % 251);
    }
    return good;
}

static void test_all_of_it_in_order(void **state)
{
    struct writer *writer;
    pthread_t reader;
    unsigned *good;
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(writer_create(false, &writer), 0);
    writer_set_fd(writer, fds[1]);
    assert_int_equal(pthread_create(&reader, NULL, read_many, &fds[0]), 0);
    put_many(writer);
    writer_destroy(writer);
    close(fds[1]);
    pthread_join(reader, (void **)&good);
    assert_int_equal(*good, MANY);
    free(good);
    close(fds[0]);
}

static void test_non_blocking_descriptor(void **state)
{
    struct writer *writer;
    pthread_t reader;
    unsigned *good;
    int fds[2];

    (void)state;
    assert_int_equal(pipe2(fds, O_NONBLOCK), 0);
    assert_int_equal(fcntl(fds[0], F_SETFL, 0), 0);
    assert_int_equal(writer_create(false, &writer), 0);
    writer_set_fd(writer, fds[1]);
    assert_int_equal(pthread_create(&reader, NULL, read_many, &fds[0]), 0);
    put_many(writer);
    writer_destroy(writer);
    close(fds[1]);
    pthread_join(reader, (void **)&good);
    assert_int_equal(*good, MANY);
    free(good);
    close(fds[0]);
}

static void test_reader_gone(void **state)
{
    struct writer *writer;
    int fds[2];

    (void)state;
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(pipe(fds), 0);
    close(fds[0]);
    assert_int_equal(writer_create(false, &writer), 0);
    writer_set_fd(writer, fds[1]);
    put_many(writer); /* comes back */
    writer_destroy(writer);
    close(fds[1]);
}

static void test_lossy_never_waits(void **state)
{
    struct writer *writer;
    int fds[2];

    (void)state;
    assert_int_equal(pipe2(fds, O_NONBLOCK), 0);
    assert_int_equal(writer_create(true, &writer), 0);
    writer_set_fd(writer, fds[1]);
    put_many(writer); /* nobody reads */
    writer_discard(writer);
    writer_destroy(writer);
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_of_it_in_order),
        cmocka_unit_test(test_non_blocking_descriptor),
        cmocka_unit_test(test_reader_gone),
        cmocka_unit_test(test_lossy_never_waits),
    };

    return cmocka_run_group_tests_name("writer", tests, NULL, NULL);
}
