/*
 * String instructions, and port I/O with and without them.
 *
 * A repeated instruction does one span at a time: the elements up to the end of the page, the
 * segment or the address size. Registers are written after each span, so a fault in the next one
 * finds the instruction restartable. Between spans it looks for requests from outside.
 */
#include "core/bus.h"
#include "core/machine.h"
#include "cpu/soft/descriptor.h"
#include "cpu/soft/exec_integer.h"
#include "cpu/soft/fpu.h"
#include "cpu/soft/system.h"
#include "cpu/soft/vm.h"

/* ---- addresses and counters ---- */

static always_inline uint64_t string_reg(const struct soft_vcpu *cpu, const struct insn *in,
                                         unsigned number)
{
    return cpu->s.gpr[number] & size_mask(in->addrsize);
}

static always_inline bool string_is_flat(const struct soft_vcpu *cpu, const struct insn *in,
                                         unsigned seg)
{
    return (cpu->mode & SOFT_MODE_CODE64) && seg != SEG_FS && seg != SEG_GS &&
           in->addrsize == 8;
}

static always_inline gva_t string_linear(struct soft_vcpu *cpu, const struct insn *in,
                                         unsigned seg, uint64_t offset, enum soft_access access)
{
    if (string_is_flat(cpu, in, seg))
        return offset;
    return soft_linear(cpu, seg, offset, in->opsize, access);
}

static always_inline uint64_t string_step(const struct soft_vcpu *cpu, const struct insn *in)
{
    return cpu->s.rflags & RFLAGS_DF ? -(uint64_t)in->opsize : in->opsize;
}

static always_inline void string_advance(struct soft_vcpu *cpu, const struct insn *in,
                                         unsigned number, uint64_t by)
{
    if (likely(in->addrsize == 8))
        cpu->s.gpr[number] += by;
    else
        gpr_write_sized(cpu, number, in->addrsize, cpu->s.gpr[number] + by);
}

/* Reduces *elements to those that lie forward in this page and in the segment; the first has passed soft_linear. */
static void string_clip(const struct soft_vcpu *cpu, const struct insn *in, unsigned seg,
                        uint64_t offset, gva_t gva, uint64_t *elements)
{
    uint64_t bytes = PAGE_SIZE - (gva & ~PAGE_MASK);
    const struct cpu_segment *s = &cpu->s.seg[seg];
    bool expand_down = (s->attr & 0xcu) == 0x4u;

    if (!string_is_flat(cpu, in, seg)) {
        uint64_t top = size_mask(in->addrsize);

        if (!(cpu->mode & SOFT_MODE_CODE64)) {
            if (expand_down)
                top = offset;
            else if (s->limit < top)
                top = s->limit;
        }
        if (top - offset < bytes)
            bytes = top - offset + 1;
    }
    if (bytes / in->opsize < *elements)
        *elements = bytes / in->opsize;
}

/* Leaves a repeated instruction unfinished, to be begun again after what waits has been served. */
static bool string_interrupted(struct soft_vcpu *cpu)
{
    if (likely(!cpu->single_step &&
               !atomic_load_explicit(&cpu->attention, memory_order_relaxed) && !cpu->end_block))
        return false;
    cpu->next_rip = cpu->s.rip;
    cpu->end_block = true;
    return true;
}

/* ---- the repeat loop ---- */

/* Does up to `elements` (at least one) and returns how many; *stop when the condition of REPE/REPNE ends it. */
typedef uint64_t string_span_fn(struct soft_vcpu *cpu, const struct insn *in, uint64_t elements,
                                bool *stop);

static always_inline void string_run(struct soft_vcpu *cpu, const struct insn *in,
                                     string_span_fn *span)
{
    uint64_t left;
    bool stop = false;

    if (!(in->flags & (INSN_REP | INSN_REPNE))) {
        (void)span(cpu, in, 1, &stop);
        return;
    }
    left = string_reg(cpu, in, GPR_RCX);
    while (left != 0) {
        uint64_t done = span(cpu, in, cpu->single_step ? 1 : left, &stop);

        left -= done;
        gpr_write_sized(cpu, GPR_RCX, in->addrsize, left);
        if (left == 0 || stop || string_interrupted(cpu))
            return;
    }
}

/* ---- MOVS ---- */

static void string_copy_host(void *to, const void *from, uint64_t elements, unsigned size)
{
    switch (size) {
    case 1:
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(elements) : : "memory");
        break;
    case 2:
        __asm__ volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(elements) : : "memory");
        break;
    case 4:
        __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(elements) : : "memory");
        break;
    default:
        __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(elements) : : "memory");
        break;
    }
}

static void string_movs_one(struct soft_vcpu *cpu, const struct insn *in, gva_t from, gva_t to)
{
    uint64_t value = soft_load(cpu, in->seg, from, in->opsize);

    soft_store(cpu, SEG_ES, to, in->opsize, value);
}

/* The host's own REP MOVS on the same bytes has the guest's semantics, overlaps included. */
static uint64_t string_movs(struct soft_vcpu *cpu, const struct insn *in, uint64_t elements,
                            bool *stop)
{
    uint64_t si = string_reg(cpu, in, GPR_RSI), di = string_reg(cpu, in, GPR_RDI);
    uint64_t step = string_step(cpu, in);
    gva_t from = string_linear(cpu, in, in->seg, si, SOFT_READ);
    gva_t to = string_linear(cpu, in, SEG_ES, di, SOFT_WRITE);
    void *source = NULL, *target = NULL;

    (void)stop;
    if (elements > 1 && step == in->opsize) {
        string_clip(cpu, in, in->seg, si, from, &elements);
        string_clip(cpu, in, SEG_ES, di, to, &elements);
        if (elements > 1)
            source = soft_pointer(cpu, in->seg, from, (unsigned)elements * in->opsize, SOFT_READ);
        if (source)
            target = soft_pointer(cpu, SEG_ES, to, (unsigned)elements * in->opsize, SOFT_WRITE);
    }
    if (target) {
        string_copy_host(target, source, elements, in->opsize);
    } else {
        elements = 1;
        string_movs_one(cpu, in, from, to);
    }
    string_advance(cpu, in, GPR_RSI, step * elements);
    string_advance(cpu, in, GPR_RDI, step * elements);
    return elements;
}

/* ---- STOS ---- */

static void string_fill_host(void *to, uint64_t value, uint64_t elements, unsigned size)
{
    switch (size) {
    case 1:
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(elements) : "a"(value) : "memory");
        break;
    case 2:
        __asm__ volatile("rep stosw" : "+D"(to), "+c"(elements) : "a"(value) : "memory");
        break;
    case 4:
        __asm__ volatile("rep stosl" : "+D"(to), "+c"(elements) : "a"(value) : "memory");
        break;
    default:
        __asm__ volatile("rep stosq" : "+D"(to), "+c"(elements) : "a"(value) : "memory");
        break;
    }
}

static uint64_t string_stos(struct soft_vcpu *cpu, const struct insn *in, uint64_t elements,
                            bool *stop)
{
    uint64_t di = string_reg(cpu, in, GPR_RDI), step = string_step(cpu, in);
    gva_t to = string_linear(cpu, in, SEG_ES, di, SOFT_WRITE);
    void *target = NULL;

    (void)stop;
    if (elements > 1 && step == in->opsize) {
        string_clip(cpu, in, SEG_ES, di, to, &elements);
        if (elements > 1)
            target = soft_pointer(cpu, SEG_ES, to, (unsigned)elements * in->opsize, SOFT_WRITE);
    }
    if (target) {
        string_fill_host(target, cpu->s.gpr[GPR_RAX], elements, in->opsize);
    } else {
        elements = 1;
        soft_store(cpu, SEG_ES, to, in->opsize, cpu->s.gpr[GPR_RAX]);
    }
    string_advance(cpu, in, GPR_RDI, step * elements);
    return elements;
}

/* ---- LODS ---- */

static uint64_t string_lods(struct soft_vcpu *cpu, const struct insn *in, uint64_t elements,
                            bool *stop)
{
    uint64_t si = string_reg(cpu, in, GPR_RSI);
    gva_t from = string_linear(cpu, in, in->seg, si, SOFT_READ);
    uint64_t value = soft_load(cpu, in->seg, from, in->opsize);

    (void)elements;
    (void)stop;
    if (in->opsize == 1)
        GPR(8, 0) = (uint8_t)value;
    else
        gpr_write_sized(cpu, GPR_RAX, in->opsize, value);
    string_advance(cpu, in, GPR_RSI, string_step(cpu, in));
    return 1;
}

/* ---- CMPS, SCAS ---- */

static uint32_t string_compare(uint64_t first, uint64_t second, unsigned size)
{
    unsigned shift = 64 - size * 8;
    uint32_t ax, narrow;

    /* In the top bits of 64 all flags but AF and PF, which look at the low bits, come out right. */
    first <<= shift;
    second <<= shift;
    __asm__("cmpq %[b],%[a]" FLAGS_SAVE : "=a"(ax) : [a] "r"(first), [b] "r"(second) : "cc");
    first >>= shift;
    second >>= shift;
    __asm__("cmpb %b[b],%b[a]" FLAGS_SAVE : "=a"(narrow) : [a] "r"(first), [b] "r"(second) : "cc");
    return (ax & ~((RFLAGS_AF | RFLAGS_PF) << 8)) | (narrow & ((RFLAGS_AF | RFLAGS_PF) << 8));
}

/* REPE goes on while equal, REPNE while not; a plain one has no next element. Flags are written when the
 * instruction is about to end or pause: a fault leaves those from before it (SDM vol. 2B, REP). */
static void string_compared(struct soft_vcpu *cpu, const struct insn *in, uint32_t ax, bool last,
                            bool *stop)
{
    bool equal = ax & (RFLAGS_ZF << 8);

    *stop = equal != ((in->flags & INSN_REP) != 0);
    if (*stop || last || cpu->single_step || cpu->end_block ||
        atomic_load_explicit(&cpu->attention, memory_order_relaxed))
        flags_put(cpu, ax);
}

#define SPAN_COMPARE(repeat, insn)                                                                 \
    __asm__ volatile(repeat " " insn FLAGS_SAVE                                                    \
                     : "+S"(a), "+D"(b), "+c"(left), "=a"(ax)                                      \
                     :                                                                             \
                     : "cc", "memory")
#define SPAN_SCAN(repeat, insn)                                                                    \
    __asm__ volatile(repeat " " insn FLAGS_SAVE                                                    \
                     : "+D"(b), "+c"(left), "+a"(ax)                                               \
                     :                                                                             \
                     : "cc", "memory")

/* Repeated comparison inside host memory; returns the elements done, flags in *out. */
static uint64_t string_cmps_host(const void *a, const void *b, uint64_t elements, unsigned size,
                                 bool while_equal, uint32_t *out)
{
    uint64_t left = elements;
    uint32_t ax;

    switch (size * 2 + while_equal) {
    case 2:
        SPAN_COMPARE("repne", "cmpsb");
        break;
    case 3:
        SPAN_COMPARE("repe", "cmpsb");
        break;
    case 4:
        SPAN_COMPARE("repne", "cmpsw");
        break;
    case 5:
        SPAN_COMPARE("repe", "cmpsw");
        break;
    case 8:
        SPAN_COMPARE("repne", "cmpsl");
        break;
    case 9:
        SPAN_COMPARE("repe", "cmpsl");
        break;
    case 16:
        SPAN_COMPARE("repne", "cmpsq");
        break;
    default:
        SPAN_COMPARE("repe", "cmpsq");
        break;
    }
    *out = ax;
    return elements - left;
}

static uint64_t string_scas_host(uint64_t value, const void *b, uint64_t elements, unsigned size,
                                 bool while_equal, uint32_t *out)
{
    uint64_t left = elements, ax = value;

    switch (size * 2 + while_equal) {
    case 2:
        SPAN_SCAN("repne", "scasb");
        break;
    case 3:
        SPAN_SCAN("repe", "scasb");
        break;
    case 4:
        SPAN_SCAN("repne", "scasw");
        break;
    case 5:
        SPAN_SCAN("repe", "scasw");
        break;
    case 8:
        SPAN_SCAN("repne", "scasl");
        break;
    case 9:
        SPAN_SCAN("repe", "scasl");
        break;
    case 16:
        SPAN_SCAN("repne", "scasq");
        break;
    default:
        SPAN_SCAN("repe", "scasq");
        break;
    }
    *out = (uint32_t)ax;
    return elements - left;
}

/* CMPS reads two operands, either of which may fault. AMD's read DS:SI first from Zen 5 on (family 1AH); those before,
 * and Intel's, ES:DI. Bound into src2 is one of these. */
enum { CMPS_DESTINATION_FIRST, CMPS_SOURCE_FIRST };

static void string_cmps_linear(struct soft_vcpu *cpu, const struct insn *in, gva_t *a, gva_t *b)
{
    uint64_t si = string_reg(cpu, in, GPR_RSI), di = string_reg(cpu, in, GPR_RDI);

    if (in->src2 == CMPS_SOURCE_FIRST) {
        *a = string_linear(cpu, in, in->seg, si, SOFT_READ);
        *b = string_linear(cpu, in, SEG_ES, di, SOFT_READ);
    } else {
        *b = string_linear(cpu, in, SEG_ES, di, SOFT_READ);
        *a = string_linear(cpu, in, in->seg, si, SOFT_READ);
    }
}

/* False: not both in memory. */
static bool string_cmps_pointers(struct soft_vcpu *cpu, const struct insn *in, gva_t a, gva_t b,
                                 unsigned bytes, const void **one, const void **other)
{
    if (in->src2 == CMPS_SOURCE_FIRST) {
        *one = soft_pointer(cpu, in->seg, a, bytes, SOFT_READ);
        *other = *one ? soft_pointer(cpu, SEG_ES, b, bytes, SOFT_READ) : NULL;
    } else {
        *other = soft_pointer(cpu, SEG_ES, b, bytes, SOFT_READ);
        *one = *other ? soft_pointer(cpu, in->seg, a, bytes, SOFT_READ) : NULL;
    }
    return *one && *other;
}

static uint32_t string_cmps_one(struct soft_vcpu *cpu, const struct insn *in, gva_t a, gva_t b)
{
    uint64_t first, second;

    if (in->src2 == CMPS_SOURCE_FIRST) {
        first = soft_load(cpu, in->seg, a, in->opsize);
        second = soft_load(cpu, SEG_ES, b, in->opsize);
    } else {
        second = soft_load(cpu, SEG_ES, b, in->opsize);
        first = soft_load(cpu, in->seg, a, in->opsize);
    }
    return string_compare(first, second, in->opsize);
}

static uint64_t string_cmps(struct soft_vcpu *cpu, const struct insn *in, uint64_t elements,
                            bool *stop)
{
    uint64_t step = string_step(cpu, in), asked = elements;
    const void *one, *other;
    gva_t a, b;
    uint32_t ax;

    string_cmps_linear(cpu, in, &a, &b);
    if (elements > 1 && step == in->opsize) {
        string_clip(cpu, in, in->seg, string_reg(cpu, in, GPR_RSI), a, &elements);
        string_clip(cpu, in, SEG_ES, string_reg(cpu, in, GPR_RDI), b, &elements);
    } else {
        elements = 1;
    }
    if (elements > 1 && string_cmps_pointers(cpu, in, a, b, (unsigned)elements * in->opsize, &one,
                                             &other)) {
        elements = string_cmps_host(one, other, elements, in->opsize,
                                    (in->flags & INSN_REP) != 0, &ax);
    } else {
        elements = 1;
        ax = string_cmps_one(cpu, in, a, b);
    }
    string_advance(cpu, in, GPR_RSI, step * elements);
    string_advance(cpu, in, GPR_RDI, step * elements);
    string_compared(cpu, in, ax, elements == asked, stop);
    return elements;
}

static uint64_t string_scas(struct soft_vcpu *cpu, const struct insn *in, uint64_t elements,
                            bool *stop)
{
    uint64_t di = string_reg(cpu, in, GPR_RDI), step = string_step(cpu, in), asked = elements;
    uint64_t value = cpu->s.gpr[GPR_RAX];
    gva_t b = string_linear(cpu, in, SEG_ES, di, SOFT_READ);
    const void *host = NULL;
    uint32_t ax;

    if (elements > 1 && step == in->opsize) {
        string_clip(cpu, in, SEG_ES, di, b, &elements);
        if (elements > 1)
            host = soft_pointer(cpu, SEG_ES, b, (unsigned)elements * in->opsize, SOFT_READ);
    }
    if (host) {
        elements = string_scas_host(value, host, elements, in->opsize,
                                    (in->flags & INSN_REP) != 0, &ax);
    } else {
        elements = 1;
        ax = string_compare(value, soft_load(cpu, SEG_ES, b, in->opsize), in->opsize);
    }
    string_advance(cpu, in, GPR_RDI, step * elements);
    string_compared(cpu, in, ax, elements == asked, stop);
    return elements;
}

/* ---- ports ---- */

static uint32_t port_read(struct soft_vcpu *cpu, uint16_t port, unsigned size)
{
    soft_fpu_park(cpu);
    return (uint32_t)bus_read(cpu->base.vm->machine->bus, BUS_PORT, port, size);
}

static void port_write(struct soft_vcpu *cpu, uint16_t port, unsigned size, uint32_t value)
{
    soft_fpu_park(cpu);
    bus_write(cpu->base.vm->machine->bus, BUS_PORT, port, size, value & size_mask(size));
    soft_map_follow(cpu);
}

/* The write is proved possible before the device is asked: a read may have effects. */
static uint64_t string_ins(struct soft_vcpu *cpu, const struct insn *in, uint64_t elements,
                           bool *stop)
{
    uint16_t port = GPR(16, GPR_RDX * 8);
    uint64_t di = string_reg(cpu, in, GPR_RDI);
    gva_t to;

    (void)elements;
    (void)stop;
    soft_io_check(cpu, port, in->opsize);
    to = string_linear(cpu, in, SEG_ES, di, SOFT_WRITE);
    soft_probe_write(cpu, SEG_ES, to, in->opsize);
    soft_store(cpu, SEG_ES, to, in->opsize, port_read(cpu, port, in->opsize));
    string_advance(cpu, in, GPR_RDI, string_step(cpu, in));
    return 1;
}

static uint64_t string_outs(struct soft_vcpu *cpu, const struct insn *in, uint64_t elements,
                            bool *stop)
{
    uint16_t port = GPR(16, GPR_RDX * 8);
    uint64_t si = string_reg(cpu, in, GPR_RSI), value;
    gva_t from;

    (void)elements;
    (void)stop;
    soft_io_check(cpu, port, in->opsize);
    from = string_linear(cpu, in, in->seg, si, SOFT_READ);
    value = soft_load(cpu, in->seg, from, in->opsize);
    port_write(cpu, port, in->opsize, (uint32_t)value);
    string_advance(cpu, in, GPR_RSI, string_step(cpu, in));
    return 1;
}

HANDLER(movs)
{
    string_run(cpu, in, string_movs);
}
HANDLER(stos)
{
    string_run(cpu, in, string_stos);
}
HANDLER(lods)
{
    string_run(cpu, in, string_lods);
}
HANDLER(cmps)
{
    string_run(cpu, in, string_cmps);
}
HANDLER(scas)
{
    string_run(cpu, in, string_scas);
}
HANDLER(ins)
{
    string_run(cpu, in, string_ins);
}
HANDLER(outs)
{
    string_run(cpu, in, string_outs);
}

HANDLER(port_in)
{
    uint16_t port = in->src ? GPR(16, GPR_RDX * 8) : (uint8_t)in->imm;
    uint32_t value;

    soft_io_check(cpu, port, in->opsize);
    value = port_read(cpu, port, in->opsize);
    if (in->opsize == 1)
        GPR(8, 0) = (uint8_t)value;
    else
        gpr_write_sized(cpu, GPR_RAX, in->opsize, value);
}

HANDLER(port_out)
{
    uint16_t port = in->src ? GPR(16, GPR_RDX * 8) : (uint8_t)in->imm;

    soft_io_check(cpu, port, in->opsize);
    port_write(cpu, port, in->opsize, GPR(32, 0));
}

/* ---- binding ---- */

/* MOVSD and CMPSD are also SSE2 instructions: those are in another opcode map. */
#define STRING_BIND(name)                                                                          \
    static bool string_bind_##name(struct insn *in, const struct insn_decode *d)                   \
    {                                                                                              \
        if (d->z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)                                          \
            return false;                                                                          \
        in->fn = name;                                                                             \
        return true;                                                                               \
    }
STRING_BIND(movs)
STRING_BIND(stos)
STRING_BIND(lods)
STRING_BIND(cmps)
STRING_BIND(scas)

/* Families above 0FH are told in the extended field (APM vol. 3 E.3.2). */
static bool string_source_first(const struct soft_vcpu *cpu)
{
    uint32_t signature = soft_signature(cpu);

    return soft_is_amd(cpu) && (signature >> 8 & 15u) + (signature >> 20 & 255u) >= 0x1a;
}

static bool string_bind_cmps_ordered(struct insn *in, const struct insn_decode *d)
{
    in->src2 = string_source_first(d->cpu) ? CMPS_SOURCE_FIRST : CMPS_DESTINATION_FIRST;
    return string_bind_cmps(in, d);
}

/* Ports are at most 32 bits wide; what a device does may concern the block that follows. */
static bool string_bind_port(struct insn *in, insn_fn *fn)
{
    if (in->opsize > 4)
        in->opsize = 4;
    in->flags |= INSN_ENDS_BLOCK;
    in->fn = fn;
    return true;
}

static bool string_bind_ins(struct insn *in, const struct insn_decode *d)
{
    (void)d;
    return string_bind_port(in, ins);
}
static bool string_bind_outs(struct insn *in, const struct insn_decode *d)
{
    (void)d;
    return string_bind_port(in, outs);
}
static bool string_bind_in(struct insn *in, const struct insn_decode *d)
{
    in->opsize = (uint8_t)bind_bytes(d, 0);
    in->src = bind_is_gpr(d, 1); /* DX rather than an immediate */
    return string_bind_port(in, port_in);
}
static bool string_bind_out(struct insn *in, const struct insn_decode *d)
{
    in->opsize = (uint8_t)bind_bytes(d, 1);
    in->src = bind_is_gpr(d, 0);
    return string_bind_port(in, port_out);
}

static const struct insn_binding string_bindings[] = {
    {ZYDIS_MNEMONIC_MOVSB, string_bind_movs}, {ZYDIS_MNEMONIC_MOVSW, string_bind_movs},
    {ZYDIS_MNEMONIC_MOVSD, string_bind_movs}, {ZYDIS_MNEMONIC_MOVSQ, string_bind_movs},
    {ZYDIS_MNEMONIC_STOSB, string_bind_stos}, {ZYDIS_MNEMONIC_STOSW, string_bind_stos},
    {ZYDIS_MNEMONIC_STOSD, string_bind_stos}, {ZYDIS_MNEMONIC_STOSQ, string_bind_stos},
    {ZYDIS_MNEMONIC_LODSB, string_bind_lods}, {ZYDIS_MNEMONIC_LODSW, string_bind_lods},
    {ZYDIS_MNEMONIC_LODSD, string_bind_lods}, {ZYDIS_MNEMONIC_LODSQ, string_bind_lods},
    {ZYDIS_MNEMONIC_CMPSB, string_bind_cmps_ordered}, {ZYDIS_MNEMONIC_CMPSW, string_bind_cmps_ordered},
    {ZYDIS_MNEMONIC_CMPSD, string_bind_cmps_ordered}, {ZYDIS_MNEMONIC_CMPSQ, string_bind_cmps_ordered},
    {ZYDIS_MNEMONIC_SCASB, string_bind_scas}, {ZYDIS_MNEMONIC_SCASW, string_bind_scas},
    {ZYDIS_MNEMONIC_SCASD, string_bind_scas}, {ZYDIS_MNEMONIC_SCASQ, string_bind_scas},
    {ZYDIS_MNEMONIC_INSB, string_bind_ins},   {ZYDIS_MNEMONIC_INSW, string_bind_ins},
    {ZYDIS_MNEMONIC_INSD, string_bind_ins},   {ZYDIS_MNEMONIC_OUTSB, string_bind_outs},
    {ZYDIS_MNEMONIC_OUTSW, string_bind_outs}, {ZYDIS_MNEMONIC_OUTSD, string_bind_outs},
    {ZYDIS_MNEMONIC_IN, string_bind_in},      {ZYDIS_MNEMONIC_OUT, string_bind_out},
    {ZYDIS_MNEMONIC_INVALID, NULL},
};

const struct insn_family insn_family_string = {
    .name = "string",
    .bindings = string_bindings,
};
