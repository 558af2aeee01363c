/* MOV between general registers, memory and immediates; MOVZX, MOVSX, MOVSXD; LEA; CMOVcc; SETcc;
 * CBW to CQO; BSWAP; MOVBE; XLAT. MOV with segment, control or debug registers is not here. */
#include "cpu/soft/exec_integer.h"

#define SIZES(M) M(8) M(16) M(32) M(64)

/* ---- MOV ---- */

#define MOV_MEM_HANDLERS(bits, form)                                                               \
    HANDLER(mov_rm_##bits##form)                                                                   \
    {                                                                                              \
        gva_t gva = ADDR_##form(bits / 8, SOFT_READ);                                              \
        gpr_write_##bits(cpu, in->dst, LOAD(bits, gva));                                           \
    }                                                                                              \
    HANDLER(mov_mr_##bits##form)                                                                   \
    {                                                                                              \
        gva_t gva = ADDR_##form(bits / 8, SOFT_WRITE);                                             \
        STORE(bits, gva, GPR(bits, in->src));                                                      \
    }                                                                                              \
    HANDLER(mov_mi_##bits##form)                                                                   \
    {                                                                                              \
        gva_t gva = ADDR_##form(bits / 8, SOFT_WRITE);                                             \
        STORE(bits, gva, (uint##bits##_t)in->imm);                                                 \
    }

#define MOV_HANDLERS(bits)                                                                         \
    HANDLER(mov_rr_##bits)                                                                         \
    {                                                                                              \
        gpr_write_##bits(cpu, in->dst, GPR(bits, in->src));                                        \
    }                                                                                              \
    HANDLER(mov_ri_##bits)                                                                         \
    {                                                                                              \
        gpr_write_##bits(cpu, in->dst, (uint##bits##_t)in->imm);                                   \
    }                                                                                              \
    MOV_MEM_HANDLERS(bits, g)                                                                      \
    MOV_MEM_HANDLERS(bits, b)                                                                      \
    MOV_MEM_HANDLERS(bits, x)

SIZES(MOV_HANDLERS)

enum { MOV_RR, MOV_RI, MOV_RM, MOV_MR = MOV_RM + EA_FORMS, MOV_MI = MOV_MR + EA_FORMS,
       MOV_FORMS = MOV_MI + EA_FORMS };

#define MOV_ROW(bits)                                                                              \
    {                                                                                              \
        mov_rr_##bits, mov_ri_##bits,                                                              \
        mov_rm_##bits##g, mov_rm_##bits##b, mov_rm_##bits##x,                                      \
        mov_mr_##bits##g, mov_mr_##bits##b, mov_mr_##bits##x,                                      \
        mov_mi_##bits##g, mov_mi_##bits##b, mov_mi_##bits##x,                                      \
    }

static insn_fn *const mov_handlers[4][MOV_FORMS] = {MOV_ROW(8), MOV_ROW(16), MOV_ROW(32),
                                                    MOV_ROW(64)};

bool integer_bind_mov(struct insn *in, const struct insn_decode *d)
{
    unsigned form;

    if (bind_is_gpr(d, 0)) {
        if (bind_is_gpr(d, 1))
            form = MOV_RR;
        else if (bind_is_imm(d, 1))
            form = MOV_RI;
        else if (bind_is_mem(d, 1))
            form = MOV_RM + bind_ea_form(in, d);
        else
            return false;
    } else if (bind_is_mem(d, 0) && bind_is_gpr(d, 1)) {
        form = MOV_MR + bind_ea_form(in, d);
    } else if (bind_is_mem(d, 0) && bind_is_imm(d, 1)) {
        form = MOV_MI + bind_ea_form(in, d);
    } else {
        return false;
    }
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->src = insn_gpr_offset(d->operand[1].reg.value);
    in->fn = mov_handlers[bind_size_index(bind_bytes(d, 0))][form];
    return true;
}

/* ---- MOVZX, MOVSX, MOVSXD ---- */

#define EXTEND_z(from, value) (value)
#define EXTEND_s(from, value) (uint64_t)(int64_t)(int##from##_t)(value)

#define EXTEND_MEM_HANDLER(kind, to, from, form)                                                   \
    HANDLER(mov##kind##_m_##to##_##from##form)                                                     \
    {                                                                                              \
        gva_t gva = ADDR_##form(from / 8, SOFT_READ);                                              \
        uint##from##_t value = LOAD(from, gva);                                                    \
        gpr_write_##to(cpu, in->dst, (uint##to##_t)EXTEND_##kind(from, value));                    \
    }

#define EXTEND_HANDLERS(kind, to, from)                                                            \
    HANDLER(mov##kind##_r_##to##_##from)                                                           \
    {                                                                                              \
        uint##from##_t value = GPR(from, in->src);                                                 \
        gpr_write_##to(cpu, in->dst, (uint##to##_t)EXTEND_##kind(from, value));                    \
    }                                                                                              \
    EXTEND_MEM_HANDLER(kind, to, from, g)                                                          \
    EXTEND_MEM_HANDLER(kind, to, from, b)                                                          \
    EXTEND_MEM_HANDLER(kind, to, from, x)

#define EXTENSIONS(M)                                                                              \
    M(z, 16, 8) M(z, 32, 8) M(z, 64, 8) M(z, 16, 16) M(z, 32, 16) M(z, 64, 16)                     \
    M(s, 16, 8) M(s, 32, 8) M(s, 64, 8) M(s, 16, 16) M(s, 32, 16) M(s, 64, 16)                     \
    M(s, 16, 32) M(s, 32, 32) M(s, 64, 32)

EXTENSIONS(EXTEND_HANDLERS)

struct extend_row {
    bool sign;
    uint8_t to, from;
    insn_fn *reg;
    insn_fn *mem[EA_FORMS];
};

#define EXTEND_SIGN_z false
#define EXTEND_SIGN_s true
#define EXTEND_ROW(kind, to, from)                                                                 \
    {EXTEND_SIGN_##kind, to / 8, from / 8, mov##kind##_r_##to##_##from,                            \
     {mov##kind##_m_##to##_##from##g, mov##kind##_m_##to##_##from##b,                              \
      mov##kind##_m_##to##_##from##x}},

static const struct extend_row extend_rows[] = {EXTENSIONS(EXTEND_ROW)};

bool integer_bind_extend(struct insn *in, const struct insn_decode *d)
{
    bool sign = d->z->mnemonic != ZYDIS_MNEMONIC_MOVZX;
    unsigned to = bind_bytes(d, 0), from = bind_bytes(d, 1);

    /* MOVSXD with a 16-bit operand reads 16 bits (SDM) or 32 (a register): the low 16 count. */
    if (from > to)
        from = to;
    for (unsigned i = 0; i < ARRAY_SIZE(extend_rows); i++) {
        const struct extend_row *row = &extend_rows[i];

        if (row->sign != sign || row->to != to || row->from != from)
            continue;
        in->dst = insn_gpr_offset(d->operand[0].reg.value);
        if (bind_is_mem(d, 1)) {
            in->fn = row->mem[bind_ea_form(in, d)];
        } else {
            in->src = insn_gpr_offset(d->operand[1].reg.value);
            in->fn = row->reg;
        }
        return true;
    }
    return false;
}

/* ---- LEA ---- */

#define LEA_HANDLERS(bits)                                                                         \
    HANDLER(lea_##bits##g)                                                                         \
    {                                                                                              \
        gpr_write_##bits(cpu, in->dst, (uint##bits##_t)insn_ea(cpu, in));                          \
    }                                                                                              \
    HANDLER(lea_##bits##b)                                                                         \
    {                                                                                              \
        gpr_write_##bits(cpu, in->dst, (uint##bits##_t)operand_base(cpu, in));                     \
    }                                                                                              \
    HANDLER(lea_##bits##x)                                                                         \
    {                                                                                              \
        gpr_write_##bits(cpu, in->dst, (uint##bits##_t)operand_base_index(cpu, in));               \
    }
LEA_HANDLERS(16)
LEA_HANDLERS(32)
LEA_HANDLERS(64)

bool integer_bind_lea(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const handlers[4][EA_FORMS] = {
        {NULL},
        {lea_16g, lea_16b, lea_16x},
        {lea_32g, lea_32b, lea_32x},
        {lea_64g, lea_64b, lea_64x},
    };

    in->flags &= (uint8_t)~INSN_FS_GS; /* a segment prefix means nothing here */
    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->fn = handlers[bind_size_index(bind_bytes(d, 0))][bind_ea_form(in, d)];
    return in->fn != NULL;
}

/* ---- CMOVcc: the source is always read; a 32-bit destination is always written ---- */

#define CMOV_HANDLERS(cc, bits)                                                                    \
    HANDLER(cmov##cc##_r_##bits)                                                                   \
    {                                                                                              \
        uint##bits##_t value = GPR(bits, in->src);                                                 \
        gpr_write_##bits(cpu, in->dst, CONDITION_##cc ? value : GPR(bits, in->dst));               \
    }                                                                                              \
    HANDLER(cmov##cc##_m_##bits)                                                                   \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_READ);                                                   \
        uint##bits##_t value = LOAD(bits, gva);                                                    \
        gpr_write_##bits(cpu, in->dst, CONDITION_##cc ? value : GPR(bits, in->dst));               \
    }
#define SETCC_HANDLERS(cc)                                                                         \
    HANDLER(set##cc##_r)                                                                           \
    {                                                                                              \
        GPR(8, in->dst) = CONDITION_##cc;                                                          \
    }                                                                                              \
    HANDLER(set##cc##_m)                                                                           \
    {                                                                                              \
        gva_t gva = ADDR_g(1, SOFT_WRITE);                                                         \
        STORE(8, gva, CONDITION_##cc);                                                             \
    }
#define CONDITION_HANDLERS(name, cc)                                                               \
    CMOV_HANDLERS(cc, 16) CMOV_HANDLERS(cc, 32) CMOV_HANDLERS(cc, 64) SETCC_HANDLERS(cc)

CONDITIONS(CONDITION_HANDLERS)

struct condition_row {
    ZydisMnemonic cmov, setcc;
    insn_fn *cmov_r[4], *cmov_m[4], *set_r, *set_m;
};

#define CONDITION_ROW(name, cc)                                                                    \
    {ZYDIS_MNEMONIC_CMOV##name, ZYDIS_MNEMONIC_SET##name,                                          \
     {NULL, cmov##cc##_r_16, cmov##cc##_r_32, cmov##cc##_r_64},                                    \
     {NULL, cmov##cc##_m_16, cmov##cc##_m_32, cmov##cc##_m_64}, set##cc##_r, set##cc##_m},

static const struct condition_row condition_rows[] = {CONDITIONS(CONDITION_ROW)};

bool integer_bind_cmov(struct insn *in, const struct insn_decode *d)
{
    unsigned size = bind_size_index(bind_bytes(d, 0));

    for (unsigned i = 0; i < ARRAY_SIZE(condition_rows); i++) {
        const struct condition_row *row = &condition_rows[i];

        if (row->cmov != d->z->mnemonic)
            continue;
        in->dst = insn_gpr_offset(d->operand[0].reg.value);
        in->src = insn_gpr_offset(d->operand[1].reg.value);
        in->fn = bind_is_mem(d, 1) ? row->cmov_m[size] : row->cmov_r[size];
        return in->fn != NULL;
    }
    return false;
}

bool integer_bind_setcc(struct insn *in, const struct insn_decode *d)
{
    for (unsigned i = 0; i < ARRAY_SIZE(condition_rows); i++) {
        const struct condition_row *row = &condition_rows[i];

        if (row->setcc != d->z->mnemonic)
            continue;
        in->dst = insn_gpr_offset(d->operand[0].reg.value);
        in->fn = bind_is_mem(d, 0) ? row->set_m : row->set_r;
        return true;
    }
    return false;
}

/* ---- CBW CWDE CDQE, CWD CDQ CQO ---- */

HANDLER(convert_cbw)
{
    (void)in;
    GPR(16, 0) = (uint16_t)(int8_t)GPR(8, 0);
}
HANDLER(convert_cwde)
{
    (void)in;
    gpr_write_32(cpu, 0, (uint32_t)(int16_t)GPR(16, 0));
}
HANDLER(convert_cdqe)
{
    (void)in;
    GPR(64, 0) = (uint64_t)(int32_t)GPR(32, 0);
}
HANDLER(convert_cwd)
{
    (void)in;
    GPR(16, GPR_RDX * 8) = (uint16_t)((int16_t)GPR(16, 0) >> 15);
}
HANDLER(convert_cdq)
{
    (void)in;
    gpr_write_32(cpu, GPR_RDX * 8, (uint32_t)((int32_t)GPR(32, 0) >> 31));
}
HANDLER(convert_cqo)
{
    (void)in;
    GPR(64, GPR_RDX * 8) = (uint64_t)((int64_t)GPR(64, 0) >> 63);
}

bool integer_bind_convert(struct insn *in, const struct insn_decode *d)
{
    switch (d->z->mnemonic) {
    case ZYDIS_MNEMONIC_CBW:
        in->fn = convert_cbw;
        return true;
    case ZYDIS_MNEMONIC_CWDE:
        in->fn = convert_cwde;
        return true;
    case ZYDIS_MNEMONIC_CDQE:
        in->fn = convert_cdqe;
        return true;
    case ZYDIS_MNEMONIC_CWD:
        in->fn = convert_cwd;
        return true;
    case ZYDIS_MNEMONIC_CDQ:
        in->fn = convert_cdq;
        return true;
    case ZYDIS_MNEMONIC_CQO:
        in->fn = convert_cqo;
        return true;
    default:
        return false;
    }
}

/* ---- BSWAP; its 16-bit form is undefined and done by the host ---- */

HANDLER(bswap_16)
{
    uint64_t value = GPR(64, in->dst);

    __asm__(".byte 0x66,0x0f,0xc8" : "+a"(value)); /* bswap %ax */
    GPR(64, in->dst) = value;
}
HANDLER(bswap_32)
{
    gpr_write_32(cpu, in->dst, __builtin_bswap32(GPR(32, in->dst)));
}
HANDLER(bswap_64)
{
    gpr_write_64(cpu, in->dst, __builtin_bswap64(GPR(64, in->dst)));
}

bool integer_bind_bswap(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const handlers[4] = {NULL, bswap_16, bswap_32, bswap_64};

    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->fn = handlers[bind_size_index(bind_bytes(d, 0))];
    return in->fn != NULL;
}

/* ---- MOVBE ---- */

#define MOVBE_HANDLERS(bits)                                                                       \
    HANDLER(movbe_rm_##bits)                                                                       \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_READ);                                                   \
        gpr_write_##bits(cpu, in->dst, __builtin_bswap##bits(LOAD(bits, gva)));                    \
    }                                                                                              \
    HANDLER(movbe_mr_##bits)                                                                       \
    {                                                                                              \
        gva_t gva = ADDR_g(bits / 8, SOFT_WRITE);                                                  \
        STORE(bits, gva, __builtin_bswap##bits(GPR(bits, in->src)));                               \
    }
MOVBE_HANDLERS(16)
MOVBE_HANDLERS(32)
MOVBE_HANDLERS(64)

bool integer_bind_movbe(struct insn *in, const struct insn_decode *d)
{
    static insn_fn *const loads[4] = {NULL, movbe_rm_16, movbe_rm_32, movbe_rm_64};
    static insn_fn *const stores[4] = {NULL, movbe_mr_16, movbe_mr_32, movbe_mr_64};
    unsigned size = bind_size_index(bind_bytes(d, 0));

    in->dst = insn_gpr_offset(d->operand[0].reg.value);
    in->src = insn_gpr_offset(d->operand[1].reg.value);
    in->fn = bind_is_mem(d, 0) ? stores[size] : loads[size];
    return in->fn != NULL;
}

/* ---- XLAT: its index is AL, zero-extended ---- */

HANDLER(xlat)
{
    uint64_t ea = cpu->s.gpr[GPR_RBX] + GPR(8, 0);
    gva_t gva = soft_linear(cpu, in->seg, ea & size_mask(in->addrsize), 1, SOFT_READ);

    GPR(8, 0) = LOAD(8, gva);
}

bool integer_bind_xlat(struct insn *in, const struct insn_decode *d)
{
    (void)d;
    in->fn = xlat;
    return true;
}
