#include "engine/prefix_tree.h"

#include <string.h>

/* ---- lists: rings through their heads, the oldest first -----------------------------------------------------------
 */
static void insert_before(mx_kv_link *link, mx_kv_link *place) {
    link->after = place;
    link->before = place->before;
    place->before->after = link;
    place->before = link;
}

static void unlink_from(mx_kv_link *link) {
    link->before->after = link->after;
    link->after->before = link->before;
    link->before = link->after = NULL;
}

void mx_kv_list_init(mx_kv_link *head) {
    head->before = head->after = head;
}

void mx_kv_list_add(mx_kv_link *head, mx_kv_link *link) {
    insert_before(link, head);
}

void mx_kv_list_remove(mx_kv_link *link) {
    if (link->after) unlink_from(link);
}

static mx_kv_node *by_age(mx_kv_link *link) {
    return (mx_kv_node *)((char *)link - offsetof(mx_kv_node, age));
}

static mx_kv_node *by_window(mx_kv_link *link) {
    return (mx_kv_node *)((char *)link - offsetof(mx_kv_node, aged_window));
}

/* ---- creation -----------------------------------------------------------------------------------------------------
 */
mx_status mx_prefix_tree_init(mx_prefix_tree *tree, const mx_config *config, mx_page_pool *pool, int64_t nodes,
                              mx_error *error) {
    *tree = (mx_prefix_tree){.config = config, .pool = pool, .first_sliding = -1, .nodes = nodes};
    for (int l = config->layers - 1; l >= 0; l--)
        if (config->sliding[l]) tree->first_sliding = l;
    tree->mask = 1;
    while (tree->mask < (uint64_t)nodes) tree->mask *= 2;
    const size_t node_bytes = sizeof *tree->node * (size_t)nodes;
    const size_t page_bytes = sizeof(int32_t) * (size_t)(nodes * config->layers);
    const size_t bucket_bytes = sizeof *tree->bucket * (size_t)tree->mask;
    mx_status status = mx_arena_create(node_bytes + page_bytes + bucket_bytes + 256, &tree->memory, error);
    if (status) return status;
    tree->node = mx_arena_take(&tree->memory, node_bytes);
    int32_t *page = mx_arena_take(&tree->memory, page_bytes);
    tree->bucket = mx_arena_take(&tree->memory, bucket_bytes);
    tree->mask--;
    tree->page = page;
    mx_kv_list_init(&tree->age);
    mx_kv_list_init(&tree->near);
    mx_kv_list_init(&tree->plain);
    return MX_OK;
}

void mx_prefix_tree_free(mx_prefix_tree *tree) {
    mx_arena_destroy(&tree->memory);
    *tree = (mx_prefix_tree){0};
}

int64_t mx_window_begin(const mx_config *config, int64_t position) {
    int64_t first = position - config->window + 1;
    return first > 0 ? first / MX_TILE : 0;
}

/* ---- finding ------------------------------------------------------------------------------------------------------
 */
static mx_kv_node **bucket_of(const mx_prefix_tree *tree, const mx_kv_node *parent, int32_t first) {
    uint64_t h = parent ? (uint64_t)(parent - tree->node) + 1 : 0;
    h = (h * 0x9e3779b97f4a7c15u + (uint32_t)first) * 0xd6e8feb86659fd93u;
    return &tree->bucket[(h >> 32) & tree->mask];
}

static int common_part(const mx_kv_node *node, const int32_t *token, int64_t count) {
    int n = 0;
    while (n < node->count && n < count && node->token[n] == token[n]) n++;
    return n;
}

mx_kv_node *mx_prefix_find(const mx_prefix_tree *tree, const mx_kv_node *parent, const int32_t token[MX_TILE]) {
    for (mx_kv_node *n = *bucket_of(tree, parent, token[0]); n; n = n->same_next)
        if (n->parent == parent && n->count == MX_TILE && !memcmp(n->token, token, sizeof n->token)) return n;
    return NULL;
}

/* In the middle of the tile, too. */
static bool can_be_resumed(const mx_prefix_tree *tree, const mx_kv_node *node) {
    return tree->first_sliding < 0 || node->window;
}

mx_kv_node *mx_prefix_find_part(const mx_prefix_tree *tree, const mx_kv_node *parent, const int32_t *token,
                                int64_t count, int *common) {
    mx_kv_node *best = NULL;
    *common = 0;
    if (count <= 0) return NULL;
    for (mx_kv_node *n = *bucket_of(tree, parent, token[0]); n; n = n->same_next) {
        if (n->parent != parent || !can_be_resumed(tree, n)) continue;
        int part = common_part(n, token, count);
        /* of equal ones that which ends there and nobody writes: it can be gone on with, the others must be copied */
        if (part > *common || (part > 0 && part == *common && n->count == part && n->users == 0)) {
            *common = part;
            best = n;
        }
    }
    return best;
}

mx_kv_node *mx_prefix_find_longer(const mx_prefix_tree *tree, const mx_kv_node *parent, const int32_t *token,
                                  int64_t count, const mx_kv_node *except) {
    for (mx_kv_node *n = *bucket_of(tree, parent, token[0]); n; n = n->same_next) {
        if (n == except || n->parent != parent || !can_be_resumed(tree, n)) continue;
        if (common_part(n, token, count) == count) return n;
    }
    return NULL;
}

/* ---- sliding pages ------------------------------------------------------------------------------------------------
 */
/* At the young end of the list where it belongs. */
static void enlist_window(mx_prefix_tree *tree, mx_kv_node *node) {
    node->window_used = ++tree->clock;
    insert_before(&node->aged_window, node->near ? &tree->near : &tree->plain);
}

static void delist_window(mx_kv_node *node) {
    mx_kv_list_remove(&node->aged_window);
}

void mx_prefix_pin(mx_prefix_tree *tree, mx_kv_node *node) {
    if (tree->first_sliding >= 0 && node->pins++ == 0) delist_window(node);
}

void mx_prefix_unpin(mx_prefix_tree *tree, mx_kv_node *node) {
    if (tree->first_sliding >= 0 && --node->pins == 0) enlist_window(tree, node);
}

static void publish_layers(mx_prefix_tree *tree, mx_kv_node *node, bool sliding, const int32_t *page, int64_t stride) {
    for (int l = 0; l < tree->config->layers; l++) {
        if (tree->config->sliding[l] != sliding) continue;
        node->page[l] = page[l * stride];
        mx_page_publish(tree->pool, node->page[l], (int32_t)(node - tree->node));
    }
}

static void withdraw_layers(mx_prefix_tree *tree, mx_kv_node *node, bool sliding) {
    for (int l = 0; l < tree->config->layers; l++) {
        if (tree->config->sliding[l] != sliding) continue;
        mx_page_withdraw(tree->pool, node->page[l]);
        node->page[l] = -1;
    }
}

void mx_prefix_give_window(mx_prefix_tree *tree, mx_kv_node *node, const int32_t *page, int64_t stride) {
    publish_layers(tree, node, true, page, stride);
    node->window = true;
    enlist_window(tree, node);
}

static void drop_window(mx_prefix_tree *tree, mx_kv_node *node) {
    delist_window(node);
    withdraw_layers(tree, node, true);
    node->window = node->wanted[MX_STORE_WINDOW] = false;
}

/* ---- marks --------------------------------------------------------------------------------------------------------
 */
/* The first tile that must be there for all of a node's marks. One position more than the window: whoever asks for a
 * prefix again wants its last row computed anew. */
static int64_t marks_reach(const mx_prefix_tree *tree, const mx_kv_node *node) {
    if (!node->marks) return node->tile + 1;
    const int64_t position = node->tile * MX_TILE + __builtin_ctzll(node->marks) + 1;
    return mx_window_begin(tree->config, position - 1);
}

static void change_near(mx_prefix_tree *tree, mx_kv_node *node, int32_t by) {
    const bool before = node->near > 0;
    node->near += by;
    if (before == (node->near > 0) || !node->aged_window.after) return;
    delist_window(node);
    if (before) /* nobody wants it any more */
        insert_before(&node->aged_window, tree->plain.after);
    else
        enlist_window(tree, node);
}

static void change_reach(mx_prefix_tree *tree, mx_kv_node *node, int64_t begin, int64_t end, int32_t by) {
    if (tree->first_sliding < 0) return;
    for (; node && node->tile >= begin; node = node->parent)
        if (node->tile < end) change_near(tree, node, by);
}

void mx_prefix_mark(mx_prefix_tree *tree, mx_kv_node *node, uint64_t marks) {
    const int64_t before = marks_reach(tree, node);
    node->marks |= marks;
    change_reach(tree, node, marks_reach(tree, node), before, 1);
}

/* ---- nodes --------------------------------------------------------------------------------------------------------
 */
static bool drop_oldest_leaf(mx_prefix_tree *tree);

static mx_kv_node *new_node(mx_prefix_tree *tree) {
    if (!tree->unused && tree->node_used == tree->nodes && !drop_oldest_leaf(tree)) return NULL;
    mx_kv_node *node = tree->unused;
    if (node)
        tree->unused = node->same_next;
    else
        node = &tree->node[tree->node_used++];
    *node = (mx_kv_node){.page = tree->page + (node - tree->node) * tree->config->layers};
    return node;
}

mx_kv_node *mx_prefix_add(mx_prefix_tree *tree, mx_kv_node *parent, const int32_t *token, int64_t count,
                          const int32_t *page, int64_t stride, bool window) {
    if (parent) parent->users++; /* it must not make room for its own child */
    mx_kv_node *node = new_node(tree);
    if (parent) parent->users--;
    if (!node) return NULL;
    node->parent = parent;
    node->tile = parent ? parent->tile + 1 : 0;
    if (parent) parent->children++;
    mx_prefix_extend(node, token, count);

    node->same_self = bucket_of(tree, parent, token[0]);
    node->same_next = *node->same_self;
    if (node->same_next) node->same_next->same_self = &node->same_next;
    *node->same_self = node;

    node->used = parent ? parent->used : ++tree->clock;
    insert_before(&node->age, parent ? &parent->age : &tree->age);
    publish_layers(tree, node, false, page, stride);
    for (int l = 0; l < tree->config->layers; l++)
        if (tree->config->sliding[l]) node->page[l] = -1;
    if (window && tree->first_sliding >= 0) mx_prefix_give_window(tree, node, page, stride);
    return node;
}

void mx_prefix_extend(mx_kv_node *node, const int32_t *token, int64_t count) {
    memcpy(node->token, token, sizeof *token * (size_t)count);
    node->count = (int32_t)count;
}

void mx_prefix_remove(mx_prefix_tree *tree, mx_kv_node *node) {
    change_reach(tree, node, marks_reach(tree, node), node->tile + 1, -1);
    if (node->window) drop_window(tree, node);
    withdraw_layers(tree, node, false);
    unlink_from(&node->age);
    mx_kv_list_remove(&node->to_store);
    *node->same_self = node->same_next;
    if (node->same_next) node->same_next->same_self = node->same_self;
    if (node->parent) node->parent->children--;
    node->same_next = tree->unused;
    tree->unused = node;
}

void mx_prefix_supersede(mx_prefix_tree *tree, mx_kv_node *node) {
    mx_kv_node *next;
    for (mx_kv_node *n = *bucket_of(tree, node->parent, node->token[0]); n; n = next) {
        next = n->same_next;
        if (n == node || n->parent != node->parent || n->users || n->pins || n->count > node->count ||
            n->count == MX_TILE || common_part(n, node->token, node->count) < n->count)
            continue;
        mx_prefix_mark(tree, node, n->marks);
        mx_prefix_remove(tree, n);
    }
}

/* ---- what goes ----------------------------------------------------------------------------------------------------
 */
void mx_prefix_touch(mx_prefix_tree *tree, mx_kv_node *node) {
    const uint64_t now = ++tree->clock;
    for (; node; node = node->parent) {
        node->used = now;
        unlink_from(&node->age);
        insert_before(&node->age, &tree->age);
    }
}

/* The longest unused node that can be removed; NULL: none. What running sequences stand on is in use now: it goes to
 * the young end, so that nobody passes it again soon. */
static mx_kv_node *oldest_leaf(mx_prefix_tree *tree) {
    const uint64_t began = tree->clock;
    while (tree->age.after != &tree->age) {
        mx_kv_node *node = by_age(tree->age.after);
        if (!node->users) return node;
        if (node->used > began) return NULL; /* once around */
        mx_prefix_touch(tree, node);
    }
    return NULL;
}

static bool drop_oldest_leaf(mx_prefix_tree *tree) {
    mx_kv_node *leaf = oldest_leaf(tree);
    if (leaf) mx_prefix_remove(tree, leaf);
    return leaf != NULL;
}

static bool drop_something(mx_prefix_tree *tree) {
    if (tree->plain.after != &tree->plain) {
        drop_window(tree, by_window(tree->plain.after));
        return true;
    }
    mx_kv_node *leaf = oldest_leaf(tree);
    mx_kv_node *window = tree->near.after != &tree->near ? by_window(tree->near.after) : NULL;
    if (window && (!leaf || window->window_used < leaf->used))
        drop_window(tree, window);
    else if (leaf)
        mx_prefix_remove(tree, leaf);
    return window || leaf;
}

bool mx_prefix_make_room(mx_prefix_tree *tree, int64_t pages) {
    if (tree->pool->free_count + tree->pool->cached < pages) return false;
    while (tree->pool->free_count < pages)
        if (!drop_something(tree)) return false;
    return true;
}

void mx_prefix_forget(mx_prefix_tree *tree) {
    for (mx_kv_link *link = tree->age.after, *next; link != &tree->age; link = next) {
        mx_kv_node *node = by_age(link);
        next = link->after;
        if (!node->children && !node->users)
            mx_prefix_remove(tree, node);
        else if (node->aged_window.after)
            drop_window(tree, node);
    }
}
