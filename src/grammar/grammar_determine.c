#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "grammar/grammar_private.h"

/* One state at a time: the subset construction over bytes and calls. A state of the result is a set of those of the
 * NFA that do something, in ascending order. Where that would take many times as many states, the machine stays as it
 * is, and who runs it is in several states at once. */
typedef struct subsets {
    const mx_nfa *n;
    mx_draft *d;
    uint32_t machine, first; /* of the draft's states */
    uint32_t *member;        /* of all sets, one behind the other */
    size_t members, member_room, most_members;
    size_t *begin; /* [sets + 1]; where each set's members begin */
    size_t sets, begin_room, most_sets;
    uint32_t *table; /* of a hash of the members to set + 1 */
    size_t table_size;
    uint32_t *alone; /* [n->count]; the set + 1 that one state's closure is */
    uint32_t *mark;  /* [n->count]; == round: in the closure that is being made */
    uint32_t round;
    uint32_t *todo, *found; /* [n->count] */
    uint32_t founds;
    struct step {
        uint32_t target;
        uint8_t byte;
    } * step;
    size_t steps, step_room;
    mx_call *call; /* target: of the NFA */
    size_t calls, call_room;
    uint32_t *target; /* of the steps, by byte */
    size_t target_room;
    bool no_memory;
} subsets;

static void close_over(subsets *s, uint32_t state) {
    uint32_t todo = 0;
    if (s->mark[state] == s->round) return;
    s->mark[state] = s->round;
    s->todo[todo++] = state;
    while (todo > 0) {
        const uint32_t at = s->todo[--todo];
        const mx_nfa_state *q = &s->n->state[at];
        if (q->kind != MX_NFA_SPLIT) {
            s->found[s->founds++] = at;
            continue;
        }
        const uint32_t way[2] = {q->a, q->b};
        for (int i = 0; i < 2; i++)
            if (way[i] != MX_DEAD && s->mark[way[i]] != s->round) {
                s->mark[way[i]] = s->round;
                s->todo[todo++] = way[i];
            }
    }
}

static int by_number(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static bool enlarge_table(subsets *s) {
    const size_t size = s->table_size ? s->table_size * 2 : 64;
    uint32_t *table = calloc(size, sizeof *table);
    if (!table) return false;
    for (size_t i = 0; i < s->sets; i++) {
        size_t at = XXH3_64bits(s->member + s->begin[i], (s->begin[i + 1] - s->begin[i]) * sizeof *s->member);
        while (table[at & (size - 1)]) at++;
        table[at & (size - 1)] = (uint32_t)i + 1;
    }
    free(s->table);
    s->table = table;
    s->table_size = size;
    return true;
}

/* The set of the states found, new or not; MX_DEAD: too many, or no memory. */
static uint32_t set_of_found(subsets *s) {
    if (s->founds > 1) qsort(s->found, s->founds, sizeof *s->found, by_number);
    if (s->sets * 2 >= s->table_size && !enlarge_table(s)) goto no_memory;
    const size_t bytes = s->founds * sizeof *s->found;
    size_t at = XXH3_64bits(s->found, bytes);
    for (uint32_t i; (i = s->table[at & (s->table_size - 1)]) != 0; at++)
        if (s->begin[i] - s->begin[i - 1] == s->founds && !memcmp(s->member + s->begin[i - 1], s->found, bytes))
            return i - 1;
    if (s->sets >= s->most_sets || s->members + s->founds > s->most_members) return MX_DEAD;
    for (uint32_t i = 0; i < s->founds; i++)
        if (!MX_PUSH(s->member, s->members, s->member_room, s->found[i])) goto no_memory;
    const mx_draft_state state = {.machine = s->machine};
    if (!mx_grow((void **)&s->begin, &s->begin_room, s->sets + 1, sizeof *s->begin) ||
        !MX_PUSH(s->d->state, s->d->states, s->d->state_room, state))
        goto no_memory;
    s->begin[++s->sets] = s->members;
    s->table[at & (s->table_size - 1)] = (uint32_t)s->sets;
    return (uint32_t)s->sets - 1;
no_memory:
    s->no_memory = true;
    return MX_DEAD;
}

/* The set that `count` states' closure is. */
static uint32_t set_of(subsets *s, const uint32_t *state, size_t count) {
    if (count == 1 && s->alone[state[0]]) return s->alone[state[0]] - 1;
    s->round++;
    s->founds = 0;
    for (size_t i = 0; i < count; i++) close_over(s, state[i]);
    const uint32_t set = set_of_found(s);
    if (count == 1 && set != MX_DEAD) s->alone[state[0]] = set + 1;
    return set;
}

/* Steps and calls of a set's members. */
static bool collect(subsets *s, size_t set, bool *accepts) {
    s->steps = s->calls = 0;
    *accepts = false;
    for (size_t i = s->begin[set]; i < s->begin[set + 1]; i++) {
        const mx_nfa_state *q = &s->n->state[s->member[i]];
        if (q->kind == MX_NFA_ACCEPT) *accepts = true;
        if (q->kind == MX_NFA_BYTE && !MX_PUSH(s->step, s->steps, s->step_room, (struct step){q->a, q->byte}))
            return false;
        if (q->kind == MX_NFA_CALL && !MX_PUSH(s->call, s->calls, s->call_room, (mx_call){q->b, q->a})) return false;
        if (q->kind != MX_NFA_ROW) continue;
        const mx_regular_view *v = &s->n->view[q->regular];
        const int32_t *next = v->next + (size_t)q->b * (size_t)v->classes;
        for (int byte = 0; byte < 256; byte++) {
            const int32_t target = next[v->class_of[byte]];
            if (target >= 0 &&
                !MX_PUSH(s->step, s->steps, s->step_room, (struct step){q->a + (uint32_t)target, (uint8_t)byte}))
                return false;
        }
    }
    return true;
}

static bool add_range(mx_draft *d, mx_draft_state *state, int byte, uint32_t target) {
    mx_range *last = state->ranges ? &d->range[d->ranges - 1] : NULL;
    if (last && last->target == target && last->high == byte - 1) {
        last->high = (uint8_t)byte;
        return true;
    }
    state->ranges++;
    return MX_PUSH(d->range, d->ranges, d->range_room,
                   (mx_range){.target = target, .low = (uint8_t)byte, .high = (uint8_t)byte});
}

/* Transitions of a set by bytes; false: too many sets, or no memory. */
static bool step_over(subsets *s, mx_draft_state *state) {
    size_t first[257] = {0};
    for (size_t i = 0; i < s->steps; i++) first[s->step[i].byte + 1]++;
    for (int i = 0; i < 256; i++) first[i + 1] += first[i];
    while (s->target_room < s->steps)
        if (!mx_grow((void **)&s->target, &s->target_room, s->target_room, sizeof *s->target))
            return s->no_memory = true, false;
    size_t fill[256];
    memcpy(fill, first, sizeof fill);
    for (size_t i = 0; i < s->steps; i++) s->target[fill[s->step[i].byte]++] = s->step[i].target;
    uint32_t before = MX_DEAD;
    for (int byte = 0; byte < 256; byte++) {
        const size_t count = first[byte + 1] - first[byte];
        if (count == 0) {
            before = MX_DEAD;
            continue;
        }
        const bool same = before != MX_DEAD && first[byte] - first[byte - 1] == count &&
                          !memcmp(s->target + first[byte - 1], s->target + first[byte], count * sizeof *s->target);
        if (!same) before = set_of(s, s->target + first[byte], count);
        if (before == MX_DEAD) return false;
        if (!add_range(s->d, state, byte, s->first + before)) return s->no_memory = true, false;
    }
    return true;
}

static int by_machine(const void *a, const void *b) {
    const mx_call *x = a, *y = b;
    if (x->machine != y->machine) return x->machine < y->machine ? -1 : 1;
    return (x->state > y->state) - (x->state < y->state);
}

/* Calls of a set: of each machine one, to the states behind all of its calls together. */
static bool call_over(subsets *s, mx_draft_state *state) {
    if (s->calls > 1) qsort(s->call, s->calls, sizeof *s->call, by_machine);
    state->call = (uint32_t)s->d->calls;
    for (size_t i = 0; i < s->calls;) {
        size_t end = i;
        s->round++;
        s->founds = 0;
        for (; end < s->calls && s->call[end].machine == s->call[i].machine; end++) close_over(s, s->call[end].state);
        const uint32_t set = set_of_found(s);
        if (set == MX_DEAD) return false;
        if (!MX_PUSH(s->d->call, s->d->calls, s->d->call_room, (mx_call){s->call[i].machine, s->first + set}))
            return s->no_memory = true, false;
        state->calls++;
        i = end;
    }
    return true;
}

/* All sets that can be reached; false: too many, or no memory. */
static bool construct(subsets *s, uint32_t start) {
    if (!mx_grow((void **)&s->begin, &s->begin_room, 0, sizeof *s->begin) ||
        !mx_grow((void **)&s->member, &s->member_room, 0, sizeof *s->member))
        return s->no_memory = true, false;
    s->begin[0] = 0;
    /* Whoever calls the machine sees to the empty text. */
    s->round++;
    close_over(s, start);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s->founds; i++)
        if (s->n->state[s->found[i]].kind != MX_NFA_ACCEPT) s->found[kept++] = s->found[i];
    s->founds = kept;
    if (set_of_found(s) == MX_DEAD) return false;
    for (size_t i = 0; i < s->sets; i++) {
        mx_draft_state state = {.machine = s->machine, .range = (uint32_t)s->d->ranges};
        if (!collect(s, i, &state.accepts)) return s->no_memory = true, false;
        if (!step_over(s, &state) || !call_over(s, &state)) return false;
        s->d->state[s->first + i] = state;
    }
    return true;
}

/* The states of the NFA as they are, and the start, which never accepts, as one more. */
static bool copy_states(const mx_nfa *n, uint32_t machine, mx_draft *d, const uint32_t *found, uint32_t founds) {
    const uint32_t first = (uint32_t)d->states + 1;
    mx_draft_state state = {.machine = machine, .call = (uint32_t)d->calls, .range = (uint32_t)d->ranges};
    for (uint32_t i = 0; i < founds; i++) {
        if (n->state[found[i]].kind == MX_NFA_ACCEPT) continue;
        if (!MX_PUSH(d->call, d->calls, d->call_room, (mx_call){MX_DEAD, first + found[i]})) return false;
        state.calls++;
    }
    if (!MX_PUSH(d->state, d->states, d->state_room, state)) return false;
    for (uint32_t i = 0; i < n->count; i++) {
        const mx_nfa_state *q = &n->state[i];
        state = (mx_draft_state){.machine = machine, .call = (uint32_t)d->calls, .range = (uint32_t)d->ranges};
        mx_call call[2];
        if (q->kind == MX_NFA_ACCEPT) state.accepts = true;
        if (q->kind == MX_NFA_BYTE && !add_range(d, &state, q->byte, first + q->a)) return false;
        if (q->kind == MX_NFA_CALL) call[state.calls++] = (mx_call){q->b, first + q->a};
        if (q->kind == MX_NFA_SPLIT) {
            if (q->a != MX_DEAD) call[state.calls++] = (mx_call){MX_DEAD, first + q->a};
            if (q->b != MX_DEAD) call[state.calls++] = (mx_call){MX_DEAD, first + q->b};
        }
        for (uint32_t k = 0; k < state.calls; k++)
            if (!MX_PUSH(d->call, d->calls, d->call_room, call[k])) return false;
        for (int byte = 0; q->kind == MX_NFA_ROW && byte < 256; byte++) {
            const mx_regular_view *v = &n->view[q->regular];
            const int32_t target = v->next[(size_t)q->b * (size_t)v->classes + v->class_of[byte]];
            if (target >= 0 && !add_range(d, &state, byte, first + q->a + (uint32_t)target)) return false;
        }
        if (!MX_PUSH(d->state, d->states, d->state_room, state)) return false;
    }
    return true;
}

static mx_status out_of_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for the grammar's automaton");
}

mx_status mx_determine(const mx_nfa *n, uint32_t start, uint32_t machine, mx_draft *d, uint32_t *first,
                       mx_error *error) {
    subsets s = {.n = n, .d = d, .machine = machine, .first = (uint32_t)d->states};
    s.most_sets = (size_t)n->count * 4 + 1000;
    s.most_members = (size_t)n->count * 32 + 100000;
    s.alone = calloc(n->count, sizeof *s.alone);
    s.mark = calloc(n->count, sizeof *s.mark);
    s.todo = malloc(n->count * sizeof *s.todo);
    s.found = malloc(n->count * sizeof *s.found);
    const size_t ranges = d->ranges, calls = d->calls;
    *first = s.first;
    bool ok = s.alone && s.mark && s.todo && s.found;
    if (!ok) s.no_memory = true;
    if (ok && !construct(&s, start)) {
        ok = false;
        if (!s.no_memory) {
            d->states = s.first;
            d->ranges = ranges;
            d->calls = calls;
            s.round++;
            s.founds = 0;
            close_over(&s, start);
            ok = copy_states(n, machine, d, s.found, s.founds);
        }
    }
    free(s.member);
    free(s.begin);
    free(s.table);
    free(s.alone);
    free(s.mark);
    free(s.todo);
    free(s.found);
    free(s.step);
    free(s.call);
    free(s.target);
    return ok ? MX_OK : out_of_memory(error);
}

/* The transitions of state `from` of the language, for which `first` is added to the states it goes to. */
static bool copy_row(const mx_regular_view *v, int from, int end, uint32_t end_state, uint32_t first, mx_draft *d,
                     mx_draft_state *state) {
    for (int byte = 0; byte < 256; byte++) {
        const int32_t target = v->next[(size_t)from * (size_t)v->classes + v->class_of[byte]];
        if (target >= 0 && !add_range(d, state, byte, first + (uint32_t)target)) return false;
        if (byte == end && v->accepting[from] && !add_range(d, state, byte, end_state)) return false;
    }
    return true;
}

mx_status mx_determine_regular(const mx_regular_view *v, int end, uint32_t machine, mx_draft *d, uint32_t *first,
                               mx_error *error) {
    /* The start is a state of its own where it accepts: the machine's start does not. */
    const bool apart = end < 0 && v->accepting[0];
    *first = (uint32_t)d->states;
    const uint32_t states = *first + (apart ? 1 : 0), end_state = states + (uint32_t)v->states;
    for (int i = apart ? -1 : 0; i < v->states; i++) {
        mx_draft_state state = {.machine = machine, .range = (uint32_t)d->ranges, .call = (uint32_t)d->calls};
        if (!copy_row(v, i < 0 ? 0 : i, end, end_state, states, d, &state)) return out_of_memory(error);
        state.accepts = i >= 0 && end < 0 && v->accepting[i];
        if (!MX_PUSH(d->state, d->states, d->state_room, state)) return out_of_memory(error);
    }
    const mx_draft_state last = {
        .machine = machine, .range = (uint32_t)d->ranges, .call = (uint32_t)d->calls, .accepts = true};
    if (end >= 0 && !MX_PUSH(d->state, d->states, d->state_room, last)) return out_of_memory(error);
    return MX_OK;
}
