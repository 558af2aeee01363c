/* What the translator's files share: one block on its way to host code. */
#ifndef CPU_SOFT_JIT_TRANSLATE_H
#define CPU_SOFT_JIT_TRANSLATE_H

#include <Zydis/Zydis.h>

#include "cpu/soft/jit/asm.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/jit/reencode.h"
#include "cpu/soft/mmu.h"

/*
 * The host's registers that are not the guest's of the same name. The guest's RSP cannot be in the host's: it may be
 * no canonical address, with which the host's kernel cannot return from an interrupt. The context's address
 * can, as signals have a stack of their own.
 */
#define JIT_CTX GPR_RSP /* struct soft_context in use */
#define JIT_RSP 9u      /* the guest's RSP */
#define JIT_T0  10u     /* scratch */
#define JIT_T1  11u     /* scratch; index into the TLB, then what to add to the address */
#define JIT_T2  8u      /* scratch; the address of an operand */

/* Guest registers that live in s.gpr instead. */
static inline bool jit_in_memory(unsigned gpr)
{
    return gpr >= 8 && gpr <= 11;
}

/* Where any other is. */
static inline unsigned jit_host(unsigned gpr)
{
    return gpr == GPR_RSP ? JIT_RSP : gpr;
}

/* Windows and look-ups take host registers, and these for R8 to R11, which are in memory. */
#define JIT_FAR_BASE(gpr) ((gpr) + 8u)

static inline bool jit_is_far(unsigned host)
{
    return host >= 16;
}

/* The same as a table. */
#define JIT_NO_HOST 0xffu
extern const uint8_t jit_hosts[16];

/* Offset from JIT_CTX of a member of struct soft_context. */
#define JIT_CONTEXT(member)                                                                        \
    ((int32_t)offsetof(struct soft_context, member) - (int32_t)SOFT_CONTEXT_STACK)

#define JIT_FIELD(member) asm_gs(offsetof(struct soft_vcpu, member))

static inline struct asm_mem jit_gpr(unsigned gpr)
{
    return asm_gs(offsetof(struct soft_vcpu, s.gpr) + gpr * 8u);
}

/* How an instruction is translated. */
enum jit_class {
    JIT_INTERPRET, /* by a call to its handler */
    JIT_PLAIN,     /* as it is, with registers and the memory operand replaced */
    JIT_VECTOR,    /* the same, but the host may raise an exception; x87 leaves a note */
    JIT_LEA,
    JIT_NOP,
    JIT_PUSH,
    JIT_POP,
    JIT_LEAVE_FRAME,
    JIT_RDTSC, /* and RDTSCP */
    JIT_BIT,    /* bit.c */
    JIT_STRING, /* string.c */
    JIT_SYSTEM, /* system.c; the interpreter's in cases that are rare */
    JIT_JMP,
    JIT_JCC,
    JIT_CALL_NEAR,
    JIT_RET,
    JIT_SYSCALL,
    JIT_SYSRET,
};

struct jit_insn {
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    const struct insn *in;
    const uint8_t *bytes; /* `copy`; NULL: it crosses the page */
    uint8_t copy[16];
    uint16_t offset;     /* in the page */
    uint8_t part, index; /* its block, and its place in it */
    uint8_t class;       /* enum jit_class */
    bool inverted;       /* of JIT_JCC: the translation goes on where it leads when taken */
    bool goes_on;        /* of a branch: the next instruction here is where it leads */
    uint16_t written;    /* bit set of the general registers it writes */
    bool flags_read;     /* depends on arithmetic flags, or leaves some as they are and changes others */
    bool flags_written;
    bool flags_clobbered;/* its code uses the flags register before the instruction itself does */
};

/*
 * How flags that are neither live nor saved can be had again: the instruction that made them left enough behind.
 * Valid as long as the registers in `uses` are not written.
 */
struct jit_recipe {
    enum {
        JIT_RECIPE_NONE,
        JIT_RECIPE_AGAIN,
        JIT_RECIPE_RESULT,
        JIT_RECIPE_UNDO,
        JIT_RECIPE_STEP /* loop.c: only while the host's CF is the guest's */
    } kind;
    const struct jit_insn *i;
    uint8_t first, second; /* host registers of its operands; second: JIT_NO_HOST for an immediate */
    uint16_t uses;         /* bit set of host registers */
};

/* A range around a register whose addresses T2 turns into the host's (window.c). */
struct jit_window {
    bool open;
    uint8_t host;   /* the register; or JIT_FAR_BASE */
    bool write;     /* may be written, too */
    int32_t lo, hi; /* from the register's present value */
    unsigned last;  /* the instruction that uses it last: T2 is free after it */
};

#define JIT_NO_COLD UINT32_MAX

/* Code that is put after the translation's end. */
struct jit_cold {
    enum { JIT_COLD_CALL, JIT_COLD_EXIT_AT } kind;
    uint32_t site;   /* the jump that leads to it: offset of the displacement */
    uint32_t resume; /* offset of where to go on; 0: nowhere */
    uint8_t insn;    /* the instruction */
    uint8_t flags;
    struct jit_recipe recipe; /* when flags is 0 */
    struct jit_window window; /* open: it was to be looked up, and is looked up before resuming */
    uint8_t flags_after;      /* where the flags are to be then */
};

/* A value as so many times each guest register's value at the head of a loop, and a constant. */
struct jit_sum {
    bool known;
    int8_t times[16];
    int64_t plus;
};

/* A range of addresses that operands of one form touch in a pass of a loop; -1: no such register. */
struct jit_range {
    int8_t base, index;
    uint8_t scale;    /* a shift */
    bool rip;         /* relative to the page of the code instead of a base */
    bool write;
    uint8_t host;     /* the register that has what to add */
    struct jit_sum sum;
    int32_t lo, hi;   /* from the sum but its constant, at the head */
    int32_t step;     /* bytes from pass to pass */
};

/* An instruction's access in a loop: the number of its range, or among the wild; -1: none. */
struct jit_loop_access {
    int8_t range, wild;
};

/* An access by an address that depends on data: looked up whenever it leaves the page it was in. */
struct jit_wild {
    struct jit_range at; /* base, index, scale; the difference of hi and lo is its size */
    uint32_t start;      /* of its code */
    uint32_t miss;       /* jump that leaves it: offset of the displacement */
};

/* Where the flags are in a loop's second form: in the host's register, in jit_flags, to be had by the recipe. */
struct jit_loop_flags {
    bool live, saved;
    struct jit_recipe recipe;
};

struct jit_loop_exit {
    enum { JIT_EXIT_JUMP_OUT, JIT_EXIT_TRAP, JIT_EXIT_MISS } kind;
    uint32_t site;    /* a trap's number, or a jump's displacement */
    int32_t to;       /* of a jump: offset in the page */
    uint8_t insn;     /* of others: the instruction, which is the interpreter's */
    struct jit_loop_flags flags;
};

#define JIT_LOOP_RANGES SOFT_LOOP_RANGES
#define JIT_LOOP_EXITS  128u

/* loop.h */
struct jit_loop {
    bool found;
    uint8_t flags_back;       /* where the flags are at `back` */
    uint32_t start;           /* of the second form, to which `back` leads while it pays */
    uint32_t unpaid;          /* the jump taken when it does not: then `back` is linked */
    unsigned link;            /* its number; JIT_LINKS: none */
    uint32_t back;            /* the jump that closes it: offset of the displacement; 0: none yet */
    uint16_t used, written;   /* bit sets of the guest's general registers */
    uint16_t wild;            /* changed by who knows what */
    uint16_t lent;            /* whose host register serves something else meanwhile */
    uint8_t host[16];         /* where each is, in the second form */
    int64_t step[16];         /* by how much each changes in a pass */
    struct jit_range range[JIT_LOOP_RANGES];
    struct jit_wild wild_access[JIT_LOOP_RANGES];
    uint8_t counter;          /* host register: from minus the passes up to zero */
    unsigned ranges, wilds, exits, fails;
};

#define JIT_INSNS     96u
#define JIT_COLD_MAX  (JIT_INSNS * 3u)
#define JIT_TRAPS_MAX (JIT_INSNS * 3u)

/* Owned by the vCPU: too large for the stack. */
struct jit_work {
    struct jit_insn insn[JIT_INSNS];
    struct jit_link link[JIT_LINKS];
    struct jit_cold cold[JIT_COLD_MAX];
    struct jit_trap trap[JIT_TRAPS_MAX];
    struct jit_loop loop;
    struct jit_loop_access loop_access[JIT_INSNS];
    struct jit_loop_exit loop_exit[JIT_LOOP_EXITS];
    uint32_t loop_fail[JIT_LOOP_RANGES + 2];
};

struct jit_translation {
    struct soft_vcpu *cpu;
    struct soft_jit *jit;
    struct soft_native *native; /* being filled */
    struct jit_work *work;
    struct asm_code a;
    unsigned insn_count;
    unsigned index;           /* of the instruction being translated */
    const struct jit_insn *i; /* that one */
    unsigned cold_count, trap_count, link_count;
    uint8_t flags;            /* where they are now: JIT_LIVE, JIT_SAVED, both; 0: in the recipe */
    struct jit_recipe recipe; /* for the flags as they are now */
    struct jit_window window;
    bool needs_t0;            /* the current instruction, besides its operand's address */
    bool holds_t2;            /* the current instruction: no window may be opened */
    bool failed;
};

/* ---- flags.c ---- */

/* From here on the host's flags may be changed freely: the guest's are saved, or the recipe has them. Uses T0. */
void jit_flags_free(struct jit_translation *t);
/* The same, and they are saved. */
void jit_flags_save(struct jit_translation *t);
/* The guest's flags are in the host's register; uses T0. */
void jit_flags_load(struct jit_translation *t);
/* Before and after the code of each instruction: it may overwrite what the recipe needs, or make new flags. */
void jit_flags_before(struct jit_translation *t);
void jit_flags_after(struct jit_translation *t);
/* How to have the flags again that the instruction made; `host`: where each guest register is. */
struct jit_recipe jit_recipe_of(const struct jit_insn *i, const uint8_t *host);
/* Has the flags again in the host's register; T0. */
void jit_emit_recipe(struct asm_code *a, const struct jit_recipe *recipe);
/* The flags between jit_flags and the host's register; T0. */
void jit_emit_flags_save(struct asm_code *a);
void jit_emit_flags_load(struct asm_code *a);

/* ---- memory.c ---- */

/* The explicit memory operand that is accessed; NULL: none. */
const ZydisDecodedOperand *jit_memory_operand(const struct jit_insn *i);
bool jit_memory_supported(const struct jit_insn *i, const ZydisDecodedOperand *op);
/* [register + displacement]. */
bool jit_is_simple(const ZydisDecodedOperand *op);
/* That register. */
unsigned jit_simple_base(const ZydisDecodedOperand *op);
/* Writes the linear address of the operand into `reg`, T0 or T2; may use T1. */
void jit_address(struct jit_translation *t, const ZydisDecodedOperand *op, unsigned reg);
/* Looks the current instruction's operand up in the TLB; a miss hands the instruction to the interpreter.
 * Answers how to address it on the host; uses T0, T1 and perhaps T2. The flags are saved. */
struct asm_mem jit_look_up(struct jit_translation *t, const ZydisDecodedOperand *op, bool write,
                           unsigned *cold);
/* The same for [host + disp], `host` one of the host's registers other than T0 and T1. */
struct asm_mem jit_look_up_base(struct jit_translation *t, unsigned host, int32_t disp,
                                unsigned size, bool write, unsigned *cold);

/* Whether the bytes can be accessed that begin at [host + disp]: T1 is the offset of their entry. The first byte tells the
 * entry, the last its tag, so that crossing a page misses. Answers the jump taken on a miss. T0; the flags. */
uint32_t jit_compare_tag(struct asm_code *a, unsigned host, int32_t disp, unsigned size, bool write);
/* What that entry adds to addresses. */
void jit_load_addend(struct asm_code *a, unsigned reg);
/* The displacement of an operand; one that is relative to RIP counts from the page on. */
int64_t jit_displacement(const struct jit_insn *i, const ZydisDecodedOperand *op);
/* In FS or GS. */
bool jit_in_segment(const ZydisDecodedOperand *op);

/* The look-up of a window into T2, flags clobbered; answers the jump taken when it fails. T0, T1. */
uint32_t jit_look_up_window(struct jit_translation *t, const struct jit_window *window);

/* ---- window.c ---- */

/* Whether the window has this access, so that T2 is what to add. */
bool jit_window_serves(const struct jit_translation *t, unsigned host, int32_t disp, unsigned size,
                       bool write);
/* Opens one that begins with this access of the current instruction, if it is worth it. */
bool jit_window_open(struct jit_translation *t, unsigned host, int32_t disp, unsigned size,
                     bool write);
/* T2 is in use. */
bool jit_window_active(const struct jit_translation *t);
/* After each instruction. */
void jit_window_after(struct jit_translation *t);

/* ---- translate.c ---- */

/* Hands the current instruction to the interpreter, from the jump whose displacement is at `site`. */
unsigned jit_cold_call(struct jit_translation *t, uint32_t site);
/* It comes back here. */
void jit_cold_resume(struct jit_translation *t, unsigned cold);
void jit_trap_here(struct jit_translation *t, unsigned flags);
void jit_call_thunk(struct jit_translation *t, enum soft_jit_thunk thunk);
/* Hands the current instruction to the interpreter. */
void jit_call_interpreter(struct jit_translation *t);
/* Hands an instruction to the interpreter and does not go on after it. The flags are live. */
void jit_call_for_good(struct jit_translation *t, const struct jit_insn *i);
void jit_to_thunk_if(struct jit_translation *t, unsigned condition, enum soft_jit_thunk thunk);
/* Hands the current instruction to a thunk that executes it in the usual case, else by the interpreter; does not come back. */
void jit_end_by_thunk(struct jit_translation *t, enum soft_jit_thunk thunk);
/* Leaves before the current instruction when the vCPU is wanted. */
void jit_poll(struct jit_translation *t);

/* ---- classify.c ---- */

void jit_classify(struct jit_insn *i);

/* ---- bit.c, string.c, system.c, syscall.c ---- */

/* Of the class JIT_BIT, JIT_STRING, JIT_SYSTEM. */
bool jit_bit_supported(const struct jit_insn *i);
bool jit_string_supported(const struct jit_insn *i);
bool jit_system_supported(const struct jit_insn *i);
void jit_bit(struct jit_translation *t);
void jit_string(struct jit_translation *t);
void jit_system(struct jit_translation *t);
/* A guest register into one of the host's; not wide: its low half. */
void jit_read_gpr(struct asm_code *a, unsigned to, unsigned gpr, bool wide);
/* The arithmetic flags, which are saved, and bit 1 of RFLAGS into T0. */
void jit_emit_flags_compose(struct asm_code *a, unsigned scratch);
#define JIT_SYSCALL_LENGTH 2u /* bytes: without prefixes */
void jit_syscall(struct jit_translation *t);
void jit_sysret(struct jit_translation *t);
/* Thunks JIT_SYSCALL_64 and JIT_SYSRET_64. `call`: the offset in JIT_CALL where T1 has what follows the call. */
void jit_make_syscall_thunks(struct soft_jit *jit, struct asm_code *a, uint32_t call);

/* ---- plain.c, stack.c, branch.c: one class each ---- */

void jit_plain(struct jit_translation *t);
/* What replaces the register of this operand; NULL: it is in no field. */
uint8_t *jit_field_of(struct reencode *r, const ZydisDecodedOperand *op);
void jit_lea(struct jit_translation *t);
void jit_push(struct jit_translation *t);
void jit_pop(struct jit_translation *t);
void jit_leave_frame(struct jit_translation *t);
void jit_rdtsc(struct jit_translation *t);
void jit_jmp(struct jit_translation *t);
void jit_jcc(struct jit_translation *t);
void jit_call_near(struct jit_translation *t);
void jit_ret(struct jit_translation *t);
/* The block ends before `offset`, which may be the page's size. */
void jit_go_on(struct jit_translation *t, int64_t offset);
/* The jump whose displacement is at `site` leads to this offset in the page. */
void jit_new_link(struct jit_translation *t, int64_t to, uint32_t site);
/* Whether the instruction is a direct branch inside the page, and to where; `back`: it may close a circle. */
bool jit_branch_target(const struct jit_insn *i, unsigned *offset, bool *back);

#endif
