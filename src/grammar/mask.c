#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/log.h"
#include "grammar/mask_private.h"

enum {
    MANY = 10000, /* nodes of the tree */
    CROWD = 2000, /* places */
};

/* The mask of a moment is that of its places together: of each the tokens that its machine takes, from the cache, and
 * those that go on behind the machine's end, for which one looks at the stack. */
static void take(void *user, const mx_trie_node *n, const mx_places *places) {
    (void)places;
    const mx_matcher *m = user;
    for (uint32_t k = n->first, end = mx_trie_own_end(m->v, n); k < end; k++)
        m->bits[m->v->id[k] / 32] |= 1u << m->v->id[k] % 32;
}

static void add_mask(const mx_mask *k, const mx_vocabulary *v, uint32_t *bits) {
    if (k->bits)
        for (uint32_t i = 0; i < v->words; i++) bits[i] |= k->bits[i];
    else
        for (uint32_t i = 0; i < k->ids; i++) bits[k->id[i] / 32] |= 1u << k->id[i] % 32;
}

/* Places behind the end of the machine that `frame` stands for. */
static bool behind(mx_matcher *m, uint32_t frame, mx_places *out) {
    mx_stack *s = &m->stack;
    mx_places from = {0};
    bool ok = true;
    for (uint32_t i = s->frame[frame].callers; ok && i; i = s->caller[i - 1].next) {
        size_t count = from.count, room = from.room;
        ok = MX_PUSH(from.place, count, room, s->caller[i - 1].behind);
        from.count = (uint32_t)count;
        from.room = (uint32_t)room;
    }
    if (ok) mx_stack_follow(s, from.place, from.count, out);
    free(from.place);
    return ok && !s->failed;
}

/* Bytes that may come behind the machine's end, and how many nodes they lead to from where it may end. */
static uint64_t count_leaving(mx_matcher *m, const mx_mask *k, const mx_places *start, bool *may) {
    uint64_t nodes = 0;
    for (int byte = 0; byte < 256; byte++) {
        may[byte] = false;
        if (k->leaving_from[byte] == k->leaving_from[byte + 1]) continue;
        for (uint32_t i = 0; i < start->count && !may[byte]; i++)
            may[byte] = mx_next_state(m->g, start->place[i].state, (uint8_t)byte) != MX_DEAD;
        if (may[byte]) nodes += k->leaving_from[byte + 1] - k->leaving_from[byte];
    }
    return nodes;
}

/* The tokens that go on behind the machine's end; *many: there is so much to be looked at that it is better to walk the
 * whole tree once for all places together. */
static bool add_leaving(mx_matcher *m, const mx_mask *k, mx_place p, bool *many) {
    const mx_vocabulary *v = m->v;
    const mx_rounds r = mx_rounds_of(m->g, v, p);
    mx_places *start = &m->level[v->longest + 1], *first = &m->level[v->longest + 2];
    const size_t frames = m->stack.frames, callers = m->stack.callers;
    bool may[256];
    if (!behind(m, p.frame, start)) return false;
    if (count_leaving(m, k, start, may) > MANY) *many = true;
    const mx_walk w = {v, &m->stack, m->level, take, m};
    for (int byte = 0; byte < 256 && !*many; byte++) {
        if (!may[byte] || !mx_stack_step(&m->stack, start, (uint8_t)byte, first)) continue;
        for (uint32_t i = k->leaving_from[byte]; i < k->leaving_from[byte + 1]; i++) {
            if (k->rounds && (k->rounds[i] < r.wanted || k->rounds[i] > r.left)) continue;
            const mx_trie_node *n = &v->node[k->leaving[i]];
            take(m, n, first);
            if (n->children && first->count) mx_walk_below(&w, n, first, 0);
        }
    }
    m->stack.frames = frames;
    m->stack.callers = callers;
    return !m->stack.failed;
}

static bool add_place(mx_matcher *m, mx_place p, bool *many) {
    mx_mask *own, *k = mx_mask_of(m->g, m->v, p.state, mx_rounds_of(m->g, m->v, p), &own);
    if (!k) return false;
    add_mask(own ? own : k, m->v, m->bits);
    const bool ok = !k->leaving || !m->stack.frame[p.frame].callers || add_leaving(m, k, p, many);
    mx_mask_release(&m->v->cache, k);
    if (own) mx_mask_release(&m->v->cache, own);
    return ok;
}

void mx_matcher_mask(mx_matcher *m, uint32_t *bits) {
    memset(bits, 0, m->v->words * sizeof *bits);
    m->stack.failed = false;
    if (!m->level) m->level = calloc(m->v->longest + 3, sizeof *m->level);
    bool ok = m->level;
    m->bits = bits;
    const mx_places now = mx_matcher_now(m);
    bool many = now.count > CROWD;
    for (uint32_t i = 0; ok && !many && i < now.count; i++) ok = add_place(m, now.place[i], &many);
    if (ok && many) {
        mx_walk_below(&(mx_walk){m->v, &m->stack, m->level, take, m}, &m->v->node[0], &now, 0);
        ok = !m->stack.failed;
    }
    m->bits = NULL;
    if (!ok) mx_log(MX_LOG_ERROR, "no memory for a grammar's masks: fewer tokens are allowed than could be");
}

void mx_grammar_prepare(mx_grammar *g, mx_vocabulary *v, double seconds) {
    const double start = mx_seconds();
    const uint32_t most = v->longest + 1;
    for (int simple = 1; simple >= 0; simple--)
        for (uint32_t i = 0; i < g->states && mx_seconds() - start < seconds; i++) {
            const mx_machine *machine = &g->machine[g->state[i].machine];
            if (machine->simple != simple || !(g->state[i].flags & MX_STATE_ROW)) continue;
            if (g->alike && g->alike[i].state[MX_ALIKE_LEVELS - 1] != i) continue; /* soon made, and many */
            const mx_place p = {.state = i, .count = machine->counted && machine->most > most ? machine->least : 0};
            mx_mask *own, *k = mx_mask_of(g, v, i, mx_rounds_of(g, v, p), &own);
            if (k) mx_mask_release(&v->cache, k);
            if (own) mx_mask_release(&v->cache, own);
        }
}
