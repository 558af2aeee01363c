#include "device/virtio/virtio_pci.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <sys/eventfd.h>

#include "base/log.h"
#include "device/virtio/virtio_io.h"

#define VIRTIO_VENDOR     0x1af4u
#define VIRTIO_DEVICE     0x1040u /* plus the type */
#define VIRTIO_SUBSYSTEM  0x1100u

#define VIRTIO_BAR      0u
#define VIRTIO_MSIX_BAR 2u
#define COMMON_OFFSET   0x0000u
#define COMMON_LEN      0x38u
#define ISR_OFFSET      0x1000u
#define DEVICE_OFFSET   0x2000u
#define NOTIFY_OFFSET   0x3000u
#define NOTIFY_STRIDE   4u
#define BAR_SIZE        0x4000u

/* 4.1.4 */
#define CAP_VENDOR 0x09u
#define CAP_COMMON 1u
#define CAP_NOTIFY 2u
#define CAP_ISR    3u
#define CAP_DEVICE 4u
#define CAP_PCI    5u

/* Offsets of the common configuration structure (4.1.4.3). */
#define COMMON_DEVICE_FEATURE_SELECT 0x00u
#define COMMON_DEVICE_FEATURE        0x04u
#define COMMON_DRIVER_FEATURE_SELECT 0x08u
#define COMMON_DRIVER_FEATURE        0x0cu
#define COMMON_CONFIG_MSIX_VECTOR    0x10u
#define COMMON_NUM_QUEUES            0x12u
#define COMMON_DEVICE_STATUS         0x14u
#define COMMON_CONFIG_GENERATION     0x15u
#define COMMON_QUEUE_SELECT          0x16u
#define COMMON_QUEUE_SIZE            0x18u
#define COMMON_QUEUE_MSIX_VECTOR     0x1au
#define COMMON_QUEUE_ENABLE          0x1cu
#define COMMON_QUEUE_NOTIFY_OFF      0x1eu
#define COMMON_QUEUE_DESC            0x20u
#define COMMON_QUEUE_DRIVER          0x28u
#define COMMON_QUEUE_DEVICE          0x30u

/* 2.1 */
#define STATUS_DRIVER_OK   0x04u
#define STATUS_FEATURES_OK 0x08u
#define STATUS_NEEDS_RESET 0x40u

#define ISR_QUEUE  1u
#define ISR_CONFIG 2u

#define VECTOR_NONE 0xffffu

const struct state_field virtio_device_state_fields[] = {
    STATE_STRUCT(struct virtio_device, fn, pci_function_state_fields),
    STATE_UINT(struct virtio_device, accepted),
    STATE_UINT(struct virtio_device, offered_select),
    STATE_UINT(struct virtio_device, accepted_select),
    STATE_UINT(struct virtio_device, queue_select),
    STATE_UINT(struct virtio_device, config_vector),
    STATE_UINT(struct virtio_device, status),
    STATE_UINT(struct virtio_device, isr),
    STATE_STRUCT_ARRAY(struct virtio_device, vq, virtqueue_state_fields),
    STATE_FIELDS_END,
};

static void virtio_interrupt(struct virtio_device *dev, uint16_t vector, uint8_t reason)
{
    if (pci_msix_enabled(&dev->fn)) {
        if (vector != VECTOR_NONE)
            pci_msix_notify(&dev->fn, vector);
        return;
    }
    pthread_mutex_lock(&dev->irq_lock);
    dev->isr |= reason;
    pci_intx_set(&dev->fn, 1);
    pthread_mutex_unlock(&dev->irq_lock);
}

void virtio_notify(struct virtio_device *dev, struct virtqueue *vq)
{
    if (virtqueue_should_interrupt(vq))
        virtio_interrupt(dev, atomic_load(&vq->vector), ISR_QUEUE);
}

void virtio_needs_reset(struct virtio_device *dev)
{
    uint8_t old = atomic_fetch_or(&dev->status, STATUS_NEEDS_RESET);

    if (old & STATUS_NEEDS_RESET)
        return;
    log_guest("%s: stopped until the guest resets it", dev->fn.dev.name);
    if (old & STATUS_DRIVER_OK)
        virtio_interrupt(dev, atomic_load(&dev->config_vector), ISR_CONFIG);
}

/* 1: go on; 0: served all there is; negative: broken. Queue lock held. */
static int serve_one(struct virtio_device *dev, struct virtqueue *vq,
                     struct virtqueue_chain *chain, virtio_handle_fn *handle)
{
    int ret = virtqueue_pop(vq, chain);

    if (ret < 0)
        return ret;
    if (ret == 0) {
        virtio_notify(dev, vq);
        return virtqueue_rearm(vq);
    }
    if (handle(dev, vq, chain))
        return 1;
    virtqueue_unpop(vq, 1);
    return 0;
}

void virtio_serve(struct virtio_device *dev, unsigned index, struct virtqueue_chain *chain,
                  virtio_handle_fn *handle)
{
    struct virtqueue *vq = &dev->vq[index];
    int ret = 1;

    pthread_mutex_lock(&vq->lock);
    virtqueue_quiet(vq);
    for (unsigned n = 0; ret > 0 && n < 2 * VIRTQUEUE_SIZE_MAX; n++)
        ret = serve_one(dev, vq, chain, handle);
    virtio_notify(dev, vq);
    pthread_mutex_unlock(&vq->lock);
    if (ret < 0)
        virtio_needs_reset(dev);
    if (ret > 0)
        virtio_bell_post(&dev->bell[index]);
}

/* Reading the status clears it and lowers the pin (4.1.4.5). */
static uint8_t isr_read(struct virtio_device *dev)
{
    uint8_t isr;

    pthread_mutex_lock(&dev->irq_lock);
    isr = dev->isr;
    dev->isr = 0;
    pci_intx_set(&dev->fn, 0);
    pthread_mutex_unlock(&dev->irq_lock);
    return isr;
}

static void queues_stop(struct virtio_device *dev)
{
    for (unsigned i = 0; i < dev->queue_count; i++) {
        pthread_mutex_lock(&dev->vq[i].lock);
        dev->vq[i].running = false;
        pthread_mutex_unlock(&dev->vq[i].lock);
    }
    if (dev->ops->quiesce)
        dev->ops->quiesce(dev);
}

/* The driver's reset (status 0) or the machine's. Device lock held. */
static void device_state_reset(struct virtio_device *dev)
{
    queues_stop(dev);
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        pthread_mutex_lock(&dev->vq[i].lock);
        virtqueue_reset(&dev->vq[i]);
        pthread_mutex_unlock(&dev->vq[i].lock);
    }
    dev->accepted = 0;
    dev->offered_select = dev->accepted_select = 0;
    dev->queue_select = 0;
    atomic_store(&dev->config_vector, VECTOR_NONE);
    atomic_store(&dev->status, 0);
    (void)isr_read(dev);
}

static void queues_start(struct virtio_device *dev)
{
    bool ok = true;

    for (unsigned i = 0; i < dev->queue_count; i++) {
        struct virtqueue *vq = &dev->vq[i];

        pthread_mutex_lock(&vq->lock);
        if (vq->enabled)
            ok &= virtqueue_start(vq, virtio_has(dev, VIRTIO_F_INDIRECT_DESC),
                                  virtio_has(dev, VIRTIO_F_EVENT_IDX)) == 0;
        pthread_mutex_unlock(&vq->lock);
    }
    if (!ok) {
        virtio_needs_reset(dev);
        return;
    }
    for (unsigned i = 0; i < dev->queue_count; i++)
        dev->ops->kick(dev, i);
}

static bool features_acceptable(const struct virtio_device *dev)
{
    return !(dev->accepted & ~dev->offered) && virtio_has(dev, VIRTIO_F_VERSION_1);
}

static void status_write(struct virtio_device *dev, uint8_t value)
{
    uint8_t old = atomic_load(&dev->status);

    if (value == 0) {
        device_state_reset(dev);
        return;
    }
    if ((value & STATUS_FEATURES_OK) && !(old & STATUS_FEATURES_OK) && !features_acceptable(dev))
        value &= (uint8_t)~STATUS_FEATURES_OK; /* the driver reads back that it may not (3.1.1) */
    if (!((value | old) & STATUS_FEATURES_OK))
        value &= (uint8_t)~STATUS_DRIVER_OK;
    atomic_fetch_or(&dev->status, value & (uint8_t)~STATUS_NEEDS_RESET);
    if ((value & STATUS_DRIVER_OK) && !(old & STATUS_DRIVER_OK))
        queues_start(dev);
}

static struct virtqueue *selected_queue(struct virtio_device *dev)
{
    return dev->queue_select < dev->queue_count ? &dev->vq[dev->queue_select] : NULL;
}

static void put(uint8_t *image, unsigned offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        image[offset + i] = (uint8_t)(value >> (8 * i));
}

static void common_image(struct virtio_device *dev, uint8_t image[COMMON_LEN])
{
    const struct virtqueue *vq = selected_queue(dev);
    unsigned shift = 32 * dev->offered_select;

    memset(image, 0, COMMON_LEN);
    put(image, COMMON_DEVICE_FEATURE_SELECT, 4, dev->offered_select);
    put(image, COMMON_DEVICE_FEATURE, 4, dev->offered_select < 2 ? dev->offered >> shift : 0);
    put(image, COMMON_DRIVER_FEATURE_SELECT, 4, dev->accepted_select);
    if (dev->accepted_select < 2)
        put(image, COMMON_DRIVER_FEATURE, 4, dev->accepted >> (32 * dev->accepted_select));
    put(image, COMMON_CONFIG_MSIX_VECTOR, 2, atomic_load(&dev->config_vector));
    put(image, COMMON_NUM_QUEUES, 2, dev->queue_count);
    put(image, COMMON_DEVICE_STATUS, 1, atomic_load(&dev->status));
    put(image, COMMON_QUEUE_SELECT, 2, dev->queue_select);
    if (!vq)
        return; /* size 0: no such queue (4.1.4.3.1) */
    put(image, COMMON_QUEUE_SIZE, 2, vq->size);
    put(image, COMMON_QUEUE_MSIX_VECTOR, 2, atomic_load(&vq->vector));
    put(image, COMMON_QUEUE_ENABLE, 2, vq->enabled);
    put(image, COMMON_QUEUE_NOTIFY_OFF, 2, dev->queue_select);
    put(image, COMMON_QUEUE_DESC, 8, vq->desc_gpa);
    put(image, COMMON_QUEUE_DRIVER, 8, vq->avail_gpa);
    put(image, COMMON_QUEUE_DEVICE, 8, vq->used_gpa);
}

/* A vector that does not exist reads back as none (4.1.5.1.2.1). */
static uint16_t vector_checked(const struct virtio_device *dev, uint64_t value)
{
    return value < dev->fn.msix.count ? (uint16_t)value : VECTOR_NONE;
}

static void features_write(struct virtio_device *dev, uint32_t value)
{
    uint64_t mask;

    if (dev->accepted_select > 1 || (atomic_load(&dev->status) & STATUS_FEATURES_OK))
        return;
    mask = 0xffffffffull << (32 * dev->accepted_select);
    dev->accepted = (dev->accepted & ~mask) | (uint64_t)value << (32 * dev->accepted_select);
}

/* Ring addresses may be written as one qword or two dwords (4.1.3.1). */
static void address_write(uint64_t *address, unsigned shift, unsigned size, uint64_t value)
{
    if (size == 8 && shift == 0)
        *address = value;
    else if (size == 4)
        *address = (*address & ~(0xffffffffull << shift)) | (uint64_t)(uint32_t)value << shift;
}

/* Registers of a queue that is running do not change. */
static void queue_write(struct virtio_device *dev, unsigned offset, unsigned size, uint64_t value)
{
    struct virtqueue *vq = selected_queue(dev);

    if (!vq)
        return;
    if (offset == COMMON_QUEUE_MSIX_VECTOR && size == 2) {
        atomic_store(&vq->vector, vector_checked(dev, value));
        return;
    }
    if (vq->enabled || (atomic_load(&dev->status) & STATUS_DRIVER_OK))
        return;
    if (offset == COMMON_QUEUE_SIZE && size == 2) {
        if (value && value <= VIRTQUEUE_SIZE_MAX && !(value & (value - 1)))
            vq->size = (uint16_t)value;
    } else if (offset == COMMON_QUEUE_ENABLE && size == 2) {
        vq->enabled = value == 1;
    } else if (offset >= COMMON_QUEUE_DEVICE) {
        address_write(&vq->used_gpa, 8 * (offset - COMMON_QUEUE_DEVICE), size, value);
    } else if (offset >= COMMON_QUEUE_DRIVER) {
        address_write(&vq->avail_gpa, 8 * (offset - COMMON_QUEUE_DRIVER), size, value);
    } else if (offset >= COMMON_QUEUE_DESC) {
        address_write(&vq->desc_gpa, 8 * (offset - COMMON_QUEUE_DESC), size, value);
    }
}

static void common_write(struct virtio_device *dev, unsigned offset, unsigned size, uint64_t value)
{
    if (offset == COMMON_DEVICE_FEATURE_SELECT && size == 4)
        dev->offered_select = (uint32_t)value;
    else if (offset == COMMON_DRIVER_FEATURE_SELECT && size == 4)
        dev->accepted_select = (uint32_t)value;
    else if (offset == COMMON_DRIVER_FEATURE && size == 4)
        features_write(dev, (uint32_t)value);
    else if (offset == COMMON_CONFIG_MSIX_VECTOR && size == 2)
        atomic_store(&dev->config_vector, vector_checked(dev, value));
    else if (offset == COMMON_DEVICE_STATUS && size == 1)
        status_write(dev, (uint8_t)value);
    else if (offset == COMMON_QUEUE_SELECT && size == 2)
        dev->queue_select = (uint16_t)value;
    else if (offset >= COMMON_QUEUE_SIZE && !(offset % (size < 4 ? size : 4)))
        queue_write(dev, offset, size, value);
}

/* Bytes of a structure of `len` bytes; zero beyond it. */
static uint64_t image_read(const uint8_t *image, unsigned len, uint64_t offset, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size && offset + i < len; i++)
        value |= (uint64_t)image[offset + i] << (8 * i);
    return value;
}

static uint64_t virtio_bar_read(void *opaque, uint64_t offset, unsigned size)
{
    struct virtio_device *dev = opaque;
    uint8_t common[COMMON_LEN];

    if (offset >= NOTIFY_OFFSET)
        return 0;
    if (offset >= DEVICE_OFFSET)
        return image_read(dev->config, dev->config_len, offset - DEVICE_OFFSET, size);
    if (offset >= ISR_OFFSET)
        return offset == ISR_OFFSET ? isr_read(dev) : 0;
    common_image(dev, common);
    return image_read(common, sizeof(common), offset, size);
}

static void bell_ring(void *opaque)
{
    struct virtio_bell *bell = opaque;

    bell->dev->ops->kick(bell->dev, bell->index);
}

static void virtio_bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio_device *dev = opaque;

    if (offset >= NOTIFY_OFFSET) {
        uint64_t index = (offset - NOTIFY_OFFSET) / NOTIFY_STRIDE;

        if (index < dev->queue_count)
            bell_ring(&dev->bell[index]);
    } else if (offset < COMMON_LEN) {
        common_write(dev, (unsigned)offset, size, value);
    }
}

static const struct bus_ops virtio_bar_ops = {.read = virtio_bar_read, .write = virtio_bar_write};

/* Doorbells follow BAR 0. */
static void virtio_bar_mapped(struct pci_function *fn, unsigned bar, bool mapped)
{
    struct virtio_device *dev = container_of(fn, struct virtio_device, fn);
    struct bus *bus = pci_host_machine(fn->host)->bus;

    if (bar != VIRTIO_BAR)
        return;
    for (unsigned i = 0; i < dev->queue_count; i++) {
        const struct bus_doorbell bell = {
            .space = BUS_MEMORY,
            .addr = fn->bar[bar].base + NOTIFY_OFFSET + i * NOTIFY_STRIDE,
            .ring = bell_ring,
            .opaque = &dev->bell[i],
            .event_fd = dev->bell[i].event_fd,
        };

        if (!mapped)
            bus_remove_doorbell(bus, &bell);
        else if (bus_add_doorbell(bus, &bell))
            log_warning("%s: queue %u has a slow doorbell: out of memory", fn->dev.name, i);
    }
}

/* The PCI configuration access capability: a window of 1, 2 or 4 bytes on any BAR (4.1.4.9). */
static const struct pci_bar *cfg_window(struct virtio_device *dev, uint32_t *offset, unsigned *len)
{
    const uint8_t *cap = &dev->fn.config[dev->cfg_cap];
    const struct pci_bar *bar = cap[4] < PCI_BARS ? &dev->fn.bar[cap[4]] : NULL;
    uint32_t length;

    memcpy(offset, &cap[8], 4);
    memcpy(&length, &cap[12], 4);
    if (!bar || !bar->size || (length != 1 && length != 2 && length != 4) || *offset % length ||
        *offset > bar->size - length)
        return NULL;
    *len = length;
    return bar;
}

static bool cfg_data_touched(const struct virtio_device *dev, unsigned offset)
{
    return offset >= dev->cfg_cap + 16u && offset < dev->cfg_cap + 20u;
}

static uint32_t virtio_config_read(struct pci_function *fn, unsigned offset, unsigned size,
                                   bool *handled)
{
    struct virtio_device *dev = container_of(fn, struct virtio_device, fn);
    const struct pci_bar *bar;
    uint32_t at;
    unsigned len;

    (void)size; /* the window has a length of its own */
    if (!cfg_data_touched(dev, offset))
        return 0;
    bar = cfg_window(dev, &at, &len);
    if (!bar)
        return 0;
    *handled = true;
    return (uint32_t)(bar->ops->read(bar->opaque, at, len) >> (8 * (offset & 3)));
}

static void virtio_config_written(struct pci_function *fn, unsigned offset, unsigned size)
{
    struct virtio_device *dev = container_of(fn, struct virtio_device, fn);
    const struct pci_bar *bar;
    uint32_t at, value;
    unsigned len;

    (void)size;
    if (!cfg_data_touched(dev, offset))
        return;
    bar = cfg_window(dev, &at, &len);
    if (!bar)
        return;
    memcpy(&value, &fn->config[dev->cfg_cap + 16], 4);
    if (len < 4)
        value &= (1u << (8 * len)) - 1;
    bar->ops->write(bar->opaque, at, len, value);
}

static uint8_t add_cap(struct virtio_device *dev, uint8_t type, uint32_t offset, uint32_t length,
                       unsigned extra)
{
    uint8_t body[18] = {0};

    body[0] = (uint8_t)(16 + extra); /* cap_len */
    body[1] = type;
    body[2] = VIRTIO_BAR;
    put(body, 6, 4, offset);
    put(body, 10, 4, length);
    if (type == CAP_NOTIFY)
        put(body, 14, 4, NOTIFY_STRIDE);
    return pci_capability_add(&dev->fn, CAP_VENDOR, body, (uint8_t)(14 + extra));
}

static void add_caps(struct virtio_device *dev)
{
    uint8_t *writable;

    add_cap(dev, CAP_COMMON, COMMON_OFFSET, COMMON_LEN, 0);
    add_cap(dev, CAP_ISR, ISR_OFFSET, 1, 0);
    if (dev->config_len)
        add_cap(dev, CAP_DEVICE, DEVICE_OFFSET, dev->config_len, 0);
    add_cap(dev, CAP_NOTIFY, NOTIFY_OFFSET, dev->queue_count * NOTIFY_STRIDE, 4);
    dev->cfg_cap = add_cap(dev, CAP_PCI, 0, 0, 4);
    writable = &dev->fn.writable[dev->cfg_cap];
    writable[4] = 0xff;
    memset(&writable[8], 0xff, 12);
}

static int bells_init(struct virtio_device *dev)
{
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        dev->bell[i] = (struct virtio_bell){.dev = dev, .index = i, .event_fd = -1};
        virtqueue_init(&dev->vq[i], dev->mem);
    }
    for (unsigned i = 0; i < dev->queue_count; i++) {
        dev->bell[i].event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (dev->bell[i].event_fd < 0)
            return -errno;
    }
    return 0;
}

int virtio_device_init(struct virtio_device *dev, struct pci_host *host,
                       const struct virtio_info *info, const char *name)
{
    const struct pci_ids ids = {
        .vendor = VIRTIO_VENDOR,
        .device = (uint16_t)(VIRTIO_DEVICE + info->type),
        .subsystem_vendor = VIRTIO_VENDOR,
        .subsystem = VIRTIO_SUBSYSTEM,
        .revision = 1,
        .class_code = {info->class_code[0], info->class_code[1], info->class_code[2]},
    };
    int ret;

    BUG_ON(info->queue_count > VIRTIO_QUEUES_MAX || info->config_len > VIRTIO_CONFIG_MAX);
    dev->ops = info->ops;
    dev->mem = pci_host_machine(host)->mem;
    dev->queue_count = info->queue_count;
    dev->config_len = info->config_len;
    dev->offered =
        info->features | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
    dev->io_wake_fd = -1;
    atomic_store(&dev->config_vector, VECTOR_NONE);
    pthread_mutex_init(&dev->irq_lock, NULL);
    ret = bells_init(dev);
    if (!ret)
        ret = virtio_io_start(dev);
    if (!ret)
        ret = pci_function_add(host, &dev->fn, -1, &ids, info->device_ops, name);
    if (ret)
        return ret;
    dev->fn.config[0x3d] = 1; /* interrupt pin A */
    dev->fn.bar_mapped = virtio_bar_mapped;
    pci_bar_init(&dev->fn, VIRTIO_BAR, BAR_SIZE, false, true, &virtio_bar_ops, dev);
    add_caps(dev);
    dev->fn.config_read = virtio_config_read;
    dev->fn.config_written = virtio_config_written;
    return pci_msix_init(&dev->fn, VIRTIO_MSIX_BAR, dev->queue_count + 1);
}

void virtio_device_release(struct virtio_device *dev)
{
    virtio_io_stop(dev);
    queues_stop(dev);
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        if (dev->bell[i].event_fd >= 0)
            close(dev->bell[i].event_fd);
        virtqueue_release(&dev->vq[i]);
    }
    pthread_mutex_destroy(&dev->irq_lock);
    pci_function_release(&dev->fn);
}

void virtio_device_reset(struct device *device)
{
    struct virtio_device *dev = container_of(device, struct virtio_device, fn.dev);

    device_state_reset(dev);
    pci_function_reset(&dev->fn);
}

int virtio_device_loaded(struct device *device)
{
    struct virtio_device *dev = container_of(device, struct virtio_device, fn.dev);
    int ret = pci_function_loaded(&dev->fn);

    if (ret)
        return ret;
    if (atomic_load(&dev->status) & STATUS_DRIVER_OK)
        queues_start(dev);
    return 0;
}
