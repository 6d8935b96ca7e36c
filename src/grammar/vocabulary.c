#include <stdlib.h>
#include <string.h>

#include "grammar/vocabulary_private.h"

/* Memory for masks that were made once: some thousands. */
#define CACHE_BYTES (256u << 20)
/* Longer tokens are never allowed. (The longest of gpt-oss has 128 bytes.) */
enum { LONGEST = 1000 };

static const char *bytes_of(const mx_tokenizer *t, int32_t id, size_t *size) {
    const char *bytes = mx_is_special(t, id) ? NULL : mx_token_bytes(t, id, size);
    return bytes && *size > 0 && *size <= LONGEST ? bytes : NULL;
}

const uint8_t *mx_vocabulary_bytes(const mx_vocabulary *v, int32_t token, size_t *size) {
    *size = 0;
    if (token < 0 || token >= v->vocab) return NULL;
    *size = v->byte_from[token + 1] - v->byte_from[token];
    return v->byte + v->byte_from[token];
}

static bool copy_tokens(mx_vocabulary *v, const mx_tokenizer *t) {
    const int32_t tokens = mx_tokenizer_size(t) < v->vocab ? mx_tokenizer_size(t) : v->vocab;
    size_t total = 0, size, count = 0;
    for (int32_t id = 0; id < tokens; id++)
        if (bytes_of(t, id, &size)) total += size, count++;
    if (total > UINT32_MAX / 2) return false;
    v->byte = malloc(total + 1);
    v->id = malloc((count + 1) * sizeof *v->id);
    v->byte_from = malloc(((size_t)v->vocab + 1) * sizeof *v->byte_from);
    if (!v->byte || !v->id || !v->byte_from) return false;
    uint32_t at = 0;
    for (int32_t id = 0; id < v->vocab; id++) {
        v->byte_from[id] = at;
        const char *bytes = id < tokens ? bytes_of(t, id, &size) : NULL;
        if (!bytes) continue;
        memcpy(v->byte + at, bytes, size);
        at += (uint32_t)size;
        v->id[v->tokens++] = (uint32_t)id;
        if (size > v->longest) v->longest = (uint32_t)size;
    }
    v->byte_from[v->vocab] = at;
    return true;
}

/* A token with its first eight bytes as a number in which the first weighs most. */
typedef struct sorted {
    uint64_t begin;
    uint32_t id;
} sorted;

static int by_bytes(const void *a, const void *b, void *user) {
    const mx_vocabulary *v = user;
    const sorted *s = a, *t = b;
    if (s->begin != t->begin) return s->begin < t->begin ? -1 : 1;
    const uint32_t x = s->id, y = t->id;
    const uint32_t n = v->byte_from[x + 1] - v->byte_from[x], m = v->byte_from[y + 1] - v->byte_from[y];
    const int order = memcmp(v->byte + v->byte_from[x], v->byte + v->byte_from[y], n < m ? n : m);
    if (order) return order;
    return n != m ? (n > m) - (n < m) : (x > y) - (x < y);
}

static bool sort_tokens(mx_vocabulary *v) {
    sorted *list = malloc((v->tokens + 1) * sizeof *list);
    if (!list) return false;
    for (uint32_t i = 0; i < v->tokens; i++) {
        list[i] = (sorted){.id = v->id[i]};
        const uint32_t from = v->byte_from[v->id[i]], size = v->byte_from[v->id[i] + 1] - from;
        for (uint32_t k = 0; k < 8; k++) list[i].begin = list[i].begin << 8 | (k < size ? v->byte[from + k] : 0);
    }
    qsort_r(list, v->tokens, sizeof *list, by_bytes, v);
    for (uint32_t i = 0; i < v->tokens; i++) v->id[i] = list[i].id;
    free(list);
    return true;
}

/* Node i stands for the tokens id[first .. last), which have `depth` bytes in common. */
static bool grow_children(mx_vocabulary *v, uint32_t i, uint32_t depth, size_t *room) {
    const uint32_t last = v->node[i].last;
    uint32_t at = v->node[i].first;
    size_t nodes = v->nodes;
    while (at < last && v->byte_from[v->id[at] + 1] - v->byte_from[v->id[at]] == depth) at++;
    const uint32_t own = at - v->node[i].first;
    v->node[i].own = (uint8_t)(own < 255 ? own : 255);
    v->node[i].child = (uint32_t)nodes;
    while (at < last) {
        const uint8_t byte = v->byte[v->byte_from[v->id[at]] + depth];
        const uint32_t first = at;
        while (at < last && v->byte[v->byte_from[v->id[at]] + depth] == byte) at++;
        if (!MX_PUSH(v->node, nodes, *room, (mx_trie_node){.first = first, .last = at, .byte = byte})) return false;
        v->node[i].children++;
    }
    v->nodes = (uint32_t)nodes;
    return true;
}

static bool grow_trie(mx_vocabulary *v) {
    size_t room = 0, nodes = 0, todos = 0, todo_room = 0;
    struct todo {
        uint32_t node, depth;
    } *todo = NULL;
    bool ok = MX_PUSH(v->node, nodes, room, (mx_trie_node){.last = v->tokens}) &&
              MX_PUSH(todo, todos, todo_room, (struct todo){0, 0});
    v->nodes = 1;
    while (ok && todos > 0) {
        const struct todo now = todo[--todos];
        ok = grow_children(v, now.node, now.depth, &room);
        for (uint32_t k = v->node[now.node].children; ok && k-- > 0;)
            ok = MX_PUSH(todo, todos, todo_room, (struct todo){v->node[now.node].child + k, now.depth + 1});
    }
    free(todo);
    if (ok) v->below = calloc(v->nodes, sizeof *v->below);
    for (uint32_t i = v->below ? v->nodes : 0; i-- > 0;) /* children come behind their parents */
        for (uint32_t k = v->node[i].child; k < v->node[i].child + v->node[i].children; k++)
            v->below[i] |= v->below[k] | mx_byte_group(v->node[k].byte);
    return ok && v->below;
}

static bool measure(mx_vocabulary *v) {
    v->depth = calloc(v->nodes, sizeof *v->depth);
    v->deepest = calloc(v->nodes, sizeof *v->deepest);
    if (!v->depth || !v->deepest) return false;
    for (uint32_t i = 0; i < v->nodes; i++)
        for (uint32_t k = v->node[i].child; k < v->node[i].child + v->node[i].children; k++)
            v->depth[k] = (uint16_t)(v->depth[i] + 1);
    for (uint32_t i = v->nodes; i-- > 0;) {
        v->deepest[i] = v->depth[i]; /* where nothing is below, a token ends */
        for (uint32_t k = v->node[i].child; k < v->node[i].child + v->node[i].children; k++)
            if (v->deepest[k] > v->deepest[i]) v->deepest[i] = v->deepest[k];
    }
    for (int level = 0; level < MX_ALIKE_LEVELS; level++) {
        uint32_t *bits = v->short_tokens[level] = calloc((size_t)v->words + 1, sizeof *bits);
        if (!bits) return false;
        for (uint32_t i = 0; i < v->tokens; i++) {
            const uint32_t id = v->id[i];
            if (v->byte_from[id + 1] - v->byte_from[id] <= mx_alike_bytes[level]) bits[id >> 5] |= 1u << (id & 31);
        }
    }
    return true;
}

mx_status mx_vocabulary_create(const mx_tokenizer *t, int32_t vocab, mx_vocabulary **out, mx_error *error) {
    *out = NULL;
    mx_vocabulary *v = vocab >= 0 ? calloc(1, sizeof *v) : NULL;
    if (v) {
        v->vocab = vocab;
        v->words = ((uint32_t)vocab + 31) / 32;
        if (!mx_mask_cache_create(&v->cache, CACHE_BYTES)) {
            free(v);
            v = NULL;
        }
    }
    if (v && copy_tokens(v, t) && sort_tokens(v) && grow_trie(v) && measure(v)) {
        v->all = calloc((size_t)v->words + 1, sizeof *v->all);
        for (uint32_t i = 0; v->all && i < v->tokens; i++) v->all[v->id[i] >> 5] |= 1u << (v->id[i] & 31);
        if (v->all) {
            *out = v;
            return MX_OK;
        }
    }
    mx_vocabulary_free(v);
    return mx_fail(error, MX_NO_MEMORY, "no memory for the tree of %d tokens", (int)vocab);
}

const uint32_t *mx_vocabulary_tokens(const mx_vocabulary *v, int32_t *vocab) {
    *vocab = v->vocab;
    return v->all;
}

void mx_vocabulary_free(mx_vocabulary *v) {
    if (!v) return;
    mx_mask_cache_free(&v->cache);
    free(v->all);
    free(v->node);
    free(v->below);
    free(v->depth);
    free(v->deepest);
    for (int level = 0; level < MX_ALIKE_LEVELS; level++) free(v->short_tokens[level]);
    free(v->id);
    free(v->byte);
    free(v->byte_from);
    free(v);
}
