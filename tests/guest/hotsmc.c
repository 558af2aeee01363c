/*
 * Code that is hot and changes: the next instruction, the block itself, a function in another page, through string
 * instructions and locked ones, in a loop that never leaves its block; and where fetching is not allowed any more.
 * SDM vol. 3A 8.1.3, 4.6. GUEST: cpus=1
 */
#include "guest.h"

#define ROUNDS 2000u
#define VA     0x60000000000ull

typedef uint64_t code_fn(uint64_t a, uint64_t b);
static uint8_t *pages; /* four adjacent pages */

static void put(uint8_t *at, const void *bytes, unsigned len)
{
    memcpy(at, bytes, len);
}

static uint64_t call(const uint8_t *at, uint64_t a, uint64_t b)
{
    __asm__ volatile("" ::: "memory");
    return ((code_fn *)(uintptr_t)at)(a, b);
}

/* The immediate of the instruction after the store is the store's own operand. */
static void test_next_instruction(void)
{
    static const uint8_t code[] = {
        0x89, 0x3d, 0x01, 0x00, 0x00, 0x00, /* mov [rip + 1], edi */
        0xb8, 0, 0, 0, 0,                   /* mov eax, imm */
        0xc3,
    };

    put(pages, code, sizeof(code));
    for (uint32_t i = 0; i < ROUNDS; i++)
        CHECK_EQ(call(pages, i * 0x01010101u, 0), i * 0x01010101u);
}

/* Several instructions behind the store, with flags live over it. */
static void test_own_block(void)
{
    static const uint8_t code[] = {
        0x31, 0xc0,                         /* xor eax, eax */
        0x48, 0x01, 0xff,                   /* add rdi, rdi: CF is its top bit */
        0x40, 0x88, 0x35, 0x0e, 0, 0, 0,    /* mov [rip + 14], sil */
        0x48, 0x8d, 0x52, 0x01,             /* lea rdx, [rdx + 1] */
        0x4d, 0x89, 0xc0,                   /* mov r8, r8 */
        0x48, 0x83, 0xd0, 0x00,             /* adc rax, 0 */
        0x48, 0x83, 0xc0, 0x00,             /* add rax, imm8: at offset 26 */
        0xc3,
    };

    put(pages + 64, code, sizeof(code));
    for (uint32_t i = 0; i < ROUNDS; i++) {
        uint64_t a = i & 1 ? 1ull << 63 : 5, b = i & 0x3f;

        CHECK_EQ(call(pages + 64, a, b), (i & 1) + b);
    }
}

/* A loop that changes itself each time around, and never leaves its page. */
static void test_loop(void)
{
    static const uint8_t code[] = {
        0x31, 0xc0,                   /* xor eax, eax */
        0x48, 0x05, 0, 0, 0, 0,       /* add rax, imm32: the immediate at offset 4 */
        0xff, 0x05, 0xf6, 0xff, 0xff, 0xff, /* inc dword [rip - 10]: that immediate */
        0xff, 0xcf,                   /* dec edi */
        0x75, 0xf0,                   /* jnz to the add */
        0xc3,
    };

    put(pages + 256, code, sizeof(code));
    CHECK_EQ(call(pages + 256, ROUNDS, 0), ROUNDS * (ROUNDS - 1) / 2);
    put(pages + 256, code, sizeof(code));
    CHECK_EQ(call(pages + 256, 3 * ROUNDS, 0), 3 * ROUNDS * (3ull * ROUNDS - 1) / 2);
}

/* The caller changes what it calls, in another page, by each kind of store in turn. */
static void test_callee(void)
{
    static const uint8_t callee[] = {0xb8, 0, 0, 0, 0, 0xc3};
    uint8_t *at = pages + 4096 + 100;
    volatile uint32_t *imm = (uint32_t *)(at + 1);

    put(at, callee, sizeof(callee));
    for (uint32_t i = 0; i < ROUNDS; i++) {
        uint32_t value = i * 0x9e3779b1u, old = *imm;

        switch (i % 6) {
        case 0:
            *imm = value;
            break;
        case 1:
            __asm__ volatile("lock cmpxchgl %2, %0" : "+m"(*imm), "+a"(old) : "r"(value) : "cc");
            break;
        case 2:
            __asm__ volatile("lock addl %1, %0" : "+m"(*imm) : "r"(value - old) : "cc");
            break;
        case 3:
            __asm__ volatile("movd %1, %%xmm0\n movd %%xmm0, %0" : "=m"(*imm) : "r"(value));
            break;
        case 4:
            memcpy((void *)(uintptr_t)imm, &value, 4);
            break;
        default:
            __asm__ volatile("xchgl %1, %0" : "+m"(*imm), "+r"(value));
            value = i * 0x9e3779b1u;
            break;
        }
        CHECK_EQ(call(at, 0, 0), value);
    }
}

/* A tail jump from one page into another whose code is replaced by code of other lengths. */
static void test_lengths(void)
{
    static const uint8_t shorter[] = {0x31, 0xc0, 0xff, 0xc0, 0xc3};             /* 1 */
    static const uint8_t longer[] = {0x48, 0xc7, 0xc0, 2, 0, 0, 0, 0x90, 0xc3};  /* 2 */
    uint8_t *at = pages + 2 * 4096;
    uint8_t jump[] = {0xe9, 0, 0, 0, 0};
    int32_t to = (int32_t)(at - (pages + 700 + sizeof(jump)));

    memcpy(jump + 1, &to, 4);
    put(pages + 700, jump, sizeof(jump));
    for (unsigned i = 0; i < ROUNDS; i++) {
        bool one = i % 3 != 0;

        put(at, one ? shorter : longer, one ? sizeof(shorter) : sizeof(longer));
        for (unsigned k = 0; k < 1 + i % 12; k++)
            CHECK_EQ(call(pages + 700, 0, 0), one ? 1 : 2);
    }
}

/* A function across two pages is changed in either, while it is hot. */
static void test_across(void)
{
    uint8_t code[] = {0x48, 0x81, 0xc7, 0, 0, 0, 0, 0x48, 0x89, 0xf8, 0xc3}; /* add rdi, imm32; mov rax, rdi; ret */

    for (unsigned shift = 1; shift < sizeof(code); shift++) {
        uint8_t *at = pages + 3 * 4096 - shift;

        put(at, code, sizeof(code));
        for (uint32_t i = 0; i < 200; i++) {
            at[3] = (uint8_t)i;
            at[5] = (uint8_t)(i >> 3);
            CHECK_EQ(call(at, 1000, 0), 1000 + (i & 0xff) + ((uint64_t)(i >> 3 & 0xff) << 16));
        }
    }
}

/* Hot code whose page loses the right to be executed, or is another page, then. */
static void test_rights(void)
{
    static const uint8_t one[] = {0xb8, 1, 0, 0, 0, 0xc3}, two[] = {0xb8, 2, 0, 0, 0, 0xc3};
    uint64_t *pdpt = page_alloc(), *pd = page_alloc(), *pt = page_alloc();
    uint8_t *first = page_alloc(), *second = page_alloc(), *third = page_alloc();
    const uint64_t at = VA + 4096 - 3; /* across two pages */

    boot_pml4[VA >> 39 & 511] = (uint64_t)pdpt | PTE_P | PTE_W;
    pdpt[VA >> 30 & 511] = (uint64_t)pd | PTE_P | PTE_W;
    pd[0] = (uint64_t)pt | PTE_P | PTE_W;
    pt[0] = (uint64_t)first | PTE_P;
    pt[1] = (uint64_t)second | PTE_P;
    put(first, one, sizeof(one));
    put(second + 64, two, sizeof(two));
    memcpy(first + 4096 - 6, (const uint8_t[]){0x48, 0x89, 0xf8}, 3); /* mov rax, rdi: falls into the next */
    memcpy(first + 4096 - 3, two, 3);
    memcpy(second, two + 3, 3);
    memcpy(third, (const uint8_t[]){7, 0, 0xc3}, 3); /* the instruction ends otherwise: 0x70002 */
    for (unsigned round = 0; round < 30; round++) {
        for (unsigned i = 0; i < 100; i++) {
            CHECK_EQ(call((uint8_t *)VA, 0, 0), 1);
            CHECK_EQ(call((uint8_t *)at, 0, 0), 2);
            CHECK_EQ(call((uint8_t *)at - 3, 5, 0), 2);
        }
        pt[1] = (uint64_t)third | PTE_P;
        invlpg((void *)(VA + 4096));
        for (unsigned i = 0; i < 20; i++) {
            CHECK_EQ(call((uint8_t *)at, 0, 0), 0x70002);
            CHECK_EQ(call((uint8_t *)at - 3, 5, 0), 0x70002);
        }
        pt[1] = (uint64_t)second | PTE_P;
        invlpg((void *)(VA + 4096));
        CHECK_EQ(call((uint8_t *)at - 3, 5, 0), 2);
        pt[1] |= PTE_NX;
        invlpg((void *)(VA + 4096));
        CHECK_EQ(call((uint8_t *)VA, 0, 0), 1);
        TRY("call *%%rax", ::"a"(at) : "memory", "rcx", "rdx", "cc");
        CHECK_TRAP(14, 0x11);
        CHECK_EQ(trap_last.rip, at);
        CHECK_EQ(trap_last.cr2, VA + 4096);
        pt[1] = (pt[1] & ~PTE_NX) & ~PTE_P;
        invlpg((void *)(VA + 4096));
        TRY("call *%%rax", ::"a"(VA + 4096 + 64) : "memory", "rcx", "rdx", "cc");
        CHECK_TRAP(14, 0x10);
        CHECK_EQ(trap_last.rip, VA + 4096 + 64);
        pt[1] |= PTE_P;
        pt[0] |= PTE_NX;
        invlpg((void *)VA);
        TRY("call *%%rax", ::"a"(VA) : "memory", "rcx", "rdx", "cc");
        CHECK_TRAP(14, 0x11);
        CHECK_EQ(trap_last.rip, VA);
        pt[0] &= ~PTE_NX;
        invlpg((void *)VA);
    }
}

/* Falls from one page into the next, which is not there. */
static void test_fall_through(void)
{
    uint64_t *pt, *pd = (uint64_t *)((boot_pml4[VA >> 39 & 511]) & ~0xfffull);
    uint8_t *code;

    pd = (uint64_t *)(pd[VA >> 30 & 511] & ~0xfffull);
    pt = (uint64_t *)(pd[0] & ~0xfffull);
    pt[8] = (uint64_t)page_alloc() | PTE_P | PTE_W;
    pt[9] = (uint64_t)page_alloc() | PTE_P | PTE_W;
    code = (uint8_t *)(VA + 8 * 4096);
    memset(code + 4000, 0x90, 96);                             /* nops */
    put(code + 4096, (const uint8_t[]){0xb8, 7, 0, 0, 0, 0xc3}, 6);
    for (unsigned round = 0; round < 10; round++) {
        for (unsigned i = 0; i < 100; i++)
            CHECK_EQ(call(code + 4000, 0, 0), 7);
        pt[9] &= ~PTE_P;
        invlpg(code + 4096);
        TRY("call *%%rax", ::"a"(code + 4000) : "memory", "rcx", "rdx", "cc");
        CHECK_TRAP(14, 0x10);
        CHECK_EQ(trap_last.rip, (uint64_t)code + 4096);
        CHECK_EQ(trap_last.cr2, (uint64_t)code + 4096);
        pt[9] |= PTE_P;
    }
}

int main(void)
{
    pages = page_alloc();
    for (unsigned i = 0; i < 3; i++)
        page_alloc(); /* the pool is contiguous */
    test_next_instruction();
    test_own_block();
    test_loop();
    test_callee();
    test_lengths();
    test_across();
    test_rights();
    test_fall_through();
    return 0;
}
