#ifndef MX_ALTERNATIVE_H
#define MX_ALTERNATIVE_H

#include <stdint.h>

/* A token that might have been chosen. A header of its own, for the public interface (engine/mxrun.h) has it in common
 * with the backends. */
typedef struct mx_alternative {
    int32_t token;
    float logprob; /* log softmax of the unchanged logits */
} mx_alternative;

#endif
