#ifndef MX_CUDA_KERNELS_H
#define MX_CUDA_KERNELS_H

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/layout.h"
#include "kernels/kernels.h"

/* The kernels, as the host queues them: each call is one launch (or a few) in a stream, allocates nothing, waits for
 * nothing and is safe to record into a graph. All pointers are device memory unless said otherwise.
 *
 * Rows: a step has `rows` activation rows, of which those at position -1 are holes (a graph is made for a number of
 * rows, and a step may have fewer): whatever stands in them, nothing is read or written for them that others see.
 *
 * Activations enter a product as `terms` BF16 numbers each: 1 (bf16), 2 (hi + lo) or 3 (all 24 bits of an fp32), at
 * x[term * x_term + row * mx_cuda_padded(cols) + col]. The columns beyond `cols` are zero and stay so.
 * term 0 = bf16(x), term 1 = bf16(x - term 0), term 2 = bf16(x - term 0 - term 1), all to nearest even. */
#ifdef __cplusplus
extern "C" {
#endif

typedef enum mx_cuda_format { MX_CUDA_BF16, MX_CUDA_MXFP4, MX_CUDA_Q8_0 } mx_cuda_format;

/* A matrix, or the experts' matrices one behind the other, laid out as in layout.h: units of a row tile one behind the
 * other, then the next row tile. */
typedef struct mx_cuda_matrix {
    mx_cuda_format format;
    bool wide_scales;    /* MXFP4: some scale byte is above 128: widened in two multiplications instead of one */
    int64_t rows, cols;  /* without padding */
    const uint8_t *data; /* 256-byte aligned */
    const uint8_t *scales;
    const float *bias; /* [row tiles * 16] of each expert, in the order of the laid-out rows; NULL: zeros */
    int64_t data_stride, scale_stride, bias_stride; /* from expert to expert: bytes, bytes, floats */
} mx_cuda_matrix;

/* Bytes of one laid-out matrix. scales: 0 for BF16. */
int64_t mx_cuda_data_bytes(mx_cuda_format format, int64_t rows, int64_t cols);
int64_t mx_cuda_scale_bytes(mx_cuda_format format, int64_t rows, int64_t cols);

/* ---- loading ------------------------------------------------------------------------------------------------------
 */
/* Rows of a file, on the device, to their places in a laid-out matrix. */
typedef struct mx_cuda_lay {
    mx_format from;      /* BF16, MXFP4, MXFP4_GGML, Q8_0 (kernels.h has their bytes) */
    const uint8_t *rows; /* [count] of them, row_stride bytes apart; any alignment */
    int64_t row_stride;
    const uint8_t *scales; /* MXFP4: scale_stride bytes a row */
    int64_t scale_stride;
    int64_t first, count; /* rows first .. first + count - 1 of the file's matrix */
    int64_t cols;
    mx_row_order order;
    int head_dim;               /* MX_ROWS_ROPE */
    int64_t row_base;           /* the laid-out row where that matrix begins, a multiple of 16 (k and v behind q) */
    uint8_t *data, *scale_data; /* of the laid-out matrix; what no row is laid into must have been zeroed */
} mx_cuda_lay;
void mx_cuda_lay_rows(const mx_cuda_lay *l, mx_gpu_stream *s);
/* The same for a bias: values of F32, BF16 or F16, `count` from row `first` on, to fp32 in laid-out order. */
void mx_cuda_lay_bias(float *bias, const uint8_t *values, mx_format from, int64_t first, int64_t count,
                      mx_row_order order, int head_dim, int64_t row_base, mx_gpu_stream *s);
/* *found (a device word, zeroed before) becomes the largest of `bytes` scale bytes. */
void mx_cuda_largest_scale(const uint8_t *scales, int64_t bytes, uint32_t *found, mx_gpu_stream *s);

/* ---- the rows of a step -------------------------------------------------------------------------------------------
 */
/* x [rows, hidden] = embedding rows of `token` (layout of MX_ROWS_PLAIN, BF16 or Q8_0); cos, sin [rows, head_dim / 2] =
 * (float)(cos(position * inv_freq[i]) * concentration) in double. */
typedef struct mx_cuda_begin {
    mx_cuda_matrix embedding;
    const int32_t *token, *position; /* [rows]; a token below 0, -1 - d, is drawn[d] */
    const int32_t *drawn;
    int rows, hidden, head_dim;
    const double *inv_freq; /* [head_dim / 2] */
    double concentration;
    float *x, *cos, *sin;
} mx_cuda_begin;
void mx_cuda_begin_rows(const mx_cuda_begin *b, mx_gpu_stream *s);

/* For row r of rows, t = row ? row[r] : r:
 * x[t] += sum over i of expert_out[row_slot[t * top_k + i]] (fp32, in this order, the sum first), where row_slot is not
 * NULL; then out = terms of x[t] / sqrt(mean(x[t]^2) + eps) * gain, at row r, where gain is not NULL. The sum of
 * squares is taken in one fixed order. */
typedef struct mx_cuda_norm {
    float *x;                /* [*, hidden] */
    int rows, hidden;        /* hidden: a multiple of 32, at most 8192 */
    const int32_t *row;      /* [rows] or NULL */
    const int32_t *position; /* of row t, < 0: nothing is done; NULL: no holes */
    const float *expert_out; /* [slots, hidden] */
    const int32_t *row_slot; /* [*, top_k] */
    int top_k;
    const float *gain;
    float eps;
    uint16_t *out;
    int64_t out_term;
    int terms;
} mx_cuda_norm;
void mx_cuda_norm_rows(const mx_cuda_norm *n, mx_gpu_stream *s);

/* ---- small moves --------------------------------------------------------------------------------------------------
 */
/* to[entry.at] = entry.value; no two entries of one place. */
typedef struct mx_cuda_entry {
    int32_t at, value;
} mx_cuda_entry;
void mx_cuda_set_entries(int32_t *to, const mx_cuda_entry *entry, int count, mx_gpu_stream *s);
/* Zeros to `count` pages of page_bytes bytes, a multiple of 16. */
void mx_cuda_clear_pages(uint8_t *pages, int64_t page_bytes, const int32_t *page, int count, mx_gpu_stream *s);
/* to [rows, width] = rows row[0], row[1] ... of from [*, width]; width is a multiple of 4, both are 16-byte aligned. */
void mx_cuda_gather_rows(float *to, const float *from, const int32_t *row, int rows, int64_t width, mx_gpu_stream *s);

/* ---- products -----------------------------------------------------------------------------------------------------
 */
/* Where a row's keys and values go and come from. Row r belongs to page table table[r] ([tiles] page ids of this layer,
 * at tables + table[r] * table_stride): position p lies in page tables[..][p / 64], slot p % 64. */
typedef struct mx_cuda_pages {
    mx_format kv; /* F16 (saturating), BF16 or F32 */
    uint8_t *pages;
    int64_t page_bytes;
    const int32_t *tables;
    int64_t table_stride;
    const int32_t *table, *position; /* [rows]; position < 0: a hole */
} mx_cuda_pages;

/* A piece of work of the grouped products: slots first .. first + count - 1, all of one expert. */
typedef struct mx_cuda_tile {
    int32_t expert, first, count;
} mx_cuda_tile;

typedef enum mx_cuda_epilogue {
    MX_CUDA_STORE,  /* y[r][n] = sum + bias[n] */
    MX_CUDA_ADD,    /* y[r][n] += sum + bias[n] */
    MX_CUDA_SCALE,  /* y[r][n] = (sum + bias[n]) * factor[r] */
    MX_CUDA_SWIGLU, /* rows in the order of MX_ROWS_GATE_UP: y_terms[r][pair] = terms of mx_swiglu(gate, up) */
    MX_CUDA_QKV,    /* rows are heads of q, of k (both MX_ROWS_ROPE) and of v: q turned to y [rows, heads * head_dim] in
                       its plain order, k turned and v into the pages */
} mx_cuda_epilogue;

typedef struct mx_cuda_matmul {
    mx_cuda_matrix w;
    const uint16_t *x;
    int64_t x_term;
    int terms, rows; /* of activations; grouped: slots, at most */
    mx_cuda_epilogue epilogue;
    float *y;
    int64_t y_stride;
    uint16_t *y_terms; /* SWIGLU: row stride mx_cuda_padded(w.rows / 2) */
    int64_t y_term;
    int y_terms_count;
    const float *factor; /* SCALE: [rows] */
    float limit, alpha;  /* SWIGLU */
    /* QKV */
    int heads, kv_heads, head_dim;
    const float *cos, *sin; /* [rows, head_dim / 2] */
    mx_cuda_pages pages;
    /* Grouped by expert: tile != NULL. Row r is a slot; it reads x at row slot_row[r] (NULL: r). */
    const mx_cuda_tile *tile;
    const int32_t *tiles; /* how many there are, on the device */
    int most_tiles;       /* what the grid is made for */
    int tile_rows;        /* slots in a tile, at most: 8, 16, 32, 64 or 128 */
    const int32_t *slot_row;
} mx_cuda_matmul;
/* Which kernel does it follows from `rows` or tile_rows; the bits are the same. */
void mx_cuda_matmul_run(const mx_cuda_matmul *m, mx_gpu_stream *s);
/* Reads MXRUN_CUDA_ROWS: `few` or `many` force that kernel upon mx_cuda_matmul_run from now on, in the whole process.
 */
mx_status mx_cuda_matmul_choose(mx_error *error);
/* For tests: always that of few rows, or that of many. */
void mx_cuda_matmul_few(const mx_cuda_matmul *m, mx_gpu_stream *s);
void mx_cuda_matmul_many(const mx_cuda_matmul *m, mx_gpu_stream *s);

/* ---- routing ------------------------------------------------------------------------------------------------------
 */
/* Of each row that is no hole the top_k largest logits, best first, ties to the lowest expert; weight = softmax over
 * them. Then the (row, expert) pairs sorted by expert, rows ascending within one: the slots. */
typedef struct mx_cuda_route {
    const float *logits; /* [rows, experts] */
    const int32_t *position;
    int rows, experts, top_k; /* experts <= 1024, top_k <= 32 */
    int32_t *expert;          /* [rows, top_k] */
    float *weight;            /* [rows, top_k] */
    int32_t *slot_row;        /* [rows * top_k] */
    float *slot_weight;       /* [rows * top_k] */
    int32_t *row_slot;        /* [rows, top_k] a row's slots, experts ascending */
    int tile_rows;            /* each expert's slots are cut into tiles of so many */
    mx_cuda_tile *tile;       /* [most_tiles] in ascending order */
    int32_t *tiles;           /* [1] */
} mx_cuda_route;
void mx_cuda_route_rows(const mx_cuda_route *r, mx_gpu_stream *s);
/* Tiles at most: min(rows * top_k, experts + rows * top_k / tile_rows). */
int mx_cuda_most_tiles(int rows, int top_k, int experts, int tile_rows);

/* ---- attention ----------------------------------------------------------------------------------------------------
 */
/* Rows of one sequence at consecutive positions. */
typedef struct mx_cuda_run {
    int32_t row, rows;
} mx_cuda_run;

typedef struct mx_cuda_attention {
    mx_cuda_pages pages;
    int heads, kv_heads, head_dim; /* head_dim: a multiple of 32, at most 128 */
    int window;                    /* 0: all keys; else only those at j > position - window */
    float scale;
    const float *q;     /* [*, heads * head_dim], turned */
    const float *sinks; /* [heads] */
    uint16_t *out;      /* terms, row stride mx_cuda_padded(heads * head_dim) */
    int64_t out_term;
    int terms;
    /* Single rows (decoding): the rows' past is cut into spans that are attended apart and folded. row NULL: 0, 1 ...
     */
    const int32_t *row;
    int rows;
    int spans;    /* in which a row sees keys, at most: what the grid is made for */
    float *parts; /* [rows, spans, kv_heads, mx_cuda_attention_part()] */
    /* Runs (prompts): each at most mx_cuda_run_rows(heads / kv_heads) rows long, in this list on the device. */
    const mx_cuda_run *run;
    int runs;
} mx_cuda_attention;
int64_t mx_cuda_attention_part(int head_dim, int group); /* floats */
int mx_cuda_run_rows(int group);
void mx_cuda_attention_rows(const mx_cuda_attention *a, mx_gpu_stream *s);
void mx_cuda_attention_runs(const mx_cuda_attention *a, mx_gpu_stream *s);

/* ---- sampling -----------------------------------------------------------------------------------------------------
 */
typedef struct mx_cuda_token_value {
    int32_t token;
    float value;
} mx_cuda_token_value;
typedef struct mx_cuda_token_count {
    int32_t token, count;
} mx_cuda_token_count;

/* mx_sample_spec, on the device: lists and mask are device pointers. */
typedef struct mx_cuda_draw {
    int32_t wanted; /* the row of logits */
    int32_t top_k;
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    double uniform; /* mx_sample_uniform(seed, position) */
    const mx_cuda_token_value *bias;
    const mx_cuda_token_count *seen, *generated;
    int64_t seen_count, generated_count;
    int32_t bias_count;
    const uint32_t *mask; /* NULL: all */
} mx_cuda_draw;

enum { MX_CUDA_DRAWN, MX_CUDA_NOT_FINITE, MX_CUDA_NONE_LEFT };
typedef struct mx_cuda_drawn {
    int32_t token; /* NOT_FINITE: the first whose logit is so; NONE_LEFT: 0 */
    float logprob; /* NOT_FINITE: that logit; NONE_LEFT: 0 */
    int32_t state;
} mx_cuda_drawn;
enum { MX_CUDA_MOST_VOCAB = 1 << 20, MX_CUDA_MOST_TOP = 128 };
/* Floats of scratch for one draw, a multiple of 64: a little more than `vocab`. */
int64_t mx_cuda_sample_scratch(int vocab);
/* Draws `count` tokens by the rules of model/sampler.c, from logits [*, vocab], which it leaves as they are; vocab <=
 * MX_CUDA_MOST_VOCAB; scratch [count, mx_cuda_sample_scratch(vocab)], 256-byte aligned. drawn [count]; token [count]
 * gets the tokens alone (what mx_cuda_begin reads), in every state a token of the vocabulary. A draw whose `wanted` is
 * below 0 is a hole: nothing is written for it. Probabilities are added up as 64-bit integers, in units of 2^-45 of the
 * best one's (2^-43 and finer, after the vocabulary): in whatever order, the same bits. */
void mx_cuda_sample(const float *logits, int vocab, const mx_cuda_draw *draw, int count, float *scratch,
                    mx_cuda_drawn *drawn, int32_t *token, mx_gpu_stream *s);
/* The k likeliest tokens (k <= MX_CUDA_MOST_TOP and <= vocab) of one row [vocab] with their logprobs, likeliest first,
 * ties to the lowest id, and in drawn the logprob of `token` (-1: none), with the bits that mx_cuda_sample gives.
 * scratch: of one draw. NOT_FINITE leaves `out` alone. */
void mx_cuda_top(const float *logits, int vocab, int k, mx_cuda_token_value *out, int32_t token, mx_cuda_drawn *drawn,
                 float *scratch, mx_gpu_stream *s);

/* ---- measuring ----------------------------------------------------------------------------------------------------
 */
/* Reads `bytes` (a multiple of 16) from data, 16-byte aligned, once. *out is not written. */
void mx_cuda_measure_read(const uint8_t *data, int64_t bytes, int blocks, uint32_t *out, mx_gpu_stream *s);
/* Multiplies BF16 in registers; returns how many multiplications and additions that is. *out is not written. */
double mx_cuda_measure_multiply(int blocks, int rounds, float *out, mx_gpu_stream *s);

/* ---- made-up weights ----------------------------------------------------------------------------------------------
 */
/* `bytes` bytes of a tensor of model/synthetic.h from its block `first_block` (of MX_SYNTHETIC_BLOCK bytes) on, the
 * same as mx_synthetic_fill makes. `key`: of seed and name; `noise`: an mx_noise; `base`: the exponent field of the
 * largest power (MX_NOISE_BF16) or the least scale byte (MX_NOISE_SCALES). `out` is 64-byte aligned with room for a
 * multiple of 64 bytes. */
void mx_cuda_synthetic(uint8_t *out, int noise, int base, uint64_t key, uint64_t first_block, uint64_t bytes,
                       mx_gpu_stream *s);

#ifdef __cplusplus
}
#endif
#endif
