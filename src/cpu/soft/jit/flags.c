/* Where the guest's arithmetic flags are, and how they get elsewhere. */
#include "cpu/soft/jit/translate.h"

const uint8_t jit_hosts[16] = {
    [GPR_RAX] = GPR_RAX, [GPR_RCX] = GPR_RCX, [GPR_RDX] = GPR_RDX, [GPR_RBX] = GPR_RBX,
    [GPR_RSP] = JIT_RSP, [GPR_RBP] = GPR_RBP, [GPR_RSI] = GPR_RSI, [GPR_RDI] = GPR_RDI,
    [GPR_R8] = JIT_NO_HOST, [GPR_R9] = JIT_NO_HOST, [GPR_R10] = JIT_NO_HOST, [GPR_R11] = JIT_NO_HOST,
    [GPR_R12] = GPR_R12, [GPR_R13] = GPR_R13, [GPR_R14] = GPR_R14, [GPR_R15] = GPR_R15,
};

void jit_emit_flags_save(struct asm_code *a)
{
    static const uint8_t code[] = {
        0x9f,             /* lahf */
        0x0f, 0x90, 0xc0, /* seto al */
        0x66,             /* operand size of the store below */
    };

    asm_mov(a, JIT_T0, GPR_RAX);
    asm_bytes(a, code, sizeof(code));
    asm_op_mem(a, false, 0x89, GPR_RAX, JIT_FIELD(jit_flags)); /* mov gs:jit_flags, ax */
    asm_mov(a, GPR_RAX, JIT_T0);
}

void jit_emit_flags_load(struct asm_code *a)
{
    static const uint8_t code[] = {
        0x04, 0x7f, /* add al, 0x7f: overflows if OF was set */
        0x9e,       /* sahf */
    };

    asm_mov(a, JIT_T0, GPR_RAX);
    asm_op_mem(a, false, 0x1b7, GPR_RAX, JIT_FIELD(jit_flags)); /* movzx eax, word */
    asm_bytes(a, code, sizeof(code));
    asm_mov(a, GPR_RAX, JIT_T0);
}

/* ---- recipes ---- */

/* The host's register of an operand that is a general register kept in one; -1: another kind of operand. */
static int host_register(const ZydisDecodedOperand *op, const uint8_t *host)
{
    int gpr = op->type == ZYDIS_OPERAND_TYPE_REGISTER ? insn_gpr(op->reg.value) : -1;

    return gpr < 0 || host[gpr] == JIT_NO_HOST ? -1 : host[gpr];
}

static bool high_byte(const ZydisDecodedOperand *op)
{
    return op->type == ZYDIS_OPERAND_TYPE_REGISTER && op->reg.value >= ZYDIS_REGISTER_AH &&
           op->reg.value <= ZYDIS_REGISTER_BH;
}

/* Whether the operands are a register and a register or an immediate; notes them. */
static bool recipe_operands(const struct jit_insn *i, const uint8_t *host, struct jit_recipe *r)
{
    int first = host_register(&i->operand[0], host), second = host_register(&i->operand[1], host);

    if (first < 0 || (second < 0 && i->operand[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE))
        return false;
    r->first = (uint8_t)first;
    r->second = second < 0 ? JIT_NO_HOST : (uint8_t)second;
    r->uses = (uint16_t)(1u << first | (second < 0 ? 0 : 1u << second));
    return true;
}

static bool recipe_undo(const struct jit_insn *i, const uint8_t *host, struct jit_recipe *r)
{
    return recipe_operands(i, host, r) && i->operand[0].size >= 32 && r->first != r->second &&
           i->in->imm != (uint64_t)INT32_MIN;
}

static bool recipe_result(const struct jit_insn *i, const uint8_t *host, struct jit_recipe *r)
{
    int first = host_register(&i->operand[0], host);

    if (first < 0 || high_byte(&i->operand[0]))
        return false;
    r->first = (uint8_t)first;
    r->uses = (uint16_t)(1u << first);
    return true;
}

struct jit_recipe jit_recipe_of(const struct jit_insn *i, const uint8_t *host)
{
    struct jit_recipe r = {.kind = JIT_RECIPE_NONE, .i = i};

    switch (i->z.mnemonic) {
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST:
        if (recipe_operands(i, host, &r))
            r.kind = JIT_RECIPE_AGAIN;
        break;
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
        if (recipe_result(i, host, &r))
            r.kind = JIT_RECIPE_RESULT;
        break;
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        if (recipe_undo(i, host, &r))
            r.kind = JIT_RECIPE_UNDO;
        break;
    default:
        break;
    }
    return r;
}

/* CMP and TEST: as they were, with the registers where they are. */
static void emit_again(struct asm_code *a, const struct jit_recipe *recipe)
{
    struct reencode r = {REENCODE_KEEP, REENCODE_KEEP, REENCODE_KEEP, REENCODE_KEEP, false, {0}};
    const struct jit_insn *i = recipe->i;

    for (unsigned k = 0; k < 2; k++) {
        const ZydisDecodedOperand *op = &i->operand[k];
        uint8_t *field = op->type == ZYDIS_OPERAND_TYPE_REGISTER && !high_byte(op)
                             ? jit_field_of(&r, op)
                             : NULL;

        if (field)
            *field = k == 0 ? recipe->first : recipe->second;
    }
    reencode(a, &i->z, i->operand, i->bytes, &r);
}

/* The result's own flags: CF and OF are clear, as after the instruction. */
static void emit_result(struct asm_code *a, const struct jit_recipe *recipe)
{
    unsigned reg = recipe->first, size = recipe->i->operand[0].size;

    if (size == 16)
        asm_byte(a, 0x66);
    if (size == 8) { /* REX for SPL to DIL */
        asm_byte(a, 0x40u | (reg & 8u ? 5u : 0));
        asm_byte(a, 0x84);
        asm_byte(a, 0xc0u | (reg & 7u) << 3 | (reg & 7u));
        return;
    }
    asm_op_reg(a, size == 64, 0x85, reg, reg);
}

/* Takes the addition or subtraction back into T0 and does it again there. */
static void emit_undo(struct asm_code *a, const struct jit_recipe *recipe)
{
    const struct jit_insn *i = recipe->i;
    unsigned reg = recipe->first, other = recipe->second;
    bool add = i->z.mnemonic == ZYDIS_MNEMONIC_ADD, w = i->operand[0].size == 64;
    int32_t imm = (int32_t)i->in->imm;

    if (other == JIT_NO_HOST) {
        asm_op_mem(a, w, 0x8d, JIT_T0, asm_base(reg, add ? -imm : imm)); /* lea */
        asm_alu_imm(a, w, add ? ASM_ADD : ASM_SUB, JIT_T0, imm);
        return;
    }
    if (add) {
        asm_mov(a, JIT_T0, reg);
        asm_op_reg(a, w, 0x29, other, JIT_T0);
        asm_op_reg(a, w, 0x01, other, JIT_T0);
    } else {
        asm_op_mem(a, w, 0x8d, JIT_T0, asm_indexed(reg, other, 0));
        asm_op_reg(a, w, 0x29, other, JIT_T0);
    }
}

/* INC and DEC: the same; CF is as they left it. */
static void emit_step(struct asm_code *a, const struct jit_recipe *recipe)
{
    bool inc = recipe->i->z.mnemonic == ZYDIS_MNEMONIC_INC, w = recipe->i->operand[0].size == 64;

    asm_op_mem(a, w, 0x8d, JIT_T0, asm_base(recipe->first, inc ? -1 : 1)); /* lea */
    asm_op_reg(a, w, 0xff, inc ? 0 : 1, JIT_T0);
}

void jit_emit_recipe(struct asm_code *a, const struct jit_recipe *recipe)
{
    switch (recipe->kind) {
    case JIT_RECIPE_AGAIN:
        emit_again(a, recipe);
        break;
    case JIT_RECIPE_RESULT:
        emit_result(a, recipe);
        break;
    case JIT_RECIPE_UNDO:
        emit_undo(a, recipe);
        break;
    case JIT_RECIPE_STEP:
        emit_step(a, recipe);
        break;
    default:
        BUG("no recipe");
    }
}

/* ---- from place to place ---- */

void jit_flags_free(struct jit_translation *t)
{
    if (t->flags & JIT_SAVED) {
        t->flags = JIT_SAVED;
        return;
    }
    if (t->recipe.kind != JIT_RECIPE_NONE)
        t->flags = 0;
    else
        jit_flags_save(t);
}

void jit_flags_save(struct jit_translation *t)
{
    if (!(t->flags & JIT_SAVED)) {
        jit_flags_load(t);
        jit_emit_flags_save(&t->a);
    }
    t->flags = JIT_SAVED;
}

void jit_flags_load(struct jit_translation *t)
{
    if (t->flags & JIT_LIVE)
        return;
    if (t->recipe.kind != JIT_RECIPE_NONE)
        jit_emit_recipe(&t->a, &t->recipe);
    else
        jit_emit_flags_load(&t->a);
    t->flags |= JIT_LIVE;
}

static uint16_t host_set(uint16_t guest)
{
    unsigned set = guest & 0xf0cfu; /* but RSP, RBP and R8 to R11 */

    set |= guest & (1u << GPR_RBP);
    set |= guest & (1u << GPR_RSP) ? 1u << JIT_RSP : 0;
    return (uint16_t)set;
}

void jit_flags_before(struct jit_translation *t)
{
    const struct jit_insn *i = t->i;

    if (t->flags & JIT_SAVED || !(host_set(i->written) & t->recipe.uses) ||
        (i->flags_written && !i->flags_read))
        return;
    if (t->flags == 0 || i->flags_clobbered)
        jit_flags_save(t); /* the recipe will not do any more */
}

void jit_flags_after(struct jit_translation *t)
{
    if (t->i->flags_written) {
        t->flags = JIT_LIVE;
        t->recipe = jit_recipe_of(t->i, jit_hosts);
    } else if (host_set(t->i->written) & t->recipe.uses) {
        t->recipe.kind = JIT_RECIPE_NONE;
    }
}
