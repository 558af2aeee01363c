#include "core/device.h"

#include <stdio.h>

void device_init(struct device *dev, const struct device_ops *ops, const char *name)
{
    pthread_mutexattr_t attr;

    dev->ops = ops;
    (void)snprintf(dev->name, sizeof(dev->name), "%s", name);
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_NORMAL);
    pthread_mutex_init(&dev->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    dev->next = NULL;
}

void device_release(struct device *dev)
{
    pthread_mutex_destroy(&dev->lock);
}
