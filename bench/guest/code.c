/* Code that changes: patched and called again, or written and run once. */
#include <string.h>
#include <sys/mman.h>

#include "bench.h"

enum { CODE_BYTES = 256 << 10 };
static uint8_t *code;
static size_t code_used;

static void put(uint8_t **at, const void *bytes, size_t size)
{
    memcpy(*at, bytes, size);
    *at += size;
}

static uint32_t call(const uint8_t *function)
{
    uint32_t (*entry)(void);
    memcpy(&entry, &function, sizeof entry);
    return entry();
}

static const char *code_make(void)
{
    code = mmap(NULL, CODE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
                -1, 0);
    return code == MAP_FAILED ? "no memory that is writable and executable" : NULL;
}

/* mov $imm32, %eax; ret */
static const char *patched_setup(void)
{
    const char *why = code_make();
    if (!why)
        memcpy(code, "\xb8\0\0\0\0\xc3", 6);
    return why;
}

static void patched_run(uint64_t n)
{
    for (uint32_t value = 1; n--; value++) {
        memcpy(code + 1, &value, 4);
        USE(code);
        if (call(code) != value)
            die("patched code ran as it was before");
    }
}

/* Writes a function of about 100 bytes that computes what the seed says, returns what it must
 * return. */
static uint32_t fresh_write(uint8_t *at, uint32_t seed)
{
    uint32_t result = seed;
    put(&at, "\xb8", 1); /* mov $seed, %eax */
    put(&at, &seed, 4);
    for (int i = 0; i < 12; i++) {
        uint32_t operand = seed * 2654435761u + (uint32_t)i;
        switch ((seed >> i) % 3) {
        case 0:
            put(&at, "\x05", 1); /* add $operand, %eax */
            result += operand;
            break;
        case 1:
            put(&at, "\x35", 1); /* xor $operand, %eax */
            result ^= operand;
            break;
        default:
            put(&at, "\x69\xc0", 2); /* imul $operand, %eax, %eax */
            result *= operand;
        }
        put(&at, &operand, 4);
    }
    put(&at, "\xc3", 1);
    return result;
}

static void fresh_run(uint64_t n)
{
    static uint32_t seed = 1;
    while (n--) {
        uint8_t *function = code + code_used;
        code_used = (code_used + 128) % CODE_BYTES;
        uint32_t expected = fresh_write(function, seed++);
        USE(function);
        if (call(function) != expected)
            die("fresh code returned something else");
    }
}

const struct workload code_workloads[] = {
    {"patched-code", "patched", 1, patched_setup, patched_run},
    {"fresh-code", "fresh", 1, code_make, fresh_run},
    {0},
};
