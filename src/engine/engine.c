#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cpu.h"
#include "engine/engine_internal.h"
#include "engine/task.h"

/* Requests wait in a list in the order in which they came; the first that has not ended is the one that runs. A task
 * stays in the list until its last event was polled.
 *
 * The lock guards the list, `events` and the fields of tasks that task.h names. It is not held during a forward pass
 * nor while a constraint is called: the running task and the KV cache belong to the thread that steps. */
struct mx_engine {
    mx_engine_parts parts;
    mx_page_pool pages;
    mx_kv_cache cache;
    mx_row *row;    /* [batch_tokens] */
    uint32_t *mask; /* [vocab / 32, rounded up] */

    pthread_mutex_t lock;
    mx_task *first, *last;
    mx_handle newest;
    int64_t events; /* that wait for mx_poll */
    bool stepping, cancel_asked;
    uint64_t kv_bytes_used;
    int event_fd; /* readable while events > 0 */
};

enum { REJECTIONS = 64 }; /* tokens that a constraint may refuse for one position */

/* ---- creation -----------------------------------------------------------------------------------------------------
 */
mx_status mx_engine_assemble(const mx_engine_parts *parts, mx_engine **out, mx_error *error) {
    mx_engine *e = calloc(1, sizeof *e);
    if (!e) return mx_fail(error, MX_NO_MEMORY, "no memory for an engine");
    e->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    e->row = calloc((size_t)parts->batch_tokens, sizeof *e->row);
    e->mask = malloc(((size_t)parts->config->vocab + 31) / 32 * sizeof *e->mask);
    pthread_mutex_init(&e->lock, NULL);
    mx_status status = MX_OK;
    if (e->event_fd < 0) status = mx_fail(error, MX_IO, "no eventfd: %s", strerror(errno));
    if (!status && (!e->row || !e->mask)) status = mx_fail(error, MX_NO_MEMORY, "no memory for an engine");
    if (!status) status = mx_page_pool_init(&e->pages, parts->backend, parts->plan.pages, error);
    if (!status) status = mx_kv_cache_init(&e->cache, parts->config, &e->pages, parts->plan.context, error);
    if (status) {
        mx_engine_destroy(e);
        return status;
    }
    e->parts = *parts;
    e->parts.info.context = parts->plan.context;
    e->parts.info.vocab = parts->config->vocab;
    e->parts.info.kv_bytes = (uint64_t)(parts->plan.pages * parts->backend->ops->page_bytes(parts->backend));
    *out = e;
    return MX_OK;
}

static void end_constraint(mx_constraint *constraint) {
    if (constraint->accept && constraint->destroy) constraint->destroy(constraint->user);
    *constraint = (mx_constraint){0};
}

void mx_engine_destroy(mx_engine *e) {
    if (!e) return;
    for (mx_task *task = e->first, *next; task; task = next) {
        next = task->next;
        end_constraint(&task->request.constraint);
        mx_task_free(task);
    }
    mx_kv_cache_free(&e->cache);
    mx_page_pool_free(&e->pages);
    if (e->parts.backend) e->parts.backend->ops->destroy(e->parts.backend);
    mx_pool_destroy(e->parts.pool);
    if (e->event_fd >= 0) close(e->event_fd);
    pthread_mutex_destroy(&e->lock);
    free(e->row);
    free(e->mask);
    free(e);
}

/* ---- calls from any thread ----------------------------------------------------------------------------------------
 */
mx_status mx_submit(mx_engine *e, const mx_request *request, mx_handle *out, mx_error *error) {
    mx_task *task;
    mx_status status = mx_task_create(request, e->parts.plan.context, e->parts.config->vocab, &task, error);
    if (status) return status;
    pthread_mutex_lock(&e->lock);
    task->handle = *out = ++e->newest;
    if (e->last)
        e->last->next = task;
    else
        e->first = task;
    e->last = task;
    pthread_mutex_unlock(&e->lock);
    return MX_OK;
}

void mx_cancel(mx_engine *e, mx_handle request) {
    pthread_mutex_lock(&e->lock);
    for (mx_task *task = e->first; task; task = task->next) {
        if (task->handle != request || task->ended) continue;
        task->cancelled = e->cancel_asked = true;
    }
    pthread_mutex_unlock(&e->lock);
}

/* With the lock held: `count` more events wait (fewer when negative). */
static void change_events(mx_engine *e, int64_t count) {
    bool waited = e->events > 0;
    e->events += count;
    uint64_t value = 1;
    ssize_t done = 0;
    if (!waited && e->events > 0) done = write(e->event_fd, &value, sizeof value);
    if (waited && e->events == 0) done = read(e->event_fd, &value, sizeof value);
    (void)done; /* an eventfd between 0 and 1 cannot refuse */
}

static mx_event last_event(const mx_task *task) {
    mx_event event = {.type = task->failed ? MX_EVENT_FAILED : MX_EVENT_FINISHED,
                      .request = task->handle,
                      .user = task->request.user,
                      .finish = task->finish,
                      .usage = task->usage};
    if (task->failed) event.error = task->error;
    return event;
}

int mx_poll(mx_engine *e, mx_event *events, int max) {
    int n = 0;
    pthread_mutex_lock(&e->lock);
    mx_task **link = &e->first, *before = NULL;
    while (*link && n < max && n < e->events) {
        mx_task *task = *link;
        for (; n < max && task->polled < task->produced_count; task->polled++) {
            const mx_produced *p = &task->produced[task->polled];
            events[n++] = (mx_event){.type = MX_EVENT_TOKEN,
                                     .request = task->handle,
                                     .user = task->request.user,
                                     .token = p->token,
                                     .logprob = p->logprob};
        }
        if (!task->ended || n == max) {
            before = task;
            link = &task->next;
            continue;
        }
        events[n++] = last_event(task);
        *link = task->next;
        if (e->last == task) e->last = before;
        mx_task_free(task);
    }
    change_events(e, -n);
    pthread_mutex_unlock(&e->lock);
    return n;
}

int mx_engine_fd(const mx_engine *e) {
    return e->event_fd;
}

/* With the lock held. */
static mx_task *runnable(const mx_engine *e) {
    mx_task *task = e->first;
    while (task && task->ended) task = task->next;
    return task;
}

bool mx_engine_idle(mx_engine *e) {
    pthread_mutex_lock(&e->lock);
    bool idle = !runnable(e);
    pthread_mutex_unlock(&e->lock);
    return idle;
}

mx_engine_info mx_engine_get_info(mx_engine *e) {
    mx_engine_info info = e->parts.info;
    pthread_mutex_lock(&e->lock);
    info.kv_bytes_used = e->kv_bytes_used;
    pthread_mutex_unlock(&e->lock);
    return info;
}

/* ---- the step -----------------------------------------------------------------------------------------------------
 */
/* What one step brought a task. */
typedef struct outcome {
    bool sampled, ended;
    mx_produced produced;
    mx_finish finish;
    mx_status status; /* the task failed; `error` tells why */
    mx_error error;
} outcome;

/* Draws the token of the last row within what the constraint allows, and has the constraint accept it. A token that it
 * rejects is masked out and another is drawn, with a random number of its own. */
static mx_status sample(mx_engine *e, mx_task *task, mx_sampled *out, mx_verdict *verdict, mx_error *error) {
    const mx_constraint *c = &task->request.constraint;
    const int32_t vocab = e->parts.config->vocab;
    mx_backend *backend = e->parts.backend;
    mx_sample_spec spec = mx_task_sample_spec(task, e->cache.count);
    *verdict = MX_CONTINUE;
    if (!c->accept) return backend->ops->sample(backend, 0, &spec, out, error);

    memset(e->mask, 0xff, ((size_t)vocab + 31) / 32 * sizeof *e->mask);
    if (c->mask && c->mask(c->user, e->mask, vocab)) spec.mask = e->mask;
    for (int attempt = 0; attempt < REJECTIONS; attempt++) {
        mx_status status = backend->ops->sample(backend, 0, &spec, out, error);
        if (status) return status;
        *verdict = c->accept(c->user, out->token);
        if (*verdict != MX_REJECTED) return MX_OK;
        e->mask[out->token >> 5] &= ~(1u << (out->token & 31));
        spec.mask = e->mask;
        spec.seed += 0x9e3779b97f4a7c15u;
    }
    return mx_fail(error, MX_INVALID_STATE, "the constraint rejected %d tokens in a row at position %lld", REJECTIONS,
                   (long long)e->cache.count);
}

static bool is_finished(const mx_task *task, mx_verdict verdict, int32_t token, int64_t generated, mx_finish *finish) {
    const int64_t max = task->request.max_tokens;
    if (mx_task_stops_at(task, token))
        *finish = MX_FINISH_STOP;
    else if (verdict == MX_FINISHED)
        *finish = MX_FINISH_CONSTRAINT;
    else if (generated == max)
        *finish = MX_FINISH_LENGTH;
    else if (generated == task->limit)
        *finish = MX_FINISH_CONTEXT;
    else
        return false;
    return true;
}

/* One forward pass over the tokens that are known and not computed yet, as many as fit, and a new token when these
 * were the last. */
static mx_status forward(mx_engine *e, mx_task *task, outcome *out, mx_error *error) {
    mx_kv_cache *cache = &e->cache;
    mx_backend *backend = e->parts.backend;
    const int64_t known = task->request.prompt_count + task->produced_count;
    int64_t rows = known - cache->count;
    if (rows > e->parts.batch_tokens) rows = e->parts.batch_tokens;
    const bool last = cache->count + rows == known;

    if (!mx_kv_cache_reserve(cache, rows))
        return mx_fail(error, MX_NO_MEMORY, "the KV cache of %lld pages is full", (long long)e->pages.pages);
    for (int64_t i = 0; i < rows; i++) {
        int64_t position = cache->count + i;
        e->row[i] = (mx_row){cache->tokens[position], (int32_t)position, 0, last && i == rows - 1};
    }
    const mx_sequence_view view = {cache->table, cache->stride};
    const mx_batch batch = {.row = e->row, .rows = (int)rows, .sequence = &view, .sequences = 1};
    mx_status status = backend->ops->step(backend, &batch, error);
    if (status) return status;
    mx_kv_cache_advance(cache, rows,
                        task->produced_count > 0 ? MX_KV_IN_ANSWER
                        : last                   ? MX_KV_PROMPT_END
                                                 : MX_KV_IN_PROMPT);
    if (!last) return MX_OK;

    mx_sampled sampled;
    mx_verdict verdict;
    status = sample(e, task, &sampled, &verdict, error);
    if (status) return status;
    cache->tokens[known] = sampled.token; /* known < context: task->limit sees to it */
    mx_task_count(task, sampled.token);
    out->sampled = true;
    out->produced = (mx_produced){sampled.token, sampled.logprob};
    out->ended = is_finished(task, verdict, sampled.token, task->produced_count + 1, &out->finish);
    return MX_OK;
}

/* Without the lock: a step of the running task. */
static void run(mx_engine *e, mx_task *task, outcome *out) {
    if (!task->started) {
        task->started = true;
        task->start_time = mx_seconds();
        task->usage.cached_tokens = mx_kv_cache_resume(&e->cache, task->prompt, task->request.prompt_count);
    }
    out->status = forward(e, task, out, &out->error);
    if (out->status) {
        out->ended = true;
        mx_kv_cache_reset(&e->cache); /* what was computed may hold NaN */
    }
    if (out->ended) end_constraint(&task->request.constraint);
}

/* With the lock held. */
static void publish(mx_engine *e, mx_task *task, const outcome *out) {
    const double now = mx_seconds();
    struct mx_usage *usage = &task->usage;
    if (out->sampled) {
        task->produced[task->produced_count++] = out->produced;
        usage->generated_tokens = task->produced_count;
        if (task->produced_count == 1) task->first_time = now;
        usage->generate_seconds = now - task->first_time;
    }
    if (task->started && task->produced_count <= 1)
        usage->prompt_seconds = (task->produced_count ? task->first_time : now) - task->start_time;
    if (out->ended) {
        task->ended = true;
        task->finish = out->finish;
        task->failed = out->status != MX_OK;
        if (task->failed) task->error = out->error;
    }
    e->kv_bytes_used =
        (uint64_t)((e->pages.pages - e->pages.free_count) * e->parts.backend->ops->page_bytes(e->parts.backend));
    change_events(e, out->sampled + out->ended);
}

/* With the lock held, which it gives up while a constraint is destroyed. */
static void end_cancelled(mx_engine *e) {
    while (e->cancel_asked) {
        e->cancel_asked = false;
        for (mx_task *task = e->first; task; task = task->next) {
            if (!task->cancelled || task->ended) continue;
            pthread_mutex_unlock(&e->lock); /* a task that has not ended stays in the list */
            end_constraint(&task->request.constraint);
            pthread_mutex_lock(&e->lock);
            publish(e, task, &(outcome){.ended = true, .finish = MX_FINISH_CANCELLED});
        }
    }
}

mx_status mx_step(mx_engine *e, mx_error *error) {
    pthread_mutex_lock(&e->lock);
    if (e->stepping) {
        pthread_mutex_unlock(&e->lock);
        return mx_fail(error, MX_INVALID_STATE, "mx_step is running in another thread: it has one caller at a time");
    }
    e->stepping = true;
    end_cancelled(e);
    mx_task *task = runnable(e);
    if (task) {
        outcome out = {0};
        pthread_mutex_unlock(&e->lock);
        run(e, task, &out);
        pthread_mutex_lock(&e->lock);
        publish(e, task, &out);
    }
    e->stepping = false;
    pthread_mutex_unlock(&e->lock);
    return MX_OK;
}
