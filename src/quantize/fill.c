#include "quantize/fill.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/bytes.h"
#include "base/cpu.h"
#include "base/machine.h"
#include "quantize/calibrate.h"
#include "quantize/rotate.h"
#include "quantize/shared_scale.h"

enum { PIECE = 4 << 20, TILE = 32 };
static const uint64_t PILE = 256 << 20; /* bytes read until their pages are given back */

/* The results of a matrix while it is made, and where they go. */
typedef struct filling {
    const mx_fill *f;
    const mx_plan *p;
    mx_arena memory;
    uint8_t *data, *turned, *scales; /* of the largest matrix */
    int8_t *zeros;
    float *post, gain;
    uint64_t done, total; /* bytes of the source's tensors */
    atomic_ullong piled;  /* of them, read since pages were given back */
    mx_calibration *calibration;
    mx_factored factored; /* of calibration's */
    mx_shared_scale *shared;
} filling;

static void show_progress(const filling *g, uint64_t done) {
    const mx_model_options *o = g->f->options;
    if (o->progress) o->progress(o->user, "quantising", true, done, g->total);
}

static mx_status stopped(const filling *g) {
    const mx_model_options *o = g->f->options;
    return o->stop && *o->stop ? mx_fail(g->f->error, MX_CANCELLED, "interrupted") : MX_OK;
}

/* ---- writing ------------------------------------------------------------------------------------------------------
 */

typedef struct writing {
    const mx_output *out;
    int file;
    const uint8_t *data;
    uint64_t size, at;
    atomic_int problem; /* errno of the first failure */
} writing;

static void write_range(void *arg, int64_t begin, int64_t end, int thread) {
    writing *w = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        const uint64_t from = (uint64_t)i * PIECE, left = w->size - from, size = left < PIECE ? left : PIECE;
        int none = 0;
        if (!mx_output_write(w->out, w->file, w->data + from, size, w->at + from))
            atomic_compare_exchange_strong(&w->problem, &none, errno ? errno : EIO);
    }
}

/* Bytes of an entry, from `offset` on. */
static mx_status write_entry(const filling *g, int entry, const void *data, uint64_t size, uint64_t offset) {
    const mx_output *o = g->f->out;
    const mx_made *m = &o->made[g->p->first + g->p->place[entry]];
    writing w = {.out = o, .file = m->file, .data = data, .size = size, .at = m->at + offset};
    mx_parallel_for(g->f->options->pool, (int64_t)((size + PIECE - 1) / PIECE), 1, write_range, &w);
    if (!w.problem) return MX_OK;
    return mx_fail(g->f->error, MX_IO, "%s/%s: cannot be written: %s", o->grows, o->file[m->file].name,
                   strerror(w.problem));
}

/* ---- vectors ------------------------------------------------------------------------------------------------------
 */

static mx_status write_piece(const filling *g, const mx_piece *piece) {
    const mx_vector *v = &g->p->source->vector[piece->vector];
    const mx_tensor *t = v->tensor;
    const int size = t->dtype == MX_DTYPE_F32 ? 4 : 2;
    uint8_t *all = v->changed ? NULL : malloc(t->bytes + 1), *out = malloc((size_t)piece->count * 4 + 1);
    if (!out || (!v->changed && !all)) {
        free(all);
        free(out);
        return mx_fail(g->f->error, MX_NO_MEMORY, "%s: no memory to copy it", t->name);
    }
    if (all) mx_tensor_slices(t, 0, t->dims ? t->shape[0] : 1, all);
    for (int64_t i = 0; i < piece->count; i++) {
        const int64_t from = piece->first + i * piece->step;
        if (all) {
            memcpy(out + i * size, all + from * size, (size_t)size);
        } else if (piece->single) {
            memcpy(out + 4 * i, &v->changed[from], 4);
        } else {
            const uint16_t bits = mx_f32_to_bf16(v->changed[from]);
            memcpy(out + 2 * i, &bits, 2);
        }
    }
    mx_status status = write_entry(g, piece->entry, out, mx_plan_bytes(g->p, piece->entry), 0);
    free(all);
    free(out);
    return status;
}

/* ---- reading ------------------------------------------------------------------------------------------------------
 */

typedef struct pair {
    const mx_module *gate, *up;
} pair;

/* Rows of gate_up, which alternate. Without memory for one of the two, row by row. */
static void read_pair(void *user, int64_t first, int64_t count, float *out) {
    const pair *q = user;
    const int64_t cols = q->gate->cols;
    float *rows = malloc((size_t)((count / 2 + 1) * cols) * sizeof *rows);
    for (int part = 0; part < 2; part++) {
        const mx_module *m = part ? q->up : q->gate;
        const int64_t begin = (first + 1 - part) / 2, end = (first + count + 1 - part) / 2;
        if (rows && end > begin) m->read(m->user, begin, end - begin, rows);
        for (int64_t n = begin; n < end; n++) {
            float *to = out + (2 * n + part - first) * cols;
            if (rows)
                memcpy(to, rows + (n - begin) * cols, (size_t)cols * sizeof *to);
            else
                m->read(m->user, n, 1, to);
        }
    }
    free(rows);
}

/* What reads a matrix: tells how far it is, and gives the file's pages back, of which a large tensor has many. */
typedef struct counted {
    mx_read_rows *read;
    void *user;
    filling *g;
    pthread_t caller; /* the thread that progress is told by */
    uint64_t row_bytes, bytes;
    atomic_ullong done;
} counted;

static void read_counted(void *user, int64_t first, int64_t count, float *out) {
    counted *c = user;
    const uint64_t bytes = (uint64_t)count * c->row_bytes;
    c->read(c->user, first, count, out);
    const uint64_t done = atomic_fetch_add(&c->done, bytes) + bytes;
    if (atomic_fetch_add(&c->g->piled, bytes) + bytes > PILE) {
        atomic_store(&c->g->piled, 0);
        mx_checkpoint_forget(c->g->p->source->checkpoint);
    }
    if (pthread_equal(pthread_self(), c->caller)) /* some recipes read more than once */
        show_progress(c->g, c->g->done + (done < c->bytes ? done : c->bytes));
}

/* A matrix whose recipe reads it more than once, in memory: experts that lie turned are slow to read. */
typedef struct kept_rows {
    counted *from;
    int64_t rows, cols;
    float *data; /* [rows, cols]; NULL: none is kept */
} kept_rows;

enum { KEPT_ROWS = 64 };                               /* read at once: whole lines of what lies turned */
static const uint64_t KEPT_MOST = (uint64_t)256 << 20; /* bytes */

static void keep_rows(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const kept_rows *k = arg;
    const volatile sig_atomic_t *stop = k->from->g->f->options->stop;
    for (int64_t n = begin * KEPT_ROWS; n < end * KEPT_ROWS && n < k->rows && !(stop && *stop); n += KEPT_ROWS) {
        const int64_t count = k->rows - n < KEPT_ROWS ? k->rows - n : KEPT_ROWS;
        read_counted(k->from, n, count, k->data + n * k->cols);
    }
}

static void read_kept(void *user, int64_t first, int64_t count, float *out) {
    const kept_rows *k = user;
    memcpy(out, k->data + first * k->cols, (size_t)(count * k->cols) * sizeof *out);
}

/* ---- one matrix ---------------------------------------------------------------------------------------------------
 */

/* What became of a row, and where the first number is that cannot be; -1: none. */
typedef struct dense_row {
    double square, error, largest_error;
    int64_t nonfinite, bad_at;
    float bad;
} dense_row;

typedef struct dense {
    const mx_quantize_job *job;
    float *numbers; /* [threads, cols] */
    dense_row *row; /* [rows] */
} dense;

/* One number, finite and no larger than `most`. */
static float dense_number(const mx_quantize_job *j, dense_row *row, int64_t k, float x, float most) {
    const bool finite = isfinite(x);
    row->nonfinite += !finite;
    if ((finite || j->allow_nonfinite) && fabsf(x) <= most) return x;
    if (!finite && j->allow_nonfinite) return isnan(x) ? 0 : copysignf(most, x);
    if (row->bad_at < 0) {
        row->bad_at = k;
        row->bad = x;
    }
    return 0;
}

static void dense_rows(void *arg, int64_t begin, int64_t end, int thread) {
    const dense *d = arg;
    const mx_quantize_job *j = d->job;
    const bool single = j->form.format == MX_F32;
    /* F16's largest is 65504, and what rounds to it is below 65520. */
    const float most = single ? FLT_MAX : nextafterf(65520, 0);
    float *numbers = d->numbers + thread * j->cols;
    for (int64_t n = begin; n < end; n++) {
        uint8_t *to = j->data + n * j->cols * (single ? 4 : 2);
        dense_row row = {.bad_at = -1};
        j->read(j->user, n, 1, numbers);
        for (int64_t k = 0; k < j->cols; k++) {
            const float x = dense_number(j, &row, k, numbers[k], most);
            const uint16_t half = single ? 0 : mx_f32_to_f16(x);
            const double far = single ? 0 : fabs((double)x - (double)mx_f16_to_f32(half));
            row.square += (double)x * (double)x;
            row.error += far * far;
            row.largest_error = fmax(row.largest_error, far);
            memcpy(single ? to + 4 * k : to + 2 * k, single ? (const void *)&x : (const void *)&half, single ? 4 : 2);
        }
        d->row[n] = row;
    }
}

static mx_status dense_report(const filling *g, const dense *d, mx_quantize_report *report) {
    const mx_quantize_job *j = d->job;
    *report = (mx_quantize_report){0};
    for (int64_t n = 0; n < j->rows; n++) {
        const dense_row *row = &d->row[n];
        if (row->bad_at >= 0 && isfinite(row->bad))
            return mx_fail(g->f->error, MX_INVALID_FILE,
                           "%s: row %lld, column %lld: is %g after rotation, more than F16 holds: give its class bf16 "
                           "or another format",
                           j->name, (long long)n, (long long)row->bad_at, (double)row->bad);
        if (row->bad_at >= 0)
            return mx_fail(g->f->error, MX_INVALID_FILE,
                           "%s: row %lld, column %lld: is %s; --allow-nonfinite makes NaN 0 and infinity the largest "
                           "number",
                           j->name, (long long)n, (long long)row->bad_at, isnan(row->bad) ? "NaN" : "infinite");
        report->square += row->square;
        report->error += row->error;
        report->largest_error = fmax(report->largest_error, row->largest_error);
        report->nonfinite += row->nonfinite;
    }
    report->lossless = !(report->error > 0) && !report->nonfinite;
    return MX_OK;
}

/* F32 and F16, which the quantiser does not make: numbers as they are, or to the nearest. */
static mx_status make_dense(const filling *g, const mx_quantize_job *job, mx_quantize_report *report) {
    mx_pool *pool = g->f->options->pool;
    dense d = {.job = job,
               .numbers = malloc((size_t)(mx_pool_threads(pool) * job->cols) * sizeof *d.numbers),
               .row = malloc((size_t)job->rows * sizeof *d.row + 1)};
    mx_status status = MX_OK;
    if (!d.numbers || !d.row) {
        status = mx_fail(g->f->error, MX_NO_MEMORY, "%s: no memory for its rows", job->name);
    } else {
        mx_parallel_for(pool, job->rows, 16, dense_rows, &d);
        status = dense_report(g, &d, report);
    }
    free(d.numbers);
    free(d.row);
    return status;
}

typedef struct turning {
    const uint8_t *from;
    uint8_t *to;
    int64_t rows, cols;
    int size;
} turning;

static void turn_range(void *arg, int64_t begin, int64_t end, int thread) {
    const turning *t = arg;
    (void)thread;
    for (int64_t k0 = begin * TILE; k0 < end * TILE && k0 < t->cols; k0 += TILE)
        for (int64_t n0 = 0; n0 < t->rows; n0 += TILE)
            for (int64_t k = k0; k < k0 + TILE && k < t->cols; k++)
                for (int64_t n = n0; n < n0 + TILE && n < t->rows; n++)
                    memcpy(t->to + (k * t->rows + n) * t->size, t->from + (n * t->cols + k) * t->size, (size_t)t->size);
}

static mx_status write_data(filling *g, const mx_work *w) {
    const mx_form *f = &w->choice.form;
    const uint64_t bytes = (uint64_t)(w->rows * mx_columns_bytes(f->format, w->cols));
    const uint8_t *data = g->data;
    if (w->turned) {
        const turning t = {g->data, g->turned, w->rows, w->cols, f->format == MX_F32 ? 4 : 2};
        mx_parallel_for(g->f->options->pool, (w->cols + TILE - 1) / TILE, 1, turn_range, (void *)(uintptr_t)&t);
        data = g->turned;
    }
    return write_entry(g, w->data, data, bytes, (uint64_t)w->slice * bytes);
}

/* Zeros of INT4: those of eight rows in a word, each plus 8; rows that are not there have 0. */
static mx_status write_zeros(const filling *g, const mx_work *w) {
    const int64_t blocks = w->cols / w->choice.form.blocks.columns;
    if (w->choice.form.format != MX_INT4) return write_entry(g, w->zeros, g->zeros, (uint64_t)(w->rows * blocks), 0);
    const int64_t words = (w->rows + 7) / 8 * blocks;
    uint32_t *packed = calloc((size_t)words + 1, sizeof *packed);
    if (!packed) return mx_fail(g->f->error, MX_NO_MEMORY, "%s: no memory for zeros", g->p->entry[w->zeros].name);
    for (int64_t n = 0; n < w->rows; n++)
        for (int64_t b = 0; b < blocks; b++)
            packed[n / 8 * blocks + b] |= (uint32_t)((g->zeros[n * blocks + b] + 8) & 15) << 4 * (n % 8);
    mx_status status = write_entry(g, w->zeros, packed, (uint64_t)words * 4, 0);
    free(packed);
    return status;
}

static mx_status write_post(const filling *g, const mx_work *w) {
    /* compressed-tensors divides by the tensor's scale of blocks. */
    const bool divides = w->choice.form.blocks.scale != MX_SCALE_NONE && !g->p->modelopt;
    return write_entry(g, w->post, divides ? &g->gain : g->post, mx_plan_bytes(g->p, w->post), 0);
}

static mx_status write_work(filling *g, const mx_work *w) {
    const mx_form *f = &w->choice.form;
    const uint64_t scales = (uint64_t)(w->rows * mx_row_scale_bytes(&f->blocks, w->cols));
    const int64_t shape[2] = {w->rows, w->cols};
    mx_status status = write_data(g, w);
    if (!status && w->scales >= 0) status = write_entry(g, w->scales, g->scales, scales, (uint64_t)w->slice * scales);
    if (!status && w->zeros >= 0) status = write_zeros(g, w);
    if (!status && w->post >= 0) status = write_post(g, w);
    if (!status && w->shape >= 0) status = write_entry(g, w->shape, shape, sizeof shape, 0);
    return status;
}

/* "...experts.7.gate_up_proj" of a pair. */
static void name_work(const mx_plan *p, const mx_work *w, char out[220]) {
    const char *name = p->source->module[w->module].name;
    const size_t end = strlen(name) - strlen("gate_proj");
    if (w->pair < 0)
        snprintf(out, 220, "%s", name);
    else
        snprintf(out, 220, "%.*sgate_up_proj", (int)end, name);
}

static uint64_t input_bytes(const mx_work *w, const mx_plan *p) {
    const mx_tensor *t = p->source->module[w->module].tensor;
    const double of = (double)(w->rows * w->cols);
    switch (t->dtype) {
    case MX_DTYPE_U8:
        return (uint64_t)(of * 17 / 32);
    case MX_DTYPE_Q8_0:
        return (uint64_t)(of * 34 / 32);
    case MX_DTYPE_F32:
        return (uint64_t)(of * 4);
    default:
        return (uint64_t)(of * 2);
    }
}

/* Numbers that rotation made finite: the quantiser has not seen them. */
static void add_mended(const mx_fill *f, const mx_module *m, const mx_work *w, mx_quantize_report *report) {
    int64_t mended = mx_rotation_mended(m, f->options->pool);
    if (w->pair >= 0) mended += mx_rotation_mended(&f->plan->source->module[w->pair], f->options->pool);
    report->nonfinite += mended;
    report->lossless = report->lossless && !mended;
}

static mx_status do_work(filling *g, int index) {
    const mx_fill *f = g->f;
    const mx_work *w = &g->p->work[index];
    const mx_module *m = &g->p->source->module[w->module];
    char name[220];
    pair q = {m, w->pair < 0 ? NULL : &g->p->source->module[w->pair]};
    const uint64_t bytes = input_bytes(w, g->p);
    counted c = {.read = w->pair < 0 ? m->read : read_pair,
                 .user = w->pair < 0 ? m->user : &q,
                 .g = g,
                 .caller = pthread_self(),
                 .row_bytes = bytes / (uint64_t)w->rows,
                 .bytes = bytes};
    kept_rows kept = {.from = &c, .rows = w->rows, .cols = w->cols};
    float largest;
    name_work(g->p, w, name);
    mx_status status = mx_shared_scale_largest(g->shared, index, f->options, &largest, f->error);
    if (status) return status;
    const uint64_t room = (uint64_t)w->rows * (uint64_t)w->cols * sizeof *kept.data;
    if (w->choice.form.post == MX_POST_TENSOR && room && room <= KEPT_MOST) kept.data = malloc(room);
    if (kept.data) mx_parallel_for(f->options->pool, (w->rows + KEPT_ROWS - 1) / KEPT_ROWS, 1, keep_rows, &kept);
    if (kept.data && (status = stopped(g))) {
        free(kept.data);
        return status;
    }
    const mx_quantize_job job = {
        .name = name,
        .rows = w->rows,
        .cols = w->cols,
        .read = kept.data ? read_kept : read_counted,
        .user = kept.data ? (void *)&kept : (void *)&c,
        .form = w->choice.form,
        .recipe = w->choice.recipe,
        .statistics = g->calibration && mx_needs_statistics(&w->choice) ? mx_calibration_of(g->calibration, m) : NULL,
        .factored = &g->factored,
        .allow_nonfinite = f->options->allow_nonfinite,
        .largest = largest,
        .stop = f->options->stop,
        .data = g->data,
        .scales = w->choice.form.blocks.columns ? g->scales : NULL,
        .zeros = w->choice.form.blocks.zeros ? g->zeros : NULL,
        .post = w->choice.form.post != MX_POST_NONE ? g->post : NULL,
        .gain = &g->gain,
    };
    mx_quantize_report *report = &f->report->matrix[f->matrix_of[index]].report;
    const bool own = job.form.format == MX_F32 || job.form.format == MX_F16;
    status = own ? make_dense(g, &job, report) : mx_quantize_matrix(&job, f->options->pool, report, f->error);
    free(kept.data);
    if (!status && f->options->allow_nonfinite) add_mended(f, m, w, report);
    if (!status) status = write_work(g, w);
    g->done += bytes;
    show_progress(g, g->done);
    return status ? status : stopped(g);
}

/* ---- statistics ---------------------------------------------------------------------------------------------------
 */

bool mx_needs_statistics(const mx_choice *choice) {
    const bool block = mx_is_block_format(choice->form.format) || choice->form.format == MX_MXFP4;
    return !choice->kept && block && (choice->recipe.gptq || choice->recipe.rule == MX_RULE_WEIGHTED);
}

static int layer_of(const mx_plan *p, const mx_work *w) {
    const mx_module *m = &p->source->module[w->module];
    return m->kind == MX_KIND_LM_HEAD ? p->source->config.layers : m->layer;
}

static void calibrating(void *user, int64_t done, int64_t total) {
    const mx_model_options *o = ((const filling *)user)->f->options;
    if (o->progress) o->progress(o->user, "calibrating", false, (uint64_t)done, (uint64_t)total);
}

static void forget(filling *g) {
    mx_factored_free(&g->factored);
    mx_calibration_free(g->calibration);
    g->calibration = NULL;
}

/* Statistics of what needs them. */
static mx_status open_calibration(filling *g) {
    const mx_plan *p = g->p;
    const mx_model_options *o = g->f->options;
    const mx_calibrate_options options = {.text_path = o->calibrate,
                                          .tokens = o->calibrate_tokens,
                                          .rotated = g->f->rotated,
                                          .pool = o->pool,
                                          .progress = calibrating,
                                          .user = g,
                                          .stop = o->stop};
    mx_status status = mx_calibration_open(p->source->path, &p->source->config, &options, &g->calibration, g->f->error);
    for (int i = 0; i < p->works && !status; i++)
        if (mx_needs_statistics(&p->work[i].choice))
            mx_calibration_want(g->calibration, &p->source->module[p->work[i].module], p->work[i].choice.recipe.gptq);
    return status;
}

/* The module's statistics, and how long they took. */
static mx_status calibrate(filling *g, const mx_module *m) {
    const double start = mx_seconds();
    mx_status status = mx_calibration_run(g->calibration, m, g->f->error);
    g->f->report->calibrate_seconds += mx_seconds() - start;
    return status;
}

typedef struct turn {
    int layer, input, work; /* those of one input share statistics, and follow each other */
} turn;

/* What a matrix of a layer is multiplied with: what mx_calibration_of tells apart. */
static int input_of(const mx_module *m) {
    switch (m->kind) {
    case MX_KIND_Q:
    case MX_KIND_K:
    case MX_KIND_V:
        return 0;
    case MX_KIND_GATE:
    case MX_KIND_UP:
        return 2 + 2 * m->expert;
    case MX_KIND_DOWN:
        return 3 + 2 * m->expert;
    default:
        return 1;
    }
}

static int by_layer(const void *a, const void *b) {
    const turn *x = a, *y = b;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    if (x->input != y->input) return x->input < y->input ? -1 : 1;
    return (x->work > y->work) - (x->work < y->work);
}

/* All matrices; where statistics are needed layer by layer, else in the order of the files. */
static mx_status do_works(filling *g) {
    const mx_plan *p = g->p;
    turn *order = calloc((size_t)p->works + 1, sizeof *order);
    if (!order) return mx_fail(g->f->error, MX_NO_MEMORY, "%s: no memory for a list", p->source->path);
    bool statistics = false;
    for (int i = 0; i < p->works; i++) {
        const mx_choice *c = &p->work[i].choice;
        order[i] = (turn){.work = i};
        statistics |= mx_needs_statistics(c);
    }
    for (int i = 0; i < p->works && statistics; i++) {
        order[i].layer = layer_of(p, &p->work[i]);
        order[i].input = input_of(&p->source->module[p->work[i].module]);
    }
    if (p->works) qsort(order, (size_t)p->works, sizeof *order, by_layer);
    mx_status status = statistics ? open_calibration(g) : MX_OK;
    for (int i = 0; i < p->works && !status; i++) {
        const mx_work *w = &p->work[order[i].work];
        if (i && order[i].layer != order[i - 1].layer) mx_factored_free(&g->factored); /* its statistics may go */
        if (mx_needs_statistics(&w->choice)) status = calibrate(g, &p->source->module[w->module]);
        if (!status) status = do_work(g, order[i].work);
    }
    free(order);
    forget(g);
    return status;
}

/* ---- all of it ----------------------------------------------------------------------------------------------------
 */

static void copied(void *user, uint64_t done, uint64_t total) {
    (void)total;
    show_progress(user, done);
}

static uint64_t up64(uint64_t n) {
    return (n + 63) / 64 * 64;
}

/* Buffers for the largest matrix. */
static mx_status make_room(filling *g) {
    uint64_t data = 0, turned = 0, scales = 0, zeros = 0, post = 4;
    for (int i = 0; i < g->p->works; i++) {
        const mx_work *w = &g->p->work[i];
        const mx_form *f = &w->choice.form;
        const uint64_t rows = (uint64_t)w->rows, d = rows * (uint64_t)mx_columns_bytes(f->format, w->cols),
                       s = rows * (uint64_t)mx_row_scale_bytes(&f->blocks, w->cols),
                       z = rows * (uint64_t)mx_row_zero_bytes(&f->blocks, w->cols),
                       q = f->post == MX_POST_ROW ? 4 * rows : 4;
        if (d > data) data = d;
        if (w->turned && d > turned) turned = d;
        if (s > scales) scales = s;
        if (z > zeros) zeros = z;
        if (q > post) post = q;
    }
    mx_status status = mx_arena_create(up64(data) + up64(turned) + up64(scales) + up64(zeros) + up64(post) + 320,
                                       &g->memory, g->f->error);
    if (status) return status;
    g->data = mx_arena_take(&g->memory, data);
    g->turned = mx_arena_take(&g->memory, turned);
    g->scales = mx_arena_take(&g->memory, scales);
    g->zeros = mx_arena_take(&g->memory, zeros);
    g->post = mx_arena_take(&g->memory, post);
    return MX_OK;
}

mx_status mx_fill_run(const mx_fill *f) {
    filling g = {.f = f, .p = f->plan};
    uint64_t copies = 0;
    for (int i = 0; i < g.p->entries; i++)
        if (g.p->entry[i].made.make) copies += mx_plan_bytes(g.p, i);
    g.total = copies;
    for (int i = 0; i < g.p->works; i++) g.total += input_bytes(&g.p->work[i], g.p);
    const mx_convert_options options = {
        .pool = f->options->pool, .stop = f->options->stop, .progress = copied, .user = &g};
    mx_status status = make_room(&g);
    if (!status) status = mx_output_fill(f->out, f->plan->source->checkpoint, &options);
    g.done = copies;
    f->report->read = g.total;
    for (int i = 0; i < g.p->pieces && !status; i++) {
        status = write_piece(&g, &g.p->piece[i]);
        if (!status) status = stopped(&g);
    }
    if (!status) status = mx_shared_scale_create(g.p, &g.shared, f->error);
    if (!status) status = do_works(&g);
    mx_shared_scale_free(g.shared);
    mx_arena_destroy(&g.memory);
    return status;
}
