/* Any bytes as a kernel for linux_load(): it may refuse, but never touch what is not the file or the guest's RAM. */
#include <stdlib.h>

#include "../unit/board/boot_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint32_t magic = 0x53726448;
    uint8_t *image = malloc(size ? size : 1);
    struct fixture f;

    /* The signatures are given, so that every input gets past them. */
    memcpy(image, data, size);
    if (size >= 0x290) {
        image[0x1fe] = 0x55;
        image[0x1ff] = 0xaa;
        memcpy(image + 0x202, &magic, sizeof(magic));
    }
    fixture_init(&f, image, size);
    f.images.modules[0] = (struct boot_file){"module", data, size};
    f.images.module_count = 1;
    if (linux_matches(&f.images.kernel) &&
        linux_load(&f.images, &f.target, &f.err) < 0 && !f.err.message[0])
        abort(); /* a refusal says why */
    fixture_release(&f);
    free(image);
    return 0;
}
