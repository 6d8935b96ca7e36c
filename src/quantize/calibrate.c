#include "quantize/calibrate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cpu.h"
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

/* Who watches a run. */
typedef struct watcher {
    mx_calibration *calibration;
    mx_pool *pool;
    const mx_kernels *kernels;
    const mx_product *product; /* of F32 by F32 */
    float *turned;             /* [rows, cols] of rotated rows */
    float *transposed;         /* [cols, rows rounded up] */
    uint8_t *packed;           /* the same, packed */
    float *scratch;            /* [threads, kernels->matmul_scratch rounded up] */
    int64_t scratch_floats;
} watcher;

enum { WANT_NOTHING, WANT_SQUARES, WANT_HESSIAN };

struct mx_calibration {
    mx_config config;
    char *path;
    mx_calibrate_options options;
    mx_passages text;
    uint8_t *want; /* [layers + 1, SLOT_EXPERTS + 2 * experts]; lm_head has a layer's place, too */

    int first, last; /* layers whose statistics are there */
    slot *slot;      /* [last - first, SLOT_EXPERTS + 2 * experts] */
    mx_arena memory;
    uint64_t bytes; /* of memory */

    /* What runs; not there before the first run, and where no layer is left */
    mx_weights *own;
    mx_forward forward;
    watcher watcher;
    mx_observer observer;
    mx_arena room; /* of the watcher */
    int reached;   /* forward.stream is what leaves this many layers; 0: nothing */
    int64_t layers_run;
};

static int slots_of_layer(const mx_config *c) {
    return SLOT_EXPERTS + 2 * c->experts;
}

static int64_t slot_cols(const mx_config *c, int index) {
    if (index == SLOT_O) return (int64_t)c->heads * c->head_dim;
    return index < SLOT_EXPERTS + c->experts ? c->hidden : c->intermediate;
}

static uint8_t *wants_at(const mx_calibration *c, int layer) {
    return c->want + (int64_t)layer * slots_of_layer(&c->config);
}

/* NULL: it is not there, or nobody wants it. */
static slot *slot_at(const mx_calibration *c, int layer, int index) {
    if (layer < c->first || layer >= c->last || !wants_at(c, layer)[index]) return NULL;
    return c->slot + (int64_t)(layer - c->first) * slots_of_layer(&c->config) + index;
}

/* Where the module's input is; false: nowhere. */
static bool find_slot(const mx_config *c, const mx_module *m, int *layer, int *index) {
    *layer = m->layer;
    switch (m->kind) {
    case MX_KIND_Q:
    case MX_KIND_K:
    case MX_KIND_V:
        *index = SLOT_QKV;
        break;
    case MX_KIND_O:
        *index = SLOT_O;
        break;
    case MX_KIND_ROUTER:
        *index = SLOT_ROUTER;
        break;
    case MX_KIND_GATE:
    case MX_KIND_UP:
        *index = SLOT_EXPERTS + m->expert;
        break;
    case MX_KIND_DOWN:
        *index = SLOT_EXPERTS + c->experts + m->expert;
        break;
    case MX_KIND_LM_HEAD:
        *layer = c->layers;
        *index = 0;
        return true;
    default:
        return false;
    }
    return *layer >= 0 && *layer < c->layers && m->expert < c->experts;
}

static uint64_t align64(uint64_t n) {
    return (n + 63) / 64 * 64;
}

static uint64_t slot_bytes(int64_t cols, int want) {
    const uint64_t n = (uint64_t)cols;
    return (want ? align64(n * sizeof(double)) : 0) + (want == WANT_HESSIAN ? align64(n * n * sizeof(float)) : 0);
}

/* What is wanted of a layer takes; 0: nothing is wanted. */
static uint64_t layer_bytes(const mx_calibration *c, int layer) {
    uint64_t bytes = 0;
    for (int i = 0; i < slots_of_layer(&c->config); i++)
        bytes += slot_bytes(slot_cols(&c->config, i), wants_at(c, layer)[i]);
    return bytes;
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

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
    s.block = w->calibration->options.rotated ? rotation_block(&w->calibration->config, seen->class) : 1;
    if (s.block > 1) {
        mx_parallel_for(w->pool, seen->rows, 8, turn_rows, &s);
        turned.x = w->turned;
        turned.row = NULL;
        s.seen = &turned;
    }
    s.slot->s.rows += seen->rows;
    mx_parallel_for(w->pool, seen->cols, COLUMN_GRAIN, add_squares, &s);
    if (!s.slot->hessian) return;
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

/* Does anything that is not finite come in? Infinite Hessians of finite squares are none of ours: columns' products are
 * no larger than their squares. */
static bool is_finite(const slot *s) {
    for (int64_t k = 0; k < s->s.cols && s->s.rows; k++)
        if (!isfinite((float)s->square[k])) return false;
    return true;
}

/* ---- the run ----------------------------------------------------------------------------------------------------- */

static void forget_slots(mx_calibration *c) {
    free(c->slot);
    c->slot = NULL;
    mx_arena_destroy(&c->memory);
    c->memory = (mx_arena){0};
    c->first = c->last = 0;
    c->bytes = 0;
}

/* Room for what is wanted of layers first ... last - 1. */
static mx_status take_slots(mx_calibration *c, int first, int last, mx_error *error) {
    const int of_layer = slots_of_layer(&c->config);
    uint64_t bytes = 64;
    for (int l = first; l < last; l++) bytes += layer_bytes(c, l);
    c->slot = calloc((size_t)(last - first) * (size_t)of_layer, sizeof *c->slot);
    mx_status status = c->slot ? mx_arena_create(bytes, &c->memory, error) : MX_NO_MEMORY;
    if (status)
        return mx_fail(error, MX_NO_MEMORY, "no memory for the statistics of %d layers, %.1f GB", last - first,
                       (double)bytes / 1e9);
    c->first = first;
    c->last = last;
    c->bytes = bytes;
    for (int l = first; l < last; l++)
        for (int i = 0; i < of_layer; i++) {
            slot *s = slot_at(c, l, i);
            if (!s) continue;
            const bool hessian = wants_at(c, l)[i] == WANT_HESSIAN;
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

static const mx_weights *weights_of(const mx_calibration *c) {
    return c->options.weights ? c->options.weights : c->own;
}

static void end_runs(mx_calibration *c) {
    mx_forward_close(&c->forward);
    mx_arena_destroy(&c->room);
    c->room = (mx_arena){0};
    mx_weights_close(c->own);
    c->own = NULL;
    c->reached = 0;
}

/* Model and room for steps, unless they are there. */
static mx_status begin_runs(mx_calibration *c, mx_error *error) {
    const mx_passages *text = &c->text;
    if (c->forward.backend) return MX_OK;
    int64_t longest = text->ids.count < STEP_ROWS ? text->ids.count : STEP_ROWS;
    for (int i = 0; i < text->count; i++)
        if (text->first[i + 1] - text->first[i] > longest) longest = text->first[i + 1] - text->first[i];
    c->watcher = (watcher){.calibration = c, .pool = c->options.pool};
    c->observer = (mx_observer){.see = see, .user = &c->watcher, .plain = c->options.rotated};
    mx_status status = c->options.weights ? MX_OK : mx_weights_open(c->path, c->options.pool, &c->own, error);
    if (!status) status = watcher_open(&c->watcher, longest, &c->room, error);
    if (!status)
        status = mx_forward_open(weights_of(c), c->options.pool, &c->observer, (int)longest, 1, &c->forward, error);
    if (status) end_runs(c);
    return status;
}

/* Does any layer from `layer` on want something? */
static bool any_from(const mx_calibration *c, int layer) {
    for (int l = layer; l <= c->config.layers; l++)
        if (layer_bytes(c, l)) return true;
    return false;
}

/* Behind the last layer whose statistics have room beside those of `first`. */
static int end_of_group(const mx_calibration *c, int first) {
    const uint64_t room = c->options.room ? c->options.room : mx_memory_available() / 2;
    uint64_t bytes = layer_bytes(c, first);
    int last = first + 1;
    for (int l = first + 1; l <= c->config.layers; l++) {
        const uint64_t more = layer_bytes(c, l);
        bytes += more;
        if (bytes > room) break;
        if (more) last = l + 1;
    }
    return last;
}

/* The text through the layers before c->last that it has not gone through yet. */
static mx_status run_text(mx_calibration *c, mx_error *error) {
    const mx_calibrate_options *o = &c->options;
    const mx_passages *text = &c->text;
    mx_forward *f = &c->forward;
    mx_status status = MX_OK;
    const int layers = c->config.layers;
    f->first = c->reached <= c->first ? c->reached : 0;
    f->last = c->last <= layers ? c->last : 0;
    if (!f->stream && any_from(c, c->last)) status = mx_forward_resume(f, text->ids.count, error);
    for (int at = 0; at < text->count && !status;) {
        int wanted;
        if (o->stop && *o->stop) status = mx_fail(error, MX_CANCELLED, "calibration: stopped");
        if (!status) status = mx_forward_step(f, text, at, 0, &at, &wanted, error);
        if (!status && o->progress) o->progress(o->user, text->first[at], text->ids.count);
    }
    c->layers_run += (f->last ? f->last : layers) - f->first;
    c->reached = f->stream && f->last ? f->last : 0;
    return status;
}

static mx_status finish_all(mx_calibration *c, mx_error *error) {
    bool fine = true;
    for (int l = c->first; l < c->last; l++)
        for (int i = 0; i < slots_of_layer(&c->config); i++) {
            slot *s = slot_at(c, l, i);
            if (!s) continue;
            fine = fine && is_finite(s);
            finish(s, c->options.pool);
        }
    return fine ? MX_OK : mx_forward_not_finite(c->path, weights_of(c), error);
}

mx_status mx_calibration_run(mx_calibration *c, const mx_module *m, mx_error *error) {
    int layer, index;
    if (!find_slot(&c->config, m, &layer, &index))
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: %s: no product of a model of %d layers and %d experts, as "
                       "config.json says",
                       c->path, m->name, c->config.layers, c->config.experts);
    if (!wants_at(c, layer)[index])
        return mx_fail(error, MX_INVALID_STATE, "%s: calibration: nothing is wanted of it", m->name);
    if (layer >= c->first && layer < c->last) return MX_OK;
    forget_slots(c);
    mx_status status = begin_runs(c, error);
    if (!status) status = take_slots(c, layer, end_of_group(c, layer), error);
    if (!status) status = run_text(c, error);
    if (!status) status = finish_all(c, error);
    const int last = c->last;
    if (status) forget_slots(c);
    if (status || !any_from(c, last)) end_runs(c);
    return status;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

mx_status mx_calibration_open(const char *path, const mx_config *config, const mx_calibrate_options *options,
                              mx_calibration **out, mx_error *error) {
    mx_tokenizer *tokenizer = NULL;
    mx_calibration *c = calloc(1, sizeof *c);
    *out = NULL;
    if (c) *c = (mx_calibration){.config = *config, .options = *options};
    if (c) c->path = strdup(path);
    if (c) c->want = calloc((size_t)config->layers + 1, (size_t)slots_of_layer(config));
    mx_status status = c && c->path && c->want ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory for statistics");
    if (!status) status = mx_tokenizer_open(path, &tokenizer, error);
    if (!status) {
        int64_t window = options->window ? options->window : WINDOW;
        if (window > config->max_positions) window = config->max_positions;
        status = mx_passages_read(options->text_path, tokenizer, options->tokens ? options->tokens : TOKENS, window,
                                  &c->text, error);
    }
    mx_tokenizer_close(tokenizer);
    if (status)
        mx_calibration_free(c);
    else
        *out = c;
    return status;
}

void mx_calibration_want(mx_calibration *c, const mx_module *m, bool hessian) {
    int layer, index;
    if (!find_slot(&c->config, m, &layer, &index)) return;
    uint8_t *want = wants_at(c, layer) + index;
    if (*want != WANT_HESSIAN) *want = hessian ? WANT_HESSIAN : WANT_SQUARES;
}

const mx_statistics *mx_calibration_of(const mx_calibration *c, const mx_module *m) {
    int layer, index;
    const slot *s = find_slot(&c->config, m, &layer, &index) ? slot_at(c, layer, index) : NULL;
    return s ? &s->s : NULL;
}

int64_t mx_calibration_layers(const mx_calibration *c) {
    return c->layers_run;
}

uint64_t mx_calibration_memory(const mx_calibration *c) {
    return c->bytes;
}

void mx_calibration_free(mx_calibration *c) {
    if (!c) return;
    end_runs(c);
    forget_slots(c);
    mx_passages_free(&c->text);
    free(c->want);
    free(c->path);
    free(c);
}
