/*
 * FNSTENV, FLDENV, FNSAVE, FRSTOR: the environment in its four formats (SDM vol. 1 8.1.10).
 *
 * The host stores and loads its 32-bit protected-mode format; the guest's format is made of that
 * and of the guest's own instruction and data pointers.
 */
#include "cpu/soft/vector.h"

#define X87_ENV   28u
#define X87_STACK 80u
#define X87_FSW_ES 0x80u

struct x87_image {
    uint32_t fcw, fsw, ftw;
    uint32_t fip, fcs_fop, fdp, fds;
    uint8_t stack[X87_STACK];
};

static_assert(sizeof(struct x87_image) == X87_ENV + X87_STACK, "SDM figure 8-9");

#define X87_STORE 1u /* in->src */
#define X87_WHOLE 2u

static bool x87_real(const struct soft_vcpu *cpu)
{
    return !(cpu->mode & SOFT_MODE_PE) || (cpu->mode & SOFT_MODE_VM);
}

/* FNSTENV and FNSAVE show the pointers even where FXSAVE does not (AMD, no exception pending). */
static struct soft_x87 x87_pointers(const struct soft_vcpu *cpu, const struct x87_image *image)
{
    struct soft_x87 x = {.fip = soft_code_widen(cpu->code, image->fip),
                         .fcs = (uint16_t)image->fcs_fop,
                         .fop = (uint16_t)(image->fcs_fop >> 16),
                         .fdp = image->fdp,
                         .fds = (uint16_t)image->fds};

    soft_fpu_pointers(cpu, &x);
    return x;
}

static void x87_put_pointers(const struct soft_vcpu *cpu, struct x87_image *image,
                             const struct soft_x87 *x)
{
    uint32_t ip = (uint32_t)x->fip, dp = (uint32_t)x->fdp;

    if (x87_real(cpu)) {
        ip += (uint32_t)x->fcs << 4;
        dp += (uint32_t)x->fds << 4;
        image->fip = (image->fip & 0xffff0000u) | (ip & 0xffffu);
        image->fcs_fop = (ip >> 16) << 12 | x->fop;
        image->fdp = (image->fdp & 0xffff0000u) | (dp & 0xffffu);
        image->fds = (dp >> 16) << 12;
        return;
    }
    image->fip = ip;
    image->fcs_fop = x->fcs | (uint32_t)x->fop << 16;
    image->fdp = dp;
    image->fds = (image->fds & 0xffff0000u) | x->fds;
}

/* The host loads protected-mode form. */
static void x87_get_pointers(const struct soft_vcpu *cpu, struct x87_image *image, bool narrow)
{
    if (x87_real(cpu)) {
        uint32_t fop = image->fcs_fop & 0x7ffu;

        image->fip = (image->fip & 0xffffu) | ((image->fcs_fop >> 12) & 0xffffu) << 16;
        image->fdp = (image->fdp & 0xffffu) | ((image->fds >> 12) & 0xffffu) << 16;
        image->fcs_fop = fop << 16;
        image->fds = 0;
    } else if (narrow) {
        image->fcs_fop &= 0xffffu;
    }
}

static void x87_to16(uint16_t *out, const struct x87_image *image)
{
    const uint32_t *field = &image->fcw;

    for (unsigned i = 0; i < 7; i++)
        out[i] = (uint16_t)field[i];
}

static void x87_from16(struct x87_image *image, const uint16_t *in)
{
    uint32_t *field = &image->fcw;

    for (unsigned i = 0; i < 7; i++)
        field[i] = in[i];
}

static void x87_store(struct soft_vcpu *cpu, const struct insn *in)
{
    unsigned env = in->opsize == 2 ? 14 : X87_ENV;
    unsigned size = env + (in->src & X87_WHOLE ? X87_STACK : 0);
    gva_t gva = soft_operand(cpu, in, size, SOFT_WRITE);
    struct x87_image image;
    struct soft_x87 pointers;
    uint16_t env16[7];

    soft_probe_write(cpu, in->seg, gva + size - 1, 1); /* the order in which the hardware looks */
    soft_probe_write(cpu, in->seg, gva, size);
    soft_fpu_use(cpu);
    if (in->src & X87_WHOLE)
        __asm__ volatile("fnsave %0" : "=m"(image));
    else
        __asm__ volatile("fnstenv %0" : "=m"(image));
    pointers = x87_pointers(cpu, &image);
    x87_put_pointers(cpu, &image, &pointers);
    if (env == X87_ENV) {
        soft_store_bytes(cpu, in->seg, gva, &image, size);
        return;
    }
    x87_to16(env16, &image);
    soft_store_bytes(cpu, in->seg, gva, env16, env);
    if (in->src & X87_WHOLE)
        soft_store_bytes(cpu, in->seg, gva + env, image.stack, X87_STACK);
}

static void x87_load(struct soft_vcpu *cpu, const struct insn *in)
{
    unsigned env = in->opsize == 2 ? 14 : X87_ENV;
    unsigned size = env + (in->src & X87_WHOLE ? X87_STACK : 0);
    gva_t gva;
    uint8_t bytes[sizeof(struct x87_image)] __attribute__((aligned(8)));
    struct x87_image image;
    uint16_t fsw;

    soft_fpu_use(cpu);
    __asm__ volatile("fnstsw %0" : "=a"(fsw));
    if (fsw & X87_FSW_ES)
        soft_raise(cpu, VECTOR_MF);
    gva = soft_operand(cpu, in, size, SOFT_READ);
    soft_load_bytes(cpu, in->seg, gva, bytes, size);
    if (env == X87_ENV)
        soft_copy(&image, bytes, X87_ENV);
    else
        x87_from16(&image, (const uint16_t *)(const void *)bytes);
    if (in->src & X87_WHOLE)
        soft_copy(image.stack, bytes + env, X87_STACK);
    x87_get_pointers(cpu, &image, env != X87_ENV);
    soft_fpu_use(cpu);
    if (in->src & X87_WHOLE)
        __asm__ volatile("frstor %0" : : "m"(image));
    else
        __asm__ volatile("fldenv %0" : : "m"(image));
}

bool vector_bind_x87env(struct insn *in, const struct insn_decode *d)
{
    ZydisMnemonic m = d->z->mnemonic;
    bool store = m == ZYDIS_MNEMONIC_FNSTENV || m == ZYDIS_MNEMONIC_FNSAVE;
    bool whole = m == ZYDIS_MNEMONIC_FNSAVE || m == ZYDIS_MNEMONIC_FRSTOR;
    enum vector_gate gate = vector_gate(in, d, VECTOR_X87);

    if (gate != GATE_OPEN)
        return gate == GATE_NM;
    in->src = (uint8_t)((store ? X87_STORE : 0) | (whole ? X87_WHOLE : 0));
    in->fn = store ? x87_store : x87_load;
    return true;
}
