/* The gpt-oss forward pass on the CPU: docs/gpt_oss.md line by line, every activation in fp32.
 *
 * A step is a sequence of parallel regions; within one, work is cut into tiles that any thread may take, because no
 * result depends on who computed it. Matrix products of one region (q, k, v; all experts) share one list of tiles. */
#include <math.h>
#include <string.h>

#include "kernels/mx.h"
#include "model/cpu_backend.h"

enum {
    ROW_GRAIN = 8,          /* rows a thread takes at once where the work per row is small */
    FAIR_TASKS = 16,        /* attention tasks a thread should have at least, so that all end together */
    SMALL_MATRIX = 256,     /* output rows, up to which finer tasks keep the threads even */
    FEW_ROWS = 16,          /* rows of a product up to which memory decides how long a task takes */
    TASK_BYTES = 144 << 10, /* of weights in such a task: about 10 us */
};

struct step {
    mx_cpu_backend *b;
    const mx_batch *batch; /* the rows still computed */
    mx_batch kept;
    int runs, cuts; /* of batch in s.run, of those in s.cut */
    const mx_layer *layer;
    int index; /* of the layer */
};

/* ---- matrix products ------------------------------------------------------------------------------------- */

/* Output rows of one task: what the kernels like best, less for the router and where few rows read a wide matrix. */
static int64_t tile_rows(const mx_matmul *m) {
    if (m->w.rows <= SMALL_MATRIX) return 16;
    int64_t most = m->rows <= FEW_ROWS ? TASK_BYTES / m->w.row_stride / 8 * 8 : 96;
    return most < 8 ? 8 : most < 96 ? most : 96;
}

static int64_t tiles_of(const mx_matmul *m) {
    return (m->w.rows + tile_rows(m) - 1) / tile_rows(m);
}

struct products {
    mx_cpu_backend *b;
    int jobs;
};

static void matmul_tiles(void *arg, int64_t begin, int64_t end, int thread) {
    const struct products *p = arg;
    const mx_scratch *s = &p->b->s;
    for (int64_t tile = begin; tile < end;) {
        int node = 0;
        while (s->first_tile[(node + 1) * p->jobs] <= tile) node++;
        const int64_t *first = s->first_tile + node * p->jobs;
        int low = 0, high = p->jobs - 1; /* the last job whose first tile is <= tile */
        while (low < high) {
            int middle = (low + high + 1) / 2;
            if (first[middle] <= tile)
                low = middle;
            else
                high = middle - 1;
        }
        const int64_t next = first[low + 1] < end ? first[low + 1] : end;
        mx_matmul m = s->job[low].m;
        int64_t size = tile_rows(&m);
        m.n0 = (tile - first[low] + mx_pool_share(p->b->pool, node, tiles_of(&m))) * size;
        m.n1 = m.n0 + (next - tile) * size < m.w.rows ? m.n0 + (next - tile) * size : m.w.rows;
        m.scratch = s->thread + thread * s->thread_floats;
        s->job[low].product->matmul(&m);
        tile = next;
    }
}

/* Runs s.job[0 .. jobs). Every NUMA node has the same part of each matrix's rows in every step: its tiles of all jobs
 * stand together. */
static void run_products(mx_cpu_backend *b, int jobs) {
    const mx_pool *pool = b->pool;
    const int nodes = mx_pool_nodes(pool);
    int64_t *first = b->s.first_tile, *of_node = b->s.first_of_node, tile = 0;
    for (int node = 0; node < nodes; node++) {
        of_node[node] = tile;
        for (int i = 0; i < jobs; i++) {
            const int64_t tiles = tiles_of(&b->s.job[i].m);
            first[node * jobs + i] = tile;
            tile += mx_pool_share(pool, node + 1, tiles) - mx_pool_share(pool, node, tiles);
        }
    }
    first[nodes * jobs] = of_node[nodes] = tile;
    /* Few rows: tasks are so short that taking one would be a good part of it. */
    const bool few = jobs && b->s.job[0].m.rows <= FEW_ROWS;
    mx_parallel_for_nodes(b->pool, of_node, 1, few, matmul_tiles, &(struct products){b, jobs});
}

/* Where the rows that `product` reads are packed, or shall be. */
static const uint8_t *packed_for(const mx_cpu_backend *b, mx_packings *p, const mx_product *product) {
    int i = 0;
    while (i < p->count && p->product[i]->pack != product->pack) i++;
    if (i == p->count) p->product[p->count++] = product;
    return b->s.packed[i];
}

/* y = x W^T + bias, over rows that lie one behind the other. */
static mx_job dense(const mx_cpu_backend *b, mx_packings *packings, mx_class class, const mx_matrix *w,
                    const float *bias, int64_t rows, float *y) {
    const mx_product *product = mx_cpu_product(b, class, w->format, w->bf16_safe);
    return (mx_job){.product = product,
                    .m = {.w = *w,
                          .x = packed_for(b, packings, product),
                          .x_stride = product->packed_bytes(w->cols),
                          .rows = rows,
                          .bias = (const uint8_t *)bias,
                          .bias_format = MX_F32,
                          .epilogue = MX_STORE,
                          .y = y,
                          .y_stride = w->rows}};
}

struct pack {
    const mx_product *product;
    uint8_t *out;
    const float *x;
    int64_t cols;
};

static void pack_rows(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct pack *p = arg;
    p->product->pack(p->out + begin * p->product->packed_bytes(p->cols), p->x + begin * p->cols, end - begin, p->cols);
}

static void pack(mx_cpu_backend *b, const mx_product *product, uint8_t *out, const float *x, int64_t rows,
                 int64_t cols) {
    mx_parallel_for(b->pool, rows, ROW_GRAIN, pack_rows, &(struct pack){product, out, x, cols});
}

struct norm {
    mx_cpu_backend *b;
    const mx_packings *packings;
    const float *x, *gain;
};

static void norm_rows(void *arg, int64_t begin, int64_t end, int thread) {
    const struct norm *n = arg;
    const mx_scratch *s = &n->b->s;
    int64_t hidden = n->b->weights->config.hidden;
    float *normed = s->thread + thread * s->thread_floats;
    for (int64_t t = begin; t < end; t++) {
        n->b->kernels->rmsnorm(normed, n->x + t * hidden, n->gain, hidden, n->b->weights->config.rms_eps);
        for (int i = 0; i < n->packings->count; i++) {
            const mx_product *product = n->packings->product[i];
            product->pack(s->packed[i] + t * product->packed_bytes(hidden), normed, 1, hidden);
        }
    }
}

/* s.packed = norm(x) in every form that is wanted. */
static void norm(mx_cpu_backend *b, const mx_packings *packings, const float *x, const float *gain, int64_t rows) {
    mx_parallel_for(b->pool, rows, ROW_GRAIN, norm_rows, &(struct norm){b, packings, x, gain});
}

/* ---- an observer --------------------------------------------------------------------------------------------- */

/* Shows rows of x [rows, cols] that enter products of `class`; layer and expert as in mx_observed. */
static void observe(const mx_cpu_backend *b, mx_class class, int layer, const float *x, int64_t rows, int64_t cols) {
    const mx_observer *o = b->options.observer;
    if (o && rows) o->see(o->user, &(mx_observed){class, layer, -1, x, NULL, rows, cols});
}

struct plain_norm {
    const mx_cpu_backend *b;
    const float *x, *gain;
    float *out;
};

static void plain_norm_rows(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct plain_norm *n = arg;
    const mx_config *c = &n->b->weights->config;
    for (int64_t t = begin; t < end; t++)
        n->b->kernels->rmsnorm(n->out + t * c->hidden, n->x + t * c->hidden, n->gain, c->hidden, c->rms_eps);
}

/* What `norm` packs, once more as fp32 rows, and shown. They lie in s.expert_out until the experts' down product writes
 * there; returns them, NULL where nobody looks. */
static const float *observe_norm(const mx_cpu_backend *b, mx_class class, int layer, const float *x, const float *gain,
                                 int64_t rows) {
    const mx_observer *o = b->options.observer;
    if (!o) return NULL;
    struct plain_norm n = {b, x, o->plain ? b->ones : gain, b->s.expert_out};
    mx_parallel_for(b->pool, rows, ROW_GRAIN, plain_norm_rows, &n);
    observe(b, class, layer, n.out, rows, b->weights->config.hidden);
    return n.out;
}

/* Each chosen expert's rows: of x by slot_row (rows_are_slots false), or the slots' own. */
static void observe_experts(const mx_cpu_backend *b, mx_class class, int layer, const float *x, int64_t cols,
                            bool rows_are_slots) {
    const mx_observer *o = b->options.observer;
    const mx_scratch *s = &b->s;
    for (int e = 0; o && e < b->weights->config.experts; e++) {
        const int first = s->first[e], count = s->first[e + 1] - first;
        if (!count) continue;
        o->see(o->user, &(mx_observed){class, layer, e, rows_are_slots ? x + first * cols : x,
                                       rows_are_slots ? NULL : s->slot_row + first, count, cols});
    }
}

/* ---- embedding and angles -------------------------------------------------------------------------------- */

static void begin_rows(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct step *step = arg;
    const mx_cpu_backend *b = step->b;
    const mx_weights *w = b->weights;
    int hidden = w->config.hidden, half = w->config.head_dim / 2;
    for (int64_t t = begin; t < end; t++) {
        const mx_row *row = &step->batch->row[t];
        if (step->batch->first)
            memcpy(b->s.x + t * hidden, step->batch->before + t * hidden, (size_t)hidden * sizeof(float));
        else if (mx_is_block_format(w->embedding.format) || mx_is_mxfp4(w->embedding.format))
            mx_matrix_widen_row(b->s.x + t * hidden, &w->embedding, row->token);
        else
            b->kernels->widen(b->s.x + t * hidden, w->embedding.data + row->token * w->embedding.row_stride,
                              w->embedding.format, hidden);
        for (int i = 0; i < half; i++) { /* angles in fp64 */
            double angle = row->position * b->inv_freq[i];
            b->s.cos[t * half + i] = (float)(cos(angle) * b->concentration);
            b->s.sin[t * half + i] = (float)(sin(angle) * b->concentration);
        }
    }
}

/* ---- attention ------------------------------------------------------------------------------------------- */

static const int32_t *page_table(const struct step *step, const mx_sequence_view *sequence) {
    return sequence->table + step->index * sequence->stride;
}

static void store_keys(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct step *step = arg;
    const mx_cpu_backend *b = step->b;
    const mx_config *c = &b->weights->config;
    int d = c->head_dim;
    for (int64_t t = begin; t < end; t++) {
        const mx_row *row = &step->batch->row[t];
        float *key = b->s.k + t * c->kv_heads * d, *value = b->s.v + t * c->kv_heads * d;
        b->kernels->rope(key, b->s.cos + t * (d / 2), b->s.sin + t * (d / 2), c->kv_heads, d);
        int32_t page = page_table(step, &step->batch->sequence[row->sequence])[row->position / MX_TILE];
        uint8_t *tile = (uint8_t *)b->pages.base + page * b->page_bytes;
        for (int h = 0; h < c->kv_heads; h++)
            b->kernels->kv_write(tile + h * b->head_bytes, b->options.kv_format, d, row->position % MX_TILE,
                                 key + h * d, value + h * d);
    }
}

/* The kernel's view of one run and KV head, but for queries and scratch. */
static mx_attention attention_of(const struct step *step, const mx_run *run, int64_t head) {
    const mx_cpu_backend *b = step->b;
    const mx_config *c = &b->weights->config;
    int d = c->head_dim, group = c->heads / c->kv_heads;
    int64_t part = mx_attention_part(d, group);
    return (mx_attention){
        .kv = b->options.kv_format,
        .head_dim = d,
        .group = group,
        .rows = run->rows,
        .position = run->position,
        .window = c->sliding[step->index] ? c->window : 0,
        .sinks = step->layer->sinks + head * group,
        .scale = (float)(1 / sqrt(d)),
        .pages = (const uint8_t *)b->pages.base,
        .table = page_table(step, run->sequence),
        .page_bytes = b->page_bytes,
        .head_offset = head * b->head_bytes,
        .out = b->s.attended + ((int64_t)run->row * c->heads + head * group) * d,
        .out_stride = (int64_t)c->heads * d,
        .parts = b->s.parts + (run->first_part + head * run->rows * run->segments) * part,
        .first_segment = run->first_segment,
        .segments = run->segments,
    };
}

/* The run's queries of one KV head, turned, to q [rows, group, head_dim]. */
static void turn_queries(const struct step *step, const mx_run *run, int64_t head, float *q) {
    const mx_cpu_backend *b = step->b;
    const mx_config *c = &b->weights->config;
    int64_t d = c->head_dim, group = c->heads / c->kv_heads;
    for (int64_t t = run->row; t < run->row + run->rows; t++, q += group * d) {
        memcpy(q, b->s.q + (t * c->heads + head * group) * d, (size_t)(group * d) * sizeof *q);
        b->kernels->rope(q, b->s.cos + t * (d / 2), b->s.sin + t * (d / 2), group, (int)d);
    }
}

static void attend(void *arg, int64_t begin, int64_t end, int thread) {
    const struct step *step = arg;
    const mx_cpu_backend *b = step->b;
    const mx_config *c = &b->weights->config;
    int64_t width = (int64_t)(c->heads / c->kv_heads) * c->head_dim;
    float *q = b->s.thread + thread * b->s.thread_floats;
    for (int64_t task = begin; task < end; task++) {
        int low = 0, high = step->runs - 1; /* the last run whose first task is <= task */
        while (low < high) {
            int middle = (low + high + 1) / 2;
            if (b->s.run[middle].first_task <= task)
                low = middle;
            else
                high = middle - 1;
        }
        const mx_run *run = &b->s.run[low];
        int64_t head = (task - run->first_task) / run->segments, segment = (task - run->first_task) % run->segments;
        mx_attention a = attention_of(step, run, head);
        turn_queries(step, run, head, q);
        a.q = q;
        a.q_stride = width;
        a.scratch = q + MX_RUN_ROWS * width;
        if (run->segments == 1)
            b->kernels->attention(&a);
        else
            b->kernels->attention_segment(&a, run->first_segment + segment);
    }
}

static void join(void *arg, int64_t begin, int64_t end, int thread) {
    const struct step *step = arg;
    const mx_cpu_backend *b = step->b;
    int64_t heads = b->weights->config.kv_heads;
    for (int64_t i = begin; i < end; i++) {
        mx_attention a = attention_of(step, &b->s.run[b->s.cut[i / heads]], i % heads);
        a.scratch = b->s.thread + thread * b->s.thread_floats;
        b->kernels->attention_join(&a);
    }
}

/* Tiles that a KV head's walk over the run's past takes; the segments they lie in. */
static int64_t measure_run(const struct step *step, mx_run *run) {
    const mx_config *c = &step->b->weights->config;
    int last = run->position + run->rows - 1, first = 0;
    if (c->sliding[step->index] && run->position >= c->window) first = run->position - c->window + 1;
    run->first_segment = first / MX_SEGMENT;
    run->segments = last / MX_SEGMENT - run->first_segment + 1;
    return last / MX_TILE - first / MX_TILE + 1;
}

/* A run whose walk is so long that it would keep one thread busy after the others are done is cut into segments, as far
 * as there is room for their parts. The result is the same bit for bit. Returns the number of tasks. */
static int64_t cut_runs(struct step *step) {
    mx_scratch *s = &step->b->s;
    int64_t heads = step->b->weights->config.kv_heads, all = 0, tasks = 0, parts = 0;
    for (int i = 0; i < step->runs; i++) all += s->run[i].rows * measure_run(step, &s->run[i]);
    step->cuts = 0;
    for (int i = 0; i < step->runs; i++) {
        mx_run *run = &s->run[i];
        int64_t work = run->rows * measure_run(step, run), room = run->rows * run->segments * heads;
        bool cut = work > MX_SEGMENT / MX_TILE && work * mx_pool_threads(step->b->pool) * FAIR_TASKS > all * heads &&
                   run->segments > 1 && parts + room <= s->parts_held;
        run->first_task = tasks;
        run->first_part = parts;
        if (cut) {
            s->cut[step->cuts++] = i;
            parts += room;
        } else
            run->segments = 1;
        tasks += heads * run->segments;
    }
    return tasks;
}

static void attend_all(struct step *step) {
    mx_pool *pool = step->b->pool;
    mx_parallel_for(pool, cut_runs(step), 1, attend, step);
    mx_parallel_for(pool, (int64_t)step->cuts * step->b->weights->config.kv_heads, 1, join, step);
}

/* Cuts the batch into runs of at most MX_RUN_ROWS rows, none of which spans a multiple of MX_RUN_ROWS. */
static void find_runs(struct step *step) {
    mx_run *run = step->b->s.run;
    const mx_batch *batch = step->batch;
    step->runs = 0;
    for (int t = 0; t < batch->rows; t++) {
        const mx_row *row = &batch->row[t];
        const mx_sequence_view *sequence = &batch->sequence[row->sequence];
        mx_run *last = step->runs ? &run[step->runs - 1] : NULL;
        if (last && last->sequence == sequence && last->position + last->rows == row->position &&
            row->position % MX_RUN_ROWS)
            last->rows++;
        else
            run[step->runs++] = (mx_run){.sequence = sequence, .row = t, .rows = 1, .position = row->position};
    }
}

/* Once the last layer's keys and values are stored, only rows whose logits are wanted go on: the others leave the
 * batch, and x, packed, cos and sin close up. */
static void keep_wanted(struct step *step, const mx_packings *packings) {
    mx_scratch *s = &step->b->s;
    size_t hidden = (size_t)step->b->weights->config.hidden, half = (size_t)step->b->weights->config.head_dim / 2;
    size_t kept = 0;
    for (size_t t = 0; t < (size_t)step->batch->rows; t++) {
        if (!step->batch->row[t].wanted) continue;
        memmove(s->x + kept * hidden, s->x + t * hidden, hidden * sizeof(float));
        for (int i = 0; i < packings->count; i++) {
            size_t row = (size_t)packings->product[i]->packed_bytes((int64_t)hidden);
            memmove(s->packed[i] + kept * row, s->packed[i] + t * row, row);
        }
        memmove(s->cos + kept * half, s->cos + t * half, half * sizeof(float));
        memmove(s->sin + kept * half, s->sin + t * half, half * sizeof(float));
        s->kept[kept++] = step->batch->row[t];
    }
    step->kept = *step->batch;
    step->kept.row = s->kept;
    step->kept.rows = (int)kept;
    step->batch = &step->kept;
    find_runs(step);
}

/* x += W_o attention(norm(x)) + b_o. `shrink`: only wanted rows go on behind the keys and values. */
static void attention(struct step *step, bool shrink) {
    mx_cpu_backend *b = step->b;
    mx_scratch *s = &b->s;
    const mx_layer *l = step->layer;
    const mx_config *c = &b->weights->config;
    int rows = step->batch->rows;
    mx_packings in = {0}, out = {0};
    s->job[0] = dense(b, &in, MX_CLASS_QKV, &l->k, l->k_bias, rows, s->k);
    s->job[1] = dense(b, &in, MX_CLASS_QKV, &l->v, l->v_bias, rows, s->v);
    s->job[2] = dense(b, &in, MX_CLASS_QKV, &l->q, l->q_bias, rows, s->q);
    norm(b, &in, s->x, l->attn_norm, rows);
    observe_norm(b, MX_CLASS_QKV, step->index, s->x, l->attn_norm, rows);
    run_products(b, shrink ? 2 : 3);
    mx_parallel_for(b->pool, rows, ROW_GRAIN, store_keys, step);
    if (shrink) {
        keep_wanted(step, &in);
        rows = step->batch->rows;
        if (!rows) return;
        s->job[0] = dense(b, &in, MX_CLASS_QKV, &l->q, l->q_bias, rows, s->q);
        run_products(b, 1);
    }
    attend_all(step);
    observe(b, MX_CLASS_O, step->index, s->attended, rows, (int64_t)c->heads * c->head_dim);
    s->job[0] = dense(b, &out, MX_CLASS_O, &l->o, l->o_bias, rows, s->x);
    s->job[0].m.epilogue = MX_ADD;
    pack(b, s->job[0].product, s->packed[0], s->attended, rows, (int64_t)c->heads * c->head_dim);
    run_products(b, 1);
}

/* ---- mixture of experts ---------------------------------------------------------------------------------- */

static void route_rows(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct step *step = arg;
    const mx_cpu_backend *b = step->b;
    const mx_config *c = &b->weights->config;
    for (int64_t t = begin; t < end; t++)
        b->kernels->router_topk(b->s.router + t * c->experts, c->experts, c->top_k, b->s.expert + t * c->top_k,
                                b->s.weight + t * c->top_k);
}

/* Sorts the chosen (row, expert) pairs by expert, rows ascending within one. */
static void group_by_expert(mx_cpu_backend *b, int rows) {
    const mx_config *c = &b->weights->config;
    mx_scratch *s = &b->s;
    int pairs = rows * c->top_k;
    memset(s->first, 0, ((size_t)c->experts + 1) * sizeof *s->first);
    for (int i = 0; i < pairs; i++) s->first[s->expert[i] + 1]++;
    for (int e = 0; e < c->experts; e++) s->first[e + 1] += s->first[e];
    for (int i = 0; i < pairs; i++) { /* first[e] runs ahead to first[e + 1] ... */
        int slot = s->first[s->expert[i]]++;
        s->slot_row[slot] = i / c->top_k;
        s->slot_weight[slot] = s->weight[i];
    }
    for (int e = c->experts; e > 0; e--) s->first[e] = s->first[e - 1]; /* ... and is set back */
    s->first[0] = 0;
    memset(s->row_slots, 0, (size_t)rows * sizeof *s->row_slots);
    for (int slot = 0; slot < pairs; slot++) {
        int row = s->slot_row[slot];
        s->row_slot[row * c->top_k + s->row_slots[row]++] = slot;
    }
}

/* The product of each expert that was chosen with the slots that chose it. */
static void run_experts(mx_cpu_backend *b, const mx_experts *experts, const mx_job *common, bool rows_are_slots) {
    const mx_config *c = &b->weights->config;
    mx_scratch *s = &b->s;
    const int64_t bias_bytes =
        experts->bias_stride ? experts->bias_stride : mx_columns_bytes(experts->bias_format, experts->matrix.rows);
    int jobs = 0;
    for (int e = 0; e < c->experts; e++) {
        int first = s->first[e], count = s->first[e + 1] - first;
        if (!count) continue;
        mx_job *job = &s->job[jobs++];
        *job = *common;
        mx_matmul *m = &job->m;
        m->w = experts->matrix;
        m->w.data += e * experts->data_stride;
        if (m->w.scales) m->w.scales += e * experts->scale_stride;
        if (m->w.zeros) m->w.zeros += e * experts->zero_stride;
        if (m->w.post) m->w.post += e * experts->post_stride;
        if (experts->bias) m->bias = experts->bias + e * bias_bytes;
        m->bias_format = experts->bias_format;
        m->x_stride = job->product->packed_bytes(m->w.cols);
        m->rows = count;
        m->y += first * m->y_stride;
        if (rows_are_slots) {
            m->x += first * m->x_stride;
            m->factor = s->slot_weight + first;
        } else
            m->x_row = s->slot_row + first;
    }
    run_products(b, jobs);
}

/* x += sum of a row's experts, in ascending order. */
static void add_experts(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct step *step = arg;
    const mx_cpu_backend *b = step->b;
    const mx_config *c = &b->weights->config;
    for (int64_t t = begin; t < end; t++) {
        const int32_t *slot = b->s.row_slot + t * c->top_k;
        float *sum = b->s.expert_out + (int64_t)slot[0] * c->hidden;
        for (int i = 1; i < c->top_k; i++)
            b->kernels->add(sum, b->s.expert_out + (int64_t)slot[i] * c->hidden, c->hidden);
        b->kernels->add(b->s.x + t * c->hidden, sum, c->hidden);
    }
}

/* x += sum_e w_e (W2_e swiglu(W1_e t + b1_e) + b2_e),  t = norm(x) */
static void experts(struct step *step) {
    mx_cpu_backend *b = step->b;
    mx_scratch *s = &b->s;
    const mx_layer *l = step->layer;
    const mx_config *c = &b->weights->config;
    int rows = step->batch->rows;
    mx_packings in = {0};
    const mx_product *gate_up = mx_cpu_product(b, MX_CLASS_GATE_UP, l->gate_up.matrix.format, l->gate_up.bf16_safe);
    const mx_product *down = mx_cpu_product(b, MX_CLASS_DOWN, l->down.matrix.format, l->down.bf16_safe);
    s->job[0] = dense(b, &in, MX_CLASS_ROUTER, &l->router, l->router_bias, rows, s->router);
    const uint8_t *packed = packed_for(b, &in, gate_up);
    norm(b, &in, s->x, l->mlp_norm, rows);
    const float *seen = observe_norm(b, MX_CLASS_ROUTER, step->index, s->x, l->mlp_norm, rows);
    run_products(b, 1);
    mx_parallel_for(b->pool, rows, 64, route_rows, step);
    group_by_expert(b, rows);
    observe_experts(b, MX_CLASS_GATE_UP, step->index, seen, c->hidden, false);
    const bool apart = l->up.matrix.rows > 0; /* gate first, then up, which takes it from s->act */
    mx_job up = {.product = gate_up,
                 .m = {.x = packed,
                       .epilogue = apart ? MX_STORE : MX_SWIGLU,
                       .limit = c->swiglu_limit,
                       .alpha = c->swiglu_alpha,
                       .y = s->act,
                       .y_stride = c->intermediate}};
    run_experts(b, &l->gate_up, &up, false);
    up.product = apart ? mx_cpu_product(b, MX_CLASS_GATE_UP, l->up.matrix.format, l->up.bf16_safe) : gate_up;
    up.m.epilogue = MX_GATED;
    if (apart) run_experts(b, &l->up, &up, false);
    observe_experts(b, MX_CLASS_DOWN, step->index, s->act, c->intermediate, true);
    pack(b, down, s->act_packed, s->act, (int64_t)rows * c->top_k, c->intermediate);
    run_experts(b, &l->down,
                &(mx_job){.product = down,
                          .m = {.x = s->act_packed, .epilogue = MX_SCALE, .y = s->expert_out, .y_stride = c->hidden}},
                true);
    mx_parallel_for(b->pool, rows, ROW_GRAIN, add_experts, step);
}

/* ---- the step -------------------------------------------------------------------------------------------- */

/* For `verify`: the residual stream, and the routing of the layer just computed. */
static void record(const struct step *step, int layers_done) {
    const mx_cpu_backend *b = step->b;
    const mx_config *c = &b->weights->config;
    const mx_batch *batch = step->batch;
    size_t hidden = (size_t)batch->rows * (size_t)c->hidden, pairs = (size_t)batch->rows * (size_t)c->top_k;
    if (batch->residual) memcpy(batch->residual + (size_t)layers_done * hidden, b->s.x, hidden * sizeof(float));
    if (!layers_done) return;
    if (batch->experts)
        memcpy(batch->experts + (size_t)(layers_done - 1) * pairs, b->s.expert, pairs * sizeof(int32_t));
    if (batch->expert_weights)
        memcpy(batch->expert_weights + (size_t)(layers_done - 1) * pairs, b->s.weight, pairs * sizeof(float));
}

/* logits = W_unembed norm(x), of the wanted rows only. */
static void logits(mx_cpu_backend *b, const mx_batch *batch) {
    const mx_weights *w = b->weights;
    mx_scratch *s = &b->s;
    int hidden = w->config.hidden;
    observe_norm(b, MX_CLASS_LM_HEAD, w->config.layers, s->x, w->norm, batch->rows);
    for (int t = 0; t < batch->rows; t++)
        if (batch->row[t].wanted)
            memcpy(s->wanted + (int64_t)b->wanted++ * hidden, s->x + (int64_t)t * hidden,
                   (size_t)hidden * sizeof(float));
    if (!b->wanted) return;
    mx_packings in = {0};
    s->job[0] = dense(b, &in, MX_CLASS_LM_HEAD, &w->lm_head, NULL, b->wanted, s->logits);
    norm(b, &in, s->wanted, w->norm, b->wanted);
    run_products(b, 1);
}

void mx_gpt_oss_step(mx_cpu_backend *b, const mx_batch *batch) {
    struct step step = {.b = b, .batch = batch};
    const int layers = b->weights->config.layers, last = batch->last ? batch->last : layers;
    int wanted = 0;
    for (int t = 0; t < batch->rows; t++) wanted += batch->row[t].wanted;
    bool recording = batch->residual || batch->experts || batch->expert_weights || batch->after || b->options.observer;
    mx_parallel_for(b->pool, batch->rows, ROW_GRAIN, begin_rows, &step);
    find_runs(&step);
    if (!batch->first) record(&step, 0);
    for (int i = batch->first; i < last; i++) {
        step.layer = &b->weights->layer[i];
        step.index = i;
        attention(&step, i + 1 == layers && wanted < batch->rows && !recording);
        if (step.batch->rows) experts(&step);
        record(&step, i + 1);
    }
    if (batch->after)
        memcpy(batch->after, b->s.x, (size_t)batch->rows * (size_t)b->weights->config.hidden * sizeof *batch->after);
    b->wanted = 0;
    if (last == layers) logits(b, step.batch);
}
