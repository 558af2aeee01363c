/* Code that changes: by itself, across pages, through another mapping, on a page shared with data. SDM
 * vol. 3A 8.1.3: on one processor a jump is enough. GUEST: cpus=1 */
#include "guest.h"

typedef uint32_t code_fn(void);
static uint8_t *pages; /* two adjacent pages */

/* mov $value, %eax; ret */
static void put_code(uint8_t *at, uint32_t value)
{
    at[0] = 0xb8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

static uint32_t call(uint8_t *at)
{
    __asm__ volatile("" ::: "memory");
    return ((code_fn *)(uintptr_t)at)();
}

static void test_rewrite(void)
{
    for (uint32_t i = 0; i < 200; i++) {
        put_code(pages, i);
        CHECK_EQ(call(pages), i);
    }
    for (uint32_t i = 0; i < 200; i++) { /* only one byte of the immediate */
        pages[2] = (uint8_t)i;
        CHECK_EQ(call(pages) >> 8 & 0xff, i);
    }
}

static void test_hot_then_changed(void)
{
    put_code(pages + 64, 1);
    for (unsigned i = 0; i < 5000; i++)
        call(pages + 64);
    put_code(pages + 64, 2);
    CHECK_EQ(call(pages + 64), 2);
}

static void test_cross_page(void)
{
    uint8_t *at = pages + 4096 - 3; /* the immediate straddles the pages */

    put_code(at, 0x11223344);
    CHECK_EQ(call(at), 0x11223344);
    pages[4096] = 0x99; /* the second page alone changes: byte 2 of the immediate */
    CHECK_EQ(call(at), 0x11993344);
    pages[4095] = 0x77; /* the first alone */
    CHECK_EQ(call(at), 0x11997744);
}

static void test_other_mapping(void)
{
    uint8_t *alias = (uint8_t *)USER(pages);

    put_code(pages + 128, 5);
    CHECK_EQ(call(pages + 128), 5);
    put_code(alias + 128, 6); /* written through another linear address */
    CHECK_EQ(call(pages + 128), 6);
}

static void test_data_beside_code(void)
{
    volatile uint32_t *data = (uint32_t *)(pages + 1024);

    put_code(pages + 192, 9);
    *data = 0;
    for (unsigned i = 0; i < 2000; i++) {
        CHECK_EQ(call(pages + 192), 9);
        *data += 1;
    }
    CHECK_EQ(*data, 2000);
}

/* An instruction that overwrites the next one: the new one runs. */
static void test_next_instruction(void)
{
    uint32_t result;

    __asm__ volatile("movb $0x99, 1f+1(%%rip)\n"
                     "jmp 1f\n"
                     "1: movl $0x11111111, %0\n" : "=a"(result)::"memory");
    CHECK_EQ(result, 0x11111199);
    __asm__ volatile("movb $0x55, 2f+1(%%rip)\n"
                     "2: movl $0x11111111, %0\n" : "=a"(result)::"memory");
    CHECK_EQ(result, 0x11111155);
}

/* REP STOSB over the code that follows it, and a block copied again and again. */
static void test_string_store(void)
{
    static uint8_t image[2][8];

    put_code(image[0], 100);
    put_code(image[1], 200);
    for (unsigned i = 0; i < 100; i++) {
        memcpy(pages + 256, image[i & 1], 6);
        CHECK_EQ(call(pages + 256), i & 1 ? 200 : 100);
    }
}

/* The same linear address, another physical page. */
static void test_remap(void)
{
    const uint64_t va = 0x40000000000ull, rw = PTE_P | PTE_W;
    uint64_t *pdpt = page_alloc(), *pd = page_alloc(), *pt = page_alloc();
    uint8_t *one = page_alloc(), *two = page_alloc();

    put_code(one, 1);
    put_code(two, 2);
    boot_pml4[va >> 39 & 511] = (uint64_t)pdpt | rw;
    pdpt[0] = (uint64_t)pd | rw;
    pd[0] = (uint64_t)pt | rw;
    for (unsigned i = 0; i < 100; i++) {
        pt[0] = (uint64_t)(i & 1 ? two : one) | rw;
        invlpg((void *)va);
        CHECK_EQ(call((uint8_t *)va), i & 1 ? 2 : 1);
    }
}

int main(void)
{
    pages = page_alloc();
    page_alloc(); /* the pool is contiguous: the second page */
    test_rewrite();
    test_hot_then_changed();
    test_cross_page();
    test_other_mapping();
    test_data_beside_code();
    test_next_instruction();
    test_string_store();
    test_remap();
    return 0;
}
