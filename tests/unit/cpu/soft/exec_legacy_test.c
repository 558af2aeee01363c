/* What 64-bit code cannot show: 16- and 32-bit stacks, decimal arithmetic, address wrap. */
#include "fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/*
 * mov $0x11111111,%eax; mov $0x22222222,%ecx; mov $3,%edx; mov $6,%esi; mov $7,%edi; mov $5,%ebp;
 * pusha; xor %ecx,%ecx; xor %esi,%esi; popa; pushw $0x1234; popw %cx; enter $16,$2; leave; push $9;
 * call 1f; jmp 2f; 1: mov 4(%esp),%ebx; ret $4; 2: mov $0x79,%al; add $0x35,%al; daa;
 * mov %eax,%edi; setc %dl; mov $0x3f,%al; aam; hlt
 */
static const uint8_t code32[] = {
    0xb8, 0x11, 0x11, 0x11, 0x11, 0xb9, 0x22, 0x22, 0x22, 0x22, 0xba, 0x03, 0x00, 0x00,
    0x00, 0xbe, 0x06, 0x00, 0x00, 0x00, 0xbf, 0x07, 0x00, 0x00, 0x00, 0xbd, 0x05, 0x00,
    0x00, 0x00, 0x60, 0x31, 0xc9, 0x31, 0xf6, 0x61, 0x66, 0x68, 0x34, 0x12, 0x66, 0x59,
    0xc8, 0x10, 0x00, 0x02, 0xc9, 0x6a, 0x09, 0xe8, 0x02, 0x00, 0x00, 0x00, 0xeb, 0x07,
    0x8b, 0x5c, 0x24, 0x04, 0xc2, 0x04, 0x00, 0xb0, 0x79, 0x04, 0x35, 0x27, 0x89, 0xc7,
    0x0f, 0x92, 0xc2, 0xb0, 0x3f, 0xd4, 0x0a, 0xf4};

/* mov $0xfffe,%si; mov $0x8000,%di; mov $4,%cx; rep movsb; push %si; pop %bx; push $0x7777;
 * mov $3,%cx; 1: inc %dx; loop 1b; call 2f; jmp 3f; 2: ret; 3: pop %ax; hlt */
static const uint8_t code16[] = {0xbe, 0xfe, 0xff, 0xbf, 0x00, 0x80, 0xb9, 0x04, 0x00, 0xf3,
                                 0xa4, 0x56, 0x5b, 0x68, 0x77, 0x77, 0xb9, 0x03, 0x00, 0x42,
                                 0xe2, 0xfd, 0xe8, 0x02, 0x00, 0xeb, 0x01, 0xc3, 0x58, 0xf4};

static void test_protected(void **state)
{
    struct fixture f;
    const struct cpu_state *s;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 32);
    s = fixture_state(&f, 0);
    assert_true(fixture_execute(&f, code32, sizeof(code32)));
    assert_int_equal(s->gpr[GPR_RAX], 0x11110603); /* 63 in decimal digits */
    assert_int_equal(s->gpr[GPR_RBX], 9);
    assert_int_equal(s->gpr[GPR_RCX], 0x22221234);
    assert_int_equal(s->gpr[GPR_RDX], 1);          /* 79 + 35 carries */
    assert_int_equal(s->gpr[GPR_RDI], 0x11111114);
    assert_int_equal(s->gpr[GPR_RSI], 6);
    assert_int_equal(s->gpr[GPR_RBP], 5);
    assert_int_equal(s->gpr[GPR_RSP], FIXTURE_STACK);
    fixture_release(&f);
}

static void test_real(void **state)
{
    struct fixture f;
    struct cpu_state *s;

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 16);
    s = fixture_state(&f, 0);
    s->gpr[GPR_RSP] = 0xaaaa0002; /* wraps on the second push */
    s->gpr[GPR_RDX] = 0;
    memcpy(f.ram + 0xfffe, "LO", 2);
    memcpy(f.ram, "DG", 2);
    assert_true(fixture_execute(&f, code16, sizeof(code16)));
    assert_memory_equal(f.ram + 0x8000, "LODG", 4);
    assert_int_equal(s->gpr[GPR_RSI] & 0xffff, 2);
    assert_int_equal(s->gpr[GPR_RDI] & 0xffff, 0x8004);
    assert_int_equal(s->gpr[GPR_RCX] & 0xffff, 0);
    assert_int_equal(s->gpr[GPR_RBX] & 0xffff, 2);
    assert_int_equal(s->gpr[GPR_RDX] & 0xffff, 3);
    assert_int_equal(s->gpr[GPR_RAX] & 0xffff, 0x7777);
    assert_int_equal(s->gpr[GPR_RSP], 0xaaaa0002);
    fixture_release(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_protected),
        cmocka_unit_test(test_real),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
