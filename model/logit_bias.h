#ifndef MX_LOGIT_BIAS_H
#define MX_LOGIT_BIAS_H

#include <stdint.h>

/* Added to the logit of a token before anything else happens to it. A header of its own, for the public interface
 * (engine/mxrun.h) has it in common with the backends. */
typedef struct mx_logit_bias {
    int32_t token;
    float value;
} mx_logit_bias;

#endif
