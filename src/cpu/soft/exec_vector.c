#include "cpu/soft/vector.h"

#include <stddef.h>

#include "cpu/soft/block.h"

#define X87_FSW_ES 0x80u
#define MXCSR_MM (1u << 17) /* AMD: misaligned operands of legacy SSE are fine */

/* ---- what control registers allow ---- */

static void vector_raise_nm(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    soft_raise(cpu, VECTOR_NM);
}

enum vector_gate vector_gate(struct insn *in, const struct insn_decode *d, enum vector_class class)
{
    uint32_t mode = d->mode;
    bool ud = false, nm = mode & SOFT_MODE_TS;

    switch (class) {
    case VECTOR_PLAIN:
        return GATE_OPEN;
    case VECTOR_X87:
        nm = mode & (SOFT_MODE_TS | SOFT_MODE_EM);
        break;
    case VECTOR_WAIT:
        nm = (mode & SOFT_MODE_TS) && (mode & SOFT_MODE_MP);
        break;
    case VECTOR_MMX:
        ud = mode & SOFT_MODE_EM;
        break;
    case VECTOR_SSE:
        ud = (mode & SOFT_MODE_EM) || !(mode & SOFT_MODE_OSFXSR);
        break;
    case VECTOR_AVX:
    case VECTOR_AVX512:
        ud = !(mode & SOFT_MODE_PE) || (mode & SOFT_MODE_VM) ||
             !(mode & (class == VECTOR_AVX ? SOFT_MODE_AVX : SOFT_MODE_AVX512));
        break;
    case VECTOR_XSAVE:
        ud = !(mode & SOFT_MODE_OSXSAVE);
        break;
    default:
        ud = true;
        break;
    }
    if (ud)
        return GATE_UD;
    if (!nm)
        return GATE_OPEN;
    in->fn = vector_raise_nm;
    return GATE_NM;
}

static bool vector_has_register(const struct insn_decode *d, ZydisRegisterClass class)
{
    for (unsigned i = 0; i < d->z->operand_count; i++) {
        const ZydisDecodedOperand *op = &d->operand[i];

        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(op->reg.value) == class)
            return true;
    }
    return false;
}

static enum vector_class vector_classify_legacy(const struct insn_decode *d)
{
    switch (d->z->meta.isa_set) {
    case ZYDIS_ISA_SET_X87:
    case ZYDIS_ISA_SET_FCMOV:
    case ZYDIS_ISA_SET_SSE3X87:
        return d->z->mnemonic == ZYDIS_MNEMONIC_FWAIT ? VECTOR_WAIT : VECTOR_X87;
    case ZYDIS_ISA_SET_PPRO: /* FCOMI and its kin */
        return vector_has_register(d, ZYDIS_REGCLASS_X87) ? VECTOR_X87 : VECTOR_NONE;
    case ZYDIS_ISA_SET_SSEMXCSR:
        return VECTOR_SSE;
    case ZYDIS_ISA_SET_PENTIUMMMX:
    case ZYDIS_ISA_SET_SSE2MMX:
    case ZYDIS_ISA_SET_SSSE3MMX:
    case ZYDIS_ISA_SET_SSE:
    case ZYDIS_ISA_SET_SSE2:
    case ZYDIS_ISA_SET_SSE3:
    case ZYDIS_ISA_SET_SSSE3:
    case ZYDIS_ISA_SET_SSE4:
    case ZYDIS_ISA_SET_SSE42:
    case ZYDIS_ISA_SET_SSE4A:
    case ZYDIS_ISA_SET_AES:
    case ZYDIS_ISA_SET_PCLMULQDQ:
    case ZYDIS_ISA_SET_SHA:
    case ZYDIS_ISA_SET_GFNI:
        break;
    default:
        return VECTOR_NONE;
    }
    if (vector_has_register(d, ZYDIS_REGCLASS_XMM))
        return VECTOR_SSE;
    if (vector_has_register(d, ZYDIS_REGCLASS_MMX) || d->z->mnemonic == ZYDIS_MNEMONIC_EMMS)
        return VECTOR_MMX;
    switch (d->z->mnemonic) {
    case ZYDIS_MNEMONIC_MOVNTI:
    case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE:
    case ZYDIS_MNEMONIC_SFENCE:
        return VECTOR_PLAIN;
    default: /* CVTTSD2SI from memory and the like */
        return VECTOR_SSE;
    }
}

/* Of AVX-512's parts, those that do not come with the others and that Zydis knows. */
static bool vector_has_avx512_part(const struct insn_decode *d, ZydisISASet set)
{
    const struct cpu_model *model = d->cpu->base.vm->model;

    if (set >= ZYDIS_ISA_SET_AVX512_FP16_128 && set <= ZYDIS_ISA_SET_AVX512_FP16_SCALAR)
        return cpu_model_has(model, 7, 'd', 23);
    if (set >= ZYDIS_ISA_SET_AVX512_VP2INTERSECT_128 && set <= ZYDIS_ISA_SET_AVX512_VP2INTERSECT_512)
        return cpu_model_has(model, 7, 'd', 8);
    return set != ZYDIS_ISA_SET_AVX512ER_512 && set != ZYDIS_ISA_SET_AVX512ER_SCALAR &&
           !(set >= ZYDIS_ISA_SET_AVX512PF_512 && set <= ZYDIS_ISA_SET_AVX512_4VNNIW_512);
}

static enum vector_class vector_classify(const struct insn_decode *d)
{
    ZydisISASet set = d->z->meta.isa_set;

    if (d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY)
        return vector_classify_legacy(d);
    if (set >= ZYDIS_ISA_SET_AVX512BW_128 && set <= ZYDIS_ISA_SET_AVX512_VPOPCNTDQ_512)
        return vector_has_avx512_part(d, set) ? VECTOR_AVX512 : VECTOR_NONE;
    if (d->z->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
        return VECTOR_NONE;
    switch (set) {
    case ZYDIS_ISA_SET_AVX:
    case ZYDIS_ISA_SET_AVX2:
    case ZYDIS_ISA_SET_AVX2GATHER:
    case ZYDIS_ISA_SET_AVXAES:
    case ZYDIS_ISA_SET_AVX_GFNI:
    case ZYDIS_ISA_SET_AVX_VNNI:
    case ZYDIS_ISA_SET_F16C:
    case ZYDIS_ISA_SET_FMA:
    case ZYDIS_ISA_SET_VAES:
    case ZYDIS_ISA_SET_VPCLMULQDQ:
    case ZYDIS_ISA_SET_PCLMULQDQ:
    case ZYDIS_ISA_SET_GFNI:
        return VECTOR_AVX;
    default:
        return VECTOR_NONE;
    }
}

/* ---- execution ---- */

static void vector_reg(struct soft_vcpu *cpu, const struct insn *in)
{
    soft_fpu_use(cpu);
    vector_run(cpu, in, 0, NULL);
}

/* in->src2 */
#define VECTOR_LEGACY_SSE 1u /* MXCSR.MM counts */
#define VECTOR_WAITS      2u /* a pending x87 exception comes before faults of memory */

void vector_misaligned(struct soft_vcpu *cpu, const struct insn *in)
{
    uint32_t mxcsr = 0;

    if (in->src2 & VECTOR_LEGACY_SSE) { /* APM vol. 2 11.3.1 */
        soft_fpu_use(cpu);
        __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    }
    if (!(mxcsr & MXCSR_MM))
        soft_raise_gp(cpu, 0);
}

static void vector_wait(struct soft_vcpu *cpu)
{
    uint16_t fsw;

    soft_fpu_use(cpu);
    __asm__ volatile("fnstsw %0" : "=a"(fsw));
    if (unlikely(fsw & X87_FSW_ES))
        soft_raise(cpu, VECTOR_MF);
}

/* in->dst: bytes of the memory operand; in->src: what its address must not have set. */
static inline gva_t vector_address(struct soft_vcpu *cpu, const struct insn *in,
                                   enum soft_access access)
{
    if (in->src2 & VECTOR_WAITS)
        vector_wait(cpu);
    vector_check_aligned(cpu, in);
    return soft_operand(cpu, in, in->dst, access);
}

static void vector_load_bounced(struct soft_vcpu *cpu, const struct insn *in, gva_t gva)
{
    uint8_t bounce[2 * VECTOR_BYTES_MAX] __attribute__((aligned(64)));
    uint8_t *p = bounce + gva % VECTOR_BYTES_MAX; /* as aligned as the guest's */

    soft_load_bytes(cpu, in->seg, gva, p, in->dst);
    soft_fpu_use(cpu);
    vector_run(cpu, in, 0, p);
}

static void vector_load(struct soft_vcpu *cpu, const struct insn *in)
{
    gva_t gva = vector_address(cpu, in, SOFT_READ);
    void *p = soft_pointer(cpu, in->seg, gva, in->dst, SOFT_READ);

    if (unlikely(!p)) {
        vector_load_bounced(cpu, in, gva);
        return;
    }
    soft_fpu_use(cpu);
    vector_run(cpu, in, 0, p);
}

/* An x87 store whose exception is unmasked stores nothing: so what is there comes first. */
static void vector_store_bounced(struct soft_vcpu *cpu, const struct insn *in, gva_t gva,
                                 bool preload)
{
    uint8_t bounce[VECTOR_BYTES_MAX] __attribute__((aligned(64)));

    soft_probe_write(cpu, in->seg, gva, in->dst);
    if (preload)
        soft_load_bytes(cpu, in->seg, gva, bounce, in->dst);
    soft_fpu_use(cpu);
    vector_run(cpu, in, 0, bounce);
    soft_store_bytes(cpu, in->seg, gva, bounce, in->dst);
}

static void vector_store(struct soft_vcpu *cpu, const struct insn *in)
{
    gva_t gva = vector_address(cpu, in, SOFT_WRITE);
    void *p = soft_pointer(cpu, in->seg, gva, in->dst, SOFT_WRITE);

    if (unlikely(!p)) {
        vector_store_bounced(cpu, in, gva, false);
        return;
    }
    soft_fpu_use(cpu);
    vector_run(cpu, in, 0, p);
}

/* After the instruction: had it raised #MF for an earlier one, the pointers would be that one's. */
static inline void vector_x87_note(struct soft_vcpu *cpu, const struct insn *in)
{
    cpu->x87.fip = cpu->s.rip;
    cpu->x87.fcs = cpu->s.seg[SEG_CS].selector;
    cpu->x87.fop = (uint16_t)in->imm;
}

static inline void vector_x87_note_memory(struct soft_vcpu *cpu, const struct insn *in)
{
    vector_x87_note(cpu, in);
    cpu->x87.fdp = insn_ea(cpu, in);
    cpu->x87.fds = cpu->s.seg[in->seg].selector;
}

static void vector_x87_reg(struct soft_vcpu *cpu, const struct insn *in)
{
    vector_reg(cpu, in);
    vector_x87_note(cpu, in);
}

static void vector_x87_load(struct soft_vcpu *cpu, const struct insn *in)
{
    vector_load(cpu, in);
    vector_x87_note_memory(cpu, in);
}

static void vector_x87_store(struct soft_vcpu *cpu, const struct insn *in)
{
    gva_t gva = vector_address(cpu, in, SOFT_WRITE);
    void *p = soft_pointer(cpu, in->seg, gva, in->dst, SOFT_WRITE);

    if (unlikely(!p)) {
        vector_store_bounced(cpu, in, gva, true);
    } else {
        soft_fpu_use(cpu);
        vector_run(cpu, in, 0, p);
    }
    vector_x87_note_memory(cpu, in);
}

static void vector_ldmxcsr(struct soft_vcpu *cpu, const struct insn *in)
{
    gva_t gva = soft_operand(cpu, in, 4, SOFT_READ);
    uint32_t mxcsr = (uint32_t)soft_load(cpu, in->seg, gva, 4);

    soft_fpu_use(cpu);
    if (mxcsr & 0xffff0000u && mxcsr & ~soft_fpu_mxcsr_mask())
        soft_raise_gp(cpu, 0);
    vector_run(cpu, in, 0, &mxcsr);
}

enum vector_form vector_form(const struct insn *in)
{
    if (in->fn == vector_reg || in->fn == vector_load || in->fn == vector_store)
        return VECTOR_FORM_NATIVE;
    if (in->fn == vector_x87_reg || in->fn == vector_x87_load || in->fn == vector_x87_store)
        return VECTOR_FORM_X87;
    return VECTOR_FORM_OTHER;
}

/* ---- binding ---- */

static void vector_code_full(struct soft_vcpu *cpu, const struct insn *in)
{
    (void)in;
    /* soft_block_find() sees that the buffer is full and empties it; then this is decoded anew. */
    cpu->next_rip = cpu->s.rip;
    cpu->end_block = true;
    soft_jump_flush(cpu);
}

bool vector_bind_stub(struct insn *in, const struct insn_decode *d, const struct stub *stub,
                      insn_fn *fn)
{
    if (stub->overflow)
        return false;
    in->aux = soft_code_put(d->cpu->code, stub->bytes, stub->len);
    in->fn = fn;
    if (!in->aux) {
        in->fn = vector_code_full;
        in->flags |= INSN_ENDS_BLOCK;
    }
    return true;
}

bool vector_bind_whole(struct insn *in, const struct insn_decode *d, const struct stub *stub,
                       const ZydisDecodedOperand *memory)
{
    in->dst = (uint8_t)(memory->size / 8u);
    in->src2 = 0; /* EVEX */
    return vector_bind_stub(in, d, stub,
                            memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? vector_store
                                                                              : vector_load);
}

/* x87 instructions that leave the instruction and data pointers alone, SDM vol. 1 8.1.8. */
static bool vector_x87_control(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_FNCLEX:
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FLDCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FWAIT:
    case ZYDIS_MNEMONIC_FNINIT:
        return true;
    default:
        return false;
    }
}

static bool vector_waits(const struct insn_decode *d, enum vector_class class)
{
    if (class == VECTOR_X87)
        return d->z->mnemonic != ZYDIS_MNEMONIC_FNSTCW && d->z->mnemonic != ZYDIS_MNEMONIC_FNSTSW;
    return class == VECTOR_MMX || vector_has_register(d, ZYDIS_REGCLASS_MMX);
}

static uint8_t vector_alignment(const struct insn_decode *d, unsigned size)
{
    switch (d->z->mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
        return 0;
    case ZYDIS_MNEMONIC_VMOVAPS:
    case ZYDIS_MNEMONIC_VMOVAPD:
    case ZYDIS_MNEMONIC_VMOVDQA:
    case ZYDIS_MNEMONIC_VMOVDQA32:
    case ZYDIS_MNEMONIC_VMOVDQA64:
    case ZYDIS_MNEMONIC_VMOVNTPS:
    case ZYDIS_MNEMONIC_VMOVNTPD:
    case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA:
        return (uint8_t)(size - 1);
    default:
        /* SHA differs between vendors: left to the host, whose #GP comes back through trap.c. */
        return d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && size == 16 &&
                       d->z->meta.isa_set != ZYDIS_ISA_SET_SHA
                   ? 15
                   : 0;
    }
}

static insn_fn *vector_choose(const struct insn_decode *d, enum vector_class class,
                              const ZydisDecodedOperand *memory)
{
    bool note = class == VECTOR_X87 && !vector_x87_control(d->z->mnemonic);
    bool write = memory && memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

    if (d->z->mnemonic == ZYDIS_MNEMONIC_LDMXCSR || d->z->mnemonic == ZYDIS_MNEMONIC_VLDMXCSR)
        return vector_ldmxcsr;
    if (!memory)
        return note ? vector_x87_reg : vector_reg;
    if (write)
        return note ? vector_x87_store : vector_store;
    return note ? vector_x87_load : vector_load;
}

static bool vector_bind_rest(struct insn *in, const struct insn_decode *d)
{
    enum vector_class class = vector_classify(d);
    const ZydisDecodedOperand *memory = stub_memory_operand(d);
    struct stub stub = {.len = 0};

    if (class == VECTOR_NONE)
        return false;
    switch (vector_gate(in, d, class)) {
    case GATE_UD:
        return false;
    case GATE_NM:
        return true;
    case GATE_OPEN:
        break;
    }
    if (d->z->meta.category == ZYDIS_CATEGORY_GATHER ||
        d->z->meta.category == ZYDIS_CATEGORY_AVX2GATHER ||
        d->z->meta.category == ZYDIS_CATEGORY_SCATTER)
        return vector_bind_gather(in, d);
    if (memory && d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX &&
        d->bytes[d->z->raw.evex.offset + 3] & 7u)
        return vector_bind_masked(in, d);
    if (!stub_instruction(&stub, d))
        return false;
    if (memory) {
        if (memory->size / 8u == 0 || memory->size / 8u > VECTOR_BYTES_MAX)
            return false;
        in->dst = (uint8_t)(memory->size / 8u);
        in->src = class == VECTOR_X87 ? 0 : vector_alignment(d, in->dst);
        in->src2 = d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY ? VECTOR_LEGACY_SSE : 0;
        if (vector_waits(d, class))
            in->src2 |= VECTOR_WAITS;
    }
    if (class == VECTOR_X87)
        in->imm = (d->z->opcode & 7u) << 8 |
                  (d->z->attributes & ZYDIS_ATTRIB_HAS_MODRM ? d->bytes[d->z->raw.modrm.offset] : 0);
    return vector_bind_stub(in, d, &stub, vector_choose(d, class, memory));
}

static const struct insn_binding vector_bindings[] = {
    {ZYDIS_MNEMONIC_FXSAVE, vector_bind_fxsave},
    {ZYDIS_MNEMONIC_FXSAVE64, vector_bind_fxsave},
    {ZYDIS_MNEMONIC_FXRSTOR, vector_bind_fxsave},
    {ZYDIS_MNEMONIC_FXRSTOR64, vector_bind_fxsave},
    {ZYDIS_MNEMONIC_XSAVE, vector_bind_xsave},
    {ZYDIS_MNEMONIC_XSAVE64, vector_bind_xsave},
    {ZYDIS_MNEMONIC_XSAVEOPT, vector_bind_xsave},
    {ZYDIS_MNEMONIC_XSAVEOPT64, vector_bind_xsave},
    {ZYDIS_MNEMONIC_XSAVEC, vector_bind_xsave},
    {ZYDIS_MNEMONIC_XSAVEC64, vector_bind_xsave},
    {ZYDIS_MNEMONIC_XRSTOR, vector_bind_xsave},
    {ZYDIS_MNEMONIC_XRSTOR64, vector_bind_xsave},
    {ZYDIS_MNEMONIC_FNSTENV, vector_bind_x87env},
    {ZYDIS_MNEMONIC_FLDENV, vector_bind_x87env},
    {ZYDIS_MNEMONIC_FNSAVE, vector_bind_x87env},
    {ZYDIS_MNEMONIC_FRSTOR, vector_bind_x87env},
    {ZYDIS_MNEMONIC_MASKMOVQ, vector_bind_maskmovq},
    {ZYDIS_MNEMONIC_MASKMOVDQU, vector_bind_maskmovq},
    {ZYDIS_MNEMONIC_VMASKMOVDQU, vector_bind_maskmovq},
    {ZYDIS_MNEMONIC_VMASKMOVPS, vector_bind_maskmov},
    {ZYDIS_MNEMONIC_VMASKMOVPD, vector_bind_maskmov},
    {ZYDIS_MNEMONIC_VPMASKMOVD, vector_bind_maskmov},
    {ZYDIS_MNEMONIC_VPMASKMOVQ, vector_bind_maskmov},
    {ZYDIS_MNEMONIC_INVALID, NULL},
};

const struct insn_family insn_family_vector = {
    .name = "vector",
    .bindings = vector_bindings,
    .bind_rest = vector_bind_rest,
};
