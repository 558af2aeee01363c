/* One block from guest to host code: decode, choose where its entries have the flags, translate, finish. */
#include "cpu/soft/jit/translate.h"

#include "cpu/soft/vm.h"

#define BYTES_PER_INSN 256u /* of host code, generously */
#define BYTES_PER_BLOCK 1024u

/* ---- what the classes use ---- */

void jit_to_thunk(struct jit_translation *t, enum soft_jit_thunk thunk)
{
    asm_jmp(&t->a, t->jit->thunk[thunk]);
}

void jit_to_thunk_if(struct jit_translation *t, unsigned condition, enum soft_jit_thunk thunk)
{
    asm_jcc(&t->a, condition, t->jit->thunk[thunk]);
}

static unsigned new_cold(struct jit_translation *t, int kind, uint32_t site)
{
    if (t->cold_count == JIT_COLD_MAX) {
        t->failed = true;
        return 0;
    }
    t->work->cold[t->cold_count] = (struct jit_cold){
        .kind = kind, .site = {site, 0}, .index = (uint8_t)t->index};
    return t->cold_count++;
}

unsigned jit_cold_call(struct jit_translation *t, uint32_t site)
{
    return new_cold(t, JIT_COLD_CALL, site);
}

void jit_cold_resume(struct jit_translation *t, unsigned cold)
{
    t->work->cold[cold].resume = t->a.at;
}

void jit_trap_here(struct jit_translation *t, unsigned flags)
{
    if (t->trap_count == JIT_TRAPS_MAX) {
        t->failed = true;
        return;
    }
    t->work->trap[t->trap_count++] = (struct jit_trap){
        .at = t->a.at, .offset = t->i->offset, .index = (uint8_t)t->index, .flags = (uint8_t)flags};
}

/* The descriptor follows the jump; T0 leads to it. */
static void emit_call(struct jit_translation *t, unsigned index, uint32_t resume, bool rest)
{
    struct asm_code *a = &t->a;
    uint32_t site;

    asm_bytes(a, (const uint8_t[]){0x4c, 0x8d, 0x15}, 3); /* lea r10, [rip + 5] */
    asm_u32(a, 5);
    jit_to_thunk(t, JIT_CALL);
    site = a->at;
    asm_u64(a, (uint64_t)(uintptr_t)t->block);
    asm_u32(a, resume ? resume - site : 0);
    asm_u16(a, t->work->insn[index].offset);
    asm_byte(a, index);
    asm_byte(a, rest);
}

void jit_call_interpreter(struct jit_translation *t)
{
    jit_flags_save(t);
    emit_call(t, t->index, t->a.at + 12 + (uint32_t)sizeof(struct jit_site), false);
    t->flags = JIT_LIVE | JIT_SAVED;
}

void jit_poll(struct jit_translation *t)
{
    jit_flags_save(t);
    asm_op_mem(&t->a, false, 0x83, ASM_CMP, JIT_FIELD(attention));
    asm_byte(&t->a, 0);
    new_cold(t, JIT_COLD_EXIT_AT, asm_jcc(&t->a, ASM_CC_NE, 0));
}

/* The same without touching the flags: a load that faults unless `attention` is zero (vcpu.h). */
static void poll_by_fault(struct jit_translation *t)
{
    struct asm_mem at = {ASM_NONE, JIT_T0, 3, true, SOFT_VCPU_POLL};

    asm_op_mem(&t->a, false, 0x8b, JIT_T0, JIT_FIELD(attention));
    jit_trap_here(t, JIT_LIVE | JIT_POLL);
    asm_op_mem(&t->a, false, 0x8b, JIT_T0, at);
}

/* ---- decoding ---- */

static bool decode(struct jit_translation *t)
{
    const struct soft_block *block = t->block;
    const struct mem_slot *slot = mem_slot_find(t->cpu->base.vm->machine->mem, block->gpa);
    unsigned offset = (unsigned)(block->gpa & ~PAGE_MASK);
    const uint8_t *bytes = slot ? slot->host + (block->gpa - slot->gpa) : NULL;

    if (!bytes || block->gpa2 != SOFT_BLOCK_ONE_PAGE)
        return false;
    for (unsigned k = 0; k < block->count; k++) {
        struct jit_insn *i = &t->work->insn[k];

        i->in = &block->insn[k];
        i->bytes = bytes;
        i->offset = (uint16_t)offset;
        if (!soft_decode_fields(block->mode, bytes, i->in->length, &i->z, i->operand))
            i->class = JIT_INTERPRET; /* it raises an exception, or has just been changed */
        else
            jit_classify(i);
        if (i->class == JIT_INTERPRET)
            i->flags_clobbered = true;
        bytes += i->in->length;
        offset += i->in->length;
    }
    return true;
}

/* ---- the entries ---- */

enum entry { ENTRY_SAVED, ENTRY_LIVE, ENTRY_ANY };

static bool traps(const struct jit_insn *i)
{
    return i->class == JIT_VECTOR || i->z.mnemonic == ZYDIS_MNEMONIC_DIV ||
           i->z.mnemonic == ZYDIS_MNEMONIC_IDIV;
}

/* Where the block wants the flags: saved when they are in its way before it changes them, live when it
 * depends on them or passes them on; no matter when it overwrites them first. */
static enum entry choose_entry(const struct jit_translation *t)
{
    for (unsigned k = 0; k < t->block->count; k++) {
        const struct jit_insn *i = &t->work->insn[k];

        if (i->flags_clobbered)
            return ENTRY_SAVED;
        if (i->flags_read || traps(i))
            return ENTRY_LIVE;
        if (i->flags_written)
            return ENTRY_ANY;
    }
    return ENTRY_LIVE;
}

/* Its first five bytes are replaced when the block is removed, in one aligned store. */
static uint32_t new_entry(struct jit_translation *t)
{
    asm_align(&t->a, 8, 0);
    asm_nop5(&t->a);
    return t->a.at - 5;
}

static void emit_entries(struct jit_translation *t)
{
    const struct jit_insn *last = &t->work->insn[t->block->count - 1];
    bool circle = jit_goes_back(last, t->work->insn[0].offset);
    enum entry entry = choose_entry(t);
    struct soft_native *n = t->native;

    if (entry == ENTRY_ANY && circle)
        entry = ENTRY_LIVE; /* to leave, the flags must be known */
    n->prefers_saved = entry == ENTRY_SAVED;
    if (entry == ENTRY_SAVED) {
        n->entry_live = new_entry(t);
        jit_emit_flags_save(&t->a);
        n->entry_saved = new_entry(t);
        t->flags = JIT_SAVED;
        if (circle)
            jit_poll(t);
        return;
    }
    n->entry_saved = new_entry(t);
    n->entry_live = n->entry_saved;
    t->flags = JIT_LIVE;
    if (entry == ENTRY_ANY)
        return;
    jit_emit_flags_load(&t->a);
    n->entry_live = new_entry(t);
    if (circle)
        poll_by_fault(t);
}

/* ---- the instructions ---- */

static void translate_one(struct jit_translation *t)
{
    static void (*const classes[])(struct jit_translation *) = {
        [JIT_INTERPRET] = jit_call_interpreter, [JIT_PLAIN] = jit_plain,
        [JIT_VECTOR] = jit_plain,               [JIT_LEA] = jit_lea,
        [JIT_PUSH] = jit_push,                  [JIT_POP] = jit_pop,
        [JIT_LEAVE_FRAME] = jit_leave_frame,    [JIT_JMP] = jit_jmp,
        [JIT_JCC] = jit_jcc,                    [JIT_CALL_NEAR] = jit_call_near,
        [JIT_RET] = jit_ret,
    };

    if (t->i->class != JIT_NOP)
        classes[t->i->class](t);
}

static bool transfers(const struct jit_insn *i)
{
    return i->class >= JIT_JMP;
}

static void emit_body(struct jit_translation *t)
{
    const struct jit_insn *last = &t->work->insn[t->block->count - 1];

    for (t->index = 0; t->index < t->block->count; t->index++) {
        t->i = &t->work->insn[t->index];
        translate_one(t);
    }
    if (!transfers(last))
        jit_go_on(t, (unsigned)last->offset + last->in->length);
}

/* ---- what is off the path ---- */

static void emit_exit_at(struct jit_translation *t, unsigned offset)
{
    asm_mov_imm(&t->a, JIT_T0, offset);
    jit_to_thunk(t, JIT_EXIT_AT);
}

static void emit_cold(struct jit_translation *t)
{
    for (unsigned k = 0; k < t->cold_count; k++) {
        const struct jit_cold *cold = &t->work->cold[k];

        asm_patch(&t->a, cold->site[0], t->a.at);
        if (cold->kind == JIT_COLD_CALL)
            emit_call(t, cold->index, cold->resume, cold->rest);
        else
            emit_exit_at(t, t->work->insn[cold->index].offset);
    }
}

static void emit_links(struct jit_translation *t)
{
    for (unsigned k = 0; k < t->link_count; k++) {
        struct jit_link *link = &t->native->out[k];

        link->unlinked = t->a.at;
        asm_patch(&t->a, link->site, t->a.at);
        if (!(link->flags & JIT_SAVED))
            jit_emit_flags_save(&t->a);
        asm_mov_imm(&t->a, JIT_T0, (uint64_t)(uintptr_t)link);
        jit_to_thunk(t, JIT_EXIT_LINK);
    }
}

static void emit_stale(struct jit_translation *t)
{
    t->native->stale_live = t->a.at;
    jit_emit_flags_save(&t->a);
    t->native->stale_saved = t->a.at;
    emit_exit_at(t, t->work->insn[0].offset);
}

/* ---- the whole ---- */

static void *meta_take(struct soft_jit *jit, size_t size)
{
    void *at = jit->meta + jit->meta_used;

    jit->meta_used += align_up(size, 8);
    return at;
}

static bool meta_room(const struct soft_jit *jit)
{
    return jit->meta_used + sizeof(struct soft_native) +
                   JIT_TRAPS_MAX * sizeof(struct jit_trap) + 16 <= SOFT_JIT_META &&
           jit->count < SOFT_JIT_BLOCKS;
}

static void keep_traps(struct jit_translation *t)
{
    size_t size = t->trap_count * sizeof(struct jit_trap);

    t->native->trap = meta_take(t->jit, size);
    t->native->trap_count = (uint16_t)t->trap_count;
    soft_copy(t->native->trap, t->work->trap, size);
}

static struct soft_native *finish(struct jit_translation *t)
{
    struct soft_jit *jit = t->jit;

    if (t->a.overflow || t->failed)
        return NULL; /* the room is used again */
    keep_traps(t);
    t->native->end = t->a.at;
    soft_code_commit(jit->code, t->a.at);
    jit->native[jit->count] = t->native;
    atomic_fetch_add_explicit(&jit->count, 1, memory_order_release);
    return t->native;
}

struct soft_native *soft_jit_translate(struct soft_vcpu *cpu, struct soft_block *block)
{
    struct soft_jit *jit = cpu->soft_vm->jit;
    struct jit_translation t = {
        .cpu = cpu, .jit = jit, .block = block, .work = cpu->jit_work,
        .a = {.base = jit->write, .bmi2 = jit->bmi2},
    };
    uint32_t room = block->count * BYTES_PER_INSN + BYTES_PER_BLOCK;

    if (!(block->mode & SOFT_MODE_CODE64) || !decode(&t))
        return NULL;
    if (!meta_room(jit)) {
        soft_code_exhaust(jit->code);
        return NULL;
    }
    if (!soft_code_reserve(jit->code, room, &t.a.at))
        return NULL;
    t.a.end = t.a.at + room;
    t.i = &t.work->insn[0];
    t.native = meta_take(jit, sizeof(*t.native));
    *t.native = (struct soft_native){.block = block, .start = t.a.at};
    emit_entries(&t);
    emit_body(&t);
    emit_cold(&t);
    emit_links(&t);
    emit_stale(&t);
    return finish(&t);
}
