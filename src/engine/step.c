/* One step: end what is to end, let run what can, choose rows, compute them, draw tokens, tell. */
#include <string.h>

#include "base/cpu.h"
#include "engine/engine_state.h"

enum { REJECTIONS = 64 }; /* tokens that a constraint may refuse for one position */

/* ---- ending -------------------------------------------------------------------------------------------------------
 */
static void has_news(mx_engine *e, mx_task *task) {
    if (task->changed) return;
    task->changed = true;
    task->next_changed = e->changed;
    e->changed = task;
}

/* `keep`: what was computed is right, as far as it goes. */
static void end(mx_engine *e, mx_task *task, bool keep) {
    task->ending = true;
    if (task->started && task->first_time <= 0) task->usage.prompt_seconds = mx_seconds() - task->start_time;
    mx_sequence_end(&task->sequence, task->tokens, keep);
    mx_queue_stop_running(e, task);
    mx_task_end_constraint(task);
    e->count.finished++;
    has_news(e, task);
}

static void finish(mx_engine *e, mx_task *task, mx_finish finish) {
    task->finish = finish;
    end(e, task, true);
}

static void fail(mx_engine *e, mx_task *task, const mx_error *error, bool keep) {
    task->failed = true;
    task->error = *error;
    end(e, task, keep);
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
/* The mask as the constraint has it. false: it forbids nothing. */
static bool ask_constraint(const mx_task *task, uint32_t *mask, int32_t vocab) {
    const mx_constraint *c = &task->request.constraint;
    for (int pass = 0; pass < 2; pass++) {
        memset(mask, 0xff, (size_t)vocab / 32 * sizeof *mask);
        if (vocab % 32) mask[vocab / 32] = (1u << vocab % 32) - 1;
        if (!c->accept || !c->mask) return false;
        if (pass == 0 && c->mask(c->user, mask, vocab)) return true;
    }
    return false;
}

/* What may be drawn. false: everything may. */
static bool fill_mask(const mx_task *task, bool may_stop, uint32_t *mask, int32_t vocab) {
    const bool narrowed = ask_constraint(task, mask, vocab);
    if (may_stop) return narrowed;
    for (int i = 0; i < task->request.stop_count; i++) {
        const int32_t token = task->stop[i];
        if (token >= 0 && token < vocab) mask[token >> 5] &= ~(1u << (token & 31));
    }
    for (int32_t i = 0; i < (vocab + 31) / 32; i++)
        if (mask[i]) return true;
    return ask_constraint(task, mask, vocab); /* it allows nothing but the end */
}

static uint32_t *mask_of(const mx_engine *e, const mx_draw *draw) {
    return e->mask + (draw - e->draw) * e->mask_words;
}

/* The rules for the token behind the known ones, which row `wanted` says. */
static void prepare_draw(mx_engine *e, const mx_task *task, mx_draw *draw, int wanted) {
    const mx_request *r = &task->request;
    *draw = (mx_draw){.wanted = wanted, .spec = mx_task_sample_spec(task, task->known), .status = MX_INVALID_STATE};
    const bool may_stop = task->known - r->prompt_count >= r->min_tokens || !r->stop_count;
    if (!r->constraint.accept && may_stop) return;
    if (fill_mask(task, may_stop, mask_of(e, draw), e->parts.config->vocab)) draw->spec.mask = mask_of(e, draw);
}

/* Draws the next tokens of all tasks that have one, together where that is faster. What fails here, and what stands
 * behind guesses, draw_token draws. */
static void draw_all(mx_engine *e, mx_task **tasks, int count) {
    mx_backend *backend = e->parts.backend;
    int n = 0;
    for (int i = 0; i < count; i++) {
        mx_task *task = tasks[i];
        const int64_t last = task->known - 1, first = task->sequence.count; /* the row that says it, the task's first */
        task->draw = last < first + task->rows ? n++ : -1;
        if (task->draw < 0) continue;
        const int64_t from = mx_task_wanted_from(task);
        prepare_draw(e, task, &e->draw[task->draw], task->first_wanted + (int)(last - (from > first ? from : first)));
    }
    if (n > 1 && backend->ops->sample_all) backend->ops->sample_all(backend, e->draw, n);
}

/* The token behind the known ones, within what the constraint allows, which accepts it. A token that it rejects is
 * masked out and another is drawn, with a random number of its own. */
static mx_status draw_token(mx_engine *e, mx_task *task, int wanted, mx_sampled *out, mx_verdict *verdict,
                            mx_error *error) {
    const mx_constraint *c = &task->request.constraint;
    mx_backend *backend = e->parts.backend;
    mx_draw *draw = &e->draw[task->draw];
    if (draw->wanted != wanted) prepare_draw(e, task, draw, wanted);
    *verdict = MX_CONTINUE;
    for (int attempt = 0; attempt < REJECTIONS; attempt++) {
        mx_status status = draw->status;
        if (status) status = backend->ops->sample(backend, wanted, &draw->spec, &draw->sampled, error);
        *out = draw->sampled;
        if (status || !c->accept) return status;
        *verdict = c->accept(c->user, out->token);
        if (*verdict != MX_REJECTED) return MX_OK;
        mask_of(e, draw)[out->token >> 5] &= ~(1u << (out->token & 31));
        draw->spec.mask = mask_of(e, draw);
        draw->spec.seed += 0x9e3779b97f4a7c15u;
        draw->status = MX_INVALID_STATE;
    }
    return mx_fail(error, MX_INVALID_STATE, "the constraint rejected %d tokens in a row at position %lld", REJECTIONS,
                   (long long)task->known);
}

/* The logits themselves are at fault: not even the plainest rule finds a token in them. */
static bool is_damaged(mx_engine *e, int wanted) {
    mx_backend *backend = e->parts.backend;
    mx_sampled sampled;
    return backend->ops->sample(backend, wanted, &(mx_sample_spec){.top_p = 1, .repetition_penalty = 1}, &sampled,
                                NULL) != MX_OK;
}

static bool is_finished(const mx_task *task, mx_verdict verdict, int32_t token, mx_finish *finish) {
    const int64_t generated = task->known - task->request.prompt_count, max = task->request.max_tokens;
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

static void count_token(mx_engine *e, mx_task *task) {
    const double now = mx_seconds();
    struct mx_usage *usage = &task->usage;
    if (usage->generated_tokens++ == 0) {
        task->first_time = now;
        usage->prompt_seconds = now - task->start_time;
    }
    usage->generate_seconds = now - task->first_time;
    e->count.generated_tokens++;
    mx_task_count(task, task->tokens[task->known - 1]);
    task->computing = false;
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
    task->tokens[position] = sampled.token; /* position < prompt + limit: is_finished sees to it */
    task->logprob[position] = sampled.logprob;
    task->known++;
    count_token(e, task);
    *finished = is_finished(task, verdict, sampled.token, &task->finish);
    return MX_OK;
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
        if (position + 1 < task->known) {
            status = score(e, task, wanted, position + 1, &error);
            if (!status) task->scored = position + 2;
        } else {
            const int32_t guess = position + 1 < end_of_rows ? task->tokens[position + 1] : -1;
            status = next_token(e, task, wanted, &finished, &error);
            right = !status && task->tokens[position + 1] == guess;
            accepted += right;
        }
        has_news(e, task);
        wanted += !status;
    }
    if (status) {
        fail(e, task, &error, !is_damaged(e, wanted));
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
    if (finished) end(e, task, true);
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
    const double start = mx_seconds();
    mx_status status = backend->ops->step(backend, &batch, &error);
    const double done = mx_seconds();
    e->count.forward_seconds += done - start;
    e->count.computed_rows += batch.rows;
    if (status && count > 1) {
        for (int i = 0; i < count; i++) compute(e, tasks + i, 1);
    } else if (status) {
        fail(e, tasks[0], &error, false);
    } else {
        draw_all(e, tasks, count);
        for (int i = 0; i < count; i++) take_rows(e, tasks[i]);
        e->count.sample_seconds += mx_seconds() - done;
    }
}

/* ---- planning -----------------------------------------------------------------------------------------------------
 */
static bool decodes(const mx_task *task) {
    return !task->reading && task->known - task->sequence.count == 1;
}

/* Guesses what follows, where `decoders` requests decode. They stand behind the known tokens until they are checked. */
static void guess_ahead(mx_engine *e, int decoders) {
    const bool always = e->parts.speculation == MX_SPECULATE_ON;
    int rows = decoders;
    for (int i = 0; i < e->running_count; i++) {
        mx_task *task = e->running[i];
        task->drafted = 0;
        if (!decodes(task) || (!always && rows >= MX_DRAFT_ROWS)) continue;
        const int64_t left = task->request.prompt_count + task->limit - task->known - 1; /* the last is never a guess */
        const int most = e->parts.draft_tokens < left ? e->parts.draft_tokens : (int)left;
        task->drafted =
            mx_lookup_draft(task->lookup, task->tokens, task->known, task->tokens + task->known, most, &task->matched);
        if (!always && task->drafted > 0)
            task->drafted = mx_draft_length(&e->draft_cost, &task->luck, task->matched, rows, task->drafted);
        rows += task->drafted;
    }
}

/* `start`: of this step. */
static void plan_rows(mx_engine *e, double start) {
    int decoders = 0, count = 0;
    for (int i = 0; i < e->running_count; i++) decoders += decodes(e->running[i]);
    if (decoders && e->parts.speculation != MX_SPECULATE_OFF) guess_ahead(e, decoders);
    for (int i = 0; i < e->running_count; i++) {
        const mx_task *task = e->running[i];
        if (task->reading) continue;
        e->candidate[count++] = (mx_candidate){.unknown = task->known - task->sequence.count,
                                               .order = (int64_t)task->handle,
                                               .turn = task->turn,
                                               .priority = task->request.priority,
                                               .drafted = task->drafted,
                                               .scored = task->scored < task->request.prompt_count};
    }
    if (count > 0) mx_scheduler_plan(&e->scheduler, e->candidate, count, mx_seconds() - start);
    const mx_candidate *c = e->candidate;
    for (int i = 0; i < e->running_count; i++) {
        mx_task *task = e->running[i];
        task->rows = 0;
        if (task->reading) continue;
        task->rows = c->rows;
        task->turn = c->turn;
        c++;
    }
}

/* Pages for so many rows of a task; where there are none left the most junior one is set back. */
static void reserve_rows(mx_engine *e, mx_task *task, int rows) {
    while (!mx_sequence_reserve(&task->sequence, rows)) {
        mx_task *junior = e->running[e->running_count - 1];
        if (e->running_count == 1) {
            mx_error error;
            mx_fail(&error, MX_NO_MEMORY, "%lld KV pages are too few for %lld tokens", (long long)e->parts.plan.pages,
                    (long long)(task->sequence.count + rows));
            fail(e, task, &error, true);
        } else {
            mx_queue_set_back(e, junior);
        }
        if (junior == task) break;
    }
}

/* For the most senior tasks first, and for what was guessed only what all others leave. */
static void reserve_pages(mx_engine *e) {
    for (int i = 0; i < e->running_count; i++) {
        mx_task *task = e->running[i];
        if (task->rows) reserve_rows(e, task, decodes(task) ? 1 : task->rows);
    }
    for (int i = 0; i < e->running_count; i++) {
        mx_task *task = e->running[i];
        if (task->rows > 1 && decodes(task) && !mx_sequence_reserve(&task->sequence, task->rows)) task->rows = 1;
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
        decode += decodes(task);
        drafted += decodes(task) ? task->rows - 1 : 0;
        prompt += decodes(task) ? 0 : task->rows;
    }
    if (!count) return;
    const double start = mx_seconds();
    compute(e, e->planned, count);
    const double seconds = mx_seconds() - start;
    mx_scheduler_measured(&e->scheduler, decode, drafted, prompt, seconds);
    if (!prompt) mx_draft_measured(&e->draft_cost, decode + drafted, seconds);
    e->count.steps++;
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
    plan_rows(e, start);
    reserve_pages(e);
    compute_planned(e);

    const double seconds = e->last_seconds = mx_seconds() - start;
    e->count.step_seconds += seconds;
    e->count.schedule_seconds += seconds - (e->count.forward_seconds + e->count.sample_seconds - computed);
    publish(e);
    pthread_mutex_lock(&e->lock);
    e->stepping = false;
    pthread_mutex_unlock(&e->lock);
    return MX_OK;
}
