#include "vm/writer.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

#define WRITER_BUFFER 65536u
/* Time for a guest that writes byte by byte to gather a line: waking a thread is dear. */
#define WRITER_GATHER_NS 1500000

struct writer {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool lossy;
    int fd;                      /* lock */
    bool quit, discard, writing; /* lock */
    size_t used;                 /* lock */
    uint8_t buffer[WRITER_BUFFER];
    uint8_t batch[WRITER_BUFFER]; /* the thread's own */
};

/* False when the reader is gone. */
static bool writer_write(struct writer *writer, int fd, const uint8_t *bytes, size_t len)
{
    while (len) {
        ssize_t n = write(fd, bytes, len);

        if (n >= 0) {
            bytes += n;
            len -= (size_t)n;
        } else if (errno == EAGAIN) {
            struct pollfd p = {fd, POLLOUT, 0};
            bool discard;

            poll(&p, 1, 100);
            pthread_mutex_lock(&writer->lock);
            discard = writer->discard;
            pthread_mutex_unlock(&writer->lock);
            if (discard)
                return true;
        } else if (errno != EINTR) {
            return false;
        }
    }
    return true;
}

static void writer_gather(void)
{
    const struct timespec pause = {0, WRITER_GATHER_NS};

    nanosleep(&pause, NULL);
}

/* Lock held; released while writing. */
static void writer_flush(struct writer *writer)
{
    size_t len = writer->used;
    int fd = writer->discard ? -1 : writer->fd;
    bool ok = true;

    memcpy(writer->batch, writer->buffer, len);
    writer->used = 0;
    writer->writing = true;
    pthread_cond_broadcast(&writer->changed);
    pthread_mutex_unlock(&writer->lock);
    if (fd >= 0)
        ok = writer_write(writer, fd, writer->batch, len);
    pthread_mutex_lock(&writer->lock);
    writer->writing = false;
    if (!ok && writer->fd == fd)
        writer->fd = -1;
    pthread_cond_broadcast(&writer->changed);
}

static void *writer_thread(void *opaque)
{
    struct writer *writer = opaque;

    pthread_mutex_lock(&writer->lock);
    while (writer->used || !writer->quit) {
        if (!writer->used) {
            pthread_cond_wait(&writer->changed, &writer->lock);
            continue;
        }
        if (!writer->quit) {
            pthread_mutex_unlock(&writer->lock);
            writer_gather();
            pthread_mutex_lock(&writer->lock);
        }
        writer_flush(writer);
    }
    pthread_mutex_unlock(&writer->lock);
    return NULL;
}

int writer_create(bool lossy, struct writer **out)
{
    struct writer *writer = calloc(1, sizeof(*writer));
    int r;

    if (!writer)
        return -ENOMEM;
    writer->fd = -1;
    writer->lossy = lossy;
    pthread_mutex_init(&writer->lock, NULL);
    pthread_cond_init(&writer->changed, NULL);
    r = pthread_create(&writer->thread, NULL, writer_thread, writer);
    if (r) {
        pthread_cond_destroy(&writer->changed);
        pthread_mutex_destroy(&writer->lock);
        free(writer);
        return -r;
    }
    pthread_setname_np(writer->thread, "console");
    *out = writer;
    return 0;
}

void writer_destroy(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    writer->quit = true;
    pthread_cond_broadcast(&writer->changed);
    pthread_mutex_unlock(&writer->lock);
    pthread_join(writer->thread, NULL);
    pthread_cond_destroy(&writer->changed);
    pthread_mutex_destroy(&writer->lock);
    free(writer);
}

void writer_set_fd(struct writer *writer, int fd)
{
    pthread_mutex_lock(&writer->lock);
    writer->fd = fd;
    while (writer->writing)
        pthread_cond_wait(&writer->changed, &writer->lock);
    writer->fd = fd; /* a failed write has cleared it */
    pthread_mutex_unlock(&writer->lock);
}

void writer_discard(struct writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    writer->discard = true;
    pthread_cond_broadcast(&writer->changed);
    pthread_mutex_unlock(&writer->lock);
}

void writer_put(struct writer *writer, const uint8_t *bytes, size_t len)
{
    pthread_mutex_lock(&writer->lock);
    while (len) {
        size_t room = WRITER_BUFFER - writer->used;
        size_t n = len < room ? len : room;

        if (writer->discard || (room == 0 && writer->lossy))
            break;
        if (room == 0) {
            pthread_cond_wait(&writer->changed, &writer->lock);
            continue;
        }
        if (writer->used == 0)
            pthread_cond_broadcast(&writer->changed);
        memcpy(writer->buffer + writer->used, bytes, n);
        writer->used += n;
        bytes += n;
        len -= n;
    }
    pthread_mutex_unlock(&writer->lock);
}
