/* Between the tree of cached prefixes and the folder that keeps them: which tiles are stored, and which are brought
 * back.
 *
 * A prefix is stored once a token was drawn behind it: what is not a number anywhere would have shown. Only whole tiles
 * are stored, so a prefix goes on from a tile's beginning. The sliding pages that this takes are
 * stored before every mark: those of the window before the tile that the mark is in, and where it stands at the tile's
 * end, that tile's too. */
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/log.h"
#include "engine/kv_private.h"

enum { REFRESH = 600 };
static const uint64_t FEED_BYTES = (uint64_t)32 << 20; /* copied by one call, for the sake of the step's time */

static mx_kv_node *by_store(mx_kv_link *link) {
    return (mx_kv_node *)((char *)link - offsetof(mx_kv_node, to_store));
}

mx_status mx_kv_store_init(mx_kv *kv, int64_t context, mx_error *error) {
    mx_kv_list_init(&kv->to_store);
    if (!kv->store) return MX_OK;
    kv->refresh = REFRESH;
    kv->page_bytes = kv->pool.backend->ops->page_bytes(kv->pool.backend);
    kv->key_tiles = context / MX_TILE + 1;
    kv->key = malloc(sizeof *kv->key * (size_t)kv->key_tiles);
    kv->page = malloc(sizeof *kv->page * (size_t)kv->config->layers);
    return kv->key && kv->page ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory for the keys of a prefix cache");
}

/* ---- storing ------------------------------------------------------------------------------------------------------
 */
static void want(mx_kv *kv, mx_kv_node *node, mx_store_part part) {
    node->asked[part] = node->wanted[part] = true;
    node->stored = mx_seconds();
    if (!node->to_store.after) mx_kv_list_add(&kv->to_store, &node->to_store);
}

void mx_kv_store_tile(mx_kv *kv, mx_kv_node *node) {
    if (!kv->store) return;
    node->key = mx_prefix_store_next(node->parent ? node->parent->key : mx_prefix_store_root(kv->store), node->token);
}

/* The sliding pages before a node's marks. */
static void want_windows(mx_kv *kv, mx_kv_node *node) {
    if (kv->sliding_layers == 0 || !node->marks) return;
    const int64_t first = mx_window_begin(kv->config, node->tile * MX_TILE);
    const bool at_end = node->count == MX_TILE && node->marks >> (MX_TILE - 1);
    for (mx_kv_node *n = at_end ? node : node->parent; n && n->tile >= first; n = n->parent)
        if (n->window && !n->asked[MX_STORE_WINDOW]) want(kv, n, MX_STORE_WINDOW);
}

void mx_kv_store_settle(mx_kv *kv, mx_kv_node *node) {
    if (!kv->store || !node) return;
    mx_kv_node *first = node;
    mx_kv_link *place = &kv->to_store; /* parents stand before their children */
    for (mx_kv_node *n = node->count == MX_TILE ? node : node->parent; n && !n->settled; n = n->parent) {
        first = n;
        n->settled = true;
        if (kv->sliding_layers == kv->config->layers) continue;
        want(kv, n, MX_STORE_FULL);
        mx_kv_list_remove(&n->to_store);
        mx_kv_list_add(place, &n->to_store);
        place = &n->to_store;
    }
    for (mx_kv_node *n = node; n && n->tile >= first->tile; n = n->parent) want_windows(kv, n);
}

void mx_kv_store_used(mx_kv *kv, mx_kv_node *node) {
    if (!kv->store || !node) return;
    if (node->settled || (node->count < MX_TILE && (!node->parent || node->parent->settled))) want_windows(kv, node);
    const double now = mx_seconds();
    for (mx_kv_node *n = node; n; n = n->parent) {
        if (!n->settled || now - n->stored < kv->refresh) continue;
        if (n->asked[MX_STORE_FULL]) want(kv, n, MX_STORE_FULL);
        if (n->asked[MX_STORE_WINDOW] && n->window) want(kv, n, MX_STORE_WINDOW);
    }
}

static void warn(mx_kv *kv, const char *what, const mx_error *error) {
    if (!kv->warned) mx_log(MX_LOG_WARNING, "prefix cache: %s: %s", what, error->text);
    kv->warned = true;
}

/* A page cannot be read: nor will the others be, and what is not read is never stored. */
static void give_up(mx_kv *kv, const mx_error *error) {
    warn(kv, "what was computed last is not stored", error);
    while (kv->to_store.after != &kv->to_store) {
        mx_kv_node *node = by_store(kv->to_store.after);
        node->wanted[MX_STORE_FULL] = node->wanted[MX_STORE_WINDOW] = false;
        mx_kv_list_remove(&node->to_store);
    }
}

/* false: the store has no room for it now. What cannot be read is not committed, and no more is wanted then. */
static bool feed_part(mx_kv *kv, mx_kv_node *node, mx_store_part part) {
    char *out = mx_prefix_store_put(kv->store, part, node->key, node->token);
    if (!out) return false;
    for (int l = 0; l < kv->config->layers; l++) {
        mx_error error;
        if (kv->config->sliding[l] != (part == MX_STORE_WINDOW)) continue;
        if (kv->pool.backend->ops->page_read(kv->pool.backend, node->page[l], out, &error)) {
            give_up(kv, &error);
            return true;
        }
        out += kv->page_bytes;
    }
    mx_prefix_store_commit(kv->store);
    node->wanted[part] = false;
    return true;
}

static bool feed_some(mx_kv *kv, uint64_t bytes) {
    for (uint64_t done = 0; done < bytes && kv->to_store.after != &kv->to_store;) {
        mx_kv_node *node = by_store(kv->to_store.after);
        for (mx_store_part part = MX_STORE_FULL; part <= MX_STORE_WINDOW; part++) {
            if (!node->wanted[part]) continue;
            if (!feed_part(kv, node, part)) return false;
            done += (uint64_t)(kv->config->layers * kv->page_bytes);
        }
        mx_kv_list_remove(&node->to_store);
    }
    return true;
}

void mx_kv_store_feed(mx_kv *kv) {
    if (kv->store) feed_some(kv, FEED_BYTES);
}

void mx_kv_store_free(mx_kv *kv) {
    if (kv->store && kv->page) {
        const double until = mx_prefix_store_ends(kv->store);
        while (!feed_some(kv, UINT64_MAX) && mx_prefix_store_wait(kv->store, until - mx_seconds())) continue;
    }
    mx_prefix_store_close(kv->store);
    free(kv->key);
    free(kv->page);
}

/* ---- bringing back ------------------------------------------------------------------------------------------------
 */
/* A prefix whose first tiles are in the tree and whose next ones are in the store. */
typedef struct way {
    mx_kv_node *node; /* of the last tile in the tree; NULL: none */
    int64_t tiles;    /* in the tree */
    int64_t end;      /* tiles that a sequence could go on behind, once all are in the tree */
} way;

static mx_kv_node *ancestor(mx_kv_node *node, int64_t tile) {
    while (node && node->tile > tile) node = node->parent;
    return node;
}

static bool has_window(mx_kv *kv, const way *w, int64_t tile) {
    if (tile < w->tiles && ancestor(w->node, tile)->window) return true;
    return mx_prefix_store_has(kv->store, MX_STORE_WINDOW, kv->key[tile + 1]);
}

static way find_way(mx_kv *kv, const int32_t *tokens, int64_t tiles) {
    way w = {0};
    bool in_tree = true;
    if (tiles > kv->key_tiles - 1) tiles = kv->key_tiles - 1;
    kv->key[0] = mx_prefix_store_root(kv->store);
    for (; w.end < tiles; w.end++) {
        const int32_t *token = tokens + w.end * MX_TILE;
        kv->key[w.end + 1] = mx_prefix_store_next(kv->key[w.end], token);
        mx_kv_node *next = in_tree ? mx_prefix_find(&kv->tree, w.node, token) : NULL;
        in_tree = next != NULL;
        if (next) {
            w.node = next;
            w.tiles++;
        } else if (kv->sliding_layers < kv->config->layers &&
                   !mx_prefix_store_has(kv->store, MX_STORE_FULL, kv->key[w.end + 1])) {
            break;
        }
    }
    for (int64_t t = w.end - 1; kv->sliding_layers > 0 && t >= 0 && t >= mx_window_begin(kv->config, w.end * MX_TILE);
         t--)
        if (!has_window(kv, &w, t)) w.end = t;
    return w;
}

/* The tiles of a way that are in the tree stay while the others are read: neither is dropped to make room for the
 * other.
 */
static void hold_way(mx_kv *kv, const way *w, bool hold) {
    if (w->node) w->node->users += hold ? 1 : -1;
    const int64_t first = mx_window_begin(kv->config, w->end * MX_TILE);
    for (mx_kv_node *n = ancestor(w->node, w->end - 1); n && n->tile >= first; n = n->parent) {
        if (!n->window) continue;
        if (hold)
            mx_prefix_pin(&kv->tree, n);
        else
            mx_prefix_unpin(&kv->tree, n);
    }
}

/* Is there room for what is missing of a way, beside what is there? */
static bool fits(const mx_kv *kv, const way *w) {
    const int full = kv->config->layers - kv->sliding_layers;
    int64_t missing = 0, there = 0;
    const int64_t first = mx_window_begin(kv->config, w->end * MX_TILE);
    for (const mx_kv_node *n = w->node; n; n = n->parent)
        for (int l = 0; l < kv->config->layers; l++)
            if (!kv->config->sliding[l] || (n->window && n->tile >= first && n->tile < w->end))
                there += kv->pool.reference[n->page[l]] == 1;
    if (w->end > w->tiles) missing += full * (w->end - w->tiles);
    if (kv->sliding_layers > 0)
        for (int64_t t = first; t < w->end; t++)
            if (t >= w->tiles || !ancestor(w->node, t)->window) missing += kv->sliding_layers;
    return missing <= kv->pool.free_count + kv->pool.cached - there;
}

static void release_part(mx_kv *kv, mx_store_part part, int layers) {
    for (int l = 0; l < layers; l++)
        if (kv->config->sliding[l] == (part == MX_STORE_WINDOW)) mx_page_release(&kv->pool, kv->page[l]);
}

/* Pages of one part into kv->page, held. false: none of them is. */
static bool read_part(mx_kv *kv, mx_store_part part, int64_t tile, const int32_t *token) {
    const int sliding = kv->sliding_layers, needed = part == MX_STORE_WINDOW ? sliding : kv->config->layers - sliding;
    if (!mx_prefix_make_room(&kv->tree, needed)) return false;
    const char *content = mx_prefix_store_read(kv->store, part, kv->key[tile + 1], token);
    if (!content) return false;
    for (int l = 0; l < kv->config->layers; l++) {
        if (kv->config->sliding[l] != (part == MX_STORE_WINDOW)) continue;
        mx_error error;
        if (mx_page_take_filled(&kv->pool, content, &kv->page[l], &error)) {
            warn(kv, "what is stored cannot be brought back", &error);
            release_part(kv, part, l);
            return false;
        }
        content += kv->page_bytes;
    }
    return true;
}

static bool load_tile(mx_kv *kv, way *w, const int32_t *token) {
    const bool full = kv->sliding_layers < kv->config->layers;
    if (full && !read_part(kv, MX_STORE_FULL, w->tiles, token)) return false;
    mx_kv_node *node = mx_prefix_add(&kv->tree, w->node, token, MX_TILE, kv->page, 1, false);
    if (full) release_part(kv, MX_STORE_FULL, kv->config->layers);
    if (!node) return false;
    node->key = kv->key[w->tiles + 1];
    node->settled = true;
    node->asked[MX_STORE_FULL] = full;
    node->stored = mx_seconds(); /* reading it was a use */
    node->users++;
    if (w->node) w->node->users--;
    w->node = node;
    w->tiles++;
    return true;
}

static bool load_window(mx_kv *kv, mx_kv_node *node) {
    if (!read_part(kv, MX_STORE_WINDOW, node->tile, node->token)) return false;
    mx_prefix_give_window(&kv->tree, node, kv->page, 1);
    mx_prefix_pin(&kv->tree, node);
    release_part(kv, MX_STORE_WINDOW, kv->config->layers);
    node->asked[MX_STORE_WINDOW] = true;
    return true;
}

/* What is missing of a way, tiles first. false: the time is over. */
static bool load(mx_kv *kv, way *w, const int32_t *tokens, double until) {
    while (w->tiles < w->end) {
        if (!load_tile(kv, w, tokens + w->tiles * MX_TILE)) return true;
        if (mx_seconds() > until) return false;
    }
    if (kv->sliding_layers == 0) return true;
    mx_kv_node *last = ancestor(w->node, w->end - 1);
    mx_prefix_mark(&kv->tree, last, (uint64_t)1 << (MX_TILE - 1)); /* its window stays until it is wanted */
    const int64_t first = mx_window_begin(kv->config, w->end * MX_TILE);
    for (mx_kv_node *n = last; n && n->tile >= first; n = n->parent) {
        if (n->window) continue;
        if (!load_window(kv, n)) return true;
        if (mx_seconds() > until) return false;
    }
    return true;
}

bool mx_kv_fetch(mx_kv *kv, const int32_t *tokens, int64_t limit, double seconds) {
    if (!kv->store || limit < MX_TILE) return true;
    const double until = mx_seconds() + seconds;
    way w = find_way(kv, tokens, limit / MX_TILE);
    if (w.end * MX_TILE <= mx_kv_cached_tokens(kv, tokens, limit) || !fits(kv, &w)) return true;
    if (seconds < 0) return false;
    hold_way(kv, &w, true);
    const bool done = load(kv, &w, tokens, until);
    hold_way(kv, &w, false);
    mx_prefix_touch(&kv->tree, w.node);
    return done;
}
