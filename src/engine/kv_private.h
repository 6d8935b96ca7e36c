#ifndef MX_KV_PRIVATE_H
#define MX_KV_PRIVATE_H

#include "engine/kv.h"
#include "engine/page_pool.h"
#include "engine/prefix_tree.h"

struct mx_kv {
    const mx_config *config;
    int sliding_layers;
    mx_page_pool pool;
    mx_prefix_tree tree;
    int32_t *boundary;
    int boundary_count;
    uint64_t count; /* how many were begun by mx_kv_count_anew */

    /* kv_store.c */
    mx_prefix_store *store; /* owned; NULL: none */
    mx_kv_link to_store;    /* nodes with parts that are to be stored, in the order in which they came */
    mx_store_key *key;      /* [tiles of the longest prefix + 1]: of the one that is looked for */
    int64_t key_tiles;
    int32_t *page; /* [layers] */
    int64_t page_bytes;
    bool warned;    /* that the backend's pages cannot be read or written */
    double refresh; /* seconds after which a use of what is stored is told to the store */
};

mx_status mx_kv_store_init(mx_kv *kv, int64_t context, mx_error *error);
void mx_kv_store_free(mx_kv *kv); /* waits for the disk, until mx_prefix_store_ends */

void mx_kv_store_tile(mx_kv *kv, mx_kv_node *node); /* has just become whole */
/* All up to this node is right, for a token was drawn behind it: it is stored. */
void mx_kv_store_settle(mx_kv *kv, mx_kv_node *node);
void mx_kv_store_used(mx_kv *kv, mx_kv_node *node); /* a sequence goes on from here */
void mx_kv_store_feed(mx_kv *kv);                   /* gives the store what it has room for */

#endif
