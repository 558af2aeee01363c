/* Segmentation, the slow paths of loads and stores, and memory-mapped I/O. */
#include "cpu/soft/mmu.h"

#include "cpu/soft/block.h"
#include "cpu/soft/fpu.h"
#include "cpu/soft/lockstep.h"
#include "cpu/soft/system.h"
#include "cpu/soft/vm.h"

/* One piece of an access, inside one page. */
struct place {
    gpa_t gpa;
    uint8_t *host;         /* NULL: not memory, or ROM that is written to: the bus's */
    struct mem_slot *slot; /* of host */
    bool direct;           /* for writes: may be written through host */
};

static _Noreturn void raise_segment(struct soft_vcpu *cpu, unsigned seg)
{
    soft_raise_error(cpu, seg == SEG_SS ? VECTOR_SS : VECTOR_GP, 0);
}

static bool canonical(gva_t gva)
{
    return (gva_t)((int64_t)(gva << 16) >> 16) == gva;
}

/* SDM vol. 3A 5.3, 5.4.1: limit and type of a segment for [offset, offset+size). */
static void segment_check(struct soft_vcpu *cpu, unsigned seg, uint32_t offset, unsigned size,
                          enum soft_access access)
{
    const struct cpu_segment *s = &cpu->s.seg[seg];
    unsigned type = CPU_SEG_TYPE(s->attr);
    uint64_t last = (uint64_t)offset + size - 1;

    if (s->attr & CPU_SEG_UNUSABLE)
        raise_segment(cpu, seg);
    if ((cpu->mode & (SOFT_MODE_PE | SOFT_MODE_VM)) == SOFT_MODE_PE) {
        bool code = type & 8, readwrite = type & 2;

        if (access == SOFT_WRITE && (code || !readwrite))
            raise_segment(cpu, seg);
        if (access == SOFT_READ && code && !readwrite)
            raise_segment(cpu, seg);
        if (!code && (type & 4)) { /* expand down */
            uint64_t top = s->attr & CPU_SEG_DB ? UINT32_MAX : 0xffff;

            if (offset <= s->limit || last > top)
                raise_segment(cpu, seg);
            return;
        }
    }
    if (last > s->limit)
        raise_segment(cpu, seg);
}

gva_t soft_linear(struct soft_vcpu *cpu, unsigned seg, uint64_t offset, unsigned size,
                  enum soft_access access)
{
    if (cpu->mode & SOFT_MODE_CODE64) {
        if (seg == SEG_FS || seg == SEG_GS)
            offset += cpu->s.seg[seg].base;
        if (unlikely(!canonical(offset) || !canonical(offset + size - 1)))
            raise_segment(cpu, seg);
        return offset;
    }
    if (!(cpu->mode & SOFT_MODE_FLAT) || seg >= SEG_FS || access == SOFT_WRITE)
        segment_check(cpu, seg, (uint32_t)offset, size, access);
    return (uint32_t)(offset + cpu->s.seg[seg].base);
}

gva_t soft_operand(struct soft_vcpu *cpu, const struct insn *in, unsigned size,
                   enum soft_access access)
{
    uint64_t ea = insn_ea(cpu, in);

    if (likely(cpu->mode & SOFT_MODE_CODE64) && !(in->flags & INSN_FS_GS) && likely(canonical(ea)))
        return ea; /* a last byte that is not canonical is found by the walk */
    return soft_linear(cpu, in->seg, ea, size, access);
}

static unsigned current_index(const struct soft_vcpu *cpu)
{
    return cpu->mmu_index;
}

static void find_place(struct soft_vcpu *cpu, unsigned index, unsigned seg, gva_t gva,
                       enum soft_access access, struct place *out)
{
    struct soft_walk walk = {0};

    if (!(cpu->mode & SOFT_MODE_LMA)) /* compatibility mode: callers truncate; tables may be high */
        gva = (uint32_t)gva;
    else if (unlikely(!canonical(gva)))
        raise_segment(cpu, seg);
    cpu->stat_tlb_misses++;
    if (!soft_walk(cpu, gva, index, access, &walk))
        soft_raise_page_fault(cpu, gva, walk.error);
    out->gpa = walk.gpa;
    out->direct = false;
    out->slot = mem_slot_find(cpu->base.vm->machine->mem, walk.gpa);
    out->host = NULL;
    if (!out->slot || (access == SOFT_WRITE && mem_page_is_rom(out->slot, walk.gpa)))
        return;
    out->host = out->slot->host + (walk.gpa - out->slot->gpa);
    out->direct = soft_tlb_fill(cpu, index, gva, access, &walk, out->slot);
}

static bool apic_takes(struct soft_vcpu *cpu, gpa_t gpa)
{
    const struct local_apic_ops *ops = cpu->base.apic_ops;
    uint64_t base;

    if (!ops)
        return false;
    base = ops->base(cpu->base.apic);
    return (base & APIC_BASE_ENABLE) && !(base & APIC_BASE_X2APIC) &&
           ((gpa ^ base) & cpu->mmu->phys_mask & PAGE_MASK) == 0;
}

static uint64_t io_read(struct soft_vcpu *cpu, gpa_t gpa, unsigned size)
{
    if (unlikely(cpu->lockstep != NULL))
        soft_lockstep_outside(cpu);
    soft_fpu_park(cpu);
    cpu->stat_exits++;
    if (apic_takes(cpu, gpa))
        return cpu->base.apic_ops->mmio_read(cpu->base.apic, (uint32_t)(gpa & 0xfff), size);
    return bus_read(cpu->base.vm->machine->bus, BUS_MEMORY, gpa, size);
}

static void io_write(struct soft_vcpu *cpu, gpa_t gpa, unsigned size, uint64_t value)
{
    if (unlikely(cpu->lockstep != NULL))
        soft_lockstep_outside(cpu);
    soft_fpu_park(cpu);
    cpu->stat_exits++;
    if (apic_takes(cpu, gpa)) {
        cpu->base.apic_ops->mmio_write(cpu->base.apic, (uint32_t)(gpa & 0xfff), size, value);
        atomic_fetch_or(&cpu->attention, SOFT_ATTN_INTERRUPT | SOFT_ATTN_TIMER);
        return;
    }
    bus_write(cpu->base.vm->machine->bus, BUS_MEMORY, gpa, size, value);
    soft_map_follow(cpu);
}

/* The largest naturally aligned power of two that begins at gpa and fits. */
static unsigned io_chunk(gpa_t gpa, unsigned len)
{
    unsigned size = 8;

    while (size > len || (gpa & (size - 1)))
        size >>= 1;
    return size;
}

static void place_read(struct soft_vcpu *cpu, const struct place *p, uint8_t *buf, unsigned len)
{
    if (p->host) {
        soft_copy(buf, p->host, len);
        return;
    }
    for (unsigned at = 0, size; at < len; at += size) {
        uint64_t value;

        size = io_chunk(p->gpa + at, len - at);
        value = io_read(cpu, p->gpa + at, size);
        soft_copy(buf + at, &value, size);
    }
}

static void place_write(struct soft_vcpu *cpu, const struct place *p, const uint8_t *buf,
                        unsigned len)
{
    if (p->host) {
        if (unlikely(cpu->lockstep != NULL))
            soft_lockstep_store(cpu, p->host, len, p->direct);
        if (!p->direct)
            soft_code_store(cpu, p->slot, p->gpa, buf, len);
        else if (len == 8)
            *(uint64_t *)p->host = *(const uint64_t *)buf;
        else if (len == 4)
            *(uint32_t *)p->host = *(const uint32_t *)buf;
        else if (len == 2)
            *(uint16_t *)p->host = *(const uint16_t *)buf;
        else
            soft_copy(p->host, buf, len);
        return;
    }
    for (unsigned at = 0, size; at < len; at += size) {
        uint64_t value = 0;

        size = io_chunk(p->gpa + at, len - at);
        soft_copy(&value, buf + at, size);
        io_write(cpu, p->gpa + at, size, value);
    }
}

/* SDM vol. 3A 6.15 #AC: CPL 3 data accesses that are not aligned to their size. */
static void alignment_check(struct soft_vcpu *cpu, unsigned index, gva_t gva, unsigned size)
{
    if (index == SOFT_MMU_USER_AC && (gva & (size - 1)) && size <= 8)
        soft_raise_error(cpu, VECTOR_AC, 0);
}

static void access_bytes(struct soft_vcpu *cpu, unsigned index, unsigned seg, gva_t gva,
                         uint8_t *buf, unsigned len, enum soft_access access)
{
    unsigned first = PAGE_SIZE - (unsigned)(gva & ~PAGE_MASK);
    struct place a, b;

    if (first > len)
        first = len;
    soft_debug_note(cpu, gva, len, access == SOFT_WRITE);
    find_place(cpu, index, seg, gva, access, &a);
    if (first < len)
        find_place(cpu, index, seg, gva + first, access, &b);
    if (access == SOFT_WRITE)
        place_write(cpu, &a, buf, first);
    else
        place_read(cpu, &a, buf, first);
    if (first == len)
        return;
    if (access == SOFT_WRITE)
        place_write(cpu, &b, buf + first, len - first);
    else
        place_read(cpu, &b, buf + first, len - first);
}

static uint64_t load_index(struct soft_vcpu *cpu, unsigned index, unsigned seg, gva_t gva,
                           unsigned size)
{
    uint64_t value = 0;
    struct place p;

    alignment_check(cpu, index, gva, size);
    if ((gva & ~PAGE_MASK) + size > PAGE_SIZE) {
        access_bytes(cpu, index, seg, gva, (uint8_t *)&value, size, SOFT_READ);
        return value;
    }
    find_place(cpu, index, seg, gva, SOFT_READ, &p);
    soft_debug_note(cpu, gva, size, false);
    if (!p.host) {
        place_read(cpu, &p, (uint8_t *)&value, size);
        return value;
    }
    switch (size) { /* whole: other CPUs may write it */
    case 1:
        return *p.host;
    case 2:
        return *(const uint16_t *)p.host;
    case 4:
        return *(const uint32_t *)p.host;
    default:
        return *(const uint64_t *)p.host;
    }
}

uint64_t soft_load_slow(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned size)
{
    return load_index(cpu, current_index(cpu), seg, gva, size);
}

void soft_store_slow(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned size, uint64_t value)
{
    alignment_check(cpu, current_index(cpu), gva, size);
    access_bytes(cpu, current_index(cpu), seg, gva, (uint8_t *)&value, size, SOFT_WRITE);
}

/* Where `len` bytes are that a context's TLB knows for the access; NULL: it does not, or they cross a page. */
static uint8_t *known_place(struct soft_context *context, gva_t gva, unsigned len,
                            enum soft_access access)
{
    const struct soft_tlb_entry *e = soft_tlb_slot(context, gva);

    if (soft_tlb_tag(gva, len) != (access == SOFT_WRITE ? e->write : e->read))
        return NULL;
    return (uint8_t *)(gva + e->addend);
}

/* Page by page; `len` may be long. */
void soft_load_bytes(struct soft_vcpu *cpu, unsigned seg, gva_t gva, void *buf, unsigned len)
{
    uint8_t *at = buf;

    while (len > 0) {
        unsigned part = PAGE_SIZE - (unsigned)(gva & ~PAGE_MASK);
        const uint8_t *host;

        part = part < len ? part : len;
        host = known_place(cpu->context, gva, part, SOFT_READ);
        if (likely(host))
            soft_copy(at, host, part);
        else
            access_bytes(cpu, current_index(cpu), seg, gva, at, part, SOFT_READ);
        gva += part;
        at += part;
        len -= part;
    }
}

void soft_store_bytes(struct soft_vcpu *cpu, unsigned seg, gva_t gva, const void *buf,
                      unsigned len)
{
    uint8_t *host = len <= PAGE_SIZE ? known_place(cpu->context, gva, len, SOFT_WRITE) : NULL;
    const uint8_t *at = buf;
    uint8_t bytes[256];

    if (likely(host)) {
        soft_copy(host, buf, len);
        return;
    }
    if (len > sizeof(bytes))
        soft_probe_write(cpu, seg, gva, len);
    while (len > 0) {
        unsigned part = len > sizeof(bytes) ? sizeof(bytes) : len;

        soft_copy(bytes, at, part);
        access_bytes(cpu, current_index(cpu), seg, gva, bytes, part, SOFT_WRITE);
        gva += part;
        at += part;
        len -= part;
    }
}

static void probe_index(struct soft_vcpu *cpu, unsigned index, unsigned seg, gva_t gva,
                        unsigned len)
{
    gva_t end = gva + len;
    struct place p;

    if (len == 0)
        return;
    do {
        if (index != cpu->mmu_index || !known_place(cpu->context, gva, 1, SOFT_WRITE))
            find_place(cpu, index, seg, gva, SOFT_WRITE, &p);
        gva = (gva & PAGE_MASK) + PAGE_SIZE;
    } while (gva < end);
}

void soft_probe_write(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned len)
{
    probe_index(cpu, current_index(cpu), seg, gva, len);
}

void *soft_pointer(struct soft_vcpu *cpu, unsigned seg, gva_t gva, unsigned len,
                   enum soft_access access)
{
    const struct soft_tlb_entry *e = soft_tlb_slot(cpu->context, gva);
    struct place p;

    if ((gva & ~PAGE_MASK) + len > PAGE_SIZE)
        return NULL;
    if (likely(soft_tlb_tag(gva, 1) == (access == SOFT_WRITE ? e->write : e->read)))
        return (void *)(gva + e->addend);
    find_place(cpu, current_index(cpu), seg, gva, access, &p);
    if (!p.host)
        return NULL;
    soft_debug_note(cpu, gva, len, access == SOFT_WRITE);
    if (access == SOFT_WRITE && unlikely(cpu->lockstep != NULL))
        soft_lockstep_store(cpu, p.host, len, p.direct);
    if (access == SOFT_WRITE && !p.direct)
        soft_code_open(cpu, p.slot, p.gpa, len);
    return p.host;
}

/* Implicit accesses ignore RFLAGS.AC (SDM vol. 3A 4.6.1). */
uint64_t soft_system_load(struct soft_vcpu *cpu, gva_t gva, unsigned size)
{
    const struct soft_tlb_entry *e = soft_tlb_slot(&cpu->mmu->context[SOFT_MMU_KERNEL], gva);

    if (size == 8 && likely(soft_tlb_tag(gva, 8) == e->read))
        return *(const uint64_t *)(gva + e->addend);
    return load_index(cpu, SOFT_MMU_KERNEL, SEG_DS, gva, size);
}

void soft_system_store(struct soft_vcpu *cpu, gva_t gva, unsigned size, uint64_t value)
{
    uint8_t *host = known_place(&cpu->mmu->context[SOFT_MMU_KERNEL], gva, size, SOFT_WRITE);

    if (size == 8 && likely(host)) {
        *(uint64_t *)host = value;
        return;
    }
    access_bytes(cpu, SOFT_MMU_KERNEL, SEG_DS, gva, (uint8_t *)&value, size, SOFT_WRITE);
}

void soft_system_probe_write(struct soft_vcpu *cpu, gva_t gva, unsigned len)
{
    probe_index(cpu, SOFT_MMU_KERNEL, SEG_DS, gva, len);
}
