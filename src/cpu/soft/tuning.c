#include "cpu/soft/tuning.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WORD_MAX 32u

static const struct soft_tuning defaults = {.runs = 8, .block_insns = 64};

static int number(const char *text, uint32_t least, uint32_t most, uint32_t *out)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (end == text || *end || value < least || value > most)
        return -EINVAL;
    *out = (uint32_t)value;
    return 0;
}

static int one_word(const char *word, struct soft_tuning *t)
{
    int ret;

    if (strcmp(word, "interpret") == 0) {
        t->interpret = true;
        return 0;
    }
    if (strcmp(word, "slow") == 0) {
        t->slow = true;
        return 0;
    }
    if (strcmp(word, "forget") == 0) {
        t->forget = true;
        return 0;
    }
    if (strcmp(word, "lockstep") == 0) {
        t->lockstep = true;
        return 0;
    }
    if (strncmp(word, "runs=", 5) == 0)
        return number(word + 5, 1, 60000, &t->runs);
    if (strncmp(word, "block=", 6) == 0)
        return number(word + 6, 1, 64, &t->block_insns);
    if (strncmp(word, "flush=", 6) == 0)
        return number(word + 6, 1, UINT32_MAX, &t->flush);
    if (strncmp(word, "code=", 5) == 0) {
        ret = number(word + 5, 256, 1u << 20, &t->code_size);
        t->code_size <<= 10;
        return ret;
    }
    return -EINVAL;
}

int soft_tuning_parse(const char *text, struct soft_tuning *tuning)
{
    *tuning = defaults;
    while (text && *text) {
        size_t len = strcspn(text, ",");
        char word[WORD_MAX];

        if (len >= sizeof(word))
            return -EINVAL;
        memcpy(word, text, len);
        word[len] = '\0';
        if (one_word(word, tuning) < 0)
            return -EINVAL;
        text += len + (text[len] == ',');
    }
    return 0;
}
