#include "cpu/soft/fpu.h"

#include "cpu/soft/code.h"
#include "cpu/soft/trap.h"

#define FPU_STATES (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512)
#define FPU_MXCSR_DEFAULT 0x1f80u

/* XSAVE area, SDM vol. 1 13.4: legacy region and header as 64-bit XSAVE writes them. */
struct fpu_image {
    uint16_t fcw, fsw;
    uint8_t ftw, reserved;
    uint16_t fop;
    uint64_t fip, fdp;
    uint32_t mxcsr, mxcsr_mask;
    uint8_t registers[480];
    uint64_t xstate_bv, xcomp_bv, header_reserved[6];
};

uint64_t soft_fpu_host_xcr0(void)
{
    uint32_t low, high;

    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low & FPU_STATES;
}

uint32_t soft_fpu_mxcsr_mask(void)
{
    struct fpu_image image __attribute__((aligned(64)));

    image.mxcsr_mask = 0;
    __asm__ volatile("fxsave64 %0" : "=m"(*(uint8_t(*)[512])(void *)&image));
    return image.mxcsr_mask ? image.mxcsr_mask : 0xffbf; /* SDM vol. 1 11.6.6 */
}

/* A state that came from outside (a snapshot, a test) must not make XRSTOR fault. */
static void fpu_sanitize(struct fpu_image *image)
{
    uint32_t mask;

    image->xstate_bv &= FPU_STATES;
    image->xcomp_bv = 0;
    for (unsigned i = 0; i < 6; i++)
        image->header_reserved[i] = 0;
    if (image->mxcsr & 0xffff0000u) {
        mask = soft_fpu_mxcsr_mask();
        image->mxcsr &= mask;
    }
}

void soft_fpu_pointers(const struct soft_vcpu *cpu, struct soft_x87 *pointers)
{
    uint16_t fop = pointers->fop & 0x7ffu;
    uint64_t host_fdp;

    if (!soft_code_contains(cpu->code, pointers->fip)) {
        pointers->fop = fop;
        return;
    }
    host_fdp = pointers->fdp;
    *pointers = cpu->x87;
    if (!host_fdp)
        pointers->fdp = pointers->fds = 0;
    /* Where the opcode is only recorded on exceptions it may be zero; ModRM's mod and rm are the stub's. */
    if (((fop ^ cpu->x87.fop) & 0x738u) != 0)
        pointers->fop = fop;
}

void soft_fpu_load(struct soft_vcpu *cpu)
{
    struct fpu_image *image = (void *)cpu->s.xsave;
    uint64_t have = soft_fpu_host_xcr0();

    fpu_sanitize(image);
    image->xstate_bv &= have;
    __asm__ volatile("xrstor64 %0" : : "m"(cpu->s.xsave), "a"(FPU_STATES), "d"(0) : "memory");
    cpu->fpu_live = true;
    soft_trap_enter(cpu);
}

void soft_fpu_save(struct soft_vcpu *cpu)
{
    struct fpu_image *image = (void *)cpu->s.xsave;
    static const uint32_t mxcsr = FPU_MXCSR_DEFAULT;
    struct soft_x87 pointers;

    __asm__ volatile("xsave64 %0" : "+m"(cpu->s.xsave) : "a"(FPU_STATES), "d"(0) : "memory");
    pointers = (struct soft_x87){.fip = image->fip, .fdp = image->fdp, .fop = image->fop};
    soft_fpu_pointers(cpu, &pointers);
    image->fip = pointers.fip;
    image->fdp = pointers.fdp;
    image->fop = pointers.fop;
    __asm__ volatile("fninit\n\tldmxcsr %0" : : "m"(mxcsr));
    /* The state is saved: dirty upper halves would only slow the host's SSE code down. */
    if (image->xstate_bv & XCR0_AVX)
        __asm__ volatile("vzeroupper");
    cpu->fpu_live = false;
}
