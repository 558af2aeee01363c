/* SSE2, AVX2, AVX-512 and x87 kernels. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "bench.h"

/* --- matrix products, 64 by 64 floats --- */

enum { SIDE = 64 };
static float (*left)[SIDE], (*right)[SIDE], (*product)[SIDE];

static void matrix_make(void)
{
    uint32_t random = 3;
    left = take(SIDE * SIDE * sizeof(float));
    right = take(SIDE * SIDE * sizeof(float));
    product = take(SIDE * SIDE * sizeof(float));
    for (int i = 0; i < SIDE * SIDE;
         i++) { /* small integers: every order of adding gives the same sum */
        left[0][i] = (float)(next_random(&random) % 16);
        right[0][i] = (float)(next_random(&random) % 16);
    }
}

static const char *matrix_check(void (*run)(uint64_t))
{
    matrix_make();
    run(1);
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            int sum = 0;
            for (int k = 0; k < SIDE; k++)
                sum += (int)left[i][k] * (int)right[k][j];
            check((int)product[i][j] == sum, "matrix product");
        }
    return NULL;
}

/* One row of the product stays in registers. */
static void matrix_sse2_run(uint64_t n)
{
    for (; n--;)
        for (int i = 0; i < SIDE; i++)
            for (int j = 0; j < SIDE; j += 16) {
                __m128 a = _mm_setzero_ps(), b = a, c = a, d = a;
                for (int k = 0; k < SIDE; k++) {
                    __m128 x = _mm_set1_ps(left[i][k]);
                    a = _mm_add_ps(a, _mm_mul_ps(x, _mm_load_ps(&right[k][j])));
                    b = _mm_add_ps(b, _mm_mul_ps(x, _mm_load_ps(&right[k][j + 4])));
                    c = _mm_add_ps(c, _mm_mul_ps(x, _mm_load_ps(&right[k][j + 8])));
                    d = _mm_add_ps(d, _mm_mul_ps(x, _mm_load_ps(&right[k][j + 12])));
                }
                _mm_store_ps(&product[i][j], a);
                _mm_store_ps(&product[i][j + 4], b);
                _mm_store_ps(&product[i][j + 8], c);
                _mm_store_ps(&product[i][j + 12], d);
            }
}

__attribute__((target("avx2,fma"))) static void matrix_avx2_run(uint64_t n)
{
    for (; n--;)
        for (int i = 0; i < SIDE; i++)
            for (int j = 0; j < SIDE; j += 32) {
                __m256 a = _mm256_setzero_ps(), b = a, c = a, d = a;
                for (int k = 0; k < SIDE; k++) {
                    __m256 x = _mm256_set1_ps(left[i][k]);
                    a = _mm256_fmadd_ps(x, _mm256_load_ps(&right[k][j]), a);
                    b = _mm256_fmadd_ps(x, _mm256_load_ps(&right[k][j + 8]), b);
                    c = _mm256_fmadd_ps(x, _mm256_load_ps(&right[k][j + 16]), c);
                    d = _mm256_fmadd_ps(x, _mm256_load_ps(&right[k][j + 24]), d);
                }
                _mm256_store_ps(&product[i][j], a);
                _mm256_store_ps(&product[i][j + 8], b);
                _mm256_store_ps(&product[i][j + 16], c);
                _mm256_store_ps(&product[i][j + 24], d);
            }
}

__attribute__((target("avx512f"))) static void matrix_avx512_run(uint64_t n)
{
    for (; n--;)
        for (int i = 0; i < SIDE; i++) {
            __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
            for (int k = 0; k < SIDE; k++) {
                __m512 x = _mm512_set1_ps(left[i][k]);
                a = _mm512_fmadd_ps(x, _mm512_load_ps(&right[k][0]), a);
                b = _mm512_fmadd_ps(x, _mm512_load_ps(&right[k][16]), b);
                c = _mm512_fmadd_ps(x, _mm512_load_ps(&right[k][32]), c);
                d = _mm512_fmadd_ps(x, _mm512_load_ps(&right[k][48]), d);
            }
            _mm512_store_ps(&product[i][0], a);
            _mm512_store_ps(&product[i][16], b);
            _mm512_store_ps(&product[i][32], c);
            _mm512_store_ps(&product[i][48], d);
        }
}

static const char *matrix_sse2_setup(void)
{
    return matrix_check(matrix_sse2_run);
}

static const char *matrix_avx2_setup(void)
{
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return "no AVX2";
    return matrix_check(matrix_avx2_run);
}

static const char *matrix_avx512_setup(void)
{
    if (!__builtin_cpu_supports("avx512f"))
        return "no AVX-512";
    return matrix_check(matrix_avx512_run);
}

/* --- gravity between five bodies, one double at a time --- */

enum { BODIES = 5 };
static double position[BODIES][3], velocity[BODIES][3], mass[BODIES];

static double energy(void)
{
    double sum = 0;
    for (int i = 0; i < BODIES; i++) {
        for (int k = 0; k < 3; k++)
            sum += mass[i] * velocity[i][k] * velocity[i][k] / 2;
        for (int j = 0; j < i; j++) {
            double square = 0;
            for (int k = 0; k < 3; k++)
                square += (position[i][k] - position[j][k]) * (position[i][k] - position[j][k]);
            sum -= mass[i] * mass[j] / sqrt(square);
        }
    }
    return sum;
}

__attribute__((optimize("no-tree-vectorize"))) static void bodies_run(uint64_t n)
{
    const double step = 1e-4;
    while (n--) {
        for (int i = 0; i < BODIES; i++)
            for (int j = 0; j < i; j++) {
                double x = position[i][0] - position[j][0];
                double y = position[i][1] - position[j][1];
                double z = position[i][2] - position[j][2];
                double square = x * x + y * y + z * z;
                double pull = step / (square * sqrt(square));
                velocity[i][0] -= x * mass[j] * pull;
                velocity[i][1] -= y * mass[j] * pull;
                velocity[i][2] -= z * mass[j] * pull;
                velocity[j][0] += x * mass[i] * pull;
                velocity[j][1] += y * mass[i] * pull;
                velocity[j][2] += z * mass[i] * pull;
            }
        for (int i = 0; i < BODIES; i++)
            for (int k = 0; k < 3; k++)
                position[i][k] += step * velocity[i][k];
    }
}

/* A heavy body, and four light ones on circles around it. */
static const char *bodies_setup(void)
{
    mass[0] = 1;
    for (int i = 1; i < BODIES; i++) {
        double radius = 0.5 + i;
        mass[i] = 1e-4 * i;
        position[i][i % 2] = radius;
        velocity[i][1 - i % 2] = i % 2 ? -sqrt(1 / radius) : sqrt(1 / radius);
        velocity[i][2] = 0.01;
    }
    double before = energy();
    bodies_run(100);
    check(fabs(energy() - before) < 1e-4 * fabs(before), "the bodies' energy");
    return NULL;
}

/* --- x87: a logarithm's series, with division and square root --- */

static NOINLINE long double x87_series(long double x, int terms)
{
    long double sum = 0, power = x;
    for (int i = 1; i <= terms; i++) {
        sum += power / i;
        power *= -x;
        __asm__("" : "+t"(power));
    }
    __asm__("fsqrt" : "+t"(sum));
    return sum;
}

static const char *x87_setup(void)
{
    long double root = x87_series(0.5L, 64);
    check(fabsl(root * root - 0.405465108108164381978L) < 1e-17L, "ln 1.5");
    return NULL;
}

static void x87_run(uint64_t n)
{
    while (n--)
        USE((double)x87_series(0.5L, 64));
}

/* --- integers: two pictures blended, differences summed --- */

enum { PIXELS = 16384 };
static uint8_t *picture[3];
static uint64_t difference;

static void pictures_make(void)
{
    uint32_t random = 5;
    for (int i = 0; i < 3; i++)
        picture[i] = take(PIXELS);
    for (int i = 0; i < PIXELS; i++) {
        picture[0][i] = (uint8_t)next_random(&random);
        picture[1][i] = (uint8_t)next_random(&random);
    }
}

static const char *pictures_check(void (*run)(uint64_t))
{
    uint64_t sum = 0;
    pictures_make();
    run(1);
    for (int i = 0; i < PIXELS; i++) {
        int average = (picture[0][i] + picture[1][i] + 1) / 2;
        int brighter = average + 9 > 255 ? 255 : average + 9;
        sum += (uint64_t)(picture[0][i] > brighter ? picture[0][i] - brighter
                                                   : brighter - picture[0][i]);
        check(picture[2][i] == brighter, "blended pictures");
    }
    check(sum == difference, "sum of differences");
    return NULL;
}

static void pictures_sse2_run(uint64_t n)
{
    while (n--) {
        __m128i sum = _mm_setzero_si128();
        for (int i = 0; i < PIXELS; i += 16) {
            __m128i a = _mm_load_si128((const __m128i *)(picture[0] + i));
            __m128i b = _mm_load_si128((const __m128i *)(picture[1] + i));
            __m128i mean = _mm_adds_epu8(_mm_avg_epu8(a, b), _mm_set1_epi8(9));
            sum = _mm_add_epi64(sum, _mm_sad_epu8(a, mean));
            _mm_store_si128((__m128i *)(picture[2] + i), mean);
        }
        sum = _mm_add_epi64(sum, _mm_shuffle_epi32(sum, 0x4e));
        difference = (uint64_t)_mm_cvtsi128_si64(sum);
    }
}

__attribute__((target("avx2"))) static void pictures_avx2_run(uint64_t n)
{
    while (n--) {
        __m256i sum = _mm256_setzero_si256();
        for (int i = 0; i < PIXELS; i += 32) {
            __m256i a = _mm256_load_si256((const __m256i *)(picture[0] + i));
            __m256i b = _mm256_load_si256((const __m256i *)(picture[1] + i));
            __m256i mean = _mm256_adds_epu8(_mm256_avg_epu8(a, b), _mm256_set1_epi8(9));
            sum = _mm256_add_epi64(sum, _mm256_sad_epu8(a, mean));
            _mm256_store_si256((__m256i *)(picture[2] + i), mean);
        }
        __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        half = _mm_add_epi64(half, _mm_shuffle_epi32(half, 0x4e));
        difference = (uint64_t)_mm_cvtsi128_si64(half);
    }
}

static const char *pictures_sse2_setup(void)
{
    return pictures_check(pictures_sse2_run);
}

static const char *pictures_avx2_setup(void)
{
    if (!__builtin_cpu_supports("avx2"))
        return "no AVX2";
    return pictures_check(pictures_avx2_run);
}

const struct workload vector_workloads[] = {
    {"matrix-sse2", "vector", 1, matrix_sse2_setup, matrix_sse2_run},
    {"matrix-avx2", "vector", 1, matrix_avx2_setup, matrix_avx2_run},
    {"matrix-avx512", "vector", 1, matrix_avx512_setup, matrix_avx512_run},
    {"n-body", "vector", 1, bodies_setup, bodies_run},
    {"x87", "vector", 1, x87_setup, x87_run},
    {"integer-sse2", "vector", 1, pictures_sse2_setup, pictures_sse2_run},
    {"integer-avx2", "vector", 1, pictures_avx2_setup, pictures_avx2_run},
    {0},
};
