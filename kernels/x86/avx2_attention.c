/* Attention of the AVX2 tier: what attention_walk.c does with each tile. */
#include "kernels/x86/attention_walk.h"
#include "kernels/x86/avx2.h"

enum {
    BATCH = 4, /* query vectors per register tile */
    MAX_WIDTH = 8,
};

/* s[i][j] = q[i] . K[j] for keys 8 * part ... of a transposed tile: N queries by W vectors of 8 keys. */
MX_INLINE void scores(float (*s)[MX_TILE], const mx_query *qs, const uint8_t *k, mx_format format, int head_dim, int N,
                      int W, int part) {
    int64_t size = format == MX_F32 ? 4 : 2;
    __m256 acc[BATCH][MAX_WIDTH];
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) acc[i][c] = _mm256_setzero_ps();
    }
    for (int64_t d = 0; d < head_dim; d++) {
        const uint8_t *at = k + (d * MX_TILE + 8 * part) * size;
        for (int c = 0; c < W; c++) {
            __m256 keys = mx_load8(at + 8 * c * size, format);
            for (int i = 0; i < N; i++) acc[i][c] = _mm256_fmadd_ps(_mm256_set1_ps(qs[i].q[d]), keys, acc[i][c]);
        }
    }
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) _mm256_storeu_ps(s[i] + 8 * (part + c), acc[i][c]);
    }
}

/* One bit per lane to one lane mask. */
MX_INLINE __m256 lanes_of(uint64_t bits) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i v = _mm256_and_si256(_mm256_set1_epi32((int)(bits & 255)), bit);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(v, bit));
}

/* Scores to weights exp(s - m) in place; m and l go on; returns by how much earlier sums shrink. */
static float soften(mx_query *q, float s[MX_TILE], float scale, uint64_t mask) {
    __m256 v[8], vscale = _mm256_set1_ps(scale), most = _mm256_set1_ps(q->m), sum = _mm256_setzero_ps();
    float part[8], m = q->m;
    for (int c = 0; c < 8; c++) {
        v[c] = _mm256_mul_ps(_mm256_loadu_ps(s + 8 * c), vscale);
        most = _mm256_blendv_ps(most, _mm256_max_ps(most, v[c]), lanes_of(mask >> 8 * c));
    }
    _mm256_storeu_ps(part, most);
    for (int i = 0; i < 8; i++) m = part[i] > m ? part[i] : m;
    most = _mm256_set1_ps(m);
    for (int c = 0; c < 8; c++) {
        v[c] = _mm256_and_ps(mx_exp256(_mm256_sub_ps(v[c], most)), lanes_of(mask >> 8 * c));
        _mm256_storeu_ps(s + 8 * c, v[c]);
        sum = _mm256_add_ps(sum, v[c]);
    }
    float shrink = _mm256_cvtss_f32(mx_exp256(_mm256_set1_ps(q->m - m)));
    _mm256_storeu_ps(part, sum);
    q->l = q->l * shrink + (((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7])));
    q->m = m;
    return shrink;
}

/* out[i][d] = out[i][d] * shrink[i] + sum over j of s[i][j] * V[j][d] for slots lo <= j < hi; N queries by W vectors
 * of columns from d on. */
MX_INLINE void values(const mx_query *qs, const float (*s)[MX_TILE], const float *shrink, const uint8_t *v,
                      mx_format format, int head_dim, int N, int W, int d, int lo, int hi) {
    int64_t size = format == MX_F32 ? 4 : 2;
    __m256 acc[BATCH][MAX_WIDTH];
    for (int i = 0; i < N; i++) {
        __m256 factor = _mm256_set1_ps(shrink[i]);
        for (int c = 0; c < W; c++) acc[i][c] = _mm256_mul_ps(_mm256_loadu_ps(qs[i].out + d + 8 * c), factor);
    }
    for (int64_t j = lo; j < hi; j++) {
        const uint8_t *at = v + (j * head_dim + d) * size;
        for (int c = 0; c < W; c++) {
            __m256 row = mx_load8(at + 8 * c * size, format);
            for (int i = 0; i < N; i++) acc[i][c] = _mm256_fmadd_ps(_mm256_set1_ps(s[i][j]), row, acc[i][c]);
        }
    }
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) _mm256_storeu_ps(qs[i].out + d + 8 * c, acc[i][c]);
    }
}

/* The same for the columns of a head_dim that is no multiple of 8, from d on. */
static void values_rest(const mx_query *q, const float *s, float shrink, const uint8_t *v, mx_format format,
                        int head_dim, int d, int lo, int hi) {
    int64_t size = format == MX_F32 ? 4 : 2;
    int count = head_dim - d;
    float row[8];
    for (int i = 0; i < count; i++) q->out[d + i] *= shrink;
    for (int64_t j = lo; j < hi; j++) {
        mx_avx2_widen(row, v + (j * head_dim + d) * size, format, count);
        for (int i = 0; i < count; i++) q->out[d + i] += s[j] * row[i];
    }
}

/* N query vectors against tile p. */
MX_INLINE void merge(const mx_attention *a, mx_query *qs, int64_t p, const uint8_t *k, const uint8_t *v,
                     mx_format format, int N) {
    float(*s)[MX_TILE] = (float(*)[MX_TILE])a->scratch, shrink[BATCH];
    const int W = 8 / N; /* 8 sums at a time: enough to hide the latency of FMA, few enough for 16 registers */
    uint64_t masks[BATCH], any = 0;
    for (int i = 0; i < N; i++) any |= masks[i] = mx_visible(&qs[i], p);
    if (!any) return;
    for (int part = 0; part < 8; part += W) scores(s, qs, k, format, a->head_dim, N, W, part);
    for (int i = 0; i < N; i++) shrink[i] = soften(&qs[i], s[i], a->scale, masks[i]);
    const float(*weight)[MX_TILE] = (const float(*)[MX_TILE])s;
    int lo = __builtin_ctzll(any), hi = MX_TILE - __builtin_clzll(any), d = 0;
    for (; d + 8 * W <= a->head_dim; d += 8 * W) {
        values(qs, weight, shrink, v, format, a->head_dim, N, W, d, lo, hi);
    }
    for (; d + 8 <= a->head_dim; d += 8) values(qs, weight, shrink, v, format, a->head_dim, N, 1, d, lo, hi);
    for (int i = 0; i < N && d < a->head_dim; i++) {
        values_rest(&qs[i], s[i], shrink[i], v, format, a->head_dim, d, lo, hi);
    }
}

/* All query vectors against tile p, in register tiles of 4, 2 and 1. */
MX_INLINE void merge_all(const mx_attention *a, mx_query *qs, int64_t count, int64_t p, const uint8_t *k,
                         const uint8_t *v, mx_format format) {
    int64_t i = 0;
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
    for (int d = 0; d < head_dim; d++) q->out[d] = q->out[d] / q->l + 0.0f;
}

static const mx_attention_tier inner = {BATCH, merge_f32, merge_f16, merge_bf16, mx_avx2_widen, finish};

void mx_avx2_attention(const mx_attention *a) {
    mx_attention_walk(a, &inner);
}

int64_t mx_avx2_attention_scratch(int head_dim, int group) {
    return mx_attention_walk_scratch(&inner, head_dim, group);
}
