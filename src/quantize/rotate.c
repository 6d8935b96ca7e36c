#include "quantize/rotate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum { MOST = 128, STRIP = 16 }; /* channels of a block; columns that are turned at once across rows */

/* What stands in front of a module's `read`: its columns times `gain`, turned by blocks, then its rows, by blocks. */
typedef struct turned {
    mx_read_rows *read;
    void *user;
    int64_t rows, cols;
    const float *gain;        /* [cols]; NULL: ones */
    int col_block, row_block; /* 1: not turned */
    bool mend;
} turned;

struct mx_rotation {
    turned *of;  /* [modules] */
    float *gain; /* [2 * layers + 1, hidden]: before attention and before the experts of each layer, then the last */
};

/* ---- what is not finite ------------------------------------------------------------------------------------------ */

/* Returns how many numbers of x [n] are not; *first: the first, or n. */
static int64_t count_not_finite(const float *x, int64_t n, int64_t *first) {
    int64_t count = 0;
    *first = n;
    for (int64_t i = 0; i < n; i++) {
        if (isfinite(x[i])) continue;
        if (!count++) *first = i;
    }
    return count;
}

/* NaN becomes 0, and infinity the largest finite number. */
static void mend(float *x, int64_t n) {
    float largest = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(x[i])) largest = fmaxf(largest, fabsf(x[i]));
    if (!(largest > 0)) largest = 1;
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) x[i] = isnan(x[i]) ? 0 : copysignf(largest, x[i]);
}

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

/* Rows 0 .. block - 1 of w [block, cols]: each column is turned. */
static void turn_across(float *w, int block, int64_t cols) {
    float strip[STRIP * MOST];
    for (int64_t k0 = 0; k0 < cols; k0 += STRIP) {
        const int64_t n = cols - k0 < STRIP ? cols - k0 : STRIP;
        for (int i = 0; i < block; i++)
            for (int64_t k = 0; k < n; k++) strip[k * block + i] = w[i * cols + k0 + k];
        mx_hadamard(strip, n * block, block);
        for (int i = 0; i < block; i++)
            for (int64_t k = 0; k < n; k++) w[i * cols + k0 + k] = strip[k * block + i];
    }
}

/* Rows first .. first + count as the module has them, their columns turned. */
static void read_columns(const turned *t, int64_t first, int64_t count, float *out) {
    t->read(t->user, first, count, out);
    for (int64_t i = 0; i < count; i++, out += t->cols) {
        int64_t bad;
        if (t->mend && count_not_finite(out, t->cols, &bad)) mend(out, t->cols);
        for (int64_t k = 0; k < t->cols && t->gain; k++) out[k] *= t->gain[k];
        if (t->col_block > 1) mx_hadamard(out, t->cols, t->col_block);
    }
}

/* Numbers that cannot be read for want of memory are NaN, which is refused. */
static void read_turned(void *user, int64_t first, int64_t count, float *out) {
    const turned *t = user;
    const int64_t block = t->row_block, end = first + count;
    if (block == 1) {
        read_columns(t, first, count, out);
        return;
    }
    float *part = NULL; /* of a block that is not asked for as a whole */
    for (int64_t b = first - first % block; b < end; b += block) {
        const int64_t from = b < first ? first : b, to = b + block < end ? b + block : end;
        float *at = out + (from - first) * t->cols;
        const bool whole = to - from == block;
        if (!whole && !part) part = malloc((size_t)block * (size_t)t->cols * sizeof *part);
        if (!whole && !part) {
            memset(at, 0xFF, (size_t)(to - from) * (size_t)t->cols * sizeof *at);
            continue;
        }
        read_columns(t, b, block, whole ? at : part);
        turn_across(whole ? at : part, (int)block, t->cols);
        if (!whole) memcpy(at, part + (from - b) * t->cols, (size_t)(to - from) * (size_t)t->cols * sizeof *at);
    }
    free(part);
}

struct counting {
    const turned *t;
    float *row;     /* [threads, cols] */
    int64_t *count; /* [threads] */
};

static void count_rows(void *arg, int64_t begin, int64_t end, int thread) {
    const struct counting *c = arg;
    float *row = c->row + thread * c->t->cols;
    int64_t first;
    for (int64_t n = begin; n < end; n++) {
        c->t->read(c->t->user, n, 1, row);
        c->count[thread] += count_not_finite(row, c->t->cols, &first);
    }
}

int64_t mx_rotation_mended(const mx_module *m, mx_pool *pool) {
    if (m->read != read_turned || !((const turned *)m->user)->mend) return 0;
    const int threads = mx_pool_threads(pool);
    struct counting c = {.t = m->user};
    int64_t all = 0;
    c.row = malloc((size_t)threads * (size_t)m->cols * sizeof *c.row);
    c.count = calloc((size_t)threads, sizeof *c.count);
    if (c.row && c.count) mx_parallel_for(pool, m->rows, 8, count_rows, &c);
    for (int i = 0; i < threads && c.row && c.count; i++) all += c.count[i];
    free(c.row);
    free(c.count);
    return all;
}

void mx_rotation_undo(const mx_module *m, float *w) {
    if (m->read != read_turned) return;
    const turned *t = m->user;
    for (int64_t i = 0; i < t->rows && t->row_block > 1; i += t->row_block)
        turn_across(w + i * t->cols, t->row_block, t->cols);
    for (int64_t i = 0; i < t->rows; i++, w += t->cols) {
        if (t->col_block > 1) mx_hadamard(w, t->cols, t->col_block);
        for (int64_t k = 0; k < t->cols && t->gain; k++) w[k] = t->gain[k] != 0 ? w[k] / t->gain[k] : 0;
    }
}

/* ---- vectors ----------------------------------------------------------------------------------------------------- */

static mx_vector *find_vector(const mx_source *s, int layer, const char *name) {
    char full[120];
    if (layer < 0)
        snprintf(full, sizeof full, "model.%s", name);
    else
        snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
    for (int i = 0; i < s->vectors; i++)
        if (!strcmp(s->vector[i].tensor->name, full)) return &s->vector[i];
    return NULL;
}

/* Finite they must be, or are made. */
static mx_status check_vector(const mx_source *s, const mx_tensor *t, float *x, int64_t count, bool mending,
                              mx_error *error) {
    int64_t first;
    const int64_t bad = count_not_finite(x, count, &first);
    if (!bad) return MX_OK;
    const char *is = isnan(x[first]) ? "NaN" : "infinite";
    if (!mending)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: %s: element %lld is %s, which a rotation would spread over others: --allow-nonfinite makes "
                       "NaN 0 and infinity the largest",
                       s->path, t->name, (long long)first, is);
    mx_log(MX_LOG_WARNING,
           "%s: %s: %lld of %lld numbers NaN or infinite, element %lld first: NaN becomes 0 and infinity the largest",
           s->path, t->name, (long long)bad, (long long)count, (long long)first);
    mend(x, count);
    return MX_OK;
}

/* The vector's numbers, from malloc; its `changed`, where it has one. `count`: what it must have. */
static mx_status read_vector(const mx_source *s, const mx_vector *v, int64_t count, bool mending, float **out,
                             mx_error *error) {
    const mx_tensor *t = v->tensor;
    const mx_kernels *kernels;
    int64_t elements = 1;
    for (int i = 0; i < t->dims; i++) elements *= t->shape[i];
    const mx_format format = t->dtype == MX_DTYPE_F32 ? MX_F32 : t->dtype == MX_DTYPE_F16 ? MX_F16 : MX_BF16;
    *out = NULL;
    if (elements != count || t->dims < 1 ||
        (t->dtype != MX_DTYPE_F32 && t->dtype != MX_DTYPE_F16 && t->dtype != MX_DTYPE_BF16))
        return mx_fail(error, MX_INVALID_FILE, "%s: %s: is %s of %lld numbers, expected BF16, F16 or F32 of %lld",
                       s->path, t->name, t->dtype_name, (long long)elements, (long long)count);
    mx_status status = mx_kernels_get(NULL, &kernels, error);
    if (status) return status;
    float *numbers = malloc((size_t)count * sizeof *numbers);
    uint8_t *bytes = malloc((size_t)t->bytes + 1);
    if (!numbers || !bytes) {
        free(numbers);
        free(bytes);
        return mx_fail(error, MX_NO_MEMORY, "%s: no memory for %s", s->path, t->name);
    }
    if (v->changed) {
        memcpy(numbers, v->changed, (size_t)count * sizeof *numbers);
    } else {
        mx_tensor_slices(t, 0, t->shape[0], bytes);
        kernels->widen(numbers, bytes, format, count);
    }
    free(bytes);
    status = check_vector(s, t, numbers, count, mending, error);
    if (status)
        free(numbers);
    else
        *out = numbers;
    return status;
}

static mx_status missing(const mx_source *s, int layer, const char *name, mx_error *error) {
    return mx_fail(error, MX_INVALID_FILE, "%s: layer %d: tensor %s is missing: is the download complete?", s->path,
                   layer, name);
}

/* A norm's gain goes to `gain` [hidden], and becomes ones. */
static mx_status take_gain(mx_source *s, int layer, const char *name, bool mending, float *gain, mx_error *error) {
    mx_vector *v = find_vector(s, layer, name);
    float *numbers;
    if (!v) return missing(s, layer, name, error);
    mx_status status = read_vector(s, v, s->config.hidden, mending, &numbers, error);
    if (status) return status;
    memcpy(gain, numbers, (size_t)s->config.hidden * sizeof *gain);
    for (int i = 0; i < s->config.hidden; i++) numbers[i] = 1;
    free(v->changed);
    v->changed = numbers;
    return MX_OK;
}

/* A bias of `count` numbers is turned by blocks as the rows that it belongs to. */
static mx_status turn_bias(mx_source *s, int layer, const char *name, int64_t count, int block, bool required,
                           bool mending, mx_error *error) {
    mx_vector *v = find_vector(s, layer, name);
    float *numbers;
    if (!v) return required ? missing(s, layer, name, error) : MX_OK;
    mx_status status = read_vector(s, v, count, mending, &numbers, error);
    if (status) return status;
    if (block > 1) mx_hadamard(numbers, count, block);
    free(v->changed);
    v->changed = numbers;
    return MX_OK;
}

static mx_status turn_vectors(mx_source *s, bool mending, float *gain, mx_error *error) {
    const mx_config *c = &s->config;
    const int hidden = mx_hadamard_size(c->hidden, MOST), head = mx_hadamard_size(c->head_dim, MOST);
    mx_status status = take_gain(s, -1, "norm.weight", mending, gain + (int64_t)2 * c->layers * c->hidden, error);
    for (int l = 0; l < c->layers && !status; l++, gain += (int64_t)2 * c->hidden) {
        status = take_gain(s, l, "input_layernorm.weight", mending, gain, error);
        if (!status) status = take_gain(s, l, "post_attention_layernorm.weight", mending, gain + c->hidden, error);
        if (!status)
            status = turn_bias(s, l, "self_attn.v_proj.bias", (int64_t)c->kv_heads * c->head_dim, head,
                               c->attention_bias, mending, error);
        if (!status)
            status = turn_bias(s, l, "self_attn.o_proj.bias", c->hidden, hidden, c->attention_bias, mending, error);
        if (!status)
            status = turn_bias(s, l, "mlp.experts.down_proj_bias", (int64_t)c->experts * c->hidden, hidden, true,
                               mending, error);
    }
    return status;
}

/* ---- all --------------------------------------------------------------------------------------------------------- */

/* How this module is turned. */
static turned turned_of(const mx_source *s, const mx_module *m, const float *gain) {
    const mx_config *c = &s->config;
    const int hidden = mx_hadamard_size(c->hidden, MOST), head = mx_hadamard_size(c->head_dim, MOST);
    const float *attention = gain + (int64_t)2 * (m->layer < 0 ? 0 : m->layer) * c->hidden,
                *experts = attention + c->hidden;
    turned t = {m->read, m->user, m->rows, m->cols, NULL, hidden, 1, false};
    switch (m->kind) {
    case MX_KIND_Q:
    case MX_KIND_K:
        t.gain = attention;
        break;
    case MX_KIND_V:
        t.gain = attention;
        t.row_block = head;
        break;
    case MX_KIND_O:
        t.col_block = head;
        t.row_block = hidden;
        break;
    case MX_KIND_ROUTER:
    case MX_KIND_GATE:
    case MX_KIND_UP:
        t.gain = experts;
        break;
    case MX_KIND_DOWN:
        t.col_block = 1;
        t.row_block = hidden;
        break;
    case MX_KIND_LM_HEAD:
        t.gain = gain + (int64_t)2 * c->layers * c->hidden;
        break;
    default: /* the embedding */
        break;
    }
    return t;
}

static mx_module *of_kind(const mx_source *s, mx_kind kind) {
    for (int i = 0; i < s->modules; i++)
        if (s->module[i].kind == kind) return &s->module[i];
    return NULL;
}

/* lm_head as a module of its own, which reads the embedding. */
static mx_status untie(mx_source *s, mx_error *error) {
    const mx_module *embedding = of_kind(s, MX_KIND_EMBEDDING);
    mx_module *head = of_kind(s, MX_KIND_LM_HEAD);
    if (!embedding) return mx_fail(error, MX_INVALID_FILE, "%s: the embedding is missing", s->path);
    if (!head) head = &s->module[s->modules++];
    *head = *embedding;
    head->kind = MX_KIND_LM_HEAD;
    snprintf(head->name, sizeof head->name, "lm_head");
    s->untied = true;
    return MX_OK;
}

mx_status mx_rotate(mx_source *s, bool mending, mx_rotation **out, mx_error *error) {
    *out = NULL;
    if (!s->gpt_oss)
        return mx_fail(error, MX_UNSUPPORTED, "%s: rotation needs a model of gpt-oss form, and this is none", s->path);
    const mx_config *c = &s->config;
    mx_rotation *r = calloc(1, sizeof *r);
    if (r) r->of = calloc((size_t)s->modules + 1, sizeof *r->of);
    if (r) r->gain = calloc((2 * (size_t)c->layers + 1) * (size_t)c->hidden, sizeof *r->gain);
    mx_status status = MX_OK;
    if (!r || !r->of || !r->gain) status = mx_fail(error, MX_NO_MEMORY, "%s: no memory to rotate it", s->path);
    for (int i = 0; i < s->modules && !status; i++)
        if (s->module[i].kind == MX_KIND_OTHER || s->module[i].layer >= c->layers)
            status = mx_fail(error, MX_UNSUPPORTED, "%s: %s: it is not known how to rotate this", s->path,
                             s->module[i].name);
    if (!status) status = turn_vectors(s, mending, r->gain, error);
    if (!status && c->tied_embeddings) status = untie(s, error);
    if (status) {
        mx_rotation_free(r);
        return status;
    }
    for (int i = 0; i < s->modules; i++) {
        r->of[i] = turned_of(s, &s->module[i], r->gain);
        r->of[i].mend = mending;
        s->module[i].read = read_turned;
        s->module[i].user = &r->of[i];
    }
    *out = r;
    return MX_OK;
}

void mx_rotation_free(mx_rotation *r) {
    if (!r) return;
    free(r->of);
    free(r->gain);
    free(r);
}
