#ifndef MX_PREFIX_TREE_H
#define MX_PREFIX_TREE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "engine/kv.h"
#include "engine/page_pool.h"
#include "engine/prefix_store.h"

/* Tiles of cached prefixes as a tree, and what of it goes when pages are wanted (kv.h has the rules).
 *
 * Nodes lie in one array made at creation. A node is found by its parent and its first token. Three lists say what is
 * oldest:
 *   age     every node, the longest unused first. Whoever touches a node touches the way to the root behind it, so a
 *           node stands before its ancestors and the first one has no children.
 *   near    nodes whose sliding pages lie in the window before a mark
 *   plain   the other nodes that have sliding pages
 * Nodes whose sliding pages a sequence holds (`pins`) are in neither of the last two.
 *
 * A mark is a position where a prefix will probably be gone on from. */

typedef struct mx_kv_link {
    struct mx_kv_link *before, *after; /* NULL: in no list */
} mx_kv_link;

void mx_kv_list_init(mx_kv_link *head);
void mx_kv_list_add(mx_kv_link *head, mx_kv_link *link); /* as the last */
void mx_kv_list_remove(mx_kv_link *link);                /* in no list: nothing */

struct mx_kv_node {
    mx_kv_node *parent; /* NULL: this is a first tile */
    int64_t tile;
    int32_t count; /* tokens: MX_TILE but in leaves */
    int32_t children;
    int32_t users;       /* sequences that stand here or write here: it is not removed */
    int32_t pins;        /* sequences with its sliding pages in their tables */
    int32_t near;        /* nodes with a mark whose window reaches into this tile */
    bool window;         /* it has its sliding pages */
    uint64_t marks;      /* bit i: at position MX_TILE tile + i + 1 */
    mx_store_key key;    /* of a whole tile, where there is a store */
    bool settled;        /* its bits are known to be good: it is stored */
    bool wanted[2];      /* by mx_store_part: to be stored */
    bool asked[2];       /* was so once */
    double stored;       /* when, by mx_seconds */
    mx_kv_link to_store; /* while one is wanted */
    uint64_t used, window_used;
    uint64_t counted, window_counted; /* by mx_kv_count_sequence and mx_kv_count_prefix: in which count */
    mx_kv_link age, aged_window;
    mx_kv_node *same_next, **same_self; /* nodes with this hash */
    int32_t *page;                      /* [layers] */
    int32_t token[MX_TILE];
};

typedef struct mx_prefix_tree {
    const mx_config *config;
    mx_page_pool *pool;
    int first_sliding; /* the first sliding layer; -1: there is none */
    mx_arena memory;
    mx_kv_node *node; /* [nodes] */
    int32_t *page;    /* [nodes][layers] */
    int64_t nodes, node_used;
    mx_kv_node *unused;  /* given back; linked by `same_next` */
    mx_kv_node **bucket; /* [mask + 1] */
    uint64_t mask;
    mx_kv_link age, near, plain; /* heads */
    uint64_t clock;
} mx_prefix_tree;

mx_status mx_prefix_tree_init(mx_prefix_tree *tree, const mx_config *config, mx_page_pool *pool, int64_t nodes,
                              mx_error *error);
void mx_prefix_tree_free(mx_prefix_tree *tree); /* all zeros allowed; gives no page back */

/* The first tile that a row at `position` sees in a sliding layer. */
int64_t mx_window_begin(const mx_config *config, int64_t position);

/* Children of `parent` (NULL: first tiles). */
mx_kv_node *mx_prefix_find(const mx_prefix_tree *tree, const mx_kv_node *parent, const int32_t token[MX_TILE]);
/* The one that has most of token [count] at its beginning, its sliding pages too. NULL: none has the first. */
mx_kv_node *mx_prefix_find_part(const mx_prefix_tree *tree, const mx_kv_node *parent, const int32_t *token,
                                int64_t count, int *common);
/* One that begins with all of token [count], its sliding pages too, other than `except`. */
mx_kv_node *mx_prefix_find_longer(const mx_prefix_tree *tree, const mx_kv_node *parent, const int32_t *token,
                                  int64_t count, const mx_kv_node *except);

/* A node of tile [count]. page [layers], entries `stride` apart: held by the caller, the tree becomes another holder;
 * sliding layers' only where `window`. NULL: all nodes are in use and none can go. */
mx_kv_node *mx_prefix_add(mx_prefix_tree *tree, mx_kv_node *parent, const int32_t *token, int64_t count,
                          const int32_t *page, int64_t stride, bool window);
void mx_prefix_extend(mx_kv_node *node, const int32_t *token, int64_t count); /* a leaf; token [count]: all of it */
/* Sliding pages for a node that lost its own. */
void mx_prefix_give_window(mx_prefix_tree *tree, mx_kv_node *node, const int32_t *page, int64_t stride);
void mx_prefix_remove(mx_prefix_tree *tree, mx_kv_node *node); /* without children, users and pins */
/* Removes unused leaves beside `node` that say no more than it does; their marks become its own. */
void mx_prefix_supersede(mx_prefix_tree *tree, mx_kv_node *node);

void mx_prefix_mark(mx_prefix_tree *tree, mx_kv_node *node, uint64_t marks);
void mx_prefix_touch(mx_prefix_tree *tree, mx_kv_node *node); /* and its ancestors; NULL allowed */
void mx_prefix_pin(mx_prefix_tree *tree, mx_kv_node *node);
void mx_prefix_unpin(mx_prefix_tree *tree, mx_kv_node *node);

/* Drops what it takes for so many pages to be free. false: they cannot be had. Where free and cached ones are fewer
 * nothing was dropped; where some of the cached ones may not go now, those that may are gone. */
bool mx_prefix_make_room(mx_prefix_tree *tree, int64_t pages);
void mx_prefix_forget(mx_prefix_tree *tree); /* all that no sequence uses */

#endif
