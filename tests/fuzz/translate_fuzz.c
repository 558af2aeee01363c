/*
 * Any bytes as a guest's code: decoded and translated, also as traces, not executed. The first byte chooses the
 * mode and where in the page the code is, the second the processor's state; translations are removed again by a
 * store into the middle of them.
 */
#include <sanitizer/lsan_interface.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "core/memory.h"
#include "cpu/soft/block.h"
#include "cpu/soft/code.h"
#include "cpu/soft/jit/jit.h"
#include "cpu/soft/vm.h"
#include "../unit/cpu/soft/fixture.h"

#define FUZZ_BLOCKS 24u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* One machine for all inputs: it is what takes time. */
static struct fixture *fuzz_fixture(void)
{
    static struct fixture f;

    if (f.machine)
        return &f;
    __lsan_disable(); /* kept to the end, and reached from mappings that the leak checker does not look into */
    fixture_init(&f, 1);
    __lsan_enable();
    return &f;
}

static void fuzz_mode(struct fixture *f, uint8_t mode)
{
    static const uint8_t bits[] = {64, 64, 64, 64, 64, 64, 32, 16};
    struct cpu_state *s = fixture_state(f, 0);

    fixture_mode(f, 0, bits[mode & 7]);
    if (mode & 8)
        s->cr0 |= CR0_TS;
    if (mode & 16)
        s->cr4 |= CR4_OSXSAVE;
    if (mode & 32)
        s->xcr0 = 0xe7;
    if (mode & 64)
        s->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT;
    soft_mode_update(fixture_cpu(f, 0));
}

/* What the translator must keep true of each translation. */
static void fuzz_check(const struct soft_vcpu *cpu, const struct soft_native *native)
{
    if (native->start >= native->end || native->part_count == 0 || native->part_count > JIT_PARTS)
        abort();
    if (native->entry_live < native->start || native->entry_live >= native->end ||
        native->entry_saved < native->start || native->entry_saved >= native->end)
        abort();
    for (unsigned i = 0; i < native->trap_count; i++) {
        const struct jit_trap *trap = &native->trap[i];

        if (soft_jit_trap(cpu->soft_vm->jit, soft_jit_address(cpu->soft_vm->jit, trap->at)) != trap)
            abort();
    }
    for (unsigned i = 0; i < native->link_count; i++) {
        uint32_t unlinked = native->link[i].site + (uint32_t)native->link[i].unlinked;

        if (unlinked < native->start || unlinked >= native->end)
            abort();
    }
}

/* Blocks one after the other as execution would find them, then their translations. */
static void fuzz_translate(struct soft_vcpu *cpu, gva_t at)
{
    struct soft_block *block[FUZZ_BLOCKS];
    unsigned count = 0;
    gva_t end = (at & PAGE_MASK) + PAGE_SIZE;

    while (count < FUZZ_BLOCKS && at < end) {
        block[count] = soft_block_find(cpu, at);
        if (block[count] == &cpu->scratch->block)
            return;
        at += block[count]->bytes;
        block[count]->runs = (uint16_t)(count * 7 % 5);
        count++;
    }
    for (unsigned i = count; i-- > 0;) {
        const struct soft_native *native;

        if (atomic_load(&block[i]->valid))
            soft_block_translate(cpu, block[i]);
        native = atomic_load(&block[i]->native);
        if (native)
            fuzz_check(cpu, native);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fixture *f = fuzz_fixture();
    struct soft_vcpu *cpu = fixture_cpu(f, 0);
    uint8_t page[PAGE_SIZE];
    unsigned offset;

    log_set_level(LOG_ERROR);
    if (size < 4 || size > 2048)
        return 0;
    offset = data[0] & 0x80 ? (unsigned)(PAGE_SIZE - (size - 2)) : (data[0] & 0x7fu) * 8u;
    memset(page, 0x90, sizeof(page));
    memcpy(page + offset, data + 2, size - 2);
    fixture_load(f, FIXTURE_CODE, page, sizeof(page));
    fuzz_mode(f, data[1]);
    fuzz_translate(cpu, FIXTURE_CODE + offset);
    soft_code_written(cpu->cache, FIXTURE_CODE + offset + data[0] % (size - 2), 1);
    fuzz_translate(cpu, FIXTURE_CODE + offset);
    return 0;
}
