/* Any bytes as a kernel for linux_load(): it may refuse, but never touch what is not the file or the guest's RAM. */
#include <stdlib.h>

#include "../unit/board/boot_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint32_t magic = 0x53726448;
    size_t total = size < 0x290 - 0x1f1 ? 0x290 : 0x1f1 + size;
    uint8_t *image = calloc(1, total);
    struct fixture f;

    /* The input is the set-up header and what follows; its signatures are given. */
    memcpy(image + 0x1f1, data, size);
    image[0x1fe] = 0x55;
    image[0x1ff] = 0xaa;
    memcpy(image + 0x202, &magic, sizeof(magic));
    fixture_init(&f, image, total);
    f.images.modules[0] = (struct boot_file){"module", data, size};
    f.images.module_count = 1;
    if (linux_matches(&f.images.kernel) &&
        linux_load(&f.images, &f.target, &f.err) < 0 && !f.err.message[0])
        abort(); /* a refusal says why */
    fixture_release(&f);
    free(image);
    return 0;
}
