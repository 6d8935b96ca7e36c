#ifndef MX_QUANTIZE_PRIVATE_H
#define MX_QUANTIZE_PRIVATE_H

#include "model/quantize/quantize.h"

/* Private to model/quantize/: one row of numbers into codes, and what is counted on the way. */

typedef struct mx_row_sums {
    double square, error; /* of x^2, (x - x')^2 */
    double objective;     /* error with the columns' weights; 0 where they have none */
    double largest;       /* of |x - x'| */
    int64_t saturated, zero_blocks;
    bool lossy;
} mx_row_sums;

/* What there is to know of a matrix before its rows are coded. */
typedef struct mx_rows mx_rows;
typedef struct mx_coder {
    mx_form form;
    mx_scale_rule rule;
    bool four_over_six;
    const mx_rows *rows;
    bool powers; /* E4M3 scales are powers of two, with which every block is exact (mx_quantize_matrix found) */
    float post;  /* of the tensor; 1 where there is none */
    float gain;  /* what scales of blocks are multiplied with to be stored; post is 1 / gain in fp32 */
} mx_coder;

/* What is compiled for each instruction set (rows.c); every one of them gives the same bits. */
struct mx_rows {
    /* Row `x` [cols] to its codes, scales, zeros and, with MX_POST_ROW, post; adds to *sums. `weight` [cols]: of the
     * columns' squares, at most 1; NULL: 1. Finite numbers only. cols may be any multiple of the block: of a part of a
     * row, too. */
    void (*code)(const mx_coder *c, const float *x, const float *weight, int64_t cols, uint8_t *data, uint8_t *scales,
                 int8_t *zeros, float *post, mx_row_sums *sums);
    /* The largest |x|; infinity or NaN where one is that. */
    float (*largest)(const float *x, int64_t cols);
    /* Is each block of `columns` numbers E2M1 times a power of two? Most blocks are that with several. Lowers *low, at
     * first INT_MAX, to the block's largest exponent, and raises *high, at first INT_MIN, to its least one: all blocks
     * are exact with exponents of *low .. *high (of *high alone, where *low is more). */
    bool (*is_e2m1)(const float *x, int64_t cols, int columns, int *low, int *high);
    void (*mxfp4)(const uint16_t (*x)[32], int count, mx_scale_rule rule, uint8_t *data, int64_t data_step,
                  uint8_t *scales, int64_t scale_step); /* mx_quantize_mxfp4 */
};
extern const mx_rows mx_rows_any, mx_rows_avx2, mx_rows_avx512;

/* mx_parallel_for, also without a pool. */
static inline void mx_each(mx_pool *pool, int64_t n, int64_t grain, mx_range_fn *fn, void *arg) {
    if (pool)
        mx_parallel_for(pool, n, grain, fn, arg);
    else if (n > 0)
        fn(arg, 0, n, 0);
}

/* ---- GPTQ (gptq.c) ---- */

/* What is compiled for each instruction set (products.c). */
typedef struct mx_products {
    /* m [n, n]: of rows begin .. end the columns from the diagonal to `first` lose X X', X being columns first .. first
     * + width. `first` is a multiple of 4. */
    void (*update)(double *m, int64_t n, int64_t first, int64_t width, int64_t begin, int64_t end);
    /* sum [rows, n] += lost [rows, count] factor [count, n], columns `from` .. n, which are multiples of 32 */
    void (*hand_on)(float *sum, int64_t n, const float *lost, int64_t lost_stride, int rows, const float *factor,
                    int64_t count, int64_t from);
} mx_products;
extern const mx_products mx_products_any, mx_products_avx2, mx_products_avx512;

typedef struct mx_gptq mx_gptq;
/* What is shared by the rows: the factor of the damped Hessian. MX_INVALID_ARGUMENT: it is not positive. */
mx_status mx_gptq_create(const mx_quantize_job *job, mx_pool *pool, mx_gptq **out, mx_error *error);
void mx_gptq_free(mx_gptq *g);
int64_t mx_gptq_floats(const mx_gptq *g, int rows); /* of scratch for `rows` rows */
/* `rows` rows at once, x [rows, cols]; outputs are those of the first row, densely. */
void mx_gptq_rows(const mx_gptq *g, const mx_coder *c, const float *weight, const float *x, int rows, float *scratch,
                  uint8_t *data, uint8_t *scales, int8_t *zeros, float *post, mx_row_sums *sums);

#endif
