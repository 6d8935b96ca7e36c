#include "engine/kv_private.h"

#include <stdlib.h>
#include <string.h>

static int64_t tiles_of(int64_t positions) {
    return (positions + MX_TILE - 1) / MX_TILE;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* ---- what all sequences share -------------------------------------------------------------------------------------
 */
/* Every node holds a page of each full layer that no other node holds. Without such layers nothing bounds the tiles
 * behind the windows that still lead to one, so there are as many as it takes for every page to be in use and one
 * sequence to be as long as it may. */
static int64_t nodes_for(const mx_kv_options *o, int full_layers) {
    return full_layers ? o->pages / full_layers + 1 : o->pages + tiles_of(o->context) + 1;
}

mx_status mx_kv_create(const mx_kv_options *options, mx_kv **out, mx_error *error) {
    mx_kv *kv = calloc(1, sizeof *kv);
    if (!kv) return mx_fail(error, MX_NO_MEMORY, "no memory for a KV cache");
    kv->config = options->config;
    for (int l = 0; l < kv->config->layers; l++) kv->sliding_layers += kv->config->sliding[l];
    const int full_layers = kv->config->layers - kv->sliding_layers;

    const size_t boundary_bytes = sizeof *kv->boundary * (size_t)options->boundary_count;
    kv->boundary_count = options->boundary_count;
    kv->boundary = malloc(boundary_bytes + 1);
    mx_status status = MX_OK;
    if (!kv->boundary) status = mx_fail(error, MX_NO_MEMORY, "no memory for a KV cache");
    if (!status && boundary_bytes) memcpy(kv->boundary, options->boundary, boundary_bytes);
    if (!status) status = mx_page_pool_init(&kv->pool, options->backend, options->pages, error);
    if (!status) status = mx_prefix_tree_init(&kv->tree, kv->config, &kv->pool, nodes_for(options, full_layers), error);
    kv->store = options->store;
    if (!status) status = mx_kv_store_init(kv, options->context, error);
    if (status) {
        kv->store = NULL; /* still the caller's */
        mx_kv_destroy(kv);
        return status;
    }
    *out = kv;
    return MX_OK;
}

void mx_kv_destroy(mx_kv *kv) {
    if (!kv) return;
    mx_kv_store_free(kv);
    mx_prefix_tree_free(&kv->tree);
    mx_page_pool_free(&kv->pool);
    free(kv->boundary);
    free(kv);
}

int64_t mx_kv_pages_free(const mx_kv *kv) {
    return kv->pool.free_count;
}

int64_t mx_kv_pages_cached(const mx_kv *kv) {
    return kv->pool.cached;
}

void mx_kv_forget(mx_kv *kv) {
    mx_prefix_forget(&kv->tree);
}

/* ---- matching -----------------------------------------------------------------------------------------------------
 */
/* A way down the tree along some tokens. */
typedef struct match {
    mx_kv_node *node; /* of the last tile that is there as a whole; NULL: none */
    mx_kv_node *part; /* behind it a tile that begins with the next `common` tokens; NULL: none */
    int64_t tiles;    /* whole ones */
    int common;
} match;

static void find_part(const mx_prefix_tree *tree, match *m, const int32_t *tokens, int64_t limit) {
    const int64_t begin = m->tiles * MX_TILE;
    m->part = mx_prefix_find_part(tree, m->node, tokens + begin, smaller(limit - begin, MX_TILE), &m->common);
}

static match follow(const mx_prefix_tree *tree, const int32_t *tokens, int64_t limit) {
    match m = {0};
    for (; (m.tiles + 1) * MX_TILE <= limit; m.tiles++) {
        mx_kv_node *next = mx_prefix_find(tree, m.node, tokens + m.tiles * MX_TILE);
        if (!next) break;
        m.node = next;
    }
    find_part(tree, &m, tokens, limit);
    return m;
}

/* The last tile whose sliding pages a sequence of `position` tokens wants and the tree lost; NULL: none. The next row,
 * at `position`, sees position - window + 1 and what follows. */
static const mx_kv_node *missing(const mx_kv *kv, const match *m, int64_t position) {
    if (kv->sliding_layers == 0) return NULL;
    const int64_t first = mx_window_begin(kv->config, position);
    for (const mx_kv_node *n = m->part ? m->part : m->node; n && n->tile >= first; n = n->parent)
        if (!n->window) return n;
    return NULL;
}

/* Cuts a way back to the longest prefix that a sequence can go on from, and returns its length. A shorter prefix looks
 * further back than a longer one: where a tile is missing, only what ends before it or in another that begins like it
 * can do. */
static int64_t usable(const mx_kv *kv, match *m, const int32_t *tokens, int64_t limit) {
    for (;;) {
        const int64_t position = m->tiles * MX_TILE + m->common;
        const mx_kv_node *lost = missing(kv, m, position);
        if (!lost) return position;
        m->node = lost->parent;
        m->tiles = lost->tile;
        find_part(&kv->tree, m, tokens, limit);
    }
}

int64_t mx_kv_cached_tokens(const mx_kv *kv, const int32_t *tokens, int64_t count) {
    match m = follow(&kv->tree, tokens, count);
    return usable(kv, &m, tokens, count);
}

/* Nobody else writes the tile behind the whole ones: it can be gone on with, the pages of any other are copied. */
static bool is_for_taking(const match *m) {
    return m->part->users == 0 && m->part->count == m->common;
}

mx_kv_prefix mx_kv_find_prefix(const mx_kv *kv, const int32_t *tokens, int64_t count) {
    match m = follow(&kv->tree, tokens, count);
    mx_kv_prefix p = {.tokens = usable(kv, &m, tokens, count)};
    p.tiles = tiles_of(p.tokens);
    p.first_tile = kv->sliding_layers ? mx_window_begin(kv->config, p.tokens) : 0;
    const bool copies = m.part && !is_for_taking(&m);
    if (copies) p.taken = kv->config->layers;
    for (const mx_kv_node *n = m.part && !copies ? m.part : m.node; n; n = n->parent)
        for (int l = 0; l < kv->config->layers; l++)
            if (!kv->config->sliding[l] || n->tile >= p.first_tile) p.taken += kv->pool.reference[n->page[l]] == 1;
    return p;
}

/* ---- counting -----------------------------------------------------------------------------------------------------
 */
void mx_kv_count_anew(mx_kv *kv) {
    kv->count++;
}

static int64_t count_node(mx_kv *kv, mx_kv_node *node) {
    if (node->counted == kv->count) return 0;
    node->counted = kv->count;
    return kv->config->layers - kv->sliding_layers;
}

static int64_t count_window(mx_kv *kv, mx_kv_node *node) {
    if (!node->window || node->window_counted == kv->count) return 0;
    node->window_counted = kv->count;
    return kv->sliding_layers;
}

/* What stands on a node holds of it and its ancestors. Those of one that was counted were, too. */
static int64_t count_way(mx_kv *kv, mx_kv_node *node, int64_t first_tile) {
    int64_t pages = 0;
    for (mx_kv_node *n = node; n && n->tile >= first_tile; n = n->parent) pages += count_window(kv, n);
    for (mx_kv_node *n = node; n && n->counted != kv->count; n = n->parent) pages += count_node(kv, n);
    return pages;
}

int64_t mx_kv_count_sequence(const mx_sequence *s) {
    const mx_kv *kv = s->kv;
    const int64_t own = s->tiles - s->published, sliding = s->tiles - s->first_tile;
    return count_way(s->kv, s->node, s->first_tile) + (kv->config->layers - kv->sliding_layers) * own +
           kv->sliding_layers * smaller(own, sliding);
}

mx_kv_prefix mx_kv_count_prefix(mx_kv *kv, const int32_t *tokens, int64_t count) {
    match m = follow(&kv->tree, tokens, count);
    mx_kv_prefix p = {.tokens = usable(kv, &m, tokens, count)};
    p.tiles = tiles_of(p.tokens);
    p.first_tile = kv->sliding_layers ? mx_window_begin(kv->config, p.tokens) : 0;
    if (m.part) p.taken = is_for_taking(&m) ? count_node(kv, m.part) + count_window(kv, m.part) : kv->config->layers;
    p.taken += count_way(kv, m.node, p.first_tile);
    return p;
}

/* ---- one sequence: its table --------------------------------------------------------------------------------------
 */
mx_status mx_sequence_init(mx_sequence *s, mx_kv *kv, int64_t most, mx_error *error) {
    *s = (mx_sequence){.kv = kv, .stride = tiles_of(most)};
    s->table = malloc(sizeof *s->table * (size_t)(kv->config->layers * s->stride) + 1);
    if (!s->table) {
        *s = (mx_sequence){0};
        return mx_fail(error, MX_NO_MEMORY, "no memory for the page table of %lld tokens", (long long)most);
    }
    return MX_OK;
}

mx_sequence_view mx_sequence_get_view(const mx_sequence *s) {
    return (mx_sequence_view){s->table, s->stride};
}

static int32_t *entry(const mx_sequence *s, int layer, int64_t tile) {
    return &s->table[layer * s->stride + tile];
}

static bool is_sliding(const mx_sequence *s, int layer) {
    return s->kv->config->sliding[layer];
}

/* The node that holds this tile's sliding pages too; NULL: none. */
static mx_kv_node *window_node(const mx_sequence *s, int64_t tile) {
    const mx_kv *kv = s->kv;
    if (kv->sliding_layers == 0) return NULL;
    const int32_t node = kv->pool.node[*entry(s, kv->tree.first_sliding, tile)];
    return node ? &kv->tree.node[node - 1] : NULL;
}

static void release_layers(mx_sequence *s, int64_t tile, bool sliding) {
    for (int l = 0; l < s->kv->config->layers; l++) {
        if (is_sliding(s, l) != sliding) continue;
        mx_page_release(&s->kv->pool, *entry(s, l, tile));
        *entry(s, l, tile) = -1;
    }
}

/* Takes over the pages that a node has for this tile; the sliding ones only where `window`. */
static void take_layers(mx_sequence *s, const mx_kv_node *node, bool sliding) {
    for (int l = 0; l < s->kv->config->layers; l++) {
        if (is_sliding(s, l) != sliding) continue;
        *entry(s, l, node->tile) = node->page[l];
        mx_page_retain(&s->kv->pool, node->page[l]);
    }
}

static void take_window(mx_sequence *s, mx_kv_node *node) {
    if (s->kv->sliding_layers == 0) return;
    take_layers(s, node, true);
    mx_prefix_pin(&s->kv->tree, node);
}

static void release_window(mx_sequence *s, int64_t tile) {
    mx_kv_node *node = window_node(s, tile);
    if (node) mx_prefix_unpin(&s->kv->tree, node);
    release_layers(s, tile, true);
}

/* Sliding layers give up what the next row does not see. */
static void release_behind(mx_sequence *s) {
    if (s->kv->sliding_layers == 0) return;
    const int64_t first = mx_window_begin(s->kv->config, s->count);
    for (; s->first_tile < first; s->first_tile++) release_window(s, s->first_tile);
}

static void release_all(mx_sequence *s) {
    for (int64_t t = 0; t < s->tiles; t++) {
        if (t >= s->first_tile) release_window(s, t);
        release_layers(s, t, false);
    }
    s->count = s->tiles = s->first_tile = 0;
}

static void move_to(mx_kv_node **from, mx_kv_node *to) {
    if (to) to->users++;
    if (*from) (*from)->users--;
    *from = to;
}

static void let_go(mx_sequence *s) {
    release_all(s);
    move_to(&s->open, NULL);
    move_to(&s->node, NULL);
    s->published = s->resumed = 0;
    s->drawn = false;
}

void mx_sequence_free(mx_sequence *s) {
    if (s->kv) let_go(s);
    free(s->table);
    *s = (mx_sequence){0};
}

/* ---- resuming -----------------------------------------------------------------------------------------------------
 */
/* Table entries for the whole tiles of a prefix of `position` tokens. */
static void take_prefix(mx_sequence *s, mx_kv_node *node, int64_t position) {
    s->tiles = position / MX_TILE;
    s->first_tile = s->kv->sliding_layers ? mx_window_begin(s->kv->config, position) : 0;
    move_to(&s->node, node);
    for (; node; node = node->parent) {
        take_layers(s, node, false);
        if (node->tile >= s->first_tile) {
            take_window(s, node);
            continue;
        }
        for (int l = 0; l < s->kv->config->layers; l++)
            if (is_sliding(s, l)) *entry(s, l, node->tile) = -1;
    }
}

/* The tile behind them, of which the sequence will write the rest. false: there is no room for a copy. */
static bool take_part(mx_sequence *s, const match *m) {
    mx_kv *kv = s->kv;
    mx_kv_node *node = m->part;
    if (is_for_taking(m)) {
        move_to(&s->open, node);
        take_layers(s, node, false);
        take_window(s, node);
        return true;
    }
    node->users++; /* what is copied must not be dropped to make room for the copy, neither its sliding pages */
    mx_prefix_pin(&kv->tree, node);
    /* Its pages count as free when the tree alone holds them, but now they are not to be had. */
    int64_t held = 0;
    for (int l = 0; l < kv->config->layers; l++) held += kv->pool.reference[node->page[l]] == 1;
    const bool room = kv->pool.free_count + kv->pool.cached - held >= kv->config->layers &&
                      mx_prefix_make_room(&kv->tree, kv->config->layers);
    for (int l = 0; room && l < kv->config->layers; l++)
        *entry(s, l, node->tile) = mx_page_take_copy(&kv->pool, node->page[l]);
    mx_prefix_unpin(&kv->tree, node);
    node->users--;
    return room;
}

static uint64_t mark_before(int64_t position) {
    return (uint64_t)1 << ((position - 1) % MX_TILE);
}

int64_t mx_sequence_resume(mx_sequence *s, const int32_t *tokens, int64_t limit) {
    mx_kv *kv = s->kv;
    limit = smaller(limit, s->stride * MX_TILE);
    match m = follow(&kv->tree, tokens, limit);
    int64_t position;
    for (;;) {
        position = usable(kv, &m, tokens, limit);
        take_prefix(s, m.node, position);
        if (!m.part || take_part(s, &m)) break;
        release_all(s); /* nothing is dropped before it is taken again */
        limit = m.tiles * MX_TILE;
        m.part = NULL;
        m.common = 0;
    }
    s->count = position;
    s->tiles = tiles_of(position);
    s->published = s->resumed = m.tiles;

    mx_kv_node *last = m.part ? m.part : m.node;
    if (last) mx_prefix_mark(&kv->tree, last, mark_before(position)); /* what was wanted once will be again */
    mx_prefix_touch(&kv->tree, last);
    mx_kv_store_used(kv, last);
    return position;
}

/* ---- growing ------------------------------------------------------------------------------------------------------
 */
bool mx_sequence_reserve(mx_sequence *s, int64_t rows) {
    mx_kv *kv = s->kv;
    const int64_t tiles = tiles_of(s->count + rows);
    if (tiles <= s->tiles) return true;
    if (!mx_prefix_make_room(&kv->tree, (tiles - s->tiles) * kv->config->layers)) return false;
    for (; s->tiles < tiles; s->tiles++)
        for (int l = 0; l < kv->config->layers; l++) *entry(s, l, s->tiles) = mx_page_take(&kv->pool);
    return true;
}

/* Bits of the positions in a tile behind which a message ends. */
static uint64_t boundaries(const mx_kv *kv, const int32_t *token, int64_t count) {
    uint64_t marks = 0;
    for (int64_t i = 0; i < count; i++)
        for (int b = 0; b < kv->boundary_count; b++) marks |= (uint64_t)(token[i] == kv->boundary[b]) << i;
    return marks;
}

static void drop_open(mx_sequence *s, mx_kv_node *heir) {
    mx_kv_node *open = s->open;
    if (!open) return;
    if (heir) mx_prefix_mark(&s->kv->tree, heir, open->marks);
    move_to(&s->open, NULL);
    mx_kv_node *pinned = window_node(s, open->tile);
    if (pinned) mx_prefix_unpin(&s->kv->tree, pinned);
    mx_prefix_remove(&s->kv->tree, open);
}

/* This sequence's pages of a tile become those of the node that has it already. */
static void exchange(mx_sequence *s, mx_kv_node *node) {
    release_layers(s, node->tile, false);
    take_layers(s, node, false);
    if (s->kv->sliding_layers == 0 || node->tile < s->first_tile) return;
    if (node->window) {
        release_window(s, node->tile);
        take_window(s, node);
    } else {
        mx_prefix_give_window(&s->kv->tree, node, entry(s, 0, node->tile), s->stride);
        mx_prefix_pin(&s->kv->tree, node);
    }
}

/* The sequence's own node for its next tile in the tree, of `count` tokens. NULL: there is no room for one. */
static mx_kv_node *own_node(mx_sequence *s, const int32_t *token, int64_t count) {
    mx_kv_node *node = s->open;
    if (node) {
        mx_prefix_extend(node, token, count);
    } else {
        const int64_t tile = s->published;
        const bool window = tile >= s->first_tile;
        node = mx_prefix_add(&s->kv->tree, s->node, token, count, entry(s, 0, tile), s->stride, window);
        if (!node) return NULL;
        if (node->window) mx_prefix_pin(&s->kv->tree, node);
    }
    mx_prefix_supersede(&s->kv->tree, node);
    return node;
}

/* The next tile is full. false: there is no room for it in the tree. */
static bool publish(mx_sequence *s, const int32_t *token) {
    mx_prefix_tree *tree = &s->kv->tree;
    mx_kv_node *node = mx_prefix_find(tree, s->node, token);
    if (node) {
        drop_open(s, node);
        exchange(s, node);
    } else {
        node = own_node(s, token, MX_TILE);
        if (!node) return false;
        mx_kv_store_tile(s->kv, node);
    }
    mx_prefix_mark(tree, node, boundaries(s->kv, token, MX_TILE));
    move_to(&s->node, node);
    move_to(&s->open, NULL);
    s->published++;
    return true;
}

void mx_sequence_advance(mx_sequence *s, const int32_t *tokens, int64_t rows) {
    s->count += rows;
    while ((s->published + 1) * MX_TILE <= s->count && publish(s, tokens + s->published * MX_TILE)) continue;
    mx_kv_store_feed(s->kv);
    release_behind(s);
}

/* Puts the unfinished last tile into the tree and marks the end. Returns the node that it is in, the last that there is
 * where the tree has no room. */
static mx_kv_node *mark_end(mx_sequence *s, const int32_t *tokens) {
    mx_prefix_tree *tree = &s->kv->tree;
    const int64_t begin = s->published * MX_TILE, count = s->count - begin;
    if (s->count == 0 || count >= MX_TILE) return s->node;
    mx_kv_node *node = s->node;
    if (count > 0) {
        node = mx_prefix_find_longer(tree, s->node, tokens + begin, count, s->open);
        if (node) {
            drop_open(s, node);
        } else {
            node = own_node(s, tokens + begin, count);
            if (!node) return s->node;
            move_to(&s->open, node);
        }
        mx_prefix_mark(tree, node, boundaries(s->kv, tokens + begin, count));
    }
    mx_prefix_mark(tree, node, mark_before(s->count));
    if (s->drawn) mx_kv_store_settle(s->kv, node);
    return node;
}

void mx_sequence_mark(mx_sequence *s, const int32_t *tokens) {
    s->drawn = true;
    mark_end(s, tokens);
    mx_kv_store_feed(s->kv);
}

/* ---- the end ------------------------------------------------------------------------------------------------------
 */
/* Out of the tree goes what this sequence put there, where nobody else goes on from it. */
static void retract(mx_prefix_tree *tree, mx_kv_node *node, int64_t first) {
    while (node && node->tile >= first && node->children == 0 && node->users == 0) {
        mx_kv_node *parent = node->parent;
        mx_prefix_remove(tree, node);
        node = parent;
    }
}

void mx_sequence_end(mx_sequence *s, const int32_t *tokens, bool keep) {
    mx_prefix_tree *tree = &s->kv->tree;
    /* Before the window is let go, so that of one prefix the end goes before the window behind it. */
    if (keep) mx_prefix_touch(tree, mark_end(s, tokens));
    mx_kv_node *last = s->open ? s->open : s->node;
    const int64_t resumed = s->resumed;
    let_go(s);
    if (!keep) retract(tree, last, resumed);
    mx_kv_store_feed(s->kv);
}
