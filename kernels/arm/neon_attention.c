/* Attention of the NEON tiers: what attention_walk.c does with each tile. */
#include "kernels/arm/neon.h"
#include "kernels/attention_walk.h"

enum {
    BATCH = 8, /* the group of gpt-oss: a tile of K and V is converted once for all its heads */
    SUMS = 16, /* at a time: enough to hide the latency of FMA, few enough for 32 registers */
};

/* 2^x within 2^-23 of the true value for -126 <= x <= 0, 0 below; 1 at 0. x = n + r, n = round(x);
 * 2^r = 1 + r q(r) with q minimax for the relative error (2.0e-9 before rounding). */
MX_INLINE float32x4_t exp2_128(float32x4_t x) {
    float32x4_t n = vrndnq_f32(x), r = vsubq_f32(x, n);
    float32x4_t q = vdupq_n_f32(0x1.41fbbcp-13f);
    q = vfmaq_f32(vdupq_n_f32(0x1.5f3e54p-10f), q, r);
    q = vfmaq_f32(vdupq_n_f32(0x1.3b2d4cp-7f), q, r);
    q = vfmaq_f32(vdupq_n_f32(0x1.c6aee8p-5f), q, r);
    q = vfmaq_f32(vdupq_n_f32(0x1.ebfbdcp-3f), q, r);
    q = vfmaq_f32(vdupq_n_f32(0x1.62e430p-1f), q, r);
    q = vfmaq_f32(vdupq_n_f32(1.0f), q, r);
    uint32x4_t power = vreinterpretq_u32_s32(vshlq_n_s32(vcvtq_s32_f32(n), 23));
    uint32x4_t bits = vaddq_u32(vreinterpretq_u32_f32(q), power);
    return vreinterpretq_f32_u32(vandq_u32(bits, vcgeq_f32(x, vdupq_n_f32(-126.0f))));
}

/* s[i][j] = q[i] . K[j] for slots 4 * part ... of a transposed tile: N queries by W vectors of 4 slots. */
MX_INLINE void scores(const mx_tile *t, const float *q, mx_format format, int N, int W, int part) {
    int64_t size = format == MX_F32 ? 4 : 2;
    float32x4_t acc[SUMS];
    for (int i = 0; i < N * W; i++) acc[i] = vdupq_n_f32(0);
    for (int64_t d = 0; d < t->head_dim; d++) {
        const uint8_t *at = t->k + (d * MX_TILE + 4 * part) * size;
        if (W * 4 * size >= 64 || part * 4 * size % 64 == 0) __builtin_prefetch(at + t->ahead);
        for (int c = 0; c < W; c++) {
            float32x4_t keys = mx_load4(at + 4 * c * size, format);
            for (int i = 0; i < N; i++) acc[i * W + c] = vfmaq_n_f32(acc[i * W + c], keys, q[d * N + i]);
        }
    }
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) vst1q_f32(t->s + i * MX_TILE + 4 * (part + c), acc[i * W + c]);
    }
}

/* One bit per lane to one lane mask. */
MX_INLINE uint32x4_t lanes_of(uint64_t bits) {
    static const uint32_t bit[4] = {1, 2, 4, 8};
    return vtstq_u32(vdupq_n_u32((uint32_t)bits), vld1q_u32(bit));
}

MX_INLINE float32x4_t where(uint32x4_t mask, float32x4_t v) {
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(v)));
}

/* Scores to weights 2^(s - m) in place, for slots 4 * from ... 4 * to - 1, weight 0 where the query does not see; m and
 * l go on; returns by how much earlier sums shrink. */
static float soften(float *m, float *l, float s[MX_TILE], uint64_t mask, int from, int to) {
    float32x4_t most = vdupq_n_f32(*m), sum = vdupq_n_f32(0);
    for (int c = from; c < to; c++) {
        most = vbslq_f32(lanes_of(mask >> 4 * c), vmaxq_f32(most, vld1q_f32(s + 4 * c)), most);
    }
    most = vdupq_n_f32(vmaxvq_f32(most));
    for (int c = from; c < to; c++) {
        float32x4_t v = where(lanes_of(mask >> 4 * c), exp2_128(vsubq_f32(vld1q_f32(s + 4 * c), most)));
        vst1q_f32(s + 4 * c, v);
        sum = vaddq_f32(sum, v);
    }
    float shrink = vgetq_lane_f32(exp2_128(vsubq_f32(vdupq_n_f32(*m), most)), 0);
    *l = *l * shrink + vaddvq_f32(sum);
    *m = vgetq_lane_f32(most, 0);
    return shrink;
}

/* o[i][d] = o[i][d] * shrink[i] + sum over j of s[i][j] * V[j][d] for slots lo <= j < hi; N queries by W vectors of
 * columns from d on, of which `columns` are there (all of them when W > 1). */
MX_INLINE void values(const mx_tile *t, const mx_queries *b, const float *shrink, mx_format format, int N, int W, int d,
                      int columns, int lo, int hi) {
    int64_t size = format == MX_F32 ? 4 : 2;
    float *o = b->o + d * N;
    float32x4_t acc[SUMS];
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) acc[i * W + c] = vmulq_n_f32(vld1q_f32(o + (c * N + i) * 4), shrink[i]);
    }
    for (int64_t j = lo; j < hi; j++) {
        const uint8_t *at = t->v + (j * t->head_dim + d) * size;
        float rest[4] = {0};
        if (columns < 4) mx_neon_widen(rest, at, format, columns);
        if (W * 4 * size >= 64 || d * size % 64 == 0) __builtin_prefetch(at + t->ahead);
        for (int c = 0; c < W; c++) {
            float32x4_t row = columns < 4 ? vld1q_f32(rest) : mx_load4(at + 4 * c * size, format);
            for (int i = 0; i < N; i++) acc[i * W + c] = vfmaq_n_f32(acc[i * W + c], row, t->s[i * MX_TILE + j]);
        }
    }
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < W; c++) vst1q_f32(o + (c * N + i) * 4, acc[i * W + c]);
    }
}

MX_INLINE void tile(const mx_tile *t, mx_queries *b, mx_format format, int N) {
    const int W = SUMS / N;
    float shrink[BATCH];
    int lo = __builtin_ctzll(t->any), hi = MX_TILE - __builtin_clzll(t->any), from = lo / 4, to = (hi + 3) / 4;
    int part = from, d = 0;
    for (; part + W <= to; part += W) scores(t, b->q, format, N, W, part);
    for (; part < to; part++) scores(t, b->q, format, N, 1, part);
    for (int i = 0; i < N; i++) {
        shrink[i] = soften(&b->m[i], &b->l[i], t->s + i * MX_TILE, t->visible[i], from, to);
    }
    for (; d + 4 * W <= t->head_dim; d += 4 * W) values(t, b, shrink, format, N, W, d, 4, lo, hi);
    for (; d + 4 <= t->head_dim; d += 4) values(t, b, shrink, format, N, 1, d, 4, lo, hi);
    if (d < t->head_dim) values(t, b, shrink, format, N, 1, d, t->head_dim - d, lo, hi);
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

static float exp2_of(float x) {
    return vgetq_lane_f32(exp2_128(vdupq_n_f32(x)), 0);
}

static void take(float *out, float *m, float *l, const float *o, int64_t step, float part_m, float part_l,
                 int head_dim) {
    float most = part_m > *m ? part_m : *m, new = exp2_of(part_m - most), old = exp2_of(*m - most);
    *m = most;
    *l = *l * old + part_l * new;
    for (int d = 0; d < head_dim; d++) out[d] = out[d] * old + o[d / 4 * step + d % 4] * new;
}

static void finish(float *out, float l, int head_dim) {
    for (int d = 0; d < head_dim; d++) out[d] = out[d] / l + 0.0f;
}

static const mx_attention_tier inner = {
    .batch = BATCH,
    .lanes = 4,
    .wide_from = 2,
    .tile = {[MX_F32] = tile_f32, [MX_F16] = tile_f16, [MX_BF16] = tile_bf16},
    .widen = mx_neon_widen,
    .take = take,
    .finish = finish,
};

void mx_neon_attention(const mx_attention *a) {
    mx_walk_attention(a, &inner);
}
void mx_neon_attention_segment(const mx_attention *a, int64_t segment) {
    mx_walk_attention_segment(a, segment, &inner);
}
void mx_neon_attention_join(const mx_attention *a) {
    mx_walk_attention_join(a, &inner);
}
int64_t mx_neon_attention_scratch(int head_dim, int group) {
    return mx_walk_attention_scratch(&inner, head_dim, group);
}
