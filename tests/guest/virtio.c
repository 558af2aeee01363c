/*
 * virtio-blk and virtio-rng through PCI by hand: finds the devices, sets up a queue, reads sectors
 * and random bytes by polling. Virtio 1.2 sections 2.7, 4.1, 5.2. GUEST: disk=64K
 */
#include "guest.h"

#define VENDOR_VIRTIO 0x1af4
#define ID_BLOCK      0x1042
#define ID_RNG        0x1044
#define QUEUE_SIZE    8

struct descriptor { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct avail { uint16_t flags, index, ring[QUEUE_SIZE]; };
struct used_entry { uint32_t id, len; };
struct used { uint16_t flags, index; struct used_entry ring[QUEUE_SIZE]; };

struct common { /* 4.1.4.3 */
    uint32_t device_feature_select, device_feature, driver_feature_select, driver_feature;
    uint16_t config_msix_vector, num_queues;
    uint8_t device_status, config_generation;
    uint16_t queue_select, queue_size, queue_msix_vector, queue_enable, queue_notify_off;
    uint32_t queue_desc_low, queue_desc_high, queue_driver_low, queue_driver_high;
    uint32_t queue_device_low, queue_device_high;
};

struct device {
    uint32_t where; /* configuration address */
    volatile struct common *common;
    volatile uint8_t *config;
    volatile uint16_t *doorbell;
    struct descriptor *desc;
    volatile struct avail *avail;
    volatile struct used *used;
};

static uint32_t pci_read(uint32_t where, unsigned offset)
{
    outl(0xcf8, 0x80000000 | where | (offset & 0xfc));
    return inl(0xcfc);
}

static void pci_write(uint32_t where, unsigned offset, uint32_t value)
{
    outl(0xcf8, 0x80000000 | where | (offset & 0xfc));
    outl(0xcfc, value);
}

static bool pci_find(uint16_t id, uint32_t *where)
{
    for (uint32_t slot = 0; slot < 32; slot++) {
        for (uint32_t function = 0; function < 8; function++) {
            *where = slot << 11 | function << 8;
            if (pci_read(*where, 0) == ((uint32_t)id << 16 | VENDOR_VIRTIO))
                return true;
        }
    }
    return false;
}

/* A loader without firmware may have left the BARs unset: put them in the PCI hole. */
static uint64_t bar_address(uint32_t where, unsigned bar)
{
    static uint32_t next = 0xe0000000; /* 16 MiB apart: no BAR of these devices is larger */
    uint32_t low = pci_read(where, 0x10 + 4 * bar), high = 0;
    bool wide = (low & 6) == 4;

    if (wide)
        high = pci_read(where, 0x14 + 4 * bar);
    if (!(low & ~0xfu) && !high) {
        pci_write(where, 0x10 + 4 * bar, next);
        low = next;
        next += 0x1000000;
    }
    return (uint64_t)high << 32 | (low & ~0xfu);
}

static void find_structures(struct device *dev)
{
    uint32_t multiplier = 0;
    uint64_t notify = 0;
    uint8_t at = (uint8_t)(pci_read(dev->where, 0x34) & 0xfc);

    for (unsigned bound = 0; at && bound < 48; bound++, at = (uint8_t)(pci_read(dev->where, at) >> 8 & 0xfc)) {
        uint32_t head = pci_read(dev->where, at);
        uint64_t address;

        if ((head & 0xff) != 9)
            continue;
        if ((head >> 24) < 1 || (head >> 24) > 4)
            continue;
        address = bar_address(dev->where, pci_read(dev->where, at + 4u) & 0xff) + pci_read(dev->where, at + 8u);
        if (head >> 24 == 1) {
            dev->common = (volatile struct common *)address;
        } else if (head >> 24 == 2) {
            notify = address;
            multiplier = pci_read(dev->where, at + 16u);
        } else if (head >> 24 == 4) {
            dev->config = (volatile uint8_t *)address;
        }
    }
    CHECK(dev->common != NULL);
    CHECK(notify != 0);
    pci_write(dev->where, 4, 0x406); /* memory, bus master, no INTx */
    dev->common->queue_select = 0;
    dev->doorbell = (volatile uint16_t *)(notify + (uint64_t)dev->common->queue_notify_off * multiplier);
}

static void map_high(uint64_t address)
{
    if (address >> 32) {
        print("a BAR above 4 GiB: 0x%lx\n", address);
        guest_exit(EXIT_FAIL);
    }
}

static void start(struct device *dev)
{
    volatile struct common *c = dev->common;

    map_high((uint64_t)(uintptr_t)c);
    c->device_status = 0;
    while (c->device_status)
        ;
    c->device_status = 1;
    c->device_status = 3;
    c->device_feature_select = 1;
    CHECK_EQ(c->device_feature & 1, 1); /* VIRTIO_F_VERSION_1 */
    c->driver_feature_select = 0;
    c->driver_feature = 0;
    c->driver_feature_select = 1;
    c->driver_feature = 1;
    c->device_status = 11; /* FEATURES_OK */
    CHECK_EQ(c->device_status, 11);
    c->queue_select = 0;
    CHECK(c->queue_size >= QUEUE_SIZE);
    c->queue_size = QUEUE_SIZE;
    dev->desc = page_alloc();
    dev->avail = page_alloc();
    dev->used = page_alloc();
    c->queue_desc_low = (uint32_t)(uintptr_t)dev->desc;
    c->queue_desc_high = 0;
    c->queue_driver_low = (uint32_t)(uintptr_t)dev->avail;
    c->queue_driver_high = 0;
    c->queue_device_low = (uint32_t)(uintptr_t)dev->used;
    c->queue_device_high = 0;
    c->queue_enable = 1;
    c->device_status = 15; /* DRIVER_OK */
    CHECK_EQ(c->device_status, 15);
}

/* Offers the chain that begins at descriptor 0 and waits for it. The device's thread works meanwhile. */
static uint32_t submit(struct device *dev)
{
    uint16_t before = dev->used->index;

    dev->avail->flags = 1; /* no interrupts */
    dev->avail->ring[dev->avail->index % QUEUE_SIZE] = 0;
    __asm__ volatile("mfence" ::: "memory");
    dev->avail->index++;
    __asm__ volatile("mfence" ::: "memory");
    *dev->doorbell = 0;
    for (uint64_t spins = 0; dev->used->index == before; spins++) {
        __asm__ volatile("pause" ::: "memory");
        if (spins == 400000000) {
            print("the device does not answer\n");
            guest_exit(EXIT_FAIL);
        }
    }
    CHECK_EQ(dev->used->index, (uint16_t)(before + 1));
    CHECK_EQ(dev->used->ring[before % QUEUE_SIZE].id, 0);
    return dev->used->ring[before % QUEUE_SIZE].len;
}

static uint8_t transfer(struct device *dev, uint32_t type, uint64_t sector, void *data, uint32_t len)
{
    static struct { uint32_t type, reserved; uint64_t sector; } request;
    static volatile uint8_t status;

    request.type = type;
    request.sector = sector;
    status = 0xff;
    dev->desc[0] = (struct descriptor){(uint64_t)&request, 16, 1, 1};
    dev->desc[1] = (struct descriptor){(uint64_t)data, len, (uint16_t)(type == 0 ? 3 : 1), 2};
    dev->desc[2] = (struct descriptor){(uint64_t)&status, 1, 2, 0};
    submit(dev);
    return status;
}

/* A function that is hot is replaced by the device, in the middle of a page and across two. */
static void test_code_by_device(struct device *dev)
{
    static const uint8_t one[] = {0xb8, 1, 0, 0, 0, 0xc3}, two[] = {0xb8, 2, 0, 0, 0, 0xc3};
    uint8_t *pages = page_alloc(), *sector = page_alloc();
    uint8_t *at[] = {pages + 1024, pages + 4096 - 3};

    page_alloc();
    CHECK_EQ((uint64_t)(sector - pages), 4096);
    sector = page_alloc(); /* pages: two adjacent ones */
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *to = at[i] - 256;

        memset(sector, 0xcc, 512);
        memcpy(sector + 256, two, sizeof(two));
        CHECK_EQ(transfer(dev, 1, 9, sector, 512), 0);
        for (unsigned round = 0; round < 20; round++) {
            memcpy(at[i], one, sizeof(one));
            for (unsigned k = 0; k < 100; k++)
                CHECK_EQ(((uint64_t (*)(void))(uintptr_t)at[i])(), 1);
            CHECK_EQ(transfer(dev, 0, 9, to, 512), 0);
            CHECK_EQ(((uint64_t (*)(void))(uintptr_t)at[i])(), 2);
            CHECK_EQ(to[0], 0xcc);
        }
    }
}

static void test_block(void)
{
    struct device dev = {0};
    uint32_t *data = page_alloc();

    if (!pci_find(ID_BLOCK, &dev.where)) {
        CHECK(!"a virtio block device");
        return;
    }
    find_structures(&dev);
    start(&dev);
    CHECK_EQ(*(volatile uint64_t *)dev.config, 128); /* sectors */
    for (uint64_t sector = 0; sector < 128; sector += 37) {
        CHECK_EQ(transfer(&dev, 0, sector, data, 1024), 0);
        CHECK_EQ(data[0], sector);
        CHECK_EQ(data[127], sector);
        CHECK_EQ(data[128], sector + 1);
    }
    for (unsigned i = 0; i < 128; i++)
        data[i] = 0xd15c0000 + i;
    CHECK_EQ(transfer(&dev, 1, 5, data, 512), 0);
    memset(data, 0, 4096);
    CHECK_EQ(transfer(&dev, 0, 4, data, 1536), 0);
    CHECK_EQ(data[0], 4);
    CHECK_EQ(data[128], 0xd15c0000);
    CHECK_EQ(data[255], 0xd15c007f);
    CHECK_EQ(data[256], 6);
    test_code_by_device(&dev);
    CHECK_EQ(transfer(&dev, 0, 128, data, 512), 1); /* beyond the end: IOERR */
    CHECK_EQ(transfer(&dev, 0xdead, 0, data, 512), 2); /* UNSUPP */
    dev.common->device_status = 0;
}

static void test_rng(void)
{
    struct device dev = {0};
    uint8_t *data = page_alloc();
    unsigned zeroes = 0;

    if (!pci_find(ID_RNG, &dev.where)) {
        print("no virtio-rng: skipped\n");
        return;
    }
    find_structures(&dev);
    start(&dev);
    dev.desc[0] = (struct descriptor){(uint64_t)data, 256, 2, 0};
    CHECK(submit(&dev) <= 256);
    for (unsigned i = 0; i < dev.used->ring[0].len; i++)
        zeroes += data[i] == 0;
    CHECK(zeroes < 32);
    CHECK_EQ(data[256], 0);
    dev.common->device_status = 0;
}

int main(void)
{
    test_block();
    test_rng();
    return 0;
}
