#include "cpu/soft/code.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/soft/trap.h"

#define CODE_ALIGN 16u
#define CODE_SLOTS (1u << 17) /* hash table, at most a little more than half full */
#define CODE_PIECES_MAX (CODE_SLOTS / 2 + CODE_SLOTS / 8)

struct code_slot {
    uint32_t hash;
    uint32_t offset; /* of the piece */
    uint32_t len;    /* 0: free */
};

struct soft_code {
    uint8_t *write;  /* PROT_READ | PROT_WRITE */
    uint8_t *exec;   /* PROT_READ | PROT_EXEC, the same pages */
    struct code_slot *slots;
    uint32_t size;   /* bytes of the mappings */
    uint32_t kept;   /* bytes that a reset leaves */
    uint32_t used;   /* bytes */
    uint32_t pieces;
    _Atomic bool full;
};

static int code_map(struct soft_code *code)
{
    int fd = memfd_create("lodge-code", MFD_CLOEXEC);
    int result = 0;

    if (fd < 0)
        return -errno;
    if (ftruncate(fd, code->size) < 0) {
        result = -errno;
        goto out_close;
    }
    code->write = mmap(NULL, code->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (code->write == MAP_FAILED) {
        result = -errno;
        goto out_close;
    }
    code->exec = mmap(NULL, code->size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    if (code->exec == MAP_FAILED) {
        result = -errno;
        munmap(code->write, code->size);
    }
out_close:
    close(fd);
    return result;
}

/* Anonymous pages rather than malloc: this may run where libc's vector code must not. */
static void *code_pages(uint64_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

int soft_code_create(uint32_t size, struct soft_code **out)
{
    struct soft_code *code = code_pages(sizeof(*code));
    int result = -ENOMEM;

    if (!code)
        return result;
    code->size = size;
    code->used = code->kept = CODE_ALIGN; /* no piece is at 0 */
    code->slots = code_pages(CODE_SLOTS * sizeof(*code->slots));
    if (!code->slots)
        goto err_free;
    result = code_map(code);
    if (result)
        goto err_slots;
    result = soft_trap_install();
    if (result)
        goto err_unmap;
    *out = code;
    return 0;

err_unmap:
    munmap(code->exec, code->size);
    munmap(code->write, code->size);
err_slots:
    munmap(code->slots, CODE_SLOTS * sizeof(*code->slots));
err_free:
    munmap(code, sizeof(*code));
    return result;
}

void soft_code_destroy(struct soft_code *code)
{
    if (!code)
        return;
    munmap(code->exec, code->size);
    munmap(code->write, code->size);
    munmap(code->slots, CODE_SLOTS * sizeof(*code->slots));
    munmap(code, sizeof(*code));
}

void soft_code_reset(struct soft_code *code)
{
    for (uint32_t i = 0; i < CODE_SLOTS; i++)
        code->slots[i].len = 0;
    code->used = code->kept;
    code->pieces = 0;
    code->full = false;
}

bool soft_code_full(const struct soft_code *code)
{
    return code->full;
}

bool soft_code_contains(const struct soft_code *code, uint64_t addr)
{
    return addr - (uint64_t)(uintptr_t)code->exec < code->size;
}

uint8_t *soft_code_write_base(const struct soft_code *code)
{
    return code->write;
}

const uint8_t *soft_code_exec_base(const struct soft_code *code)
{
    return code->exec;
}

bool soft_code_reserve(struct soft_code *code, uint32_t len, uint32_t *at)
{
    if (code->full)
        return false;
    if (code->used + len > code->size) {
        code->full = true;
        return false;
    }
    *at = code->used;
    return true;
}

void soft_code_commit(struct soft_code *code, uint32_t end)
{
    BUG_ON(end < code->used || end > code->size);
    code->used = (uint32_t)align_up(end, CODE_ALIGN);
}

void soft_code_exhaust(struct soft_code *code)
{
    code->full = true;
}

void soft_code_keep(struct soft_code *code)
{
    code->kept = code->used;
}

uint64_t soft_code_widen(const struct soft_code *code, uint32_t low)
{
    uint64_t base = (uint64_t)(uintptr_t)code->exec;
    uint64_t addr = base + (uint32_t)(low - (uint32_t)base);

    return soft_code_contains(code, addr) ? addr : low;
}

static uint32_t code_hash(const uint8_t *bytes, unsigned len)
{
    uint32_t hash = 2166136261u; /* FNV-1a */

    for (unsigned i = 0; i < len; i++)
        hash = (hash ^ bytes[i]) * 16777619u;
    return hash ^ (hash >> 15);
}

static bool code_equal(const uint8_t *a, const uint8_t *b, unsigned len)
{
    for (unsigned i = 0; i < len; i++) {
        if (a[i] != b[i])
            return false;
    }
    return true;
}

uint32_t soft_code_put(struct soft_code *code, const uint8_t *bytes, unsigned len)
{
    uint32_t hash = code_hash(bytes, len);
    uint32_t at = hash & (CODE_SLOTS - 1);
    struct code_slot *slot;

    BUG_ON(len == 0 || len > SOFT_CODE_PIECE_MAX);
    if (code->full)
        return 0;
    for (slot = &code->slots[at]; slot->len; slot = &code->slots[at]) {
        if (slot->hash == hash && slot->len == len &&
            code_equal(code->write + slot->offset, bytes, len))
            return slot->offset;
        at = (at + 1) & (CODE_SLOTS - 1);
    }
    if (code->used + len > code->size || code->pieces >= CODE_PIECES_MAX) {
        code->full = true;
        return 0;
    }
    *slot = (struct code_slot){.hash = hash, .offset = code->used, .len = len};
    for (unsigned i = 0; i < len; i++)
        code->write[code->used + i] = bytes[i];
    code->used += (uint32_t)align_up(len, CODE_ALIGN);
    code->pieces++;
    return slot->offset;
}
