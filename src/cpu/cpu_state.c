#include "cpu/cpu_state.h"

#include <string.h>

#include "x86/arch.h"

static const struct state_field cpu_segment_fields[] = {
    STATE_UINT(struct cpu_segment, base),
    STATE_UINT(struct cpu_segment, limit),
    STATE_UINT(struct cpu_segment, selector),
    STATE_UINT(struct cpu_segment, attr),
    STATE_FIELDS_END,
};

static const struct state_field cpu_table_fields[] = {
    STATE_UINT(struct cpu_table, base),
    STATE_UINT(struct cpu_table, limit),
    STATE_FIELDS_END,
};

static const struct state_field cpu_msrs_fields[] = {
    STATE_UINT(struct cpu_msrs, apic_base),
    STATE_UINT(struct cpu_msrs, tsc_adjust),
    STATE_UINT(struct cpu_msrs, spec_ctrl),
    STATE_UINT(struct cpu_msrs, sysenter_cs),
    STATE_UINT(struct cpu_msrs, sysenter_esp),
    STATE_UINT(struct cpu_msrs, sysenter_eip),
    STATE_UINT(struct cpu_msrs, misc_enable),
    STATE_UINT(struct cpu_msrs, pat),
    STATE_UINT(struct cpu_msrs, star),
    STATE_UINT(struct cpu_msrs, lstar),
    STATE_UINT(struct cpu_msrs, cstar),
    STATE_UINT(struct cpu_msrs, sfmask),
    STATE_UINT(struct cpu_msrs, kernel_gs_base),
    STATE_UINT(struct cpu_msrs, tsc_aux),
    STATE_UINT(struct cpu_msrs, tsc_deadline),
    STATE_UINT(struct cpu_msrs, xss),
    STATE_UINT(struct cpu_msrs, debugctl),
    STATE_UINT(struct cpu_msrs, mtrr_def_type),
    STATE_UINT_ARRAY(struct cpu_msrs, mtrr_fixed),
    STATE_UINT_ARRAY(struct cpu_msrs, mtrr_phys_base),
    STATE_UINT_ARRAY(struct cpu_msrs, mtrr_phys_mask),
    STATE_UINT(struct cpu_msrs, kvm_wall_clock),
    STATE_UINT(struct cpu_msrs, kvm_system_time),
    STATE_UINT(struct cpu_msrs, kvm_poll_control),
    STATE_FIELDS_END,
};

static const struct state_field cpu_state_fields[] = {
    STATE_UINT_ARRAY(struct cpu_state, gpr),
    STATE_UINT(struct cpu_state, rip),
    STATE_UINT(struct cpu_state, rflags),
    STATE_STRUCT_ARRAY(struct cpu_state, seg, cpu_segment_fields),
    STATE_STRUCT(struct cpu_state, ldtr, cpu_segment_fields),
    STATE_STRUCT(struct cpu_state, tr, cpu_segment_fields),
    STATE_STRUCT(struct cpu_state, gdtr, cpu_table_fields),
    STATE_STRUCT(struct cpu_state, idtr, cpu_table_fields),
    STATE_UINT(struct cpu_state, cr0),
    STATE_UINT(struct cpu_state, cr2),
    STATE_UINT(struct cpu_state, cr3),
    STATE_UINT(struct cpu_state, cr4),
    STATE_UINT(struct cpu_state, cr8),
    STATE_UINT(struct cpu_state, efer),
    STATE_UINT(struct cpu_state, xcr0),
    STATE_UINT_ARRAY(struct cpu_state, dr),
    STATE_UINT(struct cpu_state, dr6),
    STATE_UINT(struct cpu_state, dr7),
    STATE_STRUCT(struct cpu_state, msr, cpu_msrs_fields),
    STATE_UINT(struct cpu_state, tsc),
    STATE_UINT(struct cpu_state, activity),
    STATE_UINT(struct cpu_state, interrupt_shadow),
    STATE_UINT(struct cpu_state, nmi_blocked),
    STATE_UINT(struct cpu_state, nmi_pending),
    STATE_UINT(struct cpu_state, smm),
    STATE_UINT(struct cpu_state, sipi_vector),
    STATE_UINT(struct cpu_state, sipi_pending),
    STATE_UINT(struct cpu_state, event_valid),
    STATE_UINT(struct cpu_state, event_vector),
    STATE_UINT(struct cpu_state, event_type),
    STATE_UINT(struct cpu_state, event_has_error),
    STATE_UINT(struct cpu_state, event_error),
    STATE_BYTES(struct cpu_state, xsave),
    STATE_FIELDS_END,
};

const struct state_table cpu_state_table = {
    .name = "cpu",
    .version = 1,
    .fields = cpu_state_fields,
};

#define PAT_RESET 0x0007040600070406ull

/* x87 control word, MXCSR and the XSAVE header's XSTATE_BV: FINIT state, SDM vol. 1 13.4. */
static void cpu_state_reset_xsave(struct cpu_state *state)
{
    const uint16_t fcw = 0x0040; /* after RESET, not FNINIT */
    const uint32_t mxcsr = 0x1f80;
    const uint64_t xstate_bv = XCR0_X87 | XCR0_SSE;

    memset(state->xsave, 0, sizeof(state->xsave));
    memcpy(&state->xsave[0], &fcw, sizeof(fcw));
    state->xsave[4] = 0xff; /* abridged tag word of 5555h: all registers hold +0.0 */
    memcpy(&state->xsave[24], &mxcsr, sizeof(mxcsr));
    memcpy(&state->xsave[512], &xstate_bv, sizeof(xstate_bv));
}

void cpu_state_reset(struct cpu_state *state, bool bsp)
{
    const struct cpu_segment data = {.limit = 0xffff, .attr = 0x93};

    memset(state, 0, sizeof(*state));
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->seg[i] = data;
    state->seg[SEG_CS] = (struct cpu_segment){
        .base = 0xffff0000, .limit = 0xffff, .selector = 0xf000, .attr = 0x9b};
    state->ldtr = (struct cpu_segment){.limit = 0xffff, .attr = 0x82};
    state->tr = (struct cpu_segment){.limit = 0xffff, .attr = 0x8b};
    state->gdtr.limit = 0xffff;
    state->idtr.limit = 0xffff;
    state->gpr[GPR_RDX] = 0x600; /* family of the processor; software should use CPUID */
    state->rip = 0xfff0;
    state->rflags = RFLAGS_ONE;
    state->cr0 = CR0_CD | CR0_NW | CR0_ET;
    state->xcr0 = XCR0_X87;
    state->dr6 = 0xffff0ff0;
    state->dr7 = 0x400;
    state->msr.apic_base = APIC_DEFAULT_PHYS | APIC_BASE_ENABLE | (bsp ? APIC_BASE_BSP : 0);
    state->msr.misc_enable = 1; /* fast strings */
    state->msr.pat = PAT_RESET;
    state->msr.kvm_poll_control = 1;
    state->activity = bsp ? CPU_RUNNING : CPU_WAIT_SIPI;
    cpu_state_reset_xsave(state);
}
