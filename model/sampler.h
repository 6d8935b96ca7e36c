#ifndef MX_SAMPLER_H
#define MX_SAMPLER_H

#include <stdint.h>

#include "kernels/kernels.h"
#include "model/model.h"

/* One row of logits [vocab] to a token by the rules of mx_sample_spec, on the CPU.
 *
 * `scratch` holds [vocab] floats, 64-byte aligned, and is overwritten; `logits` is only read. No allocation, no sorting
 * of the vocabulary: top-k and top-p are selections over the bits of the logits, O(vocab).
 *
 * Ties go to the lowest id everywhere. out->logprob is the log softmax of the unchanged logits at the token.
 * MX_INVALID_STATE: a logit is NaN or infinite, or bias and mask leave no token to choose. MX_INVALID_ARGUMENT: see
 * mx_sample_spec_check. */
mx_status mx_sample_logits(const mx_kernels *k, float *scratch, const float *logits, int32_t vocab,
                           const mx_sample_spec *spec, mx_sampled *out, mx_error *error);

/* The `count` likeliest tokens of a row, 0 to vocab of them, likeliest first, ties to the lowest id, and the logprob of
 * `token` (-1: of none, and *logprob is left alone), with the bits that mx_sample_logits gives them. Meant for a few:
 * the time grows with `count`. `scratch`, `logits` and errors as above. */
mx_status mx_top_logits(const mx_kernels *k, float *scratch, const float *logits, int32_t vocab, int count,
                        mx_alternative *out, int32_t token, float *logprob, mx_error *error);

/* What is wrong with what mx_top_logits is asked for. */
mx_status mx_top_check(int32_t vocab, int count, int32_t token, mx_error *error);

/* The words for what goes wrong with logits, the same for every backend; both return MX_INVALID_STATE. */
mx_status mx_sample_not_finite(int32_t token, float logit, mx_error *error);
mx_status mx_sample_none_left(int32_t vocab, mx_error *error);

/* The random number of (seed, position), in [0, 1) with 53 bits: the output of SplitMix64 (Steele, Lea, Flood 2014)
 * at step `position` of a stream that starts at the mixed seed. */
double mx_sample_uniform(uint64_t seed, int64_t position);

#endif
