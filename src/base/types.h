/* Scalars with a meaning of their own. Everything else is plain <stdint.h>. */
#ifndef BASE_TYPES_H
#define BASE_TYPES_H

#include <stdbool.h>
#include <stdint.h>

typedef uint64_t gpa_t; /* guest physical address */
typedef uint64_t gva_t; /* guest virtual (linear) address */
typedef uint64_t hpa_t; /* host physical address (bare-metal engine only) */

#define PAGE_SHIFT 12u
#define PAGE_SIZE  4096u
#define PAGE_MASK  (~(uint64_t)4095)

#endif
