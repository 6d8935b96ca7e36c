#include <stdlib.h>
#include <string.h>

#include "grammar/grammar_private.h"

/* From the draft to what is run: bytes fall into classes, and the transitions of all states lie in one array, each
 * state's pushed in between those of others, so that a step is one look at it. */

static uint32_t find_classes(const mx_draft *d, uint8_t class_of[static 256]) {
    bool begins[257] = {true};
    for (size_t i = 0; i < d->ranges; i++) begins[d->range[i].low] = begins[d->range[i].high + 1] = true;
    uint32_t classes = 0;
    for (int byte = 0; byte < 256; byte++) {
        if (begins[byte]) classes++;
        class_of[byte] = (uint8_t)(classes - 1);
    }
    return classes;
}

typedef struct packer {
    mx_grammar *g;
    const mx_draft *d;
    size_t room; /* of cells */
    size_t free; /* the first cell that may be */
} packer;

enum { MOST_CELLS = 1 << 25 };

static bool enlarge(packer *p, size_t cells) {
    if (cells > MOST_CELLS) return false;
    while (p->room < cells) {
        size_t room = p->room ? p->room * 2 : 1024;
        mx_cell *cell = realloc(p->g->cell, room * sizeof *cell);
        if (!cell) return false;
        for (size_t i = p->room; i < room; i++) cell[i] = (mx_cell){MX_DEAD, MX_DEAD};
        p->g->cell = cell;
        p->room = room;
    }
    return true;
}

static bool fits(const packer *p, const mx_draft_state *s, size_t base) {
    const uint8_t *class_of = p->g->class_of;
    for (uint32_t i = 0; i < s->ranges; i++) {
        const mx_range *r = &p->d->range[s->range + i];
        for (size_t k = base + class_of[r->low]; k <= base + class_of[r->high]; k++)
            if (p->g->cell[k].state != MX_DEAD) return false;
    }
    return true;
}

/* A base at which the state's transitions fall on free cells: tries a few, else at the end. */
static bool place(packer *p, uint32_t state) {
    const mx_draft_state *s = &p->d->state[state];
    mx_grammar *g = p->g;
    const size_t low = g->class_of[p->d->range[s->range].low];
    if (!enlarge(p, (size_t)g->cells + 512)) return false;
    while (p->free < g->cells && g->cell[p->free].state != MX_DEAD) p->free++;
    size_t base = p->free > low ? p->free - low : 0;
    for (int tries = 0; !fits(p, s, base); tries++) {
        /* The next one that has its first cell free. */
        do base++;
        while (base + low < g->cells && g->cell[base + low].state != MX_DEAD);
        if (tries == 40 && base < g->cells) base = g->cells;
        if (!enlarge(p, base + 512)) return false;
    }
    if (!enlarge(p, base + 512)) return false;
    g->state[state].base = (uint32_t)base;
    for (uint32_t i = 0; i < s->ranges; i++) {
        const mx_range *r = &p->d->range[s->range + i];
        for (size_t k = base + g->class_of[r->low]; k <= base + g->class_of[r->high]; k++) {
            g->cell[k] = (mx_cell){state, r->target};
            if (k >= g->cells) g->cells = (uint32_t)k + 1;
        }
    }
    /* Where states with many transitions leave gaps, those behind are not worth another look. */
    if (p->free + 4096 < g->cells) p->free = g->cells - 4096;
    return true;
}

static bool is_simple(const mx_draft *d, const mx_machine *m) {
    for (uint32_t i = m->first; i < m->first + m->states; i++) {
        const mx_draft_state *s = &d->state[i];
        if (s->calls || (m->counted && s->accepts && s->ranges)) return false;
    }
    return true;
}

mx_status mx_pack(const mx_draft *d, mx_machine *machine, uint32_t machines, mx_grammar **out, mx_error *error) {
    static atomic_uint_fast64_t ids;
    mx_grammar *g = calloc(1, sizeof *g);
    if (!g) return mx_fail(error, MX_NO_MEMORY, "no memory for a grammar");
    atomic_init(&g->references, 1);
    g->id = atomic_fetch_add(&ids, 1) + 1;
    pthread_mutex_init(&g->lock, NULL);
    g->classes = find_classes(d, g->class_of);
    g->states = (uint32_t)d->states;
    g->calls = (uint32_t)d->calls;
    g->state = calloc(d->states + 1, sizeof *g->state);
    g->call = calloc(d->calls + 1, sizeof *g->call);
    g->has_key = calloc(d->states, sizeof *g->has_key);
    g->key = calloc(d->states, sizeof *g->key);
    packer p = {.g = g, .d = d};
    bool ok = g->state && g->call && g->has_key && g->key && enlarge(&p, 512);
    uint32_t calls = 0;
    for (uint32_t i = 0; ok && i < g->states; i++) {
        const mx_draft_state *s = &d->state[i];
        g->state[i] = (mx_state){.call = calls, .machine = s->machine};
        if (s->calls) memcpy(g->call + calls, d->call + s->call, s->calls * sizeof *g->call);
        calls += s->calls;
        g->state[i].flags =
            (s->ranges ? MX_STATE_ROW : 0) | (s->accepts ? MX_STATE_ACCEPTS : 0) | (s->calls ? MX_STATE_CALLS : 0);
        if (s->ranges) ok = place(&p, i);
    }
    if (!ok) {
        const bool large = p.room >= MOST_CELLS / 2;
        mx_grammar_free(g);
        if (large) return mx_fail(error, MX_UNSUPPORTED, "the grammar has more than %d transitions", MOST_CELLS);
        return mx_fail(error, MX_NO_MEMORY, "no memory for a grammar");
    }
    g->state[g->states].call = calls;
    g->cells += 256;
    for (uint32_t i = 0; i < machines; i++) machine[i].simple = is_simple(d, &machine[i]);
    g->machine = machine;
    g->machines = machines;
    if (!mx_find_alike(d, g)) {
        g->machine = NULL;
        mx_grammar_free(g);
        return mx_fail(error, MX_NO_MEMORY, "no memory for a grammar");
    }
    mx_cell *shorter = realloc(g->cell, g->cells * sizeof *shorter);
    if (shorter) g->cell = shorter;
    *out = g;
    return MX_OK;
}

mx_grammar *mx_grammar_keep(mx_grammar *g) {
    if (g) atomic_fetch_add(&g->references, 1);
    return g;
}

void mx_grammar_free(mx_grammar *g) {
    if (!g || atomic_fetch_sub(&g->references, 1) > 1) return;
    pthread_mutex_destroy(&g->lock);
    free(g->state);
    free(g->cell);
    free(g->call);
    free(g->machine);
    free(g->alike);
    free(g->has_key);
    free(g->key);
    free(g);
}

uint64_t mx_grammar_bytes(const mx_grammar *g) {
    return sizeof *g +
           (uint64_t)g->states * (sizeof *g->state + sizeof *g->key + 1 + (g->alike ? sizeof *g->alike : 0)) +
           (uint64_t)g->cells * sizeof *g->cell + (uint64_t)g->calls * sizeof *g->call +
           (uint64_t)g->machines * sizeof *g->machine;
}
