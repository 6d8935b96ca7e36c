/* Characters as ranges of code points, and these as automata over the bytes of UTF-8. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/regular_private.h"

/* ---- ranges ------------------------------------------------------------------------------------------------------ */

bool mx_ranges_add(mx_ranges *r, uint32_t first, uint32_t last) {
    if (r->count == r->capacity) {
        const size_t capacity = r->capacity ? 2 * r->capacity : 8;
        mx_range *data = realloc(r->data, capacity * sizeof *data);
        if (!data) return false;
        r->data = data;
        r->capacity = capacity;
    }
    r->data[r->count++] = (mx_range){first, last};
    return true;
}

bool mx_ranges_add_all(mx_ranges *r, const mx_ranges *other) {
    for (size_t i = 0; i < other->count; i++)
        if (!mx_ranges_add(r, other->data[i].first, other->data[i].last)) return false;
    return true;
}

static int by_first(const void *a, const void *b) {
    const mx_range *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

void mx_ranges_sort(mx_ranges *r) {
    if (r->count < 2) return;
    qsort(r->data, r->count, sizeof *r->data, by_first);
    size_t count = 1;
    for (size_t i = 1; i < r->count; i++) {
        mx_range *last = &r->data[count - 1];
        if (r->data[i].first > last->last + 1)
            r->data[count++] = r->data[i];
        else if (r->data[i].last > last->last)
            last->last = r->data[i].last;
    }
    r->count = count;
}

bool mx_ranges_invert(mx_ranges *r) {
    mx_ranges out = {0};
    uint32_t first = 0;
    mx_ranges_sort(r);
    bool ok = true;
    for (size_t i = 0; ok && i < r->count; i++) {
        if (r->data[i].first > first) ok = mx_ranges_add(&out, first, r->data[i].first - 1);
        first = r->data[i].last + 1;
    }
    if (ok && first <= MX_LAST_CHARACTER) ok = mx_ranges_add(&out, first, MX_LAST_CHARACTER);
    mx_ranges_free(r);
    *r = out;
    return ok;
}

void mx_ranges_free(mx_ranges *r) {
    free(r->data);
    *r = (mx_ranges){0};
}

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

/* A tree of ranges of bytes. Ranges of code points come in order, so that an edge is either the last one of its node
 * once more or lies behind it. */
typedef struct edge {
    uint8_t first, last;
    int from, to;
} edge;
typedef struct tree {
    edge *edges;
    int edge_count, edge_capacity;
    int *last_edge; /* [node] -1: none */
    int nodes, capacity;
} tree;

static int tree_node(tree *t) {
    if (t->nodes == t->capacity) {
        const int capacity = t->capacity ? 2 * t->capacity : 32;
        int *last = realloc(t->last_edge, (size_t)capacity * sizeof *last);
        if (!last) return -1;
        t->last_edge = last;
        t->capacity = capacity;
    }
    t->last_edge[t->nodes] = -1;
    return t->nodes++;
}

/* The node behind these bytes; `end`: that is node 1, where words end. -1: no memory. */
static int tree_step(tree *t, int from, uint8_t first, uint8_t last, bool end) {
    const int old = t->last_edge[from];
    if (old >= 0 && t->edges[old].first == first && t->edges[old].last == last) return t->edges[old].to;
    if (t->edge_count == t->edge_capacity) {
        const int capacity = t->edge_capacity ? 2 * t->edge_capacity : 32;
        edge *edges = realloc(t->edges, (size_t)capacity * sizeof *edges);
        if (!edges) return -1;
        t->edges = edges;
        t->edge_capacity = capacity;
    }
    const int to = end ? 1 : tree_node(t);
    if (to < 0) return -1;
    t->last_edge[from] = t->edge_count;
    t->edges[t->edge_count++] = (edge){first, last, from, to};
    return to;
}

static int encode(uint32_t c, uint8_t out[4]) {
    if (c < 0x80) return out[0] = (uint8_t)c, 1;
    const int size = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (int i = size - 1; i > 0; i--, c >>= 6) out[i] = (uint8_t)(0x80 | (c & 0x3F));
    out[0] = (uint8_t)(lead[size] | c);
    return size;
}

/* A range whose characters have so many bytes: cut where a byte changes that is not followed by all bytes or none. */
static bool tree_add_range(tree *t, uint32_t first, uint32_t last, int size) {
    while (first <= last) {
        uint32_t end = last;
        for (int i = 1; i < size; i++) {
            const uint32_t mask = (1u << (6 * i)) - 1;
            if ((first & ~mask) == (end & ~mask)) continue;
            if (first & mask)
                end = first | mask;
            else if ((end & mask) != mask)
                end = (end & ~mask) - 1;
        }
        uint8_t low[4], high[4];
        encode(first, low);
        encode(end, high);
        int node = 0;
        for (int i = 0; i < size && node >= 0; i++) node = tree_step(t, node, low[i], high[i], i == size - 1);
        if (node < 0) return false;
        first = end + 1;
    }
    return true;
}

static bool tree_add(tree *t, mx_range r) {
    static const mx_range sizes[] = {{0, 0x7F}, {0x80, 0x7FF}, {0x800, 0xD7FF}, {0xE000, 0xFFFF}, {0x10000, 0x10FFFF}};
    static const int bytes[] = {1, 2, 3, 3, 4};
    for (int i = 0; i < 5; i++) {
        const uint32_t first = r.first > sizes[i].first ? r.first : sizes[i].first;
        const uint32_t last = r.last < sizes[i].last ? r.last : sizes[i].last;
        if (first <= last && !tree_add_range(t, first, last, bytes[i])) return false;
    }
    return true;
}

static mx_status tree_minimal(const tree *t, mx_regular **out, mx_error *error) {
    bool cut[257] = {0};
    for (int i = 0; i < t->edge_count; i++) cut[t->edges[i].first] = cut[t->edges[i].last + 1] = true;
    mx_raw raw = {0};
    for (int b = 0; b < 256; b++) {
        raw.classes += b > 0 && cut[b];
        raw.class_of[b] = (uint8_t)raw.classes;
    }
    raw.classes++;
    mx_status status = MX_OK;
    for (int i = 0; !status && i < t->nodes; i++) status = mx_raw_add(&raw, i == 1, error);
    for (int i = 0; !status && i < t->edge_count; i++) {
        const edge *e = &t->edges[i];
        for (int c = raw.class_of[e->first]; c <= raw.class_of[e->last]; c++)
            raw.next[(size_t)e->from * (size_t)raw.classes + (size_t)c] = e->to;
    }
    if (!status) status = mx_raw_minimal(&raw, out, error);
    mx_raw_free(&raw);
    return status;
}

mx_status mx_regular_characters(const mx_ranges *r, mx_regular **out, mx_error *error) {
    tree t = {0};
    bool ok = tree_node(&t) == 0 && tree_node(&t) == 1;
    for (size_t i = 0; ok && i < r->count; i++) ok = tree_add(&t, r->data[i]);
    const mx_status status =
        ok ? tree_minimal(&t, out, error) : mx_fail(error, MX_NO_MEMORY, "no memory for characters");
    free(t.edges), free(t.last_edge);
    return status;
}

/* ---- any text ---------------------------------------------------------------------------------------------------- */

static pthread_mutex_t any_lock = PTHREAD_MUTEX_INITIALIZER;
static mx_regular *any_character, *any_text;

static mx_status make_any(mx_error *error) {
    mx_range all = {0, MX_LAST_CHARACTER};
    const mx_ranges ranges = {&all, 1, 1};
    mx_status status = any_character ? MX_OK : mx_regular_characters(&ranges, &any_character, error);
    if (!status && !any_text) status = mx_regular_repeat(any_character, 0, -1, &any_text, error);
    return status;
}

static mx_status get_any(mx_regular *const *which, const mx_regular **out, mx_error *error) {
    pthread_mutex_lock(&any_lock);
    const mx_status status = make_any(error);
    *out = *which;
    pthread_mutex_unlock(&any_lock);
    return status;
}

mx_status mx_regular_any_character(const mx_regular **out, mx_error *error) {
    return get_any(&any_character, out, error);
}

mx_status mx_regular_any(const mx_regular **out, mx_error *error) {
    return get_any(&any_text, out, error);
}
