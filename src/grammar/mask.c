#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/log.h"
#include "grammar/mask_private.h"

enum {
    MANY = 10000,      /* nodes of the tree */
    WORK_OF_MASK = 50, /* to find one in the cache */
};

/* The mask of a moment is that of its places together: of each the tokens that its machine takes, from the cache, and
 * those that go on behind the machine's end, for which one looks at the stack. */
static void take(void *user, const mx_trie_node *n, const mx_places *places) {
    (void)places;
    const mx_matcher *m = user;
    for (uint32_t k = n->first, end = mx_trie_own_end(m->v, n); k < end; k++)
        m->bits[m->v->id[k] / 32] |= 1u << m->v->id[k] % 32;
}

/* Has a mask with this key been added already? Else what it costs to make it is counted. */
static bool is_new(mx_matcher *m, mx_state_key key, uint64_t looks) {
    uint32_t at = (uint32_t)key.low & (m->seen_size - 1);
    for (; m->seen[at].low || m->seen[at].high; at = (at + 1) & (m->seen_size - 1))
        if (m->seen[at].low == key.low && m->seen[at].high == key.high) return false;
    m->seen[at] = key;
    m->looks += looks;
    return true;
}

/* Room for so many keys, two of each place, and as many holes. */
static bool empty_seen(mx_matcher *m, uint32_t room) {
    uint32_t size = 16;
    while (size < room) size *= 2;
    if (size > m->seen_size) {
        free(m->seen);
        m->seen = malloc(size * sizeof *m->seen);
    }
    m->seen_size = m->seen ? size : 0;
    if (m->seen) memset(m->seen, 0, size * sizeof *m->seen);
    return m->seen;
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
        if (++s->work > s->most_work) s->crowded = true;
        if (s->crowded) break;
        size_t count = from.count, room = from.room;
        ok = MX_PUSH(from.place, count, room, s->caller[i - 1].behind);
        from.count = (uint32_t)count;
        from.room = (uint32_t)room;
    }
    if (ok) mx_stack_follow(s, from.place, from.count, out);
    free(from.place);
    return ok && !s->failed && !s->crowded;
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
        for (uint32_t i = k->leaving_from[byte]; i < k->leaving_from[byte + 1] && !m->stack.crowded; i++) {
            if (k->rounds && (k->rounds[i] < r.wanted || k->rounds[i] > r.left)) continue;
            const mx_trie_node *n = &v->node[k->leaving[i]];
            take(m, n, first);
            if (n->children && first->count) mx_walk_below(&w, n, first, 0);
        }
    }
    m->stack.frames = frames;
    m->stack.callers = callers;
    return !m->stack.failed && !m->stack.crowded;
}

static bool add_place(mx_matcher *m, mx_place p, bool *many) {
    mx_mask *own, *k = mx_mask_of(m->g, m->v, p.state, mx_rounds_of(m->g, m->v, p), &own);
    if (!k) return false;
    m->stack.work += WORK_OF_MASK;
    const bool fresh = is_new(m, k->key, k->looks);
    if (k->base_looks) is_new(m, k->base, k->base_looks);
    if (fresh || own) add_mask(own ? own : k, m->v, m->bits);
    const bool ok = !k->leaving || !m->stack.frame[p.frame].callers || add_leaving(m, k, p, many);
    mx_mask_release(&m->v->cache, k);
    if (own) mx_mask_release(&m->v->cache, own);
    return ok;
}

void mx_matcher_mask(mx_matcher *m, uint32_t *bits) {
    mx_stack *stack = &m->stack;
    memset(bits, 0, m->v->words * sizeof *bits);
    if (m->lost) return;
    stack->failed = stack->crowded = false;
    stack->work = m->looks = 0;
    stack->most_work = MX_WORK;
    if (!m->level) m->level = calloc(m->v->longest + 3, sizeof *m->level);
    const mx_places now = mx_matcher_now(m);
    bool ok = m->level && empty_seen(m, 4 * now.count), many = false;
    if (!ok) stack->failed = true;
    m->bits = bits;
    for (uint32_t i = 0; ok && !many && i < now.count; i++)
        ok = add_place(m, now.place[i], &many) && m->looks <= MX_MASK_LOOKS;
    if (ok && many) {
        mx_walk_below(&(mx_walk){m->v, stack, m->level, take, m}, &m->v->node[0], &now, 0);
        ok = !stack->failed && !stack->crowded;
    }
    m->bits = NULL;
    if (ok) return;
    memset(bits, 0, m->v->words * sizeof *bits);
    mx_matcher_lose(m);
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
