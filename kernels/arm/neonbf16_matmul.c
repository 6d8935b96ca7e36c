/* Products of BF16 activations by BFMMLA: two weight rows times two activation rows over four columns.
 *
 * The instruction multiplies exactly, adds the two products of a pair of columns and then that sum to what is there.
 * Both additions flush subnormals to zero and round to odd (without FEAT_EBF16, and with it as Linux sets it up): off
 * by less than one unit in the last place, where IEEE is off by half of one. So sums are kept short: a block of 32
 * columns (16 such steps, 32 of hi and lo) starts from zero, and the blocks' sums add up in ascending order in fp32 by
 * IEEE. That leaves sums about as exact as fp32 in one chain per lane.
 *
 * The scale of a block of MXFP4 or Q8_0 is multiplied onto its sum, not onto its 32 weights: codes become BF16 by two
 * table lookups, integers as they are (8 bits), and one FMA a block does the rest. It is the same arithmetic for few
 * rows (decoded in registers) and many rows (from a panel), and an odd row out is multiplied twice: BFMMLA for
 * everything, as BFDOT would sum in another order. */
#include <string.h>

#include "kernels/arm/neon.h"
#include "kernels/mxfp4.h"

enum {
    BLOCK = 32,
    GROUPS_OF_4 = BLOCK / 4, /* BFMMLAs of a block and a pair of rows */
    CHUNK = 576,             /* columns that a panel holds; sums go on from one to the next */
    BLOCKS = CHUNK / BLOCK,
    BLOCK_N = 48, /* weight rows per panel and per epilogue */
    PAIRS = 3,    /* of weight rows in a many-rows tile */
    X_PAIRS = 4,  /* of activation rows in it: 12 sums of blocks, 12 in all and 7 operands fill 32 registers */
    GROUP = 2 * PAIRS,
    GROUPS = BLOCK_N / GROUP,
    TILE = 2 * X_PAIRS,
    BLOCK_T = 256, /* rows that share a panel */
    FEW = 4,       /* up to this many rows the weights are decoded in registers */
    FEW_PAIRS = 4, /* of weight rows at a time then */
};

/* Four columns of two rows. */
typedef uint16_t operand[8];

/* Scratch of one thread. */
typedef struct scratch {
    operand panel[GROUPS][BLOCKS][GROUPS_OF_4][PAIRS];
    float scales[GROUPS][BLOCKS][PAIRS][4]; /* of the sums of a pair: first row's twice, second row's twice */
    operand x[BLOCKS][2][GROUPS_OF_4][X_PAIRS];
    float sums[BLOCK_T / TILE][GROUPS][PAIRS][X_PAIRS][4]; /* [weight row % 2 * 2 + activation row % 2] */
    float rows[FEW][BLOCK_N];                              /* finished sums, by row */
    float bias[BLOCK_N];
    float power[256]; /* of a scale byte */
} scratch;

_Static_assert(sizeof(scratch) == MX_NEONBF16_MATMUL_SCRATCH * sizeof(float), "the table says how much is needed");

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* A packed block is 32 BF16 values, for BF16X2 32 of hi and then 32 of lo. In each 16 columns of it column j of a
 * group of four for MXFP4 is that of 4 j + {0, 2, 1, 3}, as nibbles and bytes come apart; for all else they are in
 * order. */
MX_INLINE void pack(uint8_t *out, const float *x, int64_t n, mx_format format, int parts) {
    for (int64_t c = 0; c < n; c += 16) {
        static const int place[4] = {0, 2, 1, 3};
        float32x4x4_t v;
        if (format == MX_MXFP4)
            v = vld4q_f32(x + c);
        else
            for (int i = 0; i < 4; i++) v.val[i] = vld1q_f32(x + c + 4 * i);
        uint8_t *to = out + c / BLOCK * BLOCK * 2 * parts + c % BLOCK * 2;
        for (int i = 0; i < 4; i++) {
            float32x4_t left = v.val[format == MX_MXFP4 ? place[i] : i];
            for (int part = 0; part < parts; part++) {
                uint32x4_t bits = vandq_u32(mx_round_bf16(left), vdupq_n_u32(0xffff0000));
                vst1_u8(to + part * BLOCK * 2 + 8 * i, vreinterpret_u8_u16(vshrn_n_u32(bits, 16)));
                left = vsubq_f32(left, vreinterpretq_f32_u32(bits));
            }
        }
    }
}

static int64_t packed_bf16(int64_t cols) {
    return 2 * cols;
}
static int64_t packed_bf16x2(int64_t cols) {
    return 4 * cols;
}
static void pack_dense_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows * cols, MX_BF16, 1);
}
static void pack_dense_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows * cols, MX_BF16, 2);
}
static void pack_mxfp4_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows * cols, MX_MXFP4, 1);
}
static void pack_mxfp4_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows * cols, MX_MXFP4, 2);
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* power[s] = 2^(s - 127); s lies in 2 ... 252. */
static void fill_powers(float power[256]) {
    const uint32_t first[4] = {0, 1, 2, 3};
    for (uint32_t s = 0; s < 256; s += 4) {
        uint32x4_t bits = vshlq_n_u32(vaddq_u32(vld1q_u32(first), vdupq_n_u32(s)), 23);
        vst1q_f32(power + s, vreinterpretq_f32_u32(bits));
    }
}

/* First halves of a and b, or their second halves. */
MX_INLINE uint8x16_t halves(uint8x16_t a, uint8x16_t b, int second) {
    uint64x2_t low = vreinterpretq_u64_u8(a), high = vreinterpretq_u64_u8(b);
    return vreinterpretq_u8_u64(second ? vzip2q_u64(low, high) : vzip1q_u64(low, high));
}

/* Four integers to BF16, exactly. */
MX_INLINE uint16x4_t narrow_integers(int16x4_t q) {
    return vshrn_n_u32(vreinterpretq_u32_f32(vcvtq_f32_s32(vmovl_s16(q))), 16);
}

/* A block of two weight rows, MXFP4 and Q8_0 without its scales. */
MX_INLINE void decode(bfloat16x8_t out[GROUPS_OF_4], mx_format format, const uint8_t *first, const uint8_t *second) {
    if (format == MX_BF16) {
        for (int i = 0; i < GROUPS_OF_4; i++) {
            uint8x16_t a = vld1q_u8(first + i / 2 * 16), b = vld1q_u8(second + i / 2 * 16);
            out[i] = vreinterpretq_bf16_u8(halves(a, b, i % 2));
        }
        return;
    }
    if (format == MX_Q8_0) {
        for (int i = 0; i < GROUPS_OF_4; i += 2) {
            int16x8_t a = vmovl_s8(vreinterpret_s8_u8(vld1_u8(first + 2 + 4 * i)));
            int16x8_t b = vmovl_s8(vreinterpret_s8_u8(vld1_u8(second + 2 + 4 * i)));
            out[i] = vreinterpretq_bf16_u16(
                vcombine_u16(narrow_integers(vget_low_s16(a)), narrow_integers(vget_low_s16(b))));
            out[i + 1] = vreinterpretq_bf16_u16(
                vcombine_u16(narrow_integers(vget_high_s16(a)), narrow_integers(vget_high_s16(b))));
        }
        return;
    }
    static const uint8_t low_bytes[16] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0,
                                          0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0};
    static const uint8_t high_bytes[16] = {0x00, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                           0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
    const uint8x16_t low = vld1q_u8(low_bytes), high = vld1q_u8(high_bytes);
    uint8x16_t a = vld1q_u8(first), b = vld1q_u8(second);
    if (format == MX_MXFP4_GGML) {
        for (int half = 0; half < 2; half++) { /* 4 bytes of a, 4 of b, the next 4 of a, of b */
            uint32x4_t a4 = vreinterpretq_u32_u8(a), b4 = vreinterpretq_u32_u8(b);
            uint8x16_t codes = vreinterpretq_u8_u32(half ? vzip2q_u32(a4, b4) : vzip1q_u32(a4, b4));
            uint8x16_t lower = vandq_u8(codes, vdupq_n_u8(15)), upper = vshrq_n_u8(codes, 4);
            uint8x16_t ll = vqtbl1q_u8(low, lower), lh = vqtbl1q_u8(high, lower);
            uint8x16_t ul = vqtbl1q_u8(low, upper), uh = vqtbl1q_u8(high, upper);
            out[2 * half] = vreinterpretq_bf16_u8(vzip1q_u8(ll, lh));
            out[2 * half + 1] = vreinterpretq_bf16_u8(vzip2q_u8(ll, lh));
            out[2 * half + 4] = vreinterpretq_bf16_u8(vzip1q_u8(ul, uh));
            out[2 * half + 5] = vreinterpretq_bf16_u8(vzip2q_u8(ul, uh));
        }
        return;
    }
    for (int half = 0; half < 2; half++) {
        uint8x16_t codes = halves(a, b, half);
        uint8x16_t even = vandq_u8(codes, vdupq_n_u8(15)), odd = vshrq_n_u8(codes, 4);
        uint8x16_t el = vqtbl1q_u8(low, even), eh = vqtbl1q_u8(high, even);
        uint8x16_t ol = vqtbl1q_u8(low, odd), oh = vqtbl1q_u8(high, odd);
        out[4 * half] = vreinterpretq_bf16_u8(vtrn1q_u8(el, eh));
        out[4 * half + 1] = vreinterpretq_bf16_u8(vtrn2q_u8(el, eh));
        out[4 * half + 2] = vreinterpretq_bf16_u8(vtrn1q_u8(ol, oh));
        out[4 * half + 3] = vreinterpretq_bf16_u8(vtrn2q_u8(ol, oh));
    }
}

/* The sum of the blocks before, and this one's. */
MX_INLINE float32x4_t add_block(float32x4_t total, float32x4_t sum, mx_format format, float32x4_t scale) {
    return format == MX_BF16 ? vaddq_f32(total, sum) : vfmaq_f32(total, sum, scale);
}

/* The scales of block b of weight rows n and next: each twice, for the sums of two activation rows. */
MX_INLINE float32x4_t scale_pair(const mx_matrix *w, mx_format format, int64_t n, int64_t next, int64_t b,
                                 const float *power) {
    float first, second;
    if (mx_is_mxfp4(format)) {
        first = power[w->scales[n * w->scale_stride + b * mx_scale_step(format)]];
        second = power[w->scales[next * w->scale_stride + b * mx_scale_step(format)]];
    } else {
        first = mx_q8_0_scale(w->data + n * w->row_stride + MX_Q8_0_BYTES * b);
        second = mx_q8_0_scale(w->data + next * w->row_stride + MX_Q8_0_BYTES * b);
    }
    return vcombine_f32(vdup_n_f32(first), vdup_n_f32(second));
}

MX_INLINE const uint8_t *x_of_row(const mx_matmul *m, int64_t t) {
    return m->x + (m->x_row ? m->x_row[t] : t) * m->x_stride;
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

/* Row i of C weight rows from row n on, the last one again behind `keep`. */
MX_INLINE int64_t row_of(int64_t n, int64_t i, int64_t keep) {
    return n + (i < keep ? i : keep - 1);
}

/* sums[t][at + c] for x[t], t < 2 * P, and the `keep` rows of w from row n on, of N pairs. While it works the rows
 * behind these are fetched into L2, evenly over the way. */
MX_INLINE void few_tile(const mx_matrix *w, mx_format format, int parts, int64_t n, const uint8_t *const *x, int P,
                        int N, float sums[FEW][BLOCK_N], int64_t at, int64_t keep, const float *power) {
    const int64_t bytes = mx_columns_bytes(format, BLOCK);
    const uint8_t *row[2 * FEW_PAIRS], *ahead = w->data + (n + 2 * N) * w->row_stride;
    float32x4_t total[FEW_PAIRS * FEW / 2];
    for (int i = 0; i < N * P; i++) total[i] = vdupq_n_f32(0);
    for (int i = 0; i < 2 * N; i++) row[i] = w->data + row_of(n, i, keep) * w->row_stride;
    for (int64_t b = 0; b < w->cols / BLOCK; b++) {
        const int64_t at_x = b * BLOCK * 2 * parts;
        bfloat16x8_t xs[FEW / 2][2][GROUPS_OF_4];
        for (int64_t i = 0; i < 2 * N * bytes; i += 64) __builtin_prefetch(ahead + i, 0, 2);
        ahead += 2 * N * bytes;
        for (int p = 0; p < P; p++) {
            for (int part = 0; part < parts; part++)
                decode(xs[p][part], MX_BF16, x[2 * p] + at_x + part * BLOCK * 2,
                       x[2 * p + 1] + at_x + part * BLOCK * 2);
        }
        for (int i = 0; i < N; i++) {
            bfloat16x8_t weight[GROUPS_OF_4];
            float32x4_t scale = vdupq_n_f32(1.0f);
            decode(weight, format, row[2 * i] + b * bytes, row[2 * i + 1] + b * bytes);
            if (format != MX_BF16)
                scale = scale_pair(w, format, row_of(n, 2 * i, keep), row_of(n, 2 * i + 1, keep), b, power);
            for (int p = 0; p < P; p++) {
                float32x4_t sum = vdupq_n_f32(0);
                for (int part = 0; part < parts; part++) {
                    for (int g = 0; g < GROUPS_OF_4; g++) sum = vbfmmlaq_f32(sum, weight[g], xs[p][part][g]);
                }
                total[i * P + p] = add_block(total[i * P + p], sum, format, scale);
            }
        }
    }
    for (int i = 0; i < N * P; i++) {
        float out[4];
        int c = 2 * (i / P), t = 2 * (i % P);
        vst1q_f32(out, total[i]);
        for (int k = 0; k < 4; k++) {
            if (c + k / 2 < keep) sums[t + k % 2][at + c + k / 2] = out[k];
        }
    }
}

MX_INLINE void few_rows_block(const mx_matrix *w, mx_format format, int parts, int64_t n0, int64_t count,
                              const uint8_t *const *x, int P, float sums[FEW][BLOCK_N], const float *power) {
    int64_t i = 0;
    for (; i + 2 * FEW_PAIRS <= count; i += 2 * FEW_PAIRS)
        few_tile(w, format, parts, n0 + i, x, P, FEW_PAIRS, sums, i, 2 * FEW_PAIRS, power);
    for (; i < count; i += 2) few_tile(w, format, parts, n0 + i, x, P, 1, sums, i, count - i < 2 ? 1 : 2, power);
}

MX_INLINE void few_rows(const mx_matmul *m, mx_format format, int parts, int64_t n0, int64_t count, scratch *s) {
    const uint8_t *x[FEW];
    for (int64_t i = 0; i < FEW; i++) x[i] = x_of_row(m, i < m->rows ? i : m->rows - 1);
    if (m->rows <= 2) {
        few_rows_block(&m->w, format, parts, n0, count, x, 1, s->rows, s->power);
    } else {
        few_rows_block(&m->w, format, parts, n0, count, x, 2, s->rows, s->power);
    }
    for (int64_t i = 0; i < m->rows; i++) mx_neon_finish_row(m, i, n0, count, s->rows[i], s->bias);
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

/* Columns from c0 on of rows n0 ... n0 + count - 1, the last one again up to a whole group. */
MX_INLINE void fill_panel(scratch *s, const mx_matrix *w, mx_format format, int64_t n0, int64_t count, int64_t c0,
                          int64_t blocks) {
    for (int64_t i = 0; i < count; i += 2) {
        const int64_t group = i / GROUP, pair = i % GROUP / 2, next = row_of(n0 + i, 1, count - i);
        const uint8_t *first = w->data + (n0 + i) * w->row_stride + mx_columns_bytes(format, c0);
        const uint8_t *second = w->data + next * w->row_stride + mx_columns_bytes(format, c0);
        for (int64_t b = 0; b < blocks; b++) {
            bfloat16x8_t weight[GROUPS_OF_4];
            const int64_t at = b * mx_columns_bytes(format, BLOCK);
            decode(weight, format, first + at, second + at);
            for (int g = 0; g < GROUPS_OF_4; g++) {
                vst1q_u16(s->panel[group][b][g][pair], vreinterpretq_u16_bf16(weight[g]));
            }
            if (format != MX_BF16)
                vst1q_f32(s->scales[group][b][pair], scale_pair(w, format, n0 + i, next, c0 / BLOCK + b, s->power));
        }
    }
}

/* Rows t0 ... t0 + TILE - 1 (the last one again where there are fewer), the panel's columns, in pairs. */
MX_INLINE void fill_x(scratch *s, const mx_matmul *m, int parts, int64_t t0, int64_t rows, int64_t c0, int64_t blocks) {
    for (int p = 0; p < X_PAIRS; p++) {
        const uint8_t *first = x_of_row(m, row_of(t0, 2 * p, rows)) + c0 * 2 * parts;
        const uint8_t *second = x_of_row(m, row_of(t0, 2 * p + 1, rows)) + c0 * 2 * parts;
        for (int64_t b = 0; b < blocks * parts; b++) {
            bfloat16x8_t pair[GROUPS_OF_4];
            decode(pair, MX_BF16, first + b * BLOCK * 2, second + b * BLOCK * 2);
            for (int g = 0; g < GROUPS_OF_4; g++) {
                vst1q_u16(s->x[b / parts][b % parts][g][p], vreinterpretq_u16_bf16(pair[g]));
            }
        }
    }
}

/* sums go on by the blocks of one group of the panel and s->x. */
MX_INLINE void many_tile(float sums[PAIRS][X_PAIRS][4], const scratch *s, mx_format format, int parts, int64_t group,
                         int64_t blocks) {
    float32x4_t total[PAIRS * X_PAIRS];
    for (int i = 0; i < PAIRS * X_PAIRS; i++) total[i] = vld1q_f32(sums[i / X_PAIRS][i % X_PAIRS]);
    for (int64_t b = 0; b < blocks; b++) {
        float32x4_t sum[PAIRS * X_PAIRS];
        for (int i = 0; i < PAIRS * X_PAIRS; i++) sum[i] = vdupq_n_f32(0);
        for (int part = 0; part < parts; part++) {
            for (int g = 0; g < GROUPS_OF_4; g++) {
                bfloat16x8_t weight[PAIRS];
                for (int i = 0; i < PAIRS; i++) weight[i] = vreinterpretq_bf16_u16(vld1q_u16(s->panel[group][b][g][i]));
                for (int p = 0; p < X_PAIRS; p++) {
                    bfloat16x8_t x = vreinterpretq_bf16_u16(vld1q_u16(s->x[b][part][g][p]));
                    for (int i = 0; i < PAIRS; i++)
                        sum[i * X_PAIRS + p] = vbfmmlaq_f32(sum[i * X_PAIRS + p], weight[i], x);
                }
            }
        }
        for (int i = 0; i < PAIRS * X_PAIRS; i++) {
            float32x4_t scale = format == MX_BF16 ? vdupq_n_f32(1.0f) : vld1q_f32(s->scales[group][b][i / X_PAIRS]);
            total[i] = add_block(total[i], sum[i], format, scale);
        }
    }
    for (int i = 0; i < PAIRS * X_PAIRS; i++) vst1q_f32(sums[i / X_PAIRS][i % X_PAIRS], total[i]);
}

MX_INLINE void many_rows(const mx_matmul *m, mx_format format, int parts, int64_t n0, int64_t count, scratch *s) {
    int64_t groups = (count + GROUP - 1) / GROUP;
    for (int64_t t0 = 0; t0 < m->rows; t0 += BLOCK_T) {
        int64_t rows = m->rows - t0 < BLOCK_T ? m->rows - t0 : BLOCK_T;
        memset(s->sums, 0, (size_t)((rows + TILE - 1) / TILE) * sizeof s->sums[0]);
        for (int64_t c0 = 0; c0 < m->w.cols; c0 += CHUNK) {
            int64_t blocks = (m->w.cols - c0 < CHUNK ? m->w.cols - c0 : CHUNK) / BLOCK;
            fill_panel(s, &m->w, format, n0, count, c0, blocks);
            for (int64_t t = 0; t < rows; t += TILE) {
                fill_x(s, m, parts, t0 + t, rows - t, c0, blocks);
                for (int64_t g = 0; g < groups; g++) many_tile(s->sums[t / TILE][g], s, format, parts, g, blocks);
            }
        }
        for (int64_t t = 0; t < rows; t++) {
            for (int64_t i = 0; i < count; i++) {
                s->rows[0][i] = s->sums[t / TILE][i / GROUP][i % GROUP / 2][t % TILE / 2][i % 2 * 2 + t % 2];
            }
            mx_neon_finish_row(m, t0 + t, n0, count, s->rows[0], s->bias);
        }
    }
}

MX_INLINE void matmul(const mx_matmul *m, mx_format format, int parts) {
    scratch *s = (scratch *)m->scratch;
    if (mx_is_mxfp4(format)) fill_powers(s->power);
    for (int64_t n0 = m->n0; n0 < m->n1; n0 += BLOCK_N) {
        int64_t count = m->n1 - n0 < BLOCK_N ? m->n1 - n0 : BLOCK_N;
        mx_neon_widen_bias(s->bias, m, n0, count);
        if (m->rows <= FEW) {
            few_rows(m, format, parts, n0, count, s);
        } else {
            many_rows(m, format, parts, n0, count, s);
        }
    }
}

static void dense_bf16(const mx_matmul *m) {
    matmul(m, MX_BF16, 1);
}
static void dense_bf16x2(const mx_matmul *m) {
    matmul(m, MX_BF16, 2);
}
static void mxfp4_bf16(const mx_matmul *m) {
    matmul(m, MX_MXFP4, 1);
}
static void mxfp4_bf16x2(const mx_matmul *m) {
    matmul(m, MX_MXFP4, 2);
}
static void q8_0_bf16(const mx_matmul *m) {
    matmul(m, MX_Q8_0, 1);
}
static void q8_0_bf16x2(const mx_matmul *m) {
    matmul(m, MX_Q8_0, 2);
}
static void mxfp4_ggml_bf16(const mx_matmul *m) {
    mx_matmul apart = mx_mxfp4_ggml_apart(m);
    matmul(&apart, MX_MXFP4_GGML, 1);
}
static void mxfp4_ggml_bf16x2(const mx_matmul *m) {
    mx_matmul apart = mx_mxfp4_ggml_apart(m);
    matmul(&apart, MX_MXFP4_GGML, 2);
}

const mx_product mx_neonbf16_dense[2] = {{packed_bf16x2, pack_dense_bf16x2, dense_bf16x2, true},
                                         {packed_bf16, pack_dense_bf16, dense_bf16, true}};
const mx_product mx_neonbf16_mxfp4[2] = {{packed_bf16x2, pack_mxfp4_bf16x2, mxfp4_bf16x2, true},
                                         {packed_bf16, pack_mxfp4_bf16, mxfp4_bf16, true}};
const mx_product mx_neonbf16_q8_0[2] = {{packed_bf16x2, pack_dense_bf16x2, q8_0_bf16x2, true},
                                        {packed_bf16, pack_dense_bf16, q8_0_bf16, true}};
const mx_product mx_neonbf16_mxfp4_ggml[2] = {{packed_bf16x2, pack_dense_bf16x2, mxfp4_ggml_bf16x2, true},
                                              {packed_bf16, pack_dense_bf16, mxfp4_ggml_bf16, true}};
