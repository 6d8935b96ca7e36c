#ifndef MX_MODEL_QUANTIZE_H
#define MX_MODEL_QUANTIZE_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "base/threads.h"
#include "kernels/mx.h"

/* One matrix of numbers into codes and scales: the formats by name, and the recipes that choose scales and codes. Knows
 * no model and no file. Whatever is asked for, the result depends on nothing but the job: not on the threads. */

/* ---- formats by name ----------------------------------------------------------------------------------------------
 */

typedef enum mx_post { MX_POST_NONE, MX_POST_TENSOR, MX_POST_ROW } mx_post; /* mx_matrix.post: none, step 0, step 1 */

/* How a matrix is stored. F32, F16 and BF16 have no blocks; MXFP4 is MX_E2M1 with 32 columns and E8M0. */
typedef struct mx_form {
    mx_format format;
    mx_blocks blocks;
    mx_post post;
} mx_form;

enum { MX_FORM_NAME = 32 };
/* "bf16", "mxfp4", "mxfp4:16", "mxfp4:64", "amxfp4" (two scales), "nvfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3"
 * ("mxfp8"), "mxfp8_e5m2", "fp8" (E4M3, a scale for the tensor), "fp8:channel", "int8:32", "int8:64", "int8:128",
 * "int4:32", ":64", ":128", these with ":asym" behind. MX_INVALID_ARGUMENT names all of them. */
mx_status mx_form_parse(const char *text, mx_form *out, mx_error *error);
void mx_form_name(char out[MX_FORM_NAME], const mx_form *form); /* in the form that parse reads */
bool mx_form_equal(const mx_form *a, const mx_form *b);
/* Bits a weight, with scales, zeros and post, of a matrix of these sizes. */
double mx_form_bits(const mx_form *form, int64_t rows, int64_t cols);

/* ---- recipes ------------------------------------------------------------------------------------------------------
 */

/* How scales are chosen. Each is documented in recipe.c with its source. */
typedef enum mx_scale_rule {
    MX_RULE_OCP,      /* 2^(floor(log2 largest) - emax), elements saturate */
    MX_RULE_OVERFLOW, /* the same, one higher where the largest would round beyond the largest element */
    MX_RULE_SEARCH, /* of the exponents within +-2 of OCP's (E4M3, BF16: of finer steps) that of the least squared error
                     */
    MX_RULE_WEIGHTED, /* the same, squares weighted by mean x^2 of the column (needs statistics) */
    MX_RULE_KEEP,     /* what is in this very form already is copied, which is the caller's affair; all else as OCP */
} mx_scale_rule;

typedef struct mx_quantize_recipe {
    mx_scale_rule rule;
    bool four_over_six; /* E2M1 with E4M3: for each block, is the largest better at 6 or at 4? */
    bool tensor_search; /* NVFP4: the tensor's scale of the least squared error, of several */
    bool gptq;          /* codes one column after the other, what rounding loses fed back along K (needs the Hessian) */
    double damp;        /* GPTQ: of the Hessian's mean diagonal that is added to it; 0: 0.01 */
    bool hadamard;      /* the model's channels are rotated by blocks before (the caller's affair, who folds them) */
} mx_quantize_recipe;

enum { MX_RECIPE_NAME = 80 };
/* "ocp" ("nearest"), "overflow", "search", "weighted", "keep", or several joined by "+": "search+gptq",
 * "search+four-over-six+tensor-search", "hadamard+search+gptq". */
mx_status mx_quantize_recipe_parse(const char *text, mx_quantize_recipe *out, mx_error *error);
void mx_quantize_recipe_name(char out[MX_RECIPE_NAME], const mx_quantize_recipe *r);
/* What cannot be: NVFP4's searches for other formats, GPTQ for what is neither E2M1 nor an integer. */
mx_status mx_quantize_recipe_check(const mx_quantize_recipe *r, const mx_form *form, mx_error *error);

/* ---- one matrix ----------------------------------------------------------------------------------------------------
 */

/* What went into a product's input while the calibration text ran. */
typedef struct mx_statistics {
    int64_t cols, rows;   /* rows: activations that were seen; 0: none, then all columns weigh the same */
    const double *square; /* [cols] mean of x_k^2; NULL: not collected */
    const float *hessian; /* [cols, cols] mean of x_i x_j, symmetric; NULL: not collected */
} mx_statistics;

/* The numbers of rows first .. first + count, to out [count, cols], exactly as they are (NaN and infinity too). Any
 * thread, any order, the same answer each time. */
typedef void mx_read_rows(void *user, int64_t first, int64_t count, float *out);

/* GPTQ's factor of the last Hessian, for jobs one after the other that share statistics (q, k and v; gate and up):
 * zeros at first. It is used again for the very same `of`, which must not have changed. */
typedef struct mx_factored {
    const mx_statistics *of;
    double damp;
    struct mx_gptq *factor; /* cols^2 floats */
} mx_factored;
void mx_factored_free(mx_factored *f); /* and all zeros again */

typedef struct mx_quantize_job {
    const char *name; /* of the matrix, for messages */
    int64_t rows, cols;
    mx_read_rows *read;
    void *user;
    mx_form form; /* of the result; not F32 or F16 */
    mx_quantize_recipe recipe;
    const mx_statistics *statistics; /* NULL: none */
    mx_factored *factored;           /* NULL: factors are not kept */
    bool allow_nonfinite; /* NaN becomes 0, infinity the largest finite of its block, and they are counted; else they
                             are refused */
    float largest; /* NVFP4: of |w| of all matrices that are to have one tensor scale with this one; 0: of this one.
                      Where a scale of its own loses nothing, it has that */
    const volatile sig_atomic_t *stop; /* MX_CANCELLED once it is not 0; may be NULL */
    /* Results, dense; NULL where the form has none. */
    uint8_t *data;   /* [rows, mx_columns_bytes(form.format, cols)] */
    uint8_t *scales; /* [rows, mx_row_scale_bytes] */
    int8_t *zeros;   /* [rows, mx_row_zero_bytes] */
    float *post;     /* [1] or [rows] */
    float *gain;     /* [1] NVFP4: the number whose inverse in fp32 post[0] is, which compressed-tensors stores (the
                        inverse of post[0] is not always that); NULL: not wanted */
} mx_quantize_job;

typedef struct mx_quantize_report {
    double square, error; /* sums of w^2 and of (w - w')^2 */
    double largest_error; /* of |w - w'| */
    int64_t saturated;    /* elements beyond the largest */
    int64_t zero_blocks;
    int64_t nonfinite;
    bool lossless; /* every w' is w (-0 is 0) */
    bool unseen;   /* statistics were asked for, but of no activation: the recipe did without them */
} mx_quantize_report;

/* MX_INVALID_ARGUMENT: cols is no multiple of the block; MX_INVALID_FILE: a number is NaN or infinite, named by row and
 * column; statistics are missing. `pool` may be NULL. */
mx_status mx_quantize_matrix(const mx_quantize_job *job, mx_pool *pool, mx_quantize_report *report, mx_error *error);

/* The result as a matrix to multiply with or to widen: a view of job's outputs. */
mx_matrix mx_quantize_view(const mx_quantize_job *job);

/* `count` blocks of 32 BF16 numbers to MXFP4, with the bits of mx_quantize_matrix: codes to data + i * data_step, 16
 * bytes, scales to scales + i * scale_step; NULL: not wanted. A rule without statistics. With an infinity or a NaN in
 * it a block's scale is 255, NaN. On the calling thread. */
void mx_quantize_mxfp4(const uint16_t (*x)[32], int count, mx_scale_rule rule, uint8_t *data, int64_t data_step,
                       uint8_t *scales, int64_t scale_step);

/* ---- rotation ------------------------------------------------------------------------------------------------------
 */

/* x [n] turned in place by blocks of `size` (a power of two that divides n): each block times the Walsh-Hadamard matrix
 * over sqrt(size), which is its own inverse. */
void mx_hadamard(float *x, int64_t n, int size);
/* The largest power of two up to `most` that divides n. */
int mx_hadamard_size(int64_t n, int most);

#endif
