/* Copies and streams. */
#include <emmintrin.h>
#include <string.h>

#include "bench.h"

enum { COPY_BYTES = 1 << 20, REP_BYTES = 64 << 10, TRIAD_DOUBLES = 1 << 20 };
static uint8_t *from, *to;
static double *sum, *first, *second;

static const char *copy_setup(void)
{
    from = take(COPY_BYTES);
    to = take(COPY_BYTES);
    memset(from, 0x5a, COPY_BYTES);
    return NULL;
}

static void memcpy_run(uint64_t n)
{
    while (n--) {
        memcpy(to, from, COPY_BYTES);
        USE(to);
    }
}

static void sse2_run(uint64_t n)
{
    while (n--)
        for (size_t i = 0; i < COPY_BYTES; i += 64) {
            __m128i a = _mm_load_si128((const __m128i *)(from + i));
            __m128i b = _mm_load_si128((const __m128i *)(from + i + 16));
            __m128i c = _mm_load_si128((const __m128i *)(from + i + 32));
            __m128i d = _mm_load_si128((const __m128i *)(from + i + 48));
            _mm_store_si128((__m128i *)(to + i), a);
            _mm_store_si128((__m128i *)(to + i + 16), b);
            _mm_store_si128((__m128i *)(to + i + 32), c);
            _mm_store_si128((__m128i *)(to + i + 48), d);
        }
}

static const char *triad_setup(void)
{
    sum = take(TRIAD_DOUBLES * sizeof(double));
    first = take(TRIAD_DOUBLES * sizeof(double));
    second = take(TRIAD_DOUBLES * sizeof(double));
    for (int i = 0; i < TRIAD_DOUBLES; i++)
        first[i] = second[i] = i;
    return NULL;
}

static void triad_run(uint64_t n)
{
    while (n--) {
        for (int i = 0; i < TRIAD_DOUBLES; i++)
            sum[i] = first[i] + 3.0 * second[i];
        USE(sum);
    }
}

static void rep_movsb_run(uint64_t n)
{
    while (n--) {
        uint8_t *source = from, *target = to;
        size_t count = REP_BYTES;
        __asm__ volatile("rep movsb" : "+S"(source), "+D"(target), "+c"(count) : : "memory");
    }
}

static void rep_stosq_run(uint64_t n)
{
    while (n--) {
        uint8_t *target = to;
        size_t count = REP_BYTES / 8;
        __asm__ volatile("rep stosq" : "+D"(target), "+c"(count) : "a"(n) : "memory");
    }
}

const struct workload memory_workloads[] = {
    {"memcpy", "memory", 1, copy_setup, memcpy_run},
    {"copy-sse2", "memory", 1, copy_setup, sse2_run},
    {"triad", "memory", 1, triad_setup, triad_run},
    {"rep-movsb", "memory", 1, copy_setup, rep_movsb_run},
    {"rep-stosq", "memory", 1, copy_setup, rep_stosq_run},
    {0},
};
