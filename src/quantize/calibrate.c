#include "quantize/calibrate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "quantize/forward.h"

/* Statistics of the rows that an observer of the CPU's backend sees.
 *
 * Sums of squares are double, a column at a time, rows in the order in which they come. A step's part of a Hessian,
 * X^T X, is a product of the kernels' own: W = X^T with as many columns as there are rows, added to what is there. So a
 * sum is fp32 within a step, of `window` rows, and over the steps: its relative error is at most
 * (window + steps) 2^-24, about 1e-4 and in truth far less, where GPTQ adds 1e-2 to the diagonal. No number depends on
 * which thread computed it. */

enum {
    TOKENS = 32768,
    WINDOW = 2048,
    STEP_ROWS = 512,     /* of short windows together */
    COLUMN_GRAIN = 64,   /* columns whose squares a thread sums at once */
    HESSIAN_GRAIN = 96,  /* rows of a Hessian: what the kernels like best */
    ROWS_MULTIPLE = 32,  /* of rows that are multiplied: those of zeros behind them change nothing */
    HADAMARD_MOST = 128, /* as mx_rotate has it */
};

/* The inputs of one product, or of several that read the same. */
typedef struct slot {
    mx_statistics s;
    double *square;
    float *hessian;
} slot;

/* Of a layer: qkv, o, router, then gate_up of each expert, then down of each. Of lm_head: one. */
enum { SLOT_QKV, SLOT_O, SLOT_ROUTER, SLOT_EXPERTS };

struct mx_calibration {
    mx_config config;
    int first, last;
    slot *slot; /* [last - first, SLOT_EXPERTS + 2 * experts]; lm_head has a layer's place, too */
    mx_arena memory;
};

static int slots_of_layer(const mx_config *c) {
    return SLOT_EXPERTS + 2 * c->experts;
}

static int64_t slot_cols(const mx_config *c, int index) {
    if (index == SLOT_O) return (int64_t)c->heads * c->head_dim;
    return index < SLOT_EXPERTS + c->experts ? c->hidden : c->intermediate;
}

static slot *slot_at(const mx_calibration *c, int layer, int index) {
    return layer < c->first || layer >= c->last
               ? NULL
               : c->slot + (int64_t)(layer - c->first) * slots_of_layer(&c->config) + index;
}

/* Does this layer have this slot? */
static bool has_slot(const mx_config *c, int layer, int index) {
    return layer < c->layers || index == 0;
}

static uint64_t align64(uint64_t n) {
    return (n + 63) / 64 * 64;
}

static uint64_t slot_bytes(int64_t cols, bool hessian) {
    const uint64_t n = (uint64_t)cols;
    return align64(n * sizeof(double)) + (hessian ? align64(n * n * sizeof(float)) : 0);
}

uint64_t mx_calibration_bytes(const mx_config *c, int layer, bool hessian) {
    uint64_t bytes = 0;
    for (int i = 0; i < slots_of_layer(c); i++)
        if (has_slot(c, layer, i)) bytes += slot_bytes(slot_cols(c, i), hessian);
    return bytes;
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

/* Who watches a run. */
typedef struct watcher {
    mx_calibration *calibration;
    mx_pool *pool;
    const mx_kernels *kernels;
    const mx_product *product; /* of F32 by F32 */
    bool hessian, rotated;
    float *turned;     /* [rows, cols] of rotated rows */
    float *transposed; /* [cols, rows rounded up] */
    uint8_t *packed;   /* the same, packed */
    float *scratch;    /* [threads, kernels->matmul_scratch rounded up] */
    int64_t scratch_floats;
} watcher;

/* One parallel region's view: rows x of one slot. */
struct sums {
    const watcher *w;
    const mx_observed *seen;
    slot *slot;
    int64_t padded; /* rows, rounded up */
    int block;      /* of the rotation */
};

static const float *row_of(const mx_observed *o, int64_t i) {
    return o->x + (o->row ? o->row[i] : i) * o->cols;
}

static void turn_rows(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct sums *s = arg;
    const int64_t cols = s->seen->cols;
    for (int64_t i = begin; i < end; i++) {
        float *to = s->w->turned + i * cols;
        memcpy(to, row_of(s->seen, i), (size_t)cols * sizeof *to);
        mx_hadamard(to, cols, s->block);
    }
}

static void add_squares(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct sums *s = arg;
    for (int64_t i = 0; i < s->seen->rows; i++) {
        const float *x = row_of(s->seen, i);
        for (int64_t k = begin; k < end; k++) s->slot->square[k] += (double)x[k] * x[k];
    }
}

static void transpose(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct sums *s = arg;
    const int64_t rows = s->seen->rows;
    for (int64_t k = begin; k < end; k++)
        memset(s->w->transposed + k * s->padded + rows, 0, (size_t)(s->padded - rows) * sizeof(float));
    for (int64_t i = 0; i < rows; i++) {
        const float *x = row_of(s->seen, i);
        for (int64_t k = begin; k < end; k++) s->w->transposed[k * s->padded + i] = x[k];
    }
}

static void pack_transposed(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct sums *s = arg;
    const mx_product *p = s->w->product;
    p->pack(s->w->packed + begin * p->packed_bytes(s->padded), s->w->transposed + begin * s->padded, end - begin,
            s->padded);
}

/* Columns begin .. end of the Hessian's rows from `begin` on: a triangle and what is below it. */
static void add_products(void *arg, int64_t begin, int64_t end, int thread) {
    const struct sums *s = arg;
    const watcher *w = s->w;
    const int64_t cols = s->seen->cols, stride = w->product->packed_bytes(s->padded);
    for (int64_t block = begin; block < end; block++) {
        const int64_t n0 = block * HESSIAN_GRAIN, n1 = n0 + HESSIAN_GRAIN < cols ? n0 + HESSIAN_GRAIN : cols;
        const mx_matmul m = {.w = {.format = MX_F32,
                                   .rows = cols,
                                   .cols = s->padded,
                                   .data = (const uint8_t *)w->transposed,
                                   .row_stride = s->padded * 4},
                             .x = w->packed + n0 * stride,
                             .x_stride = stride,
                             .rows = cols - n0,
                             .n0 = n0,
                             .n1 = n1,
                             .epilogue = MX_ADD,
                             .y = s->slot->hessian + n0 * cols,
                             .y_stride = cols,
                             .scratch = w->scratch + thread * w->scratch_floats};
        w->product->matmul(&m);
    }
}

static slot *slot_of_class(const mx_calibration *c, const mx_observed *o) {
    switch (o->class) {
    case MX_CLASS_QKV:
        return slot_at(c, o->layer, SLOT_QKV);
    case MX_CLASS_O:
        return slot_at(c, o->layer, SLOT_O);
    case MX_CLASS_ROUTER:
        return slot_at(c, o->layer, SLOT_ROUTER);
    case MX_CLASS_GATE_UP:
        return slot_at(c, o->layer, SLOT_EXPERTS + o->expert);
    case MX_CLASS_DOWN:
        return slot_at(c, o->layer, SLOT_EXPERTS + c->config.experts + o->expert);
    default:
        return slot_at(c, o->layer, 0);
    }
}

/* In blocks of which what enters a product of this class is turned; 1: not at all. */
static int rotation_block(const mx_config *c, mx_class class) {
    if (class == MX_CLASS_DOWN) return 1;
    return mx_hadamard_size(class == MX_CLASS_O ? c->head_dim : c->hidden, HADAMARD_MOST);
}

static void see(void *user, const mx_observed *seen) {
    watcher *w = user;
    mx_observed turned = *seen;
    struct sums s = {.w = w, .seen = seen, .slot = slot_of_class(w->calibration, seen)};
    if (!s.slot) return;
    s.block = w->rotated ? rotation_block(&w->calibration->config, seen->class) : 1;
    if (s.block > 1) {
        mx_parallel_for(w->pool, seen->rows, 8, turn_rows, &s);
        turned.x = w->turned;
        turned.row = NULL;
        s.seen = &turned;
    }
    s.slot->s.rows += seen->rows;
    mx_parallel_for(w->pool, seen->cols, COLUMN_GRAIN, add_squares, &s);
    if (!w->hessian) return;
    s.padded = (seen->rows + ROWS_MULTIPLE - 1) / ROWS_MULTIPLE * ROWS_MULTIPLE;
    mx_parallel_for(w->pool, seen->cols, COLUMN_GRAIN, transpose, &s);
    mx_parallel_for(w->pool, seen->cols, COLUMN_GRAIN, pack_transposed, &s);
    mx_parallel_for(w->pool, (seen->cols + HESSIAN_GRAIN - 1) / HESSIAN_GRAIN, 1, add_products, &s);
}

/* ---- means ------------------------------------------------------------------------------------------------------- */

struct means {
    slot *slot;
    double factor;
};

/* Rows of the upper triangle from the lower one's columns, and both to means. */
static void mirror(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct means *m = arg;
    const int64_t cols = m->slot->s.cols;
    float *h = m->slot->hessian;
    for (int64_t i = begin; i < end; i++)
        for (int64_t k = 0; k <= i; k++) {
            const float mean = (float)(h[i * cols + k] * m->factor);
            h[i * cols + k] = h[k * cols + i] = mean;
        }
}

static void finish(slot *s, mx_pool *pool) {
    if (!s->s.rows) return;
    struct means m = {s, 1 / (double)s->s.rows};
    for (int64_t k = 0; k < s->s.cols; k++) s->square[k] *= m.factor;
    if (s->hessian) mx_parallel_for(pool, s->s.cols, 16, mirror, &m);
}

/* ---- the run ----------------------------------------------------------------------------------------------------- */

static mx_status take_slots(mx_calibration *c, bool hessian, mx_error *error) {
    const int of_layer = slots_of_layer(&c->config);
    uint64_t bytes = 64;
    for (int l = c->first; l < c->last; l++) bytes += mx_calibration_bytes(&c->config, l, hessian);
    c->slot = calloc((size_t)(c->last - c->first) * (size_t)of_layer, sizeof *c->slot);
    mx_status status = c->slot ? mx_arena_create(bytes, &c->memory, error) : MX_NO_MEMORY;
    if (status)
        return mx_fail(error, MX_NO_MEMORY, "no memory for the statistics of %d layers, %.1f GB", c->last - c->first,
                       (double)bytes / 1e9);
    for (int l = c->first; l < c->last; l++)
        for (int i = 0; i < of_layer; i++) {
            slot *s = slot_at(c, l, i);
            if (!has_slot(&c->config, l, i)) continue;
            const int64_t n = s->s.cols = slot_cols(&c->config, i);
            s->s.square = s->square = mx_arena_take(&c->memory, (size_t)n * sizeof *s->square);
            if (hessian) s->s.hessian = s->hessian = mx_arena_take(&c->memory, (size_t)n * (size_t)n * sizeof(float));
            if (!s->square || (hessian && !s->hessian))
                return mx_fail(error, MX_NO_MEMORY, "statistics of layer %d do not fit their memory", l);
        }
    return MX_OK;
}

/* Room for steps of `rows` rows; all of it in *memory. */
static mx_status watcher_open(watcher *w, int64_t rows, mx_arena *memory, mx_error *error) {
    const mx_config *c = &w->calibration->config;
    const int threads = mx_pool_threads(w->pool);
    int64_t widest = (int64_t)c->heads * c->head_dim;
    if (widest < c->hidden) widest = c->hidden;
    if (widest < c->intermediate) widest = c->intermediate;
    mx_status status = mx_kernels_get(NULL, &w->kernels, error);
    if (status) return status;
    w->product = w->kernels->product[MX_F32][MX_X_FP32];
    rows = (rows + ROWS_MULTIPLE - 1) / ROWS_MULTIPLE * ROWS_MULTIPLE;
    w->scratch_floats = (w->kernels->matmul_scratch + 15) / 16 * 16;
    const size_t block = (size_t)rows * (size_t)widest * sizeof(float),
                 packed = (size_t)widest * (size_t)w->product->packed_bytes(rows),
                 scratch = (size_t)threads * (size_t)w->scratch_floats * sizeof(float);
    status = mx_arena_create(2 * block + packed + scratch + 256, memory, error);
    if (status) return status;
    w->turned = mx_arena_take(memory, block);
    w->transposed = mx_arena_take(memory, block);
    w->packed = mx_arena_take(memory, packed);
    w->scratch = mx_arena_take(memory, scratch);
    return MX_OK;
}

static mx_status run(const mx_weights *weights, mx_pool *pool, const mx_passages *text, const mx_calibrate_options *o,
                     mx_calibration *c, mx_error *error) {
    watcher w = {.calibration = c, .pool = pool, .hessian = o->hessian, .rotated = o->rotated};
    const mx_observer observer = {.see = see, .user = &w, .plain = o->rotated};
    mx_arena memory = {0};
    mx_forward f = {0};
    int64_t longest = text->ids.count < STEP_ROWS ? text->ids.count : STEP_ROWS;
    for (int i = 0; i < text->count; i++)
        if (text->first[i + 1] - text->first[i] > longest) longest = text->first[i + 1] - text->first[i];
    mx_status status = watcher_open(&w, longest, &memory, error);
    if (!status) status = mx_forward_open(weights, pool, &observer, (int)longest, 1, &f, error);
    if (c->last <= c->config.layers) f.last = c->last;
    for (int at = 0; at < text->count && !status;) {
        int wanted;
        if (o->stop && *o->stop) status = mx_fail(error, MX_CANCELLED, "calibration: stopped");
        if (!status) status = mx_forward_step(&f, text, at, 0, &at, &wanted, error);
        if (!status && o->progress) o->progress(o->user, text->first[at], text->ids.count);
    }
    for (int i = 0; i < (c->last - c->first) * slots_of_layer(&c->config) && !status; i++) finish(&c->slot[i], pool);
    mx_forward_close(&f);
    mx_arena_destroy(&memory);
    return status;
}

static mx_status check(const char *path, const mx_config *c, int first, int last, mx_error *error) {
    if (first >= 0 && first < last && last <= c->layers + 1) return MX_OK;
    return mx_fail(error, MX_INVALID_ARGUMENT, "%s: calibration of layers %d to %d, of %d (and lm_head)", path, first,
                   last - 1, c->layers);
}

mx_status mx_calibrate(const char *path, const mx_calibrate_options *options, int first, int last, mx_calibration **out,
                       mx_error *error) {
    mx_pool *pool = NULL;
    mx_weights *weights = NULL;
    mx_tokenizer *tokenizer = NULL;
    mx_passages text = {0};
    mx_calibration *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c) return mx_fail(error, MX_NO_MEMORY, "no memory for statistics");
    mx_status status = mx_pool_create(options->threads, &pool, error);
    if (!status) status = mx_weights_open(path, pool, &weights, error);
    if (!status) status = check(path, &weights->config, first, last, error);
    if (!status) status = mx_tokenizer_open(path, &tokenizer, error);
    if (!status) {
        int64_t window = options->window ? options->window : WINDOW;
        if (window > weights->config.max_positions) window = weights->config.max_positions;
        status = mx_passages_read(options->text_path, tokenizer, options->tokens ? options->tokens : TOKENS, window,
                                  &text, error);
    }
    if (!status) {
        *c = (mx_calibration){.config = weights->config, .first = first, .last = last};
        status = take_slots(c, options->hessian, error);
    }
    if (!status) status = run(weights, pool, &text, options, c, error);
    mx_passages_free(&text);
    mx_tokenizer_close(tokenizer);
    mx_weights_close(weights);
    mx_pool_destroy(pool);
    if (status)
        mx_calibration_free(c);
    else
        *out = c;
    return status;
}

const mx_statistics *mx_calibration_of(const mx_calibration *c, const mx_module *m) {
    int index, layer = m->layer;
    switch (m->kind) {
    case MX_KIND_Q:
    case MX_KIND_K:
    case MX_KIND_V:
        index = SLOT_QKV;
        break;
    case MX_KIND_O:
        index = SLOT_O;
        break;
    case MX_KIND_ROUTER:
        index = SLOT_ROUTER;
        break;
    case MX_KIND_GATE:
    case MX_KIND_UP:
        index = SLOT_EXPERTS + m->expert;
        break;
    case MX_KIND_DOWN:
        index = SLOT_EXPERTS + c->config.experts + m->expert;
        break;
    case MX_KIND_LM_HEAD:
        layer = c->config.layers;
        index = 0;
        break;
    default:
        return NULL;
    }
    const slot *s = layer < 0 ? NULL : slot_at(c, layer, index);
    return s ? &s->s : NULL;
}

void mx_calibration_free(mx_calibration *c) {
    if (!c) return;
    free(c->slot);
    mx_arena_destroy(&c->memory);
    free(c);
}
