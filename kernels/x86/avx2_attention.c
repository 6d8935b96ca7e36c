/* Attention of the AVX2 tier: what attention_walk.c does with each tile. */
#include "kernels/attention_walk.h"
#include "kernels/x86/avx2.h"

enum {
    BATCH = 4,
    MAX_WIDTH = 8,
    PARTS = MX_TILE / 8, /* vectors of 8 slots in a tile */
};

/* 2^x within 2^-23 of the true value for -126 <= x <= 0, 0 below; 1 at 0. x = n + r, n = round(x);
 * 2^r = 1 + r q(r) with q minimax for the relative error (2.0e-9 before rounding). */
MX_INLINE __m256 exp2_256(__m256 x) {
    __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm256_sub_ps(x, n);
    __m256 q = _mm256_set1_ps(0x1.41fbbcp-13f);
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.5f3e54p-10f));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.3b2d4cp-7f));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.c6aee8p-5f));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.ebfbdcp-3f));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0x1.62e430p-1f));
    q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(1.0f));
    __m256i bits = _mm256_add_epi32(_mm256_castps_si256(q), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23));
    return _mm256_and_ps(_mm256_castsi256_ps(bits), _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_GE_OQ));
}

/* s[i][j] = q[i] . K[j] for slots 8 * part ... of a transposed tile: N queries by W vectors of 8 slots. */
MX_INLINE void scores(const mx_tile *t, const float *q, mx_format format, int N, int W, int part) {
    int64_t size = format == MX_F32 ? 4 : 2;
    __m256 acc[BATCH][MAX_WIDTH];
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) acc[i][c] = _mm256_setzero_ps();
    }
    for (int64_t d = 0; d < t->head_dim; d++) {
        const uint8_t *at = t->k + (d * MX_TILE + 8 * part) * size;
        if (W * 8 * size >= 64 || part % 4 == 0) _mm_prefetch((const char *)at + t->ahead, _MM_HINT_T1);
        for (int c = 0; c < W; c++) {
            __m256 keys = mx_load8(at + 8 * c * size, format);
            for (int i = 0; i < N; i++) acc[i][c] = _mm256_fmadd_ps(_mm256_set1_ps(q[d * N + i]), keys, acc[i][c]);
        }
    }
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) _mm256_store_ps(t->s + i * MX_TILE + 8 * (part + c), acc[i][c]);
    }
}

/* One bit per lane to one lane mask. */
MX_INLINE __m256 lanes_of(uint64_t bits) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i v = _mm256_and_si256(_mm256_set1_epi32((int)(bits & 255)), bit);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(v, bit));
}

/* Scores to weights 2^(s - m) in place, for slots 8 * from ... 8 * to - 1, weight 0 where the query does not see; m and
 * l go on; returns by how much earlier sums shrink. */
static float soften(float *m, float *l, float s[MX_TILE], uint64_t mask, int from, int to) {
    __m256 most = _mm256_set1_ps(*m), sum = _mm256_setzero_ps();
    for (int c = from; c < to; c++) {
        __m256 v = _mm256_max_ps(most, _mm256_load_ps(s + 8 * c));
        most = _mm256_blendv_ps(most, v, lanes_of(mask >> 8 * c));
    }
    most = _mm256_max_ps(most, _mm256_permute2f128_ps(most, most, 1));
    most = _mm256_max_ps(most, _mm256_permute_ps(most, 0x4e));
    most = _mm256_max_ps(most, _mm256_permute_ps(most, 0xb1));
    for (int c = from; c < to; c++) {
        __m256 v = exp2_256(_mm256_sub_ps(_mm256_load_ps(s + 8 * c), most));
        v = _mm256_and_ps(v, lanes_of(mask >> 8 * c));
        _mm256_store_ps(s + 8 * c, v);
        sum = _mm256_add_ps(sum, v);
    }
    sum = _mm256_add_ps(sum, _mm256_permute2f128_ps(sum, sum, 1));
    sum = _mm256_add_ps(sum, _mm256_permute_ps(sum, 0x4e));
    sum = _mm256_add_ps(sum, _mm256_permute_ps(sum, 0xb1));
    float shrink = _mm256_cvtss_f32(exp2_256(_mm256_sub_ps(_mm256_set1_ps(*m), most)));
    *l = *l * shrink + _mm256_cvtss_f32(sum);
    *m = _mm256_cvtss_f32(most);
    return shrink;
}

/* o[i][d] = o[i][d] * shrink[i] + sum over j of s[i][j] * V[j][d] for slots lo <= j < hi; N queries by W vectors of
 * columns from d on, of which `columns` are there (all of them when W > 1). */
MX_INLINE void values(const mx_tile *t, const mx_queries *b, const float *shrink, mx_format format, int N, int W, int d,
                      int columns, int lo, int hi) {
    int64_t size = format == MX_F32 ? 4 : 2;
    float *o = b->o + d * N;
    __m256 acc[BATCH][MAX_WIDTH];
    for (int i = 0; i < N; i++) {
        __m256 factor = _mm256_set1_ps(shrink[i]);
        for (int c = 0; c < W; c++) acc[i][c] = _mm256_mul_ps(_mm256_load_ps(o + (c * N + i) * 8), factor);
    }
    for (int64_t j = lo; j < hi; j++) {
        const uint8_t *at = t->v + (j * t->head_dim + d) * size;
        float rest[8] = {0};
        if (columns < 8) mx_avx2_widen(rest, at, format, columns);
        if (W * 8 * size >= 64 || d % 32 == 0) _mm_prefetch((const char *)at + t->ahead, _MM_HINT_T1);
        for (int c = 0; c < W; c++) {
            __m256 row = columns < 8 ? _mm256_loadu_ps(rest) : mx_load8(at + 8 * c * size, format);
            for (int i = 0; i < N; i++) {
                acc[i][c] = _mm256_fmadd_ps(_mm256_set1_ps(t->s[i * MX_TILE + j]), row, acc[i][c]);
            }
        }
    }
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) _mm256_store_ps(o + (c * N + i) * 8, acc[i][c]);
    }
}

MX_INLINE void tile(const mx_tile *t, mx_queries *b, mx_format format, int N) {
    const int W = 8 / N; /* 8 sums at a time: enough to hide the latency of FMA, few enough for 16 registers */
    float shrink[BATCH];
    int lo = __builtin_ctzll(t->any), hi = MX_TILE - __builtin_clzll(t->any), from = lo / 8, to = (hi + 7) / 8;
    int part = from, d = 0;
    for (; part + W <= to; part += W) scores(t, b->q, format, N, W, part);
    for (; part < to; part++) scores(t, b->q, format, N, 1, part);
    for (int i = 0; i < N; i++) {
        shrink[i] = soften(&b->m[i], &b->l[i], t->s + i * MX_TILE, t->visible[i], from, to);
    }
    for (; d + 8 * W <= t->head_dim; d += 8 * W) values(t, b, shrink, format, N, W, d, 8, lo, hi);
    for (; d + 8 <= t->head_dim; d += 8) values(t, b, shrink, format, N, 1, d, 8, lo, hi);
    if (d < t->head_dim) values(t, b, shrink, format, N, 1, d, t->head_dim - d, lo, hi);
}

MX_INLINE void tile_of(const mx_tile *t, mx_queries *b, mx_format format) {
    if (b->count == 4)
        tile(t, b, format, 4);
    else if (b->count == 2)
        tile(t, b, format, 2);
    else
        tile(t, b, format, 1);
}

static void tile_f32(const mx_tile *t, mx_queries *b) {
    tile_of(t, b, MX_F32);
}
static void tile_f16(const mx_tile *t, mx_queries *b) {
    tile_of(t, b, MX_F16);
}
static void tile_bf16(const mx_tile *t, mx_queries *b) {
    tile_of(t, b, MX_BF16);
}

static void take(float *out, float *m, float *l, const float *o, int64_t step, float part_m, float part_l,
                 int head_dim) {
    float most = part_m > *m ? part_m : *m;
    float new = _mm256_cvtss_f32(exp2_256(_mm256_set1_ps(part_m - most)));
    float old = _mm256_cvtss_f32(exp2_256(_mm256_set1_ps(*m - most)));
    *m = most;
    *l = *l * old + part_l * new;
    for (int d = 0; d < head_dim; d++) out[d] = out[d] * old + o[d / 8 * step + d % 8] * new;
}

static void finish(float *out, float l, int head_dim) {
    for (int d = 0; d < head_dim; d++) out[d] = out[d] / l + 0.0f;
}

static const mx_attention_tier inner = {
    .batch = BATCH,
    .lanes = 8,
    .wide_from = 2,
    .tile = {[MX_F32] = tile_f32, [MX_F16] = tile_f16, [MX_BF16] = tile_bf16},
    .widen = mx_avx2_widen,
    .take = take,
    .finish = finish,
};

void mx_avx2_attention(const mx_attention *a) {
    mx_walk_attention(a, &inner);
}
void mx_avx2_attention_segment(const mx_attention *a, int64_t segment) {
    mx_walk_attention_segment(a, segment, &inner);
}
void mx_avx2_attention_join(const mx_attention *a) {
    mx_walk_attention_join(a, &inner);
}
int64_t mx_avx2_attention_scratch(int head_dim, int group) {
    return mx_walk_attention_scratch(&inner, head_dim, group);
}
