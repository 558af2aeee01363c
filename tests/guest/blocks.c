/* More code than any cache of it holds, in the smallest pieces: every byte of half a megabyte is a function. What
 * was dropped from a cache must be found changed, and dropping must not take for ever. GUEST: cpus=1 */
#include "guest.h"

#define SEA_PAGES 128u
#define SEA_SIZE  (SEA_PAGES * 4096u)

static uint8_t sea[SEA_SIZE] __attribute__((aligned(4096)));

static void call(const uint8_t *at)
{
    __asm__ volatile("call *%0" : : "r"(at) : "memory", "cc");
}

/* A step that is odd and not small: pages and caches are visited out of order. */
static void call_all(void)
{
    for (uint32_t i = 0, at = 0; i < SEA_SIZE; i++, at = (at + 40503) % SEA_SIZE)
        call(sea + at);
}

/* mov $value, %eax; ret */
static void put_code(uint8_t *at, uint32_t value)
{
    at[0] = 0xb8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

static uint32_t call_code(const uint8_t *at)
{
    uint32_t value;

    __asm__ volatile("call *%1" : "=&a"(value) : "r"(at) : "memory", "cc");
    return value;
}

int main(void)
{
    memset(sea, 0xc3, SEA_SIZE); /* ret */
    for (unsigned round = 0; round < 2; round++) {
        call_all();
        for (unsigned page = 0; page < SEA_PAGES; page++)
            put_code(sea + page * 4096 + 100, round * 1000 + page);
        for (unsigned page = 0; page < SEA_PAGES; page++)
            CHECK_EQ(call_code(sea + page * 4096 + 100), round * 1000 + page);
        for (unsigned page = 0; page < SEA_PAGES; page++)
            memset(sea + page * 4096 + 100, 0xc3, 6);
    }
    return 0;
}
