/* The gpt-oss forward pass on the GPU: docs/gpt_oss.md as a list of launches in one stream. Nothing here waits, but
 * where a batch asks for diagnostics. Steps of few single rows (decoding) are recorded as a graph the second time, one
 * for each number of rows and spans, and replayed: whatever differs from step to step is read from the block of input.
 * Where there is no memory for a graph, steps go without them from then on.
 */
#include <math.h>
#include <string.h>

#include "base/log.h"
#include "model/cuda/backend_private.h"

/* The rows that go on, which are all until the last layer has stored its keys and values. */
struct step {
    mx_cuda_backend *b;
    const mx_cuda_plan *plan;
    int rows;
    const int32_t *position, *table; /* [rows] */
    float *x, *q;
    bool kept;    /* only wanted rows go on */
    bool pending; /* the experts of the layer before are not yet added to x */
};

/* ---- products ---------------------------------------------------------------------------------------------------- */

static mx_cuda_matmul product(const struct step *step, mx_class class, const mx_cuda_matrix *w, const uint16_t *x,
                              int64_t x_term, int rows) {
    return (mx_cuda_matmul){.w = *w, .x = x, .x_term = x_term, .terms = step->b->terms[class], .rows = rows};
}

/* The normed rows through `w`, to y [rows, w->rows]. */
static void store(const struct step *step, mx_class class, const mx_cuda_matrix *w, int rows, float *y) {
    mx_cuda_matmul m = product(step, class, w, step->b->s.normed, step->b->s.normed_term, rows);
    m.epilogue = MX_CUDA_STORE;
    m.y = y;
    m.y_stride = w->rows;
    mx_cuda_matmul_run(&m, step->b->stream);
}

/* x += the experts of the layer before, where they are pending. With a gain, normed = terms of norm(x). */
static void norm(struct step *step, const float *gain, int terms, int rows, const int32_t *row) {
    const mx_cuda_backend *b = step->b;
    mx_cuda_norm_rows(&(mx_cuda_norm){.x = step->x,
                                      .rows = rows,
                                      .hidden = b->config.hidden,
                                      .row = row,
                                      .position = step->position,
                                      .expert_out = b->s.expert_out,
                                      .row_slot = step->pending ? b->s.row_slot : NULL,
                                      .top_k = b->config.top_k,
                                      .gain = gain,
                                      .eps = b->config.rms_eps,
                                      .out = b->s.normed,
                                      .out_term = b->s.normed_term,
                                      .terms = terms},
                      b->stream);
    step->pending = false;
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

static mx_cuda_pages pages_of(const struct step *step, int layer) {
    const mx_cuda_backend *b = step->b;
    return (mx_cuda_pages){.kv = b->options.kv_format,
                           .pages = b->pages,
                           .page_bytes = b->page_bytes,
                           .tables = b->s.tables + layer * b->tiles,
                           .table_stride = b->config.layers * b->tiles,
                           .table = step->table,
                           .position = step->position};
}

/* q = the rows' queries; their keys and values go into the pages. */
static void project(const struct step *step, int layer) {
    mx_cuda_backend *b = step->b;
    const mx_config *c = &b->config;
    mx_cuda_matmul m =
        product(step, MX_CLASS_QKV, &b->weights->layer[layer].qkv, b->s.normed, b->s.normed_term, step->rows);
    m.epilogue = MX_CUDA_QKV;
    m.y = step->q;
    m.y_stride = (int64_t)c->heads * c->head_dim;
    m.heads = c->heads;
    m.kv_heads = c->kv_heads;
    m.head_dim = c->head_dim;
    m.cos = b->s.cos;
    m.sin = b->s.sin;
    m.pages = pages_of(step, layer);
    mx_cuda_matmul_run(&m, b->stream);
}

/* The last layer's keys and values are stored: only wanted rows go on, one behind the other. */
static void keep_wanted(struct step *step) {
    mx_cuda_backend *b = step->b;
    const mx_cuda_plan *p = step->plan;
    mx_cuda_gather_rows(b->s.x_kept, step->x, p->want, p->wanted, b->config.hidden, b->stream);
    mx_cuda_gather_rows(b->s.q_kept, step->q, p->want, p->wanted, (int64_t)b->config.heads * b->config.head_dim,
                        b->stream);
    step->rows = p->wanted;
    step->position = p->want_position;
    step->table = p->want_table;
    step->x = b->s.x_kept;
    step->q = b->s.q_kept;
    step->kept = true;
}

/* Spans that a row of a sliding layer may see: the window lies across their borders. */
static int window_spans(int window) {
    return window < 2 ? 1 : (window - 2) / MX_CUDA_SPAN + 2;
}

/* attended = terms of attention(q), each row over its own past. */
static void attend(const struct step *step, int layer) {
    mx_cuda_backend *b = step->b;
    const mx_config *c = &b->config;
    const mx_cuda_plan *p = step->plan;
    mx_cuda_attention a = {.pages = pages_of(step, layer),
                           .heads = c->heads,
                           .kv_heads = c->kv_heads,
                           .head_dim = c->head_dim,
                           .window = c->sliding[layer] ? c->window : 0,
                           .scale = (float)(1 / sqrt(c->head_dim)),
                           .q = step->q,
                           .sinks = b->weights->layer[layer].sinks,
                           .out = b->s.attended,
                           .out_term = b->s.attended_term,
                           .terms = b->terms[MX_CLASS_O],
                           .spans = step->kept ? p->kept_spans : p->spans,
                           .parts = b->s.parts,
                           .run = p->run,
                           .runs = step->kept ? 0 : p->runs};
    const int singles = step->kept ? p->wanted : p->singles;
    const int32_t *single = p->listed && !step->kept ? p->single : b->s.ascending;
    if (a.window && window_spans(a.window) < a.spans) a.spans = window_spans(a.window);
    const int most = singles ? (int)(b->part_pairs / a.spans) : 0; /* rows that there is room for at a time */
    for (int at = 0; at < singles; at += most) {
        a.row = single + at;
        a.rows = singles - at < most ? singles - at : most;
        mx_cuda_attention_rows(&a, b->stream);
    }
    if (a.runs) mx_cuda_attention_runs(&a, b->stream);
}

/* x += W_o attended + b_o */
static void project_back(const struct step *step, int layer) {
    mx_cuda_backend *b = step->b;
    mx_cuda_matmul m =
        product(step, MX_CLASS_O, &b->weights->layer[layer].o, b->s.attended, b->s.attended_term, step->rows);
    m.epilogue = MX_CUDA_ADD;
    m.y = step->x;
    m.y_stride = b->config.hidden;
    mx_cuda_matmul_run(&m, b->stream);
}

/* ---- mixture of experts ------------------------------------------------------------------------------------------ */

/* Slots of one expert that are multiplied together: about as many as an expert has. The bits do not depend on it. */
static int tile_rows(const struct step *step) {
    const mx_config *c = &step->b->config;
    const int64_t pairs = (int64_t)step->rows * c->top_k;
    if (pairs <= 4 * (int64_t)c->experts) return 8;
    if (pairs <= 16 * (int64_t)c->experts) return 32;
    return pairs <= 40 * (int64_t)c->experts ? 64 : 128;
}

static void route(const struct step *step) {
    mx_cuda_backend *b = step->b;
    const mx_cuda_scratch *s = &b->s;
    mx_cuda_route_rows(&(mx_cuda_route){.logits = s->router,
                                        .position = step->position,
                                        .rows = step->rows,
                                        .experts = b->config.experts,
                                        .top_k = b->config.top_k,
                                        .expert = s->expert,
                                        .weight = s->weight,
                                        .slot_row = s->slot_row,
                                        .slot_weight = s->slot_weight,
                                        .row_slot = s->row_slot,
                                        .tile_rows = tile_rows(step),
                                        .tile = s->tile,
                                        .tiles = s->tiles},
                       b->stream);
}

/* A product of all experts, each with the slots that chose it. */
static mx_cuda_matmul grouped(const struct step *step, mx_class class, const mx_cuda_matrix *w, const uint16_t *x,
                              int64_t x_term) {
    const mx_config *c = &step->b->config;
    mx_cuda_matmul m = product(step, class, w, x, x_term, step->rows * c->top_k);
    m.tile = step->b->s.tile;
    m.tiles = step->b->s.tiles;
    m.tile_rows = tile_rows(step);
    m.most_tiles = mx_cuda_most_tiles(step->rows, c->top_k, c->experts, m.tile_rows);
    return m;
}

/* expert_out = w_e (W2_e swiglu(W1_e t + b1_e) + b2_e) by slot, t = norm(x). The next norm adds them to x. */
static void experts(struct step *step, int layer) {
    mx_cuda_backend *b = step->b;
    const mx_config *c = &b->config;
    const mx_cuda_layer *l = &b->weights->layer[layer];
    const int router = b->terms[MX_CLASS_ROUTER], gate_up = b->terms[MX_CLASS_GATE_UP];
    norm(step, l->mlp_norm, router > gate_up ? router : gate_up, step->rows, NULL);
    mx_cuda_mark(b, MX_CUDA_NORM);
    store(step, MX_CLASS_ROUTER, &l->router, step->rows, b->s.router);
    mx_cuda_mark(b, MX_CUDA_ROUTER);
    route(step);
    mx_cuda_mark(b, MX_CUDA_ROUTE);

    mx_cuda_matmul m = grouped(step, MX_CLASS_GATE_UP, &l->gate_up, b->s.normed, b->s.normed_term);
    m.slot_row = b->s.slot_row;
    m.epilogue = MX_CUDA_SWIGLU;
    m.y_terms = b->s.act;
    m.y_term = b->s.act_term;
    m.y_terms_count = b->terms[MX_CLASS_DOWN];
    m.limit = c->swiglu_limit;
    m.alpha = c->swiglu_alpha;
    mx_cuda_matmul_run(&m, b->stream);
    mx_cuda_mark(b, MX_CUDA_GATE_UP);

    m = grouped(step, MX_CLASS_DOWN, &l->down, b->s.act, b->s.act_term);
    m.epilogue = MX_CUDA_SCALE;
    m.factor = b->s.slot_weight;
    m.y = b->s.expert_out;
    m.y_stride = c->hidden;
    mx_cuda_matmul_run(&m, b->stream);
    mx_cuda_mark(b, MX_CUDA_DOWN);
    step->pending = true;
}

/* ---- the step ---------------------------------------------------------------------------------------------------- */

/* For `verify`: the residual stream, and the routing of the layer just computed. Waits. */
static mx_status record(struct step *step, int layers_done, mx_error *error) {
    mx_cuda_backend *b = step->b;
    const mx_batch *batch = step->plan->recorded;
    if (!batch) return MX_OK;
    const size_t hidden = (size_t)step->rows * (size_t)b->config.hidden,
                 pairs = (size_t)step->rows * (size_t)b->config.top_k, done = (size_t)layers_done;
    mx_status status = MX_OK;
    if (step->pending) norm(step, NULL, 0, step->rows, NULL);
    if (batch->residual)
        status = mx_gpu_copy(batch->residual + done * hidden, step->x, hidden * sizeof(float), b->stream, error);
    if (!status && batch->experts && done)
        status =
            mx_gpu_copy(batch->experts + (done - 1) * pairs, b->s.expert, pairs * sizeof(int32_t), b->stream, error);
    if (!status && batch->expert_weights && done)
        status = mx_gpu_copy(batch->expert_weights + (done - 1) * pairs, b->s.weight, pairs * sizeof(float), b->stream,
                             error);
    if (!status) status = mx_gpu_stream_wait(b->stream, error);
    mx_cuda_mark(b, MX_CUDA_START);
    return status;
}

static void begin(const struct step *step) {
    const mx_cuda_backend *b = step->b;
    mx_cuda_begin_rows(&(mx_cuda_begin){.embedding = b->weights->embedding,
                                        .token = step->plan->token,
                                        .position = step->position,
                                        .drawn = b->s.token,
                                        .rows = step->rows,
                                        .hidden = b->config.hidden,
                                        .head_dim = b->config.head_dim,
                                        .inv_freq = b->s.inv_freq,
                                        .concentration = b->concentration,
                                        .x = step->x,
                                        .cos = b->s.cos,
                                        .sin = b->s.sin},
                       b->stream);
}

/* logits = W_unembed norm(x), of the wanted rows only. */
static void unembed(struct step *step) {
    mx_cuda_backend *b = step->b;
    const mx_cuda_plan *p = step->plan;
    const int32_t *row = step->kept || p->wanted == p->rows ? NULL : p->want;
    if (!p->wanted) return;
    norm(step, b->weights->norm, b->terms[MX_CLASS_LM_HEAD], p->wanted, row);
    mx_cuda_mark(b, MX_CUDA_LAST_NORM);
    store(step, MX_CLASS_LM_HEAD, &b->weights->lm_head, p->wanted, b->s.logits);
    mx_cuda_mark(b, MX_CUDA_LM_HEAD);
}

static mx_status pass(mx_cuda_backend *b, const mx_cuda_plan *plan, mx_error *error) {
    struct step step = {.b = b,
                        .plan = plan,
                        .rows = plan->rows,
                        .position = plan->position,
                        .table = plan->table,
                        .x = b->s.x,
                        .q = b->s.q};
    if (b->profile) mx_cuda_profile_step(b, plan->rows);
    begin(&step);
    mx_cuda_mark(b, MX_CUDA_BEGIN);
    mx_status status = record(&step, 0, error);
    for (int i = 0; !status && i < b->config.layers; i++) {
        norm(&step, b->weights->layer[i].attn_norm, b->terms[MX_CLASS_QKV], step.rows, NULL);
        mx_cuda_mark(b, MX_CUDA_NORM);
        project(&step, i);
        mx_cuda_mark(b, MX_CUDA_PROJECT);
        if (plan->keep && i + 1 == b->config.layers) keep_wanted(&step);
        if (!step.rows) break;
        attend(&step, i);
        mx_cuda_mark(b, MX_CUDA_ATTEND);
        project_back(&step, i);
        mx_cuda_mark(b, MX_CUDA_O);
        experts(&step, i);
        status = record(&step, i + 1, error);
    }
    if (!status) unembed(&step);
    return status ? status : mx_gpu_check("the forward pass", error);
}

static mx_status make_graph(mx_cuda_backend *b, const mx_cuda_plan *plan, mx_gpu_graph **out, mx_error *error) {
    mx_status status = mx_gpu_capture_begin(b->stream, error);
    if (status) return status;
    mx_error other; /* a capture that was begun is ended in any case */
    const mx_status captured = pass(b, plan, error);
    status = mx_gpu_capture_end(b->stream, out, captured ? &other : error);
    if (captured && !status) {
        mx_gpu_graph_destroy(*out);
        *out = NULL;
    }
    return captured ? captured : status;
}

/* The step that could not become a graph, for which `why` has the words. Where that says more than that a graph is
 * wanting this fails too. */
static mx_status go_without_graphs(mx_cuda_backend *b, const mx_cuda_plan *plan, const mx_error *why, mx_error *error) {
    mx_status status = pass(b, plan, error);
    if (status) return status;
    b->graphs = false;
    mx_log(MX_LOG_WARNING, "no CUDA graph can be made, decoding is slower without (%s)", why->text);
    return MX_OK;
}

mx_status mx_cuda_forward(mx_cuda_backend *b, const mx_cuda_plan *plan, mx_error *error) {
    mx_error why;
    if (plan->bucket < 0) return pass(b, plan, error);
    /* The first step of a kind goes by itself: it loads its kernels, which nothing may do while a graph is recorded,
     * and a kind that does not come again needs no graph. */
    bool *met = &b->met[plan->bucket][plan->span_bucket];
    if (!*met) {
        *met = true;
        return pass(b, plan, error);
    }
    mx_gpu_graph **graph = &b->graph[plan->bucket][plan->span_bucket];
    if (!*graph && make_graph(b, plan, graph, &why)) return go_without_graphs(b, plan, &why, error);
    return mx_gpu_graph_launch(*graph, b->stream, error);
}
