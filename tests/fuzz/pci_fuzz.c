/* Two functions that a guest programs at will: the script drives one, then the other. */
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
    if (virtio_rng_create(dm.host, "rng0") || virtio_console_create(dm.host, -1, -1, "console0"))
        abort();
    device_script_run(&dm, 1, 1, data, size / 2);
    device_script_run(&dm, 2, 2, data + size / 2, size - size / 2);
    device_script_run(&dm, 0, 1, data, size);
    driver_machine_release(&dm);
    return 0;
}
