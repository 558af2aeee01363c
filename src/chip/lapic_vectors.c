/* Sets of interrupt vectors that one thread empties while others fill them. */
#include "chip/lapic_internal.h"

void lapic_vectors_set(struct lapic_vectors *v, uint8_t vector)
{
    atomic_fetch_or(&v->word[vector >> 5], 1u << (vector & 31));
    /* Ordered after the bit; pairs with the re-check in lapic_vectors_clear(). */
    atomic_fetch_or(&v->summary, 1u << (vector >> 5));
}

void lapic_vectors_clear(struct lapic_vectors *v, uint8_t vector)
{
    unsigned w = vector >> 5;
    uint32_t bit = 1u << (vector & 31);

    if (atomic_fetch_and(&v->word[w], ~bit) & ~bit)
        return;
    atomic_fetch_and(&v->summary, ~(1u << w));
    /* Another thread may have set a bit and its summary just before we took the summary away. */
    if (atomic_load(&v->word[w]))
        atomic_fetch_or(&v->summary, 1u << w);
}

bool lapic_vectors_test(const struct lapic_vectors *v, uint8_t vector)
{
    return (atomic_load(&v->word[vector >> 5]) >> (vector & 31)) & 1;
}

int lapic_vectors_highest(const struct lapic_vectors *v)
{
    uint32_t summary = atomic_load(&v->summary);

    while (summary) {
        int w = 31 - __builtin_clz(summary);
        uint32_t bits = atomic_load(&v->word[w]);

        if (bits)
            return w * 32 + 31 - __builtin_clz(bits);
        summary &= ~(1u << w);
    }
    return -1;
}

void lapic_vectors_zero(struct lapic_vectors *v)
{
    for (unsigned w = 0; w < 8; w++)
        atomic_store(&v->word[w], 0);
    atomic_store(&v->summary, 0);
}

void lapic_vectors_loaded(struct lapic_vectors *v)
{
    uint32_t summary = 0;

    for (unsigned w = 0; w < 8; w++) {
        if (atomic_load(&v->word[w]))
            summary |= 1u << w;
    }
    atomic_store(&v->summary, summary);
}
