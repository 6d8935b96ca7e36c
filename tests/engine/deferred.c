#include "deferred.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cpu.h"

enum { OPS = 1 << 16, KEPT = 4, UNFETCHED = 2 };
static const size_t SLAB = (size_t)1 << 28; /* touched as far as it is used */

/* What one queued call was given. */
typedef struct slab {
    char *memory;
    size_t used;
} slab;

typedef enum op_kind { STEP, DRAW, CLEAR, COPY, WRITE } op_kind;
typedef struct op {
    op_kind kind;
    int32_t a, b; /* pages, or which of `step` or `draw` */
    const void *content;
} op;

typedef struct queued_step {
    slab slab;
    mx_batch batch;
    double queued;
} queued_step;

typedef struct queued_draw {
    slab slab;
    mx_draw *draw;
    int count;
    mx_status status;
    mx_error error;
    double done;
} queued_draw;

typedef struct deferred {
    mx_backend base;
    mx_backend *inner;
    const mx_config *config;
    op *op; /* [OPS] from first on, in a ring */
    int64_t first, end;
    queued_step step[KEPT];
    queued_draw draw[KEPT];
    int64_t steps, draws, drawn, fetched; /* queued, queued, done, fetched */
    int steps_waiting;
    slab written;     /* what is to be written to pages */
    int writes;       /* of them, not done */
    mx_status status; /* of the last step */
    mx_error error;
    double done;       /* mx_seconds when that is over */
    int unknown_limit; /* draws of the last `draw` */
    mx_backend_ops ops;
    deferred_device device;
} deferred;

static deferred *self(mx_backend *b) {
    return (deferred *)b;
}

/* ---- copies -------------------------------------------------------------------------------------------------------
 */
static void slab_begin(slab *s) {
    if (!s->memory)
        s->memory = mmap(NULL, SLAB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert(s->memory != MAP_FAILED);
    s->used = 0;
}

static void *slab_copy(slab *s, const void *from, size_t bytes) {
    void *to = s->memory + s->used;
    s->used += (bytes + 63) / 64 * 64;
    assert(s->used <= SLAB);
    if (bytes && from) memcpy(to, from, bytes);
    return to;
}

/* ---- doing --------------------------------------------------------------------------------------------------------
 */
static int32_t token_of(deferred *d, int32_t token) {
    if (token >= 0) return token;
    const queued_draw *q = &d->draw[(d->drawn - 1) % KEPT];
    const int i = -1 - token;
    assert(d->drawn > 0 && i < q->count);
    d->device.drawn_rows++;
    d->device.lost_rows += q->draw[i].status != MX_OK;
    return q->draw[i].status ? 0 : q->draw[i].sampled.token;
}

static void do_step(deferred *d, queued_step *q) {
    mx_row *row = (mx_row *)q->batch.row; /* the copy */
    for (int i = 0; i < q->batch.rows; i++) row[i].token = token_of(d, row[i].token);
    d->status = d->inner->ops->step(d->inner, &q->batch, &d->error);
    d->done =
        (q->queued > d->done ? q->queued : d->done) + d->device.step_seconds + d->device.row_seconds * q->batch.rows;
    d->device.steps++;
    d->steps_waiting--;
}

static void do_draw(deferred *d, queued_draw *q) {
    q->status = d->status;
    q->error = d->error;
    for (int i = 0; i < q->count; i++) {
        mx_draw *draw = &q->draw[i];
        mx_error error;
        draw->status = d->status;
        if (d->status) continue;
        draw->status = d->inner->ops->sample(d->inner, draw->wanted, &draw->spec, &draw->sampled, &error);
        if (!draw->status || q->status) continue;
        q->status = draw->status;
        q->error = error;
    }
    q->done = d->done;
    d->drawn++;
    d->device.draws++;
}

static void do_one(deferred *d) {
    const op o = d->op[d->first++ % OPS];
    const mx_backend_ops *ops = d->inner->ops;
    switch (o.kind) {
    case STEP:
        do_step(d, &d->step[o.a]);
        break;
    case DRAW:
        do_draw(d, &d->draw[o.a]);
        break;
    case CLEAR:
        ops->page_clear(d->inner, o.a);
        break;
    case COPY:
        ops->page_copy(d->inner, o.a, o.b);
        break;
    case WRITE:
        d->writes--;
        if (ops->page_write(d->inner, o.a, o.content, NULL)) abort(); /* who asked was told that it is written */
        break;
    }
}

static void do_all(deferred *d) {
    while (d->first < d->end) do_one(d);
    if (d->device.wait_until) d->device.wait_until(d->done);
}

static void queue(deferred *d, op_kind kind, int32_t a, int32_t b) {
    if (d->end - d->first == OPS) do_one(d);
    d->op[d->end++ % OPS] = (op){.kind = kind, .a = a, .b = b};
}

/* ---- the backend --------------------------------------------------------------------------------------------------
 */
static void destroy(mx_backend *b) {
    deferred *d = self(b);
    do_all(d);
    for (int i = 0; i < KEPT; i++) {
        if (d->step[i].slab.memory) munmap(d->step[i].slab.memory, SLAB);
        if (d->draw[i].slab.memory) munmap(d->draw[i].slab.memory, SLAB);
    }
    if (d->written.memory) munmap(d->written.memory, SLAB);
    d->inner->ops->destroy(d->inner);
    free(d->op);
    free(d);
}

static int64_t page_bytes(const mx_backend *b) {
    const mx_backend *inner = ((const deferred *)b)->inner;
    return inner->ops->page_bytes(inner);
}

static void page_clear(mx_backend *b, int32_t page) {
    queue(self(b), CLEAR, page, 0);
}

static void page_copy(mx_backend *b, int32_t to, int32_t from) {
    queue(self(b), COPY, to, from);
}

static mx_status page_read(mx_backend *b, int32_t page, void *out, mx_error *error) {
    deferred *d = self(b);
    while (d->writes) do_one(d); /* nor does it wait for steps whose draws were not fetched */
    return d->inner->ops->page_read(d->inner, page, out, error);
}

static mx_status page_write(mx_backend *b, int32_t page, const void *in, mx_error *error) {
    (void)error;
    deferred *d = self(b);
    if (!d->writes++) slab_begin(&d->written);
    const void *content = slab_copy(&d->written, in, (size_t)page_bytes(b));
    queue(d, WRITE, page, 0);
    d->op[(d->end - 1) % OPS].content = content;
    return MX_OK;
}

static bool counted_down(int *left) {
    return *left > 0 && --*left == 0;
}

static mx_status step(mx_backend *b, const mx_batch *batch, mx_error *error) {
    deferred *d = self(b);
    if (counted_down(&d->device.fail_queue_in)) return mx_fail(error, MX_IO, "the fake device takes no step");
    if (d->steps_waiting == KEPT - 1) do_all(d);
    const int which = (int)(d->steps++ % KEPT);
    queued_step *q = &d->step[which];
    slab_begin(&q->slab);
    q->batch = *batch;
    q->queued = mx_seconds();
    q->batch.row = slab_copy(&q->slab, batch->row, sizeof *batch->row * (size_t)batch->rows);
    mx_sequence_view *view = slab_copy(&q->slab, batch->sequence, sizeof *batch->sequence * (size_t)batch->sequences);
    for (int i = 0; i < batch->sequences; i++)
        view[i].table =
            slab_copy(&q->slab, view[i].table, sizeof *view[i].table * (size_t)(d->config->layers * view[i].stride));
    q->batch.sequence = view;
    for (int i = 0; i < batch->rows; i++) {
        assert(batch->row[i].token >= -d->unknown_limit);
        assert(batch->row[i].token < d->config->vocab);
    }
    queue(d, STEP, which, 0);
    if (++d->steps_waiting > d->device.under_way) d->device.under_way = d->steps_waiting;
    return MX_OK;
}

static mx_status draw(mx_backend *b, const mx_draw *draws, int count, mx_error *error) {
    deferred *d = self(b);
    if (counted_down(&d->device.fail_draw_in)) return mx_fail(error, MX_IO, "the fake device draws nothing");
    assert(d->draws - d->fetched < UNFETCHED);
    const int which = (int)(d->draws++ % KEPT);
    queued_draw *q = &d->draw[which];
    slab_begin(&q->slab);
    q->count = d->unknown_limit = count;
    q->draw = slab_copy(&q->slab, draws, sizeof *draws * (size_t)count);
    for (int i = 0; i < count; i++) {
        mx_sample_spec *s = &q->draw[i].spec;
        const size_t mask = (size_t)(d->config->vocab + 31) / 32 * sizeof *s->mask;
        q->draw[i].sampled = (mx_sampled){-12345, NAN};
        if (s->bias_count) s->bias = slab_copy(&q->slab, s->bias, sizeof *s->bias * (size_t)s->bias_count);
        if (s->seen_count) s->seen = slab_copy(&q->slab, s->seen, sizeof *s->seen * (size_t)s->seen_count);
        if (s->generated_count)
            s->generated = slab_copy(&q->slab, s->generated, sizeof *s->generated * (size_t)s->generated_count);
        if (s->mask) s->mask = slab_copy(&q->slab, s->mask, mask);
    }
    queue(d, DRAW, which, 0);
    return MX_OK;
}

static mx_status drawn(mx_backend *b, mx_draw *draws, int count, mx_error *error) {
    deferred *d = self(b);
    assert(d->fetched < d->draws);
    const queued_draw *q = &d->draw[d->fetched % KEPT];
    assert(count == q->count);
    while (d->drawn <= d->fetched) do_one(d);
    d->fetched++;
    if (d->device.wait_until) d->device.wait_until(q->done);
    for (int i = 0; i < count; i++) {
        draws[i].sampled = q->draw[i].sampled;
        draws[i].status = q->draw[i].status;
    }
    if (q->status) *error = q->error;
    return q->status;
}

static mx_status sample(mx_backend *b, int wanted, const mx_sample_spec *spec, mx_sampled *out, mx_error *error) {
    deferred *d = self(b);
    do_all(d);
    if (d->status && error) *error = d->error;
    return d->status ? d->status : d->inner->ops->sample(d->inner, wanted, spec, out, error);
}

static mx_status top(mx_backend *b, int wanted, int k, mx_alternative *out, int32_t token, float *logprob,
                     mx_error *error) {
    deferred *d = self(b);
    do_all(d);
    if (d->status && error) *error = d->error;
    return d->status ? d->status : d->inner->ops->top(d->inner, wanted, k, out, token, logprob, error);
}

static const float *logits(mx_backend *b, int wanted) {
    deferred *d = self(b);
    do_all(d);
    return d->status ? NULL : d->inner->ops->logits(d->inner, wanted);
}

mx_backend *deferred_create(mx_backend *inner, const mx_config *config) {
    deferred *d = calloc(1, sizeof *d);
    assert(d);
    d->op = malloc(OPS * sizeof *d->op);
    assert(d->op);
    d->inner = inner;
    d->config = config;
    d->ops = (mx_backend_ops){.name = "deferred",
                              .destroy = destroy,
                              .page_bytes = page_bytes,
                              .page_clear = page_clear,
                              .page_copy = page_copy,
                              .page_read = page_read,
                              .page_write = page_write,
                              .step = step,
                              .sample = sample,
                              .top = top,
                              .logits = logits,
                              .draw = draw,
                              .drawn = drawn};
    d->base.ops = &d->ops;
    return &d->base;
}

deferred_device *deferred_device_of(mx_backend *b) {
    return &self(b)->device;
}

const mx_backend *deferred_inner(const mx_backend *b) {
    return ((const deferred *)b)->inner;
}
