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
};

#endif
