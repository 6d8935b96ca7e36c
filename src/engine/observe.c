/* Logits of prompts, to those who want to see them (mx_request.prompt_logits), by all threads. */
#include <stdlib.h>
#include <string.h>

#include "engine/engine_state.h"

bool mx_observe_prepare(mx_engine *e) {
    if (e->observed_copy || !e->parts.backend->ops->draw) return true; /* they are in the host's memory already */
    e->observed_copy = malloc(sizeof(float) * MX_OBSERVED_COPIES * (size_t)e->parts.config->vocab);
    return e->observed_copy != NULL;
}

/* Lists the rows to be shown; returns how many. */
static int list_rows(mx_engine *e, mx_task **tasks, int count) {
    int n = 0;
    for (int i = 0; i < count; i++) {
        mx_task *task = tasks[i];
        const int64_t first = task->sequence.count, end = first + task->rows, from = mx_task_wanted_from(task);
        const int64_t wanted_from = from > first ? from : first;
        int64_t position = task->observed > wanted_from ? task->observed : wanted_from;
        for (; position < end && position < task->request.prompt_count; position++)
            e->observed[n++] = (mx_observed_row){task, position, task->first_wanted + (int)(position - wanted_from)};
    }
    return n;
}

struct shown {
    const mx_engine *e;
    const mx_observed_row *row;
    const float *copy; /* [rows][vocab]; NULL: the backend has them */
};

static void show_range(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const struct shown *s = arg;
    const int32_t vocab = s->e->parts.config->vocab;
    mx_backend *backend = s->e->parts.backend;
    for (int64_t i = begin; i < end; i++) {
        const mx_request *r = &s->row[i].task->request;
        const float *logits = s->copy ? s->copy + i * vocab : backend->ops->logits(backend, s->row[i].wanted);
        r->prompt_logits(r->user, s->row[i].position, logits, vocab);
    }
}

static void show(const mx_engine *e, const mx_observed_row *row, const float *copy, int count) {
    struct shown s = {e, row, copy};
    mx_pool *pool = e->parts.pool;
    if (pool && count > 1) {
        mx_pool_enter(pool);
        mx_parallel_for(pool, count, 1, show_range, &s);
        mx_pool_leave(pool);
    } else {
        show_range(&s, 0, count, 0);
    }
}

static mx_status fetch(mx_engine *e, const mx_observed_row *row, int count, mx_error *error) {
    mx_backend *backend = e->parts.backend;
    const size_t vocab = (size_t)e->parts.config->vocab;
    for (int i = 0; i < count; i++) {
        const float *logits = backend->ops->logits(backend, row[i].wanted);
        if (!logits)
            return mx_fail(error, MX_IO, "the logits of position %lld cannot be fetched from the device",
                           (long long)row[i].position);
        memcpy(e->observed_copy + (size_t)i * vocab, logits, vocab * sizeof(float));
    }
    return MX_OK;
}

mx_status mx_observe(mx_engine *e, mx_task **tasks, int count, mx_error *error) {
    const int rows = list_rows(e, tasks, count);
    if (!e->parts.backend->ops->draw && rows) show(e, e->observed, NULL, rows);
    for (int i = 0; i < rows && e->parts.backend->ops->draw; i += MX_OBSERVED_COPIES) {
        const int some = rows - i < MX_OBSERVED_COPIES ? rows - i : MX_OBSERVED_COPIES;
        const mx_status status = fetch(e, e->observed + i, some, error);
        if (status) return status;
        show(e, e->observed + i, e->observed_copy, some);
    }
    return MX_OK;
}
