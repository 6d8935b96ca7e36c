/* The step where a device computes while the host does something else (mx_backend_ops.draw).
 *
 * One call, with step n under way when it begins, and the device meanwhile:
 *
 *     rows of n + 1 are queued                                  step n, draw n
 *     waits for draw n                                          step n, draw n
 *     tokens of n: constraints accept them, requests end        step n + 1
 *     masks and penalties of n + 1, draw n + 1 is queued        step n + 1
 *     events are told; the caller does what it does             step n + 1, draw n + 1
 *
 * Step n + 1 is queued before the tokens of n are known: every request that draws in n goes on with MX_TOKEN_DRAWN at
 * its next position. So it has rows `ahead` of its sequence, which is advanced only over what was computed from tokens
 * that count: of a request that ended with the token of n, or whose constraint rejected it, the row in n + 1 is
 * forgotten, and nobody sees what that wrote behind the sequence's end. A token that was rejected is drawn again,
 * without it, from a row that is computed again. The same is done with whatever failed, by mx_step_at_once, which finds
 * out whose fault it is: nothing here decides on a failure.
 *
 * Requests that need more of a step than a token (alternatives, logprobs of the prompt, guesses ahead) need it before
 * the next step is queued: while one of them runs, steps are taken at once. Nobody is set back for memory before all
 * that is under way is known. */
#include "base/cpu.h"
#include "engine/engine_state.h"

void mx_ahead_forget(mx_engine *e, mx_task *task) {
    task->ahead = 0;
    for (int i = 0; i < e->flight.count; i++)
        if (e->flight.task[i] == task) e->flight.task[i] = NULL;
}

static bool may_run_ahead(const mx_engine *e) {
    if (e->carefully || e->parts.speculation == MX_SPECULATE_ON) return false;
    for (int i = 0; i < e->running_count; i++) {
        const mx_task *task = e->running[i];
        if (task->top || task->request.prompt_only || mx_task_is_scored(task)) return false;
    }
    return true;
}

/* ---- what was under way -------------------------------------------------------------------------------------------
 */
/* The last of the task's rows, of which there are so many, said a token. What this is not good for is computed again:
 * then the task has no rows in the step that was queued behind this one. */
static void take_token(mx_engine *e, mx_task *task, int rows) {
    mx_draw *draw = &e->draw[task->draw];
    if (draw->status) {
        task->rows = 0;
        e->carefully = true;
        return;
    }
    const mx_verdict verdict = mx_draw_verdict(e, task, draw->sampled.token);
    if (verdict == MX_REJECTED) {
        mx_error error;
        task->rows = 0;
        mx_sequence_advance(&task->sequence, task->tokens, rows - 1);
        if (mx_draw_rejected(e, task, draw, &error)) mx_task_fail(e, task, &error, true);
        return;
    }
    const bool computing = task->computing, finished = mx_draw_known(e, task, &draw->sampled, verdict);
    mx_task_has_news(e, task);
    mx_sequence_advance(&task->sequence, task->tokens, rows);
    if (computing) mx_sequence_mark(&task->sequence, task->tokens);
    if (!finished) return;
    task->rows = 0;
    mx_task_end(e, task, true);
}

static void take(mx_engine *e, mx_task *task, bool failed) {
    const int rows = task->ahead;
    task->ahead = 0;
    if (failed)
        task->rows = 0;
    else if (task->draw >= 0)
        take_token(e, task, rows);
    else
        mx_sequence_advance(&task->sequence, task->tokens, rows);
}

/* Seconds that the device took for a step. It began when the step was queued, or when it had done the one before. Who
 * need not wait for it now only knows that it was done before: when, where this call was held up (`spent`) by reading
 * or admitting, nobody saw. 0: it may have been any time. */
static double taken(const mx_engine *e, double waited, double done, double spent) {
    const double began = e->flight.queued > e->last_completed ? e->flight.queued : e->last_completed;
    const double most = done - began;
    if (waited >= spent / 8) return most;
    return most > spent ? most - spent : 0;
}

/* Waits for the step that is under way, if one is, and takes its results. */
static void land(mx_engine *e, double spent) {
    mx_backend *backend = e->parts.backend;
    mx_flight *f = &e->flight;
    mx_error error;
    if (!f->count) return;
    const double start = mx_seconds();
    const mx_status status = backend->ops->drawn(backend, e->draw, f->draws, &error);
    const double done = mx_seconds();
    const bool failed = mx_draw_step_status(e, f->draws, status) != MX_OK;
    if (failed) e->carefully = true;
    bool wanted = false; /* else nobody may have looked at the device for a long time */
    for (int i = 0; i < f->count; i++) {
        if (!f->task[i]) continue;
        wanted = true;
        take(e, f->task[i], failed);
    }
    f->count = 0;
    e->scheduler.allowed = f->allowed;
    const double seconds = taken(e, done - start, done, spent);
    if (!failed && wanted && seconds > 0)
        mx_scheduler_measured(&e->scheduler, f->decode_rows, 0, f->prompt_rows, seconds);
    e->last_completed = done;
    e->count.forward_seconds += done - start;
    e->count.sample_seconds += mx_seconds() - done;
    e->count.steps++;
}

/* ---- what is next -------------------------------------------------------------------------------------------------
 */
static mx_row row_of(const mx_task *task, int64_t position, int sequence) {
    const bool drawn = position >= task->known, drawing = task->ahead > 0 && task->draw >= 0;
    return (mx_row){.token = drawn ? MX_TOKEN_DRAWN(task->draw) : task->tokens[position],
                    .position = (int32_t)position,
                    .sequence = sequence,
                    .wanted = position == task->known - 1 + drawing};
}

/* The planned rows; counts them in `next`. */
static mx_batch make_batch(mx_engine *e, mx_flight *next) {
    int n = 0, wanted = 0, count = 0;
    for (int i = 0; i < e->running_count; i++) {
        mx_task *task = e->running[i];
        if (!task->rows) continue;
        *(mx_task_decodes(task) ? &next->decode_rows : &next->prompt_rows) += task->rows;
        e->view[count] = mx_sequence_get_view(&task->sequence);
        task->first_wanted = wanted;
        for (int r = 0; r < task->rows; r++) {
            e->row[n] = row_of(task, task->sequence.count + task->ahead + r, count);
            wanted += e->row[n++].wanted;
        }
        e->planned[count++] = task;
    }
    next->count = count;
    return (mx_batch){.row = e->row, .rows = n, .sequence = e->view, .sequences = count};
}

/* Queues the planned rows. Their requests go without where that fails. */
static void queue_rows(mx_engine *e, mx_flight *next) {
    mx_backend *backend = e->parts.backend;
    mx_error error;
    *next = (mx_flight){.task = e->flight.task, .allowed = e->scheduler.allowed};
    const mx_batch batch = make_batch(e, next);
    if (!batch.rows) return;
    next->queued = mx_seconds();
    const mx_status status = backend->ops->step(backend, &batch, &error);
    e->count.forward_seconds += mx_seconds() - next->queued;
    e->count.computed_rows += batch.rows;
    if (!status) return;
    next->count = 0;
    e->carefully = true;
}

/* Queues drawing from the rows that still count, and has them under way. */
static void queue_draws(mx_engine *e, const mx_flight *next) {
    mx_backend *backend = e->parts.backend;
    mx_flight *f = &e->flight;
    mx_error error;
    const double start = mx_seconds();
    *f = *next;
    f->count = 0;
    for (int i = 0; i < next->count; i++) {
        mx_task *task = e->planned[i];
        if (!task->rows) continue;
        task->ahead = task->rows;
        task->draw = task->sequence.count + task->rows == task->known ? f->draws++ : -1;
        if (task->draw >= 0) mx_masks_add(&e->masks, task, task->draw);
        f->task[f->count++] = task;
    }
    mx_masks_end(&e->masks, e->parts.pool);
    for (int i = 0; i < f->count; i++) {
        mx_task *task = f->task[i];
        if (task->draw >= 0) mx_draw_prepare(e, task, &e->draw[task->draw], task->first_wanted);
    }
    if (f->count && backend->ops->draw(backend, e->draw, f->draws, &error)) {
        while (f->count) f->task[--f->count]->ahead = 0;
        e->carefully = true;
    }
    e->count.sample_seconds += mx_seconds() - start;
}

/* ---- the step -----------------------------------------------------------------------------------------------------
 */
void mx_step_ahead(mx_engine *e, double start) {
    mx_flight next;
    const double spent = mx_seconds() - start;
    bool may = may_run_ahead(e);
    if (may) mx_plan_rows(e, start);
    if (may && !mx_plan_fits(e)) {
        land(e, spent);
        may = may_run_ahead(e);
        if (may) mx_plan_rows(e, start);
        if (may) mx_plan_pages(e);
    }
    if (!may) {
        land(e, spent);
        mx_step_at_once(e, start);
        e->carefully = false;
        return;
    }
    queue_rows(e, &next);
    land(e, spent);
    queue_draws(e, &next);
}
