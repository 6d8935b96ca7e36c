#include "engine/page_pool.h"

#include <stdlib.h>

mx_status mx_page_pool_init(mx_page_pool *pool, mx_backend *backend, int64_t pages, mx_error *error) {
    *pool = (mx_page_pool){.backend = backend, .pages = pages, .free_count = pages};
    pool->reference = calloc((size_t)pages, sizeof *pool->reference);
    pool->node = calloc((size_t)pages, sizeof *pool->node);
    pool->free = malloc(sizeof *pool->free * (size_t)pages);
    if (!pool->reference || !pool->node || !pool->free) {
        mx_page_pool_free(pool);
        return mx_fail(error, MX_NO_MEMORY, "no memory to count %lld KV pages", (long long)pages);
    }
    for (int64_t i = 0; i < pages; i++) pool->free[i] = (int32_t)(pages - 1 - i);
    return MX_OK;
}

void mx_page_pool_free(mx_page_pool *pool) {
    free(pool->reference);
    free(pool->node);
    free(pool->free);
    *pool = (mx_page_pool){0};
}

static int32_t take(mx_page_pool *pool) {
    int32_t page = pool->free[--pool->free_count];
    pool->reference[page] = 1;
    return page;
}

int32_t mx_page_take(mx_page_pool *pool) {
    int32_t page = take(pool);
    pool->backend->ops->page_clear(pool->backend, page);
    return page;
}

mx_status mx_page_take_filled(mx_page_pool *pool, const void *content, int32_t *out, mx_error *error) {
    *out = take(pool);
    mx_status status = pool->backend->ops->page_write(pool->backend, *out, content, error);
    if (status) mx_page_release(pool, *out);
    return status;
}

int32_t mx_page_take_copy(mx_page_pool *pool, int32_t from) {
    int32_t page = take(pool);
    pool->backend->ops->page_copy(pool->backend, page, from);
    return page;
}

void mx_page_retain(mx_page_pool *pool, int32_t page) {
    if (pool->reference[page]++ == 1 && pool->node[page]) pool->cached--;
}

void mx_page_release(mx_page_pool *pool, int32_t page) {
    if (--pool->reference[page] == 0)
        pool->free[pool->free_count++] = page;
    else if (pool->reference[page] == 1 && pool->node[page])
        pool->cached++;
}

void mx_page_publish(mx_page_pool *pool, int32_t page, int32_t node) {
    pool->reference[page]++;
    pool->node[page] = node + 1;
}

void mx_page_withdraw(mx_page_pool *pool, int32_t page) {
    pool->node[page] = 0;
    if (pool->reference[page] == 1) pool->cached--;
    mx_page_release(pool, page);
}
