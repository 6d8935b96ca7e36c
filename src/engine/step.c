/* One step: end what is to end, let run what can, choose rows, compute them, draw tokens, tell. */
#include <string.h>

#include "base/cpu.h"
#include "engine/engine_state.h"

/* ---- ending -------------------------------------------------------------------------------------------------------
 */
void mx_task_has_news(mx_engine *e, mx_task *task) {
    if (task->changed) return;
    task->changed = true;
    task->next_changed = e->changed;
    e->changed = task;
}

void mx_task_end(mx_engine *e, mx_task *task, bool keep) {
    task->ending = true;
    if (task->started && task->first_time <= 0) task->usage.prompt_seconds = mx_seconds() - task->start_time;
    mx_sequence_end(&task->sequence, task->tokens, keep);
    mx_queue_stop_running(e, task);
    mx_task_end_constraint(task);
    e->count.finished++;
    mx_task_has_news(e, task);
}

static void finish(mx_engine *e, mx_task *task, mx_finish finish) {
    task->finish = finish;
    mx_task_end(e, task, true);
}

void mx_task_fail(mx_engine *e, mx_task *task, const mx_error *error, bool keep) {
    task->failed = true;
    task->error = *error;
    mx_task_end(e, task, keep);
}

/* With the lock held: the cancelled tasks and those whose time is over, linked by next_to_end; none of them waits any
 * more. */
static mx_task *take_to_end(mx_engine *e, double now) {
    mx_task *list = e->to_end;
    e->to_end = NULL;
    for (mx_task *task = list; task; task = task->next_to_end)
        if (task->waiting) mx_queue_remove(e, task);
    for (mx_task *task; (task = mx_queue_take_overdue(e, now));) {
        if (task->cancelled) continue;
        task->cancelled = true; /* once is enough */
        task->finish = MX_FINISH_DEADLINE;
        if (task->waiting) mx_queue_remove(e, task);
        task->next_to_end = list;
        list = task;
    }
    return list;
}

/* ---- telling ------------------------------------------------------------------------------------------------------
 */
/* With the lock held: what of the task mx_poll may take. */
static void publish_task(mx_engine *e, mx_task *task) {
    const int64_t visible = task->scored < task->request.prompt_count ? task->scored : task->known;
    mx_engine_change_events(e, visible - task->visible + task->ending);
    const bool news = visible > task->visible || task->ending;
    task->visible = visible;
    if (news && !task->has_events) {
        task->has_events = true;
        task->next_with_events = NULL;
        *(e->first_with_events ? &e->last_with_events->next_with_events : &e->first_with_events) = task;
        e->last_with_events = task;
    }
    if (!task->ending) return;
    task->ended = true;
    mx_queue_forget_deadline(e, task);
    e->open--;
    for (mx_task **link = &e->to_end; task->cancelled && *link; link = &(*link)->next_to_end) {
        if (*link != task) continue; /* cancelled just now */
        *link = task->next_to_end;
        break;
    }
}

static void publish(mx_engine *e) {
    const uint64_t page_bytes = (uint64_t)e->parts.backend->ops->page_bytes(e->parts.backend);
    pthread_mutex_lock(&e->lock);
    for (mx_task *task = e->changed, *next; task; task = next) {
        next = task->next_changed;
        task->changed = false;
        publish_task(e, task); /* if it has ended, it may be gone when the lock is free */
    }
    e->changed = NULL;
    e->count.submitted = e->stats.submitted;
    e->count.kv_bytes_cached = (uint64_t)mx_kv_pages_cached(e->kv) * page_bytes;
    e->stats = e->count;
    e->kv_bytes_used = (uint64_t)(e->parts.plan.pages - mx_kv_pages_free(e->kv)) * page_bytes;
    pthread_mutex_unlock(&e->lock);
}

/* ---- drawing ------------------------------------------------------------------------------------------------------
 */
/* Of a device that computes meanwhile: waits for the step, and draws. What single draws say is in their status. */
static mx_status draw_on_device(mx_engine *e, int tasks, int draws, mx_error *error) {
    mx_backend *backend = e->parts.backend;
    mx_status status = backend->ops->draw(backend, e->draw, draws, error);
    if (!status) status = backend->ops->drawn(backend, e->draw, draws, error);
    return tasks == 1 && draws == 1 ? MX_OK : mx_draw_step_status(e, draws, status);
}

/* Which tasks have a token to draw; what may be is found out from now on. */
static void begin_draws(mx_engine *e, mx_task **tasks, int count) {
    int n = 0;
    for (int i = 0; i < count; i++) {
        mx_task *task = tasks[i];
        const bool draws = task->known <= task->sequence.count + task->rows && !task->request.prompt_only;
        task->draw = draws ? n++ : -1;
        if (draws) mx_masks_add(&e->masks, task, task->draw);
    }
    mx_masks_begin(&e->masks);
}

/* Draws the next tokens of all tasks that have one, together where that is faster. What fails here, and what stands
 * behind guesses, draw_token draws. A status is the step's. */
static mx_status draw_all(mx_engine *e, mx_task **tasks, int count, mx_error *error) {
    mx_backend *backend = e->parts.backend;
    int n = 0;
    for (int i = 0; i < count; i++) {
        mx_task *task = tasks[i];
        const int64_t last = task->known - 1, first = task->sequence.count; /* the row that says it, the task's first */
        if (task->draw < 0) continue;
        n++;
        const int64_t from = mx_task_wanted_from(task);
        mx_draw_prepare(e, task, &e->draw[task->draw],
                        task->first_wanted + (int)(last - (from > first ? from : first)));
    }
    if (backend->ops->draw) return draw_on_device(e, count, n, error);
    if (n > 1 && backend->ops->sample_all) backend->ops->sample_all(backend, e->draw, n);
    return MX_OK;
}

/* The token behind the known ones, within what the constraint allows, which accepts it. A token that is rejected is
 * masked out and another is drawn, with a random number of its own. */
static mx_status draw_token(mx_engine *e, mx_task *task, int wanted, mx_sampled *out, mx_verdict *verdict,
                            mx_error *error) {
    mx_backend *backend = e->parts.backend;
    mx_draw *draw = &e->draw[task->draw];
    if (draw->wanted != wanted) mx_draw_prepare(e, task, draw, wanted);
    *verdict = MX_CONTINUE;
    for (;;) {
        mx_status status = draw->status;
        if (status) status = backend->ops->sample(backend, wanted, &draw->spec, &draw->sampled, error);
        *out = draw->sampled;
        if (status) return status;
        *verdict = mx_draw_verdict(e, task, out->token);
        if (*verdict != MX_REJECTED) return MX_OK;
        status = mx_draw_rejected(e, task, draw, error);
        if (status) return status;
    }
}

/* The logits themselves are at fault: not even the plainest rule finds a token in them. */
static bool is_damaged(mx_engine *e, int wanted) {
    mx_backend *backend = e->parts.backend;
    mx_sampled sampled;
    return backend->ops->sample(backend, wanted, &(mx_sample_spec){.top_p = 1, .repetition_penalty = 1}, &sampled,
                                NULL) != MX_OK;
}

/* What row `wanted` says of the token at `position`, which is known. */
static mx_status score(mx_engine *e, mx_task *task, int wanted, int64_t position, mx_error *error) {
    mx_backend *backend = e->parts.backend;
    mx_alternative *top = task->top ? task->top + position * task->top_count : NULL;
    return backend->ops->top(backend, wanted, task->top_count, top, task->tokens[position], &task->logprob[position],
                             error);
}

/* The token behind the last known one. *finished: the task ends with it. */
static mx_status next_token(mx_engine *e, mx_task *task, int wanted, bool *finished, mx_error *error) {
    mx_backend *backend = e->parts.backend;
    const int64_t position = task->known;
    mx_sampled sampled;
    mx_verdict verdict;
    mx_status status = draw_token(e, task, wanted, &sampled, &verdict, error);
    if (!status && task->top) {
        float logprob;
        status = backend->ops->top(backend, wanted, task->top_count, task->top + position * task->top_count, -1,
                                   &logprob, error);
    }
    if (status) return status;
    *finished = mx_draw_known(e, task, &sampled, verdict);
    return MX_OK;
}

/* The prompt of a task without an answer is computed; `wanted`: its last row. Fails where a token would not be drawn.
 */
static mx_status finish_prompt(mx_engine *e, mx_task *task, int wanted, mx_error *error) {
    static const mx_sample_spec plain = {.top_p = 1, .repetition_penalty = 1};
    mx_backend *backend = e->parts.backend;
    mx_sampled sampled;
    task->finish = MX_FINISH_LENGTH;
    return backend->ops->sample(backend, wanted, &plain, &sampled, error);
}

/* The task's rows were computed: draws tokens as long as those that were guessed are right, and keeps what is valid. */
static void take_rows(mx_engine *e, mx_task *task) {
    const int64_t first = task->sequence.count, end_of_rows = first + task->rows;
    int wanted = task->first_wanted;
    int64_t position = first;
    if (task->scored == 0) task->scored = 1; /* nothing comes before the first token */
    const bool computing = task->computing;
    const int drafted = task->known - first == 1 ? task->rows - 1 : 0;
    int accepted = 0;
    bool finished = false, right = true;
    mx_status status = MX_OK;
    mx_error error;
    for (; position < end_of_rows && right && !finished && !status; position++) {
        if (position < mx_task_wanted_from(task)) continue;
        if (position >= task->observed) task->observed = position + 1;
        if (position + 1 < task->known) {
            if (position + 1 < task->scored || task->scored == task->request.prompt_count) {
                wanted++;
                continue;
            }
            status = score(e, task, wanted, position + 1, &error);
            if (!status) task->scored = position + 2;
        } else if (task->request.prompt_only) {
            status = finish_prompt(e, task, wanted, &error);
            finished = true;
        } else {
            const int32_t guess = position + 1 < end_of_rows ? task->tokens[position + 1] : -1;
            status = next_token(e, task, wanted, &finished, &error);
            right = !status && task->tokens[position + 1] == guess;
            accepted += right;
        }
        mx_task_has_news(e, task);
        wanted += !status;
    }
    if (status) {
        mx_task_fail(e, task, &error, !is_damaged(e, wanted));
        return;
    }
    if (drafted) {
        mx_draft_checked(&task->luck, task->matched, drafted, accepted);
        task->usage.drafted_tokens += drafted;
        task->usage.accepted_tokens += accepted;
        e->count.drafted_tokens += drafted;
        e->count.accepted_tokens += accepted;
    }
    mx_sequence_advance(&task->sequence, task->tokens, position - first);
    if (computing && !task->computing) mx_sequence_mark(&task->sequence, task->tokens);
    if (finished) mx_task_end(e, task, true);
}

/* ---- computing ----------------------------------------------------------------------------------------------------
 */
static mx_batch batch_of(mx_engine *e, mx_task **tasks, int count) {
    int n = 0, wanted = 0;
    for (int i = 0; i < count; i++) {
        mx_task *task = tasks[i];
        e->view[i] = mx_sequence_get_view(&task->sequence);
        task->first_wanted = wanted;
        for (int r = 0; r < task->rows; r++) {
            const int64_t position = task->sequence.count + r;
            const bool is = position >= mx_task_wanted_from(task);
            e->row[n++] = (mx_row){task->tokens[position], (int32_t)position, i, is};
            wanted += is;
        }
    }
    return (mx_batch){.row = e->row, .rows = n, .sequence = e->view, .sequences = count};
}

/* Computes the tasks' rows. Where that fails each task is computed alone, so that only the guilty one does not go on.
 */
static void compute(mx_engine *e, mx_task **tasks, int count) {
    mx_backend *backend = e->parts.backend;
    mx_error error;
    const mx_batch batch = batch_of(e, tasks, count);
    begin_draws(e, tasks, count);
    const double start = mx_seconds();
    mx_status status = backend->ops->step(backend, &batch, &error);
    double done = mx_seconds();
    mx_masks_end(&e->masks, e->parts.pool);
    if (!status) status = draw_all(e, tasks, count, &error);
    const double drawn = mx_seconds();
    if (!status) status = mx_observe(e, tasks, count, &error);
    if (backend->ops->draw) done = drawn;
    e->count.forward_seconds += done - start;
    e->count.computed_rows += batch.rows;
    if (status && count > 1) {
        for (int i = 0; i < count; i++) compute(e, tasks + i, 1);
    } else if (status) {
        mx_task_fail(e, tasks[0], &error, false);
    } else {
        for (int i = 0; i < count; i++) take_rows(e, tasks[i]);
        e->count.sample_seconds += mx_seconds() - done;
    }
}

/* ---- the step -----------------------------------------------------------------------------------------------------
 */
static void compute_planned(mx_engine *e) {
    int decode = 0, drafted = 0, prompt = 0, count = 0;
    for (int i = 0; i < e->running_count; i++) {
        mx_task *task = e->running[i];
        if (!task->rows) continue;
        e->planned[count++] = task;
        decode += mx_task_decodes(task);
        drafted += mx_task_decodes(task) ? task->rows - 1 : 0;
        prompt += mx_task_decodes(task) ? 0 : task->rows;
    }
    if (!count) return;
    const double start = mx_seconds();
    compute(e, e->planned, count);
    const double seconds = mx_seconds() - start;
    mx_scheduler_measured(&e->scheduler, decode, drafted, prompt, seconds);
    if (!prompt) mx_draft_measured(&e->draft_cost, decode + drafted, seconds);
    e->count.steps++;
}

void mx_step_at_once(mx_engine *e, double start) {
    mx_plan_rows(e, start);
    mx_plan_pages(e);
    compute_planned(e);
}

mx_status mx_step(mx_engine *e, mx_error *error) {
    const double start = mx_seconds();
    pthread_mutex_lock(&e->lock);
    if (e->stepping) {
        pthread_mutex_unlock(&e->lock);
        return mx_fail(error, MX_INVALID_STATE, "mx_step is running in another thread: it has one caller at a time");
    }
    e->stepping = true;
    mx_task *to_end = take_to_end(e, start);
    pthread_mutex_unlock(&e->lock);

    const double computed = e->count.forward_seconds + e->count.sample_seconds;
    for (mx_task *task = to_end, *next; task; task = next) {
        next = task->next_to_end;
        finish(e, task, task->finish == MX_FINISH_DEADLINE ? MX_FINISH_DEADLINE : MX_FINISH_CANCELLED);
    }
    if (to_end) publish(e);
    mx_queue_admit(e);
    if (e->parts.backend->ops->draw)
        mx_step_ahead(e, start);
    else
        mx_step_at_once(e, start);

    const double seconds = e->last_seconds = mx_seconds() - start;
    e->count.step_seconds += seconds;
    e->count.schedule_seconds += seconds - (e->count.forward_seconds + e->count.sample_seconds - computed);
    publish(e);
    pthread_mutex_lock(&e->lock);
    e->stepping = false;
    pthread_mutex_unlock(&e->lock);
    return MX_OK;
}
