/* Lock-step execution (lockstep.h). The report is in lockstep_report.c. */
#include "cpu/soft/lockstep.h"

#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "cpu/soft/fpu.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/lockstep_report.h"
#include "cpu/soft/mmu.h"
#include "cpu/soft/run.h"

#define LOCKSTEP_STORES  4096u
#define LOCKSTEP_BYTES   (256u << 10)
#define LOCKSTEP_ENTRIES 256u
#define LOCKSTEP_TRIES   10u
#define LOCKSTEP_EVERY   64u /* blocks without vector instructions: one in so many is compared with them */
#define LOCKSTEP_STATE   offsetof(struct cpu_state, xsave)

enum lockstep_phase { LOCKSTEP_OFF, LOCKSTEP_INTERPRETER, LOCKSTEP_TRANSLATION };

/* Bytes that a store replaced. */
struct lockstep_store {
    uint8_t *host;
    uint32_t len, at;
};

/* A write translation that the interpreter made. */
struct lockstep_entry {
    struct soft_tlb_entry *entry;
    uint64_t page, addend;
};

struct soft_lockstep {
    enum lockstep_phase phase;
    bool failed;
    bool abandoned;           /* the block cannot be compared */
    bool extended;            /* the extended state takes part */
    bool stops;               /* the interpreter stops at stop_at, where the translation was left */
    gva_t stop_at;
    uint32_t passes;          /* that the interpreter makes */
    uint32_t stores, bytes, entries;
    uint64_t compared, repeated, devices, code_writes, too_long, alone;
    void *fault_jump[5];      /* of the run loop */
    struct lockstep_outcome start, interpreter, translation;
    struct lockstep_pages pages; /* stored to; as the interpreter left them */
    struct lockstep_store store[LOCKSTEP_STORES];
    struct lockstep_entry entry[LOCKSTEP_ENTRIES];
    uint8_t old[LOCKSTEP_BYTES];
};

int soft_lockstep_create(struct soft_lockstep **out)
{
    *out = aligned_alloc(64, align_up(sizeof(**out), 64));
    if (!*out)
        return -ENOMEM;
    soft_zero(*out, sizeof(**out));
    return 0;
}

void soft_lockstep_destroy(struct soft_lockstep *ls)
{
    if (!ls)
        return;
    log_info("lock-step: %lu blocks compared, %lu of them more than once; not compared: %lu single instructions, "
             "%lu that reached a device, %lu that stored into code, %lu that stored too much",
             ls->compared, ls->repeated, ls->alone, ls->devices, ls->code_writes, ls->too_long);
    free(ls);
}

bool soft_lockstep_failed(const struct soft_vcpu *cpu)
{
    return cpu->lockstep && cpu->lockstep->failed;
}

/* ---- what is compared ---- */

static bool special_register(ZydisRegister reg)
{
    ZydisRegisterClass class = ZydisRegisterGetClass(reg);

    return class == ZYDIS_REGCLASS_SEGMENT || class == ZYDIS_REGCLASS_CONTROL ||
           class == ZYDIS_REGCLASS_DEBUG;
}

/* Privileged or special, but all they change is put back: what is translated of them is to be compared. */
static bool only_state(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operand)
{
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_CLAC:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_STAC:
    case ZYDIS_MNEMONIC_SWAPGS:
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
        return true;
    case ZYDIS_MNEMONIC_MOV: /* from, not to, a control or segment register; CR8 is the APIC's */
        return operand[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
               special_register(operand[1].reg.value) && operand[1].reg.value != ZYDIS_REGISTER_CR8 &&
               ZydisRegisterGetClass(operand[1].reg.value) != ZYDIS_REGCLASS_DEBUG;
    default:
        return false;
    }
}

static bool reaches_outside(const ZydisDecodedInstruction *z)
{
    if (z->attributes & ZYDIS_ATTRIB_IS_PRIVILEGED ||
        z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return true;
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_IO:
    case ZYDIS_CATEGORY_IOSTRINGOP:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_SYSTEM:
    case ZYDIS_CATEGORY_SEGOP:
    case ZYDIS_CATEGORY_SMAP:
    case ZYDIS_CATEGORY_RDRAND:
    case ZYDIS_CATEGORY_RDSEED:
        return true;
    default:
        break;
    }
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_PAUSE:
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_CLI:
        return true;
    default:
        return false;
    }
}

static bool integer_category(ZydisInstructionCategory category)
{
    switch (category) {
    case ZYDIS_CATEGORY_ADOX_ADCX:
    case ZYDIS_CATEGORY_BINARY:
    case ZYDIS_CATEGORY_BITBYTE:
    case ZYDIS_CATEGORY_BMI1:
    case ZYDIS_CATEGORY_BMI2:
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_CONVERT:
    case ZYDIS_CATEGORY_DATAXFER:
    case ZYDIS_CATEGORY_FLAGOP:
    case ZYDIS_CATEGORY_LOGICAL:
    case ZYDIS_CATEGORY_LZCNT:
    case ZYDIS_CATEGORY_MISC:
    case ZYDIS_CATEGORY_NOP:
    case ZYDIS_CATEGORY_POP:
    case ZYDIS_CATEGORY_PREFETCH:
    case ZYDIS_CATEGORY_PUSH:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_ROTATE:
    case ZYDIS_CATEGORY_SEMAPHORE:
    case ZYDIS_CATEGORY_SETCC:
    case ZYDIS_CATEGORY_SHIFT:
    case ZYDIS_CATEGORY_STRINGOP:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_WIDENOP:
        return true;
    default:
        return false;
    }
}

static bool integer_register(ZydisRegister reg)
{
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR8:
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
    case ZYDIS_REGCLASS_FLAGS:
    case ZYDIS_REGCLASS_IP:
        return true;
    default:
        return false;
    }
}

void soft_lockstep_mark(struct insn *in, const ZydisDecodedInstruction *z,
                        const ZydisDecodedOperand *operand)
{
    bool alone = !only_state(z, operand);

    if (alone && reaches_outside(z))
        in->flags |= INSN_ALONE;
    if (!integer_category(z->meta.category))
        in->flags |= INSN_EXTENDED;
    for (unsigned i = 0; i < z->operand_count; i++) {
        if (operand[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        if (alone && special_register(operand[i].reg.value))
            in->flags |= INSN_ALONE;
        else if (!special_register(operand[i].reg.value) && !integer_register(operand[i].reg.value))
            in->flags |= INSN_EXTENDED;
    }
}

static bool uses_extended(const struct soft_native *native)
{
    for (unsigned part = 0; part < native->part_count; part++) {
        const struct soft_block *block = native->part[part].block;

        for (unsigned i = 0; i < block->count; i++) {
            if (block->insn[i].flags & INSN_EXTENDED)
                return true;
        }
    }
    return false;
}

/* ---- the journal ---- */

/* Out of the block, which is then put back and interpreted. */
static _Noreturn void abandon(struct soft_vcpu *cpu, uint64_t *counter)
{
    ++*counter;
    cpu->lockstep->abandoned = true;
    __builtin_longjmp(cpu->fault_jump, 1);
}

void soft_lockstep_outside(struct soft_vcpu *cpu)
{
    if (cpu->lockstep->phase != LOCKSTEP_OFF)
        abandon(cpu, &cpu->lockstep->devices);
}

static bool page_known(const struct lockstep_pages *pages, const uint8_t *page)
{
    for (uint32_t i = 0; i < pages->count; i++) {
        if (pages->host[i] == page)
            return true;
    }
    return false;
}

static bool page_noted(struct lockstep_pages *pages, uint8_t *page)
{
    if (page_known(pages, page))
        return true;
    if (pages->count == LOCKSTEP_PAGES)
        return false;
    pages->host[pages->count++] = page;
    return true;
}

/* The translation has what the interpreter stored to, also when something else was in the entry meanwhile. */
void soft_lockstep_writable(struct soft_vcpu *cpu, struct soft_tlb_entry *e, uint64_t page)
{
    struct soft_lockstep *ls = cpu->lockstep;

    if (ls->phase == LOCKSTEP_OFF || ls->entries == LOCKSTEP_ENTRIES)
        return;
    if (ls->phase == LOCKSTEP_TRANSLATION) {
        if (!page_known(&ls->pages, (uint8_t *)(uintptr_t)(page + e->addend)))
            return;
        e->write = page;
    }
    ls->entry[ls->entries++] = (struct lockstep_entry){e, page, e->addend};
}

void soft_lockstep_store(struct soft_vcpu *cpu, uint8_t *host, unsigned len, bool direct)
{
    struct soft_lockstep *ls = cpu->lockstep;
    uint8_t *page = (uint8_t *)((uintptr_t)host & PAGE_MASK);

    if (ls->phase == LOCKSTEP_OFF)
        return;
    if (!direct)
        abandon(cpu, &ls->code_writes);
    if (ls->stores == LOCKSTEP_STORES || ls->bytes + len > LOCKSTEP_BYTES ||
        !page_noted(&ls->pages, page))
        abandon(cpu, &ls->too_long);
    ls->store[ls->stores++] = (struct lockstep_store){host, len, ls->bytes};
    soft_copy(ls->old + ls->bytes, host, len);
    ls->bytes += len;
}

static void undo_stores(struct soft_lockstep *ls)
{
    for (uint32_t i = ls->stores; i-- > 0;)
        soft_copy(ls->store[i].host, ls->old + ls->store[i].at, ls->store[i].len);
}

static void set_write_tags(struct soft_lockstep *ls, bool on)
{
    for (uint32_t i = 0; i < ls->entries; i++) {
        struct soft_tlb_entry *e = ls->entry[i].entry;

        if (e->read == ls->entry[i].page && e->addend == ls->entry[i].addend)
            e->write = on ? ls->entry[i].page : SOFT_TLB_EMPTY;
    }
}

/* ---- state ---- */

static void keep(struct soft_vcpu *cpu, struct lockstep_outcome *out, bool raised)
{
    soft_copy(&out->s, &cpu->s, LOCKSTEP_STATE);
    out->x87 = cpu->x87;
    out->raised = raised;
    out->fault = cpu->fault;
    if (!cpu->lockstep->extended)
        return;
    soft_fpu_use(cpu); /* so that the image is as this host writes it, initial parts too */
    soft_fpu_park(cpu);
    soft_copy(out->s.xsave, cpu->s.xsave, CPU_XSAVE_SIZE);
}

static void put_back(struct soft_vcpu *cpu)
{
    struct soft_lockstep *ls = cpu->lockstep;

    undo_stores(ls);
    soft_copy(&cpu->s, &ls->start.s, LOCKSTEP_STATE);
    cpu->x87 = ls->start.x87;
    soft_mode_update(cpu);
    cpu->end_block = false;
    if (!ls->extended)
        return;
    soft_fpu_park(cpu);
    soft_copy(cpu->s.xsave, ls->start.s.xsave, CPU_XSAVE_SIZE);
}

static bool same(const void *a, const void *b, size_t size)
{
    const uint64_t *x = a, *y = b;

    for (size_t i = 0; i < size / 8; i++) {
        if (x[i] != y[i])
            return false;
    }
    return true;
}

static bool pages_same(const struct lockstep_pages *pages)
{
    for (uint32_t i = 0; i < pages->count; i++) {
        if (!same(pages->host[i], pages->bytes[i], PAGE_SIZE))
            return false;
    }
    return true;
}

/* The selector of the last x87 instruction is noted on entry to translated code already. */
static bool x87_same(const struct soft_x87 *a, const struct soft_x87 *b)
{
    return a->fip == b->fip && a->fdp == b->fdp && a->fds == b->fds && a->fop == b->fop;
}

static bool outcome_same(const struct soft_lockstep *ls)
{
    const struct lockstep_outcome *a = &ls->interpreter, *b = &ls->translation;

    if (a->raised != b->raised || !same(&a->s, &b->s, LOCKSTEP_STATE & ~7ul))
        return false;
    if (a->raised && (a->fault.vector != b->fault.vector || a->fault.error != b->fault.error ||
                      a->fault.has_error != b->fault.has_error))
        return false;
    return !ls->extended ||
           (x87_same(&a->x87, &b->x87) && lockstep_xsave_same(a->s.xsave, b->s.xsave));
}

/* ---- the two forms ---- */

/* As soft_run_block(), but no further than stop_at. */
static void interpret_to(struct soft_vcpu *cpu, const struct soft_block *block, gva_t stop_at)
{
    unsigned i = 0;

    cpu->end_block = false;
    do {
        const struct insn *in = &block->insn[i++];

        cpu->next_rip = cpu->s.rip + in->length;
        in->fn(cpu, in);
        cpu->s.rip = cpu->next_rip;
        if (cpu->s.rip == stop_at)
            cpu->end_block = true;
    } while (i < block->count && !cpu->end_block);
}

/* The translation's parts, as long as each leads to the next: all other jumps leave it. False: they did not. */
static bool interpret_parts(struct soft_vcpu *cpu, const struct soft_native *native, bool stops)
{
    gva_t page = cpu->s.rip & PAGE_MASK;

    for (unsigned i = 0; i < native->part_count; i++) {
        if (cpu->s.rip != (page | (native->part[i].block->gpa & ~PAGE_MASK)))
            return false;
        cpu->block = native->part[i].block;
        cpu->end_block = false;
        if (!soft_block_holds(cpu, native->part[i].block, cpu->s.rip))
            return false;
        if (stops)
            interpret_to(cpu, native->part[i].block, cpu->lockstep->stop_at);
        else
            soft_run_block(cpu, native->part[i].block);
        if (cpu->end_block)
            return false;
    }
    return true;
}

/* A loop's second form has made passes of its own after the first (jit/loop.h). */
static void interpret(struct soft_vcpu *cpu, const struct soft_native *native)
{
    const struct soft_lockstep *ls = cpu->lockstep;

    for (uint32_t left = ls->passes; left > 0; left--) {
        if (!interpret_parts(cpu, native, ls->stops && left == 1))
            return;
    }
}

/* False: it ended by cpu->fault, or was abandoned. */
static __attribute__((noinline)) bool run_form(struct soft_vcpu *cpu,
                                               const struct soft_native *native, bool translated)
{
    if (__builtin_setjmp(cpu->fault_jump)) {
        soft_exclusive_abandon(cpu);
        return false;
    }
    cpu->block = native->part[0].block;
    if (translated)
        (void)soft_jit_run(cpu, native);
    else
        interpret(cpu, native);
    return true;
}

static void run_interpreter(struct soft_vcpu *cpu, const struct soft_native *native)
{
    struct soft_lockstep *ls = cpu->lockstep;
    bool raised;

    ls->stores = ls->bytes = ls->entries = ls->pages.count = 0;
    ls->abandoned = false;
    ls->phase = LOCKSTEP_INTERPRETER;
    raised = !run_form(cpu, native, false);
    ls->phase = LOCKSTEP_OFF;
    if (ls->abandoned)
        return;
    keep(cpu, &ls->interpreter, raised);
    for (uint32_t i = 0; i < ls->pages.count; i++)
        soft_copy(ls->pages.bytes[i], ls->pages.host[i], PAGE_SIZE);
}

static void run_translation(struct soft_vcpu *cpu, const struct soft_native *native)
{
    struct soft_lockstep *ls = cpu->lockstep;
    bool raised;

    set_write_tags(ls, true);
    cpu->loop_lockstep = cpu->lockstep->passes - 1;
    ls->phase = LOCKSTEP_TRANSLATION;
    raised = !run_form(cpu, native, true);
    ls->phase = LOCKSTEP_OFF;
    set_write_tags(ls, false);
    keep(cpu, &ls->translation, raised);
}

/* True: the same came of both, and is in place; or it cannot be compared, and the start is. */
static bool attempt(struct soft_vcpu *cpu, const struct soft_native *native)
{
    struct soft_lockstep *ls = cpu->lockstep;
    uint32_t pages;

    run_interpreter(cpu, native);
    put_back(cpu);
    if (ls->abandoned)
        return true;
    pages = ls->pages.count;
    run_translation(cpu, native);
    ls->translation.astray = ls->abandoned || ls->pages.count != pages;
    ls->abandoned = false;
    ls->pages.count = pages;
    return !ls->translation.astray && outcome_same(ls) && pages_same(&ls->pages);
}

/* Nothing interrupts it: what is asked meanwhile waits. Several attempts, as memory may change under one, and as
 * translated code may be left between any two instructions: then the interpreter is to stop there, too. */
static bool attempts(struct soft_vcpu *cpu, const struct soft_native *native)
{
    struct soft_lockstep *ls = cpu->lockstep;
    uint32_t attention = atomic_exchange(&cpu->attention, 0);
    unsigned left = LOCKSTEP_TRIES;
    bool same_came;

    ls->stops = false;
    ls->passes = native->has_loop ? 2 : 1; /* the translation makes no more than the interpreter, whose stores
                                            * are those that are undone */
    soft_copy(ls->fault_jump, cpu->fault_jump, sizeof(ls->fault_jump));
    while (!(same_came = attempt(cpu, native)) && --left > 0) {
        attention |= atomic_exchange(&cpu->attention, 0);
        ls->stops = !ls->translation.raised && !ls->translation.astray;
        ls->stop_at = ls->translation.s.rip;
        ls->passes = cpu->loop_lockstep == SOFT_LOOP_PASSED ? 2 : 1;
        put_back(cpu);
    }
    soft_copy(cpu->fault_jump, ls->fault_jump, sizeof(ls->fault_jump));
    atomic_fetch_or(&cpu->attention, attention);
    ls->repeated += left < LOCKSTEP_TRIES;
    return same_came;
}

/* The run loop is to have the exception that both forms raised. */
static __attribute__((noinline)) void raise_again(struct soft_vcpu *cpu)
{
    __builtin_longjmp(cpu->fault_jump, 1);
}

static void differ(struct soft_vcpu *cpu, const struct soft_native *native)
{
    struct soft_lockstep *ls = cpu->lockstep;
    struct lockstep_difference d = {
        .native = native, .start = &ls->start, .interpreter = &ls->interpreter,
        .translation = &ls->translation, .pages = &ls->pages, .extended = ls->extended};

    soft_fpu_park(cpu);
    lockstep_report(cpu->base.vm->machine->mem, &d);
    ls->failed = true;
    cpu->s.activity = CPU_SHUTDOWN;
}

void soft_lockstep_run(struct soft_vcpu *cpu, struct soft_block *block,
                       const struct soft_native *native)
{
    struct soft_lockstep *ls = cpu->lockstep;

    if (block->insn[0].flags & INSN_ALONE) {
        ls->alone++;
        soft_run_block(cpu, block);
        return;
    }
    ls->extended = uses_extended(native) || ls->compared % LOCKSTEP_EVERY == 0;
    keep(cpu, &ls->start, false);
    if (!attempts(cpu, native)) {
        differ(cpu, native);
    } else if (ls->abandoned) {
        soft_run_block(cpu, block);
    } else {
        ls->compared++;
        if (ls->translation.raised)
            raise_again(cpu);
    }
}
