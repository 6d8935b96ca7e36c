#ifndef MX_EVALUATE_STATISTICS_H
#define MX_EVALUATE_STATISTICS_H

#include <stdbool.h>
#include <stdint.h>

#include "evaluate/evaluate.h"

/* What was measured of each scored token, [tokens], in the order of the text. */
typedef struct mx_measured {
    int64_t tokens;
    double *nats;           /* -log p */
    double *base_nats, *kl; /* of a reference, and reference || this; NULL: there is none */
    unsigned char *same;    /* 1: both find the same token the likeliest */
} mx_measured;

/* Sums in the order of the tokens. Sets nats, perplexity, bits_per_byte (of out->bytes) and their errors and, with a
 * reference, all about it. Sorts `kl`. An error that one token leaves unknown is NaN. */
void mx_measured_summarise(const mx_measured *m, mx_evaluation *out);

#endif
