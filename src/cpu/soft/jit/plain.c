/* Instructions that are written again as they are: integer, vector, x87; and LEA. */
#include "cpu/soft/jit/translate.h"
#include "cpu/soft/vector.h"

/* A guest register that lives in s.gpr, borrowed for one instruction. */
struct loan {
    uint8_t guest, host;
    bool load, store;
};

struct plan {
    struct reencode r;
    struct loan loan[3];
    unsigned loans;
};

uint8_t *jit_field_of(struct reencode *r, const ZydisDecodedOperand *op)
{
    switch (op->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
        return &r->reg;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
        return &r->rm;
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
        return &r->vvvv;
    case ZYDIS_OPERAND_ENCODING_OPCODE:
        return &r->opcode;
    default:
        return NULL;
    }
}

static struct loan *borrow(struct plan *plan, unsigned guest, const uint8_t *scratch,
                           unsigned scratches)
{
    for (unsigned k = 0; k < plan->loans; k++) {
        if (plan->loan[k].guest == guest)
            return &plan->loan[k];
    }
    if (plan->loans == scratches)
        return NULL;
    plan->loan[plan->loans] = (struct loan){(uint8_t)guest, scratch[plan->loans], false, false};
    return &plan->loan[plan->loans++];
}

/* A source of zero leaves the destination as it is, on AMD's processors by definition. LZCNT and TZCNT are the same
 * where the host lacks them. */
static bool may_not_write(const struct jit_insn *i)
{
    return i->z.mnemonic == ZYDIS_MNEMONIC_BSF || i->z.mnemonic == ZYDIS_MNEMONIC_BSR ||
           i->z.mnemonic == ZYDIS_MNEMONIC_LZCNT || i->z.mnemonic == ZYDIS_MNEMONIC_TZCNT;
}

/* False: more registers than can be lent. */
static bool plan_registers(struct plan *plan, const struct jit_insn *i, const uint8_t *scratch,
                           unsigned scratches)
{
    for (unsigned k = 0; k < i->z.operand_count_visible; k++) {
        const ZydisDecodedOperand *op = &i->operand[k];
        int gpr = op->type == ZYDIS_OPERAND_TYPE_REGISTER ? insn_gpr(op->reg.value) : -1;
        struct loan *loan;
        uint8_t *field;

        if (gpr < 0 || (gpr != GPR_RSP && !jit_in_memory((unsigned)gpr)))
            continue;
        field = jit_field_of(&plan->r, op);
        if (field && gpr == GPR_RSP) {
            *field = JIT_RSP;
            continue;
        }
        loan = field ? borrow(plan, (unsigned)gpr, scratch, scratches) : NULL;
        if (!loan)
            return false;
        *field = loan->host;
        loan->load |= op->actions & ZYDIS_OPERAND_ACTION_MASK_READ || op->size < 32 ||
                      op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE || may_not_write(i);
        loan->store |= op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    }
    return true;
}

static void loans_begin(struct jit_translation *t, const struct plan *plan)
{
    for (unsigned k = 0; k < plan->loans; k++) {
        if (plan->loan[k].load)
            asm_load(&t->a, plan->loan[k].host, jit_gpr(plan->loan[k].guest));
    }
}

static void loans_end(struct jit_translation *t, const struct plan *plan)
{
    for (unsigned k = 0; k < plan->loans; k++) {
        if (plan->loan[k].store)
            asm_store(&t->a, jit_gpr(plan->loan[k].guest), plan->loan[k].host);
    }
}

static void store_imm16(struct asm_code *a, struct asm_mem m, uint16_t value)
{
    asm_byte(a, 0x66);
    asm_op_mem(a, false, 0xc7, 0, m);
    asm_u16(a, value);
}

/* What FNSTENV will say of this instruction; T0. */
static void x87_note(struct jit_translation *t, const ZydisDecodedOperand *memory)
{
    struct asm_code *a = &t->a;

    if (memory) {
        jit_address(t, memory, JIT_T0);
        asm_store(a, JIT_FIELD(x87.fdp), JIT_T0);
        asm_op_mem(a, false, 0x1b7, JIT_T0, /* movzx */
                   asm_gs(offsetof(struct soft_vcpu, s.seg) +
                          t->i->in->seg * sizeof(struct cpu_segment) +
                          offsetof(struct cpu_segment, selector)));
        asm_byte(a, 0x66);
        asm_op_mem(a, false, 0x89, JIT_T0, JIT_FIELD(x87.fds));
    }
    asm_load(a, JIT_T0, JIT_FIELD(code_page));
    asm_lea(a, JIT_T0, asm_base(JIT_T0, t->i->offset));
    asm_store(a, JIT_FIELD(x87.fip), JIT_T0);
    store_imm16(a, JIT_FIELD(x87.fop), (uint16_t)t->i->in->imm);
}

static bool may_trap(const struct jit_insn *i)
{
    return i->class == JIT_VECTOR || i->z.mnemonic == ZYDIS_MNEMONIC_DIV ||
           i->z.mnemonic == ZYDIS_MNEMONIC_IDIV || i->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
}

static bool plain(struct jit_translation *t)
{
    static const uint8_t scratch[] = {JIT_T0, JIT_T1, JIT_T2};
    const struct jit_insn *i = t->i;
    const ZydisDecodedOperand *memory = jit_memory_operand(i);
    bool write = memory && memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    struct plan plan = {.r = {REENCODE_KEEP, REENCODE_KEEP, REENCODE_KEEP, REENCODE_KEEP,
                              memory != NULL, {0}}};
    unsigned cold = 0;

    if (!plan_registers(&plan, i, scratch, memory ? 1 : jit_window_active(t) ? 2 : 3))
        return false;
    t->needs_t0 = plan.loans > 0 || i->flags_read;
    if (memory && may_trap(i))
        jit_flags_save(t); /* for the trap; there is no register for it later */
    if (memory)
        plan.r.mem = jit_look_up(t, memory, write, &cold);
    if (i->flags_read || (may_trap(i) && t->flags == 0))
        jit_flags_load(t);
    loans_begin(t, &plan);
    if (may_trap(i))
        jit_trap_here(t, t->flags);
    if (!reencode(&t->a, &i->z, i->operand, i->bytes, &plan.r))
        return false;
    loans_end(t, &plan);
    if (i->class == JIT_VECTOR && vector_form(i->in) == VECTOR_FORM_X87)
        x87_note(t, memory);
    if (memory)
        jit_cold_resume(t, cold);
    return true;
}

void jit_plain(struct jit_translation *t)
{
    struct jit_translation before = *t;

    if (plain(t))
        return;
    before.a.overflow = t->a.overflow;
    *t = before;
    jit_call_interpreter(t);
}

/* What the interpreter's soft_tsc() gives, where that is a sum. RDTSCP waits for what came before (SDM vol. 2B), as LFENCE
 * does, and adds the CPU's number: the host need not have it. */
void jit_rdtsc(struct jit_translation *t)
{
    static const uint8_t lfence[] = {0x0f, 0xae, 0xe8}, rdtsc[] = {0x0f, 0x31};
    bool with_aux = t->i->z.mnemonic == ZYDIS_MNEMONIC_RDTSCP;
    struct asm_code *a = &t->a;
    unsigned cold;

    jit_flags_free(t);
    asm_op_mem(a, false, 0x80, ASM_CMP, JIT_FIELD(tsc_direct));
    asm_byte(a, 0);
    cold = jit_cold_call(t, asm_jcc(a, ASM_CC_E, 0));
    if (with_aux)
        asm_bytes(a, lfence, sizeof(lfence));
    asm_bytes(a, rdtsc, sizeof(rdtsc));
    asm_op_reg(a, true, 0xc1, 4, GPR_RDX); /* shl rdx, 32 */
    asm_byte(a, 32);
    asm_op_reg(a, true, 0x09, GPR_RDX, GPR_RAX); /* or */
    asm_op_mem(a, true, 0x03, GPR_RAX, JIT_FIELD(tsc_offset)); /* add */
    asm_mov(a, GPR_RDX, GPR_RAX);
    asm_op_reg(a, true, 0xc1, 5, GPR_RDX); /* shr rdx, 32 */
    asm_byte(a, 32);
    asm_op_reg(a, false, 0x89, GPR_RAX, GPR_RAX); /* mov eax, eax */
    if (with_aux)
        asm_op_mem(a, false, 0x8b, GPR_RCX, JIT_FIELD(s.msr.tsc_aux));
    jit_cold_resume(t, cold);
}

/* The address is all there is: no memory is touched. */
void jit_lea(struct jit_translation *t)
{
    const struct jit_insn *i = t->i;
    const ZydisDecodedOperand *op = &i->operand[1];
    unsigned to = (unsigned)insn_gpr(i->operand[0].reg.value);
    bool lent = jit_in_memory(to);
    struct reencode r = {(uint8_t)(lent ? JIT_T1 : jit_host(to)), REENCODE_KEEP, REENCODE_KEEP,
                         REENCODE_KEEP, true, asm_base(JIT_T0, 0)};

    jit_address(t, op, JIT_T0);
    if (lent && i->operand[0].size < 32)
        asm_load(&t->a, JIT_T1, jit_gpr(to));
    if (!reencode(&t->a, &i->z, i->operand, i->bytes, &r))
        t->failed = true;
    if (lent)
        asm_store(&t->a, jit_gpr(to), JIT_T1);
}
