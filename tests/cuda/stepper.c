#include "tests/cuda/stepper.h"

/* ---- models ------------------------------------------------------------------------------------------------------ */

void model_open(model *m, const char *name) {
    const char *source = getenv("MXRUN_SOURCE");
    char folder[600], golden[600];
    mx_error error;
    mx_cuda_loaded loaded;
    if (!source) source = ".";
    snprintf(folder, sizeof folder, strcmp(name, "stories") ? "%s/tests/data/%s" : "%s/tools/stories/checkpoint",
             source, name);
    snprintf(golden, sizeof golden, "%s/tests/data/%s.golden.safetensors", source, name);
    m->name = name;
    if (mx_weights_open(folder, NULL, &m->weights, &error)) fail_msg("%s", error.text);
    if (mx_checkpoint_open(golden, &m->goldens, &error)) fail_msg("%s", error.text);
    if (mx_cuda_weights_load(m->weights, &(mx_cuda_load_options){0}, &m->device, &loaded, &error))
        fail_msg("%s", error.text);
}

void model_close(model *m) {
    mx_cuda_weights_free(m->device);
    mx_checkpoint_close(m->goldens);
    mx_weights_close(m->weights);
}

void model_golden(const model *m, const char *name, golden_case *g) {
    for (int index = 0; golden_next(m->goldens, &index, g);)
        if (!strcmp(g->name, name)) return;
    fail_msg("%s has no case %s", m->name, name);
}

/* ---- backends ---------------------------------------------------------------------------------------------------- */

void stepper_open(stepper *s, const model *m, int sequences, int positions, wishes w) {
    const mx_config *c = &m->weights->config;
    mx_error error;
    mx_precisions precision;
    *s = (stepper){.m = m, .sequences = sequences, .tiles = (positions + MX_TILE - 1) / MX_TILE};
    if (mx_precisions_parse(w.precision ? w.precision : "mixed", &precision, &error)) fail_msg("%s", error.text);
    const mx_backend_options options = {.kv_format = w.f32  ? MX_F32
                                                     : w.kv ? w.kv
                                                            : MX_F16,
                                        .pages = (int64_t)sequences * s->tiles * c->layers,
                                        .max_rows = w.rows ? w.rows : MAX_ROWS,
                                        .max_wanted = w.wanted ? w.wanted : MAX_WANTED,
                                        .precision = &precision};
    setenv("MXRUN_CUDA_GRAPHS", w.no_graphs ? "0" : "1", 1);
    mx_status status;
    if (w.cpu) {
        if (mx_pool_create(1, &s->pool, &error)) fail_msg("%s", error.text);
        status = mx_cpu_backend_create(m->weights, s->pool, &options, &s->backend, &error);
    } else
        status = mx_cuda_backend_create(m->device, &options, &s->backend, &error);
    if (status) fail_msg("%s", error.text);
    s->table = calloc((size_t)options.pages, sizeof *s->table);
    s->view = calloc((size_t)sequences, sizeof *s->view);
    assert_true(s->table && s->view);
    for (int i = 0; i < sequences; i++) {
        s->view[i] = (mx_sequence_view){.table = s->table + (int64_t)i * c->layers * s->tiles, .stride = s->tiles};
        stepper_tables(s, i, 0);
    }
    for (int32_t page = 0; page < options.pages; page++) s->backend->ops->page_clear(s->backend, page);
}

void stepper_close(stepper *s) {
    free(s->table);
    free(s->view);
    s->backend->ops->destroy(s->backend);
    if (s->pool) mx_pool_destroy(s->pool);
}

void stepper_tables(stepper *s, int sequence, int position) {
    const mx_config *c = &s->m->weights->config;
    const int each = s->tiles * c->layers, pages = s->sequences * each;
    for (int layer = 0; layer < c->layers; layer++)
        for (int tile = 0; tile < s->tiles; tile++) {
            const int i = sequence * each + layer * s->tiles + tile;
            const bool gone = c->sliding[layer] && tile * MX_TILE + MX_TILE - 1 <= position - c->window;
            s->table[i] = gone ? -1 : (int32_t)((i * 7919LL + 13) % pages);
        }
}

void stepper_step(stepper *s, const mx_row *row, int rows) {
    const mx_batch batch = {.row = row, .rows = rows, .sequence = s->view, .sequences = s->sequences};
    mx_error error;
    if (s->backend->ops->step(s->backend, &batch, &error)) fail_msg("%s", error.text);
}

void stepper_tokens(stepper *s, int sequence, const int32_t *token, int count, int position) {
    mx_row row[MAX_ROWS];
    for (int i = 0; i < count; i++) row[i] = (mx_row){token[i], position + i, sequence, i + 1 == count};
    stepper_tables(s, sequence, position);
    stepper_step(s, row, count);
}

const float *stepper_logits(stepper *s, int wanted) {
    const float *logits = s->backend->ops->logits(s->backend, wanted);
    assert_non_null(logits);
    return logits;
}

void stepper_write(stepper *s, void *device, const void *from, size_t bytes) {
    mx_gpu_stream *stream = mx_cuda_self(s->backend)->stream;
    mx_error error;
    if (mx_gpu_copy(device, from, bytes, stream, &error) || mx_gpu_stream_wait(stream, &error))
        fail_msg("%s", error.text);
}

void stepper_golden(stepper *s, const golden_case *g, int chunk, float *out, int32_t *experts) {
    const mx_config *c = &s->m->weights->config;
    const size_t top_k = (size_t)c->top_k;
    mx_row row[MAX_ROWS];
    int32_t *routed = malloc((size_t)c->layers * MAX_ROWS * top_k * sizeof *routed);
    int done = 0; /* golden rows */
    assert_non_null(routed);
    for (int at = 0; at < g->count; at += chunk) {
        const int rows = g->count - at < chunk ? g->count - at : chunk;
        int wanted = 0;
        for (int i = 0; i < rows; i++) {
            const bool want = done + wanted < g->row_count && g->rows[done + wanted] == at + i;
            row[i] = (mx_row){.token = g->ids[at + i], .position = at + i, .wanted = want};
            wanted += want;
        }
        stepper_tables(s, 0, at);
        const mx_batch batch = {
            .row = row, .rows = rows, .sequence = s->view, .sequences = 1, .experts = experts ? routed : NULL};
        mx_error error;
        if (s->backend->ops->step(s->backend, &batch, &error)) fail_msg("%s: %s", g->name, error.text);
        assert_null(s->backend->ops->logits(s->backend, wanted));
        for (int i = 0; i < wanted; i++)
            memcpy(out + (size_t)(done + i) * (size_t)c->vocab, stepper_logits(s, i), (size_t)c->vocab * sizeof(float));
        done += wanted;
        for (size_t l = 0; experts && l < (size_t)c->layers; l++)
            memcpy(experts + (l * (size_t)g->count + (size_t)at) * top_k, routed + l * (size_t)rows * top_k,
                   (size_t)rows * top_k * sizeof *routed);
    }
    assert_int_equal(done, g->row_count);
    free(routed);
}
