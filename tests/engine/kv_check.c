#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kv_check.h"

void kv_set_up(kv_fixture *f, const char *pattern, int window, int64_t pages, int32_t boundary) {
    f->config = fake_config(pattern, window, KV_MOST);
    f->backend = fake_backend_create(&f->config, pages);
    const int64_t plain_pages = f->config.layers * (KV_MOST / MX_TILE);
    f->plain_backend = fake_backend_create(&f->config, plain_pages);
    f->plain_table = malloc(sizeof *f->plain_table * (size_t)plain_pages);
    for (int64_t i = 0; i < plain_pages; i++) f->plain_table[i] = (int32_t)i;
    f->boundary = boundary;
    f->options = (mx_kv_options){.config = &f->config,
                                 .backend = &f->backend->base,
                                 .pages = pages,
                                 .context = KV_MOST,
                                 .boundary = &f->boundary,
                                 .boundary_count = boundary >= 0};
    assert_int_equal(mx_kv_create(&f->options, &f->kv, NULL), MX_OK);
}

void kv_renew(kv_fixture *f, mx_prefix_store *store) {
    mx_kv_destroy(f->kv);
    f->options.store = store;
    assert_int_equal(mx_kv_create(&f->options, &f->kv, NULL), MX_OK);
}

mx_prefix_store *kv_open_store(const kv_fixture *f, const char *folder, uint64_t queue) {
    char identity[100];
    snprintf(identity, sizeof identity, "window %d", f->config.window);
    const mx_prefix_store_options options = {.folder = folder,
                                             .most = 1 << 26,
                                             .config = &f->config,
                                             .page_bytes = f->backend->base.ops->page_bytes(&f->backend->base),
                                             .identity = identity,
                                             .queue_bytes = queue};
    mx_prefix_store *store;
    assert_int_equal(mx_prefix_store_open(&options, &store, NULL), MX_OK);
    return store;
}

void kv_tear_down(kv_fixture *f) {
    kv_check_structure(f, NULL, 0);
    assert_int_equal(mx_kv_pages_free(f->kv) + mx_kv_pages_cached(f->kv), f->kv->pool.pages);
    mx_kv_forget(f->kv);
    assert_int_equal(mx_kv_pages_free(f->kv), f->kv->pool.pages); /* nothing leaked */
    assert_int_equal(f->backend->empty_reads, 0);
    mx_kv_destroy(f->kv);
    f->backend->base.ops->destroy(&f->backend->base);
    f->plain_backend->base.ops->destroy(&f->plain_backend->base);
    free(f->plain_table);
}

/* ---- computing ----------------------------------------------------------------------------------------------------
 */
static void run(fake_backend *backend, mx_sequence_view view, const int32_t *tokens, int64_t from, int64_t rows) {
    mx_row *row = malloc(sizeof *row * (size_t)rows);
    for (int64_t i = 0; i < rows; i++) row[i] = (mx_row){.token = tokens[from + i], .position = (int32_t)(from + i)};
    const mx_batch batch = {.row = row, .rows = (int)rows, .sequence = &view, .sequences = 1};
    assert_int_equal(backend->base.ops->step(&backend->base, &batch, NULL), MX_OK);
    free(row);
}

void kv_compute(kv_fixture *f, const mx_sequence *s, const int32_t *tokens, int64_t rows) {
    run(f->backend, mx_sequence_get_view(s), tokens, s->count, rows);
}

void kv_grow(kv_fixture *f, mx_sequence *s, const int32_t *tokens, int64_t count, int64_t batch) {
    while (s->count < count) {
        const int64_t rows = count - s->count < batch ? count - s->count : batch;
        assert_true(mx_sequence_reserve(s, rows));
        kv_compute(f, s, tokens, rows);
        mx_sequence_advance(s, tokens, rows);
    }
}

int64_t kv_talk(kv_fixture *f, const int32_t *tokens, int64_t count) {
    mx_sequence s;
    assert_int_equal(mx_sequence_init(&s, f->kv, KV_MOST, NULL), MX_OK);
    const int64_t resumed = mx_sequence_resume(&s, tokens, count - 1);
    kv_grow(f, &s, tokens, count, 100);
    kv_check_content(f, &s, tokens);
    mx_sequence_end(&s, tokens, true);
    mx_sequence_free(&s);
    return resumed;
}

/* ---- content ------------------------------------------------------------------------------------------------------
 */
void kv_check_content(kv_fixture *f, const mx_sequence *s, const int32_t *tokens) {
    if (s->count == 0) return;
    const int64_t tiles = KV_MOST / MX_TILE;
    run(f->plain_backend, (mx_sequence_view){f->plain_table, tiles}, tokens, 0, s->count);
    for (int l = 0; l < f->config.layers; l++) {
        int64_t first = f->config.sliding[l] ? s->count - f->config.window + 1 : 0;
        for (int64_t p = first > 0 ? first : 0; p < s->count; p++) {
            const int32_t page = s->table[l * s->stride + p / MX_TILE];
            assert_in_range(page, 0, f->kv->pool.pages - 1);
            const uint64_t found = f->backend->slot[page * MX_TILE + p % MX_TILE];
            const uint64_t expected = f->plain_backend->slot[(l * tiles + p / MX_TILE) * MX_TILE + p % MX_TILE];
            if (found != expected) fail_msg("layer %d, position %d of %d", l, (int)p, (int)s->count);
        }
    }
}

/* ---- structure ----------------------------------------------------------------------------------------------------
 */
static bool in_use(const mx_prefix_tree *tree, const mx_kv_node *node) {
    return node->age.after != NULL && node->age.before != NULL && node < tree->node + tree->node_used;
}

static void count_sequence(const kv_fixture *f, const mx_sequence *s, int32_t *reference, int32_t *pins,
                           int32_t *users) {
    const mx_prefix_tree *tree = &f->kv->tree;
    if (s->node) users[s->node - tree->node]++;
    if (s->open) users[s->open - tree->node]++;
    assert_int_equal(s->published, s->node ? s->node->tile + 1 : 0);
    if (s->open) {
        assert_int_equal(s->open->tile, s->published);
        assert_ptr_equal(s->open->parent, s->node);
        assert_in_range(s->open->count, 1, MX_TILE - 1);
    }
    assert_true(s->tiles * MX_TILE >= s->count);
    const int64_t begin = tree->first_sliding >= 0 ? mx_window_begin(&f->config, s->count) : 0;
    assert_int_equal(s->first_tile, begin);
    for (int l = 0; l < f->config.layers; l++) {
        for (int64_t t = 0; t < s->tiles; t++) {
            const int32_t page = s->table[l * s->stride + t];
            const bool held = !f->config.sliding[l] || t >= begin;
            assert_int_equal(page >= 0, held);
            if (!held) continue;
            reference[page]++;
            if (l == tree->first_sliding && f->kv->pool.node[page]) pins[f->kv->pool.node[page] - 1]++;
            /* what will be written is not in another's table, and of the tree's only this one's own */
            if (t >= s->count / MX_TILE) {
                const int32_t node = f->kv->pool.node[page];
                assert_true(!node || &tree->node[node - 1] == s->open);
            }
        }
    }
}

static int64_t list_length(const mx_kv_link *head) {
    int64_t n = 0;
    for (const mx_kv_link *l = head->after; l != head; l = l->after) {
        assert_ptr_equal(l->after->before, l);
        n++;
    }
    return n;
}

static void count_near(const kv_fixture *f, const mx_kv_node *node, int32_t *near) {
    const mx_prefix_tree *tree = &f->kv->tree;
    if (!node->marks || tree->first_sliding < 0) return;
    int64_t first = INT64_MAX;
    for (int i = 0; i < MX_TILE; i++) {
        if (!(node->marks >> i & 1)) continue;
        const int64_t begin = mx_window_begin(&f->config, node->tile * MX_TILE + i);
        if (begin < first) first = begin;
    }
    for (const mx_kv_node *n = node; n && n->tile >= first; n = n->parent) near[n - tree->node]++;
}

void kv_check_structure(const kv_fixture *f, mx_sequence *const *sequence, int sequences) {
    const mx_page_pool *pool = &f->kv->pool;
    const mx_prefix_tree *tree = &f->kv->tree;
    int32_t *reference = calloc((size_t)pool->pages, sizeof *reference);
    int32_t *alone = calloc((size_t)pool->pages, sizeof *alone);
    int32_t *count = calloc((size_t)tree->nodes * 4, sizeof *count);
    int32_t *pins = count + tree->nodes, *users = pins + tree->nodes, *near = users + tree->nodes;
    for (int i = 0; i < sequences; i++) count_sequence(f, sequence[i], reference, pins, users);

    int64_t nodes = 0, plain = 0, windows = 0;
    for (int64_t i = 0; i < tree->node_used; i++) {
        const mx_kv_node *n = &tree->node[i];
        if (!in_use(tree, n)) continue;
        nodes++;
        count_near(f, n, near);
        if (n->parent) {
            count[n->parent - tree->node]++;
            assert_true(in_use(tree, n->parent));
            assert_int_equal(n->parent->count, MX_TILE);
            assert_true(n->parent->used >= n->used);
        }
        assert_int_equal(n->tile, n->parent ? n->parent->tile + 1 : 0);
        assert_in_range(n->count, 1, MX_TILE);
        for (int l = 0; l < f->config.layers; l++) {
            const bool held = !f->config.sliding[l] || n->window;
            assert_int_equal(n->page[l] >= 0, held);
            if (!held) continue;
            assert_int_equal(pool->node[n->page[l]], i + 1);
            reference[n->page[l]]++;
            alone[n->page[l]] = 1;
        }
        bool found = false;
        for (uint64_t b = 0; b <= tree->mask && !found; b++)
            for (const mx_kv_node *same = tree->bucket[b]; same; same = same->same_next) found |= same == n;
        assert_true(found);
    }
    for (int64_t i = 0; i < tree->node_used; i++) {
        const mx_kv_node *n = &tree->node[i];
        if (!in_use(tree, n)) continue;
        assert_int_equal(n->children, count[i]);
        assert_int_equal(n->users, users[i]);
        assert_int_equal(n->near, near[i]);
        if (n->window) assert_int_equal(n->pins, pins[i]);
        assert_int_equal(n->aged_window.after != NULL, n->window && n->pins == 0);
        if (n->aged_window.after) *(n->near ? &windows : &plain) += 1;
    }
    assert_int_equal(list_length(&tree->age), nodes);
    assert_int_equal(list_length(&tree->near), windows);
    assert_int_equal(list_length(&tree->plain), plain);

    int64_t free_pages = 0, cached = 0;
    for (int64_t i = 0; i < pool->pages; i++) {
        assert_int_equal(pool->reference[i], reference[i]);
        assert_int_equal(pool->node[i] != 0, alone[i]);
        free_pages += reference[i] == 0;
        cached += reference[i] == 1 && alone[i];
    }
    assert_int_equal(free_pages, mx_kv_pages_free(f->kv));
    assert_int_equal(cached, mx_kv_pages_cached(f->kv));
    free(reference);
    free(alone);
    free(count);
}

int64_t kv_best_prefix(const kv_fixture *f, const int32_t *tokens, int64_t limit) {
    const mx_prefix_tree *tree = &f->kv->tree;
    int64_t best = 0;
    for (int64_t i = 0; i < tree->node_used; i++) {
        const mx_kv_node *last = &tree->node[i];
        if (!in_use(tree, last)) continue;
        int64_t position = last->tile * MX_TILE;
        while (position < limit && position - last->tile * MX_TILE < last->count &&
               last->token[position - last->tile * MX_TILE] == tokens[position])
            position++;
        if (position <= last->tile * MX_TILE) continue;
        bool whole = true;
        for (const mx_kv_node *n = last; n && whole; n = n->parent) {
            if (n != last) whole = !memcmp(n->token, tokens + n->tile * MX_TILE, sizeof n->token);
            if (tree->first_sliding >= 0 && n->tile >= mx_window_begin(&f->config, position)) whole &= n->window;
        }
        if (whole && position > best) best = position;
    }
    return best;
}
