/* What the device needs to know of a step, in one block that travels with one copy: tokens, positions and page tables
 * of the rows, which of them are attended how, whose logits are wanted, and behind them what changed in page tables.
 * The block is filled in pinned memory, in two slots in turn, so that the next step can be prepared while this one's
 * copy waits for its place in the stream; on the device there is one. Pages that are to be cleared before the step are
 * listed there too.
 *
 * And what follows from the batch for how it is computed: mx_cuda_plan. */
#include <string.h>

#include "model/batch.h"
#include "model/cuda/backend_private.h"

enum {
    SHORT_RUN = 16, /* fewer rows of one sequence are attended each by itself: all spans of the past at once */
    ALIGN = 16,     /* of the block's arrays, in numbers */
    ARRAYS = 9,
};

int64_t mx_cuda_input_bytes(const mx_cuda_backend *b) {
    const int64_t numbers = 6 * (int64_t)b->rows + 3 * (int64_t)b->wanted_rows; /* a run is two numbers */
    return (numbers + MX_CUDA_CLEARS + ARRAYS * ALIGN) * (int64_t)sizeof(int32_t);
}

/* ---- the block --------------------------------------------------------------------------------------------------- */

struct block {
    int32_t *host;
    const int32_t *device;
    int64_t count;                      /* numbers taken */
    int32_t *table, *want, *want_table; /* arrays in it */
};

static int32_t *put(struct block *block, int64_t count, const int32_t **device) {
    int32_t *host = block->host + block->count;
    *device = block->device + block->count;
    block->count += (count + ALIGN - 1) / ALIGN * ALIGN;
    return host;
}

/* ---- how the batch is computed ----------------------------------------------------------------------------------- */

static int spans_at(int position) {
    return position / MX_CUDA_SPAN + 1;
}

static int larger(int a, int b) {
    return a > b ? a : b;
}

static mx_cuda_plan plan_of(const mx_cuda_backend *b, const mx_batch *batch) {
    const int run_rows = mx_cuda_run_rows(b->config.heads / b->config.kv_heads);
    mx_cuda_plan p = {.rows = batch->rows, .bucket = -1};
    for (int t = 0, rows; t < batch->rows; t += rows) {
        rows = mx_rows_run(batch, t);
        if (rows < SHORT_RUN) {
            p.singles += rows;
            p.spans = larger(p.spans, spans_at(batch->row[t + rows - 1].position));
        } else
            p.runs += (rows + run_rows - 1) / run_rows;
    }
    for (int t = 0; t < batch->rows; t++) {
        if (!batch->row[t].wanted) continue;
        p.wanted++;
        p.kept_spans = larger(p.kept_spans, spans_at(batch->row[t].position));
    }
    if (batch->residual || batch->experts || batch->expert_weights) p.recorded = batch;
    p.listed = p.runs > 0;
    p.keep = p.wanted < p.rows && !p.recorded;
    if (!b->graphs || p.recorded || p.runs || p.wanted < p.rows || p.rows > MX_CUDA_GRAPH_ROWS) return p;

    p.bucket = mx_cuda_bucket(batch->rows, &p.rows);
    p.wanted = p.singles = p.rows;
    for (p.span_bucket = 0; 1 << p.span_bucket < p.spans;) p.span_bucket++;
    p.spans = 1 << p.span_bucket;
    return p;
}

/* ---- filling ----------------------------------------------------------------------------------------------------- */

/* Rows that a graph has and the batch has not are holes. */
static void fill_rows(const mx_batch *batch, mx_cuda_plan *p, struct block *block) {
    int32_t *token = put(block, p->rows, &p->token), *position = put(block, p->rows, &p->position);
    block->table = put(block, p->rows, &p->table);
    for (int t = 0; t < p->rows; t++) {
        const bool hole = t >= batch->rows;
        token[t] = hole ? 0 : batch->row[t].token;
        position[t] = hole ? -1 : batch->row[t].position;
    }
    if (p->wanted == p->rows) return;
    int32_t *want_position;
    block->want = put(block, p->wanted, &p->want);
    want_position = put(block, p->wanted, &p->want_position);
    block->want_table = put(block, p->wanted, &p->want_table);
    for (int t = 0, n = 0; t < batch->rows; t++) {
        if (!batch->row[t].wanted) continue;
        block->want[n] = t;
        want_position[n++] = position[t];
    }
}

/* Rows that are attended by themselves, and runs, none longer than the kernel takes. */
static void fill_attention(const mx_cuda_backend *b, const mx_batch *batch, mx_cuda_plan *p, struct block *block) {
    if (!p->listed) return;
    const int run_rows = mx_cuda_run_rows(b->config.heads / b->config.kv_heads);
    const int32_t *device;
    int32_t *single = put(block, p->singles, &p->single);
    mx_cuda_run *run = (mx_cuda_run *)(void *)put(block, 2 * (int64_t)p->runs, &device);
    p->run = (const mx_cuda_run *)(const void *)device;
    for (int t = 0, rows; t < batch->rows; t += rows) {
        rows = mx_rows_run(batch, t);
        for (int i = t; rows < SHORT_RUN && i < t + rows; i++) *single++ = i;
        for (int i = t; rows >= SHORT_RUN && i < t + rows; i += run_rows)
            *run++ = (mx_cuda_run){i, t + rows - i < run_rows ? t + rows - i : run_rows};
    }
}

static const int32_t *fill_clears(const mx_cuda_backend *b, struct block *block) {
    const int32_t *device;
    memcpy(put(block, b->clears, &device), b->cleared, (size_t)b->clears * sizeof *b->cleared);
    return device;
}

/* Every sequence's page table gets a place on the device, and there becomes what the batch says. */
static mx_status fill_tables(mx_cuda_backend *b, const mx_batch *batch, const mx_cuda_plan *p, struct block *block,
                             mx_error *error) {
    int runs = 0;
    b->change = (mx_cuda_entry *)(void *)(block->host + block->count);
    for (int t = 0, rows; t < batch->rows; t += rows) {
        const mx_row *first = &batch->row[t];
        const mx_sequence_view *view = &batch->sequence[first->sequence];
        rows = mx_rows_run(batch, t);
        if (runs++ == b->sequences)
            return mx_fail(error, MX_INVALID_ARGUMENT, "batch: more than %d sequences, as many as rows may be wanted",
                           b->sequences);
        const int place = mx_cuda_table_place(b, view);
        mx_status status = mx_cuda_table_update(b, place, view, first->position, first[rows - 1].position, error);
        if (status) return status;
        for (int i = t; i < t + rows; i++) block->table[i] = place;
    }
    for (int t = batch->rows; t < p->rows; t++) block->table[t] = 0;
    for (int n = 0; p->wanted < p->rows && n < p->wanted; n++) block->want_table[n] = block->table[block->want[n]];
    return MX_OK;
}

/* The block's copy, and the changes of tables and the pages to clear that came with it. */
static mx_status queue(mx_cuda_backend *b, const struct block *block, const int32_t *cleared, mx_error *error) {
    const size_t arrays = (size_t)block->count * sizeof *block->host;
    const mx_cuda_entry *changes = (const mx_cuda_entry *)(const void *)(block->device + block->count);
    mx_status status =
        mx_gpu_copy(b->s.input, block->host, arrays + (size_t)b->changes * sizeof *changes, b->stream, error);
    if (!status && b->changes) mx_cuda_tables_queue(b, changes);
    if (!status && b->clears) mx_cuda_clear_pages(b->pages, b->page_bytes, cleared, b->clears, b->stream);
    if (!status) status = mx_gpu_check("page tables", error);
    b->clears = 0;
    if (!status) status = mx_gpu_event_record(b->input_copied[b->input_at], b->stream, error);
    if (!status) b->input_at = (b->input_at + 1) % MX_CUDA_SLOTS;
    return status;
}

mx_status mx_cuda_input(mx_cuda_backend *b, const mx_batch *batch, mx_cuda_plan *plan, mx_error *error) {
    if (batch->first || batch->last)
        return mx_fail(error, MX_UNSUPPORTED, "batch: a part of the layers can be run on the CPU only");
    mx_status status = mx_rows_check(&b->config, batch, b->options.max_rows, b->options.max_wanted, b->drawn, error);
    if (!status) status = mx_cuda_note(b, mx_gpu_event_wait(b->input_copied[b->input_at], error), error);
    if (status) return status;
    struct block block = {.host = (int32_t *)(void *)b->input[b->input_at],
                          .device = (const int32_t *)(const void *)b->s.input};
    b->step++;
    b->changes = 0;
    *plan = plan_of(b, batch);
    fill_rows(batch, plan, &block);
    fill_attention(b, batch, plan, &block);
    const int32_t *cleared = fill_clears(b, &block);
    status = fill_tables(b, batch, plan, &block, error);
    return status ? status : mx_cuda_note(b, queue(b, &block, cleared, error), error);
}
