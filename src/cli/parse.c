#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static int parse_digits(const char *text, uint64_t *out, const char **end)
{
    uint64_t value = 0;

    if (!isdigit((unsigned char)*text))
        return -EINVAL;
    for (; isdigit((unsigned char)*text); text++) {
        if (mul_overflows(value, 10ull, &value) ||
            add_overflows(value, (uint64_t)(*text - '0'), &value))
            return -ERANGE;
    }
    *out = value;
    *end = text;
    return 0;
}

int cli_parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    const char *end;
    int ret = parse_digits(text, out, &end);

    if (ret)
        return ret;
    if (*end)
        return -EINVAL;
    return *out < min || *out > max ? -ERANGE : 0;
}

int cli_parse_size(const char *text, uint64_t *out)
{
    static const char suffixes[] = "KMGT";
    const char *end, *suffix;
    unsigned shift = 0;
    int ret = parse_digits(text, out, &end);

    if (ret)
        return ret;
    if (*end) {
        suffix = strchr(suffixes, toupper((unsigned char)*end));
        if (!suffix || end[1])
            return -EINVAL;
        shift = 10 * (unsigned)(suffix - suffixes + 1);
    }
    if (*out > UINT64_MAX >> shift)
        return -ERANGE;
    *out <<= shift;
    return 0;
}
