#include <stdlib.h>
#include <string.h>

#include "grammar/matcher_private.h"

bool mx_stack_create(mx_stack *s, const mx_grammar *g) {
    *s = (mx_stack){.g = g};
    s->latest = calloc(g->machines, sizeof *s->latest);
    return s->latest && MX_PUSH(s->frame, s->frames, s->frame_room, (mx_frame){0});
}

void mx_stack_free(mx_stack *s) {
    free(s->frame);
    free(s->caller);
    free(s->latest);
    free(s->todo);
    free(s->table);
    *s = (mx_stack){0};
}

static bool reserve(mx_places *p, uint32_t count) {
    if (count <= p->room) return true;
    uint32_t room = p->room ? p->room : 8;
    while (room < count) room *= 2;
    mx_place *bigger = realloc(p->place, room * sizeof *bigger);
    if (!bigger) return false;
    p->place = bigger;
    p->room = room;
    return true;
}

bool mx_places_copy(mx_places *to, const mx_places *from) {
    if (!reserve(to, from->count)) return false;
    if (from->count) memcpy(to->place, from->place, from->count * sizeof *to->place);
    to->count = from->count;
    to->ends = from->ends;
    return true;
}

/* ---- places of a step, each once -----------------------------------------------------------------------------------
 */
static bool same(mx_place a, mx_place b) {
    return a.state == b.state && a.count == b.count && a.frame == b.frame;
}

static size_t hash(mx_place p) {
    uint64_t x = (uint64_t)p.state * 0x9E3779B97F4A7C15u + (uint64_t)p.frame * 0xC2B2AE3D27D4EB4Fu + p.count;
    x ^= x >> 29;
    return (size_t)(x * 0x165667B19E3779F9u >> 20);
}

/* A few are compared one by one; from then on a table has them. */
enum { FEW = 12 };

/* The table is as large as this step's places want, so that one with few does not clear what one with many took. */
static bool fill_table(mx_stack *s) {
    size_t size = 64;
    while (size < 4 * s->todos) size *= 2;
    if (size > s->table_room) {
        free(s->table);
        s->table = malloc(size * sizeof *s->table);
        s->table_room = s->table ? size : 0;
        if (!s->table) return false;
    }
    s->table_size = size;
    memset(s->table, 0, size * sizeof *s->table);
    for (size_t i = 0; i < s->todos; i++) {
        size_t at = hash(s->todo[i]);
        while (s->table[at & (size - 1)]) at++;
        s->table[at & (size - 1)] = (uint32_t)i + 1;
    }
    return true;
}

static void add(mx_stack *s, mx_place p) {
    size_t at = 0;
    if (s->todos <= FEW) {
        for (size_t i = 0; i < s->todos; i++)
            if (same(s->todo[i], p)) return;
    } else {
        if (s->todos == FEW + 1 || 2 * s->todos >= s->table_size)
            if (!fill_table(s)) {
                s->failed = true;
                return;
            }
        for (at = hash(p); s->table[at & (s->table_size - 1)]; at++)
            if (same(s->todo[s->table[at & (s->table_size - 1)] - 1], p)) return;
        if (s->todos >= MX_PLACES) {
            s->crowded = true;
            return;
        }
        s->table[at & (s->table_size - 1)] = (uint32_t)s->todos + 1;
    }
    if (!MX_PUSH(s->todo, s->todos, s->todo_room, p)) s->failed = true;
}

/* ---- what follows without reading -------------------------------------------------------------------------------- */
/* The machine's text is whole behind this place. */
static void complete(mx_stack *s, mx_place p, mx_places *out) {
    const mx_machine *m = &s->g->machine[s->g->state[p.state].machine];
    if (m->counted) {
        bool more, whole;
        const uint32_t count = mx_count_up(m, p.count, &more, &whole);
        if (more) add(s, (mx_place){m->start, count, p.frame});
        if (!whole) return;
    }
    if (p.frame == 0) out->ends = true;
    for (uint32_t i = s->frame[p.frame].callers; i && s->work <= s->most_work; i = s->caller[i - 1].next) {
        s->work++;
        add(s, s->caller[i - 1].behind);
    }
}

/* `fresh`: frames from here on belong to this step. */
static void call(mx_stack *s, mx_place p, const mx_call *c, size_t fresh) {
    if (c->machine == MX_DEAD) {
        add(s, (mx_place){c->state, p.count, p.frame});
        return;
    }
    uint32_t frame = s->latest[c->machine];
    if (frame < fresh || frame >= s->frames || s->frame[frame].machine != c->machine) {
        frame = (uint32_t)s->frames;
        if (s->frames >= UINT32_MAX / 4 ||
            !MX_PUSH(s->frame, s->frames, s->frame_room, (mx_frame){.machine = c->machine})) {
            s->failed = true;
            return;
        }
        s->latest[c->machine] = frame;
        add(s, (mx_place){s->g->machine[c->machine].start, 0, frame});
    }
    const mx_caller caller = {{c->state, p.count, p.frame}, s->frame[frame].callers};
    if (!MX_PUSH(s->caller, s->callers, s->caller_room, caller)) {
        s->failed = true;
        return;
    }
    s->frame[frame].callers = (uint32_t)s->callers;
}

static void follow(mx_stack *s, mx_places *out) {
    const mx_grammar *g = s->g;
    const size_t fresh = s->frames;
    out->count = 0;
    out->ends = false;
    for (size_t i = 0; i < s->todos; i++) {
        if (++s->work > s->most_work) s->crowded = true;
        if (s->crowded) return;
        const mx_place p = s->todo[i];
        const mx_state *state = &g->state[p.state];
        if (state->flags & MX_STATE_ROW) {
            if (!reserve(out, out->count + 1)) {
                s->failed = true;
                return;
            }
            out->place[out->count++] = p;
        }
        if (state->flags & MX_STATE_ACCEPTS) complete(s, p, out);
        if (state->flags & MX_STATE_CALLS)
            for (uint32_t k = state->call; k < state[1].call; k++, s->work++) call(s, p, &g->call[k], fresh);
    }
    if (s->work > s->most_work) s->crowded = true; /* complete() left callers out */
}

void mx_stack_begin(mx_stack *s, mx_places *out) {
    const mx_place start = {s->g->machine[0].start, 0, 0};
    s->work = 0;
    s->most_work = MX_WORK;
    mx_stack_follow(s, &start, 1, out);
    if (s->g->machine[0].nullable) out->ends = true;
}

void mx_stack_follow(mx_stack *s, const mx_place *from, size_t count, mx_places *out) {
    s->todos = 0;
    for (size_t i = 0; i < count; i++) add(s, from[i]);
    follow(s, out);
}

bool mx_stack_step(mx_stack *s, const mx_places *in, uint8_t byte, mx_places *out) {
    const mx_grammar *g = s->g;
    s->work += in->count;
    if (in->count == 1) {
        const uint32_t next = mx_next_state(g, in->place[0].state, byte);
        if (next == MX_DEAD) return false;
        if (g->state[next].flags == MX_STATE_ROW) {
            if (!reserve(out, 1)) {
                s->failed = true;
                return false;
            }
            out->place[0] = (mx_place){next, in->place[0].count, in->place[0].frame};
            out->count = 1;
            out->ends = false;
            return true;
        }
    }
    s->todos = 0;
    for (uint32_t i = 0; i < in->count; i++) {
        const uint32_t next = mx_next_state(g, in->place[i].state, byte);
        if (next != MX_DEAD) add(s, (mx_place){next, in->place[i].count, in->place[i].frame});
    }
    if (s->todos == 0) return false;
    follow(s, out);
    return !s->crowded && (out->count > 0 || out->ends);
}
