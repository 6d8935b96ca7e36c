/* The masks of constraints: those that the step's draws will need are made by all threads of the pool at once, or,
 * where a thread of their own is wanted, while the forward pass runs. What a mask holds depends on its request alone.
 */
#include "engine/masks.h"

#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "engine/engine_state.h"

static const double WORTH_WAKING = 500e-6; /* seconds of all masks of a step */

/* ---- one mask -----------------------------------------------------------------------------------------------------
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
static bool fill(const mx_task *task, uint32_t *mask, int32_t vocab) {
    const bool narrowed = ask_constraint(task, mask, vocab);
    if (mx_task_may_stop(task)) return narrowed;
    for (int i = 0; i < task->request.stop_count; i++) {
        const int32_t token = task->stop[i];
        if (token >= 0 && token < vocab) mask[token >> 5] &= ~(1u << (token & 31));
    }
    for (int32_t i = 0; i < (vocab + 31) / 32; i++)
        if (mask[i]) return true;
    return ask_constraint(task, mask, vocab); /* it allows nothing but the end */
}

static void make(const mx_masks *m, mx_mask *mask) {
    const double start = mx_seconds();
    mask->narrowed = fill(mask->task, m->bits + (mask - m->mask) * (size_t)m->words, m->vocab);
    mask->seconds = mx_seconds() - start;
}

/* ---- the thread ----------------------------------------------------------------------------------------------------
 */
static void *work(void *user) {
    mx_masks *m = user;
    pthread_setaffinity_np(pthread_self(), sizeof m->processors,
                           &m->processors); /* the caller may be pinned just now */
    pthread_mutex_lock(&m->lock);
    while (!m->stop) {
        if (m->next == m->count) {
            pthread_cond_wait(&m->wake, &m->lock);
            continue;
        }
        mx_mask *mask = &m->mask[m->job[m->next++]];
        m->busy = true;
        pthread_mutex_unlock(&m->lock);
        make(m, mask);
        pthread_mutex_lock(&m->lock);
        m->busy = false;
        pthread_cond_signal(&m->done);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

bool mx_masks_init(mx_masks *m, int most, int32_t vocab, int threads) {
    m->overlap = !sched_getaffinity(0, sizeof m->processors, &m->processors) && CPU_COUNT(&m->processors) > threads;
    m->vocab = vocab;
    m->words = (vocab + 31) / 32;
    m->mask = calloc((size_t)most, sizeof *m->mask);
    m->job = calloc((size_t)most, sizeof *m->job);
    m->bits = malloc((size_t)most * (size_t)m->words * sizeof *m->bits);
    if (!m->mask || !m->job || !m->bits) return false;
    m->locked =
        !pthread_mutex_init(&m->lock, NULL) && !pthread_cond_init(&m->wake, NULL) && !pthread_cond_init(&m->done, NULL);
    return m->locked;
}

static void end_thread(mx_masks *m) {
    if (!m->started) return;
    pthread_mutex_lock(&m->lock);
    m->stop = true;
    pthread_cond_signal(&m->wake);
    pthread_mutex_unlock(&m->lock);
    pthread_join(m->thread, NULL);
    m->started = m->stop = false;
}

void mx_masks_free(mx_masks *m) {
    end_thread(m);
    if (m->locked) {
        pthread_mutex_destroy(&m->lock);
        pthread_cond_destroy(&m->wake);
        pthread_cond_destroy(&m->done);
    }
    free(m->mask);
    free(m->job);
    free(m->bits);
}

/* ---- a step's masks ------------------------------------------------------------------------------------------------
 */
static bool is_asked(const mx_task *task) {
    const mx_constraint *c = &task->request.constraint;
    return c->accept && c->mask;
}

void mx_masks_add(mx_masks *m, const mx_task *task, int draw) {
    m->mask[draw] = (mx_mask){.task = task};
    if (is_asked(task)) m->job[m->added++] = draw;
}

void mx_masks_begin(mx_masks *m) {
    if (!m->overlap || m->added * m->price < WORTH_WAKING) return;
    if (!m->started) m->started = !pthread_create(&m->thread, NULL, work, m);
    if (!m->started) return;
    pthread_mutex_lock(&m->lock);
    m->next = 0;
    m->count = m->added;
    pthread_cond_signal(&m->wake);
    pthread_mutex_unlock(&m->lock);
}

static void make_range(void *user, int64_t begin, int64_t end, int thread) {
    mx_masks *m = user;
    (void)thread;
    for (int64_t i = begin; i < end; i++) make(m, &m->mask[m->job[m->first + i]]);
}

void mx_masks_end(mx_masks *m, mx_pool *pool) {
    if (!m->added) return;
    pthread_mutex_lock(&m->lock);
    m->first = m->count ? m->next : 0;
    m->next = m->count = 0;
    pthread_mutex_unlock(&m->lock);
    const int left = m->added - m->first;
    if (pool && left > 1)
        mx_parallel_for(pool, left, 1, make_range, m);
    else
        make_range(m, 0, left, 0);
    pthread_mutex_lock(&m->lock);
    while (m->busy) pthread_cond_wait(&m->done, &m->lock);
    pthread_mutex_unlock(&m->lock);
    double seconds = 0;
    for (int i = 0; i < m->added; i++) {
        m->mask[m->job[i]].made = true;
        seconds += m->mask[m->job[i]].seconds;
    }
    m->price += (seconds / m->added - m->price) / 8;
    m->added = 0;
}

uint32_t *mx_masks_take(mx_masks *m, const mx_task *task, int draw) {
    mx_mask *mask = &m->mask[draw];
    if (!mask->made || mask->task != task) {
        mask->task = task;
        make(m, mask);
    }
    mask->made = false;
    return mask->narrowed ? m->bits + (size_t)draw * (size_t)m->words : NULL;
}
