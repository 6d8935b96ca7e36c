/* A matrix by chunks of rows, which threads take as they come; what is counted of each is added in their order. */
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "model/quantize/private.h"

enum { CHUNK = 1 << 16 /* numbers */, CANDIDATES = 11, GPTQ_ROWS = 32 };

/* Of the largest scale of a block: 448 is E4M3's largest, 256 leaves room for four over six. */
static const int tensor_scales[] = {448, 416, 384, 352, 320, 288, 256, 224};
enum { TENSOR_SCALES = sizeof tensor_scales / sizeof *tensor_scales };

typedef struct chunk {
    mx_row_sums sums;
    int64_t nonfinite, bad_row, bad_col; /* the first; -1: none */
    float bad, largest;
    bool e2m1;
    int low, high; /* of blocks that are E2M1: mx_rows.is_e2m1 */
    double objective[CANDIDATES];
} chunk;

typedef struct work {
    const mx_quantize_job *job;
    mx_coder coder;
    mx_coder candidate[CANDIDATES];
    int candidates;
    mx_gptq *gptq;
    float *weight; /* [cols]; NULL: all the same */
    int64_t per_chunk, chunks;
    chunk *chunk;
    uint8_t *memory; /* of each thread: numbers, scratch of GPTQ, a row's codes and scales */
    size_t each, scratch_at, codes_at;
    atomic_bool stopped;
} work;

static bool stopped(const mx_quantize_job *job) {
    return job->stop && *job->stop;
}

/* ---- a chunk's numbers ------------------------------------------------------------------------------------------- */

/* What is not finite becomes 0 (NaN), or the largest finite number of its block, of its row where that has none. */
static void make_finite(const mx_quantize_job *job, float *row, int64_t row_index, chunk *c) {
    const int64_t n = job->form.blocks.columns ? job->form.blocks.columns : job->cols;
    float of_row = 0;
    for (int64_t k = 0; k < job->cols; k++) {
        if (isfinite(row[k])) {
            of_row = fmaxf(of_row, fabsf(row[k]));
            continue;
        }
        if (c->bad_row < 0) {
            c->bad_row = row_index;
            c->bad_col = k;
            c->bad = row[k];
        }
        c->nonfinite++;
    }
    for (int64_t b = 0; b < job->cols; b += n) {
        float largest = 0;
        for (int64_t k = b; k < b + n; k++)
            if (isfinite(row[k])) largest = fmaxf(largest, fabsf(row[k]));
        if (!(largest > 0)) largest = of_row > 0 ? of_row : 1;
        for (int64_t k = b; k < b + n; k++)
            if (!isfinite(row[k])) row[k] = isnan(row[k]) ? 0 : copysignf(largest, row[k]);
    }
}

/* Chunk `index` in the memory of `thread`, all finite; c->largest and what is not finite are noted. */
static float *read_chunk(work *w, int64_t index, int thread, int64_t *rows) {
    const mx_quantize_job *job = w->job;
    chunk *c = &w->chunk[index];
    float *x = (float *)(void *)(w->memory + (size_t)thread * w->each);
    const int64_t first = index * w->per_chunk, left = job->rows - first;
    *rows = left < w->per_chunk ? left : w->per_chunk;
    job->read(job->user, first, *rows, x);
    c->largest = 0;
    c->nonfinite = 0;
    c->bad_row = -1;
    for (int64_t n = 0; n < *rows; n++) {
        float largest = w->coder.rows->largest(x + n * job->cols, job->cols);
        if (!isfinite(largest)) {
            make_finite(job, x + n * job->cols, first + n, c);
            largest = w->coder.rows->largest(x + n * job->cols, job->cols);
        }
        c->largest = fmaxf(c->largest, largest);
    }
    return x;
}

/* ---- passes ------------------------------------------------------------------------------------------------------ */

/* For formats with a scale of the tensor: what that depends on. */
static void look(void *arg, int64_t begin, int64_t end, int thread) {
    work *w = arg;
    const mx_quantize_job *job = w->job;
    for (int64_t i = begin; i < end; i++) {
        if (stopped(job)) atomic_store(&w->stopped, true);
        if (atomic_load(&w->stopped)) return;
        chunk *c = &w->chunk[i];
        int64_t rows;
        const float *x = read_chunk(w, i, thread, &rows);
        c->low = INT_MAX;
        c->high = INT_MIN;
        c->e2m1 = job->form.format == MX_E2M1 && job->form.blocks.scale == MX_SCALE_E4M3;
        for (int64_t n = 0; n < rows && c->e2m1; n++)
            c->e2m1 = w->coder.rows->is_e2m1(x + n * job->cols, job->cols, job->form.blocks.columns, &c->low, &c->high);
    }
}

/* The objective of each scale that the tensor might have. */
static void compare(void *arg, int64_t begin, int64_t end, int thread) {
    work *w = arg;
    const mx_quantize_job *job = w->job;
    for (int64_t i = begin; i < end; i++) {
        if (stopped(job)) atomic_store(&w->stopped, true);
        if (atomic_load(&w->stopped)) return;
        int64_t rows;
        const float *x = read_chunk(w, i, thread, &rows);
        uint8_t *data = w->memory + (size_t)thread * w->each + w->codes_at,
                *scales = data + mx_columns_bytes(job->form.format, job->cols);
        for (int k = 0; k < w->candidates; k++) {
            mx_row_sums sums = {0};
            float post;
            for (int64_t n = 0; n < rows; n++)
                w->coder.rows->code(&w->candidate[k], x + n * job->cols, w->weight, job->cols, data, scales, NULL,
                                    &post, &sums);
            w->chunk[i].objective[k] = w->weight ? sums.objective : sums.error;
        }
    }
}

static uint8_t *at(uint8_t *base, int64_t n, int64_t bytes) {
    return base ? base + n * bytes : NULL;
}

static void code(void *arg, int64_t begin, int64_t end, int thread) {
    work *w = arg;
    const mx_quantize_job *job = w->job;
    const int64_t data_bytes = mx_columns_bytes(job->form.format, job->cols),
                  scale_bytes = mx_row_scale_bytes(&job->form.blocks, job->cols),
                  zero_bytes = mx_row_zero_bytes(&job->form.blocks, job->cols);
    for (int64_t i = begin; i < end; i++) {
        if (stopped(job)) atomic_store(&w->stopped, true);
        if (atomic_load(&w->stopped)) return;
        int64_t rows;
        const float *x = read_chunk(w, i, thread, &rows);
        chunk *c = &w->chunk[i];
        c->sums = (mx_row_sums){0};
        if (c->bad_row >= 0 && !job->allow_nonfinite) continue;
        const int64_t step = w->gptq ? rows : 1;
        for (int64_t n = 0; n < rows; n += step) {
            const int64_t row = i * w->per_chunk + n;
            uint8_t *data = job->data + row * data_bytes, *scales = at(job->scales, row, scale_bytes);
            int8_t *zeros = job->zeros ? job->zeros + row * zero_bytes : NULL;
            float *post = job->form.post == MX_POST_ROW ? job->post + row : NULL;
            if (w->gptq)
                mx_gptq_rows(w->gptq, &w->coder, w->weight, x, (int)rows,
                             (float *)(void *)(w->memory + (size_t)thread * w->each + w->scratch_at), data, scales,
                             zeros, post, &c->sums);
            else
                w->coder.rows->code(&w->coder, x + n * job->cols, w->weight, job->cols, data, scales, zeros, post,
                                    &c->sums);
        }
    }
}

/* ---- the tensor's scale ------------------------------------------------------------------------------------------ */

/* Of blocks whose largest scale shall be `most`; FP8's scale, where most is 0. `largest` of a tensor so small that its
 * scale could not be said is taken for 2^-100. */
static void set_post(mx_coder *c, float largest, double most, double factor) {
    if (!(largest > 0)) {
        c->post = c->gain = 1;
        return;
    }
    if (largest < 0x1p-100f) largest = 0x1p-100f;
    const float element = mx_element_largest(c->form.format);
    if (most > 0) {
        /* As torch divides in llm-compressor, so that the bytes are the same. No weight is infinite. */
        c->gain = 1 / largest * (float)(most * (double)element);
        while (!isfinite(1 / c->gain * 448 * element)) c->gain = nextafterf(c->gain, INFINITY);
        c->post = 1 / c->gain;
    } else {
        c->post = largest / element * (float)factor; /* FLT_MAX / 448 * 448 is finite, and 57344 is 448 * 2^7 */
        c->gain = 1;
    }
}

/* Blocks that are E2M1 times powers of two, which E4M3 has: nothing is lost then. */
static bool set_powers(mx_coder *c, const work *w) {
    int low = INT_MAX, high = INT_MIN;
    for (int64_t i = 0; i < w->chunks; i++) {
        if (!w->chunk[i].e2m1) return false;
        low = w->chunk[i].low < low ? w->chunk[i].low : low;
        high = w->chunk[i].high > high ? w->chunk[i].high : high;
    }
    if (high == INT_MIN) return false; /* zeros */
    /* E4M3 has the powers -9 .. 8; the tensor's must be a normal number of fp32 whose inverse is one, too. */
    if (high < -118) high = -118;
    if (high - low > 17) return false;
    c->powers = true;
    c->post = ldexpf(1, high - 8);
    c->gain = ldexpf(1, 8 - high);
    return true;
}

static mx_status check_finite(const work *w, mx_error *error) {
    for (int64_t i = 0; i < w->chunks && !w->job->allow_nonfinite; i++)
        if (w->chunk[i].bad_row >= 0)
            return mx_fail(error, MX_INVALID_FILE,
                           "%s: row %lld, column %lld is %s: no block can hold it; --allow-nonfinite makes NaN 0 and "
                           "infinity the largest of its block",
                           w->job->name, (long long)w->chunk[i].bad_row, (long long)w->chunk[i].bad_col,
                           isnan(w->chunk[i].bad) ? "NaN"
                           : w->chunk[i].bad > 0  ? "infinity"
                                                  : "-infinity");
    return MX_OK;
}

static mx_status check_stop(const work *w, mx_error *error) {
    return atomic_load(&((work *)(uintptr_t)w)->stopped) ? mx_fail(error, MX_CANCELLED, "%s: interrupted", w->job->name)
                                                         : MX_OK;
}

/* Of the candidates that of the least objective. */
static mx_status search_post(work *w, float largest, mx_pool *pool, mx_error *error) {
    const bool blocks = w->job->form.blocks.columns != 0;
    w->candidates = blocks ? TENSOR_SCALES : CANDIDATES;
    for (int k = 0; k < w->candidates; k++) {
        w->candidate[k] = w->coder;
        set_post(&w->candidate[k], largest, blocks ? tensor_scales[k] : 0, 1 - 0.03 * k);
    }
    mx_each(pool, w->chunks, 1, compare, w);
    mx_status status = check_stop(w, error);
    double least = INFINITY;
    for (int k = 0; k < w->candidates && !status; k++) {
        double total = 0;
        for (int64_t i = 0; i < w->chunks; i++) total += w->chunk[i].objective[k];
        if (total < least) {
            least = total;
            w->coder = w->candidate[k];
        }
    }
    return status;
}

static mx_status find_post(work *w, mx_pool *pool, mx_error *error) {
    const mx_quantize_recipe *r = &w->job->recipe;
    const bool blocks = w->job->form.blocks.columns != 0;
    mx_each(pool, w->chunks, 1, look, w);
    mx_status status = check_stop(w, error);
    if (!status) status = check_finite(w, error);
    if (status) return status;
    float largest = 0;
    for (int64_t i = 0; i < w->chunks; i++) largest = fmaxf(largest, w->chunk[i].largest);
    if (set_powers(&w->coder, w)) return MX_OK;
    if (blocks) largest = fmaxf(largest, w->job->largest);
    set_post(&w->coder, largest, !blocks ? 0 : r->four_over_six ? 256 : 448, 1);
    const bool search = blocks ? r->tensor_search : r->rule == MX_RULE_SEARCH || r->rule == MX_RULE_WEIGHTED;
    return search && largest > 0 ? search_post(w, largest, pool, error) : MX_OK;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static mx_status check(const mx_quantize_job *job, bool *unseen, mx_error *error) {
    const mx_form *form = &job->form;
    char name[MX_FORM_NAME];
    mx_form_name(name, form);
    if (form->format != MX_BF16 && !mx_is_block_format(form->format))
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: %s is nothing to quantise to", job->name, name);
    if (job->rows < 0 || job->cols < 0)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: a matrix of %lld x %lld", job->name, (long long)job->rows,
                       (long long)job->cols);
    const int block = form->format == MX_BF16 ? 1 : form->blocks.columns > 32 ? form->blocks.columns : 32;
    if (job->cols % block)
        return mx_fail(
            error, MX_INVALID_ARGUMENT,
            "%s: its rows have %lld columns, %s wants a multiple of %d: choose another format for it, or bf16",
            job->name, (long long)job->cols, name, block);
    mx_status status = mx_quantize_recipe_check(&job->recipe, form, error);
    if (status) return mx_fail_within(error, status, "%s", job->name);
    const mx_statistics *s = job->statistics;
    const bool weighted = job->recipe.rule == MX_RULE_WEIGHTED;
    *unseen = false;
    if (!weighted && !job->recipe.gptq) return MX_OK;
    if (s && !s->rows) {
        *unseen = true;
        return MX_OK;
    }
    const char *what = weighted && (!s || !s->square)            ? "weighted"
                       : job->recipe.gptq && (!s || !s->hessian) ? "gptq"
                                                                 : "";
    if (*what)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "%s: %s needs statistics of what the matrix is multiplied with, and there are none: give a text "
                       "to calibrate with",
                       job->name, what);
    if (s->cols != job->cols)
        return mx_fail(error, MX_INVALID_ARGUMENT, "%s: has %lld columns, the statistics are of %lld", job->name,
                       (long long)job->cols, (long long)s->cols);
    return MX_OK;
}

/* Weights of at most 1. Statistics that are no numbers are the caller's mistake. */
static mx_status set_weight(work *w, mx_error *error) {
    const mx_statistics *s = w->job->statistics;
    double most = 0;
    for (int64_t k = 0; k < s->cols; k++) {
        if (!(s->square[k] >= 0 && s->square[k] < INFINITY))
            return mx_fail(error, MX_INVALID_ARGUMENT,
                           "%s: the statistics of column %lld are %g, expected a mean square: a weight before it is "
                           "too large, or they are damaged",
                           w->job->name, (long long)k, s->square[k]);
        most = fmax(most, s->square[k]);
    }
    if (!(most > 0)) return MX_OK;
    w->weight = malloc(sizeof *w->weight * (size_t)s->cols);
    if (!w->weight)
        return mx_fail(error, MX_NO_MEMORY, "%s: no memory for %lld weights", w->job->name, (long long)s->cols);
    for (int64_t k = 0; k < s->cols; k++) w->weight[k] = (float)(s->square[k] / most);
    return MX_OK;
}

static size_t rounded_up(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static mx_status get_memory(work *w, mx_pool *pool, mx_error *error) {
    const mx_quantize_job *job = w->job;
    const int64_t wanted = w->gptq ? GPTQ_ROWS : CHUNK / job->cols;
    w->per_chunk = wanted < 1 ? 1 : wanted > job->rows ? job->rows : wanted;
    w->chunks = (job->rows + w->per_chunk - 1) / w->per_chunk;
    w->scratch_at = rounded_up((size_t)(w->per_chunk * job->cols) * sizeof(float));
    w->codes_at =
        w->scratch_at + rounded_up(w->gptq ? (size_t)mx_gptq_floats(w->gptq, (int)w->per_chunk) * sizeof(float) : 0);
    w->each = w->codes_at + rounded_up((size_t)(mx_columns_bytes(job->form.format, job->cols) +
                                                mx_row_scale_bytes(&job->form.blocks, job->cols)));
    const size_t threads = pool ? (size_t)mx_pool_threads(pool) : 1;
    w->chunk = calloc((size_t)w->chunks, sizeof *w->chunk);
    w->memory = aligned_alloc(64, w->each * threads);
    if (w->chunk && w->memory) return MX_OK;
    return mx_fail(error, MX_NO_MEMORY, "%s: no memory to quantise it: %.1f MiB are wanted", job->name,
                   (double)(w->each * threads + (size_t)w->chunks * sizeof *w->chunk) * 0x1p-20);
}

static void add_up(const work *w, mx_quantize_report *report) {
    mx_row_sums all = {0};
    for (int64_t i = 0; i < w->chunks; i++) {
        const mx_row_sums *s = &w->chunk[i].sums;
        all.square += s->square;
        all.error += s->error;
        all.largest = fmax(all.largest, s->largest);
        all.saturated += s->saturated;
        all.zero_blocks += s->zero_blocks;
        all.lossy |= s->lossy;
        report->nonfinite += w->chunk[i].nonfinite;
    }
    report->square = all.square;
    report->error = all.error;
    report->largest_error = all.largest;
    report->saturated = all.saturated;
    report->zero_blocks = all.zero_blocks;
    report->lossless = !all.lossy && !report->nonfinite;
}

static mx_status run(work *w, mx_pool *pool, mx_error *error) {
    const mx_quantize_job *job = w->job;
    mx_status status = get_memory(w, pool, error);
    if (status) return status;
    if (job->form.post == MX_POST_TENSOR) {
        status = find_post(w, pool, error);
        if (status) return status;
        job->post[0] = w->coder.post;
        if (job->gain) *job->gain = w->coder.gain;
    }
    mx_each(pool, w->chunks, 1, code, w);
    status = check_stop(w, error);
    return status ? status : check_finite(w, error);
}

static mx_status choose_rows(const mx_rows **out, mx_error *error) {
    unsigned cpu;
    *out = &mx_rows_any;
    mx_status status = mx_cpu_allowed(&cpu, error);
#if defined(__x86_64__)
    if (!status && cpu & MX_CPU_AVX2) *out = &mx_rows_avx2;
    if (!status && cpu & MX_CPU_AVX512) *out = &mx_rows_avx512;
#endif
    return status;
}

void mx_factored_free(mx_factored *f) {
    mx_gptq_free(f->factor);
    *f = (mx_factored){0};
}

static mx_status get_factor(work *w, mx_pool *pool, mx_error *error) {
    const mx_quantize_job *job = w->job;
    mx_factored *f = job->factored;
    if (!f) return mx_gptq_create(job, pool, &w->gptq, error);
    const double damp = job->recipe.damp;
    if (f->of != job->statistics || damp < f->damp || damp > f->damp) {
        mx_factored_free(f); /* before there is another */
        mx_status status = mx_gptq_create(job, pool, &f->factor, error);
        if (status) return status;
        f->of = job->statistics;
        f->damp = damp;
    }
    w->gptq = f->factor;
    return MX_OK;
}

mx_status mx_quantize_matrix(const mx_quantize_job *job, mx_pool *pool, mx_quantize_report *report, mx_error *error) {
    bool unseen;
    *report = (mx_quantize_report){.lossless = true};
    mx_status status = check(job, &unseen, error);
    if (status || !job->rows || !job->cols) return status;
    work w = {.job = job,
              .coder = {.form = job->form,
                        .rule = job->recipe.rule == MX_RULE_KEEP ? MX_RULE_OCP : job->recipe.rule,
                        .four_over_six = job->recipe.four_over_six,
                        .post = 1,
                        .gain = 1}};
    report->unseen = unseen;
    status = choose_rows(&w.coder.rows, error);
    if (!status && job->recipe.rule == MX_RULE_WEIGHTED && !unseen) status = set_weight(&w, error);
    if (!status && job->recipe.gptq && !unseen) status = get_factor(&w, pool, error);
    if (!status) status = run(&w, pool, error);
    if (!status) add_up(&w, report);
    if (!job->factored) mx_gptq_free(w.gptq);
    free(w.weight);
    free(w.chunk);
    free(w.memory);
    return status;
}

void mx_quantize_mxfp4(const uint16_t (*x)[32], int count, mx_scale_rule rule, uint8_t *data, int64_t data_step,
                       uint8_t *scales, int64_t scale_step) {
    static const mx_rows *_Atomic chosen;
    const mx_rows *rows = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (!rows) {
        (void)choose_rows(&rows, NULL); /* where MXRUN_CPU is wrong: those of any processor */
        atomic_store_explicit(&chosen, rows, memory_order_relaxed);
    }
    rows->mxfp4(x, count, rule, data, data_step, scales, scale_step);
}

/* ---- as a matrix ------------------------------------------------------------------------------------------------- */

mx_matrix mx_quantize_view(const mx_quantize_job *job) {
    const mx_form *form = &job->form;
    const bool mxfp4 = form->format == MX_E2M1 && form->blocks.columns == 32 && form->blocks.scale == MX_SCALE_E8M0 &&
                       !form->blocks.sides && form->post == MX_POST_NONE;
    mx_matrix m = {.format = mxfp4 ? MX_MXFP4 : form->format,
                   .rows = job->rows,
                   .cols = job->cols,
                   .data = job->data,
                   .row_stride = mx_columns_bytes(form->format, job->cols)};
    if (form->format == MX_BF16) return m;
    m.scales = job->scales;
    m.scale_stride = mx_row_scale_bytes(&form->blocks, job->cols);
    if (mxfp4) {
        m.bf16_safe = mx_rows_bf16_safe(&m, 0, m.rows);
        return m;
    }
    m.blocks = form->blocks;
    m.zeros = form->blocks.zeros ? job->zeros : NULL;
    m.zero_stride = mx_row_zero_bytes(&form->blocks, job->cols);
    m.bf16_safe = mx_rows_bf16_safe(&m, 0, m.rows);
    m.post = form->post == MX_POST_NONE ? NULL : job->post;
    m.post_step = form->post == MX_POST_ROW;
    return m;
}
