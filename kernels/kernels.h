#ifndef MX_KERNELS_H
#define MX_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#ifdef __cplusplus /* kernels/cuda is C++ */
extern "C" {
#endif

/* The contract between the model and the processor: one table of operations, filled by the best tier that the machine
 * has (scalar C is the specification and is complete; the others raise what they do better).
 *
 * Kernels know no model. They allocate nothing, start no threads, report no errors: their caller checked everything.
 *
 * Batch invariance: within one tier a row's result depends on nothing but the row. The order of summation over K is
 * the same for one row and for a thousand, and for any split of the output rows. Sums are fp32, weights are exact; how
 * activations enter a product is its mx_precision.
 *
 * Alignment: weights, scales and biases come straight from a mapped file and may lie at any byte. Activations, outputs
 * and scratch are 64-byte aligned at their start (rows of fp32 ones need not be, packed rows are). */

enum {
    MX_TILE = 64,      /* positions in one KV page: the step in which attention walks the past */
    MX_SEGMENT = 1024, /* positions whose attention may be computed apart; a multiple of MX_TILE */
};

typedef enum mx_format {
    MX_F32,
    MX_F16,
    MX_BF16,
    MX_MXFP4,
    MX_Q8_0,
    MX_MXFP4_GGML,
    /* Element codes; what else there is to the format says mx_matrix.blocks. kernels/mx.h defines them. */
    MX_E2M1,
    MX_E2M3,
    MX_E3M2,
    MX_E4M3,
    MX_E5M2,
    MX_INT8,
    MX_INT4,
    MX_FORMATS
} mx_format;

typedef enum mx_scale_type { MX_SCALE_NONE, MX_SCALE_E8M0, MX_SCALE_E4M3, MX_SCALE_BF16 } mx_scale_type;

/* How weights of the element codes are scaled. */
typedef struct mx_blocks {
    int columns; /* that share a scale: 16, 32, 64 or 128, of which mx_matrix.cols is a multiple; 0: no scales */
    mx_scale_type scale; /* MX_SCALE_NONE where columns is 0 */
    bool sides;          /* two scales a block: of its positive elements, of its negative ones */
    bool zeros;          /* integers: a zero for each block */
} mx_blocks;

/* Of one block of 32 columns: see mx_q8_0_widen, mx_mxfp4_ggml_widen. */
enum { MX_Q8_0_BYTES = 34, MX_MXFP4_GGML_BYTES = 17 };

/* In either layout. */
static inline bool mx_is_mxfp4(mx_format format) {
    return format == MX_MXFP4 || format == MX_MXFP4_GGML;
}

/* Bytes that `columns` columns of a row take, scales that lie apart not counted; a multiple of 32 for those of blocks.
 */
static inline int64_t mx_columns_bytes(mx_format format, int64_t columns) {
    switch (format) {
    case MX_MXFP4:
    case MX_E2M1:
    case MX_INT4:
        return columns / 2;
    case MX_E2M3:
    case MX_E3M2:
        return columns / 4 * 3;
    case MX_E4M3:
    case MX_E5M2:
    case MX_INT8:
        return columns;
    case MX_Q8_0:
        return columns / 32 * MX_Q8_0_BYTES;
    case MX_MXFP4_GGML:
        return columns / 32 * MX_MXFP4_GGML_BYTES;
    case MX_F32:
        return columns * 4;
    default:
        return columns * 2;
    }
}

/* How an activation enters a product. */
typedef enum mx_precision {
    MX_X_FP32,   /* as it is */
    MX_X_BF16X2, /* hi + lo: hi = bf16(x), lo = bf16(x - hi), both to nearest even; their sum is exact in fp32 */
    MX_X_BF16,   /* bf16(x), to nearest even */
    MX_X_INT8,   /* integers of -127..127 with a scale per 32 columns, MXFP4 weights only: kernels/int8.h */
    MX_PRECISIONS
} mx_precision;

/* A weight matrix [rows, cols] = [out, in], row-major, as it lies in the file. */
typedef struct mx_matrix {
    mx_format format;
    int64_t rows, cols;    /* cols is a multiple of 32 but for F32, F16 and BF16 */
    const uint8_t *data;   /* MXFP4: 16 bytes per 32 columns, low nibble = even column; Q8_0: 34 bytes, scale first;
                            * MXFP4_GGML: 17 bytes, scale first (E8M0, never 0xFF), then low nibbles = columns 0..15 */
    int64_t row_stride;    /* bytes from one row to the next */
    const uint8_t *scales; /* MXFP4: one E8M0 byte per 32 columns, never 0xFF; element codes: blocks; NULL otherwise */
    int64_t scale_stride;  /* bytes from one row's scales to the next row's */
    /* The rest is of element codes alone (kernels/mx.h). No scale is NaN, no weight infinite. */
    mx_blocks blocks;
    const int8_t *zeros; /* [rows, cols / blocks.columns] where blocks.zeros; else NULL */
    int64_t zero_stride;
    const float *post; /* the finished sum of row n is multiplied by post[n * post_step]; NULL: by nothing */
    int64_t post_step; /* 1: a number for each row, 0: one for the matrix */
    bool bf16_safe;    /* every weight, without post, is 0 or within 2^-126..2^127, and exact in BF16 */
} mx_matrix;

/* What happens to the finished sum of output row n and activation row t. */
typedef enum mx_epilogue {
    MX_STORE,  /* y[t][n]  = sum + bias[n] */
    MX_ADD,    /* y[t][n] += sum + bias[n]               (residual) */
    MX_SCALE,  /* y[t][n]  = (sum + bias[n]) * factor[t] (routing weight) */
    MX_SWIGLU, /* w's rows are gate, up, gate, up ...: y[t][n / 2] = swiglu(gate, up), see mx_swiglu */
    MX_GATED,  /* w's rows are up, y has what MX_STORE made of gate: y[t][n] = swiglu(y[t][n], sum + bias[n]); the same
                  bits as MX_SWIGLU */
    MX_EPILOGUES
} mx_epilogue;

/* y = x W^T for output rows n0 <= n < n1 of w (MX_SWIGLU: both even). Every pointer is that of row 0 / column 0.
 * Any range gives the same bits; ranges of multiples of 96 rows leave no tile half full in any tier. */
typedef struct mx_matmul {
    mx_matrix w;
    const uint8_t *x;     /* packed by the product's pack(): [*, x_stride bytes] */
    int64_t x_stride;     /* the product's packed_bytes(w.cols) */
    const int32_t *x_row; /* [rows]: activation row t is x + x_row[t] * x_stride; NULL: x_row[t] = t */
    int64_t rows;         /* T, at least 1 */
    int64_t n0, n1;
    const uint8_t *bias; /* [w.rows] in bias_format (F32 or BF16); NULL: zeros */
    mx_format bias_format;
    mx_epilogue epilogue;
    const float *factor;  /* [rows], MX_SCALE only */
    float limit, alpha;   /* MX_SWIGLU and MX_GATED only */
    float *y;             /* [*, y_stride] */
    int64_t y_stride;     /* floats */
    const int32_t *y_row; /* [rows]: result of row t goes to y + y_row[t] * y_stride; NULL: y_row[t] = t */
    float *scratch;       /* mx_kernels.matmul_scratch floats, one block a thread */
} mx_matmul;

/* One way to multiply: a weight format at a precision. Ways with the same `pack` share packed rows. */
typedef struct mx_product {
    /* Bytes of one packed row of `cols` columns, a multiple of 64. */
    int64_t (*packed_bytes)(int64_t cols);
    /* x [rows, cols] to what matmul reads, in the order that it likes; cols is a multiple of 32. */
    void (*pack)(uint8_t *out, const float *x, int64_t rows, int64_t cols);
    void (*matmul)(const mx_matmul *m);
    /* The instructions flush subnormals: MXFP4 scale bytes must lie in 2..252, and what is below 2^-126 counts as 0. */
    bool flushes;
} mx_product;

/* Attention of `rows` consecutive positions of one sequence with one KV head, that head's `group` query heads.
 * s_j = scale * q . k_j over the keys j that the row may see; the sink is one more logit without a value
 * (docs/gpt_oss.md): m = max(sink, s), out = sum_j exp(s_j - m) v_j / (exp(sink - m) + sum_j exp(s_j - m)).
 *
 * The past is cut at multiples of MX_SEGMENT. The part of one segment is m = max(sink, its s_j), l = sum exp(s_j - m),
 * o = sum exp(s_j - m) v_j over those of its keys that the row sees, tile after tile of MX_TILE positions. A row begins
 * with m = sink, l = 1, o = 0 and takes its parts in ascending order:
 *     m' = max(m, m_part), l' = l exp(m - m') + l_part exp(m_part - m'), o' = the same of o and o_part;
 * a segment in which it sees no key is left out. out = o / l. All bounds are absolute positions, so a row's bits are
 * the same whatever rows it is computed with, at once or by segments. */
typedef struct mx_attention {
    mx_format kv; /* F32, F16 or BF16 */
    int head_dim; /* even */
    int group;    /* query heads that share this KV head */
    int64_t rows;
    int64_t position; /* of row 0; row i stands at position + i and sees keys j <= position + i */
    int64_t window;   /* 0: all of them; else only j > position + i - window */
    const float *q;   /* row i, head g: q + i * q_stride + g * head_dim */
    int64_t q_stride;
    const float *sinks;   /* [group] */
    float scale;          /* > 0 */
    const uint8_t *pages; /* KV memory; the tile of positions 64 * p ... 64 * p + 63 begins at pages + table[p] *
                             page_bytes + head_offset */
    const int32_t *table; /* page ids; those outside every row's sight may be -1 */
    int64_t page_bytes, head_offset;
    float *out; /* row i, head g: out + i * out_stride + g * head_dim */
    int64_t out_stride;
    float *scratch; /* mx_kernels.attention_scratch(head_dim, group) floats, one block a thread */

    /* For attention_segment and attention_join only: where row i's part of segment s lies, namely at
     * parts + (i * segments + s - first_segment) * mx_attention_part(head_dim, group). */
    float *parts;
    int64_t first_segment, segments;
} mx_attention;

/* Floats of one part: of one row, one segment and the heads of one group. What is in them is the tier's affair. */
static inline int64_t mx_attention_part(int head_dim, int group) {
    return ((int64_t)group * (head_dim + 2) + 15) / 16 * 16;
}

/* One KV head of a page: K transposed [head_dim][MX_TILE], then V [MX_TILE][head_dim], elements of the KV format.
 * K is kept transposed so that 64 scores at once need no horizontal sums, for one query as for many. Slots not yet
 * written hold finite values (pages are zeroed when they are taken). */

typedef struct mx_kernels {
    const char *name; /* "scalar", "avx2", "avx512", "avx512bf16", "amx", "neon", "neondot", "neonbf16" */

    /* NULL: not supported (int8 for all weights but MXFP4: their products with integers would not be exact). */
    const mx_product *product[MX_FORMATS][MX_PRECISIONS];
    int64_t matmul_scratch; /* floats, the most that any of them takes */

    void (*attention)(const mx_attention *a);
    int64_t (*attention_scratch)(int head_dim, int group); /* floats */
    /* The same in two steps: every row's part of one segment (of those rows that see a key of it), in any order and by
     * any thread; then out from the parts of segments first_segment ... first_segment + segments - 1, which hold every
     * key that a row sees. */
    void (*attention_segment)(const mx_attention *a, int64_t segment);
    void (*attention_join)(const mx_attention *a);

    /* One position's k and v [head_dim] into slot 0..63 of a head's tile, converted to `kv`: F16 saturates at +-65504,
     * BF16 rounds to nearest even. */
    void (*kv_write)(uint8_t *head_tile, mx_format kv, int head_dim, int slot, const float *k, const float *v);

    /* out = x / sqrt(mean(x^2) + eps) * gain. out may be x. */
    void (*rmsnorm)(float *out, const float *x, const float *gain, int64_t n, float eps);

    /* In place on `heads` consecutive heads [heads, head_dim]: pairs (d, d + head_dim / 2) turn by the angle of d.
     * cos, sin: [head_dim / 2], YaRN's concentration multiplied in. */
    void (*rope)(float *x, const float *cos, const float *sin, int64_t heads, int head_dim);

    /* The k largest of logits[0..n), best first, ties to the lowest index; weight = softmax over those k. */
    void (*router_topk)(const float *logits, int n, int k, int32_t *expert, float *weight);

    int64_t (*argmax)(const float *x, int64_t n); /* ties to the lowest index */

    /* p[i] = exp((x[i] - shift) * scale); returns their sum in double, summed in a fixed order. p may be x. */
    double (*exp_sum)(float *p, const float *x, int64_t n, float shift, float scale);

    void (*add)(float *y, const float *x, int64_t n); /* y += x */

    /* n values of a file's format (F32, F16, BF16, or Q8_0 with n a multiple of 32), at any alignment, to fp32. */
    void (*widen)(float *out, const uint8_t *in, mx_format format, int64_t n);
} mx_kernels;

/* gate = min(gate, limit), up = clamp(up, -limit, limit); gate * sigmoid(alpha * gate) * (up + 1). */
float mx_swiglu(float gate, float up, float limit, float alpha);

/* One MXFP4 block, 16 bytes and its scale (0..254), to 32 exact floats in column order. The specification. */
void mx_mxfp4_widen(float out[32], const uint8_t block[16], uint8_t scale);

/* One block of GGML's MXFP4, the scale byte and 16 bytes of which byte j has column j in its low nibble and column
 * j + 16 in the high one, to the same floats. The specification. */
void mx_mxfp4_ggml_widen(float out[32], const uint8_t block[MX_MXFP4_GGML_BYTES]);

/* One block of GGML's Q8_0, a scale d in F16 (finite, of either sign) and 32 integers q of -128..127, to 32 exact
 * floats d * q: 11 bits times 8 bits, at least 2^-24. The specification. */
void mx_q8_0_widen(float out[32], const uint8_t block[MX_Q8_0_BYTES]);

float mx_bf16_to_f32(uint16_t v);
uint16_t mx_f32_to_bf16(float v); /* to nearest even; NaN stays NaN */
float mx_f16_to_f32(uint16_t v);
uint16_t mx_f32_to_f16(float v); /* to nearest even, saturates at +-65504 (infinity too); NaN stays NaN */

/* The best table for this machine within MXRUN_CPU (see base/cpu.h), or the tier called `name` when it is not NULL
 * ("scalar", "avx2" ...; MX_UNSUPPORTED where the machine lacks it). */
mx_status mx_kernels_get(const char *name, const mx_kernels **out, mx_error *error);

#ifdef __cplusplus
}
#endif

#endif
