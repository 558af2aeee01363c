/*
 * What a test does to a drive inside the guest that busybox has no words for. One line of output a
 * command. queue DEVICE DEPTH BYTES   direct reads and writes, DEPTH at once: copies the first half
 * of BYTES to the second eject|close|lock|unlock DEVICE, status DEVICE discard DEVICE OFFSET BYTES
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/aio_abi.h>
#include <linux/cdrom.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHUNK     16384u
#define DEPTH_MAX 32u

static int fail(const char *what)
{
    printf("BAD %s: %s\n", what, strerror(errno));
    return 1;
}

/* One batch: `count` chunks from `offset` on. */
static int batch(aio_context_t context, int fd, int op, char *buffer, uint64_t offset,
                 unsigned count)
{
    struct iocb block[DEPTH_MAX], *list[DEPTH_MAX];
    struct io_event event[DEPTH_MAX];

    memset(block, 0, sizeof(block));
    for (unsigned i = 0; i < count; i++) {
        block[i].aio_lio_opcode = (uint16_t)op;
        block[i].aio_fildes = (uint32_t)fd;
        block[i].aio_buf = (uint64_t)(uintptr_t)(buffer + i * CHUNK);
        block[i].aio_nbytes = CHUNK;
        block[i].aio_offset = (int64_t)(offset + (uint64_t)i * CHUNK);
        list[i] = &block[i];
    }
    if (syscall(SYS_io_submit, context, (long)count, list) != (long)count ||
        syscall(SYS_io_getevents, context, (long)count, (long)count, event, NULL) != (long)count)
        return -1;
    for (unsigned i = 0; i < count; i++) {
        if (event[i].res != CHUNK) {
            errno = (int)-event[i].res;
            return -1;
        }
    }
    return 0;
}

static int queue(int fd, unsigned depth, uint64_t bytes)
{
    aio_context_t context = 0;
    void *buffer;

    if (depth > DEPTH_MAX || posix_memalign(&buffer, 4096, depth * CHUNK) ||
        syscall(SYS_io_setup, depth, &context))
        return fail("set-up");
    for (uint64_t at = 0; at < bytes / 2; at += depth * CHUNK) {
        if (batch(context, fd, IOCB_CMD_PREAD, buffer, at, depth))
            return fail("read");
        if (batch(context, fd, IOCB_CMD_PWRITE, buffer, bytes / 2 + at, depth))
            return fail("write");
    }
    if (fsync(fd))
        return fail("fsync");
    printf("QUEUED %u\n", depth);
    return 0;
}

static int discard(int fd, uint64_t offset, uint64_t bytes)
{
    uint64_t range[2] = {offset, bytes};

    if (ioctl(fd, BLKDISCARD, range))
        return fail("discard");
    puts("DISCARDED");
    return 0;
}

static int tray(int fd, const char *what)
{
    static const char *const words[] = {[CDS_NO_INFO] = "unknown",
                                        [CDS_NO_DISC] = "no-disc",
                                        [CDS_TRAY_OPEN] = "open",
                                        [CDS_DRIVE_NOT_READY] = "not-ready",
                                        [CDS_DISC_OK] = "disc"};
    int ret;

    if (strcmp(what, "eject") == 0)
        ret = ioctl(fd, CDROMEJECT, 0);
    else if (strcmp(what, "close") == 0)
        ret = ioctl(fd, CDROMCLOSETRAY, 0);
    else if (strcmp(what, "lock") == 0)
        ret = ioctl(fd, CDROM_LOCKDOOR, 1);
    else if (strcmp(what, "unlock") == 0)
        ret = ioctl(fd, CDROM_LOCKDOOR, 0);
    else
        ret = ioctl(fd, CDROM_DRIVE_STATUS, CDSL_CURRENT);
    if (ret < 0)
        return fail(what);
    if (strcmp(what, "status") == 0)
        printf("TRAY status %s\n", words[ret]);
    else /* what the drive said no to is a positive number */
        printf("TRAY %s %s\n", what, ret ? "refused" : "done");
    return 0;
}

int main(int argc, char **argv)
{
    int fd;

    if (argc < 3)
        return 64;
    fd = open(argv[2], strcmp(argv[1], "queue") == 0     ? O_RDWR | O_DIRECT
                       : strcmp(argv[1], "discard") == 0 ? O_RDWR
                                                         : O_RDONLY | O_NONBLOCK);
    if (fd < 0)
        return fail(argv[2]);
    if (strcmp(argv[1], "queue") == 0 && argc == 5)
        return queue(fd, (unsigned)atoi(argv[3]), strtoull(argv[4], NULL, 0));
    if (strcmp(argv[1], "discard") == 0 && argc == 5)
        return discard(fd, strtoull(argv[3], NULL, 0), strtoull(argv[4], NULL, 0));
    return tray(fd, argv[1]);
}
