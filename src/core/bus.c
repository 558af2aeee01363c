#include "core/bus.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct bus_regions { /* sorted by base, never overlapping */
    struct bus_region *entry;
    size_t count;
    size_t capacity;
};

struct bus_bells {
    struct bus_doorbell *entry;
    size_t count;
    size_t capacity;
};

struct bus {
    pthread_rwlock_t lock; /* the tables; never held while a handler runs */
    struct bus_regions regions[BUS_SPACES];
    struct bus_bells bells;
    bus_doorbell_fn *watch;
    void *watch_opaque;
    _Atomic uint64_t unclaimed; /* accesses nobody answered */
};

int bus_create(struct bus **out)
{
    struct bus *bus = calloc(1, sizeof(*bus));

    if (!bus)
        return -ENOMEM;
    pthread_rwlock_init(&bus->lock, NULL);
    *out = bus;
    return 0;
}

void bus_destroy(struct bus *bus)
{
    if (!bus)
        return;
    for (unsigned space = 0; space < BUS_SPACES; space++)
        free(bus->regions[space].entry);
    free(bus->bells.entry);
    pthread_rwlock_destroy(&bus->lock);
    free(bus);
}

/* Index of the first region that ends after addr. */
static size_t regions_lower_bound(const struct bus_regions *regions, uint64_t addr)
{
    size_t low = 0, high = regions->count;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct bus_region *region = &regions->entry[mid];

        if (addr - region->base < region->len || region->base > addr)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

static int regions_reserve(struct bus_regions *regions)
{
    size_t capacity = regions->capacity ? 2 * regions->capacity : 16;
    struct bus_region *entry;

    if (regions->count < regions->capacity)
        return 0;
    entry = realloc(regions->entry, capacity * sizeof(*entry));
    if (!entry)
        return -ENOMEM;
    regions->entry = entry;
    regions->capacity = capacity;
    return 0;
}

static int regions_insert(struct bus_regions *regions, const struct bus_region *region)
{
    size_t at = regions_lower_bound(regions, region->base);
    int ret;

    if (at < regions->count && regions->entry[at].base - region->base < region->len)
        return -EEXIST;
    if (at < regions->count && region->base - regions->entry[at].base < regions->entry[at].len)
        return -EEXIST;
    ret = regions_reserve(regions);
    if (ret)
        return ret;
    memmove(&regions->entry[at + 1], &regions->entry[at],
            (regions->count - at) * sizeof(*region));
    regions->entry[at] = *region;
    regions->count++;
    return 0;
}

int bus_add(struct bus *bus, enum bus_space space, const struct bus_region *region)
{
    uint64_t last;
    int ret;

    if (region->len == 0 || add_overflows(region->base, region->len - 1, &last))
        return -EINVAL;
    pthread_rwlock_wrlock(&bus->lock);
    ret = regions_insert(&bus->regions[space], region);
    pthread_rwlock_unlock(&bus->lock);
    return ret;
}

void bus_remove(struct bus *bus, enum bus_space space, uint64_t base)
{
    struct bus_regions *regions = &bus->regions[space];
    size_t at;

    pthread_rwlock_wrlock(&bus->lock);
    at = regions_lower_bound(regions, base);
    if (at < regions->count && regions->entry[at].base == base) {
        regions->count--;
        memmove(&regions->entry[at], &regions->entry[at + 1],
                (regions->count - at) * sizeof(regions->entry[0]));
    }
    pthread_rwlock_unlock(&bus->lock);
}

static int bells_append(struct bus_bells *bells, const struct bus_doorbell *bell)
{
    if (bells->count == bells->capacity) {
        size_t capacity = bells->capacity ? 2 * bells->capacity : 16;
        struct bus_doorbell *entry = realloc(bells->entry, capacity * sizeof(*entry));

        if (!entry)
            return -ENOMEM;
        bells->entry = entry;
        bells->capacity = capacity;
    }
    bells->entry[bells->count++] = *bell;
    return 0;
}

int bus_add_doorbell(struct bus *bus, const struct bus_doorbell *bell)
{
    bus_doorbell_fn *watch;
    void *opaque;
    int ret;

    pthread_rwlock_wrlock(&bus->lock);
    ret = bells_append(&bus->bells, bell);
    watch = bus->watch;
    opaque = bus->watch_opaque;
    pthread_rwlock_unlock(&bus->lock);
    if (ret == 0 && watch)
        watch(opaque, bell, true);
    return ret;
}

static bool bell_equal(const struct bus_doorbell *a, const struct bus_doorbell *b)
{
    return a->space == b->space && a->addr == b->addr && a->size == b->size &&
           a->match == b->match && (!a->match || a->value == b->value) &&
           a->opaque == b->opaque && a->ring == b->ring;
}

void bus_remove_doorbell(struct bus *bus, const struct bus_doorbell *bell)
{
    struct bus_bells *bells = &bus->bells;
    bus_doorbell_fn *watch = NULL;
    void *opaque = NULL;

    pthread_rwlock_wrlock(&bus->lock);
    for (size_t i = 0; i < bells->count; i++) {
        if (!bell_equal(&bells->entry[i], bell))
            continue;
        bells->entry[i] = bells->entry[--bells->count];
        watch = bus->watch;
        opaque = bus->watch_opaque;
        break;
    }
    pthread_rwlock_unlock(&bus->lock);
    if (watch)
        watch(opaque, bell, false);
}

void bus_watch_doorbells(struct bus *bus, bus_doorbell_fn *fn, void *opaque)
{
    pthread_rwlock_wrlock(&bus->lock);
    bus->watch = fn;
    bus->watch_opaque = opaque;
    for (size_t i = 0; fn && i < bus->bells.count; i++)
        fn(opaque, &bus->bells.entry[i], true);
    pthread_rwlock_unlock(&bus->lock);
}

/* Copies the region that holds the whole access, so that no lock is held while it is served. */
static bool region_find(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size,
                        struct bus_region *out)
{
    const struct bus_regions *regions = &bus->regions[space];
    bool found = false;
    size_t at;

    pthread_rwlock_rdlock(&bus->lock);
    at = regions_lower_bound(regions, addr);
    if (at < regions->count) {
        const struct bus_region *region = &regions->entry[at];
        uint64_t offset = addr - region->base;

        found = addr >= region->base && offset < region->len && size <= region->len - offset;
        *out = *region;
    }
    pthread_rwlock_unlock(&bus->lock);
    return found;
}

static bool bell_find(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size,
                      uint64_t value, struct bus_doorbell *out)
{
    bool found = false;

    pthread_rwlock_rdlock(&bus->lock);
    for (size_t i = 0; i < bus->bells.count && !found; i++) {
        const struct bus_doorbell *bell = &bus->bells.entry[i];

        if (bell->space != space || bell->addr != addr || (bell->size && bell->size != size) ||
            (bell->match && bell->value != value))
            continue;
        *out = *bell;
        found = true;
    }
    pthread_rwlock_unlock(&bus->lock);
    return found;
}

static uint64_t size_mask(unsigned size)
{
    return size >= 8 ? UINT64_MAX : (1ull << (8 * size)) - 1;
}

uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size)
{
    struct bus_region region;
    uint64_t value;

    if (!region_find(bus, space, addr, size, &region)) {
        atomic_fetch_add_explicit(&bus->unclaimed, 1, memory_order_relaxed);
        return size_mask(size);
    }
    if (!region.ops->read)
        return size_mask(size);
    if (region.dev)
        device_lock(region.dev);
    value = region.ops->read(region.opaque, addr - region.base, size);
    if (region.dev)
        device_unlock(region.dev);
    return value & size_mask(size);
}

void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size, uint64_t value)
{
    struct bus_doorbell bell;
    struct bus_region region;

    value &= size_mask(size);
    if (bell_find(bus, space, addr, size, value, &bell)) {
        bell.ring(bell.opaque);
        return;
    }
    if (!region_find(bus, space, addr, size, &region)) {
        atomic_fetch_add_explicit(&bus->unclaimed, 1, memory_order_relaxed);
        return;
    }
    if (!region.ops->write)
        return;
    if (region.dev)
        device_lock(region.dev);
    region.ops->write(region.opaque, addr - region.base, size, value);
    if (region.dev)
        device_unlock(region.dev);
}
