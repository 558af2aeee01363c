/*
 * Memory operands of which only some elements are touched: EVEX write masks, V(P)MASKMOV,
 * MASKMOVDQU. Elements that are masked off are not accessed and cannot fault.
 */
#include "cpu/soft/vector.h"

#define MASKED_DATA_ENTRY 16u /* V(P)MASKMOV: the code first has a function that stores the mask */

enum masked_kind { MASKED_PLAIN, MASKED_FOLD, MASKED_DENSE };

/* How mask bits map to memory, packed into in->imm. */
struct masked_shape {
    uint8_t lanes;   /* mask bits that count */
    uint8_t count;   /* elements in memory */
    uint8_t element; /* bytes of one */
    uint8_t kind;    /* MASKED_FOLD: a broadcast; MASKED_DENSE: as many as bits are set */
    uint8_t k;
    bool write;
};

static uint64_t masked_pack(const struct masked_shape *s)
{
    return s->lanes | (uint64_t)s->count << 8 | (uint64_t)s->element << 16 |
           (uint64_t)s->kind << 24 | (uint64_t)s->k << 32 | (uint64_t)s->write << 40;
}

static struct masked_shape masked_unpack(uint64_t v)
{
    return (struct masked_shape){(uint8_t)v,         (uint8_t)(v >> 8),  (uint8_t)(v >> 16),
                                 (uint8_t)(v >> 24), (uint8_t)(v >> 32), (bool)(v >> 40 & 1)};
}

static uint64_t masked_k(unsigned k)
{
    uint64_t mask;

    switch (k) {
    case 1: __asm__ volatile("kmovq %%k1, %0" : "=r"(mask)); return mask;
    case 2: __asm__ volatile("kmovq %%k2, %0" : "=r"(mask)); return mask;
    case 3: __asm__ volatile("kmovq %%k3, %0" : "=r"(mask)); return mask;
    case 4: __asm__ volatile("kmovq %%k4, %0" : "=r"(mask)); return mask;
    case 5: __asm__ volatile("kmovq %%k5, %0" : "=r"(mask)); return mask;
    case 6: __asm__ volatile("kmovq %%k6, %0" : "=r"(mask)); return mask;
    default: __asm__ volatile("kmovq %%k7, %0" : "=r"(mask)); return mask;
    }
}

static uint64_t masked_low_bits(unsigned count)
{
    return count >= 64 ? ~0ull : (1ull << count) - 1;
}

/* Which elements in memory are touched. */
static uint64_t masked_elements(const struct masked_shape *s, uint64_t mask)
{
    uint64_t out = 0;
    unsigned set = 0;

    mask &= masked_low_bits(s->lanes);
    if (s->kind == MASKED_PLAIN)
        return mask;
    for (unsigned i = 0; i < s->lanes; i++) {
        if (mask & 1ull << i) {
            out |= 1ull << (i % s->count);
            set++;
        }
    }
    return s->kind == MASKED_DENSE ? masked_low_bits(set) : out;
}

/* Element by element: across pages, or not in RAM. */
static void masked_bounced(struct soft_vcpu *cpu, const struct insn *in, unsigned entry, gva_t gva,
                           uint64_t touched, const struct masked_shape *s)
{
    uint8_t bounce[VECTOR_BYTES_MAX] __attribute__((aligned(64)));

    soft_zero(bounce, sizeof(bounce));
    for (unsigned i = 0; i < s->count; i++) {
        if (!(touched & 1ull << i))
            continue;
        if (s->write)
            soft_probe_write(cpu, in->seg, gva + i * s->element, s->element);
        else
            soft_load_bytes(cpu, in->seg, gva + i * s->element, bounce + i * s->element,
                            s->element);
    }
    soft_fpu_use(cpu);
    vector_run(cpu, in, entry, bounce);
    for (unsigned i = 0; s->write && i < s->count; i++) {
        if (touched & 1ull << i)
            soft_store_bytes(cpu, in->seg, gva + i * s->element, bounce + i * s->element,
                             s->element);
    }
}

/* Runs the code with what is touched checked, and given by a pointer when it is inside one page. */
static void masked_access(struct soft_vcpu *cpu, const struct insn *in, unsigned entry,
                          uint64_t touched, const struct masked_shape *s)
{
    enum soft_access access = s->write ? SOFT_WRITE : SOFT_READ;
    uint8_t none[VECTOR_BYTES_MAX] __attribute__((aligned(64)));
    unsigned first, last;
    gva_t gva;
    uint8_t *p;

    if (!touched) {
        soft_zero(none, sizeof(none));
        vector_run(cpu, in, entry, none);
        return;
    }
    first = (unsigned)__builtin_ctzll(touched);
    last = 63u - (unsigned)__builtin_clzll(touched);
    vector_check_aligned(cpu, in);
    gva = soft_operand(cpu, in, s->element, access);
    p = soft_pointer(cpu, in->seg, gva + first * s->element, (last - first + 1) * s->element,
                     access);
    if (!p) {
        masked_bounced(cpu, in, entry, gva, touched, s);
        return;
    }
    soft_fpu_use(cpu);
    vector_run(cpu, in, entry, p - first * s->element);
}

static void masked_evex(struct soft_vcpu *cpu, const struct insn *in)
{
    struct masked_shape shape = masked_unpack(in->imm);

    soft_fpu_use(cpu);
    masked_access(cpu, in, 0, masked_elements(&shape, masked_k(shape.k)), &shape);
}

/* A store that checks its whole operand but writes only what its mask says. */
static void masked_evex_checked(struct soft_vcpu *cpu, const struct insn *in)
{
    struct masked_shape shape = masked_unpack(in->imm);
    unsigned bytes = (unsigned)shape.count * shape.element;

    soft_probe_write(cpu, in->seg, soft_operand(cpu, in, bytes, SOFT_WRITE), bytes);
    masked_evex(cpu, in);
}

static void masked_maskmov(struct soft_vcpu *cpu, const struct insn *in)
{
    struct masked_shape shape = masked_unpack(in->imm);
    uint8_t mask[32] __attribute__((aligned(64)));
    uint64_t touched = 0;

    soft_fpu_use(cpu);
    vector_run(cpu, in, 0, mask);
    for (unsigned i = 0; i < shape.count; i++) {
        if (mask[(i + 1) * shape.element - 1] & 0x80u)
            touched |= 1ull << i;
    }
    masked_access(cpu, in, MASKED_DATA_ENTRY, touched, &shape);
}

/* in->dst bytes; the code stores data and mask. */
static void masked_bytes(struct soft_vcpu *cpu, const struct insn *in)
{
    uint8_t slot[2][64] __attribute__((aligned(64)));
    uint64_t offset = cpu->s.gpr[GPR_RDI];
    gva_t gva;

    if (in->addrsize != 8)
        offset = in->addrsize == 4 ? (uint32_t)offset : (uint16_t)offset;
    soft_fpu_use(cpu);
    vector_run(cpu, in, 0, slot);
    /* The whole operand is checked: an implementation may (SDM vol. 2B, MASKMOVQ), and AMD's do. */
    gva = soft_linear(cpu, in->seg, offset, in->dst, SOFT_WRITE);
    soft_probe_write(cpu, in->seg, gva, in->dst);
    for (unsigned i = 0; i < in->dst; i++) {
        if (slot[1][i] & 0x80u)
            soft_store(cpu, in->seg, gva + i, 1, slot[0][i]);
    }
}

/* Classes whose masked elements are read all the same: "no fault suppression", SDM vol. 2A 2.8. */
static bool masked_no_suppression(const struct insn_decode *d)
{
    switch (d->z->mnemonic) { /* where Zydis has them with the others */
    case ZYDIS_MNEMONIC_VCVTNE2PS2BF16:
    case ZYDIS_MNEMONIC_VDBPSADBW:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEQB:
    case ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB:
        return true;
    default:
        break;
    }
    switch (d->z->meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_E1NF:
    case ZYDIS_EXCEPTION_CLASS_E2NF:
    case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E4NF:
    case ZYDIS_EXCEPTION_CLASS_E5NF:
    case ZYDIS_EXCEPTION_CLASS_E6NF:
    case ZYDIS_EXCEPTION_CLASS_E9NF:
    case ZYDIS_EXCEPTION_CLASS_E10NF:
    case ZYDIS_EXCEPTION_CLASS_E11NF:
        return true;
    default:
        return false;
    }
}

/* Mask bits that count: the elements of the first vector register operand. */
static unsigned masked_lanes(const struct insn_decode *d, const ZydisDecodedOperand *memory)
{
    static const uint8_t broadcast[] = {
        [ZYDIS_BROADCAST_MODE_1_TO_2] = 2,   [ZYDIS_BROADCAST_MODE_1_TO_4] = 4,
        [ZYDIS_BROADCAST_MODE_1_TO_8] = 8,   [ZYDIS_BROADCAST_MODE_1_TO_16] = 16,
        [ZYDIS_BROADCAST_MODE_1_TO_32] = 32, [ZYDIS_BROADCAST_MODE_1_TO_64] = 64,
    };
    unsigned mode = d->z->avx.broadcast.mode;

    if (mode < sizeof(broadcast) && broadcast[mode])
        return broadcast[mode];
    for (unsigned i = 0; i < d->z->operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &d->operand[i];

        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && op->encoding != ZYDIS_OPERAND_ENCODING_MASK &&
            op->size >= 128 && op->element_count)
            return op->element_count;
    }
    return memory->element_count;
}

static struct masked_shape masked_shape_of(const struct insn_decode *d,
                                           const ZydisDecodedOperand *memory)
{
    struct masked_shape s = {0};
    unsigned bytes = memory->size / 8u, lanes = masked_lanes(d, memory);
    bool dense = d->z->meta.category == ZYDIS_CATEGORY_COMPRESS ||
                 d->z->meta.category == ZYDIS_CATEGORY_EXPAND;
    bool fold = d->z->avx.broadcast.mode != ZYDIS_BROADCAST_MODE_INVALID;
    unsigned count = fold || !memory->element_count || lanes > memory->element_count
                         ? memory->element_count
                         : lanes;

    if (d->z->mnemonic == ZYDIS_MNEMONIC_VPSHUFBITQMB) /* masked by the byte, named by the quadword */
        count = lanes = bytes;
    s.write = memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    s.k = d->bytes[d->z->raw.evex.offset + 3] & 7u;
    s.kind = dense ? MASKED_DENSE : fold ? MASKED_FOLD : MASKED_PLAIN;
    s.count = (uint8_t)(count ? count : 1);
    s.lanes = (uint8_t)(fold || dense ? lanes : s.count);
    s.element = (uint8_t)(bytes / s.count);
    return s;
}

static uint8_t masked_alignment(const struct insn_decode *d, unsigned bytes)
{
    return d->z->meta.exception_class == ZYDIS_EXCEPTION_CLASS_E1 ? (uint8_t)(bytes - 1) : 0;
}

bool vector_bind_masked(struct insn *in, const struct insn_decode *d)
{
    const ZydisDecodedOperand *memory = stub_memory_operand(d);
    struct masked_shape shape = masked_shape_of(d, memory);
    struct stub stub = {.len = 0};

    if (!stub_instruction(&stub, d))
        return false;
    if (memory->size / 8u > VECTOR_BYTES_MAX || !shape.element || !shape.lanes)
        return false;
    if (masked_no_suppression(d) && shape.write && shape.k != 0) {
        in->imm = masked_pack(&shape);
        in->src = masked_alignment(d, memory->size / 8u);
        in->src2 = 0;
        return vector_bind_stub(in, d, &stub, masked_evex_checked);
    }
    if (masked_no_suppression(d)) {
        shape.count = shape.lanes = 1;
        shape.kind = MASKED_PLAIN;
        shape.element = (uint8_t)(memory->size / 8u);
        shape.k = 0; /* see below */
    }
    in->imm = masked_pack(&shape);
    in->src = masked_alignment(d, memory->size / 8u);
    in->src2 = 0;
    if (shape.k == 0)
        return vector_bind_whole(in, d, &stub, memory);
    return vector_bind_stub(in, d, &stub, masked_evex);
}

bool vector_bind_maskmov(struct insn *in, const struct insn_decode *d)
{
    const ZydisDecodedOperand *memory = stub_memory_operand(d);
    enum vector_gate gate = vector_gate(in, d, VECTOR_AVX);
    struct masked_shape shape = {.kind = MASKED_PLAIN};
    struct stub stub = {.len = 0};
    ZydisMnemonic m = d->z->mnemonic;

    if (gate != GATE_OPEN)
        return gate == GATE_NM;
    if (!memory)
        return false;
    shape.write = memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    shape.element = m == ZYDIS_MNEMONIC_VMASKMOVPD || m == ZYDIS_MNEMONIC_VPMASKMOVQ ? 8 : 4;
    shape.count = shape.lanes = (uint8_t)(memory->size / 8u / shape.element);
    if (shape.count > 32u / shape.element)
        return false;
    in->imm = masked_pack(&shape);
    in->src = in->src2 = 0;
    stub_move(&stub, false, 32, (unsigned)ZydisRegisterGetId(d->operand[1].type ==
                                                ZYDIS_OPERAND_TYPE_REGISTER
                                            ? d->operand[1].reg.value
                                            : d->operand[0].reg.value), 0);
    stub_byte(&stub, 0xc3);
    stub_pad(&stub, MASKED_DATA_ENTRY);
    return stub_instruction(&stub, d) && vector_bind_stub(in, d, &stub, masked_maskmov);
}

bool vector_bind_maskmovq(struct insn *in, const struct insn_decode *d)
{
    bool mmx = d->z->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ;
    bool vex = d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    enum vector_gate gate =
        vector_gate(in, d, mmx ? VECTOR_MMX : vex ? VECTOR_AVX : VECTOR_SSE);
    struct stub stub = {.len = 0};
    unsigned slot = 0;

    if (gate != GATE_OPEN)
        return gate == GATE_NM;
    in->dst = mmx ? 8 : 16;
    for (unsigned i = 0; i < d->z->operand_count && slot < 2; i++) {
        const ZydisDecodedOperand *op = &d->operand[i];

        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            op->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
            stub_move(&stub, false, in->dst, (unsigned)ZydisRegisterGetId(op->reg.value), slot++);
    }
    stub_byte(&stub, 0xc3);
    return slot == 2 && vector_bind_stub(in, d, &stub, masked_bytes);
}
