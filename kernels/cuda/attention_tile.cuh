#ifndef MX_CUDA_ATTENTION_TILE_CUH
#define MX_CUDA_ATTENTION_TILE_CUH

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device.cuh"

/* One tile of 64 keys of one KV head, attended by one warp, on the tensor core: S = Q K^T, its softmax, O = P V.
 *
 * The warp works on 16 M-rows, each one query head at one position. With g = lane / 4 and t = lane % 4, lane (g, t)
 * holds what belongs to M-rows g and g + 8. Neither S nor P moves between lanes: in n-tile j of a half tile of 32 keys,
 * column n is key kappa(j, n) = 8 (n / 2) + 2 j + n % 2, so that over j = 0..3 the lane's scores are those of keys
 * 8 t .. 8 t + 7 of the half, which is what it must hold as the A operand beside V^T, read 16 bytes (eight keys) at a
 * time in the order of k of layout.h. K is read likewise, eight dimensions of a key at a time. */

/* ---- the numbers of a KV format ----
 * `words`: registers of a fragment, which is eight elements. `terms`: in how many numbers a query or a probability
 * enters the product, so that nothing is lost that fp32 would keep: F16 takes two of 11 bits (the query's row and the
 * probabilities multiplied by a power of two, which keeps the second term out of the subnormals), BF16 three of 8. */
struct mx_kv_f16 {
    static constexpr int words = 4, terms = 2;
    static constexpr bool scaled = true;
};
struct mx_kv_bf16 {
    static constexpr int words = 4, terms = 3;
    static constexpr bool scaled = false;
};
struct mx_kv_f32 { /* keys and values are cut in three terms of BF16 too; six of the nine products matter */
    static constexpr int words = 8, terms = 3;
    static constexpr bool scaled = false;
};
constexpr float MX_P_SCALE = 16384.0f; /* of the probabilities, where `scaled` */

MX_DEVICE void mx_kv_split(mx_kv_f16, float low, float high, uint32_t term[2]) {
    term[0] = mx_pack_f16_within(low, high);
    term[1] = mx_pack_f16_within(mx_sub(low, mx_f16_low(term[0])), mx_sub(high, mx_f16_high(term[0])));
}
MX_DEVICE void mx_kv_split(mx_kv_bf16, float low, float high, uint32_t term[3]) {
    mx_split_bf16<3>(low, high, term);
}
MX_DEVICE void mx_kv_split(mx_kv_f32, float low, float high, uint32_t term[3]) {
    mx_split_bf16<3>(low, high, term);
}

/* c[i] += a b[i * stride], where b is step s (of two) of a fragment; for each i all terms in the same order. */
template <int N>
MX_DEVICE void mx_kv_mma(mx_kv_f16, float (*c)[4], const uint32_t a[2][4], const uint32_t (*f)[4], int stride, int s) {
    MX_UNROLL
    for (int term = 0; term < 2; term++) {
        MX_UNROLL
        for (int i = 0; i < N; i++) mx_mma_f16(c[i], a[term], f[i * stride] + 2 * s);
    }
}
template <int N>
MX_DEVICE void mx_kv_mma(mx_kv_bf16, float (*c)[4], const uint32_t a[3][4], const uint32_t (*f)[4], int stride, int s) {
    MX_UNROLL
    for (int term = 0; term < 3; term++) {
        MX_UNROLL
        for (int i = 0; i < N; i++) mx_mma_bf16(c[i], a[term], f[i * stride] + 2 * s);
    }
}
template <int N>
MX_DEVICE void mx_kv_mma(mx_kv_f32, float (*c)[4], const uint32_t a[3][4], const uint32_t (*f)[8], int stride, int s) {
    MX_UNROLL
    for (int i = 0; i < N; i++) {
        const uint32_t *v = f[i * stride] + 4 * s;
        uint32_t first[3], second[3];
        mx_split_bf16<3>(mx_float(v[0]), mx_float(v[1]), first);
        mx_split_bf16<3>(mx_float(v[2]), mx_float(v[3]), second);
        MX_UNROLL
        for (int sum = 0; sum < 3; sum++) {
            MX_UNROLL
            for (int term = 0; term <= sum; term++) {
                const uint32_t b[2] = {first[sum - term], second[sum - term]};
                mx_mma_bf16(c[i], a[term], b);
            }
        }
    }
}

/* ---- the shape of the work ----
 * A half tile is HD / 8 fragments a lane, of K [4 n-tiles][HD / 32] and of V [HD / 8 n-tiles]. It is read in one or
 * more stages, of 32 registers or about that, the next of which are on their way while one is worked on. */
template <class KV, int HD> struct mx_attention_shape {
    static constexpr int blocks = HD / 32;                                                   /* of a key's dimensions */
    static constexpr int half = HD / 8;                                                      /* fragments */
    static constexpr int stages = HD * KV::words <= 256 ? 1 : HD * KV::words <= 384 ? 2 : 4; /* of a half */
    static constexpr int stage = half / stages;                                              /* fragments */
    static constexpr int all = 4 * stages;                                                   /* stages of a tile */
    /* The query's terms stay in registers where they are few; else in shared memory, each lane's own. */
    static constexpr bool query_shared = HD * KV::terms > 128;
    static constexpr int query = 2 * blocks * KV::terms; /* words of 16 bytes a lane */
};

/* Which of a warp's M-rows is which, and what it sees. Of the lane's two M-rows. */
struct mx_attention_row {
    int position[2];
    int first[2];   /* the first key that it sees; the last is that at `position` */
    uint32_t sight; /* it sees the keys 0 <= position - key < sight */
};

MX_DEVICE int mx_attention_first(int position, int window) {
    return window > 0 && position >= window ? position - window + 1 : 0;
}
MX_DEVICE uint32_t mx_attention_sight(int window) {
    return window > 0 ? (uint32_t)window : 0x80000000u;
}
MX_DEVICE bool mx_attention_sees(int position, int first, int start, int count) {
    return start <= position && start + count > first;
}

/* ---- the query ----
 * q[i]: the [HD] fp32 of M-row g + 8 i, NULL: zeros. Into `in` or, if query_shared, into word w of the lane at
 * shared[32 * w + lane]. factor[i]: what makes of a sum of products a score in units of log2. A query that is not
 * finite gets a factor that is NaN. */
template <class KV, int HD>
MX_DEVICE void mx_attention_query(const float *const q[2], float scale, uint32_t (*in)[KV::terms][4], uint4 *shared,
                                  float factor[2]) {
    constexpr int steps = HD / 16;
    const int lane = mx_lane(), t = lane % 4;
    float v[2][steps][4], up[2];
    MX_UNROLL
    for (int i = 0; i < 2; i++) {
        uint32_t most = 0;
        MX_UNROLL
        for (int s = 0; s < steps; s++) {
            uint4 w = {0, 0, 0, 0};
            if (q[i]) w = mx_load16(q[i] + 32 * (s / 2) + 8 * t + 4 * (s % 2));
            const uint32_t bits[4] = {w.x, w.y, w.z, w.w};
            MX_UNROLL
            for (int e = 0; e < 4; e++) {
                const uint32_t size = bits[e] & 0x7fffffffu;
                v[i][s][e] = mx_float(bits[e]);
                most = size > most ? size : most;
            }
        }
        up[i] = 1.0f;
        factor[i] = scale * 1.44269504088896341f;
        if (KV::scaled) { /* the largest to 2^14 .. 2^15 */
            MX_UNROLL
            for (int mask = 1; mask < 4; mask *= 2) {
                const uint32_t other = mx_shuffle_xor(most, mask);
                most = other > most ? other : most;
            }
            const int exponent = (int)(most >> 23), shift = exponent < 41 ? 100 : 141 - exponent;
            up[i] = mx_float((uint32_t)(127 + shift) << 23);
            factor[i] *= mx_float(exponent == 255 ? 0x7fc00000u : (uint32_t)(127 - shift) << 23);
        }
    }
    MX_UNROLL
    for (int s = 0; s < steps; s++) {
        uint32_t term[4][KV::terms];
        MX_UNROLL
        for (int i = 0; i < 2; i++) {
            mx_kv_split(KV(), v[i][s][0] * up[i], v[i][s][1] * up[i], term[i]);
            mx_kv_split(KV(), v[i][s][2] * up[i], v[i][s][3] * up[i], term[2 + i]);
        }
        MX_UNROLL
        for (int n = 0; n < KV::terms; n++) {
            if (mx_attention_shape<KV, HD>::query_shared) {
                shared[32 * (s * KV::terms + n) + lane] = make_uint4(term[0][n], term[1][n], term[2][n], term[3][n]);
            } else {
                MX_UNROLL
                for (int e = 0; e < 4; e++) in[s][n][e] = term[e][n];
            }
        }
    }
}

/* ---- the stages of a tile ----
 * Stages 0 .. all / 2 - 1 are of K, the rest of V; the lower half of the tile first. `head`: the tile's KV head. ONCE:
 * no other warp is going to read it. */
template <class KV, int HD, bool ONCE>
MX_DEVICE void mx_attention_load(uint32_t (*f)[KV::words], const uint8_t *head, int stage) {
    typedef mx_attention_shape<KV, HD> shape;
    constexpr int bytes = KV::words / 2; /* of an element */
    const int g = mx_lane() / 4, t = mx_lane() % 4;
    const bool values = stage >= shape::all / 2;
    const int half = stage / shape::stages % 2, begin = stage % shape::stages * shape::stage;
    const uint8_t *base =
        head + (values ? MX_TILE * HD + g * MX_TILE + 8 * t : (8 * (g / 2) + g % 2) * HD + 8 * t) * bytes;
    MX_UNROLL
    for (int i = 0; i < shape::stage; i++) {
        const int n = begin + i;
        const int at = values ? 8 * n * MX_TILE + 32 * half
                              : (32 * half + 2 * (n / shape::blocks)) * HD + 32 * (n % shape::blocks);
        MX_UNROLL
        for (int w = 0; w < KV::words; w += 4) {
            const uint8_t *from = base + at * bytes + 4 * w;
            const uint4 v = ONCE ? mx_load16_once(from) : mx_load16(from);
            f[i][w] = v.x;
            f[i][w + 1] = v.y;
            f[i][w + 2] = v.z;
            f[i][w + 3] = v.w;
        }
    }
}

/* A stage of K: s[4 half + j] for its n-tiles j. */
template <class KV, int HD>
MX_DEVICE void mx_attention_scores(float s[8][4], const uint32_t (*f)[KV::words], int stage,
                                   const uint32_t (*in)[KV::terms][4], const uint4 *shared) {
    typedef mx_attention_shape<KV, HD> shape;
    constexpr int tiles = shape::stage / shape::blocks;
    float(*c)[4] = s + stage * tiles; /* half * 4 + j: a half is `stages` times `tiles` = 4 n-tiles */
    MX_UNROLL
    for (int b = 0; b < shape::blocks; b++) {
        MX_UNROLL
        for (int step = 0; step < 2; step++) {
            if (shape::query_shared) {
                uint32_t a[KV::terms][4];
                MX_UNROLL
                for (int n = 0; n < KV::terms; n++) {
                    const uint4 v = shared[32 * ((2 * b + step) * KV::terms + n) + mx_lane()];
                    a[n][0] = v.x;
                    a[n][1] = v.y;
                    a[n][2] = v.z;
                    a[n][3] = v.w;
                }
                mx_kv_mma<tiles>(KV(), c, a, f + b, shape::blocks, step);
            } else {
                mx_kv_mma<tiles>(KV(), c, in[2 * b + step], f + b, shape::blocks, step);
            }
        }
    }
}

/* A stage of V: o[d / 8] of its n-tiles; p: the terms of the half's probabilities, of two steps. */
template <class KV, int HD>
MX_DEVICE void mx_attention_values(float (*o)[4], const uint32_t (*f)[KV::words], int stage,
                                   const uint32_t p[2][KV::terms][4]) {
    typedef mx_attention_shape<KV, HD> shape;
    MX_UNROLL
    for (int step = 0; step < 2; step++)
        mx_kv_mma<shape::stage>(KV(), o + stage % shape::stages * shape::stage, p[step], f, 1, step);
}

/* The sums of products s [8: half, j][4] to probabilities; m: the largest score, l: the sum of the probabilities.
 * key: that of s[0][0]. whole: all rows of the warp see all keys of the tile. */
MX_DEVICE void mx_attention_softmax(float s[8][4], int key, const mx_attention_row &row, bool whole,
                                    const float factor[2], float m[2], float l[2]) {
    const float none = mx_float(0xff800000u);
    if (!whole) {
        MX_UNROLL
        for (int n = 0; n < 8; n++) {
            MX_UNROLL
            for (int e = 0; e < 4; e++) {
                const int back = row.position[e / 2] - key - (32 * (n / 4) + 2 * (n % 4) + e % 2);
                if ((uint32_t)back >= row.sight) s[n][e] = none;
            }
        }
    }
    MX_UNROLL
    for (int i = 0; i < 2; i++) {
        float most = none, sum = 0.0f;
        MX_UNROLL
        for (int n = 0; n < 8; n++) most = fmaxf(most, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
        most = fmaxf(most, mx_shuffle_xor(most, 1));
        most = fmaxf(most, mx_shuffle_xor(most, 2));
        m[i] = most * factor[i];
        const float less = most == none ? 0.0f : -m[i];
        MX_UNROLL
        for (int n = 0; n < 8; n++) {
            MX_UNROLL
            for (int e = 0; e < 2; e++) {
                const float p = mx_exp2(fmaf(s[n][2 * i + e], factor[i], less));
                sum += p;
                s[n][2 * i + e] = p;
            }
        }
        sum += mx_shuffle_xor(sum, 1);
        l[i] = sum + mx_shuffle_xor(sum, 2);
    }
}

/* The probabilities of a half, s [4: j][4], as A operands of two steps. */
template <class KV> MX_DEVICE void mx_attention_probabilities(uint32_t p[2][KV::terms][4], const float (*s)[4]) {
    const float up = KV::scaled ? MX_P_SCALE : 1.0f;
    MX_UNROLL
    for (int step = 0; step < 2; step++) {
        MX_UNROLL
        for (int e = 0; e < 4; e++) { /* row g + 8 (e % 2); keys 8 t + 4 step + 2 (e / 2) and the next */
            uint32_t term[KV::terms];
            const float *v = s[2 * step + e / 2] + 2 * (e % 2);
            mx_kv_split(KV(), v[0] * up, v[1] * up, term);
            MX_UNROLL
            for (int n = 0; n < KV::terms; n++) p[step][n][e] = term[n];
        }
    }
}

/* A tile: m, l and o [HD / 8][4] (times MX_P_SCALE, where `scaled`) of it alone. AHEAD: stages on their way; the first
 * of them are in `f` or on their way to it already, and those of the tile at `next` will be when this ends (NULL: there
 * is none). AHEAD + 1 divides the number of stages. */
template <class KV, int HD, int AHEAD, bool ONCE>
MX_DEVICE void
mx_attention_tile(const uint8_t *head, const uint8_t *next, uint32_t (*f)[mx_attention_shape<KV, HD>::stage][KV::words],
                  const uint32_t (*in)[KV::terms][4], const uint4 *shared, int key, const mx_attention_row &row,
                  bool whole, const float factor[2], float m[2], float l[2], float (*o)[4]) {
    typedef mx_attention_shape<KV, HD> shape;
    float s[8][4];
    uint32_t p[2][KV::terms][4];
    MX_UNROLL
    for (int n = 0; n < 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    MX_UNROLL
    for (int d = 0; d < HD / 8; d++) o[d][0] = o[d][1] = o[d][2] = o[d][3] = 0.0f;
    MX_UNROLL
    for (int i = 0; i < shape::all; i++) {
        uint32_t(*later)[KV::words] = f[(i + AHEAD) % (AHEAD + 1)];
        if (i + AHEAD < shape::all) {
            mx_attention_load<KV, HD, ONCE>(later, head, i + AHEAD);
        } else if (next) {
            mx_attention_load<KV, HD, ONCE>(later, next, i + AHEAD - shape::all);
        }
        if (i < shape::all / 2) {
            mx_attention_scores<KV, HD>(s, f[i % (AHEAD + 1)], i, in, shared);
        } else {
            if (i == shape::all / 2) mx_attention_softmax(s, key, row, whole, factor, m, l);
            if (i % shape::stages == 0) mx_attention_probabilities<KV>(p, s + 4 * (i / shape::stages - 2));
            mx_attention_values<KV, HD>(o, f[i % (AHEAD + 1)], i, p);
        }
    }
}

/* ---- folding ----
 * Every kernel folds with these, so that the bits are the same: fmaf and mx_sub leave the compiler no choice of what to
 * fuse. */
MX_DEVICE void mx_attention_fold(float *m, float *l, float m2, float l2, float *keep, float *take) {
    const float most = fmaxf(*m, m2);
    *keep = mx_exp2(mx_sub(*m, most));
    *take = mx_exp2(mx_sub(m2, most));
    *l = fmaf(*l, *keep, l2 * *take);
    *m = most;
}
MX_DEVICE float mx_attention_fold_value(float o, float keep, float o2, float take) {
    return fmaf(o, keep, o2 * take);
}
/* What a tile's o is multiplied by. */
template <class KV> MX_DEVICE float mx_attention_take(float take) {
    return KV::scaled ? take * (1.0f / MX_P_SCALE) : take;
}

/* Two neighbours of a row, as terms. */
MX_DEVICE void mx_attention_store(uint16_t *out, int64_t out_term, int terms, float low, float high) {
    MX_UNROLL
    for (int i = 0; i < 3; i++) {
        const uint32_t word = mx_pack_bf16(low, high);
        if (i < terms) *(uint32_t *)(out + i * out_term) = word;
        low = mx_sub(low, mx_bf16_low(word));
        high = mx_sub(high, mx_bf16_high(word));
    }
}

#endif
