/* From any deterministic automaton to the minimal one, in a form that depends on the language alone. */
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "grammar/regular_private.h"

static mx_status no_memory(mx_error *error) {
    return mx_fail(error, MX_NO_MEMORY, "no memory for an automaton");
}

/* ---- lists of numbers -------------------------------------------------------------------------------------------- */

static uint64_t hash_items(const int64_t *items, size_t count) {
    return count ? XXH3_64bits(items, count * sizeof *items) : 0;
}

static bool sets_grow(mx_sets *s, size_t more) {
    if (!s->begin || s->count + 1 >= s->room) {
        const int room = s->room ? 2 * s->room : 64;
        size_t *begin = realloc(s->begin, ((size_t)room + 1) * sizeof *begin);
        if (!begin) return false;
        if (!s->begin) begin[0] = 0;
        s->begin = begin;
        s->room = room;
    }
    if (!s->items || s->used + more > s->capacity) {
        size_t capacity = s->capacity ? s->capacity : 256;
        while (capacity < s->used + more) capacity *= 2;
        int64_t *items = realloc(s->items, capacity * sizeof *items);
        if (!items) return false;
        s->items = items;
        s->capacity = capacity;
    }
    if ((size_t)s->count * 2 >= s->slot_count) {
        const size_t count = s->slot_count ? 2 * s->slot_count : 128;
        int32_t *slots = malloc(count * sizeof *slots);
        if (!slots) return false;
        memset(slots, 0xFF, count * sizeof *slots);
        for (int id = 0; id < s->count; id++) {
            size_t slot = hash_items(s->items + s->begin[id], s->begin[id + 1] - s->begin[id]) & (count - 1);
            while (slots[slot] >= 0) slot = (slot + 1) & (count - 1);
            slots[slot] = id;
        }
        free(s->slots);
        s->slots = slots;
        s->slot_count = count;
    }
    return true;
}

mx_status mx_sets_intern(mx_sets *s, const int64_t *items, size_t count, int *id, mx_error *error) {
    if (s->used + count > MX_SETS_ITEMS)
        return mx_fail(error, MX_UNSUPPORTED, "the automaton would need sets of more than %d states together",
                       MX_SETS_ITEMS);
    if (!sets_grow(s, count)) return no_memory(error);
    size_t slot = hash_items(items, count) & (s->slot_count - 1);
    for (; s->slots[slot] >= 0; slot = (slot + 1) & (s->slot_count - 1)) {
        const int32_t other = s->slots[slot];
        const size_t begin = s->begin[other];
        if (s->begin[other + 1] - begin == count &&
            (!count || memcmp(s->items + begin, items, count * sizeof *items) == 0)) {
            *id = other;
            return MX_OK;
        }
    }
    if (count) memcpy(s->items + s->used, items, count * sizeof *items);
    s->used += count;
    s->slots[slot] = *id = s->count++;
    s->begin[s->count] = s->used;
    return MX_OK;
}

const int64_t *mx_sets_get(const mx_sets *s, int id, size_t *count) {
    *count = s->begin[id + 1] - s->begin[id];
    return s->items + s->begin[id];
}

void mx_sets_free(mx_sets *s) {
    free(s->items);
    free(s->begin);
    free(s->slots);
    *s = (mx_sets){0};
}

/* ---- automata as they are found ---------------------------------------------------------------------------------- */

mx_status mx_raw_add(mx_raw *raw, bool accepting, mx_error *error) {
    if (raw->states >= MX_RAW_STATES || (int64_t)raw->states * raw->classes >= MX_RAW_CELLS)
        return mx_fail(error, MX_UNSUPPORTED,
                       "the automaton would have more than %d states (before it is made small): repeat fewer times",
                       raw->states);
    const mx_status status = mx_regular_spend(1 + raw->classes, error);
    if (status) return status;
    if (raw->states == raw->capacity) {
        const int capacity = raw->capacity ? 2 * raw->capacity : 16;
        int32_t *next = realloc(raw->next, (size_t)capacity * (size_t)raw->classes * sizeof *next);
        if (next) raw->next = next;
        bool *accept = realloc(raw->accepting, (size_t)capacity * sizeof *accept);
        if (accept) raw->accepting = accept;
        if (!next || !accept) return no_memory(error);
        raw->capacity = capacity;
    }
    memset(raw->next + (size_t)raw->states * (size_t)raw->classes, 0xFF, (size_t)raw->classes * sizeof *raw->next);
    raw->accepting[raw->states++] = accepting;
    return MX_OK;
}

void mx_raw_free(mx_raw *raw) {
    free(raw->next);
    free(raw->accepting);
    *raw = (mx_raw){0};
}

void mx_refine(uint8_t *class_of, int *classes, const uint8_t *with, uint16_t *scratch) {
    uint16_t used[256];
    int count = 0;
    for (int b = 0; b < 256; b++) {
        const uint16_t pair = (uint16_t)(class_of[b] << 8 | with[b]);
        if (!scratch[pair]) {
            used[count] = pair;
            scratch[pair] = (uint16_t)++count;
        }
        class_of[b] = (uint8_t)(scratch[pair] - 1);
    }
    for (int i = 0; i < count; i++) scratch[used[i]] = 0;
    *classes = count;
}

/* ---- the minimal automaton --------------------------------------------------------------------------------------- */
/* Valmari & Lehtinen, "Efficient Minimization of DFAs with Partial Transition Functions", STACS 2008: blocks of states
 * and of transitions split each other, O(transitions log states). */
typedef struct partition {
    int *element;  /* blocks lie one behind the other */
    int *location; /* of an element in `element` */
    int *block;    /* of an element */
    int *first, *past;
    int count;
} partition;

/* Blocks that have marked elements. */
typedef struct marks {
    int *marked;  /* [block] so many, at its beginning */
    int *touched; /* [touched_count] blocks */
    int touched_count;
} marks;

typedef struct minimiser {
    const mx_raw *raw;
    int states;      /* kept ones */
    bool empty;      /* no word at all: the start alone, without transitions */
    int *kept;       /* [raw->states] new number, or -1 */
    int transitions; /* kept ones */
    int *tail, *label, *head;
    int *incoming, *incoming_first; /* transitions by head: [transitions], [states + 1] */
    partition blocks, cords;
    marks marks;
    int *memory;
} minimiser;

static void mark(partition *p, marks *m, int element) {
    const int block = p->block[element], i = p->location[element], j = p->first[block] + m->marked[block];
    if (i < j) return;
    p->element[i] = p->element[j];
    p->location[p->element[i]] = i;
    p->element[j] = element;
    p->location[element] = j;
    if (!m->marked[block]++) m->touched[m->touched_count++] = block;
}

static void split(partition *p, marks *m) {
    while (m->touched_count) {
        const int block = m->touched[--m->touched_count], j = p->first[block] + m->marked[block];
        if (j == p->past[block]) {
            m->marked[block] = 0;
            continue;
        }
        const int fresh = p->count++;
        if (m->marked[block] <= p->past[block] - j) {
            p->first[fresh] = p->first[block];
            p->past[fresh] = p->first[block] = j;
        } else {
            p->past[fresh] = p->past[block];
            p->first[fresh] = p->past[block] = j;
        }
        for (int i = p->first[fresh]; i < p->past[fresh]; i++) p->block[p->element[i]] = fresh;
        m->marked[block] = m->marked[fresh] = 0;
    }
}

/* States that the start reaches and that reach an accepting one get numbers; the start has 0 in any case. */
static mx_status keep_useful(minimiser *m, mx_error *error) {
    const mx_raw *raw = m->raw;
    const size_t states = (size_t)raw->states, classes = (size_t)raw->classes;
    size_t transitions = 0;
    for (size_t i = 0; i < states * classes; i++) transitions += raw->next[i] >= 0;
    if (transitions > MX_RAW_TRANSITIONS)
        return mx_fail(error, MX_UNSUPPORTED, "the automaton would have more than %d transitions: repeat fewer times",
                       MX_RAW_TRANSITIONS);
    m->kept = calloc(states, sizeof *m->kept);
    int *first = calloc(states + 2, sizeof *first), *from = malloc((transitions + 1) * sizeof *from);
    int *stack = malloc(states * sizeof *stack);
    const bool ok = m->kept && first && from && stack;
    if (ok) {
        for (size_t i = 0; i < states * classes; i++)
            if (raw->next[i] >= 0) first[raw->next[i] + 2]++;
        for (size_t s = 0; s < states; s++) first[s + 2] += first[s + 1];
        for (size_t i = 0; i < states * classes; i++)
            if (raw->next[i] >= 0) from[first[raw->next[i] + 1]++] = (int)(i / classes);
        int count = 0;
        for (size_t s = 0; s < states; s++) {
            m->kept[s] = raw->accepting[s] ? 1 : -1;
            if (raw->accepting[s]) stack[count++] = (int)s;
        }
        while (count) {
            const int s = stack[--count];
            for (int i = first[s]; i < first[s + 1]; i++)
                if (m->kept[from[i]] < 0) m->kept[from[i]] = 1, stack[count++] = from[i];
        }
        /* Forward, with 2 for those that are reached. */
        m->empty = m->kept[0] < 0;
        m->kept[0] = 2;
        stack[count++] = 0;
        while (count) {
            const int32_t *row = raw->next + (size_t)stack[--count] * classes;
            for (size_t c = 0; c < classes; c++)
                if (row[c] >= 0 && m->kept[row[c]] == 1) m->kept[row[c]] = 2, stack[count++] = row[c];
        }
        for (size_t s = 0; s < states; s++) m->kept[s] = m->kept[s] == 2 ? m->states++ : -1;
    }
    free(first), free(from), free(stack);
    return ok ? MX_OK : no_memory(error);
}

static mx_status list_transitions(minimiser *m, mx_error *error) {
    const mx_raw *raw = m->raw;
    const size_t classes = (size_t)raw->classes;
    size_t count = 0;
    for (int s = 0; s < raw->states; s++)
        for (size_t c = 0; !m->empty && m->kept[s] >= 0 && c < classes; c++) {
            const int32_t to = raw->next[(size_t)s * classes + c];
            count += to >= 0 && m->kept[to] >= 0;
        }
    const size_t n = (size_t)m->states, larger = count > n ? count : n;
    int *p = m->memory = malloc((9 * count + 6 * n + 2 * larger + 8) * sizeof *p);
    if (!p) return no_memory(error);
    m->tail = p, m->label = p + count, m->head = p + 2 * count, m->incoming = p + 3 * count;
    p += 4 * count;
    m->cords = (partition){p, p + count, p + 2 * count, p + 3 * count, p + 4 * count, 0};
    p += 5 * count;
    m->blocks = (partition){p, p + n, p + 2 * n, p + 3 * n, p + 4 * n, 0};
    p += 5 * n;
    m->incoming_first = p, p += n + 2;
    m->marks = (marks){p, p + larger + 1, 0};
    /* In the order of their labels, which cords need at first. */
    for (size_t c = 0; !m->empty && c < classes; c++)
        for (int s = 0; s < raw->states; s++) {
            const int32_t to = m->kept[s] < 0 ? -1 : raw->next[(size_t)s * classes + c];
            if (to < 0 || m->kept[to] < 0) continue;
            m->tail[m->transitions] = m->kept[s];
            m->head[m->transitions] = m->kept[to];
            m->label[m->transitions++] = (int)c;
        }
    return MX_OK;
}

static void index_heads(minimiser *m) {
    int *first = m->incoming_first;
    memset(first, 0, ((size_t)m->states + 2) * sizeof *first);
    for (int t = 0; t < m->transitions; t++) first[m->head[t] + 2]++;
    for (int s = 0; s < m->states; s++) first[s + 2] += first[s + 1];
    for (int t = 0; t < m->transitions; t++) m->incoming[first[m->head[t] + 1]++] = t;
}

static void refine_all(minimiser *m) {
    partition *b = &m->blocks, *c = &m->cords;
    for (int s = 0; s < m->states; s++) b->element[s] = b->location[s] = s, b->block[s] = 0;
    b->count = 1, b->first[0] = 0, b->past[0] = m->states;
    m->marks.marked[0] = 0;
    for (int s = 0; s < m->raw->states; s++)
        if (m->kept[s] >= 0 && m->raw->accepting[s]) mark(b, &m->marks, m->kept[s]);
    split(b, &m->marks);
    for (int t = 0; t < m->transitions; t++) {
        c->element[t] = c->location[t] = t;
        if (!t || m->label[t] != m->label[t - 1]) {
            c->first[c->count] = t;
            m->marks.marked[c->count++] = 0;
        }
        c->block[t] = c->count - 1;
        c->past[c->count - 1] = t + 1;
    }
    index_heads(m);
    for (int cord = 0, block = 1; cord < c->count; cord++) {
        for (int i = c->first[cord]; i < c->past[cord]; i++) mark(b, &m->marks, m->tail[c->element[i]]);
        split(b, &m->marks);
        for (; block < b->count; block++) {
            for (int i = b->first[block]; i < b->past[block]; i++) {
                const int s = b->element[i];
                for (int k = m->incoming_first[s]; k < m->incoming_first[s + 1]; k++)
                    mark(c, &m->marks, m->incoming[k]);
            }
            split(c, &m->marks);
        }
    }
}

/* ---- its form ---------------------------------------------------------------------------------------------------- */

/* Bytes that no state of `next` tells apart come into one class; classes are numbered by their first byte. Returns how
 * many; representatives are old classes. */
static int merge_classes(const int32_t *next, int states, int classes, const uint8_t *class_of, uint8_t *out,
                         int *representative) {
    uint64_t hashes[256];
    for (int c = 0; c < classes; c++) {
        hashes[c] = 0;
        for (int s = 0; s < states; s++)
            hashes[c] = (hashes[c] ^ (uint32_t)next[(size_t)s * (size_t)classes + (size_t)c]) * 0x9E3779B97F4A7C15u,
            hashes[c] ^= hashes[c] >> 29;
    }
    int merged[256], count = 0;
    for (int c = 0; c < classes; c++) merged[c] = -1;
    for (int b = 0; b < 256; b++) {
        const int c = class_of[b];
        for (int k = 0; merged[c] < 0 && k < count; k++) {
            if (hashes[representative[k]] != hashes[c]) continue;
            int s = 0;
            while (s < states && next[(size_t)s * (size_t)classes + (size_t)c] ==
                                     next[(size_t)s * (size_t)classes + (size_t)representative[k]])
                s++;
            if (s == states) merged[c] = k;
        }
        if (merged[c] < 0) merged[c] = count, representative[count++] = c;
        out[b] = (uint8_t)merged[c];
    }
    return count;
}

static void hash_language(mx_regular *r) {
    const size_t states = (size_t)r->states, cells = states * (size_t)r->classes;
    uint64_t parts[3] = {XXH3_64bits(r->class_of, sizeof r->class_of), XXH3_64bits(r->next, cells * sizeof *r->next),
                         XXH3_64bits(r->accepting, states * sizeof *r->accepting)};
    r->hash = XXH3_64bits(parts, sizeof parts);
}

/* Numbers states in breadth from `start`. next is [states][classes] of states not yet so numbered. */
static mx_status canonical(const int32_t *next, const bool *accepting, int states, int classes, const uint8_t *class_of,
                           int start, mx_regular **out, mx_error *error) {
    mx_regular *r = calloc(1, sizeof *r);
    int representative[256], *number = malloc((size_t)states * sizeof *number);
    int *order = malloc((size_t)states * sizeof *order);
    if (r) {
        r->classes = merge_classes(next, states, classes, class_of, r->class_of, representative);
        r->next = malloc((size_t)states * (size_t)r->classes * sizeof *r->next);
        r->accepting = malloc((size_t)states * sizeof *r->accepting);
    }
    if (!r || !number || !order || !r->next || !r->accepting) {
        mx_regular_free(r);
        free(number), free(order);
        return no_memory(error);
    }
    atomic_init(&r->references, 1);
    for (int s = 0; s < states; s++) number[s] = -1;
    number[start] = 0, order[0] = start, r->states = 1;
    for (int s = 0; s < r->states; s++) {
        r->accepting[s] = accepting[order[s]];
        for (int c = 0; c < r->classes; c++) {
            const int32_t to = next[(size_t)order[s] * (size_t)classes + (size_t)representative[c]];
            if (to >= 0 && number[to] < 0) number[to] = r->states, order[r->states++] = to;
            r->next[(size_t)s * (size_t)r->classes + (size_t)c] = to < 0 ? -1 : number[to];
        }
    }
    hash_language(r);
    free(number), free(order);
    *out = r;
    return MX_OK;
}

static mx_status write_blocks(const minimiser *m, mx_regular **out, mx_error *error) {
    const partition *b = &m->blocks;
    if (b->count > MX_REGULAR_STATES)
        return mx_fail(error, MX_UNSUPPORTED, "the automaton would have %d states; at most %d are allowed", b->count,
                       MX_REGULAR_STATES);
    const size_t classes = (size_t)m->raw->classes, cells = (size_t)b->count * classes;
    int32_t *next = malloc(cells * sizeof *next);
    bool *accepting = calloc((size_t)b->count, sizeof *accepting);
    mx_status status = next && accepting ? MX_OK : no_memory(error);
    if (!status) {
        memset(next, 0xFF, cells * sizeof *next);
        for (int t = 0; t < m->transitions; t++)
            next[(size_t)b->block[m->tail[t]] * classes + (size_t)m->label[t]] = b->block[m->head[t]];
        for (int s = 0; s < m->raw->states; s++)
            if (m->kept[s] >= 0) accepting[b->block[m->kept[s]]] = m->raw->accepting[s];
        status = canonical(next, accepting, b->count, m->raw->classes, m->raw->class_of, b->block[0], out, error);
    }
    free(next), free(accepting);
    return status;
}

mx_status mx_raw_minimal(const mx_raw *raw, mx_regular **out, mx_error *error) {
    enum { REFINING = 6 }; /* steps, about, that a transition takes */
    minimiser m = {.raw = raw};
    mx_status status = keep_useful(&m, error);
    if (!status) status = list_transitions(&m, error);
    if (!status) status = mx_regular_spend(REFINING * (int64_t)m.transitions, error);
    if (!status) {
        refine_all(&m);
        status = write_blocks(&m, out, error);
    }
    free(m.kept), free(m.memory);
    return status;
}
