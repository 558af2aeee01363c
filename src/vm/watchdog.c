#include "vm/watchdog.h"

#include <time.h>

#include "base/clock.h"

static void *watchdog_thread(void *opaque)
{
    struct watchdog *dog = opaque;
    const struct timespec until = {.tv_sec = (time_t)(dog->deadline / NSEC_PER_SEC),
                                   .tv_nsec = (long)(dog->deadline % NSEC_PER_SEC)};
    bool stopped;

    pthread_mutex_lock(&dog->lock);
    while (!dog->stopped && clock_now() < dog->deadline)
        pthread_cond_timedwait(&dog->changed, &dog->lock, &until);
    stopped = dog->stopped;
    pthread_mutex_unlock(&dog->lock);
    if (!stopped)
        dog->fn(dog->opaque);
    return NULL;
}

void watchdog_start(struct watchdog *dog, uint64_t ns, void (*fn)(void *opaque), void *opaque)
{
    pthread_condattr_t attr;

    *dog = (struct watchdog){.deadline = clock_now() + ns, .fn = fn, .opaque = opaque};
    pthread_mutex_init(&dog->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&dog->changed, &attr);
    pthread_condattr_destroy(&attr);
    dog->started = pthread_create(&dog->thread, NULL, watchdog_thread, dog) == 0;
}

void watchdog_stop(struct watchdog *dog)
{
    pthread_mutex_lock(&dog->lock);
    dog->stopped = true;
    pthread_cond_signal(&dog->changed);
    pthread_mutex_unlock(&dog->lock);
    if (dog->started)
        pthread_join(dog->thread, NULL);
    pthread_cond_destroy(&dog->changed);
    pthread_mutex_destroy(&dog->lock);
}
