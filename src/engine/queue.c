/* Who runs and who waits. */
#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "engine/engine_state.h"

enum { EXAMINED = 256 }; /* waiting tasks looked at in one step, at most */

/* ---- waiting ------------------------------------------------------------------------------------------------------
 */
void mx_queue_add(mx_engine *e, mx_task *task) {
    mx_task *after = e->last_waiting;
    while (after && mx_task_is_senior(task, after)) after = after->before_waiting;
    task->before_waiting = after;
    task->next_waiting = after ? after->next_waiting : e->first_waiting;
    *(after ? &after->next_waiting : &e->first_waiting) = task;
    *(task->next_waiting ? &task->next_waiting->before_waiting : &e->last_waiting) = task;
    task->waiting = true;
    e->waiting++;
}

void mx_queue_remove(mx_engine *e, mx_task *task) {
    *(task->before_waiting ? &task->before_waiting->next_waiting : &e->first_waiting) = task->next_waiting;
    *(task->next_waiting ? &task->next_waiting->before_waiting : &e->last_waiting) = task->before_waiting;
    task->next_waiting = task->before_waiting = NULL;
    task->waiting = false;
    e->waiting--;
}

/* Only the thread that steps takes tasks out of the list, so that `task` is still in it. */
static mx_task *next_waiting(mx_engine *e, const mx_task *task) {
    pthread_mutex_lock(&e->lock);
    mx_task *next = task ? task->next_waiting : e->first_waiting;
    pthread_mutex_unlock(&e->lock);
    return next;
}

/* ---- shared prefixes ----------------------------------------------------------------------------------------------
 */
static mx_task *find_running(const mx_engine *e, mx_handle handle) {
    for (int i = 0; i < e->running_count; i++)
        if (e->running[i]->handle == handle) return e->running[i];
    return NULL;
}

/* Known tokens that may come out of the cache: not the last, whose logits are wanted, and none that is still to be
 * scored. */
static int64_t resumable(const mx_task *task) {
    if (task->scored < task->request.prompt_count) return task->scored > 0 ? task->scored - 1 : 0;
    return task->known - 1;
}

static int64_t common_prefix(const mx_task *a, const mx_task *b, int64_t limit) {
    int64_t n = 0;
    if (limit > b->known) limit = b->known;
    while (n + MX_TILE <= limit && !memcmp(a->tokens + n, b->tokens + n, MX_TILE * sizeof *a->tokens)) n += MX_TILE;
    while (n < limit && a->tokens[n] == b->tokens[n]) n++;
    return n;
}

/* A running task is about to compute more of this one's prefix than the cache has, by a tile or to the last token: what
 * several begin with is computed once. */
static bool waits_for_prefix(mx_engine *e, mx_task *task) {
    const mx_task *other = task->waits_for ? find_running(e, task->waits_for) : NULL;
    if (other && other->computing && other->sequence.count < task->wait_until) return true;
    task->waits_for = 0;

    const int64_t limit = resumable(task);
    int64_t cached = -1, most = 0;
    mx_task *best = NULL;
    for (int i = 0; i < e->running_count; i++) {
        mx_task *r = e->running[i];
        if (!r->computing || r->request.priority < task->request.priority) continue;
        const int64_t common = common_prefix(task, r, limit);
        const bool whole = common == limit && r->known <= task->known; /* the end of r's prompt is of use, too */
        const int64_t usable = whole ? common : common / MX_TILE * MX_TILE;
        if (usable <= most) continue;
        if (cached < 0) cached = mx_kv_cached_tokens(e->kv, task->tokens, limit);
        if (usable < cached + MX_TILE && !(whole && usable > cached)) continue;
        most = usable;
        best = r;
        task->wait_until = whole ? INT64_MAX : usable;
    }
    if (!best) return false;
    task->waits_for = best->handle;
    return true;
}

/* ---- memory -------------------------------------------------------------------------------------------------------
 */
static int64_t tiles_of(int64_t positions) {
    return (positions + MX_TILE - 1) / MX_TILE;
}

/* Pages that a task takes beyond those it has, until all that it knows is computed, and for a tile more. */
static int64_t pages_to_come(const mx_engine *e, const mx_task *task) {
    const mx_sequence *s = &task->sequence;
    const int64_t tiles = tiles_of(task->known) + 1 - s->tiles, held = s->tiles - s->first_tile;
    const int64_t window = tiles_of((int64_t)e->parts.config->window + e->parts.batch_tokens) + 1;
    int64_t sliding = window > held ? window - held : 1;
    if (sliding > tiles) sliding = tiles;
    return e->full_layers * tiles + e->sliding_layers * sliding;
}

static bool has_room(const mx_engine *e, const mx_task *task) {
    int64_t pages = pages_to_come(e, task);
    for (int i = 0; i < e->running_count; i++) pages += pages_to_come(e, e->running[i]);
    return pages <= mx_kv_pages_free(e->kv) + mx_kv_pages_cached(e->kv);
}

/* ---- what earlier runs computed -----------------------------------------------------------------------------------
 */
static const double FETCH_SECONDS = 0.05; /* of a step in which others run */

/* false: there is more to read. Where nobody else runs it may take as long as it does. */
static bool fetch(mx_engine *e, mx_task *task) {
    if (!task->fetched)
        task->fetched = mx_kv_fetch(e->kv, task->tokens, resumable(task), e->running_count ? FETCH_SECONDS : HUGE_VAL);
    return task->fetched;
}

/* ---- running ------------------------------------------------------------------------------------------------------
 */
/* Takes what the cache has of the task's prefix and makes it run. false: memory is short. One alone always fits: the
 * plan saw to it. */
static bool begin(mx_engine *e, mx_task *task) {
    const int64_t cached = mx_sequence_resume(&task->sequence, task->tokens, resumable(task));
    if (e->running_count > 0 && !has_room(e, task)) {
        mx_sequence_end(&task->sequence, task->tokens, true);
        return false;
    }
    if (!task->started) {
        task->started = true;
        task->start_time = mx_seconds();
        task->usage.queue_seconds = task->start_time - task->submit_time;
        task->usage.cached_tokens = cached;
        e->count.prompt_tokens += task->request.prompt_count;
        e->count.cached_tokens += cached;
    }
    task->computing = true;
    int i = e->running_count++;
    for (; i > 0 && mx_task_is_senior(task, e->running[i - 1]); i--) e->running[i] = e->running[i - 1];
    e->running[i] = task;
    pthread_mutex_lock(&e->lock);
    mx_queue_remove(e, task);
    pthread_mutex_unlock(&e->lock);
    return true;
}

void mx_queue_admit(mx_engine *e) {
    mx_task *task = e->running_count < e->parts.max_running ? next_waiting(e, NULL) : NULL;
    for (int i = 0; task && i < EXAMINED && e->running_count < e->parts.max_running; i++) {
        mx_task *next = next_waiting(e, task);
        if (!waits_for_prefix(e, task) && !(fetch(e, task) && begin(e, task)))
            break; /* nor does a smaller one pass it by */
        task = next;
    }
}

void mx_queue_stop_running(mx_engine *e, mx_task *task) {
    int i = 0;
    while (i < e->running_count && e->running[i] != task) i++;
    if (i == e->running_count) return;
    e->running_count--;
    for (; i < e->running_count; i++) e->running[i] = e->running[i + 1];
}

void mx_queue_set_back(mx_engine *e, mx_task *task) {
    mx_sequence_end(&task->sequence, task->tokens, true);
    mx_queue_stop_running(e, task);
    task->usage.set_back++;
    e->count.set_back++;
    pthread_mutex_lock(&e->lock);
    mx_queue_add(e, task);
    pthread_mutex_unlock(&e->lock);
}
