/*
 * Gathers and scatters: one element at a time, lowest first. After a fault the elements before are
 * done and their mask bits clear, so that the instruction can start again (SDM vol. 2C, VPGATHERDD).
 */
#include "cpu/soft/vector.h"

/* The code: at 0 stores index, data and mask to slots 0 to 2; at the second entry loads data and mask. */
#define GATHER_LOAD_ENTRY 64u

struct gather_shape {
    uint8_t count, element, index;   /* elements; bytes of a data and of an index element */
    bool k, scatter;                 /* the mask is an opmask register */
};

struct gather_slots {
    uint8_t index[64], data[64];
    union {
        uint8_t vector[64];
        uint64_t k;
    } mask;
} __attribute__((aligned(64)));

static uint64_t gather_pack(const struct gather_shape *s)
{
    return s->count | (uint64_t)s->element << 8 | (uint64_t)s->index << 16 |
           (uint64_t)s->k << 24 | (uint64_t)s->scatter << 25;
}

static struct gather_shape gather_unpack(uint64_t v)
{
    return (struct gather_shape){(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16),
                                 v >> 24 & 1, v >> 25 & 1};
}

static bool gather_active(const struct gather_shape *s, const struct gather_slots *slots, unsigned i)
{
    if (s->k)
        return slots->mask.k >> i & 1;
    return slots->mask.vector[(i + 1) * s->element - 1] & 0x80u;
}

static void gather_done(const struct gather_shape *s, struct gather_slots *slots, unsigned i)
{
    if (s->k)
        slots->mask.k &= ~(1ull << i);
    else
        soft_zero(slots->mask.vector + i * s->element, s->element);
}

static gva_t gather_address(struct soft_vcpu *cpu, const struct insn *in,
                            const struct gather_shape *s, const struct gather_slots *slots,
                            unsigned i)
{
    int64_t index = s->index == 8 ? ((const int64_t *)(const void *)slots->index)[i]
                                  : ((const int32_t *)(const void *)slots->index)[i];
    uint64_t ea = insn_ea(cpu, in) + ((uint64_t)index << in->scale);

    if (in->addrsize == 4)
        ea = (uint32_t)ea;
    return soft_linear(cpu, in->seg, ea, s->element, s->scatter ? SOFT_WRITE : SOFT_READ);
}

static void gather_commit(struct soft_vcpu *cpu, const struct insn *in, struct gather_slots *slots)
{
    soft_fpu_use(cpu);
    vector_run(cpu, in, GATHER_LOAD_ENTRY, slots);
}

static void gather_clear_above(const struct gather_shape *s, struct gather_slots *slots)
{
    unsigned used = (unsigned)s->count * s->element;

    soft_zero(slots->data + used, sizeof(slots->data) - used);
}

static void gather_run(struct soft_vcpu *cpu, const struct insn *in)
{
    struct gather_shape s = gather_unpack(in->imm);
    struct gather_slots slots;
    bool dirty = false;

    soft_fpu_use(cpu);
    vector_run(cpu, in, 0, &slots);
    if (s.k && !s.scatter) /* EVEX clears what is above even when a fault stops it half-way */
        gather_clear_above(&s, &slots);
    for (unsigned i = 0; i < s.count; i++) {
        uint64_t value = 0;
        gva_t gva;

        if (!gather_active(&s, &slots, i)) {
            if (!s.k) { /* its other mask bits go all the same */
                gather_done(&s, &slots, i);
                dirty = true;
            }
            continue;
        }
        if (dirty) /* the next access may fault and not come back */
            gather_commit(cpu, in, &slots);
        gva = gather_address(cpu, in, &s, &slots, i);
        if (s.scatter) {
            soft_copy(&value, slots.data + i * s.element, s.element);
            soft_store(cpu, in->seg, gva, s.element, value);
        } else {
            value = soft_load(cpu, in->seg, gva, s.element);
            soft_copy(slots.data + i * s.element, &value, s.element);
        }
        gather_done(&s, &slots, i);
        dirty = true;
    }
    if (!s.scatter)
        gather_clear_above(&s, &slots);
    soft_zero(&slots.mask, sizeof(slots.mask));
    gather_commit(cpu, in, &slots);
}

static unsigned gather_mask_register(const struct insn_decode *d)
{
    if (d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
        return d->bytes[d->z->raw.evex.offset + 3] & 7u;
    return (unsigned)ZydisRegisterGetId(d->operand[2].reg.value);
}

static void gather_code(struct stub *stub, const struct insn_decode *d, unsigned data,
                        unsigned index, bool scatter)
{
    bool k = d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    /* Whole registers where there are such: a fault half-way leaves the parts above alone. */
    bool whole = k || soft_fpu_host_xcr0() & XCR0_HI16_ZMM;
    unsigned width = whole ? 64 : 32, mask = gather_mask_register(d);

    for (unsigned load = 0; load < 2; load++) {
        if (!load)
            stub_move(stub, false, width, index, 0);
        if (!load || !scatter)
            stub_move(stub, load, width, data, 1);
        if (k)
            stub_move_mask(stub, load, mask, 2);
        else
            stub_move(stub, load, width, mask, 2);
        stub_byte(stub, 0xc3);
        if (!load)
            stub_pad(stub, GATHER_LOAD_ENTRY);
    }
}

bool vector_bind_gather(struct insn *in, const struct insn_decode *d)
{
    bool evex = d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    const uint8_t *p = d->bytes + (evex ? d->z->raw.evex.offset : d->z->raw.vex.offset);
    struct gather_shape s = {.k = evex};
    unsigned bytes, data, index = 0;
    struct stub stub = {.len = 0};

    s.scatter = d->z->opcode >= 0xa0;
    s.index = d->z->opcode & 1u ? 8 : 4;
    s.element = p[2] & 0x80u ? 8 : 4; /* W */
    bytes = evex ? 16u << (p[3] >> 5 & 3u) : 16u << (p[2] >> 2 & 1u);
    s.count = (uint8_t)(bytes / (s.index > s.element ? s.index : s.element));
    for (unsigned i = 0; i < d->z->operand_count; i++) {
        if (d->operand[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            index = (unsigned)ZydisRegisterGetId(d->operand[i].mem.index);
    }
    data = d->bytes[d->z->raw.modrm.offset] >> 3 & 7u;
    data |= evex ? ((p[1] & 0x80u) ? 0 : 8u) | ((p[1] & 0x10u) ? 0 : 16u)
                 : (p[1] & 0x80u) ? 0 : 8u;
    if (!(d->mode & SOFT_MODE_CODE64))
        data &= 7u;
    if (bytes > 64 || (evex && gather_mask_register(d) == 0))
        return false;
    in->index = INSN_REG_NONE;
    in->imm = gather_pack(&s);
    gather_code(&stub, d, data, index, s.scatter);
    return vector_bind_stub(in, d, &stub, gather_run);
}
