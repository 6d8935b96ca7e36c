#ifndef MX_KERNELS_ATTENTION_WALK_H
#define MX_KERNELS_ATTENTION_WALK_H

/* Attention over pages of MX_TILE positions, as far as the fast tiers share it: which keys a row sees, segments, parts.
 * A block of query vectors (rows x heads of the group) walks the past together, in batches that fill a register tile.
 * For every query vector the order is the same whatever its neighbours: tiles ascending, in a tile d ascending for the
 * scores and positions ascending for the values. A slot that a row may not see gets the weight 0, which changes
 * nothing, so neighbours with other bounds can share the loops.
 *
 * Scores and m are in units of ln 2: q is multiplied by scale / ln 2 beforehand, and weights are powers of two. */
#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum { MX_BATCH = 8 }; /* query vectors of a batch at most */

typedef struct mx_queries {
    float m[MX_BATCH], l[MX_BATCH];              /* of the segment's part so far */
    float *o;                                    /* [count][mx_attention_tier.lanes * n >= head_dim] the same */
    const float *q;                              /* [head_dim][count] */
    int count;                                   /* mx_attention_tier.batch, or a smaller power of two */
    int64_t position[MX_BATCH], first[MX_BATCH]; /* each sees keys first <= j <= position */
    float sink[MX_BATCH];
    float row_m[MX_BATCH], row_l[MX_BATCH]; /* of the row's state; its o is in out */
    float *out[MX_BATCH];
} mx_queries;

typedef struct mx_tile {
    const uint8_t *k, *v; /* [head_dim][MX_TILE], [MX_TILE][head_dim] */
    int64_t ahead;        /* bytes from k to that of the tile that comes next, to be prefetched; 0: none */
    int head_dim;
    uint64_t visible[MX_BATCH]; /* the slots that each query vector sees, */
    uint64_t any;               /* and that at least one does: not 0 */
    float *s;                   /* [MX_BATCH][MX_TILE] scratch */
} mx_tile;

/* m, l and o of a batch go on by one tile. */
typedef void mx_tile_fn(const mx_tile *t, mx_queries *b);

typedef struct mx_attention_tier {
    int batch;                    /* a power of two <= MX_BATCH */
    int lanes;                    /* o's rows are multiples of this */
    int wide_from;                /* so many batches share one copy of K and V as fp32; 0: never */
    mx_tile_fn *tile[MX_FORMATS]; /* F32, F16, BF16 */
    void (*widen)(float *out, const uint8_t *in, mx_format format, int64_t n); /* where wide_from is not 0 */
    /* A row's state (out, *m, *l) takes the part (o, part_m, part_l); `step` floats of o from one vector to the next.
     */
    void (*take)(float *out, float *m, float *l, const float *o, int64_t step, float part_m, float part_l,
                 int head_dim);
    void (*finish)(float *out, float l, int head_dim); /* out = out / l + 0, so that no zero is negative */
} mx_attention_tier;

/* The functions of the same names in mx_kernels, by a tier's inner functions. */
void mx_walk_attention(const mx_attention *a, const mx_attention_tier *tier);
void mx_walk_attention_segment(const mx_attention *a, int64_t segment, const mx_attention_tier *tier);
void mx_walk_attention_join(const mx_attention *a, const mx_attention_tier *tier);
int64_t mx_walk_attention_scratch(const mx_attention_tier *tier, int head_dim, int group);

#endif
