#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "grammar/matcher_private.h"

enum { MOMENTS = 2 * MX_MATCHER_HISTORY + 2, COLLECT_AT = 2000 };

mx_places mx_matcher_now(const mx_matcher *m) {
    const mx_moment *now = &m->moment[m->moments - 1];
    return (mx_places){.place = m->log + now->first, .count = now->count, .room = now->count, .ends = now->ends};
}

/* ---- frames that nothing needs any more -------------------------------------------------------------------------- */
typedef struct marking {
    uint32_t *to; /* [frames]; 1: needed; later where it goes + 1 */
    uint32_t *todo;
    size_t todos;
} marking;

static void need(marking *k, uint32_t frame) {
    if (k->to[frame]) return;
    k->to[frame] = 1;
    k->todo[k->todos++] = frame;
}

static void mark(const mx_stack *s, marking *k) {
    while (k->todos > 0)
        for (uint32_t i = s->frame[k->todo[--k->todos]].callers; i; i = s->caller[i - 1].next)
            need(k, s->caller[i - 1].behind.frame);
}

/* Moves the frames that are needed together, with those that called them. */
static void compact(mx_stack *s, const marking *k, mx_caller *caller) {
    size_t frames = 0, callers = 0;
    for (size_t i = 0; i < s->frames; i++) {
        if (!k->to[i]) continue;
        mx_frame f = s->frame[i];
        uint32_t last = 0;
        for (uint32_t at = f.callers; at; at = s->caller[at - 1].next) {
            caller[callers] = s->caller[at - 1];
            caller[callers].behind.frame = k->to[caller[callers].behind.frame] - 1;
            caller[callers].next = 0;
            callers++;
            if (last)
                caller[last - 1].next = (uint32_t)callers;
            else
                f.callers = (uint32_t)callers;
            last = (uint32_t)callers;
        }
        s->frame[frames++] = f;
    }
    free(s->caller);
    s->caller = caller;
    s->frames = frames;
    s->callers = callers;
}

/* `more`: places that are needed beside those of the matcher's moments. */
static void collect(mx_matcher *m, mx_places *more) {
    mx_stack *s = &m->stack;
    marking k = {calloc(s->frames, sizeof *k.to), malloc(s->frames * sizeof *k.todo), 0};
    mx_caller *caller = malloc((s->callers + 1) * sizeof *caller);
    if (k.to && k.todo && caller) {
        need(&k, 0);
        for (size_t i = 0; i < m->logs; i++) need(&k, m->log[i].frame);
        for (uint32_t i = 0; i < more->count; i++) need(&k, more->place[i].frame);
        mark(s, &k);
        uint32_t frames = 0;
        for (size_t i = 0; i < s->frames; i++)
            if (k.to[i]) k.to[i] = ++frames;
        const size_t room = s->callers + 1;
        compact(s, &k, caller);
        s->caller_room = room;
        caller = NULL;
        for (size_t i = 0; i < m->logs; i++) m->log[i].frame = k.to[m->log[i].frame] - 1;
        for (uint32_t i = 0; i < more->count; i++) more->place[i].frame = k.to[more->place[i].frame] - 1;
    }
    free(k.to);
    free(k.todo);
    free(caller);
    m->collect_at = 2 * s->frames > COLLECT_AT ? 2 * s->frames : COLLECT_AT;
}

/* ---- moments ------------------------------------------------------------------------------------------------------
 */
static void forget_oldest(mx_matcher *m) {
    const int dropped = m->moments - MX_MATCHER_HISTORY;
    const uint32_t first = m->moment[dropped].first;
    memmove(m->moment, m->moment + dropped, MX_MATCHER_HISTORY * sizeof *m->moment);
    m->moments = MX_MATCHER_HISTORY;
    for (int i = 0; i < m->moments; i++) m->moment[i].first -= first;
    m->logs -= first;
    memmove(m->log, m->log + first, m->logs * sizeof *m->log);
}

static bool remember(mx_matcher *m, const mx_places *p) {
    if (m->moments == MOMENTS) forget_oldest(m);
    const mx_moment now = {.first = (uint32_t)m->logs, .count = p->count, .ends = p->ends};
    for (uint32_t i = 0; i < p->count; i++)
        if (!MX_PUSH(m->log, m->logs, m->log_room, p->place[i])) {
            m->logs = now.first;
            return false;
        }
    m->moment[m->moments++] = now;
    return true;
}

mx_status mx_matcher_create(mx_grammar *g, mx_vocabulary *v, mx_matcher **out, mx_error *error) {
    *out = NULL;
    mx_matcher *m = calloc(1, sizeof *m);
    if (m) {
        m->v = v;
        m->collect_at = COLLECT_AT;
        m->g = mx_grammar_keep(g);
        m->moment = malloc(MOMENTS * sizeof *m->moment);
        if (m->moment && MX_PUSH(m->log, m->logs, m->log_room, (mx_place){0}) && mx_stack_create(&m->stack, g)) {
            m->logs = 0;
            mx_stack_begin(&m->stack, &m->work[0]);
            if (!m->stack.failed && !m->stack.crowded && remember(m, &m->work[0])) {
                *out = m;
                return MX_OK;
            }
        }
    }
    mx_matcher_free(m);
    return mx_fail(error, MX_NO_MEMORY, "no memory for a grammar's matcher");
}

void mx_matcher_free(mx_matcher *m) {
    if (!m) return;
    mx_stack_free(&m->stack);
    free(m->log);
    free(m->moment);
    free(m->work[0].place);
    free(m->work[1].place);
    for (uint32_t i = 0; m->level && i < m->v->longest + 3; i++) free(m->level[i].place);
    free(m->level);
    free(m->seen);
    mx_grammar_free(m->g);
    free(m);
}

static void *copy_of(const void *data, size_t count, size_t size, size_t *room) {
    *room = count ? count : 1;
    void *copy = malloc(*room * size);
    if (copy && count) memcpy(copy, data, count * size);
    return copy;
}

mx_matcher *mx_matcher_clone(const mx_matcher *m) {
    mx_matcher *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    const mx_stack *s = &m->stack;
    c->g = mx_grammar_keep(m->g);
    c->v = m->v;
    c->collect_at = m->collect_at;
    c->lost = m->lost;
    c->moments = m->moments;
    c->logs = m->logs;
    c->stack.g = s->g;
    c->stack.frames = s->frames;
    c->stack.callers = s->callers;
    c->log = copy_of(m->log, m->logs, sizeof *m->log, &c->log_room);
    c->stack.frame = copy_of(s->frame, s->frames, sizeof *s->frame, &c->stack.frame_room);
    c->stack.caller = copy_of(s->caller, s->callers, sizeof *s->caller, &c->stack.caller_room);
    c->stack.latest = calloc(m->g->machines, sizeof *s->latest);
    c->moment = malloc(MOMENTS * sizeof *c->moment);
    if (!c->log || !c->stack.frame || !c->stack.caller || !c->stack.latest || !c->moment) {
        mx_matcher_free(c);
        return NULL;
    }
    memcpy(c->moment, m->moment, (size_t)m->moments * sizeof *m->moment);
    return c;
}

/* ---- going on -----------------------------------------------------------------------------------------------------
 */
void mx_matcher_lose(mx_matcher *m) {
    if (!m->lost)
        mx_log(MX_LOG_WARNING, m->stack.failed
                                   ? "no memory to follow a grammar: its text cannot go on"
                                   : "a grammar can be read in too many ways at once: its text cannot go on");
    m->lost = true;
}

bool mx_matcher_accept(mx_matcher *m, const void *bytes, size_t size) {
    mx_stack *s = &m->stack;
    const uint8_t *byte = bytes;
    const size_t frames = s->frames, callers = s->callers;
    mx_places now = mx_matcher_now(m), *in = &now;
    bool collected = false;
    if (m->lost) return false;
    s->failed = s->crowded = false;
    s->work = 0;
    s->most_work = m->v ? MX_WORK * (uint64_t)(size / 16 + 1) : UINT64_MAX; /* nobody waits for texts alone */
    for (size_t i = 0; i < size; i++) {
        mx_places *out = in == &m->work[0] ? &m->work[1] : &m->work[0];
        if (!mx_stack_step(s, in, byte[i], out) || s->failed) goto refused;
        in = out;
        if (s->frames > m->collect_at && i + 1 < size) {
            collect(m, in);
            collected = true;
        }
    }
    if (in == &now) {
        if (!mx_places_copy(&m->work[0], &now)) return false;
        in = &m->work[0];
    }
    if (!remember(m, in)) goto refused;
    if (s->frames > m->collect_at) collect(m, &(mx_places){0});
    return true;
refused:
    if (s->crowded || s->failed) mx_matcher_lose(m);
    if (!collected) {
        s->frames = frames;
        s->callers = callers;
    }
    return false;
}

bool mx_matcher_accept_token(mx_matcher *m, int32_t token) {
    size_t size = 0;
    const uint8_t *bytes = m->v ? mx_vocabulary_bytes(m->v, token, &size) : NULL;
    return size > 0 && mx_matcher_accept(m, bytes, size);
}

bool mx_matcher_rollback(mx_matcher *m, int count) {
    if (count < 0 || count >= m->moments || count > MX_MATCHER_HISTORY) return false;
    m->moments -= count;
    if (count > 0) m->lost = false;
    const mx_moment *now = &m->moment[m->moments - 1];
    m->logs = now->first + now->count;
    return true;
}

bool mx_matcher_is_lost(const mx_matcher *m) {
    return m->lost;
}

bool mx_matcher_can_end(const mx_matcher *m) {
    return !m->lost && mx_matcher_now(m).ends;
}

bool mx_matcher_must_end(const mx_matcher *m) {
    const mx_places now = mx_matcher_now(m);
    return !m->lost && now.ends && now.count == 0;
}

bool mx_grammar_match(mx_grammar *g, const void *text, size_t size) {
    mx_matcher *m;
    if (mx_matcher_create(g, NULL, &m, NULL) != MX_OK) return false;
    const bool matches = mx_matcher_accept(m, text, size) && mx_matcher_can_end(m);
    mx_matcher_free(m);
    return matches;
}
