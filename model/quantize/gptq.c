/* GPTQ (arXiv 2210.17323): a row's codes one column after the other, so that what rounding loses in one is made good in
 * those behind it. With the Hessian H = R R' of the product's inputs, R upper triangular, the loss of a row's errors d
 * is |d R|^2. Its column j depends on d_0 ... d_j alone, so that each column in turn is rounded to what makes its own
 * part small: target_j = w_j + sum of d_i R_ij over i < j / R_jj,        d_i = w_i - w'_i. That is GPTQ's own choice
 * (its U, of H^-1 = U' U, is R^-1; arXiv 2507.18553), without inverting anything.
 *
 * A block's scale is chosen when its first column is reached, from what the weights are by then (MR-GPTQ): the
 * unrounded ones that would make the loss of the columns before as small as can be,
 *     now_k = w_k + u_k,    u R = sum of d_i R_i over the columns before, solved from the block's first column on. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "model/quantize/private.h"

enum {
    BLOCK = 64, /* of the factorisation */
    GROUP = 128 /* columns whose errors are handed on at once; a multiple of every block's columns */
};

struct mx_gptq {
    int64_t cols;
    float *factor;  /* [cols, cols] R, of each row what is right of the diagonal; zeros left of it */
    float *inverse; /* [cols] 1 / R_jj */
    const mx_products *products;
};

/* ---- H = R R' ---------------------------------------------------------------------------------------------------- */

/* In double, from the last column to the first, by blocks: with H = (A B; B' C), C = Rc Rc', X = B Rc'^-1 and
 * A - X X' = Ra Ra', R is (Ra X; 0 Rc). Rows of `m` [n, n] are of H's upper triangle, later of R's. */
typedef struct factoring {
    double *m;
    int64_t n, first, end; /* the block's columns */
    const mx_products *products;
} factoring;

/* The block itself. false: a pivot is not positive. */
static bool factor_block(const factoring *f) {
    for (int64_t j = f->end - 1; j >= f->first; j--) {
        double *row = f->m + j * f->n;
        double pivot = row[j];
        for (int64_t k = j + 1; k < f->end; k++) pivot -= row[k] * row[k];
        if (!(pivot > 0)) return false;
        row[j] = sqrt(pivot);
        for (int64_t i = f->first; i < j; i++) {
            double *above = f->m + i * f->n;
            double sum = above[j];
            for (int64_t k = j + 1; k < f->end; k++) sum -= above[k] * row[k];
            above[j] = sum / row[j];
        }
    }
    return true;
}

/* Rows above the block: X. */
static void solve_rows(void *arg, int64_t begin, int64_t end, int thread) {
    const factoring *f = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        double *row = f->m + i * f->n;
        for (int64_t j = f->end - 1; j >= f->first; j--) {
            row[j] /= f->m[j * f->n + j];
            /* What is left of j in this row loses what column j explains; R_kj, k < j, lies in column j. */
            for (int64_t k = f->first; k < j; k++) row[k] -= row[j] * f->m[k * f->n + j];
        }
    }
}

/* A -= X X', of rows begin .. end the columns from the diagonal to the block. */
static void update(void *arg, int64_t begin, int64_t end, int thread) {
    const factoring *f = arg;
    (void)thread;
    f->products->update(f->m, f->n, f->first, f->end - f->first, begin, end);
}

static mx_status factor(const mx_quantize_job *job, double *m, const mx_products *products, mx_pool *pool,
                        mx_error *error) {
    factoring f = {.m = m, .n = job->cols, .products = products};
    for (f.end = f.n; f.end > 0; f.end = f.first) {
        if (job->stop && *job->stop) return mx_fail(error, MX_CANCELLED, "%s: interrupted", job->name);
        f.first = (f.end - 1) / BLOCK * BLOCK;
        if (!factor_block(&f))
            return mx_fail(
                error, MX_INVALID_ARGUMENT,
                "%s: the statistics' Hessian is not positive definite, damped as it is: they are damaged, or "
                "want more damping",
                job->name);
        mx_each(pool, f.first, 16, solve_rows, &f);
        mx_each(pool, f.first, 8, update, &f);
    }
    return MX_OK;
}

void mx_gptq_free(mx_gptq *g) {
    if (!g) return;
    free(g->factor);
    free(g->inverse);
    free(g);
}

/* H with the mean of its diagonal times `damp` added to it. Columns that were never used have that alone: they are
 * rounded as they are, and so are all of a matrix whose inputs were always 0. */
static mx_status damped(const mx_quantize_job *job, double *m, mx_error *error) {
    const float *h = job->statistics->hessian;
    const int64_t n = job->cols;
    double mean = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)h[i * n + i];
        if (!(d >= 0 && isfinite(d)))
            return mx_fail(error, MX_INVALID_ARGUMENT,
                           "%s: what column %lld was multiplied with while the text ran has a mean square of %g: a "
                           "weight before it is too large, or the statistics are damaged",
                           job->name, (long long)i, d);
        mean += d / (double)n;
    }
    const double damp = mean > 0 ? mean * (job->recipe.damp > 0 ? job->recipe.damp : 0.01) : 1;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = i; j < n; j++) m[i * n + j] = (double)h[i * n + j];
        m[i * n + i] += damp;
    }
    return MX_OK;
}

static mx_status choose(const mx_products **out, mx_error *error) {
    unsigned cpu;
    *out = &mx_products_any;
    mx_status status = mx_cpu_allowed(&cpu, error);
#if defined(__x86_64__)
    if (!status && cpu & MX_CPU_AVX2) *out = &mx_products_avx2;
    if (!status && cpu & MX_CPU_AVX512) *out = &mx_products_avx512;
#endif
    return status;
}

mx_status mx_gptq_create(const mx_quantize_job *job, mx_pool *pool, mx_gptq **out, mx_error *error) {
    const int64_t n = job->cols;
    *out = NULL;
    mx_gptq *g = calloc(1, sizeof *g);
    double *m = calloc((size_t)(n * n), sizeof *m);
    if (g) {
        g->cols = n;
        g->factor = malloc(sizeof *g->factor * (size_t)(n * n));
        g->inverse = malloc(sizeof *g->inverse * (size_t)n);
    }
    mx_status status = MX_OK;
    if (!g || !m || !g->factor || !g->inverse)
        status = mx_fail(error, MX_NO_MEMORY, "%s: no memory for the factor of a Hessian of %lld columns", job->name,
                         (long long)n);
    if (!status) status = choose(&g->products, error);
    if (!status) status = damped(job, m, error);
    if (!status) status = factor(job, m, g->products, pool, error);
    for (int64_t i = 0; i < n && !status; i++) {
        for (int64_t j = 0; j < n; j++) g->factor[i * n + j] = j < i ? 0 : (float)m[i * n + j];
        g->inverse[i] = (float)(1 / m[i * n + i]);
    }
    free(m);
    if (status)
        mx_gptq_free(g);
    else
        *out = g;
    return status;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

int64_t mx_gptq_floats(const mx_gptq *g, int rows) {
    return rows * (g->cols + GROUP);
}

/* A block's scales as mx_rows.code chose them. */
typedef struct chosen {
    float scale[2]; /* of positive and of negative elements */
    float divisor[2];
    int zero;
    float post;
} chosen;

static chosen scales_of(const mx_coder *c, const uint8_t *scales, const int8_t *zeros) {
    chosen s = {.post = c->post};
    const int bytes = mx_scale_bytes(c->form.blocks.scale);
    s.scale[0] = mx_scale_value(c->form.blocks.scale, scales);
    s.scale[1] = c->form.blocks.sides ? mx_scale_value(c->form.blocks.scale, scales + bytes) : s.scale[0];
    for (int i = 0; i < 2; i++) s.divisor[i] = s.scale[i] / c->gain;
    s.zero = c->form.blocks.zeros ? *zeros : 0;
    return s;
}

/* Numbers near the largest of fp32: what is fed back may be beyond it, or, from two infinities, none. Then a weight is
 * taken for the largest, or for itself, so that all that follows is finite. */
static float bounded(float fed, float x) {
    return isnan(fed) ? x : fed > FLT_MAX ? FLT_MAX : fed < -FLT_MAX ? -FLT_MAX : fed;
}

/* The code of a finite target, and what the weight is worth then: finite, too. */
static unsigned round_one(const mx_coder *c, const chosen *s, float target, float *worth, bool *beyond) {
    const mx_format format = c->form.format;
    const int side = signbit(target) ? 1 : 0;
    if (mx_is_integer_format(format)) {
        const int low = format == MX_INT4 ? -8 : -128, high = format == MX_INT4 ? 7 : 127;
        const double wanted = (double)target / (double)s->scale[0] + s->zero;
        const int q = wanted < low ? low : wanted > high ? high : (int)nearbyint(wanted);
        *beyond = wanted > high + 0.5 || wanted < low - 0.5;
        *worth = (float)(q - s->zero) * s->scale[0];
        return (unsigned)(format == MX_INT4 ? q + 8 : q & 255);
    }
    const float q = target / s->divisor[side];
    unsigned code = mx_element_code(format, q);
    *beyond = fabsf(q) > mx_element_largest(format);
    *worth = mx_element_value(format, code) * s->scale[side] * s->post;
    while (!isfinite(*worth)) { /* the scale was chosen for smaller numbers */
        *worth = mx_element_value(format, --code) * s->scale[side] * s->post;
        *beyond = true;
    }
    return code;
}

/* What the weights of a block are by now. `sum`: of the errors before, times R. */
static void weights_by_now(const mx_gptq *g, const float *x, const float *sum, int64_t k0, int columns, float *now) {
    for (int k = 0; k < columns; k++) {
        float left = sum[k0 + k];
        for (int i = 0; i < k; i++) left -= (now[i] - x[k0 + i]) * g->factor[(k0 + i) * g->cols + k0 + k];
        now[k] = bounded(x[k0 + k] + left * g->inverse[k0 + k], x[k0 + k]);
    }
}

typedef struct outputs {
    uint8_t *data, *scales;
    int8_t *zeros;
} outputs;

/* One block of a row: scales, then codes; what is lost goes to lost [columns], and to `sum` within columns .. end. */
static void code_block(const mx_gptq *g, const mx_coder *c, const float *weight, const float *x, float *sum,
                       float *lost, int64_t k0, int64_t end, const outputs *out, mx_row_sums *sums) {
    enum { WIDEST = 128 };
    const mx_blocks *b = &c->form.blocks;
    float now[WIDEST];
    uint8_t codes[WIDEST];
    float post;
    mx_row_sums unused = {0};
    weights_by_now(g, x, sum, k0, b->columns, now);
    uint8_t *scales = out->scales + k0 / b->columns * mx_scale_bytes(b->scale) * (b->sides ? 2 : 1);
    int8_t *zeros = out->zeros ? out->zeros + k0 / b->columns : NULL;
    c->rows->code(c, now, weight ? weight + k0 : NULL, b->columns, codes, scales, zeros, &post, &unused);
    sums->zero_blocks += unused.zero_blocks;
    const chosen s = scales_of(c, scales, zeros);
    for (int k = 0; k < b->columns; k++) {
        const int64_t j = k0 + k;
        float worth;
        bool beyond;
        const float target = bounded(x[j] + sum[j] * g->inverse[j], x[j]);
        mx_element_put(c->form.format, out->data, j, round_one(c, &s, target, &worth, &beyond));
        lost[k] = x[j] - worth;
        sums->saturated += beyond;
        const float *factor = g->factor + j * g->cols;
        for (int64_t i = j + 1; i < end; i++) sum[i] += lost[k] * factor[i];
        const double w = (double)x[j], d = fabs(w - (double)worth);
        sums->square += w * w;
        sums->error += d * d;
        sums->largest = fmax(sums->largest, d);
        sums->lossy |= d > 0;
    }
}

void mx_gptq_rows(const mx_gptq *g, const mx_coder *c, const float *weight, const float *x, int rows, float *scratch,
                  uint8_t *data, uint8_t *scales, int8_t *zeros, float *post, mx_row_sums *sums) {
    const int64_t n = g->cols, data_bytes = mx_columns_bytes(c->form.format, n),
                  scale_bytes = mx_row_scale_bytes(&c->form.blocks, n),
                  zero_bytes = mx_row_zero_bytes(&c->form.blocks, n);
    float *sum = scratch, *lost = scratch + rows * n;
    (void)post; /* formats with blocks have none of rows */
    memset(sum, 0, sizeof *sum * (size_t)(rows * n));
    for (int64_t first = 0; first < n; first += GROUP) {
        const int64_t end = first + GROUP < n ? first + GROUP : n;
        for (int r = 0; r < rows; r++) {
            const outputs out = {data + r * data_bytes, scales + r * scale_bytes,
                                 zeros ? zeros + r * zero_bytes : NULL};
            for (int64_t k = first; k < end; k += c->form.blocks.columns)
                code_block(g, c, weight, x + r * n, sum + r * n, lost + r * GROUP + (k - first), k, end, &out, sums);
        }
        g->products->hand_on(sum, n, lost, GROUP, rows, g->factor + first * n, end - first, end);
    }
}
