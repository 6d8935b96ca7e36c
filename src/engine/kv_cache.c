#include "engine/kv_cache.h"

#include <stdlib.h>
#include <string.h>

static int64_t tiles_of(int64_t positions) {
    return (positions + MX_TILE - 1) / MX_TILE;
}

/* Tiles that a run of positions touches at most, wherever it begins. */
static int64_t tiles_touched(int64_t positions) {
    return (positions + MX_TILE - 2) / MX_TILE + 1;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int count_sliding(const mx_config *config) {
    int n = 0;
    for (int l = 0; l < config->layers; l++) n += config->sliding[l];
    return n;
}

/* ---- one sequence -------------------------------------------------------------------------------------------------
 */
mx_status mx_kv_cache_init(mx_kv_cache *cache, const mx_config *config, mx_page_pool *pool, int64_t context,
                           mx_error *error) {
    *cache = (mx_kv_cache){.config = config, .pool = pool, .context = context, .stride = tiles_of(context)};
    cache->sliding_layers = count_sliding(config);
    cache->checkpoint_tiles = smaller(tiles_touched(config->window), cache->stride);
    const int64_t entries = config->layers * cache->stride;
    const int64_t slot = cache->sliding_layers * cache->checkpoint_tiles;
    cache->tokens = malloc(sizeof *cache->tokens * (size_t)context);
    cache->table = malloc(sizeof *cache->table * (size_t)entries);
    cache->checkpoint_pages = malloc(sizeof *cache->checkpoint_pages * (size_t)(MX_KV_CHECKPOINTS * slot + 1));
    if (!cache->tokens || !cache->table || !cache->checkpoint_pages) {
        free(cache->tokens);
        free(cache->table);
        free(cache->checkpoint_pages);
        *cache = (mx_kv_cache){0};
        return mx_fail(error, MX_NO_MEMORY, "no memory for the page table of %lld tokens: choose a smaller context",
                       (long long)context);
    }
    for (int64_t i = 0; i < entries; i++) cache->table[i] = -1;
    for (int i = 0; i < MX_KV_CHECKPOINTS; i++) cache->checkpoint[i].page = cache->checkpoint_pages + i * slot;
    return MX_OK;
}

void mx_kv_cache_free(mx_kv_cache *cache) {
    if (cache->pool) mx_kv_cache_reset(cache);
    free(cache->tokens);
    free(cache->table);
    free(cache->checkpoint_pages);
    *cache = (mx_kv_cache){0};
}

static void drop_tiles(mx_kv_cache *cache, int layer, int64_t begin, int64_t end) {
    int32_t *entry = cache->table + layer * cache->stride;
    for (int64_t t = begin; t < end; t++) {
        if (entry[t] >= 0) mx_page_release(cache->pool, entry[t]);
        entry[t] = -1;
    }
}

/* The first tile that the row at `position` sees in a sliding layer. */
static int64_t window_begin(const mx_kv_cache *cache, int64_t position) {
    int64_t first = position - cache->config->window + 1;
    return first > 0 ? first / MX_TILE : 0;
}

static void drop_behind_window(mx_kv_cache *cache) {
    const int64_t keep = window_begin(cache, cache->count);
    for (int l = 0; l < cache->config->layers; l++) {
        if (cache->config->sliding[l]) drop_tiles(cache, l, cache->first_tile, keep);
    }
    if (keep > cache->first_tile) cache->first_tile = keep;
}

/* ---- checkpoints --------------------------------------------------------------------------------------------------
 */
static int64_t checkpoint_size(const mx_kv_cache *cache, const mx_kv_checkpoint *c) {
    return cache->sliding_layers * (tiles_of(c->position) - c->first_tile);
}

static void drop_checkpoint(mx_kv_cache *cache, int index) {
    mx_kv_checkpoint dropped = cache->checkpoint[index];
    for (int64_t i = 0; i < checkpoint_size(cache, &dropped); i++) mx_page_release(cache->pool, dropped.page[i]);
    cache->checkpoints--;
    memmove(cache->checkpoint + index, cache->checkpoint + index + 1,
            sizeof *cache->checkpoint * (size_t)(cache->checkpoints - index));
    cache->checkpoint[cache->checkpoints].page = dropped.page; /* its array serves the next one */
}

/* Drops the checkpoint that is missed least: inside prompts, the one whose neighbours stand closest together; where
 * there are only ends of prompts, the oldest. */
static void thin_checkpoints(mx_kv_cache *cache) {
    int worst = 0;
    int64_t narrowest = INT64_MAX;
    for (int i = 0; i < cache->checkpoints; i++) {
        int64_t before = i > 0 ? cache->checkpoint[i - 1].position : 0;
        int64_t after = i + 1 < cache->checkpoints ? cache->checkpoint[i + 1].position : cache->count;
        if (cache->checkpoint[i].prompt_end || after - before >= narrowest) continue;
        narrowest = after - before;
        worst = i;
    }
    drop_checkpoint(cache, worst);
}

static void add_checkpoint(mx_kv_cache *cache, bool prompt_end) {
    if (cache->checkpoints == MX_KV_CHECKPOINTS) thin_checkpoints(cache);
    mx_kv_checkpoint *c = &cache->checkpoint[cache->checkpoints++];
    c->position = cache->count;
    c->prompt_end = prompt_end;
    /* One position more than the window, so that the same prompt can come again: its last row is then computed anew. */
    c->first_tile = cache->count > 0 ? window_begin(cache, cache->count - 1) : 0;
    int64_t n = 0;
    for (int l = 0; l < cache->config->layers; l++) {
        for (int64_t t = c->first_tile; cache->config->sliding[l] && t < tiles_of(c->position); t++) {
            c->page[n] = cache->table[l * cache->stride + t];
            mx_page_retain(cache->pool, c->page[n++]);
        }
    }
}

/* Puts the checkpoint's pages into the table in place of what the sliding layers hold. */
static void restore(mx_kv_cache *cache, const mx_kv_checkpoint *c) {
    const int64_t end = tiles_of(c->position), old_end = tiles_of(cache->count);
    int64_t n = 0;
    for (int64_t i = 0; i < checkpoint_size(cache, c); i++) mx_page_retain(cache->pool, c->page[i]);
    for (int l = 0; l < cache->config->layers; l++) {
        if (!cache->config->sliding[l]) continue;
        drop_tiles(cache, l, cache->first_tile, old_end);
        for (int64_t t = c->first_tile; t < end; t++) cache->table[l * cache->stride + t] = c->page[n++];
    }
    cache->first_tile = c->first_tile;
}

/* ---- resuming and growing -----------------------------------------------------------------------------------------
 */
/* The sequence becomes its first `position` tokens; their last window must be in the table. */
static void go_back(mx_kv_cache *cache, int64_t position) {
    while (cache->checkpoints > 0 && cache->checkpoint[cache->checkpoints - 1].position > position)
        drop_checkpoint(cache, cache->checkpoints - 1);
    for (int l = 0; l < cache->config->layers; l++) drop_tiles(cache, l, tiles_of(position), cache->stride);
    cache->count = position;
    if (position == 0) cache->first_tile = 0;
    drop_behind_window(cache);
}

void mx_kv_cache_reset(mx_kv_cache *cache) {
    go_back(cache, 0);
}

int64_t mx_kv_cache_resume(mx_kv_cache *cache, const int32_t *prompt, int64_t prompt_count) {
    int64_t common = 0, limit = smaller(cache->count, prompt_count - 1);
    while (common < limit && cache->tokens[common] == prompt[common]) common++;

    int64_t position = 0;
    if (cache->sliding_layers == 0 || cache->first_tile <= window_begin(cache, common)) position = common;
    for (int i = cache->checkpoints - 1; i >= 0 && position == 0 && common > 0; i--) {
        const mx_kv_checkpoint *c = &cache->checkpoint[i];
        int64_t usable = smaller(common, c->position);
        if (c->first_tile > window_begin(cache, usable)) continue;
        restore(cache, c);
        position = usable;
    }
    go_back(cache, position);
    memcpy(cache->tokens + position, prompt + position, sizeof *prompt * (size_t)(prompt_count - position));
    return position;
}

bool mx_kv_cache_reserve(mx_kv_cache *cache, int64_t rows) {
    for (int l = 0; l < cache->config->layers; l++) {
        int32_t *entry = cache->table + l * cache->stride;
        for (int64_t t = cache->count / MX_TILE; t < tiles_of(cache->count + rows); t++) {
            if (entry[t] >= 0) continue;
            while (cache->pool->free_count == 0 && cache->checkpoints > 0) thin_checkpoints(cache);
            if (cache->pool->free_count == 0) return false;
            entry[t] = mx_page_take(cache->pool);
        }
    }
    return true;
}

void mx_kv_cache_advance(mx_kv_cache *cache, int64_t rows, mx_kv_point point) {
    const int64_t last = cache->checkpoints ? cache->checkpoint[cache->checkpoints - 1].position : 0;
    cache->count += rows;
    if (cache->sliding_layers > 0 &&
        (point == MX_KV_PROMPT_END || (point == MX_KV_IN_PROMPT && cache->count - last >= MX_KV_CHECKPOINT_STEP)))
        add_checkpoint(cache, point == MX_KV_PROMPT_END);
    drop_behind_window(cache);
}
