#include "cpu/soft/context.h"

#include "cpu/soft/mmu.h"
#include "cpu/soft/vcpu.h"

static void tlb_clear(struct soft_tlb_entry *e)
{
    e->read = SOFT_TLB_EMPTY;
    e->write = SOFT_TLB_EMPTY;
}

/* The guest may put anything into RIP: no set has a mark that is looked for there. */
static gva_t jump_empty(const struct soft_context *context, const struct soft_jump_set *set)
{
    return set == context->jump ? SOFT_JUMP_EMPTY : 0;
}

static void jump_clear(const struct soft_context *context, struct soft_jump_set *set)
{
    for (unsigned i = 0; i < SOFT_JUMP_WAYS; i++)
        set->way[i].rip = jump_empty(context, set);
}

/* The lowest member of a word of a set, which it leaves. */
static unsigned take_bit(uint64_t *word)
{
    unsigned bit = (unsigned)__builtin_ctzll(*word);

    *word &= *word - 1;
    return bit;
}

static void note(uint64_t *set, size_t index)
{
    set[index / 64] |= 1ull << (index % 64);
}

static void tlb_wipe(struct soft_context *context)
{
    for (unsigned i = 0; i < SOFT_TLB_SIZE / 64; i++) {
        while (context->filled.tlb[i])
            tlb_clear(&context->tlb[i * 64 + take_bit(&context->filled.tlb[i])]);
        context->local.tlb[i] = 0;
    }
}

static void jump_wipe(struct soft_context *context)
{
    for (unsigned i = 0; i < SOFT_JUMP_SETS / 64; i++) {
        while (context->filled.jump[i])
            jump_clear(context, &context->jump[i * 64 + take_bit(&context->filled.jump[i])]);
        context->local.jump[i] = 0;
    }
}

/* A slot may by now hold a global entry. */
static void tlb_wipe_local(struct soft_context *context)
{
    for (unsigned i = 0; i < SOFT_TLB_SIZE / 64; i++) {
        while (context->local.tlb[i]) {
            struct soft_tlb_entry *e = &context->tlb[i * 64 + take_bit(&context->local.tlb[i])];

            if (!e->global)
                tlb_clear(e);
        }
    }
}

static void jump_set_wipe_local(const struct soft_context *context, struct soft_jump_set *set)
{
    for (unsigned i = 0; i < SOFT_JUMP_WAYS; i++) {
        if (!(set->way[i].block & SOFT_JUMP_GLOBAL))
            set->way[i].rip = jump_empty(context, set);
    }
}

static void jump_wipe_local(struct soft_context *context)
{
    for (unsigned i = 0; i < SOFT_JUMP_SETS / 64; i++) {
        while (context->local.jump[i])
            jump_set_wipe_local(context, &context->jump[i * 64 + take_bit(&context->local.jump[i])]);
    }
}

static void context_begin(struct soft_context *context)
{
    tlb_clear(&context->tlb[0]); /* of page 0 */
    tlb_clear(&context->tlb[SOFT_TLB_SIZE - 1]); /* of an access that begins in the page before */
    jump_clear(context, &context->jump[0]);
    context->ready = true;
}

/* An empty TLB now; the jumps go when the context is selected. */
static void context_reset(struct soft_context *context)
{
    if (!context->ready)
        context_begin(context);
    tlb_wipe(context);
    context->jump_generation = 0;
}

void soft_context_note_tlb(struct soft_context *context, const struct soft_tlb_entry *e)
{
    size_t index = (size_t)(e - context->tlb);

    note(context->filled.tlb, index);
    if (!e->global)
        note(context->local.tlb, index);
}

void soft_context_put_jump(struct soft_context *context, struct soft_jump jump)
{
    struct soft_jump_set *set = soft_jump_set(context, jump.rip);
    size_t index = (size_t)(set - context->jump);
    unsigned last = 0;

    while (last < SOFT_JUMP_WAYS - 1 && set->way[last].rip != jump.rip)
        last++;
    for (unsigned i = last; i > 0; i--)
        set->way[i] = set->way[i - 1];
    set->way[0] = jump;
    note(context->filled.jump, index);
    if (!(jump.block & SOFT_JUMP_GLOBAL))
        note(context->local.jump, index);
}

static struct soft_context *shared_context(struct soft_mmu *mmu, unsigned index)
{
    struct soft_context *context = &mmu->context[index];

    if (unlikely(!context->ready))
        context_reset(context);
    return context;
}

/* Finds or recycles a context for the current address space. */
static unsigned user_find(struct soft_mmu *mmu)
{
    unsigned oldest = 0;

    for (unsigned i = 0; i < SOFT_USER_CONTEXTS; i++) {
        if (mmu->user_asid[i] == mmu->asid)
            return i;
        if (mmu->user_used[i] < mmu->user_used[oldest])
            oldest = i;
    }
    context_reset(&mmu->context[SOFT_MMU_USER + oldest]);
    mmu->user_asid[oldest] = mmu->asid;
    return oldest;
}

static struct soft_context *user_context(struct soft_mmu *mmu)
{
    if (unlikely(mmu->user_asid[mmu->user] != mmu->asid)) {
        mmu->user = user_find(mmu);
        mmu->user_used[mmu->user] = ++mmu->user_clock;
    }
    return &mmu->context[SOFT_MMU_USER + mmu->user];
}

void soft_context_select(struct soft_vcpu *cpu)
{
    struct soft_mmu *mmu = cpu->mmu;
    struct soft_context *context = cpu->mmu_index == SOFT_MMU_USER
                                       ? user_context(mmu)
                                       : shared_context(mmu, cpu->mmu_index);

    if (unlikely(context->mode != cpu->mode || context->jump_generation != mmu->jump_generation)) {
        jump_wipe(context);
        context->mode = cpu->mode;
        context->jump_generation = mmu->jump_generation;
    }
    cpu->context = context;
}

void soft_context_init(struct soft_mmu *mmu)
{
    mmu->jump_generation = 1;
    context_reset(&mmu->context[SOFT_MMU_KERNEL]); /* soft_system_load() looks into it at any time */
}

void soft_context_flush(struct soft_mmu *mmu)
{
    for (unsigned i = 0; i < SOFT_MMU_USER; i++) {
        if (mmu->context[i].ready)
            context_reset(&mmu->context[i]);
    }
    soft_zero(mmu->user_asid, sizeof(mmu->user_asid));
    soft_zero(mmu->user_used, sizeof(mmu->user_used));
}

void soft_context_flush_local(struct soft_mmu *mmu)
{
    for (unsigned i = 0; i < SOFT_MMU_USER; i++) {
        struct soft_context *context = &mmu->context[i];

        tlb_wipe_local(context);
        jump_wipe_local(context);
    }
}

void soft_context_forget(struct soft_mmu *mmu, uint64_t asid)
{
    for (unsigned i = 0; i < SOFT_USER_CONTEXTS; i++) {
        if (mmu->user_asid[i] == asid) {
            mmu->user_asid[i] = 0;
            mmu->user_used[i] = 0;
        }
    }
}

/* False: whatever it holds is wiped before use. */
static bool context_live(const struct soft_mmu *mmu, unsigned i)
{
    return i < SOFT_MMU_USER ? mmu->context[i].ready : mmu->user_asid[i - SOFT_MMU_USER] != 0;
}

void soft_context_drop_page(struct soft_mmu *mmu, gva_t page)
{
    for (unsigned i = 0; i < SOFT_CONTEXTS; i++) {
        struct soft_tlb_entry *e = soft_tlb_slot(&mmu->context[i], page);

        if (context_live(mmu, i) && (e->read == page || e->write == page))
            tlb_clear(e);
    }
}

static void jump_set_drop(const struct soft_context *context, struct soft_jump_set *set, gva_t page)
{
    for (unsigned i = 0; i < SOFT_JUMP_WAYS; i++) {
        if ((set->way[i].rip & PAGE_MASK) == page)
            set->way[i].rip = jump_empty(context, set);
    }
}

/* Of the 4096 addresses of a page each may have an entry of its own: all that are filled are looked at. */
static void context_drop_jumps(struct soft_context *context, gva_t page)
{
    for (unsigned i = 0; i < SOFT_JUMP_SETS / 64; i++) {
        uint64_t filled = context->filled.jump[i];

        while (filled)
            jump_set_drop(context, &context->jump[i * 64 + take_bit(&filled)], page);
    }
}

void soft_context_drop_jumps(struct soft_mmu *mmu, gva_t page)
{
    for (unsigned i = 0; i < SOFT_CONTEXTS; i++) {
        if (context_live(mmu, i))
            context_drop_jumps(&mmu->context[i], page);
    }
}

static void context_revoke(struct soft_context *context, uint64_t host_page)
{
    for (unsigned i = 0; i < SOFT_TLB_SIZE / 64; i++) {
        uint64_t filled = context->filled.tlb[i];

        while (filled) {
            struct soft_tlb_entry *e = &context->tlb[i * 64 + take_bit(&filled)];

            if (host_page == 0 || e->write + e->addend == host_page)
                e->write = SOFT_TLB_EMPTY;
        }
    }
}

bool soft_context_writes(struct soft_mmu *mmu, gva_t page, uint64_t host_page)
{
    for (unsigned i = 0; i < SOFT_CONTEXTS; i++) {
        const struct soft_tlb_entry *e = soft_tlb_slot(&mmu->context[i], page);

        if (context_live(mmu, i) && e->write == page && page + e->addend == host_page)
            return true;
    }
    return false;
}

void soft_context_revoke_page(struct soft_mmu *mmu, gva_t page)
{
    for (unsigned i = 0; i < SOFT_CONTEXTS; i++) {
        struct soft_tlb_entry *e = soft_tlb_slot(&mmu->context[i], page);

        if (context_live(mmu, i) && e->write == page)
            e->write = SOFT_TLB_EMPTY;
    }
}

void soft_context_revoke(struct soft_mmu *mmu, uint64_t host_page)
{
    for (unsigned i = 0; i < SOFT_CONTEXTS; i++) {
        if (context_live(mmu, i))
            context_revoke(&mmu->context[i], host_page);
    }
}
