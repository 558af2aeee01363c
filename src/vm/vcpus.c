#include "vm/vcpus.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct vcpu_thread {
    struct vcpus *vcpus; /* borrowed */
    unsigned index;
    pthread_t thread;
};

struct vcpus {
    struct pc *pc; /* borrowed */
    struct vcpus_events events;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool running, quit;   /* lock: what the threads are to do */
    unsigned made, parked; /* lock: what they are doing */
    struct error error;    /* lock: of the first vcpu_create that failed */
    unsigned threads;      /* started */
    struct vcpu_thread thread[PC_CPUS_MAX];
    struct vcpu *vcpu[PC_CPUS_MAX]; /* each made and destroyed by its thread */
};

/* Lock held. Parked until there is something to do. */
static void vcpus_park(struct vcpus *vcpus)
{
    vcpus->parked++;
    pthread_cond_broadcast(&vcpus->changed);
    while (!vcpus->running && !vcpus->quit)
        pthread_cond_wait(&vcpus->changed, &vcpus->lock);
    vcpus->parked--;
}

/* Lock held. The vCPU has nothing to run: wait for the main thread to decide. */
static void vcpus_wait_pause(struct vcpus *vcpus)
{
    while (vcpus->running && !vcpus->quit)
        pthread_cond_wait(&vcpus->changed, &vcpus->lock);
}

/* Lock held; released while the guest runs. */
static void vcpus_run(struct vcpus *vcpus, struct vcpu *vcpu)
{
    struct error err = {0};
    enum vcpu_exit exit;

    pthread_mutex_unlock(&vcpus->lock);
    exit = vcpus->pc->engine->vcpu_run(vcpu, &err);
    if (exit == VCPU_EXIT_SHUTDOWN)
        vcpus->events.shutdown(vcpus->events.opaque);
    else if (exit == VCPU_EXIT_ERROR)
        vcpus->events.failed(vcpus->events.opaque, err.message);
    pthread_mutex_lock(&vcpus->lock);
    if (exit != VCPU_EXIT_KICKED)
        vcpus_wait_pause(vcpus);
}

static int vcpus_make(struct vcpus *vcpus, unsigned index)
{
    struct error err = {0};
    struct vcpu *vcpu = NULL;
    int r = pc_vcpu_create(vcpus->pc, index, &vcpu, &err);

    pthread_mutex_lock(&vcpus->lock);
    vcpus->vcpu[index] = r == 0 ? vcpu : NULL;
    if (r < 0 && vcpus->error.code == 0) {
        vcpus->error = err;
        vcpus->error.code = r;
    }
    vcpus->made++;
    pthread_cond_broadcast(&vcpus->changed);
    return r;
}

static void *vcpus_thread(void *opaque)
{
    struct vcpu_thread *self = opaque;
    struct vcpus *vcpus = self->vcpus;
    int r = vcpus_make(vcpus, self->index); /* leaves the lock held */

    while (r == 0 && !vcpus->quit) {
        if (vcpus->running)
            vcpus_run(vcpus, vcpus->vcpu[self->index]);
        else
            vcpus_park(vcpus);
    }
    pthread_mutex_unlock(&vcpus->lock);
    if (r == 0)
        vcpus->pc->engine->vcpu_destroy(vcpus->vcpu[self->index]);
    return NULL;
}

static int vcpus_start(struct vcpus *vcpus)
{
    for (unsigned i = 0; i < vcpus->pc->cpus; i++) {
        struct vcpu_thread *thread = &vcpus->thread[i];
        char name[16];
        int r;

        thread->vcpus = vcpus;
        thread->index = i;
        r = pthread_create(&thread->thread, NULL, vcpus_thread, thread);
        if (r)
            return -r;
        snprintf(name, sizeof(name), "vcpu%u", i);
        pthread_setname_np(thread->thread, name);
        vcpus->threads++;
    }
    return 0;
}

int vcpus_create(struct pc *pc, const struct vcpus_events *events, struct vcpus **out,
                 struct error *err)
{
    struct vcpus *vcpus = calloc(1, sizeof(*vcpus));
    int r;

    if (!vcpus)
        return error_set(err, -ENOMEM, "no memory for the vCPU threads");
    vcpus->pc = pc;
    vcpus->events = *events;
    pthread_mutex_init(&vcpus->lock, NULL);
    pthread_cond_init(&vcpus->changed, NULL);
    r = vcpus_start(vcpus);
    if (r < 0)
        error_set(err, r, "cannot start the thread of a vCPU: %s", strerror(-r));
    pthread_mutex_lock(&vcpus->lock);
    while (vcpus->made < vcpus->threads)
        pthread_cond_wait(&vcpus->changed, &vcpus->lock);
    if (vcpus->error.code)
        r = error_set(err, vcpus->error.code, "%s", vcpus->error.message);
    pthread_mutex_unlock(&vcpus->lock);
    if (r < 0) {
        vcpus_destroy(vcpus);
        return r;
    }
    *out = vcpus;
    return 0;
}

void vcpus_resume(struct vcpus *vcpus)
{
    pthread_mutex_lock(&vcpus->lock);
    vcpus->running = true;
    pthread_cond_broadcast(&vcpus->changed);
    pthread_mutex_unlock(&vcpus->lock);
}

void vcpus_pause(struct vcpus *vcpus)
{
    pthread_mutex_lock(&vcpus->lock);
    vcpus->running = false;
    pthread_cond_broadcast(&vcpus->changed);
    /* A kick stays until the engine has seen it, so a thread on its way into the guest comes back too. */
    for (unsigned i = 0; i < vcpus->threads; i++)
        vcpus->pc->engine->vcpu_kick(vcpus->vcpu[i]);
    while (vcpus->parked < vcpus->threads)
        pthread_cond_wait(&vcpus->changed, &vcpus->lock);
    pthread_mutex_unlock(&vcpus->lock);
}

struct vcpu *const *vcpus_array(const struct vcpus *vcpus)
{
    return vcpus->vcpu;
}

void vcpus_destroy(struct vcpus *vcpus)
{
    pthread_mutex_lock(&vcpus->lock);
    vcpus->quit = true;
    pthread_cond_broadcast(&vcpus->changed);
    pthread_mutex_unlock(&vcpus->lock);
    for (unsigned i = 0; i < vcpus->threads; i++)
        pthread_join(vcpus->thread[i].thread, NULL);
    pthread_cond_destroy(&vcpus->changed);
    pthread_mutex_destroy(&vcpus->lock);
    free(vcpus);
}
