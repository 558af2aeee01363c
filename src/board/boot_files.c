#include "board/boot_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int boot_open(const char *what, const char *path, int *out, struct error *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int r;

    if (fd < 0)
        return error_set(err, -errno, "cannot open %s '%s': %s", what, path, strerror(errno));
    r = fstat(fd, &st) < 0 ? -errno : 0;
    if (r == 0 && !S_ISREG(st.st_mode))
        r = S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL;
    if (r < 0) {
        close(fd);
        return error_set(err, r, "cannot use %s '%s': %s", what, path,
                         r == -EINVAL ? "not a regular file" : strerror(-r));
    }
    *out = fd;
    return 0;
}

int boot_source_open(struct boot_source *source, const struct boot_paths *paths, struct error *err)
{
    unsigned opened = 0;
    int r;

    *source = (struct boot_source){.paths = *paths, .kernel_fd = -1};
    r = paths->kernel ? boot_open("kernel", paths->kernel, &source->kernel_fd, err) : 0;
    while (r == 0 && opened < paths->module_count) {
        r = boot_open("initrd", paths->modules[opened], &source->module_fds[opened], err);
        opened += r == 0;
    }
    if (r < 0) {
        source->paths.module_count = opened;
        boot_source_close(source);
    }
    return r;
}

void boot_source_close(struct boot_source *source)
{
    for (unsigned i = 0; i < source->paths.module_count; i++)
        close(source->module_fds[i]);
    if (source->kernel_fd >= 0)
        close(source->kernel_fd);
    source->paths.module_count = 0;
    source->kernel_fd = -1;
}

static int boot_read_all(int fd, uint8_t *data, uint64_t size)
{
    uint64_t done = 0;

    while (done < size) {
        ssize_t n = pread(fd, data + done, size - done, (off_t)done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -ENODATA;
        done += (uint64_t)n;
    }
    return 0;
}

static int boot_read(const char *path, int fd, const struct boot_target *target,
                     struct boot_file *file, uint8_t **owned, struct error *err)
{
    struct stat st;
    int r;

    if (fstat(fd, &st) < 0)
        return error_set(err, -errno, "cannot read '%s': %s", path, strerror(errno));
    if ((uint64_t)st.st_size > mem_ram_size(target->mem))
        return error_set(err, -ENOMEM,
                         "'%s' (%llu MiB) is larger than the machine's memory (%llu MiB; give more "
                         "with --memory)",
                         path, (unsigned long long)st.st_size >> 20,
                         (unsigned long long)mem_ram_size(target->mem) >> 20);
    *owned = malloc(st.st_size ? (size_t)st.st_size : 1);
    if (!*owned)
        return error_set(err, -ENOMEM, "no memory to read '%s'", path);
    r = boot_read_all(fd, *owned, (uint64_t)st.st_size);
    if (r < 0)
        return error_set(err, r, "cannot read '%s': %s", path,
                         r == -ENODATA ? "it became shorter" : strerror(-r));
    *file = (struct boot_file){path, *owned, (uint64_t)st.st_size};
    return 0;
}

int boot_source_load(const struct boot_source *source, const struct boot_target *target,
                     struct error *err)
{
    const struct boot_paths *paths = &source->paths;
    uint8_t *owned[1 + BOOT_MODULES_MAX] = {NULL};
    struct boot_images images = {.cmdline = paths->cmdline ? paths->cmdline : "",
                                 .module_count = paths->module_count};
    int r = boot_read(paths->kernel, source->kernel_fd, target, &images.kernel, &owned[0], err);

    for (unsigned i = 0; r == 0 && i < paths->module_count; i++)
        r = boot_read(paths->modules[i], source->module_fds[i], target, &images.modules[i],
                      &owned[1 + i], err);
    if (r == 0)
        r = boot_load(&images, target, err);
    for (unsigned i = 0; i < ARRAY_SIZE(owned); i++)
        free(owned[i]);
    return r;
}
