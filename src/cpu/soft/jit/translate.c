/* One block from guest to host code: decode, choose where its entries have the flags, translate, finish. */
#include "cpu/soft/jit/loop.h"

#include "cpu/soft/vm.h"

#define TRANSLATION_ROOM (30u << 10) /* bytes; distances in struct jit_site have 16 bits */

/* ---- what the classes use ---- */

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
    t->work->cold[t->cold_count] = (struct jit_cold){.kind = kind,
                                                     .site = site,
                                                     .insn = (uint8_t)t->index,
                                                     .flags = t->flags,
                                                     .recipe = t->recipe};
    return t->cold_count++;
}

unsigned jit_cold_call(struct jit_translation *t, uint32_t site)
{
    return new_cold(t, JIT_COLD_CALL, site);
}

void jit_cold_resume(struct jit_translation *t, unsigned cold)
{
    if (cold != JIT_NO_COLD)
        t->work->cold[cold].resume = t->a.at;
}

void jit_trap_here(struct jit_translation *t, unsigned flags)
{
    if (t->trap_count == JIT_TRAPS_MAX) {
        t->failed = true;
        return;
    }
    t->work->trap[t->trap_count++] =
        (struct jit_trap){.at = t->a.at, .offset = t->i->offset, .flags = (uint8_t)flags};
}

void jit_call_thunk(struct jit_translation *t, enum soft_jit_thunk thunk)
{
    asm_byte(&t->a, 0xe8);
    asm_u32(&t->a, t->jit->thunk[thunk] - (t->a.at + 4));
}

static void emit_site(struct jit_translation *t, const struct jit_insn *i, uint32_t resume)
{
    uint32_t site = t->a.at;

    asm_u16(&t->a, (uint16_t)(site - t->native->start));
    asm_u16(&t->a, (uint16_t)(resume ? resume - site : 0));
    asm_u16(&t->a, i->offset);
    asm_byte(&t->a, i->part | (unsigned)i->in->length << 4);
    asm_byte(&t->a, i->index);
}

void jit_call_for_good(struct jit_translation *t, const struct jit_insn *i)
{
    jit_call_thunk(t, JIT_CALL_LIVE);
    emit_site(t, i, 0);
}

void jit_call_interpreter(struct jit_translation *t)
{
    jit_flags_save(t);
    jit_call_thunk(t, JIT_CALL);
    emit_site(t, t->i, t->a.at + (uint32_t)sizeof(struct jit_site));
    t->flags = JIT_LIVE | JIT_SAVED;
    t->recipe.kind = JIT_RECIPE_NONE;
    t->window.open = false;
}

void jit_end_by_thunk(struct jit_translation *t, enum soft_jit_thunk thunk)
{
    jit_flags_save(t);
    jit_call_thunk(t, thunk);
    emit_site(t, t->i, 0);
}

void jit_poll(struct jit_translation *t)
{
    jit_flags_free(t);
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

static void decode_one(struct jit_insn *i, uint32_t mode)
{
    if (i->bytes && soft_decode_fields(mode, i->bytes, i->in->length, &i->z, i->operand))
        jit_classify(i);
    else
        i->class = JIT_INTERPRET; /* it raises an exception, has just been changed, or crosses the page */
    if (i->class == JIT_INTERPRET) {
        i->flags_clobbered = true;
        i->flags_read = i->flags_written = i->inverted = i->goes_on = false;
    }
}

static bool decode_part(struct jit_translation *t, struct soft_block *block)
{
    const struct mem_slot *slot = mem_slot_find(t->cpu->base.vm->machine->mem, block->gpa);
    unsigned offset = (unsigned)(block->gpa & ~PAGE_MASK), part = t->native->part_count;
    const uint8_t *bytes = slot ? slot->host + (block->gpa - slot->gpa) : NULL;
    const struct insn *insn = atomic_load_explicit(&block->insn, memory_order_acquire);
    bool crosses = block->gpa2 != SOFT_BLOCK_ONE_PAGE; /* it is one instruction, and the last */
    uint64_t sum = 0;

    if (!bytes || !insn || part == JIT_PARTS || t->insn_count + block->count > JIT_INSNS)
        return false;
    for (unsigned k = 0; k < block->count; k++) {
        struct jit_insn *i = &t->work->insn[t->insn_count++];

        i->in = &insn[k];
        if (!crosses) {
            soft_copy(i->copy, bytes, i->in->length);
            sum = soft_block_sum(t->cpu, sum, i->copy, i->in->length);
        }
        i->bytes = crosses ? NULL : i->copy;
        i->offset = (uint16_t)offset;
        i->part = (uint8_t)part;
        i->index = (uint8_t)k;
        decode_one(i, block->mode);
        bytes += i->in->length;
        offset += i->in->length;
    }
    if (!crosses && sum != block->sum) {
        t->insn_count -= block->count;
        return false; /* a device is writing there */
    }
    t->native->part[t->native->part_count++].block = block;
    return true;
}

static bool has_part(const struct soft_native *native, const struct soft_block *block)
{
    for (unsigned k = 0; k < native->part_count; k++) {
        if (native->part[k].block == block)
            return true;
    }
    return false;
}

/* A block that was executed, is not yet part of this, and has no translation of its own, to which one can jump. */
static struct soft_block *block_at(const struct jit_translation *t, unsigned offset)
{
    const struct soft_block *head = t->native->part[0].block;
    const struct insn *insn;
    struct soft_block *block;

    if (offset >= PAGE_SIZE)
        return NULL;
    block = soft_block_peek(t->cpu, (head->gpa & PAGE_MASK) | offset, head->mode);
    insn = block ? atomic_load_explicit(&block->insn, memory_order_acquire) : NULL;
    if (!insn || insn->flags & INSN_ALONE)
        return NULL;
    if (atomic_load_explicit(&block->native, memory_order_relaxed))
        return NULL;
    return has_part(t->native, block) ? NULL : block;
}

/* After a conditional jump: the way that was gone more often, the next instruction in doubt. */
static struct soft_block *follow_jcc(const struct jit_translation *t, struct jit_insn *last)
{
    unsigned target, next = (unsigned)last->offset + last->in->length;
    struct soft_block *straight = block_at(t, next), *taken = NULL;
    bool back;

    if (!jit_branch_target(last, &target, &back))
        return NULL;
    if (!back && next < PAGE_SIZE)
        taken = block_at(t, target);
    if (taken && (!straight || taken->runs > straight->runs)) {
        last->inverted = true;
        return taken;
    }
    return straight;
}

/* The block with which the translation goes on after its last instruction, or NULL. */
static struct soft_block *follow(const struct jit_translation *t, struct jit_insn *last)
{
    unsigned target;
    bool back;

    switch (last->class) {
    case JIT_JCC:
        return follow_jcc(t, last);
    case JIT_JMP:
        return jit_branch_target(last, &target, &back) && !back ? block_at(t, target) : NULL;
    case JIT_CALL_NEAR:
    case JIT_RET:
        return NULL;
    default:
        if (last->in->flags & INSN_ENDS_BLOCK)
            return NULL;
        return block_at(t, (unsigned)last->offset + last->in->length);
    }
}

static void decode_parts(struct jit_translation *t)
{
    while (!jit_loop_find(t)) {
        struct jit_insn *last = &t->work->insn[t->insn_count - 1];
        struct soft_block *block = follow(t, last);

        if (!block || !decode_part(t, block)) {
            last->inverted = false;
            return;
        }
        last->goes_on = true;
    }
}

/* ---- the entries ---- */

enum entry { ENTRY_SAVED, ENTRY_LIVE, ENTRY_ANY };

static bool traps(const struct jit_insn *i)
{
    return i->class == JIT_VECTOR || i->z.mnemonic == ZYDIS_MNEMONIC_DIV ||
           i->z.mnemonic == ZYDIS_MNEMONIC_IDIV;
}

/* Where the translation wants the flags: saved when they are in its way before it changes them, live when it
 * depends on them or passes them on; no matter when it overwrites them first. */
static enum entry choose_entry(const struct jit_translation *t)
{
    for (unsigned k = 0; k < t->insn_count; k++) {
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

/* Whether the code may run in a circle without passing through the jump cache, where each way polls. */
static bool in_circle(const struct jit_translation *t)
{
    for (unsigned k = 0; k < t->insn_count; k++) {
        unsigned target;
        bool back;

        if (jit_branch_target(&t->work->insn[k], &target, &back) && back)
            return true;
    }
    return false;
}

static void entries_saved(struct jit_translation *t, bool circle)
{
    t->native->prefers_saved = true;
    t->native->entry_live = new_entry(t);
    jit_emit_flags_save(&t->a);
    t->native->entry_saved = new_entry(t);
    t->flags = JIT_SAVED;
    if (circle)
        jit_poll(t);
}

static void entries_live(struct jit_translation *t, bool circle)
{
    t->native->entry_saved = new_entry(t);
    jit_emit_flags_load(&t->a);
    t->native->entry_live = new_entry(t);
    t->flags = JIT_LIVE;
    if (circle)
        poll_by_fault(t);
}

/* Two only when the vCPU may leave here, for which the flags must be known. */
static void entries_any(struct jit_translation *t, bool circle)
{
    uint32_t to_body;

    t->native->entry_saved = new_entry(t);
    t->native->entry_live = t->native->entry_saved;
    if (circle) {
        t->flags = JIT_SAVED;
        jit_poll(t);
        to_body = asm_jmp(&t->a, 0);
        t->native->entry_live = new_entry(t);
        poll_by_fault(t);
        asm_patch(&t->a, to_body, t->a.at);
    }
    t->flags = JIT_LIVE;
}

static void emit_entries(struct jit_translation *t)
{
    bool circle = in_circle(t);

    switch (choose_entry(t)) {
    case ENTRY_SAVED:
        entries_saved(t, circle);
        break;
    case ENTRY_LIVE:
        entries_live(t, circle);
        break;
    default:
        entries_any(t, circle);
        break;
    }
}

/* ---- the instructions ---- */

/* How things are where the instruction's cold code resumes. */
static void finish_window(const struct jit_translation *t, struct jit_cold *cold)
{
    if (!cold->window.open)
        return;
    cold->window = t->window;
    cold->flags_after = t->flags;
}

static void translate_one(struct jit_translation *t)
{
    static void (*const classes[])(struct jit_translation *) = {
        [JIT_INTERPRET] = jit_call_interpreter, [JIT_PLAIN] = jit_plain,
        [JIT_VECTOR] = jit_plain,               [JIT_LEA] = jit_lea,
        [JIT_PUSH] = jit_push,                  [JIT_POP] = jit_pop,
        [JIT_LEAVE_FRAME] = jit_leave_frame,    [JIT_JMP] = jit_jmp,
        [JIT_JCC] = jit_jcc,                    [JIT_CALL_NEAR] = jit_call_near,
        [JIT_RET] = jit_ret,                    [JIT_RDTSC] = jit_rdtsc,
        [JIT_SYSTEM] = jit_system,              [JIT_SYSCALL] = jit_syscall,
        [JIT_SYSRET] = jit_sysret,              [JIT_STRING] = jit_string,
        [JIT_BIT] = jit_bit,
    };

    unsigned first_cold = t->cold_count;

    if (t->i->class == JIT_NOP)
        return;
    t->holds_t2 = false;
    jit_flags_before(t);
    classes[t->i->class](t);
    jit_flags_after(t);
    jit_window_after(t);
    for (unsigned k = first_cold; k < t->cold_count; k++)
        finish_window(t, &t->work->cold[k]);
}

static bool transfers(const struct jit_insn *i)
{
    return i->class >= JIT_JMP;
}

static void emit_body(struct jit_translation *t)
{
    const struct jit_insn *last = &t->work->insn[t->insn_count - 1];

    for (t->index = 0; t->index < t->insn_count; t->index++) {
        t->i = &t->work->insn[t->index];
        translate_one(t);
    }
    if (!transfers(last))
        jit_go_on(t, last->offset + last->in->length);
    jit_loop_emit(t);
}

/* ---- what is off the path ---- */

/* The interpreter has done the access that was to open the window, and the flags are saved. Where the window still cannot be
 * looked up (it may cross a page), the code that follows is another translation's business. */
static void resume_with_window(struct jit_translation *t, const struct jit_cold *cold)
{
    const struct jit_insn *i = &t->work->insn[cold->insn];
    uint32_t miss = jit_look_up_window(t, &cold->window);

    if (cold->flags_after & JIT_LIVE)
        jit_emit_flags_load(&t->a);
    asm_jmp(&t->a, cold->resume);
    asm_patch(&t->a, miss, t->a.at);
    asm_mov_imm(&t->a, JIT_T0, (uint64_t)i->offset + i->z.length);
    asm_jmp(&t->a, t->jit->thunk[JIT_GO_NEAR]);
}

static void emit_cold_one(struct jit_translation *t, const struct jit_cold *cold)
{
    const struct jit_insn *i = &t->work->insn[cold->insn];
    bool live = !(cold->flags & JIT_SAVED);

    asm_patch(&t->a, cold->site, t->a.at);
    if (cold->flags == 0)
        jit_emit_recipe(&t->a, &cold->recipe);
    if (cold->kind == JIT_COLD_CALL && cold->window.open && cold->resume) {
        jit_call_thunk(t, live ? JIT_CALL_LIVE : JIT_CALL);
        emit_site(t, i, t->a.at + (uint32_t)sizeof(struct jit_site));
        resume_with_window(t, cold);
    } else if (cold->kind == JIT_COLD_CALL) {
        jit_call_thunk(t, live ? JIT_CALL_LIVE : JIT_CALL);
        emit_site(t, i, cold->resume);
    } else {
        jit_call_thunk(t, live ? JIT_EXIT_AT_LIVE : JIT_EXIT_AT);
        asm_u16(&t->a, i->offset);
    }
}

/* The jump that closes a loop leads to the loop's second form until that is found not to pay. */
static void emit_unlinked(struct jit_translation *t, struct jit_link *link, unsigned k)
{
    const struct jit_loop *loop = &t->work->loop;

    if (k == loop->link) {
        link->unlinked = (int16_t)(loop->start - link->site);
        if (!t->cpu->lockstep)
            asm_patch(&t->a, loop->unpaid, t->a.at);
        jit_call_thunk(t, JIT_EXIT_LINK);
        return;
    }
    link->unlinked = (int16_t)(t->a.at - link->site);
    asm_patch(&t->a, link->site, t->a.at);
    jit_call_thunk(t, link->flags & JIT_SAVED ? JIT_EXIT_LINK : JIT_EXIT_LINK_LIVE);
}

static void emit_links(struct jit_translation *t)
{
    for (unsigned k = 0; k < t->link_count; k++) {
        struct jit_link *link = &t->work->link[k];

        emit_unlinked(t, link, k);
        asm_u16(&t->a, (uint16_t)(t->a.at - t->native->start));
        asm_u16(&t->a, (uint16_t)k);
    }
}

/* ---- the whole ---- */

#define NATIVE_MOST (sizeof(struct soft_native) + JIT_PARTS * sizeof(struct jit_part))

static void *meta_take(struct soft_jit *jit, size_t size)
{
    void *at = jit->meta + jit->meta_used;

    jit->meta_used += align_up(size, 8);
    return at;
}

static bool meta_room(const struct soft_jit *jit)
{
    return jit->meta_used + NATIVE_MOST + JIT_LINKS * sizeof(struct jit_link) +
                   JIT_TRAPS_MAX * sizeof(struct jit_trap) + 32 <= jit->meta_size &&
           jit->count < SOFT_JIT_BLOCKS;
}

static void *meta_keep(struct soft_jit *jit, const void *what, size_t size)
{
    void *at = meta_take(jit, size);

    soft_copy(at, what, size);
    return at;
}

/* Nothing counts before this: when it fails, the room is used again. */
static struct soft_native *finish(struct jit_translation *t)
{
    struct soft_jit *jit = t->jit;
    struct soft_native *native = t->native;

    if (t->a.overflow || t->failed)
        return NULL;
    native->link_count = (uint8_t)t->link_count;
    native->trap_count = (uint16_t)t->trap_count;
    native->link = meta_keep(jit, t->work->link, t->link_count * sizeof(struct jit_link));
    native->trap = meta_keep(jit, t->work->trap, t->trap_count * sizeof(struct jit_trap));
    native->end = t->a.at;
    soft_code_commit(jit->code, t->a.at);
    jit->native[jit->count] = native;
    atomic_fetch_add_explicit(&jit->count, 1, memory_order_release);
    return native;
}

static void emit_all(struct jit_translation *t)
{
    t->i = &t->work->insn[0];
    asm_u64(&t->a, (uint64_t)(uintptr_t)t->native);
    emit_entries(t);
    emit_body(t);
    for (unsigned k = 0; k < t->cold_count; k++)
        emit_cold_one(t, &t->work->cold[k]);
    emit_links(t);
}

struct soft_native *soft_jit_translate(struct soft_vcpu *cpu, struct soft_block *block)
{
    struct soft_jit *jit = cpu->soft_vm->jit;
    struct jit_translation t = {
        .cpu = cpu, .jit = jit, .work = cpu->jit_work,
        .a = {.base = jit->write, .bmi2 = jit->bmi2},
    };
    size_t meta = jit->meta_used;
    struct soft_native *native;

    if (!(block->mode & SOFT_MODE_CODE64))
        return NULL;
    if (!meta_room(jit)) {
        soft_code_exhaust(jit->code);
        return NULL;
    }
    if (!soft_code_reserve(jit->code, TRANSLATION_ROOM, &t.a.at))
        return NULL;
    t.a.end = t.a.at + TRANSLATION_ROOM;
    t.native = meta_take(jit, NATIVE_MOST);
    *t.native = (struct soft_native){.number = jit->count + 1, .start = t.a.at};
    native = NULL;
    if (decode_part(&t, block)) {
        decode_parts(&t);
        jit->meta_used -= (JIT_PARTS - t.native->part_count) * sizeof(struct jit_part);
        emit_all(&t);
        native = finish(&t);
    }
    if (!native)
        jit->meta_used = meta;
    return native;
}
