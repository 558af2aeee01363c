#include "cpu/soft/lockstep_report.h"

#include <inttypes.h>

#include "base/log.h"
#include "cpu/soft/jit/jit.h"

#define REPORT_BYTES 16u /* that differ, told of each page and of the extended state */

/* A field of struct cpu_state of 8, 4, 2 or 1 bytes. */
struct report_field {
    const char *name;
    uint16_t offset, size;
};

#define FIELD(name, member)                                                                        \
    {name, offsetof(struct cpu_state, member), sizeof(((struct cpu_state *)0)->member)}
#define SEGMENT(name, member)                                                                      \
    FIELD(name " selector", member.selector), FIELD(name " base", member.base),                    \
        FIELD(name " limit", member.limit), FIELD(name " attributes", member.attr)

static const struct report_field fields[] = {
    FIELD("rax", gpr[GPR_RAX]), FIELD("rcx", gpr[GPR_RCX]), FIELD("rdx", gpr[GPR_RDX]),
    FIELD("rbx", gpr[GPR_RBX]), FIELD("rsp", gpr[GPR_RSP]), FIELD("rbp", gpr[GPR_RBP]),
    FIELD("rsi", gpr[GPR_RSI]), FIELD("rdi", gpr[GPR_RDI]), FIELD("r8", gpr[GPR_R8]),
    FIELD("r9", gpr[GPR_R9]), FIELD("r10", gpr[GPR_R10]), FIELD("r11", gpr[GPR_R11]),
    FIELD("r12", gpr[GPR_R12]), FIELD("r13", gpr[GPR_R13]), FIELD("r14", gpr[GPR_R14]),
    FIELD("r15", gpr[GPR_R15]), FIELD("rip", rip), FIELD("rflags", rflags),
    SEGMENT("es", seg[SEG_ES]), SEGMENT("cs", seg[SEG_CS]), SEGMENT("ss", seg[SEG_SS]),
    SEGMENT("ds", seg[SEG_DS]), SEGMENT("fs", seg[SEG_FS]), SEGMENT("gs", seg[SEG_GS]),
    SEGMENT("ldtr", ldtr), SEGMENT("tr", tr), FIELD("gdtr base", gdtr.base),
    FIELD("idtr base", idtr.base), FIELD("cr0", cr0), FIELD("cr2", cr2), FIELD("cr3", cr3),
    FIELD("cr4", cr4), FIELD("cr8", cr8), FIELD("efer", efer), FIELD("xcr0", xcr0),
    FIELD("dr6", dr6), FIELD("dr7", dr7), FIELD("activity", activity),
    FIELD("interrupt shadow", interrupt_shadow),
};

static uint64_t field_value(const struct cpu_state *s, const struct report_field *f)
{
    uint64_t value = 0;

    soft_copy(&value, (const uint8_t *)s + f->offset, f->size);
    return value;
}

/* ---- the block ---- */

static const uint8_t *code_bytes(struct mem *mem, gpa_t gpa)
{
    struct mem_slot *slot = mem_slot_find(mem, gpa);

    return slot ? slot->host + (gpa - slot->gpa) : NULL;
}

static void report_part(struct mem *mem, const struct soft_block *block, uint64_t page)
{
    const uint8_t *bytes = code_bytes(mem, block->gpa);
    uint64_t rip = page | (block->gpa & ~PAGE_MASK);
    ZydisDisassembledInstruction text;

    for (unsigned i = 0; bytes && i < block->count; i++) {
        unsigned length = block->insn[i].length;

        if (ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, rip, bytes, length, &text)))
            log_error("  %#" PRIx64 "  %s", rip, text.text);
        rip += length;
        bytes += length;
    }
}

static void report_code(struct mem *mem, const struct lockstep_difference *d)
{
    uint64_t rip = d->start->s.rip;

    log_error("lock-step: a translation does something else than the interpreter: rip %#" PRIx64
              ", physical %#" PRIx64 ", mode %#x",
              rip, d->native->part[0].block->gpa, d->native->part[0].block->mode);
    for (unsigned i = 0; i < d->native->part_count; i++)
        report_part(mem, d->native->part[i].block, rip & PAGE_MASK);
}

/* ---- what differs ---- */

static void report_fields(const struct lockstep_difference *d)
{
    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
        uint64_t a = field_value(&d->interpreter->s, &fields[i]);
        uint64_t b = field_value(&d->translation->s, &fields[i]);

        if (a != b)
            log_error("  %s: interpreted %#" PRIx64 ", translated %#" PRIx64 " (before: %#" PRIx64 ")",
                      fields[i].name, a, b, field_value(&d->start->s, &fields[i]));
    }
}

static void report_start(const struct lockstep_difference *d)
{
    const uint64_t *r = d->start->s.gpr;

    for (unsigned i = 0; i < GPR_COUNT; i += 4)
        log_error("  before: %s %#" PRIx64 ", then %#" PRIx64 " %#" PRIx64 " %#" PRIx64, fields[i].name,
                  r[i], r[i + 1], r[i + 2], r[i + 3]);
}

static void report_end(const char *who, const struct lockstep_outcome *o)
{
    if (o->astray)
        log_error("  %s: it reached a device or stored elsewhere", who);
    else if (o->raised)
        log_error("  %s: exception %u, error %#x, cr2 %#" PRIx64, who, o->fault.vector,
                  o->fault.has_error ? o->fault.error : 0, o->s.cr2);
    else
        log_error("  %s: went on to %#" PRIx64, who, o->s.rip);
}

static void report_bytes(const char *what, uint64_t base, const uint8_t *a, const uint8_t *b,
                         unsigned size)
{
    unsigned told = 0;

    for (unsigned i = 0; i < size && told < REPORT_BYTES; i++) {
        if (a[i] == b[i])
            continue;
        log_error("  %s %#" PRIx64 ": interpreted %02x, translated %02x", what, base + i, a[i], b[i]);
        told++;
    }
}

static gpa_t physical(const struct mem *mem, const uint8_t *host)
{
    for (unsigned i = 0; i < mem->slot_count; i++) {
        const struct mem_slot *slot = &mem->slots[i];

        if (host >= slot->host && host < slot->host + slot->size)
            return slot->gpa + (gpa_t)(host - slot->host);
    }
    return 0;
}

static void report_x87(const struct soft_x87 *a, const struct soft_x87 *b)
{
    if (a->fip != b->fip || a->fdp != b->fdp || a->fds != b->fds || a->fop != b->fop)
        log_error("  x87 pointers: interpreted %#" PRIx64 " %x:%#" PRIx64 " opcode %x, translated %#" PRIx64
                  " %x:%#" PRIx64 " opcode %x",
                  a->fip, a->fds, a->fdp, a->fop, b->fip, b->fds, b->fdp, b->fop);
}

void lockstep_report(struct mem *mem, const struct lockstep_difference *d)
{
    report_code(mem, d);
    report_end("interpreted", d->interpreter);
    report_end("translated", d->translation);
    report_fields(d);
    report_start(d);
    for (uint32_t i = 0; i < d->pages->count; i++)
        report_bytes("memory", physical(mem, d->pages->host[i]), d->pages->bytes[i],
                     d->pages->host[i], PAGE_SIZE);
    if (!d->extended)
        return;
    report_x87(&d->interpreter->x87, &d->translation->x87);
    report_bytes("xsave image", 0, d->interpreter->s.xsave, d->translation->s.xsave,
                 CPU_XSAVE_SIZE);
}

bool lockstep_xsave_same(const uint8_t *a, const uint8_t *b)
{
    static const struct {
        uint16_t from, to;
    } part[] = {{0, 6}, {24, 28}, {32, 416}, {576, CPU_XSAVE_SIZE}};

    for (unsigned p = 0; p < ARRAY_SIZE(part); p++) {
        for (unsigned i = part[p].from; i < part[p].to; i += 2) {
            if (*(const uint16_t *)(const void *)(a + i) != *(const uint16_t *)(const void *)(b + i))
                return false;
        }
    }
    return true;
}
