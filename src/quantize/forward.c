#include "quantize/forward.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/mx.h"

static int64_t tiles_of(int64_t tokens) {
    return (tokens + MX_TILE - 1) / MX_TILE;
}

mx_status mx_forward_open(const mx_weights *weights, mx_pool *pool, const mx_observer *observer, int max_rows,
                          int max_wanted, mx_forward *out, mx_error *error) {
    const int layers = weights->config.layers;
    mx_precisions precision = {0};
    for (int i = 0; i < MX_CLASSES; i++) precision.of[i] = MX_X_FP32;
    *out = (mx_forward){.config = &weights->config,
                        .max_rows = max_rows,
                        .max_wanted = max_wanted,
                        .pages = 2 * tiles_of(max_rows)}; /* short windows leave theirs half empty */
    const int64_t pages = out->pages * layers;
    const mx_backend_options options = {.kv_format = MX_F32,
                                        .pages = pages,
                                        .max_rows = max_rows,
                                        .max_wanted = max_wanted,
                                        .precision = &precision,
                                        .observer = observer};
    mx_status status = mx_cpu_backend_create(weights, pool, &options, &out->backend, error);
    if (!status) {
        out->table = malloc((size_t)pages * sizeof *out->table);
        out->row = malloc((size_t)max_rows * sizeof *out->row);
        out->view = malloc((size_t)out->pages * sizeof *out->view);
        if (!out->table || !out->row || !out->view)
            status = mx_fail(error, MX_NO_MEMORY, "no memory for steps of %d rows", max_rows);
    }
    for (int64_t i = 0; i < pages && !status; i++) {
        out->table[i] = (int32_t)i;
        out->backend->ops->page_clear(out->backend, (int32_t)i);
    }
    if (status) mx_forward_close(out);
    return status;
}

mx_status mx_forward_keep(mx_forward *f, int64_t tokens, mx_error *error) {
    f->residual =
        malloc((size_t)tokens * (size_t)(f->config->layers + 1) * (size_t)f->config->hidden * sizeof *f->residual);
    if (f->residual) return MX_OK;
    return mx_fail(error, MX_NO_MEMORY, "no memory for the residual stream of %lld tokens", (long long)tokens);
}

mx_status mx_forward_resume(mx_forward *f, int64_t tokens, mx_error *error) {
    f->stream = malloc((size_t)tokens * (size_t)f->config->hidden * sizeof *f->stream);
    if (f->stream) return MX_OK;
    return mx_fail(error, MX_NO_MEMORY, "no memory for the residual stream of %lld tokens", (long long)tokens);
}

void mx_forward_close(mx_forward *f) {
    if (f->backend) f->backend->ops->destroy(f->backend);
    free(f->table);
    free(f->row);
    free(f->view);
    free(f->residual);
    free(f->stream);
    *f = (mx_forward){0};
}

mx_status mx_forward_step(mx_forward *f, const mx_passages *w, int at, int64_t every, int *next, int *wanted,
                          mx_error *error) {
    const int64_t hidden = f->config->hidden, token = w->first[at];
    int rows = 0, sequences = 0;
    int64_t pages = 0;
    *wanted = 0;
    for (; at < w->count; at++, sequences++) {
        const int64_t begin = w->first[at], end = w->first[at + 1], tiles = tiles_of(end - begin);
        if (rows + end - begin > f->max_rows || pages + tiles > f->pages) break;
        f->view[sequences] = (mx_sequence_view){f->table + pages, f->pages};
        pages += tiles;
        for (int64_t i = begin; i < end; i++) {
            const bool want = mx_forward_wanted(i, end, every);
            f->row[rows++] = (mx_row){w->ids.data[i], (int32_t)(i - begin), sequences, want};
            *wanted += want;
        }
    }
    *next = at;
    if (!rows || *wanted > f->max_wanted)
        return mx_fail(error, MX_INVALID_STATE, "forward: steps of %d rows with %d logits do not hold the windows",
                       f->max_rows, f->max_wanted);
    if (!every) f->row[rows - 1].wanted = true;
    mx_batch batch = {
        .row = f->row, .rows = rows, .sequence = f->view, .sequences = sequences, .first = f->first, .last = f->last};
    float *residual = f->residual ? f->residual + token * (f->config->layers + 1) * hidden : NULL;
    if (f->stream) {
        batch.after = f->stream + token * hidden;
        batch.before = f->first ? batch.after : NULL;
    } else if (f->first) {
        batch.before = residual + f->first * rows * hidden;
    } else if (f->keep) {
        batch.residual = residual;
    }
    return f->backend->ops->step(f->backend, &batch, error);
}

/* ---- what is not finite ------------------------------------------------------------------------------------------ */

/* Looks for the first such number of a matrix; `row` [w->cols] is room. */
static bool find_not_finite(const mx_matrix *w, float *row, int64_t *n, int64_t *k) {
    for (*n = 0; *n < w->rows; ++*n) {
        mx_matrix_widen_row(row, w, *n);
        for (*k = 0; *k < w->cols; ++*k)
            if (!isfinite(row[*k])) return true;
    }
    return false;
}

static mx_status name_weight(const char *path, const char *name, int64_t row, int64_t column, float value,
                             mx_error *error) {
    return mx_fail(error, MX_INVALID_FILE,
                   "%s: the model itself computes NaN: %s: row %lld, column %lld is %s: nothing can be measured by "
                   "running it (with --allow-nonfinite and bf16 for all classes a model without is written)",
                   path, name, (long long)row, (long long)column, isnan(value) ? "NaN" : "infinite");
}

static mx_status look_at(const char *path, const mx_matrix *w, const char *name, float *row, mx_error *error) {
    int64_t n, k;
    return find_not_finite(w, row, &n, &k) ? name_weight(path, name, n, k, row[k], error) : MX_OK;
}

/* `name` "gate_up_proj": rows are gate's and up's by turns. */
static mx_status look_at_experts(const char *path, const mx_experts *e, int experts, int layer, const char *name,
                                 float *row, mx_error *error) {
    const bool pairs = !strcmp(name, "gate_up_proj");
    for (int i = 0; i < experts; i++) {
        mx_matrix m = e->matrix;
        char full[120];
        int64_t n, k;
        m.data += i * e->data_stride;
        if (m.scales) m.scales += i * e->scale_stride;
        if (m.zeros) m.zeros += i * e->zero_stride;
        if (m.post) m.post += i * e->post_stride;
        if (!find_not_finite(&m, row, &n, &k)) continue;
        snprintf(full, sizeof full, "model.layers.%d.mlp.experts.%d.%s", layer, i,
                 !pairs  ? name
                 : n % 2 ? "up_proj"
                         : "gate_proj");
        return name_weight(path, full, pairs ? n / 2 : n, k, row[k], error);
    }
    const mx_matrix bias = {.format = e->bias_format,
                            .rows = 1,
                            .cols = e->matrix.rows,
                            .row_stride = mx_columns_bytes(e->bias_format, e->matrix.rows)};
    for (int i = 0; i < experts; i++) {
        mx_matrix m = bias;
        int64_t n, k;
        m.data = e->bias + i * (e->bias_stride ? e->bias_stride : bias.row_stride);
        if (!find_not_finite(&m, row, &n, &k)) continue;
        char full[120];
        snprintf(full, sizeof full, "model.layers.%d.mlp.experts.%s_bias", layer, name);
        return name_weight(path, full, i, k, row[k], error);
    }
    return MX_OK;
}

static mx_status look_at_layer(const char *path, const mx_weights *w, int layer, float *row, mx_error *error) {
    const mx_layer *l = &w->layer[layer];
    const struct {
        const mx_matrix *w;
        const char *name;
    } all[] = {{&l->q, "self_attn.q_proj"},
               {&l->k, "self_attn.k_proj"},
               {&l->v, "self_attn.v_proj"},
               {&l->o, "self_attn.o_proj"},
               {&l->router, "mlp.router"}};
    mx_status status = MX_OK;
    for (size_t i = 0; i < sizeof all / sizeof *all && !status; i++) {
        char full[120];
        snprintf(full, sizeof full, "model.layers.%d.%s", layer, all[i].name);
        status = look_at(path, all[i].w, full, row, error);
    }
    const int experts = w->config.experts;
    const bool apart = l->up.matrix.rows > 0;
    if (!status)
        status = look_at_experts(path, &l->gate_up, experts, layer, apart ? "gate_proj" : "gate_up_proj", row, error);
    if (!status && apart) status = look_at_experts(path, &l->up, experts, layer, "up_proj", row, error);
    if (!status) status = look_at_experts(path, &l->down, experts, layer, "down_proj", row, error);
    return status;
}

mx_status mx_forward_not_finite(const char *path, const mx_weights *w, mx_error *error) {
    const mx_config *c = &w->config;
    int64_t widest = (int64_t)c->heads * c->head_dim;
    if (widest < c->hidden) widest = c->hidden;
    if (widest < 2 * (int64_t)c->intermediate) widest = 2 * (int64_t)c->intermediate;
    float *row = malloc((size_t)widest * sizeof *row);
    if (!row) return mx_fail(error, MX_NO_MEMORY, "%s: no memory for a row", path);
    mx_status status = look_at(path, &w->embedding, "model.embed_tokens", row, error);
    for (int i = 0; i < c->layers && !status; i++) status = look_at_layer(path, w, i, row, error);
    if (!status) status = look_at(path, &w->lm_head, "lm_head", row, error);
    free(row);
    if (status) return status;
    return mx_fail(error, MX_INVALID_FILE,
                   "%s: the model itself computes NaN, though all of its weights are finite: they are too large for "
                   "fp32, and nothing can be measured by running it",
                   path);
}
