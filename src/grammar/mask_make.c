#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "grammar/mask_private.h"

/* Masks of single states: all tokens that the state's machine takes, whoever called it, and the nodes of the tree where
 * the machine may be complete. Those of simple machines, which call nothing, are the dear ones (a string's characters:
 * nearly all tokens) and are the same in all grammars: their key is a hash of what can be reached from the state. */

/* ---- keys ---------------------------------------------------------------------------------------------------------
 */
/* More states than that are not looked through. */
enum { KEY_STATES = 200 };

static mx_state_key key_of_hash(XXH128_hash_t h) {
    return (mx_state_key){h.low64, h.high64};
}

static mx_state_key local_key(const mx_grammar *g, uint32_t state, mx_rounds r) {
    const uint64_t data[] = {1, g->id, state, r.left, r.wanted};
    return key_of_hash(XXH3_128bits(data, sizeof data));
}

typedef struct reached {
    uint32_t state[KEY_STATES], count;
    uint16_t place[1024]; /* of a state's hash to its number + 1 */
    mx_bytes text;
    bool ok;
} reached;

static uint32_t number(reached *r, uint32_t state) {
    uint32_t at = state * 2654435761u >> 22;
    for (; r->place[at]; at = (at + 1) % 1024)
        if (r->state[r->place[at] - 1] == state) return r->place[at] - 1u;
    if (r->count == KEY_STATES) {
        r->ok = false;
        return 0;
    }
    r->state[r->count++] = state;
    r->place[at] = (uint16_t)r->count;
    return r->count - 1;
}

/* The automaton from the state on, in the order in which bytes lead to its states. */
static void describe(reached *r, const mx_grammar *g, const mx_machine *m, uint32_t state) {
    number(r, state);
    if (m->counted) number(r, m->start);
    const uint32_t head[] = {m->counted, m->counted && state == m->start};
    r->ok = r->ok && mx_bytes_add(&r->text, head, sizeof head);
    for (uint32_t i = 0; r->ok && i < r->count; i++) {
        uint32_t before = 0;
        for (int byte = 0; byte < 256 && r->ok; byte++) {
            if (byte > 0 && g->class_of[byte] == g->class_of[byte - 1]) continue;
            const uint32_t next = mx_next_state(g, r->state[i], (uint8_t)byte);
            const uint32_t to = next == MX_DEAD ? 0 : number(r, next) + 1;
            const uint32_t change[] = {(uint32_t)byte, to};
            if (to != before) r->ok = r->ok && mx_bytes_add(&r->text, change, sizeof change);
            before = to;
        }
        const uint32_t end[] = {256, g->state[r->state[i]].flags & MX_STATE_ACCEPTS};
        r->ok = r->ok && mx_bytes_add(&r->text, end, sizeof end);
    }
}

static mx_state_key shared_key(const mx_grammar *cg, uint32_t state) {
    mx_grammar *g = (mx_grammar *)cg; /* its caches change */
    if (atomic_load_explicit(&g->has_key[state], memory_order_acquire)) return g->key[state];
    if (g->alike && g->alike[state].state[MX_ALIKE_LEVELS - 1] != state)
        return local_key(g, state, (mx_rounds){0}); /* there are many such, and their masks cost less than that */
    reached r = {.ok = true};
    describe(&r, g, &g->machine[g->state[state].machine], state);
    const mx_state_key key =
        r.ok ? key_of_hash(XXH3_128bits(r.text.data, r.text.size)) : local_key(g, state, (mx_rounds){0});
    mx_bytes_free(&r.text);
    pthread_mutex_lock(&g->lock);
    if (!atomic_load_explicit(&g->has_key[state], memory_order_relaxed)) {
        g->key[state] = key;
        atomic_store_explicit(&g->has_key[state], 1, memory_order_release);
    }
    pthread_mutex_unlock(&g->lock);
    return key;
}

mx_rounds mx_rounds_of(const mx_grammar *g, const mx_vocabulary *v, mx_place p) {
    const mx_machine *m = &g->machine[g->state[p.state].machine];
    const uint32_t most = v->longest + 1;
    mx_rounds r = {0, 0};
    if (!m->counted) return r;
    r.left = m->most == UINT32_MAX || m->most - p.count > most ? most : m->most - p.count;
    if (p.count < m->least) r.wanted = m->least - p.count > most ? most : m->least - p.count;
    return r;
}

/* ---- what is found on a walk --------------------------------------------------------------------------------------
 */
typedef struct finding {
    const mx_vocabulary *v;
    uint32_t *id;    /* [tokens] */
    uint16_t *round; /* [tokens]; NULL: the machine is not counted */
    uint32_t ids;
    uint32_t *leaving;
    uint16_t *leaving_round;
    size_t leavings, leaving_room, leaving_round_room;
    uint64_t looks; /* at nodes */
    bool failed;
} finding;

static inline void take_tokens(finding *f, const mx_trie_node *n, uint32_t rounds) {
    for (uint32_t k = n->first, end = mx_trie_own_end(f->v, n); k < end; k++) {
        if (f->round) f->round[f->ids] = (uint16_t)rounds;
        f->id[f->ids++] = f->v->id[k];
    }
}

/* The machine may be complete in this node. */
static void take_leaving(finding *f, const mx_trie_node *n, uint32_t rounds) {
    for (uint32_t i = 0; i < n->children; i++) {
        if (f->round && !MX_PUSH(f->leaving_round, f->leavings, f->leaving_round_room, (uint16_t)rounds)) {
            f->failed = true;
            return;
        }
        if (f->round) f->leavings--;
        if (!MX_PUSH(f->leaving, f->leavings, f->leaving_room, n->child + i)) {
            f->failed = true;
            return;
        }
    }
}

typedef struct level {
    uint32_t at, end, state, rounds;
} level;

/* The state that most bytes lead to, and at least 20; MX_DEAD: none. */
static uint32_t usual_state(const mx_grammar *g, uint32_t state) {
    uint32_t target[256], count[256], targets = 0, best = 0;
    for (int byte = 0; byte < 256; byte++) {
        const uint32_t next = mx_next_state(g, state, (uint8_t)byte);
        uint32_t i = 0;
        while (i < targets && target[i] != next) i++;
        if (next == MX_DEAD) continue;
        if (i == targets) target[targets] = next, count[targets++] = 0;
        if (++count[i] > count[best]) best = i;
    }
    return targets && count[best] >= 20 ? target[best] : MX_DEAD;
}

/* The groups of bytes that lead from the state to itself, where that is not an end. */
static uint64_t groups_of_loop(const mx_grammar *g, uint32_t state) {
    uint64_t others = 0;
    for (int byte = 0; byte < 256; byte++)
        if (mx_next_state(g, state, (uint8_t)byte) != state) others |= mx_byte_group((uint8_t)byte);
    return g->state[state].flags == MX_STATE_ROW ? ~others : 0;
}

static void take_all(finding *f, const mx_trie_node *n) {
    memcpy(f->id + f->ids, f->v->id + n->first, (n->last - n->first) * sizeof *f->id);
    f->ids += n->last - n->first;
}

/* A simple machine: one state at a time. In a counted one `rounds` are those that are complete on the way, and a token
 * takes one more where it ends within one. */
static void walk_simple(finding *f, const mx_grammar *g, uint32_t state, level *stack) {
    const mx_vocabulary *v = f->v;
    const mx_machine *m = &g->machine[g->state[state].machine];
    const uint32_t one = m->counted ? 1 : 0;
    /* The state in which most bytes lead back to it: what has only such bytes is taken without a look. */
    const uint32_t usual = m->counted ? MX_DEAD : usual_state(g, state);
    const uint64_t free = usual == MX_DEAD ? 0 : groups_of_loop(g, usual);
    uint32_t depth = 0;
    stack[0] = (level){v->node[0].child, v->node[0].child + v->node[0].children, state, 0};
    for (;;) {
        level *l = &stack[depth];
        if (l->at == l->end) {
            if (depth-- == 0) return;
            continue;
        }
        const mx_trie_node *n = &v->node[l->at++];
        f->looks++;
        uint32_t next = mx_next_state(g, l->state, n->byte), rounds = l->rounds;
        if (next == MX_DEAD) continue;
        if (next == usual && !(v->below[n - v->node] & ~free)) {
            take_all(f, n);
            continue;
        }
        if (g->state[next].flags & MX_STATE_ACCEPTS) {
            rounds += one;
            take_tokens(f, n, rounds);
            if (n->children) take_leaving(f, n, rounds);
            if (m->counted) next = m->start;
        } else
            take_tokens(f, n, rounds + one);
        if (n->children && (g->state[next].flags & MX_STATE_ROW))
            stack[++depth] = (level){n->child, n->child + n->children, next, rounds};
    }
}

void mx_walk_below(const mx_walk *w, const mx_trie_node *node, const mx_places *in, uint32_t depth) {
    mx_places *out = &w->level[depth];
    for (uint32_t i = 0; i < node->children; i++) {
        const mx_trie_node *n = &w->v->node[node->child + i];
        const size_t frames = w->stack->frames, callers = w->stack->callers;
        if (mx_stack_step(w->stack, in, n->byte, out)) {
            w->take(w->user, n, out);
            if (n->children && out->count) mx_walk_below(w, n, out, depth + 1);
        }
        w->stack->frames = frames;
        w->stack->callers = callers;
        if (w->stack->crowded) return;
    }
}

static void find(void *user, const mx_trie_node *n, const mx_places *places) {
    take_tokens(user, n, 0);
    if (places->ends && n->children) take_leaving(user, n, 0);
}

enum { LOOKS_OF_WORK = 3 }; /* that take as long */
/* Any machine: on a stack with nothing below it. */
static void walk_general(finding *f, const mx_grammar *g, uint32_t state, uint32_t count) {
    const mx_vocabulary *v = f->v;
    mx_stack stack;
    mx_place place = {state, count, 0};
    const mx_places in = {.place = &place, .count = 1, .room = 1};
    mx_places *levels = calloc(v->longest + 1, sizeof *levels);
    const bool ok = mx_stack_create(&stack, g);
    stack.most_work = MX_MASK_LOOKS / LOOKS_OF_WORK;
    if (ok && levels) mx_walk_below(&(mx_walk){v, &stack, levels, find, f}, &v->node[0], &in, 0);
    if (!ok || !levels || stack.failed || stack.crowded) f->failed = true;
    f->looks += stack.work * LOOKS_OF_WORK;
    for (uint32_t i = 0; levels && i <= v->longest; i++) free(levels[i].place);
    free(levels);
    mx_stack_free(&stack);
}

/* ---- from findings to masks ---------------------------------------------------------------------------------------
 */
/* By bytes; the order of those with one byte does not matter. */
static bool sort_leaving(const finding *f, mx_mask *m) {
    if (f->leavings == 0) return true;
    m->leaving = malloc(f->leavings * sizeof *m->leaving);
    m->leaving_from = calloc(257, sizeof *m->leaving_from);
    if (f->round) m->rounds = malloc(f->leavings * sizeof *m->rounds);
    if (!m->leaving || !m->leaving_from || (f->round && !m->rounds)) return false;
    for (size_t i = 0; i < f->leavings; i++) m->leaving_from[f->v->node[f->leaving[i]].byte + 1]++;
    for (int i = 0; i < 256; i++) m->leaving_from[i + 1] += m->leaving_from[i];
    uint32_t fill[256];
    memcpy(fill, m->leaving_from, sizeof fill);
    for (size_t i = 0; i < f->leavings; i++) {
        const uint32_t to = fill[f->v->node[f->leaving[i]].byte]++;
        m->leaving[to] = f->leaving[i];
        if (f->round) m->rounds[to] = f->leaving_round[i];
    }
    m->bytes += f->leavings * (sizeof *m->leaving + (f->round ? sizeof *m->rounds : 0)) + 257 * sizeof(uint32_t);
    return true;
}

static bool set_bits(mx_mask *m, const mx_vocabulary *v, const uint32_t *id, uint32_t ids) {
    m->bits = calloc(v->words ? v->words : 1, sizeof *m->bits);
    if (!m->bits) return false;
    for (uint32_t i = 0; i < ids; i++) m->bits[id[i] / 32] |= 1u << id[i] % 32;
    m->bytes += v->words * sizeof *m->bits;
    return true;
}

/* A few ids are kept as a list, more as bits; of a counted machine as both, the list by rounds. */
static bool keep_tokens(const finding *f, mx_mask *m) {
    const mx_vocabulary *v = f->v;
    const bool few = f->ids < v->words;
    if (!f->round && !few) return set_bits(m, v, f->id, f->ids);
    m->id = malloc((f->ids + 1) * sizeof *m->id);
    m->ids = f->ids;
    m->bytes += f->ids * sizeof *m->id;
    if (!m->id) return false;
    if (!f->round) {
        memcpy(m->id, f->id, f->ids * sizeof *m->id);
        return true;
    }
    for (uint32_t i = 0; i < f->ids; i++)
        if (f->round[i] > m->most_rounds) m->most_rounds = f->round[i];
    m->round_from = calloc(m->most_rounds + 3, sizeof *m->round_from);
    if (!m->round_from) return false;
    for (uint32_t i = 0; i < f->ids; i++) m->round_from[f->round[i] + 2]++;
    for (uint32_t i = 0; i <= m->most_rounds; i++) m->round_from[i + 2] += m->round_from[i + 1];
    for (uint32_t i = 0; i < f->ids; i++) m->id[m->round_from[f->round[i] + 1]++] = f->id[i];
    m->bytes += (m->most_rounds + 3) * sizeof *m->round_from;
    return set_bits(m, v, m->id, m->ids);
}

/* ---- masks that are nearly those of another state -----------------------------------------------------------------
 */
/* A state that nearly always leads to one that is not left again (a member's name that must not be one of a few: once
 * it is another one, all is free) has nearly that one's mask. Where the walks from both come to the same state, all
 * below is the same. */
typedef struct difference {
    const mx_grammar *g;
    finding *f;
    uint32_t *bits;
    uint32_t *other; /* bits of nodes below which the machine's end is another */
} difference;

/* Depth is that of the tree at most. */
static void find_difference(const difference *d, const mx_trie_node *node, uint32_t state, uint32_t usual) {
    const mx_vocabulary *v = d->f->v;
    for (uint32_t i = 0; i < node->children; i++) {
        const mx_trie_node *n = &v->node[node->child + i];
        d->f->looks++;
        const uint32_t a = state == MX_DEAD ? MX_DEAD : mx_next_state(d->g, state, n->byte);
        const uint32_t b = usual == MX_DEAD ? MX_DEAD : mx_next_state(d->g, usual, n->byte);
        if (a == b) continue;
        for (uint32_t k = n->first, end = mx_trie_own_end(v, n); k < end; k++) {
            const uint32_t bit = 1u << v->id[k] % 32;
            if (a != MX_DEAD)
                d->bits[v->id[k] / 32] |= bit;
            else
                d->bits[v->id[k] / 32] &= ~bit;
        }
        if (!n->children) continue;
        for (uint32_t k = n->child; k < n->child + n->children; k++) d->other[k / 32] |= 1u << k % 32;
        if (a != MX_DEAD && d->g->state[a].flags & MX_STATE_ACCEPTS) take_leaving(d->f, n, 0);
        find_difference(d, n, a, b);
    }
}

/* From the mask of the usual state, which is `m`'s beginning. */
static bool change_mask(finding *f, const mx_grammar *g, uint32_t state, uint32_t usual, const mx_mask *from,
                        mx_mask *m) {
    const mx_vocabulary *v = f->v;
    m->bits = malloc(v->words * sizeof *m->bits);
    difference d = {.g = g, .f = f, .bits = m->bits, .other = calloc(v->nodes / 32 + 1, sizeof *d.other)};
    bool ok = m->bits && d.other;
    if (ok) {
        memcpy(m->bits, from->bits, v->words * sizeof *m->bits);
        m->bytes += v->words * sizeof *m->bits;
        find_difference(&d, &v->node[0], state, usual);
        for (uint32_t i = 0; from->leaving && i < from->leaving_from[256]; i++) {
            const uint32_t n = from->leaving[i];
            if (!(d.other[n / 32] >> n % 32 & 1)) ok = ok && MX_PUSH(f->leaving, f->leavings, f->leaving_room, n);
        }
    }
    free(d.other);
    return ok && !f->failed;
}

/* The usual state's mask, if that is a way to this state's. */
static mx_mask *usual_mask(const mx_grammar *g, mx_vocabulary *v, uint32_t state, uint32_t *usual) {
    const mx_machine *machine = &g->machine[g->state[state].machine];
    mx_mask *own;
    if (!machine->simple || machine->counted) return NULL;
    *usual = usual_state(g, state);
    if (*usual == MX_DEAD || *usual == state || usual_state(g, *usual) != *usual) return NULL;
    mx_mask *m = mx_mask_of(g, v, *usual, (mx_rounds){0}, &own);
    if (m && m->bits) return m;
    if (m) mx_mask_release(&v->cache, m);
    return NULL;
}

/* ---- masks that are those of another state for short tokens ------------------------------------------------------ */
/* A simple machine's tokens of more than `bytes` bytes, and where it may end behind so many. */
static void walk_long(finding *f, const mx_grammar *g, uint32_t state, uint32_t bytes, level *stack) {
    const mx_vocabulary *v = f->v;
    uint32_t depth = 0;
    stack[0] = (level){v->node[0].child, v->node[0].child + v->node[0].children, state, 0};
    for (;;) {
        level *l = &stack[depth];
        if (l->at == l->end) {
            if (depth-- == 0) return;
            continue;
        }
        const uint32_t i = l->at++;
        f->looks++;
        if (v->deepest[i] <= bytes) continue;
        const mx_trie_node *n = &v->node[i];
        const uint32_t next = mx_next_state(g, l->state, n->byte);
        if (next == MX_DEAD) continue;
        if (depth >= bytes) {
            take_tokens(f, n, 0);
            if (g->state[next].flags & MX_STATE_ACCEPTS) take_leaving(f, n, 0);
        }
        if (n->children && (g->state[next].flags & MX_STATE_ROW))
            stack[++depth] = (level){n->child, n->child + n->children, next, 0};
    }
}

/* The mask of the state that behaves as this one does for most bytes, and how many: the level of `alike`. */
static mx_mask *alike_mask(const mx_grammar *g, mx_vocabulary *v, uint32_t state, int *at) {
    mx_mask *own;
    *at = MX_ALIKE_LEVELS;
    while (g->alike && --*at >= 0)
        if (g->alike[state].state[*at] != state)
            return mx_mask_of(g, v, g->alike[state].state[*at], (mx_rounds){0}, &own);
    return NULL;
}

/* `m` from that mask: its short tokens, and the long ones that are found for this state. */
static bool extend_mask(finding *f, const mx_grammar *g, uint32_t state, int at, const mx_mask *from, mx_mask *m) {
    const mx_vocabulary *v = f->v;
    const uint32_t bytes = mx_alike_bytes[at];
    const uint32_t *is_short = v->short_tokens[at];
    level *stack = malloc((v->longest + 1) * sizeof *stack);
    f->id = malloc((v->tokens + 1) * sizeof *f->id);
    bool ok = stack && f->id;
    if (ok) {
        for (uint32_t i = 0; !from->bits && i < from->ids; i++)
            if (is_short[from->id[i] / 32] >> from->id[i] % 32 & 1) f->id[f->ids++] = from->id[i];
        walk_long(f, g, state, bytes, stack);
        ok = from->bits ? set_bits(m, v, f->id, f->ids) : keep_tokens(f, m);
    }
    for (uint32_t i = 0; ok && from->bits && i < v->words; i++) m->bits[i] |= from->bits[i] & is_short[i];
    for (uint32_t i = 0; ok && from->leaving && i < from->leaving_from[256]; i++)
        if (v->depth[from->leaving[i]] <= bytes + 1)
            ok = MX_PUSH(f->leaving, f->leavings, f->leaving_room, from->leaving[i]);
    free(stack);
    return ok && !f->failed;
}

/* ---- the whole ----------------------------------------------------------------------------------------------------
 */
static bool find_all(finding *f, const mx_grammar *g, uint32_t state, mx_rounds rounds) {
    const mx_vocabulary *v = f->v;
    const mx_machine *machine = &g->machine[g->state[state].machine];
    f->id = malloc((v->tokens + 1) * sizeof *f->id);
    if (machine->simple && machine->counted) f->round = malloc((v->tokens + 1) * sizeof *f->round);
    if (!f->id || (machine->simple && machine->counted && !f->round)) return false;
    if (machine->simple) {
        level *stack = malloc((v->longest + 1) * sizeof *stack);
        if (stack) walk_simple(f, g, state, stack);
        free(stack);
        return stack && !f->failed;
    }
    /* A count that stands for all that have as many rounds left and wanted. */
    uint32_t count = 0;
    if (machine->counted && machine->most != UINT32_MAX && rounds.left <= v->longest)
        count = machine->most - rounds.left;
    else if (machine->counted)
        count = machine->least - rounds.wanted;
    walk_general(f, g, state, count);
    return !f->failed;
}

static mx_mask *make(const mx_grammar *g, mx_vocabulary *v, uint32_t state, mx_rounds rounds, mx_state_key key) {
    uint32_t usual;
    int at;
    mx_mask *from = usual_mask(g, v, state, &usual), *like = from ? NULL : alike_mask(g, v, state, &at);
    mx_mask *m = calloc(1, sizeof *m);
    finding f = {.v = v};
    bool ok = m;
    if (ok) {
        m->key = key;
        m->bytes = sizeof *m;
        if (from)
            ok = change_mask(&f, g, state, usual, from, m);
        else if (like)
            ok = extend_mask(&f, g, state, at, like, m);
        else
            ok = find_all(&f, g, state, rounds) && keep_tokens(&f, m);
        ok = ok && sort_leaving(&f, m);
        const mx_mask *base = from ? from : like;
        m->looks = f.looks;
        if (base) m->base = base->key, m->base_looks = base->looks + base->base_looks;
    }
    if (from) mx_mask_release(&v->cache, from);
    if (like) mx_mask_release(&v->cache, like);
    atomic_fetch_add_explicit(&v->looks, f.looks, memory_order_relaxed);
    free(f.id);
    free(f.round);
    free(f.leaving);
    free(f.leaving_round);
    if (ok) return mx_mask_insert(&v->cache, m);
    mx_mask_free(m);
    return NULL;
}

/* Of a counted machine's tokens those that take no more rounds than are left. */
static mx_mask *make_for_rounds(mx_vocabulary *v, const mx_mask *all, uint32_t left, mx_state_key key) {
    mx_mask *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->key = key;
    m->bytes = sizeof *m;
    const uint32_t ids = all->round_from[left + 1];
    bool ok = true;
    if (ids >= v->words)
        ok = set_bits(m, v, all->id, ids);
    else {
        m->id = malloc((ids + 1) * sizeof *m->id);
        m->ids = ids;
        m->bytes += ids * sizeof *m->id;
        ok = m->id;
        if (ok && ids) memcpy(m->id, all->id, ids * sizeof *m->id);
    }
    if (ok) return mx_mask_insert(&v->cache, m);
    mx_mask_free(m);
    return NULL;
}

mx_mask *mx_mask_of(const mx_grammar *g, mx_vocabulary *v, uint32_t state, mx_rounds rounds, mx_mask **own) {
    const mx_machine *machine = &g->machine[g->state[state].machine];
    const mx_state_key key = machine->simple ? shared_key(g, state) : local_key(g, state, rounds);
    *own = NULL;
    mx_mask *m = mx_mask_find(&v->cache, key);
    if (!m) m = make(g, v, state, rounds, key);
    if (!m || !m->round_from || rounds.left >= m->most_rounds) return m;
    const uint64_t data[] = {2, key.low, key.high, rounds.left};
    const mx_state_key rounds_key = key_of_hash(XXH3_128bits(data, sizeof data));
    *own = mx_mask_find(&v->cache, rounds_key);
    if (!*own) *own = make_for_rounds(v, m, rounds.left, rounds_key);
    if (*own) return m;
    mx_mask_release(&v->cache, m);
    return NULL;
}
