#include <stdlib.h>

#include "base/log.h"
#include "device/virtio/virtio.h"
#include "device_script.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct driver_machine dm;

    log_set_level(LOG_ERROR);
    driver_machine_init(&dm);
    if (virtio_rng_create(dm.host, "rng0"))
        abort();
    device_script_run(&dm, 1, 1, data, size);
    driver_machine_release(&dm);
    return 0;
}
