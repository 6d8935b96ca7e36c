#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "grammar/grammar_private.h"

/* States that behave alike for a while: where a text's length is bounded (a pattern with maxLength), each character
 * leads to a state of its own, and yet all that are far from the bound take the same tokens. Moore's partition
 * refinement: behind k rounds two states are in one class if and only if they take the same texts of up to k bytes and
 * may end behind the same of them. A round looks only at states that have a successor whose class has changed. */
const uint32_t mx_alike_bytes[MX_ALIKE_LEVELS] = {8, 12, 16, 24, 32};

enum {
    LEAST_STATES = 33, /* fewer are found one by one soon enough */
    MOST_LOOKS = 30,   /* at each transition, on average; then finer classes are not looked for */
};

typedef struct signature {
    XXH128_hash_t hash;
    uint32_t state, class;
} signature;

/* Of one machine; states are numbered within it. */
typedef struct partition {
    const mx_draft *d;
    uint32_t first, states;
    uint32_t *class, *size; /* [states], [states + 1]: members of each class */
    uint32_t classes;
    uint32_t *from, *from_first; /* who leads to each state: from[from_first[i] .. i + 1); [ranges], [states + 2] */
    uint32_t *todo, todos;       /* states to be looked at in the next round */
    uint32_t *mark;              /* [states]; round in which it became one of them */
    signature *sign;             /* [states] */
    uint64_t looks;
} partition;

static size_t ranges_of(const partition *p) {
    const mx_draft_state *s = &p->d->state[p->first], *last = &s[p->states - 1];
    return last->range + last->ranges - s->range;
}

static bool find_predecessors(partition *p) {
    const mx_draft_state *state = &p->d->state[p->first];
    p->from = malloc((ranges_of(p) + 1) * sizeof *p->from);
    p->from_first = calloc((size_t)p->states + 2, sizeof *p->from_first);
    if (!p->from || !p->from_first) return false;
    for (uint32_t i = 0; i < p->states; i++)
        for (uint32_t k = 0; k < state[i].ranges; k++)
            p->from_first[p->d->range[state[i].range + k].target - p->first + 2]++;
    for (uint32_t i = 0; i < p->states; i++) p->from_first[i + 2] += p->from_first[i + 1];
    for (uint32_t i = 0; i < p->states; i++)
        for (uint32_t k = 0; k < state[i].ranges; k++)
            p->from[p->from_first[p->d->range[state[i].range + k].target - p->first + 1]++] = i;
    return true;
}

static bool begin(partition *p) {
    p->class = malloc(p->states * sizeof *p->class);
    p->size = calloc((size_t)p->states + 2, sizeof *p->size);
    p->todo = malloc(p->states * sizeof *p->todo);
    p->mark = calloc(p->states, sizeof *p->mark);
    p->sign = malloc(p->states * sizeof *p->sign);
    if (!p->class || !p->size || !p->todo || !p->mark || !p->sign || !find_predecessors(p)) return false;
    p->classes = 2;
    for (uint32_t i = 0; i < p->states; i++) {
        p->class[i] = p->d->state[p->first + i].accepts;
        p->size[p->class[i]]++;
        p->todo[p->todos++] = i;
    }
    return true;
}

static void end(partition *p) {
    free(p->class);
    free(p->size);
    free(p->todo);
    free(p->mark);
    free(p->sign);
    free(p->from);
    free(p->from_first);
}

/* Which bytes lead to which classes. */
static signature sign(partition *p, uint32_t state) {
    const mx_draft_state *s = &p->d->state[p->first + state];
    uint32_t text[256][2], count = 0; /* the first and the last byte; the class */
    for (uint32_t k = 0; k < s->ranges; k++) {
        const mx_range *r = &p->d->range[s->range + k];
        const uint32_t class = p->class[r->target - p->first];
        if (count && text[count - 1][1] == class && (text[count - 1][0] & 255) + 1 == r->low) {
            text[count - 1][0] += (uint32_t)(r->high - r->low) + 1;
            continue;
        }
        text[count][0] = (uint32_t)r->low << 8 | r->high;
        text[count++][1] = class;
    }
    p->looks += s->ranges;
    return (signature){XXH3_128bits(text, count * sizeof *text), state, p->class[state]};
}

static int by_class(const void *a, const void *b) {
    const signature *x = a, *y = b;
    if (x->class != y->class) return x->class < y->class ? -1 : 1;
    return XXH128_cmp(&x->hash, &y->hash);
}

/* Of sign[from .. to), all of one class, the end of those that are as the first. */
static uint32_t end_of_group(const partition *p, uint32_t from, uint32_t to) {
    uint32_t end = from + 1;
    while (end < to && XXH128_isEqual(p->sign[end].hash, p->sign[from].hash)) end++;
    return end;
}

/* Splits a class by the signatures sign[from .. to) of its members that were looked at; others differ from them. Where
 * there are no others, most of them stay. Those that change are added to the end of `changed`. */
static void split(partition *p, uint32_t from, uint32_t to, uint32_t *changed, uint32_t *changes) {
    const uint32_t class = p->sign[from].class;
    uint32_t stay = to, most = 0;
    for (uint32_t i = from, end; p->size[class] == to - from && i < to; i = end) {
        end = end_of_group(p, i, to);
        if (end - i > most) most = end - i, stay = i;
    }
    for (uint32_t i = from, end; i < to; i = end) {
        end = end_of_group(p, i, to);
        if (i == stay) continue;
        p->size[class] -= end - i;
        p->size[p->classes] = end - i;
        for (uint32_t k = i; k < end; k++) {
            p->class[p->sign[k].state] = p->classes;
            changed[(*changes)++] = p->sign[k].state;
        }
        p->classes++;
    }
}

static void refine(partition *p, uint32_t round, uint32_t *changed) {
    uint32_t changes = 0;
    for (uint32_t i = 0; i < p->todos; i++) p->sign[i] = sign(p, p->todo[i]);
    if (p->todos) qsort(p->sign, p->todos, sizeof *p->sign, by_class);
    for (uint32_t i = 0, to; i < p->todos; i = to) {
        for (to = i + 1; to < p->todos && p->sign[to].class == p->sign[i].class;) to++;
        split(p, i, to, changed, &changes);
    }
    p->todos = 0;
    for (uint32_t i = 0; i < changes; i++)
        for (uint32_t k = p->from_first[changed[i]]; k < p->from_first[changed[i] + 1]; k++)
            if (p->mark[p->from[k]] != round) {
                p->mark[p->from[k]] = round;
                p->todo[p->todos++] = p->from[k];
            }
}

/* The first state of each class stands for it. */
static void keep(const partition *p, uint32_t *first_of, mx_alike *out, int level) {
    for (uint32_t i = 0; i <= p->classes; i++) first_of[i] = MX_DEAD;
    for (uint32_t i = 0; i < p->states; i++) {
        uint32_t *first = &first_of[p->class[i]];
        if (*first == MX_DEAD) *first = i;
        out[p->first + i].state[level] = p->first + *first;
    }
}

static bool find_alike(const mx_draft *d, const mx_machine *m, mx_alike *out) {
    partition p = {.d = d, .first = m->first, .states = m->states};
    const uint64_t most = MOST_LOOKS * (ranges_of(&p) + 1);
    uint32_t *work = malloc(((size_t)m->states + 2) * sizeof *work);
    const bool ok = work && begin(&p);
    int level = 0;
    for (uint32_t round = 1; ok && level < MX_ALIKE_LEVELS && p.looks < most; round++) {
        refine(&p, round, work);
        if (round == mx_alike_bytes[level]) keep(&p, work, out, level++);
    }
    free(work);
    end(&p);
    return ok;
}

bool mx_find_alike(const mx_draft *d, mx_grammar *g) {
    for (uint32_t i = 0; i < g->machines; i++) {
        const mx_machine *m = &g->machine[i];
        if (!m->simple || m->counted || m->states < LEAST_STATES) continue;
        if (!g->alike) {
            g->alike = malloc(g->states * sizeof *g->alike);
            if (!g->alike) return false;
            for (uint32_t s = 0; s < g->states; s++)
                for (int level = 0; level < MX_ALIKE_LEVELS; level++) g->alike[s].state[level] = s;
        }
        if (!find_alike(d, m, g->alike)) return false;
    }
    return true;
}
