#include "quantize/forward.h"

#include <stdlib.h>
#include <string.h>

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

void mx_forward_close(mx_forward *f) {
    if (f->backend) f->backend->ops->destroy(f->backend);
    free(f->table);
    free(f->row);
    free(f->view);
    free(f->residual);
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
    if (f->first)
        batch.before = residual + f->first * rows * hidden;
    else if (f->keep)
        batch.residual = residual;
    return f->backend->ops->step(f->backend, &batch, error);
}
