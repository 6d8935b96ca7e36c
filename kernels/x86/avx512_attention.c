/* Attention over pages of MX_TILE positions. Tiles go by once for a block of query vectors (rows x heads of the group);
 * for every query vector the order is the same however many there are: tiles ascending, in a tile d ascending for the
 * scores and positions ascending for the values. A slot that a row may not see gets the weight 0, which changes
 * nothing, so neighbours with other bounds can share the loops. */
#include <math.h>
#include <string.h>

#include "kernels/x86/avx512.h"

enum {
    BATCH = 8,    /* query vectors per register tile */
    QUERIES = 64, /* query vectors that share the walk, unless the group alone is larger */
    FEW = 8,      /* up to this many a tile is converted on the fly, beyond it once into scratch */
    MAX_WIDTH = 4,
};

/* One query vector. */
typedef struct query {
    const float *q;
    float *out;              /* sum of weight * value so far */
    int64_t position, first; /* sees keys first <= j <= position */
    float m, l;              /* largest logit so far, sum of exp(logit - m) */
} query;

/* Scratch: weights [BATCH][MX_TILE], K tile, V tile (fp32), query[]. */
static int64_t query_count(int group) {
    return group > QUERIES ? group : QUERIES / group * group;
}

int64_t mx_avx512_attention_scratch(int head_dim, int group) {
    int64_t query_floats = query_count(group) * (int64_t)(sizeof(query) / sizeof(float));
    return BATCH * MX_TILE + 2 * (int64_t)head_dim * MX_TILE + query_floats;
}

/* s[i][j] = q[i] . K[j] for keys 16 * part ... of a transposed tile: N queries by W vectors of 16 keys. */
MX_INLINE void scores(float (*s)[MX_TILE], const query *qs, const uint8_t *k, mx_format format, int head_dim, int N,
                      int W, int part) {
    int64_t size = format == MX_F32 ? 4 : 2;
    __m512 acc[BATCH][MAX_WIDTH];
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) acc[i][c] = _mm512_setzero_ps();
    }
    for (int64_t d = 0; d < head_dim; d++) {
        __m512 keys[MAX_WIDTH];
        for (int c = 0; c < W; c++) keys[c] = mx_load16(k + (d * MX_TILE + 16 * (part + c)) * size, format);
        for (int i = 0; i < N; i++) {
            __m512 q = _mm512_set1_ps(qs[i].q[d]);
            for (int c = 0; c < W; c++) acc[i][c] = _mm512_fmadd_ps(q, keys[c], acc[i][c]);
        }
    }
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) _mm512_store_ps(s[i] + 16 * (part + c), acc[i][c]);
    }
}

/* Slots of tile p that the query sees, as a mask. */
static uint64_t visible(const query *q, int64_t p) {
    int64_t lo = q->first - p * MX_TILE, hi = q->position + 1 - p * MX_TILE;
    if (hi <= 0 || lo >= MX_TILE) return 0;
    uint64_t below_hi = hi >= MX_TILE ? ~0ull : (1ull << hi) - 1;
    return lo > 0 ? below_hi & ~0ull << lo : below_hi;
}

/* Scores to weights exp(s - m) in place; m and l go on; returns by how much earlier sums shrink. */
static float soften(query *q, float s[MX_TILE], float scale, uint64_t mask) {
    __m512 v[4], vscale = _mm512_set1_ps(scale), m = _mm512_set1_ps(q->m);
    for (int c = 0; c < 4; c++) {
        v[c] = _mm512_mul_ps(_mm512_load_ps(s + 16 * c), vscale);
        m = _mm512_mask_max_ps(m, (__mmask16)(mask >> 16 * c), m, v[c]);
    }
    m = _mm512_set1_ps(_mm512_reduce_max_ps(m));
    for (int c = 0; c < 4; c++) {
        v[c] = _mm512_maskz_mov_ps((__mmask16)(mask >> 16 * c), mx_exp512(_mm512_sub_ps(v[c], m)));
        _mm512_store_ps(s + 16 * c, v[c]);
    }
    float shrink = _mm512_cvtss_f32(mx_exp512(_mm512_sub_ps(_mm512_set1_ps(q->m), m)));
    float sum = mx_sum512(_mm512_add_ps(_mm512_add_ps(v[0], v[1]), _mm512_add_ps(v[2], v[3])));
    q->m = _mm512_cvtss_f32(m);
    q->l = q->l * shrink + sum;
    return shrink;
}

/* out[i][d] = out[i][d] * shrink[i] + sum over j of s[i][j] * V[j][d] for slots lo <= j < hi; N queries by W vectors
 * of columns from d on, the lanes of `mask` (all of them when W > 1). */
MX_INLINE void values(const query *qs, const float (*s)[MX_TILE], const float *shrink, const uint8_t *v,
                      mx_format format, int head_dim, int N, int W, int d, __mmask16 mask, int lo, int hi) {
    int64_t size = format == MX_F32 ? 4 : 2;
    __m512 acc[BATCH][MAX_WIDTH];
    for (int i = 0; i < N; i++) {
        __m512 factor = _mm512_set1_ps(shrink[i]);
        for (int c = 0; c < W; c++) {
            acc[i][c] = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, qs[i].out + d + 16 * c), factor);
        }
    }
    for (int64_t j = lo; j < hi; j++) {
        __m512 row[MAX_WIDTH];
        const uint8_t *at = v + (j * head_dim + d) * size;
        for (int c = 0; c < W; c++) {
            row[c] = W > 1 ? mx_load16(at + 16 * c * size, format) : mx_load16_masked(at, format, mask);
        }
        for (int i = 0; i < N; i++) {
            __m512 p = _mm512_set1_ps(s[i][j]);
            for (int c = 0; c < W; c++) acc[i][c] = _mm512_fmadd_ps(p, row[c], acc[i][c]);
        }
    }
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) _mm512_mask_storeu_ps(qs[i].out + d + 16 * c, mask, acc[i][c]);
    }
}

/* N query vectors against tile p. */
MX_INLINE void merge(const mx_attention *a, query *qs, int64_t p, const uint8_t *k, const uint8_t *v, mx_format format,
                     int N) {
    float(*s)[MX_TILE] = (float(*)[MX_TILE])a->scratch, shrink[BATCH];
    const int W = N == BATCH ? 2 : 4; /* N * W = 16 sums hide the latency of FMA, as far as N allows */
    uint64_t masks[BATCH], any = 0;
    for (int i = 0; i < N; i++) any |= masks[i] = visible(&qs[i], p);
    if (!any) return;
    for (int part = 0; part < 4; part += W) scores(s, qs, k, format, a->head_dim, N, W, part);
    for (int i = 0; i < N; i++) shrink[i] = soften(&qs[i], s[i], a->scale, masks[i]);
    int lo = __builtin_ctzll(any), hi = MX_TILE - __builtin_clzll(any), d = 0;
    for (; d + 16 * W <= a->head_dim; d += 16 * W) {
        values(qs, (const float(*)[MX_TILE])s, shrink, v, format, a->head_dim, N, W, d, 0xffff, lo, hi);
    }
    for (; d < a->head_dim; d += 16) {
        values(qs, (const float(*)[MX_TILE])s, shrink, v, format, a->head_dim, N, 1, d, mx_first_lanes(a->head_dim - d),
               lo, hi);
    }
}

/* All query vectors against tile p, in register tiles of 8, 4, 2 and 1. */
MX_INLINE void merge_all(const mx_attention *a, query *qs, int64_t count, int64_t p, const uint8_t *k, const uint8_t *v,
                         mx_format format) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) merge(a, qs + i, p, k, v, format, 8);
    for (; i + 4 <= count; i += 4) merge(a, qs + i, p, k, v, format, 4);
    for (; i + 2 <= count; i += 2) merge(a, qs + i, p, k, v, format, 2);
    for (; i < count; i++) merge(a, qs + i, p, k, v, format, 1);
}

static void merge_f32(const mx_attention *a, query *qs, int64_t count, int64_t p, const void *k, const void *v) {
    merge_all(a, qs, count, p, k, v, MX_F32);
}
static void merge_f16(const mx_attention *a, query *qs, int64_t count, int64_t p, const void *k, const void *v) {
    merge_all(a, qs, count, p, k, v, MX_F16);
}
static void merge_bf16(const mx_attention *a, query *qs, int64_t count, int64_t p, const void *k, const void *v) {
    merge_all(a, qs, count, p, k, v, MX_BF16);
}

static void attend(const mx_attention *a, query *qs, int64_t count, float *wide) {
    int64_t tile = (int64_t)a->head_dim * MX_TILE, size = a->kv == MX_F32 ? 4 : 2;
    for (int64_t p = qs[0].first / MX_TILE; p <= qs[count - 1].position / MX_TILE; p++) {
        const uint8_t *k = a->pages + a->table[p] * a->page_bytes + a->head_offset, *v = k + tile * size;
        if (a->kv == MX_F32) {
            merge_f32(a, qs, count, p, k, v);
        } else if (count > FEW) {
            mx_avx512_widen(wide, k, a->kv, 2 * tile);
            merge_f32(a, qs, count, p, wide, wide + tile);
        } else if (a->kv == MX_F16) {
            merge_f16(a, qs, count, p, k, v);
        } else {
            merge_bf16(a, qs, count, p, k, v);
        }
    }
}

/* Divides by l. Adding zero makes -0 to +0: whether a sum of nothing but underflows is one or the other would depend
 * on the neighbours. */
static void finish(const query *q, int head_dim) {
    __m512 l = _mm512_set1_ps(q->l);
    for (int d = 0; d < head_dim; d += 16) {
        __mmask16 mask = mx_first_lanes(head_dim - d);
        __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(mask, q->out + d), l);
        _mm512_mask_storeu_ps(q->out + d, mask, _mm512_add_ps(v, _mm512_setzero_ps()));
    }
}

void mx_avx512_attention(const mx_attention *a) {
    float *wide = a->scratch + BATCH * MX_TILE;
    query *qs = (query *)(wide + 2 * (int64_t)a->head_dim * MX_TILE);
    int64_t rows_at_once = query_count(a->group) / a->group;
    for (int64_t row0 = 0; row0 < a->rows; row0 += rows_at_once) {
        int64_t rows = a->rows - row0 < rows_at_once ? a->rows - row0 : rows_at_once, count = rows * a->group;
        for (int64_t i = 0; i < count; i++) {
            int64_t row = row0 + i / a->group, head = i % a->group, position = a->position + row;
            qs[i] = (query){.q = a->q + row * a->q_stride + head * a->head_dim,
                            .out = a->out + row * a->out_stride + head * a->head_dim,
                            .position = position,
                            .first = a->window && position >= a->window ? position - a->window + 1 : 0,
                            .m = a->sinks[head],
                            .l = 1.0f};
            memset(qs[i].out, 0, (size_t)a->head_dim * sizeof *qs[i].out);
        }
        attend(a, qs, count, wide);
        for (int64_t i = 0; i < count; i++) finish(&qs[i], a->head_dim);
    }
}
