#ifndef MX_KERNELS_X86_ATTENTION_WALK_H
#define MX_KERNELS_X86_ATTENTION_WALK_H

/* Attention over pages of MX_TILE positions, as far as the tiers share it. Tiles go by once for a block of query
 * vectors (rows x heads of the group); for every query vector the order is the same however many there are: tiles
 * ascending, in a tile d ascending for the scores and positions ascending for the values. A slot that a row may not see
 * gets the weight 0, which changes nothing, so neighbours with other bounds can share the loops. */
#include <stdint.h>

#include "kernels/kernels.h"

/* One query vector. */
typedef struct mx_query {
    const float *q;
    float *out;              /* sum of weight * value so far */
    int64_t position, first; /* sees keys first <= j <= position */
    float m, l;              /* largest logit so far, sum of exp(logit - m) */
} mx_query;

/* All query vectors against tile p: K [head_dim][MX_TILE], V [MX_TILE][head_dim] of one format. The first
 * batch * MX_TILE floats of a->scratch are for its weights. */
typedef void mx_merge_fn(const mx_attention *a, mx_query *qs, int64_t count, int64_t p, const void *k, const void *v);

typedef struct mx_attention_tier {
    int batch; /* query vectors per register tile; up to this many a tile of K and V is converted on the fly, beyond it
                  once into scratch */
    mx_merge_fn *merge_f32, *merge_f16, *merge_bf16;
    void (*widen)(float *out, const uint8_t *in, mx_format format, int64_t n);
    void (*finish)(const mx_query *q, int head_dim); /* divides out by l */
} mx_attention_tier;

/* mx_kernels.attention and .attention_scratch by a tier's inner functions. */
void mx_attention_walk(const mx_attention *a, const mx_attention_tier *tier);
int64_t mx_attention_walk_scratch(const mx_attention_tier *tier, int head_dim, int group);

/* Slots of tile p that the query sees, as a mask. */
static inline uint64_t mx_visible(const mx_query *q, int64_t p) {
    int64_t lo = q->first - p * MX_TILE, hi = q->position + 1 - p * MX_TILE;
    if (hi <= 0 || lo >= MX_TILE) return 0;
    uint64_t below_hi = hi >= MX_TILE ? ~0ull : (1ull << hi) - 1;
    return lo > 0 ? below_hi & ~0ull << lo : below_hi;
}

#endif
