/* Integer work, branches, calls, pointer chasing. */
#include <string.h>

#include "bench.h"

/* --- an interpreter of byte code: a sieve of primes --- */

enum {
    OP_SET,
    OP_MOVE,
    OP_ADD,
    OP_ADD_IMM,
    OP_LOAD,
    OP_STORE,
    OP_JUMP_LESS,
    OP_JUMP_ZERO,
    OP_JUMP,
    OP_STOP
};
enum { I, J, COUNT, FLAG, ONE, LIMIT, REGS };

struct insn {
    uint8_t op, a, b;
    int32_t imm;
};

enum { SIEVE = 2000 };

static const struct insn sieve[] = {
    {OP_SET, I, 0, 2},            /* 0 */
    {OP_SET, COUNT, 0, 0},        /* 1 */
    {OP_SET, ONE, 0, 1},          /* 2 */
    {OP_SET, LIMIT, 0, SIEVE},    /* 3 */
    {OP_LOAD, FLAG, I, 0},        /* 4: the next candidate */
    {OP_JUMP_ZERO, FLAG, 0, 8},   /* 5 */
    {OP_STORE, FLAG, I, 0},       /* 6: composite: clear the mark for the next run */
    {OP_JUMP, 0, 0, 14},          /* 7 */
    {OP_ADD_IMM, COUNT, 0, 1},    /* 8: prime */
    {OP_MOVE, J, I, 0},           /* 9 */
    {OP_JUMP, 0, 0, 12},          /* 10 */
    {OP_STORE, ONE, J, 1},        /* 11 */
    {OP_ADD, J, I, 0},            /* 12 */
    {OP_JUMP_LESS, J, LIMIT, 11}, /* 13 */
    {OP_ADD_IMM, I, 0, 1},        /* 14 */
    {OP_JUMP_LESS, I, LIMIT, 4},  /* 15 */
    {OP_STOP, 0, 0, 0},
};

/* STORE writes its immediate. Returns the number of primes. */
static NOINLINE int64_t interpret(const struct insn *code, uint8_t *memory)
{
    int64_t reg[REGS] = {0};
    for (const struct insn *in = code;; in++) {
        switch (in->op) {
        case OP_SET: reg[in->a] = in->imm; break;
        case OP_MOVE: reg[in->a] = reg[in->b]; break;
        case OP_ADD: reg[in->a] += reg[in->b]; break;
        case OP_ADD_IMM: reg[in->a] += in->imm; break;
        case OP_LOAD: reg[in->a] = memory[reg[in->b]]; break;
        case OP_STORE: memory[reg[in->b]] = (uint8_t)in->imm; break;
        case OP_JUMP_LESS:
            if (reg[in->a] < reg[in->b])
                in = code + in->imm - 1;
            break;
        case OP_JUMP_ZERO:
            if (reg[in->a] == 0)
                in = code + in->imm - 1;
            break;
        case OP_JUMP: in = code + in->imm - 1; break;
        default: return reg[COUNT];
        }
    }
}

const char *interpreter_setup(void)
{
    static uint8_t memory[SIEVE];
    check(interpret(sieve, memory) == 303, "primes below 2000");
    return NULL;
}

void interpreter_run(uint64_t n)
{
    uint8_t memory[SIEVE] = {0}; /* on the stack: two threads run this */
    while (n--)
        USE(interpret(sieve, memory));
}

/* --- sums --- */

enum { SUM_BYTES = 16384 };
static uint8_t *text;
static uint32_t crc_table[256];

static NOINLINE uint32_t crc32(const uint8_t *data, size_t size)
{
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < size; i++)
        crc = crc >> 8 ^ crc_table[(crc ^ data[i]) & 0xff];
    return ~crc;
}

/* Words of a small vocabulary: compressible, like text. */
static void fill_text(size_t size)
{
    static const char words[16][8] = {"guest", "host",     "exit",  "page",  "the", "of",
                                      "and",   "register", "table", "entry", "is",  "clock",
                                      "a",     "write",    "to",    "read"};
    uint32_t random = 1;
    text = take(size + 16);
    for (size_t at = 0; at < size;) {
        const char *word = words[next_random(&random) % 16];
        for (size_t i = 0; i < 8 && word[i] && at < size; i++)
            text[at++] = (uint8_t)word[i];
        if (at < size)
            text[at++] = ' ';
    }
}

static const char *crc_setup(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
        crc_table[i] = crc;
    }
    check(crc32((const uint8_t *)"123456789", 9) == 0xcbf43926, "crc32");
    fill_text(SUM_BYTES);
    return NULL;
}

static void crc_run(uint64_t n)
{
    while (n--)
        USE(crc32(text, SUM_BYTES));
}

/* FIPS 180-4. */
static uint32_t sha_k[64];
static uint32_t sha_start[8];

/* The first 32 bits of the fraction of p's root of the given degree. */
static uint32_t root_fraction(uint32_t p, int degree)
{
    unsigned __int128 power = (unsigned __int128)p << 32 * degree;
    uint64_t root = 0;
    for (uint64_t bit = 1ull << 40; bit; bit >>= 1) {
        unsigned __int128 x = root + bit;
        if (degree == 3 && x >> 36)
            continue;
        if ((degree == 3 ? x * x * x : x * x) <= power)
            root += bit;
    }
    return (uint32_t)root;
}

static uint32_t rotate(uint32_t x, int by)
{
    return x >> by | x << (32 - by);
}

static void sha_block(uint32_t state[8], const uint8_t *data)
{
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++) {
        memcpy(&w[i], data + 4 * i, 4);
        w[i] = __builtin_bswap32(w[i]);
    }
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + w[i - 7] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) +
               (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(v, state, sizeof v);
    for (int i = 0; i < 64; i += 8) /* the roles of the eight move on by one at each step */
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            uint32_t a = v[-j & 7], b = v[(1 - j) & 7], c = v[(2 - j) & 7], e = v[(4 - j) & 7];
            uint32_t f = v[(5 - j) & 7], g = v[(6 - j) & 7], *d = &v[(3 - j) & 7],
                     *h = &v[(7 - j) & 7];
            *h += (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) +
                  sha_k[i + j] + w[i + j];
            *d += *h;
            *h += (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        }
    for (int i = 0; i < 8; i++)
        state[i] += v[i];
}

static NOINLINE uint32_t sha256_blocks(const uint8_t *data, size_t blocks)
{
    uint32_t state[8];
    memcpy(state, sha_start, sizeof state);
    for (size_t i = 0; i < blocks; i++)
        sha_block(state, data + 64 * i);
    return state[0] ^ state[7];
}

static const char *sha_setup(void)
{
    uint8_t padded[64] = {'a', 'b', 'c', 0x80, [63] = 24};
    for (uint32_t p = 2, n = 0; n < 64; p++) {
        uint32_t d = 2;
        while (d * d <= p && p % d)
            d++;
        if (d * d <= p)
            continue;
        if (n < 8)
            sha_start[n] = root_fraction(p, 2);
        sha_k[n++] = root_fraction(p, 3);
    }
    check(sha256_blocks(padded, 1) == (0xba7816bf ^ 0xf20015ad), "sha256");
    fill_text(SUM_BYTES);
    return NULL;
}

static void sha_run(uint64_t n)
{
    while (n--)
        USE(sha256_blocks(text, SUM_BYTES / 64));
}

/* --- sorting: quicksort, insertion for short runs --- */

enum { SORTED = 4096 };
static uint32_t *shuffled, *sorted;

static void quicksort(uint32_t *a, int64_t low, int64_t high)
{
    while (high - low > 12) {
        uint32_t pivot = a[(low + high) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i <= j) {
                uint32_t kept = a[i];
                a[i++] = a[j];
                a[j--] = kept;
            }
        }
        quicksort(a, low, j);
        low = i;
    }
    for (int64_t i = low + 1; i <= high; i++) {
        uint32_t value = a[i];
        int64_t j = i;
        for (; j > low && a[j - 1] > value; j--)
            a[j] = a[j - 1];
        a[j] = value;
    }
}

/* Another order each time, so that no branch predictor learns it by heart. */
static void sort_run(uint64_t n)
{
    static uint32_t salt = 1;
    while (n--) {
        next_random(&salt);
        for (int i = 0; i < SORTED; i++)
            sorted[i] = shuffled[i] ^ salt;
        quicksort(sorted, 0, SORTED - 1);
    }
}

static const char *sort_setup(void)
{
    uint32_t random = 7;
    shuffled = take(SORTED * sizeof *shuffled);
    sorted = take(SORTED * sizeof *sorted);
    for (int i = 0; i < SORTED; i++)
        shuffled[i] = next_random(&random);
    sort_run(1);
    for (int i = 1; i < SORTED; i++)
        check(sorted[i - 1] <= sorted[i], "sort");
    return NULL;
}

/* --- a hash table with open addresses: 1024 look-ups, half of them hits --- */

enum { SLOTS = 16384, KEYS = 8192 };
static uint64_t *slots;

static uint64_t key_of(uint64_t i)
{
    return i * 0x9e3779b97f4a7c15 | 1;
}

static uint32_t slot_of(uint64_t key)
{
    key ^= key >> 29;
    return (uint32_t)(key * 0xbf58476d1ce4e5b9 >> 50);
}

static NOINLINE int find(uint64_t key)
{
    for (uint32_t at = slot_of(key);; at = (at + 1) % SLOTS)
        if (slots[at] == key)
            return 1;
        else if (slots[at] == 0)
            return 0;
}

static void hash_run(uint64_t n)
{
    for (uint64_t first = 0; n--; first += 1024) {
        int found = 0;
        for (uint64_t i = 0; i < 1024; i++)
            found += find(key_of((first + i) * 5 % (2 * KEYS)));
        USE(found);
    }
}

static const char *hash_setup(void)
{
    slots = take(SLOTS * sizeof *slots);
    for (uint64_t i = 0; i < KEYS; i++) {
        uint32_t at = slot_of(key_of(i));
        while (slots[at])
            at = (at + 1) % SLOTS;
        slots[at] = key_of(i);
    }
    check(find(key_of(1)) && !find(key_of(KEYS + 1)), "hash look-up");
    return NULL;
}

/* --- compression in the manner of LZ: (literals, length, distance), one hashed candidate --- */

enum { LZ_BYTES = 65536 };
static uint8_t *packed;
static uint16_t *lz_last; /* position + 1 by hash of four bytes */

static uint32_t word_at(size_t at)
{
    uint32_t word;
    memcpy(&word, text + at, 4);
    return word;
}

static NOINLINE size_t lz_pack(void)
{
    size_t out = 0, literals = 0;
    memset(lz_last, 0, 4096 * sizeof *lz_last);
    for (size_t at = 0; at + 4 <= LZ_BYTES - 4;) {
        uint32_t word = word_at(at);
        uint16_t *last = &lz_last[word * 2654435761u >> 20];
        size_t from = *last;
        *last = (uint16_t)(at + 1);
        if (from == 0 || word_at(from - 1) != word || literals == 255) {
            at++;
            if (literals++ == 255) { /* a full run of literals without a match */
                packed[out++] = 255;
                memcpy(packed + out, text + at - 256, 256);
                out += 256;
                packed[out++] = 0;
                literals = 0;
            }
            continue;
        }
        size_t length = 4, distance = at - (from - 1);
        while (length < 255 && at + length < LZ_BYTES - 4 &&
               text[at + length] == text[from - 1 + length])
            length++;
        packed[out++] = (uint8_t)literals;
        for (size_t i = 0; i < literals; i++)
            packed[out++] = text[at - literals + i];
        packed[out++] = (uint8_t)length;
        packed[out++] = (uint8_t)distance;
        packed[out++] = (uint8_t)(distance >> 8);
        at += length;
        literals = 0;
    }
    return out;
}

static const char *lz_setup(void)
{
    fill_text(LZ_BYTES);
    packed = take(3 * LZ_BYTES);
    lz_last = take(4096 * sizeof *lz_last);
    size_t size = lz_pack(), at = 0;
    uint8_t *out = take(LZ_BYTES + 512);
    for (size_t in = 0; in < size;) { /* unpack and compare */
        size_t literals = packed[in++], length, distance;
        if (literals == 255)
            literals = 256;
        memcpy(out + at, packed + in, literals);
        at += literals;
        in += literals;
        length = packed[in++];
        if (length == 0)
            continue;
        distance = packed[in] | (size_t)packed[in + 1] << 8;
        in += 2;
        for (; length--; at++)
            out[at] = out[at - distance];
    }
    check(at > LZ_BYTES / 2 && memcmp(out, text, at) == 0, "LZ round trip");
    return NULL;
}

static void lz_run(uint64_t n)
{
    while (n--)
        USE(lz_pack());
}

/* --- 64 by 64 to 128 bits and back: a chain of MUL and DIV --- */

static NOINLINE uint64_t multiply_modulo(uint64_t a, uint64_t b, uint64_t m)
{
    uint64_t low, high, quotient;
    __asm__("mul %3" : "=a"(low), "=d"(high) : "a"(a), "r"(b) : "cc");
    __asm__("div %4" : "=a"(quotient), "=d"(high) : "a"(low), "d"(high), "r"(m) : "cc");
    USE(quotient);
    return high;
}

static const char *muldiv_setup(void)
{
    uint64_t m = 1000000007, x = 1;
    for (int i = 0; i < 100; i++)
        x = multiply_modulo(x, 3, m);
    check(x == 886041711, "3^100 modulo 1000000007");
    return NULL;
}

static void muldiv_run(uint64_t n)
{
    uint64_t x = 0x123456789abcdef;
    while (n--)
        for (int i = 0; i < 64; i++)
            x = multiply_modulo(x, 0x9e3779b97f4a7c15, 0xffffffffffffffc5) + 1;
    USE(x);
}

/* --- calls --- */

static NOINLINE uint32_t fibonacci(uint32_t n)
{
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static const char *calls_setup(void)
{
    check(fibonacci(15) == 610, "fibonacci");
    return NULL;
}

static void calls_run(uint64_t n)
{
    while (n--)
        USE(fibonacci(15));
}

#define TARGET(name, expression)                                                                   \
    static NOINLINE uint64_t name(uint64_t x)                                                      \
    {                                                                                              \
        return expression;                                                                         \
    }
TARGET(target_0, x + 1)
TARGET(target_1, x * 3)
TARGET(target_2, x ^ x >> 7)
TARGET(target_3, x - 5)
TARGET(target_4, x << 1 | x >> 63)
TARGET(target_5, ~x)
TARGET(target_6, x * 9 + 2)
TARGET(target_7, x ^ 0x55)

static uint64_t (*const targets[])(uint64_t) = {target_0, target_1, target_2, target_3,
                                                target_4, target_5, target_6, target_7};

static void icalls_run(uint64_t n)
{
    uint64_t x = 1;
    while (n--)
        for (uint64_t i = 0; i < 64; i++)
            x = targets[(i * 5 ^ i >> 2) % 8](x);
    USE(x);
}

/* --- pointer chasing: one cycle through all cache lines, in random order --- */

struct line {
    struct line *next;
    uint64_t pad[7];
};

static struct line *chain;

static void chain_make(size_t bytes)
{
    size_t lines = bytes / sizeof *chain;
    uint32_t random = 99;
    chain = take(bytes);
    for (size_t i = 0; i < lines; i++)
        chain[i].next = &chain[i];
    for (size_t i = lines - 1; i > 0; i--) { /* Sattolo's shuffle: one single cycle */
        size_t j = (size_t)next_random(&random) % i;
        struct line *kept = chain[i].next;
        chain[i].next = chain[j].next;
        chain[j].next = kept;
    }
}

static const char *chase_16k_setup(void)
{
    chain_make(16 << 10);
    return NULL;
}

static const char *chase_1m_setup(void)
{
    chain_make(1 << 20);
    return NULL;
}

static const char *chase_64m_setup(void)
{
    chain_make(64 << 20);
    return NULL;
}

static void chase_run(uint64_t n)
{
    struct line *at = chain;
    while (n--)
        for (int i = 0; i < 256; i++)
            at = at->next;
    chain = at;
}

const struct workload integer_workloads[] = {
    {"interpreter", "integer", 1, interpreter_setup, interpreter_run},
    {"crc32", "integer", 1, crc_setup, crc_run},
    {"sha256", "integer", 1, sha_setup, sha_run},
    {"sort", "integer", 1, sort_setup, sort_run},
    {"hash", "integer", 1, hash_setup, hash_run},
    {"lz", "integer", 1, lz_setup, lz_run},
    {"muldiv", "integer", 1, muldiv_setup, muldiv_run},
    {"calls", "integer", 1, calls_setup, calls_run},
    {"indirect-calls", "integer", 1, NULL, icalls_run},
    {"chase-16k", "integer", 1, chase_16k_setup, chase_run},
    {"chase-1m", "integer", 1, chase_1m_setup, chase_run},
    {"chase-64m", "integer", 1, chase_64m_setup, chase_run},
    {0},
};
