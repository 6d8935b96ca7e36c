/* Attention of the AVX-512 tier: what attention_walk.c does with each tile. */
#include "kernels/x86/attention_walk.h"
#include "kernels/x86/avx512.h"

enum {
    BATCH = 8, /* query vectors per register tile */
    MAX_WIDTH = 4,
};

/* s[i][j] = q[i] . K[j] for keys 16 * part ... of a transposed tile: N queries by W vectors of 16 keys. */
MX_INLINE void scores(float (*s)[MX_TILE], const mx_query *qs, const uint8_t *k, mx_format format, int head_dim, int N,
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

/* Scores to weights exp(s - m) in place; m and l go on; returns by how much earlier sums shrink. */
static float soften(mx_query *q, float s[MX_TILE], float scale, uint64_t mask) {
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
MX_INLINE void values(const mx_query *qs, const float (*s)[MX_TILE], const float *shrink, const uint8_t *v,
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
MX_INLINE void merge(const mx_attention *a, mx_query *qs, int64_t p, const uint8_t *k, const uint8_t *v,
                     mx_format format, int N) {
    float(*s)[MX_TILE] = (float(*)[MX_TILE])a->scratch, shrink[BATCH];
    const int W = N == BATCH ? 2 : 4; /* N * W = 16 sums hide the latency of FMA, as far as N allows */
    uint64_t masks[BATCH], any = 0;
    for (int i = 0; i < N; i++) any |= masks[i] = mx_visible(&qs[i], p);
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
MX_INLINE void merge_all(const mx_attention *a, mx_query *qs, int64_t count, int64_t p, const uint8_t *k,
                         const uint8_t *v, mx_format format) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) merge(a, qs + i, p, k, v, format, 8);
    for (; i + 4 <= count; i += 4) merge(a, qs + i, p, k, v, format, 4);
    for (; i + 2 <= count; i += 2) merge(a, qs + i, p, k, v, format, 2);
    for (; i < count; i++) merge(a, qs + i, p, k, v, format, 1);
}

static void merge_f32(const mx_attention *a, mx_query *qs, int64_t count, int64_t p, const void *k, const void *v) {
    merge_all(a, qs, count, p, k, v, MX_F32);
}
static void merge_f16(const mx_attention *a, mx_query *qs, int64_t count, int64_t p, const void *k, const void *v) {
    merge_all(a, qs, count, p, k, v, MX_F16);
}
static void merge_bf16(const mx_attention *a, mx_query *qs, int64_t count, int64_t p, const void *k, const void *v) {
    merge_all(a, qs, count, p, k, v, MX_BF16);
}

/* Divides by l. Adding zero makes -0 to +0: whether a sum of nothing but underflows is one or the other would depend
 * on the neighbours. */
static void finish(const mx_query *q, int head_dim) {
    __m512 l = _mm512_set1_ps(q->l);
    for (int d = 0; d < head_dim; d += 16) {
        __mmask16 mask = mx_first_lanes(head_dim - d);
        __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(mask, q->out + d), l);
        _mm512_mask_storeu_ps(q->out + d, mask, _mm512_add_ps(v, _mm512_setzero_ps()));
    }
}

static const mx_attention_tier inner = {BATCH, merge_f32, merge_f16, merge_bf16, mx_avx512_widen, finish};

void mx_avx512_attention(const mx_attention *a) {
    mx_attention_walk(a, &inner);
}

int64_t mx_avx512_attention_scratch(int head_dim, int group) {
    return mx_attention_walk_scratch(&inner, head_dim, group);
}
