#include "block/block.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "base/log.h"
#include "block/raw.h"

static int image_open(const struct block_options *options, int *fd, struct error *err)
{
    *fd = open(options->path, (options->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (*fd >= 0)
        return 0;
    switch (errno) {
    case ENOENT:
        if (options->readonly)
            return error_set(err, -ENOENT, "cannot open disk '%s': no such file", options->path);
        return error_set(err, -ENOENT,
                         "cannot open disk '%s': no such file (create one with 'truncate -s 10G %s')",
                         options->path, options->path);
    case EACCES:
    case EROFS:
    case EPERM:
        if (!options->readonly)
            return error_set(err, -errno,
                             "cannot open disk '%s' for writing: %s (add ',ro' to open it read-only)",
                             options->path, strerror(errno));
        break;
    case EISDIR:
        return error_set(err, -EISDIR, "cannot open disk '%s': it is a directory", options->path);
    default: break;
    }
    return error_set(err, -errno, "cannot open disk '%s': %s", options->path, strerror(errno));
}

/* An open-file-description lock: two machines of one process exclude each other too. */
static int image_lock(int fd, const struct block_options *options, struct error *err)
{
    struct flock lock = {.l_type = options->readonly ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    if (errno != EAGAIN && errno != EACCES) {
        log_warning("disk '%s' cannot be locked (%s): make sure that nothing else writes to it",
                    options->path, strerror(errno));
        return 0;
    }
    return error_set(err, -EBUSY,
                     "cannot open disk '%s': another machine has it open%s (stop that one, or "
                     "share the image with ',ro' in both)",
                     options->path, options->readonly ? " for writing" : "");
}

static int image_size(int fd, const char *path, uint64_t *size, struct error *err)
{
    struct stat st;

    if (fstat(fd, &st))
        return error_set(err, -errno, "cannot read disk '%s': %s", path, strerror(errno));
    if (S_ISREG(st.st_mode))
        *size = (uint64_t)st.st_size;
    else if (!S_ISBLK(st.st_mode))
        return error_set(err, -EINVAL, "disk '%s' is neither a file nor a block device", path);
    else if (ioctl(fd, BLKGETSIZE64, size))
        return error_set(err, -errno, "cannot find the size of disk '%s': %s", path,
                         strerror(errno));
    if (*size < BLOCK_SECTOR)
        return error_set(err, -EINVAL,
                         "disk '%s' is too small: %llu bytes, at least one sector of 512 is needed "
                         "(give it a size with 'truncate -s 10G %s')",
                         path, (unsigned long long)*size, path);
    if (*size % BLOCK_SECTOR)
        log_warning("disk '%s': the last %llu bytes are not a whole sector and not visible", path,
                    (unsigned long long)(*size % BLOCK_SECTOR));
    *size -= *size % BLOCK_SECTOR;
    return 0;
}

/* Formats that would be taken for raw, and destroyed, are refused by their magic numbers. */
static int image_format_check(int fd, const struct block_options *options, struct error *err)
{
    static const struct {
        const char *name, *magic;
        size_t len;
    } known[] = {
        {"qcow2", "QFI\xfb", 4}, {"VMDK", "KDMV", 4}, {"VDI", "<<< ", 4}, {"VHDX", "vhdxfile", 8}};
    char head[8];

    if (options->format != BLOCK_FORMAT_AUTO || pread(fd, head, sizeof(head), 0) != sizeof(head))
        return 0;
    for (unsigned i = 0; i < ARRAY_SIZE(known); i++) {
        if (memcmp(head, known[i].magic, known[i].len) == 0)
            return error_set(err, -ENOTSUP,
                             "disk '%s' is a %s image, which cannot be used yet (convert it with "
                             "'qemu-img convert -O raw', or say ',format=raw')",
                             options->path, known[i].name);
    }
    return 0;
}

static int image_attach(int fd, struct block **out)
{
    int ret = raw_uring_create(fd, out);

    if (ret) {
        log_debug("io_uring is not to be had (%s): disk I/O uses threads", strerror(-ret));
        ret = raw_pool_create(fd, out);
    }
    return ret;
}

int block_open(const struct block_options *options, struct block **out, struct error *err)
{
    uint64_t size;
    int fd, ret;

    ret = image_open(options, &fd, err);
    if (ret)
        return ret;
    ret = image_lock(fd, options, err);
    if (!ret)
        ret = image_format_check(fd, options, err);
    if (!ret)
        ret = image_size(fd, options->path, &size, err);
    if (ret)
        goto err_close;
    ret = image_attach(fd, out);
    if (ret) {
        error_set(err, ret, "cannot start disk I/O for '%s': %s", options->path, strerror(-ret));
        goto err_close;
    }
    (*out)->size = size;
    (*out)->readonly = options->readonly;
    (*out)->can_discard = !options->readonly;
    snprintf((*out)->name, sizeof((*out)->name), "%s", options->path);
    return 0;

err_close:
    close(fd);
    return ret;
}

void block_close(struct block *block)
{
    if (block)
        block->ops->close(block);
}
