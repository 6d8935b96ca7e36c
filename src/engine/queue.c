/* Who runs and who waits. */
#include <string.h>

#include "base/cpu.h"
#include "engine/engine_state.h"

/* Looking at those that wait takes this part of a step at most, but so many are always looked at. */
static const double LOOK_PART = 1.0 / 256;
enum { LOOK_LEAST = 64 };

/* ---- waiting ------------------------------------------------------------------------------------------------------
 */
static mx_task *at(const mx_heap_link *place) {
    return place ? (mx_task *)((char *)place - offsetof(mx_task, place)) : NULL;
}

static mx_task *timed(const mx_heap_link *link) {
    return link ? (mx_task *)((char *)link - offsetof(mx_task, by_deadline)) : NULL;
}

static bool is_senior(const mx_heap_link *a, const mx_heap_link *b) {
    return mx_task_is_senior(at(a), at(b));
}

static bool waits_less(const mx_heap_link *a, const mx_heap_link *b) {
    return at(a)->wait_until < at(b)->wait_until;
}

static bool ends_sooner(const mx_heap_link *a, const mx_heap_link *b) {
    return timed(a)->deadline < timed(b)->deadline;
}

void mx_queue_init(mx_engine *e) {
    e->queue.goes_before = is_senior;
    e->timed.goes_before = ends_sooner;
}

void mx_queue_add(mx_engine *e, mx_task *task) {
    mx_heap_add(&e->queue, &task->place);
    task->waiting = true;
    e->waiting++;
}

void mx_queue_remove(mx_engine *e, mx_task *task) {
    mx_heap_remove(task->waits_for ? &task->waits_for->waiters : &e->queue, &task->place);
    task->waits_for = NULL;
    task->waiting = false;
    e->waiting--;
}

/* Only the thread that steps takes tasks out of the queue, so that the first of it stays there. */
static mx_task *next_waiting(mx_engine *e) {
    pthread_mutex_lock(&e->lock);
    mx_task *next = at(e->queue.first);
    pthread_mutex_unlock(&e->lock);
    return next;
}

/* ---- deadlines ----------------------------------------------------------------------------------------------------
 */
void mx_queue_add_deadline(mx_engine *e, mx_task *task) {
    task->timed = task->deadline > 0;
    if (task->timed) mx_heap_add(&e->timed, &task->by_deadline);
}

void mx_queue_forget_deadline(mx_engine *e, mx_task *task) {
    if (task->timed) mx_heap_remove(&e->timed, &task->by_deadline);
    task->timed = false;
}

mx_task *mx_queue_take_overdue(mx_engine *e, double now) {
    mx_task *task = timed(e->timed.first);
    if (!task || task->deadline > now) return NULL;
    mx_queue_forget_deadline(e, task);
    return task;
}

/* ---- shared prefixes ----------------------------------------------------------------------------------------------
 */
/* From the queue to those that wait for `other`, and back. */
static void wait_for(mx_engine *e, mx_task *task, mx_task *other) {
    pthread_mutex_lock(&e->lock);
    mx_heap_remove(&e->queue, &task->place);
    pthread_mutex_unlock(&e->lock);
    task->waits_for = other;
    other->waiters.goes_before = waits_less;
    mx_heap_add(&other->waiters, &task->place);
}

static void wait_no_more(mx_engine *e, mx_task *task) {
    mx_heap_remove(&task->waits_for->waiters, &task->place);
    task->waits_for = NULL;
    pthread_mutex_lock(&e->lock);
    mx_heap_add(&e->queue, &task->place);
    pthread_mutex_unlock(&e->lock);
}

/* Those that waited for a running task to come so far. */
static void release_waiters(mx_engine *e, mx_task *task) {
    for (mx_task *first; (first = at(task->waiters.first));) {
        if (task->computing && task->sequence.count < first->wait_until) break;
        wait_no_more(e, first);
    }
}

static int64_t common_prefix(const mx_task *a, const mx_task *b, int64_t limit) {
    int64_t n = 0;
    if (limit > b->known) limit = b->known;
    while (n + MX_TILE <= limit && !memcmp(a->tokens + n, b->tokens + n, MX_TILE * sizeof *a->tokens)) n += MX_TILE;
    while (n < limit && a->tokens[n] == b->tokens[n]) n++;
    return n;
}

/* The running task that is about to compute more of this one's prefix than the cache has, by a tile or to the last
 * token: what several begin with is computed once. NULL: there is none. */
static mx_task *who_computes(const mx_engine *e, mx_task *task) {
    const int64_t limit = mx_task_wanted_from(task);
    int64_t cached = -1, most = 0;
    mx_task *best = NULL;
    for (int i = 0; i < e->running_count; i++) {
        mx_task *r = e->running[i];
        if (!r->computing || r->request.priority < task->request.priority) continue;
        const int64_t common = common_prefix(task, r, limit);
        const bool whole = common == limit && r->known <= task->known; /* the end of r's prompt is of use, too */
        const int64_t usable = whole ? common : common / MX_TILE * MX_TILE;
        if (usable <= most || (!whole && r->sequence.count >= usable)) continue; /* r has passed it */
        if (cached < 0) cached = mx_kv_cached_tokens(e->kv, task->tokens, limit);
        if (usable < cached + MX_TILE && !(whole && usable > cached)) continue;
        most = usable;
        best = r;
        task->wait_until = whole ? INT64_MAX : usable;
    }
    return best;
}

/* ---- memory -------------------------------------------------------------------------------------------------------
 */
static int64_t tiles_of(int64_t positions) {
    return (positions + MX_TILE - 1) / MX_TILE;
}

/* Pages that a sequence with those `there`, of sliding layers from `first` on, takes until all of `known` is computed,
 * and for a tile more. */
static int64_t pages_beyond(const mx_engine *e, int64_t known, int64_t there, int64_t first) {
    const int64_t tiles = tiles_of(known) + 1 - there, held = there - first;
    const int64_t window = tiles_of((int64_t)e->parts.config->window + e->parts.batch_tokens) + 1;
    int64_t sliding = window > held ? window - held : 1;
    if (sliding > tiles) sliding = tiles;
    return e->full_layers * tiles + e->sliding_layers * sliding;
}

static int64_t pages_to_come(const mx_engine *e, const mx_task *task) {
    return pages_beyond(e, task->known, task->sequence.tiles, task->sequence.first_tile);
}

/* Of the pages that are free or cached, those that a task without any takes. */
static int64_t pages_to_take(const mx_engine *e, const mx_task *task) {
    const mx_kv_prefix prefix = mx_kv_find_prefix(e->kv, task->tokens, mx_task_wanted_from(task));
    return prefix.taken + pages_beyond(e, task->known, prefix.tiles, prefix.first_tile);
}

/* Is there room for a task beside those that run? One alone always fits: the plan saw to it. */
static bool has_room(const mx_engine *e, const mx_task *task) {
    if (e->running_count == 0) return true;
    int64_t pages = pages_to_take(e, task);
    for (int i = 0; i < e->running_count; i++) {
        const mx_task *r = e->running[i];
        pages += r->reading ? pages_to_take(e, r) : pages_to_come(e, r);
    }
    return pages <= mx_kv_pages_free(e->kv) + mx_kv_pages_cached(e->kv);
}

/* Those that a task holds or, where it has none, would hold, and that it takes beyond them; what it shares with others
 * is counted once. */
static int64_t all_pages(const mx_engine *e, const mx_task *task) {
    if (task->sequence.tiles > 0) return mx_kv_count_sequence(&task->sequence) + pages_to_come(e, task);
    const mx_kv_prefix prefix = mx_kv_count_prefix(e->kv, task->tokens, mx_task_wanted_from(task));
    return prefix.taken + pages_beyond(e, task->known, prefix.tiles, prefix.first_tile);
}

/* Would there be room if all of a lower priority were set back? */
static bool could_have_room(const mx_engine *e, const mx_task *task) {
    mx_kv_count_anew(e->kv);
    int64_t pages = all_pages(e, task);
    for (int i = 0; i < e->running_count; i++) {
        const mx_task *r = e->running[i];
        if (r->request.priority >= task->request.priority) pages += all_pages(e, r);
    }
    return pages <= e->parts.plan.pages;
}

/* The most junior of those that run, where its priority is lower than the task's. */
static mx_task *who_makes_way(const mx_engine *e, const mx_task *task) {
    mx_task *junior = e->running_count > 0 ? e->running[e->running_count - 1] : NULL;
    return junior && junior->request.priority < task->request.priority ? junior : NULL;
}

static bool may_run(const mx_engine *e, const mx_task *task) {
    return e->running_count < e->parts.max_running && has_room(e, task);
}

/* Sets back those of a lower priority until the task can run, no more of them than it takes. They go on when there is
 * room behind it. false: it must wait. */
static bool make_way(mx_engine *e, const mx_task *task) {
    if (may_run(e, task)) return true;
    if (!who_makes_way(e, task) || !could_have_room(e, task)) return false;
    for (mx_task *junior; !may_run(e, task) && (junior = who_makes_way(e, task));) mx_queue_set_back(e, junior);
    return may_run(e, task);
}

/* ---- running ------------------------------------------------------------------------------------------------------
 */
/* Of a step, for reading what earlier processes computed, and for all else here; also where nobody decodes: others may
 * come, or be cancelled. */
static const double READ_SECONDS = 0.05, ADMIT_SECONDS = 0.05;

/* Makes a task run that there is room for. */
static void begin(mx_engine *e, mx_task *task) {
    task->computing = task->reading = true;
    if (e->free_lookups > 0) {
        task->lookup = e->free_lookup[--e->free_lookups];
        mx_lookup_reset(task->lookup);
    }
    int i = e->running_count++;
    for (; i > 0 && mx_task_is_senior(task, e->running[i - 1]); i--) e->running[i] = e->running[i - 1];
    e->running[i] = task;
    pthread_mutex_lock(&e->lock);
    mx_queue_remove(e, task);
    pthread_mutex_unlock(&e->lock);
}

/* Takes what the cache has of the task's prefix. */
static void resume(mx_engine *e, mx_task *task) {
    const int64_t cached = mx_sequence_resume(&task->sequence, task->tokens, mx_task_wanted_from(task));
    task->reading = false;
    if (task->started) return;
    task->started = true;
    task->start_time = mx_seconds();
    task->usage.queue_seconds = task->start_time - task->submit_time;
    task->usage.cached_tokens = cached;
    e->count.prompt_tokens += task->request.prompt_count;
    e->count.cached_tokens += cached;
}

/* Reads as long as there is time, *left, which is less then. Where nothing is to be read that takes none. */
static void read_prefix(mx_engine *e, mx_task *task, double *left) {
    const double start = mx_seconds();
    const bool done = mx_kv_fetch(e->kv, task->tokens, mx_task_wanted_from(task), *left > 0 ? *left : -1);
    *left = done ? *left - (mx_seconds() - start) : 0;
    if (done) resume(e, task);
}

void mx_queue_admit(mx_engine *e) {
    const double start = mx_seconds();
    double left = READ_SECONDS;
    for (int i = 0; i < e->running_count; i++) {
        if (e->running[i]->reading && left > 0) read_prefix(e, e->running[i], &left);
        release_waiters(e, e->running[i]);
    }
    for (int i = 0;; i++) {
        const double seconds = mx_seconds() - start - (READ_SECONDS - left);
        if (i > 0 && seconds > (i < LOOK_LEAST ? ADMIT_SECONDS : LOOK_PART * e->last_seconds)) break;
        mx_task *task = next_waiting(e);
        if (!task || (e->running_count == e->parts.max_running && !who_makes_way(e, task))) break;
        mx_task *other = who_computes(e, task);
        if (other) {
            wait_for(e, task, other);
            continue;
        }
        if (!make_way(e, task)) break; /* nor does a smaller one pass it by */
        begin(e, task);
        read_prefix(e, task, &left);
    }
}

void mx_queue_stop_running(mx_engine *e, mx_task *task) {
    int i = 0;
    while (i < e->running_count && e->running[i] != task) i++;
    if (i == e->running_count) return;
    e->running_count--;
    for (; i < e->running_count; i++) e->running[i] = e->running[i + 1];
    if (task->lookup) e->free_lookup[e->free_lookups++] = task->lookup;
    task->lookup = NULL;
    if (task->ahead) mx_ahead_forget(e, task);
    task->computing = task->reading = false;
    release_waiters(e, task);
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
