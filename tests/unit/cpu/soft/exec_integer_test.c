/*
 * Random integer, string and near branch instructions: the engine against the host CPU itself.
 *
 * Both sides execute the same bytes at the same address on the same registers, flags and memory;
 * afterwards all of them are compared, also after a fault. WINDOW is the only data either can reach, so that
 * operands at its ends fault, and those across its pages test the slow paths. LODGE_SEED and
 * LODGE_ROUNDS repeat or extend a run.
 */
#include "fixture.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmocka.h>

#include "cpu/soft/insn.h"

#define WINDOW      0x400000u
#define WINDOW_SIZE 0x8000u
#define CODE        0x810000u
#define STATE       0xa10000u
#define TABLE       (FIXTURE_TABLES + 3 * PAGE_SIZE) /* page tables of the two */
#define JUMP        0x40u /* displacement of every branch */
#define FLAGS_SEEN  (RFLAGS_ARITH | RFLAGS_DF)

struct native {
    uint64_t gpr[GPR_COUNT];
    uint64_t flags, host_rsp, taken;
    uint64_t stack[64];
};

struct trial {
    uint8_t bytes[16];
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    uint64_t gpr[GPR_COUNT], flags;
    bool branch;
};

static struct native *const native = (struct native *)STATE;
static uint8_t before[WINDOW_SIZE], after[WINDOW_SIZE];
static uint64_t insn_address;
static sigjmp_buf fault_jump;
static uint64_t seed;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed * 0x2545f4914f6cdd1dull;
}

static uint64_t rnd_value(void)
{
    switch (rnd() % 8) {
    case 0:
        return rnd() % 3;
    case 1:
        return ~0ull - rnd() % 3;
    case 2:
        return 1ull << (rnd() % 64);
    case 3:
        return (uint64_t)(int64_t)(int8_t)rnd();
    case 4:
        return (uint32_t)rnd();
    default:
        return rnd();
    }
}

/* ---- the host's side ---- */

static uint8_t *emit(uint8_t *p, const void *bytes, size_t len)
{
    memcpy(p, bytes, len);
    return p + len;
}

/* An instruction whose operand is [disp32], an address inside struct native. */
static uint8_t *emit_absolute(uint8_t *p, const void *opcode, size_t len, size_t offset)
{
    uint32_t address = STATE + (uint32_t)offset;

    p = emit(p, opcode, len);
    return emit(p, &address, 4);
}

static uint8_t *emit_register(uint8_t *p, unsigned reg, size_t offset, bool store)
{
    uint8_t code[] = {reg >= 8 ? 0x4c : 0x48, store ? 0x89 : 0x8b, (uint8_t)(4 | (reg & 7) << 3),
                      0x25};

    return emit_absolute(p, code, sizeof(code), offset);
}

static uint8_t *emit_native_stack(uint8_t *p)
{
    uint32_t top = STATE + (uint32_t)offsetof(struct native, stack) + 256;

    p = emit(p, "\x48\xc7\xc4", 3); /* mov $top,%rsp */
    return emit(p, &top, 4);
}

static uint8_t *emit_end(uint8_t *p, uint32_t taken)
{
    p = emit_absolute(p, "\x48\xc7\x04\x25", 4, offsetof(struct native, taken)); /* movq */
    p = emit(p, &taken, 4);
    for (unsigned i = 0; i < GPR_COUNT; i++)
        p = emit_register(p, i, i * 8, true);
    p = emit_native_stack(p);
    p = emit_absolute(p, "\x9c\x8f\x04\x25", 4, offsetof(struct native, flags)); /* pushfq, pop */
    p = emit_register(p, GPR_RSP, offsetof(struct native, host_rsp), false);
    return emit(p, "\xfc\xc3", 2); /* cld, ret */
}

static void native_build(const struct trial *t)
{
    uint8_t *p = (uint8_t *)CODE, *jump;
    int32_t distance;

    p = emit_register(p, GPR_RSP, offsetof(struct native, host_rsp), true);
    p = emit_native_stack(p);
    p = emit_absolute(p, "\xff\x34\x25", 3, offsetof(struct native, flags)); /* push, popfq */
    p = emit(p, "\x9d", 1);
    for (unsigned i = 0; i < GPR_COUNT; i++)
        p = emit_register(p, i, i * 8, false);
    insn_address = (uint64_t)p;
    p = emit(p, t->bytes, t->z.length);
    jump = emit(p, "\xe9", 1);
    p = emit_end(p + JUMP, 1);
    distance = (int32_t)(p - (jump + 4));
    emit(jump, &distance, 4);
    emit_end(p, 0);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    static const int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};
    const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;

    (void)number;
    (void)info;
    for (unsigned i = 0; i < GPR_COUNT; i++)
        native->gpr[i] = (uint64_t)regs[order[i]];
    native->flags = (uint64_t)regs[REG_EFL];
    siglongjmp(fault_jump, 1);
}

/* True when it ended; false when it faulted. */
static __attribute__((noinline)) bool native_run(void)
{
    if (sigsetjmp(fault_jump, 1))
        return false;
    __asm__ volatile("sub $256,%%rsp\n\tpush %%rbp\n\tpush %%rbx\n\tcall *%0\n\t"
                     "pop %%rbx\n\tpop %%rbp\n\tadd $256,%%rsp"
                     :
                     : "a"((uint64_t)CODE)
                     : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
                       "r15", "memory", "cc");
    return true;
}

/* ---- choosing an instruction ---- */

static const uint8_t map_two[] = {
    0x18, 0x1f, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c,
    0x4d, 0x4e, 0x4f, 0x84, 0x85, 0x8c, 0x8e, 0x90, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97,
    0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 0xa3, 0xa4, 0xa5, 0xab, 0xac, 0xad, 0xaf,
    0xb0, 0xb1, 0xb3, 0xb6, 0xb7, 0xb8, 0xba, 0xbb, 0xbc, 0xbd, 0xbe, 0xbf, 0xc0, 0xc1, 0xc7,
    0xc8, 0xcd};
static const uint8_t map_vex[] = {0xf0, 0xf2, 0xf3, 0xf5, 0xf6, 0xf7};

static void choose_bytes(uint8_t *b)
{
    unsigned n = 0, kind = rnd() % 16;

    if (kind == 15) {
        b[n++] = 0xc4;
        b[n++] = (uint8_t)((rnd() & 0xe0) | (1 + rnd() % 3));
        b[n++] = (uint8_t)(rnd() & 0xfb);
        b[n++] = map_vex[rnd() % sizeof(map_vex)];
    } else {
        if (rnd() % 4 == 0)
            b[n++] = 0x66;
        if (rnd() % 16 == 0)
            b[n++] = 0x67;
        if (rnd() % 5 == 0)
            b[n++] = rnd() % 3 ? (uint8_t)(0xf2 + rnd() % 2) : 0xf0;
        if (rnd() % 2)
            b[n++] = (uint8_t)(0x40 | (rnd() & 15));
        if (kind >= 9)
            b[n++] = 0x0f;
        if (kind == 14)
            b[n++] = 0x38;
        b[n++] = kind < 9 ? (uint8_t)rnd() : kind == 14 ? (uint8_t)(0xf0 + rnd() % 7)
                                                        : map_two[rnd() % sizeof(map_two)];
    }
    while (n < 15)
        b[n++] = (uint8_t)rnd();
}

static bool family_lists(const struct insn_family *family, ZydisMnemonic mnemonic)
{
    for (const struct insn_binding *b = family->bindings; b->bind; b++) {
        if (b->mnemonic == mnemonic)
            return true;
    }
    return false;
}

/* Ours, and with an outcome that does not depend on the address space or on chance. */
static bool wanted(const struct trial *t)
{
    const ZydisDecodedInstruction *z = &t->z;
    bool rep = z->attributes & (ZYDIS_ATTRIB_HAS_REPNE | ZYDIS_ATTRIB_HAS_REP);

    if (!family_lists(&insn_family_integer, z->mnemonic) &&
        !family_lists(&insn_family_branch, z->mnemonic) &&
        !family_lists(&insn_family_string, z->mnemonic))
        return false;
    if (z->attributes & (ZYDIS_ATTRIB_HAS_SEGMENT_FS | ZYDIS_ATTRIB_HAS_SEGMENT_GS))
        return false;
    for (unsigned i = 0; i < z->operand_count; i++) {
        ZydisRegisterClass class = ZydisRegisterGetClass(t->op[i].reg.value);

        if (t->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            (class == ZYDIS_REGCLASS_SEGMENT || class == ZYDIS_REGCLASS_CONTROL ||
             class == ZYDIS_REGCLASS_DEBUG || class == ZYDIS_REGCLASS_XMM))
            return false;
    }
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_RET:
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_ENTER: /* its frame walk reaches anywhere */
    case ZYDIS_MNEMONIC_INSB:
    case ZYDIS_MNEMONIC_INSW:
    case ZYDIS_MNEMONIC_INSD:
    case ZYDIS_MNEMONIC_OUTSB:
    case ZYDIS_MNEMONIC_OUTSW:
    case ZYDIS_MNEMONIC_OUTSD:
    case ZYDIS_MNEMONIC_IN:
    case ZYDIS_MNEMONIC_OUT:
        return false;
    case ZYDIS_MNEMONIC_MOVSXD: /* the vendors read 16 or 32 bits */
        return z->operand_width != 16;
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE: /* AMD lets REP prefixes change the condition */
        return !rep && !memchr(t->bytes, 0xf2, 4) && !memchr(t->bytes, 0xf3, 4);
    default:
        return true;
    }
}

/* Branches go JUMP bytes on. False: one that cannot be aimed. */
static bool aim_branch(struct trial *t)
{
    ZydisInstructionCategory category = t->z.meta.category;

    t->branch = category == ZYDIS_CATEGORY_COND_BR || category == ZYDIS_CATEGORY_UNCOND_BR ||
                category == ZYDIS_CATEGORY_CALL;
    if (!t->branch)
        return true;
    if (t->op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE ||
        (t->z.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE)) /* AMD and Intel differ */
        return false;
    memset(t->bytes + t->z.raw.imm[0].offset, 0, t->z.raw.imm[0].size / 8);
    t->bytes[t->z.raw.imm[0].offset] = JUMP;
    return true;
}

/* ---- choosing operands ---- */

static uint64_t choose_address(void)
{
    uint64_t address = WINDOW + 0x1000 + rnd() % (WINDOW_SIZE - 0x2000);

    if (rnd() % 8 == 0)
        address = WINDOW + WINDOW_SIZE - rnd() % 20; /* the far end */
    else if (rnd() % 8 == 0)
        address = WINDOW + 0x4ff0 + rnd() % 16; /* across pages */
    return rnd() % 2 ? address & ~15ull : address;
}

static void choose_string_registers(struct trial *t)
{
    t->gpr[GPR_RSI] = choose_address();
    t->gpr[GPR_RDI] = rnd() % 4 ? choose_address() : t->gpr[GPR_RSI] + rnd() % 9;
    t->gpr[GPR_RBX] = WINDOW + 0x1000;
    t->gpr[GPR_RCX] = rnd() % 8 ? rnd() % 64 : rnd() % 0x1400;
}

/* Makes the explicit operand's address one in the window. False: it cannot be. */
static bool choose_operand(struct trial *t, const ZydisDecodedOperand *op)
{
    int base = insn_gpr(op->mem.base), index = insn_gpr(op->mem.index);
    uint64_t address = choose_address() - (uint64_t)op->mem.disp.value;

    if (t->z.mnemonic == ZYDIS_MNEMONIC_LEA || t->z.mnemonic == ZYDIS_MNEMONIC_NOP)
        return op->mem.base != ZYDIS_REGISTER_RIP || t->z.mnemonic == ZYDIS_MNEMONIC_NOP;
    if (base < 0 || base == index || (t->z.address_width == 32 && base == GPR_R13))
        return false;
    if (t->z.mnemonic >= ZYDIS_MNEMONIC_BT && t->z.mnemonic <= ZYDIS_MNEMONIC_BTS &&
        t->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
        int offset = insn_gpr(t->op[1].reg.value);

        if (offset == base || offset == index)
            return false;
        t->gpr[offset] = (uint64_t)(int64_t)(int16_t)rnd();
    }
    if (index >= 0) {
        t->gpr[index] = rnd() % 64;
        address -= t->gpr[index] * op->mem.scale;
    }
    t->gpr[base] = address;
    return true;
}

static bool choose_registers(struct trial *t)
{
    for (unsigned i = 0; i < GPR_COUNT; i++)
        t->gpr[i] = rnd_value();
    t->gpr[GPR_RSP] = WINDOW + 0x4000 + (rnd() & 0xff8);
    t->gpr[GPR_RBP] = WINDOW + 0x4000 + (rnd() & 0xfff);
    if (rnd() % 2)
        t->gpr[GPR_RDX] = rnd() % 2 ? 0 : ~0ull; /* quotients that fit */
    t->flags = RFLAGS_ONE | RFLAGS_IF | (rnd() & RFLAGS_ARITH) | (rnd() % 4 ? 0 : RFLAGS_DF);
    choose_string_registers(t);
    for (unsigned i = 0; i < t->z.operand_count_visible; i++) {
        if (t->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
            t->op[i].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
            return choose_operand(t, &t->op[i]);
    }
    return true;
}

static void choose_memory(void)
{
    bool same = rnd() % 4 == 0; /* long comparisons */

    for (unsigned i = 0; i < WINDOW_SIZE; i += 8) {
        uint64_t value = same ? 0x4141414141414141ull : rnd();

        memcpy(before + i, &value, 8);
    }
    before[rnd() % WINDOW_SIZE] = 0;
}

static bool choose(struct trial *t, const ZydisDecoder *decoder)
{
    choose_bytes(t->bytes);
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder, t->bytes, 15, &t->z, t->op)))
        return false;
    return wanted(t) && aim_branch(t) && choose_registers(t);
}

/* ---- the comparison ---- */

static void describe(const struct trial *t, const char *what, uint64_t host, uint64_t engine)
{
    print_error("%s: host %#lx, engine %#lx, of", what, host, engine);
    for (unsigned i = 0; i < t->z.length; i++)
        print_error(" %02x", t->bytes[i]);
    print_error(" (%s)\n", ZydisMnemonicGetString(t->z.mnemonic));
}

static unsigned expect_equal(const struct trial *t, const char *what, uint64_t host, uint64_t engine)
{
    if (host == engine)
        return 0;
    describe(t, what, host, engine);
    return 1;
}

static unsigned compare(const struct trial *t, const struct cpu_state *s, const uint8_t *memory,
                        bool ended)
{
    static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    bool repeated = t->z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE |
                                       ZYDIS_ATTRIB_HAS_REPNE);
    uint64_t rip = insn_address + t->z.length + 1 + (native->taken ? JUMP : 0);

    for (unsigned i = 0; i < GPR_COUNT; i++) {
        if (expect_equal(t, names[i], native->gpr[i], s->gpr[i]))
            return 1;
    }
    if (memcmp(after, memory, WINDOW_SIZE) != 0) {
        describe(t, "memory", 0, 0);
        return 1;
    }
    /* A fault inside a repeated comparison: hosts differ in whether flags are put back. */
    if ((ended || !repeated) &&
        expect_equal(t, "rflags", native->flags & FLAGS_SEEN, s->rflags & FLAGS_SEEN))
        return 1;
    return ended ? expect_equal(t, "rip", rip, s->rip) : 0;
}

static unsigned run_trial(struct fixture *f, const struct trial *t)
{
    struct cpu_state *s = fixture_state(f, 0);
    uint8_t *guest = f->ram + WINDOW, hlt = 0xf4;
    bool ended;

    native_build(t);
    choose_memory();
    memcpy(native->gpr, t->gpr, sizeof(t->gpr));
    native->flags = t->flags;
    memcpy((void *)WINDOW, before, WINDOW_SIZE);
    ended = native_run();
    memcpy(after, (void *)WINDOW, WINDOW_SIZE);

    memcpy(guest, before, WINDOW_SIZE);
    fixture_load(f, insn_address, t->bytes, t->z.length);
    fixture_load(f, insn_address + t->z.length, &hlt, 1);
    fixture_load(f, insn_address + t->z.length + JUMP, &hlt, 1);
    memcpy(s->gpr, t->gpr, sizeof(t->gpr));
    s->rflags = t->flags;
    s->rip = insn_address;
    if (fixture_run(f, 0) != ended) {
        describe(t, "faults", !ended, ended);
        return 1;
    }
    return compare(t, s, guest, ended);
}

static void map_window(struct fixture *f)
{
    uint64_t *tables = (uint64_t *)(f->ram + FIXTURE_TABLES);
    uint64_t *directory = tables + 1024, *table = (uint64_t *)(f->ram + TABLE);

    memset(directory, 0, PAGE_SIZE);
    memset(table, 0, 2 * PAGE_SIZE);
    directory[WINDOW >> 21] = TABLE | PTE_P | PTE_W | PTE_U;
    directory[CODE >> 21] = (TABLE + PAGE_SIZE) | PTE_P | PTE_W | PTE_U;
    for (unsigned i = 0; i < WINDOW_SIZE / PAGE_SIZE; i++)
        table[i] = (WINDOW + i * PAGE_SIZE) | PTE_P | PTE_W | PTE_U;
    table[512 + ((CODE >> PAGE_SHIFT) & 511)] = CODE | PTE_P | PTE_U;
}

static void map_native(void)
{
    struct sigaction action = {.sa_sigaction = on_signal,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    static uint8_t signal_stack[65536];
    stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof(signal_stack)};
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;

    assert_ptr_equal(mmap((void *)WINDOW, WINDOW_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0),
                     (void *)WINDOW);
    assert_ptr_equal(mmap((void *)CODE, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, flags, -1,
                          0),
                     (void *)CODE);
    assert_ptr_equal(mmap((void *)STATE, PAGE_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0),
                     (void *)STATE);
    assert_int_equal(sigaltstack(&stack, NULL), 0);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGTRAP, &action, NULL);
}

static uint64_t setting(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 0) : otherwise;
}

static void test_random_instructions(void **state)
{
    uint64_t rounds = setting("LODGE_ROUNDS", 60000), ran = 0;
    unsigned failures = 0;
    struct fixture f;
    ZydisDecoder decoder;

    (void)state;
    seed = setting("LODGE_SEED", 1) * 0x9e3779b97f4a7c15ull;
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    fixture_init(&f, 1);
    fixture_mode(&f, 0, 64);
    map_window(&f);
    map_native();
    for (uint64_t i = 0; i < rounds && failures < 20; i++) {
        struct trial t;

        if (!choose(&t, &decoder))
            continue;
        failures += run_trial(&f, &t);
        ran++;
    }
    fixture_release(&f);
    assert_int_equal(failures, 0);
    assert_true(ran > rounds / 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_instructions),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
