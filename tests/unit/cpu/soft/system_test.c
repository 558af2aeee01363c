/* Events, gates, returns, task switches and system registers, each in a few bytes of guest code. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "cpu/soft/system.h"
#include "fixture.h"

#define GDT      0x20000u
#define TSS      0x21000u
#define TSS2     0x21800u
#define IDT      0x22000u
#define HANDLERS 0x30000u /* HLT at 16 bytes times the vector */
#define STACK0   0x60000u /* RSP0, ESP0 */
#define STACK_IST 0x68000u
#define USER_STACK 0x70000u

#define SEL_CODE   0x08u
#define SEL_DATA   0x10u
#define SEL_USER32 0x1bu
#define SEL_USER_DATA 0x23u
#define SEL_USER64 0x2bu
#define SEL_TSS    0x30u /* two slots */
#define SEL_TSS2   0x40u
#define SEL_GATE   0x48u /* two slots */

static void put64(struct fixture *f, uint32_t at, uint64_t value)
{
    mem_write64(f->machine->mem, at, value);
}

static uint32_t get32(struct fixture *f, uint64_t at)
{
    return mem_read32(f->machine->mem, at);
}

static uint64_t get64(struct fixture *f, uint64_t at)
{
    return mem_read64(f->machine->mem, at);
}

static uint64_t flat(unsigned type, unsigned dpl, uint64_t flags)
{
    return 0x000f00000000ffffull | (uint64_t)(0x90u | type | dpl << 5) << 40 | flags << 52;
}

static uint64_t system_descriptor(uint32_t base, uint32_t limit, unsigned type)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(0x80u | type) << 40 |
           (uint64_t)(base >> 24) << 56;
}

/* Gate type 14 (interrupt), 15 (trap); `extra` lands in bits 34:32 (IST) or the parameter count. */
static void put_gate(struct fixture *f, bool wide, unsigned vector, unsigned type, unsigned dpl,
                     unsigned extra)
{
    uint32_t offset = HANDLERS + vector * 16;
    uint32_t at = IDT + vector * (wide ? 16 : 8);

    put64(f, at, (offset & 0xffff) | SEL_CODE << 16 | (uint64_t)extra << 32 |
                     (uint64_t)(0x80u | type | dpl << 5) << 40 | (uint64_t)(offset >> 16) << 48);
    if (wide)
        put64(f, at + 8, 0);
}

static void set_up(struct fixture *f, unsigned bits)
{
    bool wide = bits == 64;
    struct cpu_state *s;

    fixture_init(f, 1);
    fixture_mode(f, 0, bits);
    put64(f, GDT + SEL_CODE, flat(0xb, 0, wide ? 0xa : 0xc));
    put64(f, GDT + SEL_DATA, flat(0x3, 0, 0xc));
    put64(f, GDT + (SEL_USER32 & ~3u), flat(0xb, 3, 0xc));
    put64(f, GDT + (SEL_USER_DATA & ~3u), flat(0x3, 3, 0xc));
    put64(f, GDT + (SEL_USER64 & ~3u), flat(0xb, 3, 0xa));
    put64(f, GDT + SEL_TSS, system_descriptor(TSS, 0x67, 0xb));
    for (unsigned v = 0; v < 256; v++) {
        put_gate(f, wide, v, 14, v == 0x80 || v == 0x21 ? 3 : 0, 0);
        fixture_load(f, HANDLERS + v * 16, "\xf4", 1);
    }
    s = fixture_state(f, 0);
    s->gdtr = (struct cpu_table){.base = GDT, .limit = 0x7f};
    s->idtr = (struct cpu_table){.base = IDT, .limit = wide ? 0xfff : 0x7ff};
    s->tr = (struct cpu_segment){.base = TSS, .limit = 0x67, .selector = SEL_TSS, .attr = 0x8b};
    s->ldtr.attr = CPU_SEG_UNUSABLE;
    if (wide) {
        put64(f, TSS + 4, STACK0);
        put64(f, TSS + 36, STACK_IST);
    } else {
        put64(f, TSS + 4, STACK0 | (uint64_t)SEL_DATA << 32);
    }
}

static void enter_user(struct fixture *f, unsigned bits)
{
    struct cpu_state *s = fixture_state(f, 0);
    uint32_t code = bits == 64 ? 0xa0fb : 0xc0fb;

    s->seg[SEG_CS] = (struct cpu_segment){
        .limit = UINT32_MAX, .selector = bits == 64 ? SEL_USER64 : SEL_USER32, .attr = code};
    s->seg[SEG_SS] = (struct cpu_segment){
        .limit = UINT32_MAX, .selector = SEL_USER_DATA, .attr = 0xc0f3};
    s->gpr[GPR_RSP] = USER_STACK;
    soft_mode_update(fixture_cpu(f, 0));
}

/* The vector whose handler halted the CPU. */
static int halted_in(struct fixture *f)
{
    uint64_t rip = fixture_state(f, 0)->rip - 1;

    return rip >= HANDLERS && rip < HANDLERS + 256 * 16 && rip % 16 == 0 ? (int)(rip - HANDLERS) / 16
                                                                       : -1;
}

#define EXECUTE(f, bytes) fixture_execute(f, bytes, sizeof(bytes) - 1)

static void test_long_interrupt(void **state)
{
    struct fixture f;
    struct cpu_state *s;
    uint64_t frame;

    (void)state;
    set_up(&f, 64);
    s = fixture_state(&f, 0);
    s->gpr[GPR_RSP] = FIXTURE_STACK - 8; /* is aligned by delivery */
    s->rflags |= RFLAGS_IF | RFLAGS_CF;
    assert_true(EXECUTE(&f, "\xcd\x40"));
    assert_int_equal(halted_in(&f), 0x40);
    frame = FIXTURE_STACK - 16 - 40;
    assert_int_equal(s->gpr[GPR_RSP], frame);
    assert_int_equal(get64(&f, frame), FIXTURE_CODE + 2);
    assert_int_equal(get64(&f, frame + 8), SEL_CODE);
    assert_int_equal(get64(&f, frame + 16), RFLAGS_ONE | RFLAGS_IF | RFLAGS_CF);
    assert_int_equal(get64(&f, frame + 24), FIXTURE_STACK - 8);
    assert_int_equal(get64(&f, frame + 32), SEL_DATA);
    assert_int_equal(s->rflags & RFLAGS_IF, 0);
    fixture_release(&f);
}

static void test_long_ist_and_trap_gate(void **state)
{
    struct fixture f;

    (void)state;
    set_up(&f, 64);
    put_gate(&f, true, 0x41, 15, 0, 1);
    fixture_state(&f, 0)->rflags |= RFLAGS_IF;
    assert_true(EXECUTE(&f, "\xcd\x41"));
    assert_int_equal(halted_in(&f), 0x41);
    assert_int_equal(fixture_state(&f, 0)->gpr[GPR_RSP], STACK_IST - 40);
    assert_true(fixture_state(&f, 0)->rflags & RFLAGS_IF);
    fixture_release(&f);
}

static void test_long_from_user(void **state)
{
    struct fixture f;
    struct cpu_state *s;

    (void)state;
    set_up(&f, 64);
    enter_user(&f, 64);
    s = fixture_state(&f, 0);
    assert_true(EXECUTE(&f, "\xf4")); /* HLT at CPL 3 */
    assert_int_equal(halted_in(&f), VECTOR_GP);
    assert_int_equal(s->gpr[GPR_RSP], STACK0 - 48);
    assert_int_equal(get64(&f, STACK0 - 48), 0);
    assert_int_equal(get64(&f, STACK0 - 40), FIXTURE_CODE);
    assert_int_equal(get64(&f, STACK0 - 32), SEL_USER64);
    assert_true(get64(&f, STACK0 - 24) & RFLAGS_RF);
    assert_int_equal(get64(&f, STACK0 - 16), USER_STACK);
    assert_int_equal(get64(&f, STACK0 - 8), SEL_USER_DATA);
    assert_int_equal(s->seg[SEG_SS].selector, 0);
    assert_true(s->seg[SEG_SS].attr & CPU_SEG_UNUSABLE);
    assert_int_equal(fixture_cpu(&f, 0)->cpl, 0);
    fixture_release(&f);
}

static void test_gate_privilege(void **state)
{
    struct fixture f;

    (void)state;
    set_up(&f, 64);
    enter_user(&f, 64);
    assert_true(EXECUTE(&f, "\xcd\x40"));
    assert_int_equal(halted_in(&f), VECTOR_GP);
    assert_int_equal(get64(&f, STACK0 - 48), 0x40 * 8 + 2);
    enter_user(&f, 64);
    assert_true(EXECUTE(&f, "\xcd\x80"));
    assert_int_equal(halted_in(&f), 0x80);
    fixture_release(&f);
}

static void test_nested_faults(void **state)
{
    struct fixture f;

    (void)state;
    set_up(&f, 64);
    put64(&f, IDT + VECTOR_GP * 16, 0); /* #GP cannot be delivered: #DF */
    assert_true(EXECUTE(&f, "\xcd\x40\xf4"));
    assert_int_equal(halted_in(&f), 0x40);
    assert_true(EXECUTE(&f, "\x31\xc9\x0f\x32")); /* RDMSR of MSR 0 */
    assert_int_equal(halted_in(&f), VECTOR_DF);
    assert_int_equal(get64(&f, fixture_state(&f, 0)->gpr[GPR_RSP]), 0);
    put64(&f, IDT + VECTOR_DF * 16, 0);
    assert_false(EXECUTE(&f, "\x31\xc9\x0f\x32")); /* and then shutdown */
    fixture_release(&f);
}

static void test_not_present_gate(void **state)
{
    struct fixture f;

    (void)state;
    set_up(&f, 64);
    put64(&f, IDT + 0x42 * 16, 14ull << 40);
    assert_true(EXECUTE(&f, "\xcd\x42"));
    assert_int_equal(halted_in(&f), VECTOR_NP);
    assert_int_equal(get64(&f, fixture_state(&f, 0)->gpr[GPR_RSP]), 0x42 * 8 + 2);
    fixture_release(&f);
}

static void test_iretq_to_user(void **state)
{
    struct fixture f;
    struct cpu_state *s;
    const uint64_t frame[] = {FIXTURE_CODE + 0x100, SEL_USER64, 0x3202, USER_STACK, SEL_USER_DATA};

    (void)state;
    set_up(&f, 64);
    s = fixture_state(&f, 0);
    s->gpr[GPR_RSP] = FIXTURE_STACK - sizeof(frame);
    fixture_load(&f, FIXTURE_STACK - sizeof(frame), frame, sizeof(frame));
    fixture_load(&f, FIXTURE_CODE + 0x100, "\xcd\x80", 2);
    assert_true(EXECUTE(&f, "\x48\xcf"));
    assert_int_equal(halted_in(&f), 0x80);
    assert_int_equal(get64(&f, STACK0 - 40), FIXTURE_CODE + 0x102);
    assert_int_equal(get64(&f, STACK0 - 24), 0x3202);
    assert_int_equal(get64(&f, STACK0 - 16), USER_STACK);
    /* DPL 0 data segments are taken away. */
    assert_true(s->seg[SEG_DS].attr & CPU_SEG_UNUSABLE);
    fixture_release(&f);
}

static void test_syscall_round_trip(void **state)
{
    struct fixture f;
    struct cpu_state *s;

    (void)state;
    set_up(&f, 64);
    enter_user(&f, 64);
    s = fixture_state(&f, 0);
    s->msr.star = (uint64_t)SEL_CODE << 32 | (uint64_t)SEL_USER32 << 48;
    s->msr.lstar = FIXTURE_CODE + 0x200;
    s->msr.sfmask = RFLAGS_IF | RFLAGS_TF;
    s->rflags |= RFLAGS_IF;
    fixture_load(&f, FIXTURE_CODE + 0x200, "\x9c\x58\x48\x0f\x07", 5); /* PUSHF POP RAX SYSRETQ */
    assert_true(EXECUTE(&f, "\x0f\x05\xcd\x80"));
    assert_int_equal(halted_in(&f), 0x80);
    assert_int_equal(s->gpr[GPR_RCX], FIXTURE_CODE + 2);
    assert_int_equal(s->gpr[GPR_RAX] & RFLAGS_IF, 0);
    assert_true(s->gpr[GPR_R11] & RFLAGS_IF);
    assert_true(get64(&f, STACK0 - 24) & RFLAGS_IF);
    assert_int_equal(get64(&f, STACK0 - 32), SEL_USER64);
    assert_int_equal(get64(&f, STACK0 - 8), SEL_USER_DATA);
    fixture_release(&f);
}

static void test_descriptor_faults(void **state)
{
    struct fixture f;

    (void)state;
    set_up(&f, 64);
    assert_true(EXECUTE(&f, "\x66\xb8\x88\x00\x8e\xd8")); /* DS beyond the GDT */
    assert_int_equal(halted_in(&f), VECTOR_GP);
    assert_int_equal(get64(&f, fixture_state(&f, 0)->gpr[GPR_RSP]), 0x88);
    assert_true(EXECUTE(&f, "\x66\xb8\x23\x00\x8e\xd0")); /* SS with another RPL */
    assert_int_equal(halted_in(&f), VECTOR_GP);
    put64(&f, GDT + 0x50, flat(0x2, 0, 0xc) & ~(1ull << 47)); /* not present */
    assert_true(EXECUTE(&f, "\x66\xb8\x50\x00\x8e\xd8"));
    assert_int_equal(halted_in(&f), VECTOR_NP);
    put64(&f, GDT + 0x50, flat(0x2, 0, 0xc));
    assert_true(EXECUTE(&f, "\x66\xb8\x50\x00\x8e\xd8\xf4"));
    assert_int_equal(fixture_state(&f, 0)->seg[SEG_DS].selector, 0x50);
    assert_true(get64(&f, GDT + 0x50) >> 40 & 1); /* accessed */
    fixture_release(&f);
}

static void test_call_gate_parameters(void **state)
{
    struct fixture f;
    struct cpu_state *s;

    (void)state;
    set_up(&f, 32);
    enter_user(&f, 32);
    s = fixture_state(&f, 0);
    /* 32-bit call gate, DPL 3, two parameters, to the kernel's code */
    put64(&f, GDT + SEL_GATE, ((FIXTURE_CODE + 0x100) & 0xffff) | SEL_CODE << 16 | 2ull << 32 |
                                  0xecull << 40 | (uint64_t)((FIXTURE_CODE + 0x100) >> 16) << 48);
    fixture_load(&f, FIXTURE_CODE + 0x100, "\xca\x08\x00", 3); /* RETF 8 */
    assert_true(EXECUTE(&f, "\x6a\x11\x6a\x22\x9a\x00\x00\x00\x00\x4b\x00\xcd\x80"));
    assert_int_equal(halted_in(&f), 0x80);
    /* What the gate pushed: SS, ESP, two parameters, CS, EIP. INT 80h then overwrote the first five. */
    assert_int_equal(get32(&f, STACK0 - 24), FIXTURE_CODE + 11);
    assert_int_equal(get32(&f, STACK0 - 8), USER_STACK); /* ESP after RETF 8 */
    assert_int_equal(s->seg[SEG_SS].selector, SEL_DATA);
    fixture_release(&f);
}

static void test_task_switch(void **state)
{
    struct fixture f;
    struct cpu_state *s;
    uint32_t tss[26] = {0};

    (void)state;
    set_up(&f, 32);
    tss[8] = FIXTURE_CODE + 0x100; /* EIP */
    tss[9] = RFLAGS_ONE;
    tss[10] = 0x1234;              /* EAX */
    tss[14] = USER_STACK;          /* ESP */
    tss[18] = tss[20] = tss[21] = tss[22] = tss[23] = SEL_DATA;
    tss[19] = SEL_CODE;
    fixture_load(&f, TSS2, tss, sizeof(tss));
    put64(&f, GDT + SEL_TSS2, system_descriptor(TSS2, 0x67, 0x9));
    fixture_load(&f, FIXTURE_CODE + 0x100, "\xcf", 1); /* IRET: NT is set, back to the caller */
    s = fixture_state(&f, 0);
    s->gpr[GPR_RBX] = 0x55;
    assert_true(EXECUTE(&f, "\x9a\x00\x00\x00\x00\x40\x00\xf4"));
    assert_int_equal(s->rip, FIXTURE_CODE + 8);
    assert_int_equal(s->gpr[GPR_RBX], 0x55);
    assert_int_equal(s->tr.selector, SEL_TSS);
    assert_int_equal(get32(&f, TSS2) & 0xffff, SEL_TSS);           /* link */
    assert_int_equal(get32(&f, TSS2 + 40), 0x1234);                /* saved again on the way out */
    assert_int_equal(get64(&f, GDT + SEL_TSS2) >> 40 & 0xf, 0x9);  /* no longer busy */
    assert_int_equal(get64(&f, GDT + SEL_TSS) >> 40 & 0xf, 0xb);
    assert_true(s->cr0 & CR0_TS);
    assert_int_equal(s->rflags & RFLAGS_NT, 0);
    fixture_release(&f);
}

static void test_virtual8086_round_trip(void **state)
{
    struct fixture f;
    struct cpu_state *s;
    /* EIP CS EFLAGS(VM, IOPL 3) ESP SS ES DS FS GS */
    const uint32_t frame[] = {0x40, FIXTURE_CODE >> 4, 0x23002, 0x800, 0x7000, 0x1111, 0x2222,
                              0x3333, 0x4444};

    (void)state;
    set_up(&f, 32);
    s = fixture_state(&f, 0);
    s->gpr[GPR_RSP] = FIXTURE_STACK - sizeof(frame);
    fixture_load(&f, FIXTURE_STACK - sizeof(frame), frame, sizeof(frame));
    fixture_load(&f, FIXTURE_CODE + 0x40, "\xcd\x21", 2);
    assert_true(EXECUTE(&f, "\xcf"));
    assert_int_equal(halted_in(&f), 0x21);
    assert_int_equal(get32(&f, STACK0 - 4), 0x4444);
    assert_int_equal(get32(&f, STACK0 - 16), 0x1111);
    assert_int_equal(get32(&f, STACK0 - 20), 0x7000);
    assert_int_equal(get32(&f, STACK0 - 24), 0x800);
    assert_true(get32(&f, STACK0 - 28) & RFLAGS_VM);
    assert_int_equal(get32(&f, STACK0 - 32), FIXTURE_CODE >> 4);
    assert_int_equal(get32(&f, STACK0 - 36), 0x42);
    assert_int_equal(s->rflags & RFLAGS_VM, 0);
    assert_true(s->seg[SEG_DS].attr & CPU_SEG_UNUSABLE);
    fixture_release(&f);
}

static void test_real_interrupt(void **state)
{
    struct fixture f;
    struct cpu_state *s;
    const uint16_t vector[] = {0x100, FIXTURE_CODE >> 4};

    (void)state;
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 16);
    s = fixture_state(&f, 0);
    fixture_load(&f, 0x21 * 4, vector, sizeof(vector));
    fixture_load(&f, FIXTURE_CODE + 0x100, "\xcf", 1);
    s->gpr[GPR_RSP] = 0x8000;
    s->rflags |= RFLAGS_IF;
    assert_true(EXECUTE(&f, "\xcd\x21\xf4"));
    assert_int_equal(s->rip, 3);
    assert_int_equal(s->gpr[GPR_RSP], 0x8000);
    assert_int_equal(get32(&f, 0x7ffa) & 0xffff, 2);
    assert_true(s->rflags & RFLAGS_IF);
    fixture_release(&f);
}

static void test_msrs(void **state)
{
    struct fixture f;
    struct soft_vcpu *cpu;
    uint64_t value = 0;

    (void)state;
    set_up(&f, 64);
    cpu = fixture_cpu(&f, 0);
    assert_int_equal(soft_msr_write(cpu, MSR_FS_BASE, 0x7fff00001000), 0);
    assert_int_equal(soft_msr_read(cpu, MSR_FS_BASE, &value), 0);
    assert_int_equal(value, 0x7fff00001000);
    assert_int_equal(soft_msr_write(cpu, MSR_LSTAR, 0x800000000000), -1);
    assert_int_equal(soft_msr_write(cpu, MSR_IA32_PAT, 0x2), -1);
    assert_int_equal(soft_msr_write(cpu, MSR_EFER, 1ull << 63), -1);
    assert_int_equal(soft_msr_write(cpu, MSR_EFER, EFER_LMA | EFER_SCE), -1); /* LME while paging */
    assert_int_equal(soft_msr_read(cpu, 0x12345, &value), -1);
    assert_int_equal(soft_msr_read(cpu, MSR_IA32_MTRRCAP, &value), 0);
    assert_int_equal(soft_msr_write(cpu, MSR_IA32_MTRRCAP, value), -1);
    fixture_release(&f);
}

static void test_paravirtual_clock(void **state)
{
    struct fixture f;
    struct soft_vcpu *cpu;

    (void)state;
    set_up(&f, 64);
    cpu = fixture_cpu(&f, 0);
    assert_int_equal(soft_msr_write(cpu, MSR_KVM_SYSTEM_TIME_NEW, 0x40001), 0);
    assert_int_equal(get32(&f, 0x40000) & 1, 0);
    assert_int_not_equal(get32(&f, 0x40000), 0);
    assert_int_not_equal(get32(&f, 0x40018), 0);      /* multiplier */
    assert_int_equal(get64(&f, 0x4001c) >> 8 & 1, 1); /* TSC is stable */
    assert_int_equal(soft_msr_write(cpu, MSR_KVM_WALL_CLOCK_NEW, 0x40100), 0);
    assert_true(get32(&f, 0x40104) > 1700000000);
    fixture_release(&f);
}

static void test_combine(void **state)
{
    const struct soft_event gp = {.vector = VECTOR_GP, .type = SOFT_EVENT_EXCEPTION};
    const struct soft_event pf = {.vector = VECTOR_PF, .type = SOFT_EVENT_EXCEPTION};
    const struct soft_event ud = {.vector = VECTOR_UD, .type = SOFT_EVENT_EXCEPTION};
    const struct soft_event df = {.vector = VECTOR_DF, .type = SOFT_EVENT_EXCEPTION};
    const struct soft_event external = {.vector = VECTOR_GP, .type = SOFT_EVENT_EXTERNAL};
    struct soft_event out;

    (void)state;
    assert_true(soft_event_combine(&gp, &gp, &out));
    assert_int_equal(out.vector, VECTOR_DF);
    assert_true(out.has_error);
    assert_true(soft_event_combine(&gp, &pf, &out));
    assert_int_equal(out.vector, VECTOR_PF);
    assert_true(soft_event_combine(&pf, &pf, &out));
    assert_int_equal(out.vector, VECTOR_DF);
    assert_true(soft_event_combine(&pf, &gp, &out));
    assert_int_equal(out.vector, VECTOR_DF);
    assert_true(soft_event_combine(&ud, &gp, &out));
    assert_int_equal(out.vector, VECTOR_GP);
    assert_true(soft_event_combine(&external, &gp, &out));
    assert_int_equal(out.vector, VECTOR_GP);
    assert_false(soft_event_combine(&df, &pf, &out));
    assert_true(soft_event_combine(&df, &ud, &out));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_long_interrupt),
        cmocka_unit_test(test_long_ist_and_trap_gate),
        cmocka_unit_test(test_long_from_user),
        cmocka_unit_test(test_gate_privilege),
        cmocka_unit_test(test_nested_faults),
        cmocka_unit_test(test_not_present_gate),
        cmocka_unit_test(test_iretq_to_user),
        cmocka_unit_test(test_syscall_round_trip),
        cmocka_unit_test(test_descriptor_faults),
        cmocka_unit_test(test_call_gate_parameters),
        cmocka_unit_test(test_task_switch),
        cmocka_unit_test(test_virtual8086_round_trip),
        cmocka_unit_test(test_real_interrupt),
        cmocka_unit_test(test_msrs),
        cmocka_unit_test(test_paravirtual_clock),
        cmocka_unit_test(test_combine),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
