#include "cpu/engine.h"

#include <string.h>

#include "cpu/kvm/kvm.h"
#include "cpu/soft/soft.h"

const struct engine_ops *const engines[] = {&kvm_engine, &soft_engine, NULL};

const struct engine_ops *engine_find(const char *name)
{
    for (unsigned i = 0; engines[i]; i++) {
        if (strcmp(engines[i]->name, name) == 0)
            return engines[i];
    }
    return NULL;
}

const struct engine_ops *engine_choose(struct error *err)
{
    for (unsigned i = 0; engines[i]; i++) {
        struct engine_probe probe = {0};

        engines[i]->probe(&probe);
        if (probe.usable)
            return engines[i];
        error_prefix(err, "%s: %s", engines[i]->name, probe.reason);
    }
    return NULL;
}
