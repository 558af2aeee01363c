#include <string.h>

#include "cpu/soft/fpu.h"
#include "x86/arch.h"

#include "tests/insn/generate.h"

const char *const diff_family_names[DIFF_FAMILIES] = {
    [DIFF_INTEGER] = "integer", [DIFF_X87] = "x87", [DIFF_MMX] = "mmx",
    [DIFF_SSE] = "sse",         [DIFF_AVX] = "avx", [DIFF_AVX512] = "avx512",
};

#define GENERATE_TRIES 600u

uint64_t diff_random(struct diff_random *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15ull;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

unsigned generate_below(struct diff_random *r, unsigned n)
{
    return (unsigned)(diff_random(r) >> 32) % n;
}

void diff_memory_fill(uint8_t *data, uint32_t size, uint64_t seed)
{
    struct diff_random r = {seed};
    uint64_t pool[64];

    for (unsigned i = 0; i < 64; i++)
        pool[i] = diff_random(&r);
    for (uint32_t i = 0; i < size; i += 8) {
        uint64_t value = pool[(i >> 3) & 63] + i;

        memcpy(data + i, &value, 8);
    }
}

/* ---- what may run ---- */

uint64_t diff_host_states(void)
{
    return soft_fpu_host_xcr0() & (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512);
}

/* Instructions that the host lacks are #UD on both sides; only what has registers of its own is left out whole. */
unsigned diff_host_families(void)
{
    uint64_t states = diff_host_states();
    unsigned families = (1u << DIFF_FAMILIES) - 1;

    if (!(states & XCR0_AVX))
        families &= ~(1u << DIFF_AVX);
    if ((states & XCR0_AVX512) != XCR0_AVX512)
        families &= ~(1u << DIFF_AVX512);
    return families;
}

unsigned diff_xsave_size(void)
{
    unsigned families = diff_host_families();

    if (families & 1u << DIFF_AVX512)
        return 2432; /* to the end of ZMM16-31 (SDM vol. 1 13.4, 13.5) */
    return families & 1u << DIFF_AVX ? 832 : 576;
}

static bool generate_isa_vector(ZydisISASet set)
{
    switch (set) {
    case ZYDIS_ISA_SET_AVX: case ZYDIS_ISA_SET_AVX2: case ZYDIS_ISA_SET_AVX2GATHER:
    case ZYDIS_ISA_SET_AVXAES: case ZYDIS_ISA_SET_AVX_GFNI: case ZYDIS_ISA_SET_F16C:
    case ZYDIS_ISA_SET_FMA: case ZYDIS_ISA_SET_VAES: case ZYDIS_ISA_SET_VPCLMULQDQ:
        return true;
    default:
        return false;
    }
}

static int generate_legacy_family(const ZydisDecodedInstruction *z)
{
    switch (z->meta.isa_set) {
    case ZYDIS_ISA_SET_I86: case ZYDIS_ISA_SET_I186: case ZYDIS_ISA_SET_I386:
    case ZYDIS_ISA_SET_I486: case ZYDIS_ISA_SET_I486REAL: case ZYDIS_ISA_SET_PENTIUMREAL:
    case ZYDIS_ISA_SET_PPRO: case ZYDIS_ISA_SET_CMOV: case ZYDIS_ISA_SET_LONGMODE:
    case ZYDIS_ISA_SET_CMPXCHG16B: case ZYDIS_ISA_SET_LAHF: case ZYDIS_ISA_SET_FAT_NOP:
    case ZYDIS_ISA_SET_LZCNT: case ZYDIS_ISA_SET_POPCNT: case ZYDIS_ISA_SET_ADOX_ADCX:
    case ZYDIS_ISA_SET_MOVBE: case ZYDIS_ISA_SET_BMI1: case ZYDIS_ISA_SET_BMI2:
        return DIFF_INTEGER;
    case ZYDIS_ISA_SET_X87: case ZYDIS_ISA_SET_FCMOV: case ZYDIS_ISA_SET_SSE3X87:
        return DIFF_X87;
    case ZYDIS_ISA_SET_PENTIUMMMX: case ZYDIS_ISA_SET_SSE2MMX: case ZYDIS_ISA_SET_SSSE3MMX:
        return DIFF_MMX;
    case ZYDIS_ISA_SET_SSE: case ZYDIS_ISA_SET_SSE2: case ZYDIS_ISA_SET_SSE3:
    case ZYDIS_ISA_SET_SSSE3: case ZYDIS_ISA_SET_SSE4: case ZYDIS_ISA_SET_SSE42:
    case ZYDIS_ISA_SET_SSE4A: case ZYDIS_ISA_SET_AES: case ZYDIS_ISA_SET_PCLMULQDQ:
    case ZYDIS_ISA_SET_SHA: case ZYDIS_ISA_SET_GFNI: case ZYDIS_ISA_SET_SSEMXCSR:
        return DIFF_SSE;
    default:
        return -1;
    }
}

static int generate_family(const ZydisDecodedInstruction *z)
{
    if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
        return DIFF_AVX512;
    if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        if (z->meta.category == ZYDIS_CATEGORY_KMASK)
            return DIFF_AVX512;
        if (generate_isa_vector(z->meta.isa_set))
            return DIFF_AVX;
        return z->meta.isa_set == ZYDIS_ISA_SET_BMI1 || z->meta.isa_set == ZYDIS_ISA_SET_BMI2
                   ? DIFF_INTEGER : -1;
    }
    return z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY ? generate_legacy_family(z) : -1;
}

#define GENERATE_FLAT (ZYDIS_ATTRIB_HAS_SEGMENT_CS | ZYDIS_ATTRIB_HAS_SEGMENT_SS |                 \
                       ZYDIS_ATTRIB_HAS_SEGMENT_DS | ZYDIS_ATTRIB_HAS_SEGMENT_ES)

/* What would leave the stream, depend on the kernel, or differ from run to run. */
static bool generate_denied(const ZydisDecodedInstruction *z)
{
    if (z->attributes & (ZYDIS_ATTRIB_IS_PRIVILEGED | GENERATE_FLAT))
        return true;
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_INTERRUPT: case ZYDIS_CATEGORY_IO: case ZYDIS_CATEGORY_IOSTRINGOP:
    case ZYDIS_CATEGORY_SYSCALL: case ZYDIS_CATEGORY_SYSRET: case ZYDIS_CATEGORY_SYSTEM:
    case ZYDIS_CATEGORY_RET: case ZYDIS_CATEGORY_SEGOP:
        return true;
    default:
        break;
    }
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_POPF: case ZYDIS_MNEMONIC_POPFD: case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_CPUID: case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_CLI: case ZYDIS_MNEMONIC_LAR: case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR: case ZYDIS_MNEMONIC_VERW: case ZYDIS_MNEMONIC_XLAT:
    case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FNSAVE: /* they show the x87 pointers */
    case ZYDIS_MNEMONIC_RDPMC: case ZYDIS_MNEMONIC_PUSHF: case ZYDIS_MNEMONIC_PUSHFQ:
        return true;
    default:
        return false;
    }
}

/* A branch is only good with a displacement to patch, and at its natural size. */
static bool generate_branch_good(const ZydisDecodedInstruction *z)
{
    if (z->meta.branch_type == ZYDIS_BRANCH_TYPE_NONE)
        return true;
    return z->raw.imm[0].is_relative && z->operand_width != 16 &&
           !(z->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE);
}

/* ---- operands ---- */

static bool generate_is_in(uint16_t set, ZydisRegister reg)
{
    return reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15 &&
           set >> (reg - ZYDIS_REGISTER_RAX) & 1;
}

/* Its displacement can be made to lead to the data (generate_patch_memory). */
static bool generate_absolute(const ZydisDecodedOperand *op)
{
    return op->mem.base == ZYDIS_REGISTER_RIP ||
           (op->mem.base == ZYDIS_REGISTER_NONE && op->mem.index == ZYDIS_REGISTER_NONE);
}

static bool generate_memory_good(const struct generate *g, const ZydisDecodedOperand *op)
{
    if (op->mem.type != ZYDIS_MEMOP_TYPE_VSIB && generate_absolute(op))
        return op->mem.disp.has_displacement;
    if (!generate_is_in(g->pointers, op->mem.base))
        return false;
    if (op->mem.disp.value < -8192 || op->mem.disp.value > 8192)
        return false;
    return op->mem.type == ZYDIS_MEMOP_TYPE_VSIB || op->mem.index == ZYDIS_REGISTER_NONE ||
           generate_is_in(g->indexes, op->mem.index);
}

static bool generate_operand_good(const struct generate *g, const ZydisDecodedOperand *op)
{
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
        return ZydisRegisterGetClass(op->reg.value) != ZYDIS_REGCLASS_SEGMENT ||
               op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;
    if (op->type == ZYDIS_OPERAND_TYPE_POINTER)
        return false;
    if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.type == ZYDIS_MEMOP_TYPE_AGEN ||
        op->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
        return true;
    return generate_memory_good(g, op);
}

/* It would spoil an address that later instructions use. */
static bool generate_spoils(const struct generate *g, const ZydisDecodedOperand *op)
{
    ZydisRegister reg = op->reg.value;

    if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN ||
        !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
        return false;
    reg = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    return generate_is_in(g->pointers | g->indexes, reg);
}

/* EVEX VPINSRD from ESP after a POP inserts a stale ESP on Zen 4: not ours to follow. */
static bool generate_is_rsp(const ZydisDecodedOperand *op)
{
    return op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
           (op->reg.value == ZYDIS_REGISTER_RSP || op->reg.value == ZYDIS_REGISTER_ESP);
}

/* ---- bytes ---- */

static unsigned generate_prefix(uint8_t *b, struct diff_random *r, bool vector)
{
    static const uint8_t prefixes[] = {0x66, 0xf2, 0xf3, 0xf0};
    unsigned n = 0;

    if (generate_below(r, 12) == 0) /* FS, GS */
        b[n++] = (uint8_t)(0x64 + generate_below(r, 2));

    if (generate_below(r, vector ? 3 : 2) != 0 || vector)
        if (generate_below(r, 4) != 0)
            b[n++] = prefixes[generate_below(r, vector ? 3 : 4)];
    if (generate_below(r, 2))
        b[n++] = (uint8_t)(0x40 | generate_below(r, 16));
    return n;
}

static unsigned generate_vex(uint8_t *b, struct diff_random *r)
{
    unsigned n = 0;
    uint64_t bits = diff_random(r);

    if (generate_below(r, 3) == 0) {
        b[n++] = 0xc5;
        b[n++] = (uint8_t)bits;
    } else {
        b[n++] = 0xc4;
        b[n++] = (uint8_t)((bits & 0xe0) | (1 + generate_below(r, 3)));
        b[n++] = (uint8_t)(bits >> 8);
    }
    if (bits >> 40 & 1) /* many instructions want vvvv 1111 */
        b[n - 1] |= 0x78;
    return n;
}

static unsigned generate_evex(uint8_t *b, struct diff_random *r)
{
    uint64_t bits = diff_random(r);

    b[0] = 0x62;
    b[1] = (uint8_t)((bits & 0xf0) | (1 + generate_below(r, 3)));
    b[2] = (uint8_t)((bits >> 8) | 0x04 | (bits >> 40 & 1 ? 0x78 : 0));
    b[3] = (uint8_t)((bits >> 16) | (bits >> 40 & 1 ? 0x08 : 0));
    if (generate_below(r, 2))
        b[3] &= 0xf8; /* no mask */
    if (generate_below(r, 2))
        b[3] &= 0x7f;
    return 4;
}

/* ModRM, perhaps SIB, so that many are in the data: [reg + disp8], [reg + index * n + disp8], [rip + disp32]. */
static void generate_address(const struct generate *g, uint8_t *modrm)
{
    unsigned base = generate_below(g->r, 16), form = generate_below(g->r, 16);

    while (!(g->pointers >> base & 1))
        base = generate_below(g->r, 16);
    if (form < 6)
        *modrm = (uint8_t)((*modrm & 0x38) | 0x40 | (base & 7));
    else if (form == 6)
        *modrm = (uint8_t)((*modrm & 0x38) | 0x44);
    else if (form == 7)
        *modrm = (uint8_t)((*modrm & 0x38) | 0x05);
    if ((*modrm & 0xc7) == 0x44)
        modrm[1] = (uint8_t)((modrm[1] & 0xf8) | (base & 7));
}

static void generate_bytes(const struct generate *g, uint8_t *b, unsigned family)
{
    struct diff_random *r = g->r;
    static const uint8_t escapes[] = {0, 0x38, 0x3a};
    unsigned n = 0, escape;

    for (unsigned i = 0; i < 16; i += 8) {
        uint64_t value = diff_random(r);

        memcpy(b + i, &value, 8);
    }
    switch (family) {
    case DIFF_X87:
        b[0] = (uint8_t)(generate_below(r, 40) ? 0xd8 + generate_below(r, 8) : 0x9b);
        n = 0;
        break;
    case DIFF_AVX:
        n = generate_vex(b, r);
        break;
    case DIFF_AVX512:
        n = generate_below(r, 12) ? generate_evex(b, r) : generate_vex(b, r);
        break;
    default:
        if (family == DIFF_INTEGER && generate_below(r, 12) == 0) {
            n = generate_vex(b, r);
            break;
        }
        n = generate_prefix(b, r, family != DIFF_INTEGER);
        if (family != DIFF_INTEGER || generate_below(r, 3) == 0) {
            b[n++] = 0x0f;
            escape = escapes[generate_below(r, family == DIFF_INTEGER ? 2 : 3)];
            if (escape && generate_below(r, 2))
                b[n++] = (uint8_t)escape;
        }
        break;
    }
    generate_address(g, b + n + 1);
}

static bool generate_good(const struct generate *g, const struct generate_insn *i, unsigned family)
{
    const ZydisDecodedInstruction *z = &i->z;
    bool spoil = generate_below(g->r, 8) == 0;

    if (generate_family(z) != (int)family || generate_denied(z) || !generate_branch_good(z))
        return false;
    for (unsigned j = 0; j < z->operand_count; j++) {
        if (!generate_operand_good(g, &i->operand[j]) ||
            (family == DIFF_AVX512 && generate_is_rsp(&i->operand[j])) ||
            (!spoil && generate_spoils(g, &i->operand[j])))
            return false;
    }
    return true;
}

unsigned generate_family_among(const struct generate *g, unsigned families)
{
    unsigned family;

    do
        family = generate_below(g->r, DIFF_FAMILIES);
    while (!(families & 1u << family));
    return family;
}

bool generate_insn(const struct generate *g, struct generate_insn *i, unsigned family)
{
    i->family = (uint8_t)family;
    for (unsigned k = 0; k < GENERATE_TRIES; k++) {
        generate_bytes(g, i->bytes, family);
        if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(&g->decoder, i->bytes, 15, &i->z, i->operand)) &&
            generate_good(g, i, family))
            return true;
    }
    return false;
}

/* ---- state ---- */

static uint64_t generate_value(struct diff_random *r)
{
    static const uint64_t edges[] = {0, 1, ~0ull, 1ull << 63, (1ull << 63) - 1, 0x80, 0x7fff,
                                     0x80000000, 0xffffffff, 0x3ff0000000000000,
                                     0x7ff8000000000000, 0x3f8000003f800000, 0x7f8000017f800000};
    uint64_t value = diff_random(r);

    switch (generate_below(r, 5)) {
    case 0: return edges[generate_below(r, sizeof(edges) / sizeof(edges[0]))];
    case 1: return value & 0xff;
    case 2: return value & 0x000001ff000001ffull; /* good indexes of gathers */
    default: return value;
    }
}

static uint64_t generate_pointer(struct diff_random *r)
{
    uint64_t at = DIFF_DATA + generate_below(r, DIFF_DATA_SIZE - 256);

    if (generate_below(r, 4))
        at &= ~63ull;
    if (generate_below(r, 10) == 0) /* near an edge */
        at = DIFF_DATA + 0x1000 * generate_below(r, 4) - generate_below(r, 80);
    return at;
}

static void generate_xsave(uint8_t *x, struct diff_random *r)
{
    uint16_t fcw = 0x37f, fsw = (uint16_t)(generate_below(r, 8) << 11);
    uint32_t mxcsr = 0x1f80;
    uint64_t bv = diff_host_states();

    memset(x, 0, CPU_XSAVE_SIZE);
    for (unsigned i = 160; i < 416; i += 8) {
        uint64_t value = generate_value(r);

        memcpy(x + i, &value, 8);
    }
    for (unsigned i = 0; i < 8; i++) {
        uint64_t mantissa = generate_value(r);
        uint16_t exponent = (uint16_t)(0x3fff - 20 + generate_below(r, 40) +
                                       (generate_below(r, 2) << 15));

        mantissa |= generate_below(r, 8) ? 1ull << 63 : 0;
        exponent = generate_below(r, 10) ? exponent : (uint16_t)diff_random(r);
        memcpy(x + 32 + 16 * i, &mantissa, 8);
        memcpy(x + 40 + 16 * i, &exponent, 2);
    }
    for (unsigned i = 576; i < diff_xsave_size(); i += 8) {
        uint64_t value = generate_value(r);

        memcpy(x + i, &value, 8);
    }
    if (generate_below(r, 4) == 0)
        fcw = (uint16_t)(0x40 | (diff_random(r) & 0xf3f));
    if (generate_below(r, 4) == 0)
        mxcsr = (uint32_t)(diff_random(r) & 0xffff);
    else
        mxcsr |= generate_below(r, 4) << 13;
    x[4] = (uint8_t)(generate_below(r, 2) ? 0xff : generate_below(r, 256));
    memcpy(x, &fcw, 2);
    memcpy(x + 2, &fsw, 2);
    memcpy(x + 24, &mxcsr, 4);
    memcpy(x + 512, &bv, 8);
}

/* A third of the registers hold addresses, a few small numbers: each register is everything now and then, but the
 * stack pointer and what string instructions need. */
static void generate_roles(struct generate *g)
{
    g->pointers = (uint16_t)(1u << GPR_RSP | 1u << GPR_RBP | 1u << GPR_RSI | 1u << GPR_RDI);
    for (unsigned i = 0; i < 5; i++)
        g->pointers |= (uint16_t)(1u << generate_below(g->r, 16));
    g->pointers &= (uint16_t)~(1u << GPR_RCX);
    g->indexes = 1u << GPR_RCX;
    for (unsigned i = 0; i < 3; i++)
        g->indexes |= (uint16_t)(1u << generate_below(g->r, 16));
    g->indexes &= (uint16_t)~g->pointers;
}

static void generate_state(struct generate *g, struct diff_case *c)
{
    struct diff_random *r = g->r;

    for (unsigned i = 0; i < 16; i++) {
        c->gpr[i] = generate_value(r);
        if (g->pointers >> i & 1)
            c->gpr[i] = generate_pointer(r);
        else if (g->indexes >> i & 1 && generate_below(r, 8))
            c->gpr[i] = generate_below(r, 128);
    }
    c->gpr[GPR_RSP] = DIFF_DATA + 0x1000 + (diff_random(r) & 0x7f8);
    if (generate_below(r, 32) == 0)
        c->gpr[GPR_RSP] = generate_pointer(r);
    if (generate_below(r, 6) == 0) /* shifts, repeats by nothing */
        c->gpr[GPR_RCX] = 0;
    c->fs_base = diff_random(r) & 0x1ff;
    c->gs_base = diff_random(r) & 0xff8;
    c->rflags = 0x202 | (diff_random(r) & RFLAGS_ARITH);
    if (generate_below(r, 16) == 0)
        c->rflags |= RFLAGS_DF;
    c->memory_seed = diff_random(r) & 0xff;
    generate_xsave(c->xsave, r);
}

/* ---- streams ---- */

void stream_bytes(struct generate_stream *s, const void *bytes, unsigned len, unsigned family)
{
    memcpy(s->c->code + s->at, bytes, len);
    s->c->insn[s->c->count++] = (struct diff_insn){(uint16_t)s->at, (uint8_t)len, (uint8_t)family};
    s->at += len;
}

/* An operand that names no register is somewhere in the data. */
static void generate_patch_memory(const struct generate_stream *s, struct generate_insn *i)
{
    const ZydisDecodedInstruction *z = &i->z;

    for (unsigned j = 0; j < z->operand_count_visible; j++) {
        const ZydisDecodedOperand *op = &i->operand[j];
        uint64_t to = DIFF_DATA - 8 + generate_below(s->g->r, DIFF_DATA_SIZE + 16);

        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.type != ZYDIS_MEMOP_TYPE_MEM ||
            !generate_absolute(op))
            continue;
        if (op->mem.base == ZYDIS_REGISTER_RIP)
            to -= DIFF_CODE + s->at + z->length;
        memcpy(i->bytes + z->raw.disp.offset, &to, z->raw.disp.size / 8u);
    }
}

/* Counts that matter, more often than chance would have them. */
static void generate_patch_shift(const struct generate_stream *s, struct generate_insn *i)
{
    static const uint8_t counts[] = {0, 1, 8, 31, 32, 63, 64};
    ZydisInstructionCategory category = i->z.meta.category;

    if ((category != ZYDIS_CATEGORY_SHIFT && category != ZYDIS_CATEGORY_ROTATE) ||
        i->z.raw.imm[0].size != 8 || generate_below(s->g->r, 2))
        return;
    i->bytes[i->z.raw.imm[0].offset] = counts[generate_below(s->g->r, sizeof(counts))];
}

/* A branch goes over the instruction after it, which is `skip` bytes long. */
void stream_patch_branch(struct generate_stream *s, unsigned skip)
{
    if (s->branch_at >= 0)
        s->c->code[(unsigned)s->branch_at + s->branch_imm] = (uint8_t)skip;
    s->branch_at = -1;
}

void stream_insn(struct generate_stream *s, struct generate_insn *i)
{
    unsigned at = s->at;

    generate_patch_memory(s, i);
    generate_patch_shift(s, i);
    stream_patch_branch(s, i->z.length);
    if (i->z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE) {
        s->branch_at = (int)at;
        s->branch_imm = i->z.raw.imm[0].offset;
        memset(i->bytes + s->branch_imm, 0, i->z.raw.imm[0].size / 8u);
    }
    stream_bytes(s, i->bytes, i->z.length, i->family);
}

static bool touches_stack(const struct generate_insn *i)
{
    for (unsigned j = 0; j < i->z.operand_count; j++) {
        const ZydisDecodedOperand *op = &i->operand[j];

        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, op->reg.value) ==
                ZYDIS_REGISTER_RSP)
            return true;
    }
    return i->z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE;
}

/* call f; jmp end; f: an instruction; ret; end: */
static void stream_call(struct generate_stream *s, struct generate_insn *i)
{
    static const uint8_t call[] = {0xe8, 2, 0, 0, 0}, ret[] = {0xc3}, ret_more[] = {0xc2, 8, 0};
    uint8_t jump[] = {0xeb, 0};
    bool more = generate_below(s->g->r, 4) == 0;

    if (touches_stack(i) || s->c->count + 4 > DIFF_INSNS - 2)
        return;
    jump[1] = (uint8_t)(i->z.length + (more ? sizeof(ret_more) : sizeof(ret)));
    stream_patch_branch(s, sizeof(call));
    stream_bytes(s, call, sizeof(call), DIFF_INTEGER);
    stream_bytes(s, jump, sizeof(jump), DIFF_INTEGER);
    stream_insn(s, i);
    stream_bytes(s, more ? ret_more : ret, more ? sizeof(ret_more) : sizeof(ret), DIFF_INTEGER);
}

/* dec dword [DIFF_COUNTER]; jnz to the beginning */
static void stream_repeat(struct generate_stream *s)
{
    uint8_t dec[] = {0xff, 0x0d, 0, 0, 0, 0}, jnz[] = {0x0f, 0x85, 0, 0, 0, 0};
    int32_t counter = (int32_t)(DIFF_COUNTER - (DIFF_CODE + s->at + sizeof(dec)));
    int32_t start = -(int32_t)(s->at + sizeof(dec) + sizeof(jnz));

    memcpy(dec + 2, &counter, sizeof(counter));
    memcpy(jnz + 2, &start, sizeof(start));
    stream_patch_branch(s, 0);
    stream_bytes(s, dec, sizeof(dec), DIFF_INTEGER);
    stream_bytes(s, jnz, sizeof(jnz), DIFF_INTEGER);
}

void diff_generate(struct diff_case *c, struct diff_random *r, unsigned families)
{
    struct generate g = {.r = r};
    struct generate_stream s = {.g = &g, .c = c, .branch_at = -1};
    unsigned want = 4 + generate_below(r, DIFF_INSNS - 7);
    struct generate_insn insn;
    bool loop;

    ZydisDecoderInit(&g.decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    memset(c->code, 0xcc, sizeof(c->code));
    c->count = 0;
    generate_roles(&g);
    generate_state(&g, c);
    loop = generate_below(r, 4) == 0;
    if (loop)
        stream_loop(&s, families);
    while (c->count < want) {
        if (!generate_insn(&g, &insn, generate_family_among(&g, families)))
            continue;
        if (generate_below(r, 24) == 0)
            stream_call(&s, &insn);
        else
            stream_insn(&s, &insn);
    }
    c->repeats = 1 + generate_below(r, 4);
    if (!loop && generate_below(r, 3) == 0) /* a loop's counter is used up */
        stream_repeat(&s);
}
