/* The vCPU's state at a kernel's first instruction, for the protocols that the loaders speak. */
#include "board/boot.h"

#include <errno.h>

#include "x86/arch.h"

/* Descriptor attributes in the form of struct cpu_segment. */
#define SEG_CODE32 (0xbu | CPU_SEG_S | CPU_SEG_P | CPU_SEG_DB | CPU_SEG_G)
#define SEG_CODE64 (0xbu | CPU_SEG_S | CPU_SEG_P | CPU_SEG_L | CPU_SEG_G)
#define SEG_DATA   (0x3u | CPU_SEG_S | CPU_SEG_P | CPU_SEG_DB | CPU_SEG_G)
#define SEG_TSS    (0xbu | CPU_SEG_P)

#define BOOT_CS 0x10u /* Linux's __BOOT_CS and __BOOT_DS: Documentation/arch/x86/boot.rst */
#define BOOT_DS 0x18u

static const struct cpu_segment code32 = {0, 0xffffffff, BOOT_CS, SEG_CODE32};
static const struct cpu_segment code64 = {0, 0xffffffff, BOOT_CS, SEG_CODE64};
static const struct cpu_segment data_flat = {0, 0xffffffff, BOOT_DS, SEG_DATA};

static void boot_state_flat(struct cpu_state *state, const struct cpu_segment *code,
                            uint64_t entry)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        state->seg[i] = data_flat;
    state->seg[SEG_CS] = *code;
    /* PVH asks for a 32-bit TSS with base 0 and limit 67h; the others do not look. */
    state->tr = (struct cpu_segment){0, 0x67, 0x20, SEG_TSS};
    state->ldtr = (struct cpu_segment){0, 0, 0, CPU_SEG_UNUSABLE};
    state->rip = entry;
    state->rflags = RFLAGS_ONE;
    state->cr0 = CR0_PE | CR0_ET;
    state->activity = CPU_RUNNING;
}

void boot_state_protected(struct cpu_state *state, uint64_t entry)
{
    boot_state_flat(state, &code32, entry);
}

static int boot_put_gdt(const struct boot_target *target)
{
    static const uint64_t gdt[4] = {
        [BOOT_CS / 8] = 0x00af9b000000ffff, /* 64-bit code */
        [BOOT_DS / 8] = 0x00cf93000000ffff, /* flat data */
    };

    target->state->gdtr = (struct cpu_table){BOOT_GDT, sizeof(gdt) - 1};
    return mem_write(target->mem, BOOT_GDT, gdt, sizeof(gdt));
}

/* One PML4, one PDPT, four page directories of 2 MiB pages. */
static int boot_put_page_tables(const struct boot_target *target)
{
    gpa_t pml4 = BOOT_PAGE_TABLES, pdpt = pml4 + PAGE_SIZE, pd = pdpt + PAGE_SIZE;
    int r = mem_fill(target->mem, BOOT_PAGE_TABLES, 0, 6 * PAGE_SIZE);

    if (r < 0)
        return r;
    mem_write64(target->mem, pml4, pdpt | PTE_P | PTE_W);
    for (unsigned i = 0; i < 4; i++)
        mem_write64(target->mem, pdpt + 8 * i, (pd + PAGE_SIZE * i) | PTE_P | PTE_W);
    for (uint64_t i = 0; i < 2048; i++)
        mem_write64(target->mem, pd + 8 * i, i << 21 | PTE_P | PTE_W | PTE_PS);
    return 0;
}

int boot_state_long(const struct boot_target *target, uint64_t entry)
{
    struct cpu_state *state = target->state;

    if (boot_put_gdt(target) < 0 || boot_put_page_tables(target) < 0)
        return -EFAULT;
    boot_state_flat(state, &code64, entry);
    state->cr0 = CR0_PE | CR0_ET | CR0_PG;
    state->cr3 = BOOT_PAGE_TABLES;
    state->cr4 = CR4_PAE;
    state->efer = EFER_LME | EFER_LMA;
    return 0;
}
