/* Attention of the AVX-512 tier: what attention_walk.c does with each tile. */
#include "kernels/attention_walk.h"
#include "kernels/x86/avx512.h"

enum {
    BATCH = 8,
    MAX_WIDTH = 4,
    PARTS = MX_TILE / 16, /* vectors of 16 slots in a tile */
};

/* 2^x within 2^-23 of the true value, subnormal results included; 1 at 0 and 0 at -inf. x = n + r, n = floor(x);
 * 2^r = 1 + r q(r) with q minimax for the relative error (2.0e-9 before rounding). */
MX_INLINE __m512 exp2_512(__m512 x) {
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 q = _mm512_set1_ps(0x1.c54176p-13f);
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.46d64cp-10f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.3d0b92p-7f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.c68912p-5f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.ebfd58p-3f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.62e42cp-1f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(q, x);
}

/* *p in all lanes, in a register that several FMAs share: on Zen 5, where two of them start in a cycle, broadcasts as
 * their operands would ask for more loads than there are (12 % of the loop). Zen 4 liked operands better (14 %). */
MX_INLINE __m512 shared(const float *p) {
    __m512 v = _mm512_set1_ps(*p);
    __asm__("" : "+v"(v));
    return v;
}

/* s[i][j] = q[i] . K[j] for slots 16 * part ... of a transposed tile: N queries by W vectors of 16 slots. */
MX_INLINE void scores(const mx_tile *t, const float *q, mx_format format, int N, int W, int part) {
    int64_t size = format == MX_F32 ? 4 : 2;
    __m512 acc[BATCH][MAX_WIDTH];
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) acc[i][c] = _mm512_setzero_ps();
    }
    for (int64_t d = 0; d < t->head_dim; d++) {
        __m512 keys[MAX_WIDTH];
        const uint8_t *at = t->k + (d * MX_TILE + 16 * part) * size;
        for (int64_t c = 0; c < W * 16 * size; c += 64) _mm_prefetch(at + t->ahead + c, _MM_HINT_T1);
        for (int c = 0; c < W; c++) keys[c] = mx_load16(at + 16 * c * size, format);
        for (int i = 0; i < N; i++) {
            const __m512 factor = shared(q + d * N + i);
            for (int c = 0; c < W; c++) acc[i][c] = _mm512_fmadd_ps(factor, keys[c], acc[i][c]);
        }
    }
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) _mm512_store_ps(t->s + i * MX_TILE + 16 * (part + c), acc[i][c]);
    }
}

/* Eight vectors to one: v[i] combined over its lanes lies in lanes 4 i (i < 4) and 4 (i - 4) + 1. One order for all. */
#define FOLD(name, op)                                                                                                 \
    MX_INLINE __m512 name(const __m512 v[8]) {                                                                         \
        __m512 a[4], b[2], c;                                                                                          \
        for (int i = 0; i < 4; i++)                                                                                    \
            a[i] = op(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44),                                              \
                      _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));                                             \
        for (int i = 0; i < 2; i++)                                                                                    \
            b[i] = op(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),                                              \
                      _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xdd));                                             \
        c = op(_mm512_unpacklo_ps(b[0], b[1]), _mm512_unpackhi_ps(b[0], b[1]));                                        \
        c = op(c, _mm512_permute_ps(c, 0x4e));                                                                         \
        return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0), c);          \
    }
FOLD(fold_max, _mm512_max_ps)
FOLD(fold_add, _mm512_add_ps)

/* Scores to weights 2^(s - m) in place, for slots 16 * from ... 16 * to - 1, weight 0 where a query does not see; m and
 * l go on; shrink: by how much earlier sums shrink. */
MX_INLINE void soften(const mx_tile *t, mx_queries *b, float shrink[BATCH], int N, int from, int to) {
    __m512 fold[BATCH];
    for (int i = 0; i < BATCH; i++) fold[i] = _mm512_setzero_ps();
    for (int i = 0; i < N; i++) {
        fold[i] = _mm512_set1_ps(b->m[i]);
        for (int c = from; c < to; c++) {
            __mmask16 mask = (__mmask16)(t->visible[i] >> 16 * c);
            fold[i] = _mm512_mask_max_ps(fold[i], mask, fold[i], _mm512_load_ps(t->s + i * MX_TILE + 16 * c));
        }
    }
    __m512 old = _mm512_castps256_ps512(_mm256_loadu_ps(b->m)), new = fold_max(fold);
    __m512 factor = exp2_512(_mm512_sub_ps(old, new));
    _mm256_storeu_ps(b->m, _mm512_castps512_ps256(new));
    _mm256_storeu_ps(shrink, _mm512_castps512_ps256(factor));
    for (int i = 0; i < N; i++) {
        __m512 m = _mm512_set1_ps(b->m[i]), p[PARTS];
        for (int c = 0; c < PARTS; c++) p[c] = _mm512_setzero_ps();
        for (int c = from; c < to; c++) {
            __mmask16 mask = (__mmask16)(t->visible[i] >> 16 * c);
            float *s = t->s + i * MX_TILE + 16 * c;
            p[c] = _mm512_maskz_mov_ps(mask, exp2_512(_mm512_sub_ps(_mm512_load_ps(s), m)));
            _mm512_store_ps(s, p[c]);
        }
        fold[i] = _mm512_add_ps(_mm512_add_ps(p[0], p[1]), _mm512_add_ps(p[2], p[3]));
    }
    __m512 l = _mm512_castps256_ps512(_mm256_loadu_ps(b->l));
    l = _mm512_add_ps(_mm512_mul_ps(l, factor), fold_add(fold));
    _mm256_storeu_ps(b->l, _mm512_castps512_ps256(l));
}

/* o[i][d] = o[i][d] * shrink[i] + sum over j of s[i][j] * V[j][d] for slots lo <= j < hi; N queries by W vectors of
 * columns from d on, of which the lanes of `mask` are there (all of them when W > 1). */
MX_INLINE void values(const mx_tile *t, const mx_queries *b, const float *shrink, mx_format format, int N, int W, int d,
                      __mmask16 mask, int lo, int hi) {
    int64_t size = format == MX_F32 ? 4 : 2;
    float *o = b->o + d * N;
    __m512 acc[BATCH][MAX_WIDTH];
    for (int i = 0; i < N; i++) {
        __m512 factor = _mm512_set1_ps(shrink[i]);
        for (int c = 0; c < W; c++) acc[i][c] = _mm512_mul_ps(_mm512_load_ps(o + (c * N + i) * 16), factor);
    }
    for (int64_t j = lo; j < hi; j++) {
        __m512 row[MAX_WIDTH];
        const uint8_t *at = t->v + (j * t->head_dim + d) * size;
        for (int64_t c = 0; c < W * 16 * size; c += 64) _mm_prefetch(at + t->ahead + c, _MM_HINT_T1);
        for (int c = 0; c < W; c++) {
            row[c] = W > 1 ? mx_load16(at + 16 * c * size, format) : mx_load16_masked(at, format, mask);
        }
        for (int i = 0; i < N; i++) {
            const __m512 weight = shared(t->s + i * MX_TILE + j);
            for (int c = 0; c < W; c++) acc[i][c] = _mm512_fmadd_ps(weight, row[c], acc[i][c]);
        }
    }
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) _mm512_store_ps(o + (c * N + i) * 16, acc[i][c]);
    }
}

MX_INLINE void tile(const mx_tile *t, mx_queries *b, mx_format format, int N) {
    const int W = N == BATCH ? 2 : 4; /* N * W = 16 sums hide the latency of FMA, as far as N allows */
    float shrink[BATCH];
    int lo = __builtin_ctzll(t->any), hi = MX_TILE - __builtin_clzll(t->any), from = lo / 16, to = (hi + 15) / 16;
    int part = from, d = 0;
    for (; part + W <= to; part += W) scores(t, b->q, format, N, W, part);
    for (; part < to; part++) scores(t, b->q, format, N, 1, part);
    soften(t, b, shrink, N, from, to);
    for (; d + 16 * W <= t->head_dim; d += 16 * W) values(t, b, shrink, format, N, W, d, 0xffff, lo, hi);
    for (; d < t->head_dim; d += 16) {
        values(t, b, shrink, format, N, 1, d, mx_first_lanes(t->head_dim - d), lo, hi);
    }
}

MX_INLINE void tile_of(const mx_tile *t, mx_queries *b, mx_format format) {
    if (b->count == 8)
        tile(t, b, format, 8);
    else if (b->count == 4)
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
    __m512 new = exp2_512(_mm512_set1_ps(part_m - most)), old = exp2_512(_mm512_set1_ps(*m - most));
    *m = most;
    *l = *l * _mm512_cvtss_f32(old) + part_l * _mm512_cvtss_f32(new);
    for (int d = 0; d < head_dim; d += 16) {
        __mmask16 mask = mx_first_lanes(head_dim - d);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, out + d), old);
        v = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, o + d / 16 * step), new, v);
        _mm512_mask_storeu_ps(out + d, mask, v);
    }
}

static void finish(float *out, float l, int head_dim) {
    __m512 divisor = _mm512_set1_ps(l);
    for (int d = 0; d < head_dim; d += 16) {
        __mmask16 mask = mx_first_lanes(head_dim - d);
        __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(mask, out + d), divisor);
        _mm512_mask_storeu_ps(out + d, mask, _mm512_add_ps(v, _mm512_setzero_ps()));
    }
}

static const mx_attention_tier inner = {
    .batch = BATCH,
    .lanes = 16,
    .tile = {[MX_F32] = tile_f32, [MX_F16] = tile_f16, [MX_BF16] = tile_bf16},
    .take = take,
    .finish = finish,
};

void mx_avx512_attention(const mx_attention *a) {
    mx_walk_attention(a, &inner);
}
void mx_avx512_attention_segment(const mx_attention *a, int64_t segment) {
    mx_walk_attention_segment(a, segment, &inner);
}
void mx_avx512_attention_join(const mx_attention *a) {
    mx_walk_attention_join(a, &inner);
}
int64_t mx_avx512_attention_scratch(int head_dim, int group) {
    return mx_walk_attention_scratch(&inner, head_dim, group);
}
