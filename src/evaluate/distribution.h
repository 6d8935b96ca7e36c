#ifndef MX_EVALUATE_DISTRIBUTION_H
#define MX_EVALUATE_DISTRIBUTION_H

#include <stdint.h>

/* Distributions over a vocabulary, from logits in fp32 and computed in double, as they are and as far as a base file
 * keeps them. All sums have one order, whoever computes them and how many at once. */

/* Of the softmax, a token and its logit: its probability is exp(logit - log_sum). */
typedef struct mx_kept_logit {
    int32_t token;
    float logit;
} mx_kept_logit;

typedef struct mx_distribution {
    double log_sum; /* log of the sum of exp(logit), of all tokens; no number where a logit is none */
    double rest;    /* probability of the tokens that are not kept; exactly 0 where all are */
    int32_t best;   /* the likeliest, ties to the lowest */
} mx_distribution;

/* The `count` largest of logits [vocab], 1 <= count <= vocab, ties to the lowest token, in ascending tokens. What is no
 * number is no larger than any. */
void mx_distribution_select(const float *logits, int32_t vocab, mx_kept_logit *kept, int count);

/* `kept` [count] in ascending tokens: of whatever tokens, whatever their logits. count may be 0: rest is then 1. */
void mx_distribution_sum(const float *logits, int32_t vocab, const mx_kept_logit *kept, int count,
                         mx_distribution *out);

/* KL(p || q) in nats: of the kept tokens of p one by one, of all others together. That is a lower bound of the whole
 * one, and equal to it where all tokens are kept. `logits`: those of q, which was summed with the same tokens kept. */
double mx_distribution_kl(const mx_distribution *p, const mx_kept_logit *kept, int count, const mx_distribution *q,
                          const float *logits);

#endif
