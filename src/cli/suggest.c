#include <string.h>

#include "cli/cli.h"

#define SUGGEST_MAX 32u /* longer words are nobody's typing errors */

static size_t min3(size_t a, size_t b, size_t c)
{
    size_t least = a < b ? a : b;

    return least < c ? least : c;
}

/* Levenshtein distance, one row at a time. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t len = strlen(b), row[SUGGEST_MAX + 1];

    for (size_t j = 0; j <= len; j++)
        row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0];

        row[0] = i + 1;
        for (size_t j = 0; j < len; j++) {
            size_t above = row[j + 1];

            row[j + 1] = min3(above + 1, row[j] + 1, diagonal + (a[i] != b[j]));
            diagonal = above;
        }
    }
    return row[len];
}

const char *cli_nearest(const char *word, const char *const *names, size_t count)
{
    size_t length = strlen(word), best = SIZE_MAX;
    const char *nearest = NULL;

    if (length > SUGGEST_MAX)
        return NULL;
    for (size_t i = 0; i < count; i++) {
        size_t distance = edit_distance(word, names[i]);

        if (distance < best) {
            best = distance;
            nearest = names[i];
        }
    }
    return best <= length / 3 + 1 ? nearest : NULL;
}
