/* The engine as its users see it: creation, and the calls that any thread may make. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "engine/engine_state.h"

/* ---- creation -----------------------------------------------------------------------------------------------------
 */
static bool init_lock(mx_engine *e) {
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes)) return false;
    bool ok = !pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) && !pthread_cond_init(&e->work, &attributes);
    pthread_condattr_destroy(&attributes);
    if (ok && pthread_mutex_init(&e->lock, NULL)) {
        pthread_cond_destroy(&e->work);
        return false;
    }
    return ok;
}

static void destroy_lock(mx_engine *e) {
    pthread_cond_destroy(&e->work);
    pthread_mutex_destroy(&e->lock);
}

/* Whoever waits needs none: what they take follows from how many run, not from how many were submitted. */
static bool allocate_lookups(mx_engine *e) {
    if (e->parts.speculation == MX_SPECULATE_OFF) return true;
    const size_t running = (size_t)e->parts.max_running;
    e->lookup = calloc(running, sizeof *e->lookup);
    e->free_lookup = calloc(running, sizeof *e->free_lookup);
    if (!e->lookup || !e->free_lookup) return false;
    for (int i = 0; i < e->parts.max_running; i++) {
        if (!mx_lookup_init(&e->lookup[i], e->parts.plan.context)) return false;
        e->free_lookup[e->free_lookups++] = &e->lookup[i];
    }
    return true;
}

static bool allocate(mx_engine *e) {
    const size_t running = (size_t)e->parts.max_running, rows = (size_t)e->parts.batch_tokens;
    e->running = calloc(running, sizeof(mx_task *));
    e->planned = calloc(running, sizeof(mx_task *));
    e->flight.task = calloc(running, sizeof(mx_task *));
    e->candidate = calloc(running, sizeof *e->candidate);
    e->view = calloc(running, sizeof *e->view);
    e->row = calloc(rows, sizeof *e->row);
    e->draw = calloc(running, sizeof *e->draw);
    e->observed = calloc((size_t)e->parts.max_wanted, sizeof *e->observed);
    return e->running && e->planned && e->flight.task && e->candidate && e->view && e->row && e->draw && e->observed &&
           mx_masks_init(&e->masks, e->parts.max_running, e->parts.config->vocab,
                         e->parts.pool ? mx_pool_threads(e->parts.pool) : 1) &&
           allocate_lookups(e);
}

static bool copy_tokens(mx_engine *e) {
    const size_t bytes = (size_t)e->masks.words * sizeof *e->tokens;
    if (!e->parts.tokens) return true;
    if (!(e->tokens = malloc(bytes))) return false;
    memcpy(e->tokens, e->parts.tokens, bytes);
    e->parts.tokens = NULL;
    return true;
}

static void destroy(mx_engine *e) {
    mx_kv_destroy(e->kv);
    free(e->tokens);
    if (e->event_fd >= 0) close(e->event_fd);
    free(e->running);
    free(e->planned);
    free(e->flight.task);
    free(e->candidate);
    free(e->view);
    free(e->row);
    free(e->draw);
    free(e->observed);
    free(e->observed_copy);
    mx_masks_free(&e->masks);
    for (int i = 0; e->lookup && i < e->parts.max_running; i++) mx_lookup_free(&e->lookup[i]);
    free(e->lookup);
    free(e->free_lookup);
    free(e);
}

mx_status mx_engine_assemble(const mx_engine_parts *parts, mx_engine **out, mx_error *error) {
    mx_engine *e = calloc(1, sizeof *e);
    if (!e) return mx_fail(error, MX_NO_MEMORY, "no memory for an engine");
    e->parts = *parts;
    if (parts->backend->ops->draw && parts->speculation == MX_SPECULATE_AUTO) e->parts.speculation = MX_SPECULATE_OFF;
    e->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    const mx_kv_options kv = {.config = parts->config,
                              .backend = parts->backend,
                              .pages = parts->plan.pages,
                              .context = parts->plan.context,
                              .boundary = parts->boundary,
                              .boundary_count = parts->boundary_count,
                              .store = parts->store};
    mx_status status = MX_OK;
    if (e->event_fd < 0) status = mx_fail(error, MX_IO, "no eventfd: %s", strerror(errno));
    if (!status && (!allocate(e) || !copy_tokens(e))) status = mx_fail(error, MX_NO_MEMORY, "no memory for an engine");
    const bool locked = !status && init_lock(e);
    if (!status && !locked) status = mx_fail(error, MX_NO_MEMORY, "no lock for an engine");
    if (!status) status = mx_kv_create(&kv, &e->kv, error); /* the last that can fail: it takes the store */
    if (status) {
        if (locked) destroy_lock(e);
        destroy(e);
        return status;
    }
    for (int l = 0; l < parts->config->layers; l++) e->sliding_layers += parts->config->sliding[l];
    e->full_layers = parts->config->layers - e->sliding_layers;
    mx_queue_init(e);
    mx_scheduler_init(&e->scheduler, parts->batch_tokens, parts->max_wanted, parts->step_seconds);
    e->parts.boundary = NULL; /* the KV pages have a copy */
    e->parts.info.context = parts->plan.context;
    e->parts.info.vocab = parts->config->vocab;
    e->parts.info.max_running = parts->max_running;
    e->parts.info.kv_bytes = (uint64_t)(parts->plan.pages * parts->backend->ops->page_bytes(parts->backend));
    *out = e;
    return MX_OK;
}

void mx_task_end_constraint(mx_task *task) {
    mx_constraint *constraint = &task->request.constraint;
    if (constraint->accept && constraint->destroy) constraint->destroy(constraint->user);
    *constraint = (mx_constraint){0};
}

static void free_polled(mx_task *task) {
    for (mx_task *next; task; task = next) {
        next = task->next_of_bucket;
        mx_task_free(task);
    }
}

void mx_engine_destroy(mx_engine *e) {
    if (!e) return;
    for (int i = 0; i < MX_TASK_BUCKETS; i++) {
        for (mx_task *task = e->bucket[i]; task; task = task->next_of_bucket) mx_task_end_constraint(task);
        free_polled(e->bucket[i]);
    }
    free_polled(e->polled);
    destroy_lock(e);
    mx_backend *backend = e->parts.backend;
    mx_pool *pool = e->parts.pool;
    destroy(e); /* the KV pages are the backend's */
    backend->ops->destroy(backend);
    mx_pool_destroy(pool);
}

/* ---- requests -----------------------------------------------------------------------------------------------------
 */
static mx_task **bucket_of(mx_engine *e, mx_handle handle) {
    return &e->bucket[handle % MX_TASK_BUCKETS];
}

mx_status mx_submit(mx_engine *e, const mx_request *request, mx_handle *out, mx_error *error) {
    if ((request->top_logprobs > 0 || request->prompt_logprobs) && !e->parts.backend->ops->top)
        return mx_fail(error, MX_UNSUPPORTED, "the %s backend has no log-probabilities of other tokens",
                       e->parts.backend->ops->name);
    if (request->prompt_logits && !e->parts.backend->ops->logits)
        return mx_fail(error, MX_UNSUPPORTED, "the %s backend does not show its logits", e->parts.backend->ops->name);
    const mx_task_options options = {.kv = e->kv, .context = e->parts.plan.context, .vocab = e->parts.config->vocab};
    mx_task *task;
    mx_status status = mx_task_create(request, &options, &task, error);
    if (status) return status;
    pthread_mutex_lock(&e->lock);
    if (request->prompt_logits && !mx_observe_prepare(e)) {
        pthread_mutex_unlock(&e->lock);
        mx_task_free(task);
        return mx_fail(error, MX_NO_MEMORY, "no memory for logits of prompts");
    }
    task->handle = *out = ++e->newest;
    mx_task **bucket = bucket_of(e, task->handle);
    task->next_of_bucket = *bucket;
    *bucket = task;
    mx_queue_add_deadline(e, task);
    e->open++;
    e->stats.submitted++;
    mx_queue_add(e, task);
    pthread_cond_broadcast(&e->work);
    pthread_mutex_unlock(&e->lock);
    return MX_OK;
}

void mx_cancel(mx_engine *e, mx_handle request) {
    pthread_mutex_lock(&e->lock);
    mx_task *task = *bucket_of(e, request);
    while (task && task->handle != request) task = task->next_of_bucket;
    if (task && !task->ended && !task->cancelled) {
        task->cancelled = true;
        task->next_to_end = e->to_end;
        e->to_end = task;
    }
    pthread_mutex_unlock(&e->lock);
}

/* ---- events -------------------------------------------------------------------------------------------------------
 */
void mx_engine_change_events(mx_engine *e, int64_t count) {
    bool waited = e->events > 0;
    e->events += count;
    uint64_t value = 1;
    ssize_t done = 0;
    if (!waited && e->events > 0) done = write(e->event_fd, &value, sizeof value);
    if (waited && e->events == 0) done = read(e->event_fd, &value, sizeof value);
    (void)done; /* an eventfd between 0 and 1 cannot refuse */
}

static mx_event token_event(const mx_task *task, int64_t position) {
    const bool prompt = position < task->request.prompt_count;
    return (mx_event){.type = prompt ? MX_EVENT_PROMPT : MX_EVENT_TOKEN,
                      .request = task->handle,
                      .user = task->request.user,
                      .token = task->tokens[position],
                      .logprob = position > 0 ? task->logprob[position] : 0,
                      .top = task->top ? task->top + position * task->top_count : NULL,
                      .top_count = position > 0 ? task->top_count : 0};
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

/* With the lock held: nobody can name the task any more. */
static void retire(mx_engine *e, mx_task *task) {
    mx_task **link = bucket_of(e, task->handle);
    while (*link != task) link = &(*link)->next_of_bucket;
    *link = task->next_of_bucket;
    task->next_of_bucket = e->polled;
    e->polled = task;
}

int mx_poll(mx_engine *e, mx_event *events, int max) {
    int n = 0;
    pthread_mutex_lock(&e->lock);
    mx_task *old = e->polled;
    e->polled = NULL;
    while (e->first_with_events && n < max) {
        mx_task *task = e->first_with_events;
        while (n < max && task->polled < task->visible) events[n++] = token_event(task, task->polled++);
        if (n == max && (task->polled < task->visible || task->ended)) break;
        if (task->ended) events[n++] = last_event(task);
        task->has_events = false;
        e->first_with_events = task->next_with_events;
        if (task->ended) retire(e, task);
    }
    mx_engine_change_events(e, -n);
    pthread_mutex_unlock(&e->lock);
    free_polled(old);
    return n;
}

int mx_engine_fd(const mx_engine *e) {
    return e->event_fd;
}

/* ---- state --------------------------------------------------------------------------------------------------------
 */
bool mx_engine_idle(mx_engine *e) {
    pthread_mutex_lock(&e->lock);
    bool idle = e->open == 0;
    pthread_mutex_unlock(&e->lock);
    return idle;
}

bool mx_engine_wait(mx_engine *e, double seconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    if (seconds < 0) seconds = 0;
    if (seconds > 1e9) seconds = 1e9;
    until.tv_sec += (time_t)seconds;
    until.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&e->lock);
    while (e->open == 0 && !pthread_cond_timedwait(&e->work, &e->lock, &until)) {
    }
    bool work = e->open > 0;
    pthread_mutex_unlock(&e->lock);
    return work;
}

mx_engine_info mx_engine_get_info(mx_engine *e) {
    mx_engine_info info = e->parts.info;
    pthread_mutex_lock(&e->lock);
    info.kv_bytes_used = e->kv_bytes_used;
    pthread_mutex_unlock(&e->lock);
    return info;
}

mx_engine_stats mx_engine_get_stats(mx_engine *e) {
    pthread_mutex_lock(&e->lock);
    mx_engine_stats stats = e->stats;
    stats.waiting = (int)e->waiting;
    stats.running = (int)(e->open - e->waiting);
    pthread_mutex_unlock(&e->lock);
    return stats;
}
