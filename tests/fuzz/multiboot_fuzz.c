/* Any bytes as a kernel for multiboot_load(): it may refuse, but never touch what is not the file or the guest's RAM. */
#include <stdlib.h>

#include "../unit/board/boot_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fixture f;

    fixture_init(&f, data, size);
    f.images.modules[0] = (struct boot_file){"module", data, size};
    f.images.module_count = 1;
    if (multiboot_load(&f.images, &f.target, &f.err) < 0 && !f.err.message[0])
        abort(); /* a refusal says why */
    fixture_release(&f);
    return 0;
}
