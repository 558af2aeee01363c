/*
 * How the soft engine is run for tests, from the environment variable LODGE_SOFT: words separated by commas.
 *
 *   interpret    no translator
 *   runs=N       a block is translated when it is executed for the Nth time (default 8)
 *   block=N      at most N instructions in a block (default and most 64)
 *   code=SIZE    the code buffer's size in KiB (least 256; default: its share of the machine's code cache)
 *   flush=N      the code buffer counts as full after each N translations
 *   forget       room for few decoded instructions: translated code decodes what it hands to the interpreter again
 *   lockstep     every translated block is also interpreted, and all state compared (lockstep.h); one vCPU
 *   slow         no translation of an address is remembered: every access to memory takes the slow path
 *
 * Unknown words are an error, as a test that asks for something must get it.
 */
#ifndef CPU_SOFT_TUNING_H
#define CPU_SOFT_TUNING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

struct soft_tuning {
    bool interpret, slow, lockstep, forget;
    uint32_t runs;
    uint32_t block_insns;
    uint32_t code_size; /* bytes; 0: not said */
    uint32_t flush;     /* 0: never */
};

/* NULL or empty text: the defaults. -EINVAL: a word it does not know, or a bad number. */
nodiscard int soft_tuning_parse(const char *text, struct soft_tuning *tuning);

#endif
