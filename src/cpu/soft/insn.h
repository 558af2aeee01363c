/*
 * A decoded instruction, and how a family of instructions takes part.
 *
 * decode.c turns bytes into a ZydisDecodedInstruction, fills in everything common (length, sizes,
 * the memory operand), then looks the mnemonic up in the families' tables and calls its `bind`,
 * which chooses the handler and fills in the operands. A bind may refuse (return false): the
 * instruction then raises #UD when executed. A family never decodes bytes by itself.
 *
 * To add a family: a file exec_NAME.c with binds, handlers and one `const struct insn_family`,
 * and a line in decode.c's list.
 */
#ifndef CPU_SOFT_INSN_H
#define CPU_SOFT_INSN_H

#include <Zydis/Zydis.h>

#include "cpu/soft/vcpu.h"

struct insn;
typedef void insn_fn(struct soft_vcpu *cpu, const struct insn *in);

/* Registers of an address: index into s.gpr, or one of these. */
#define INSN_REG_NONE 0xffu
#define INSN_REG_RIP  0x10u /* s.rip follows s.gpr; the decoder adds the length to disp */

#define INSN_ENDS_BLOCK 0x01u /* control may go elsewhere, or mode/mapping may change */
#define INSN_HAS_MEM    0x02u
#define INSN_LOCK       0x04u
#define INSN_REP        0x08u /* F3 */
#define INSN_REPNE      0x10u /* F2 */
#define INSN_FS_GS      0x20u /* segment base is added even in 64-bit mode */
#define INSN_ALONE      0x40u /* in lock-step only: a block of its own, not to be executed twice */
#define INSN_EXTENDED   0x80u /* in lock-step only: may touch x87 or vector state */

struct insn {
    insn_fn *fn;
    uint64_t imm;   /* immediate, sign- or zero-extended as the instruction defines; branch: displacement */
    int64_t disp;   /* of the memory operand, sign-extended; moffs: absolute */
    uint32_t aux;   /* offset of the instruction's native code in the code buffer (code.h); 0: none */
    uint8_t length; /* bytes */
    uint8_t flags;  /* INSN_* */
    uint8_t opsize; /* effective operand size: 1, 2, 4, 8 bytes */
    uint8_t addrsize; /* effective address size: 2, 4, 8 bytes */
    uint8_t seg;    /* enum cpu_segment_name of the memory operand */
    uint8_t base, index; /* GPR number or INSN_REG_* */
    uint8_t scale;  /* shift: 0 to 3 */
    uint8_t dst, src, src2; /* the family's choice: GPR number, or byte offset for byte registers */
    uint8_t spare;
};

/* What a bind sees besides the instruction. */
struct insn_decode {
    const ZydisDecodedInstruction *z;
    const ZydisDecodedOperand *operand; /* z->operand_count of them, hidden ones included */
    const uint8_t *bytes;               /* z->length of them */
    uint32_t mode;                      /* SOFT_MODE_* */
    struct soft_vcpu *cpu;              /* for the CPU model and the code buffer; not for its state */
};

struct insn_binding {
    ZydisMnemonic mnemonic;
    bool (*bind)(struct insn *in, const struct insn_decode *d);
};

struct insn_family {
    const char *name;
    const struct insn_binding *bindings; /* ends with mnemonic ZYDIS_MNEMONIC_INVALID */
    /* Optional: for mnemonics no table lists, by Zydis category/ISA set (vector instructions). */
    bool (*bind_rest)(struct insn *in, const struct insn_decode *d);
};

extern const struct insn_family insn_family_integer; /* exec_integer*.c */
extern const struct insn_family insn_family_string;  /* exec_string.c: string and port I/O */
extern const struct insn_family insn_family_branch;  /* exec_branch.c: near control transfer */
extern const struct insn_family insn_family_system;  /* exec_system.c and friends */
extern const struct insn_family insn_family_vector;  /* exec_vector.c: x87, MMX, SSE, AVX, XSAVE */

/* GPR number (0-15) of a Zydis general register of any width; -1 for anything else. AH..BH give 0-3. */
int insn_gpr(ZydisRegister reg);
/* Byte offset of a register operand inside s.gpr: AH is 1, CL is 8, R8 is 64. */
uint8_t insn_gpr_offset(ZydisRegister reg);

/* Effective address (offset in its segment), truncated to addrsize. */
static inline uint64_t insn_ea(const struct soft_vcpu *cpu, const struct insn *in)
{
    uint64_t ea = (uint64_t)in->disp;

    if (in->base != INSN_REG_NONE)
        ea += cpu->s.gpr[in->base]; /* INSN_REG_RIP is s.rip by layout, see decode.c's assertion */
    if (in->index != INSN_REG_NONE)
        ea += cpu->s.gpr[in->index] << in->scale;
    if (in->addrsize == 8)
        return ea;
    return in->addrsize == 4 ? (uint32_t)ea : (uint16_t)ea;
}

static_assert(sizeof(struct insn) == 40, "there are hundreds of thousands");

#endif
