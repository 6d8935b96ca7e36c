#ifndef MX_PAGE_POOL_H
#define MX_PAGE_POOL_H

#include <stdint.h>

#include "base/status.h"
#include "model/model.h"

/* The pages of a backend and how many hold each. The tree of cached prefixes is one holder of a page, each sequence
 * that has it in its table another. */
typedef struct mx_page_pool {
    mx_backend *backend; /* borrowed; clears and copies pages */
    int32_t *reference;  /* [pages] */
    int32_t *node;       /* [pages] node of the tree that holds the page, plus 1; 0: none */
    int32_t *free;       /* stack of the free ones */
    int64_t pages, free_count;
    int64_t cached; /* pages that the tree alone holds */
} mx_page_pool;

mx_status mx_page_pool_init(mx_page_pool *pool, mx_backend *backend, int64_t pages, mx_error *error);
void mx_page_pool_free(mx_page_pool *pool); /* all zeros allowed */

int32_t mx_page_take(mx_page_pool *pool);                    /* zeroed, one holder; there must be a free one */
int32_t mx_page_take_copy(mx_page_pool *pool, int32_t from); /* the same with the content of `from` */
/* The same from page_bytes of content. Where the backend cannot write it the page stays free. */
mx_status mx_page_take_filled(mx_page_pool *pool, const void *content, int32_t *out, mx_error *error);
void mx_page_retain(mx_page_pool *pool, int32_t page);
void mx_page_release(mx_page_pool *pool, int32_t page);

/* The tree's node `node` becomes a holder of a page that is held, and ceases to be one. */
void mx_page_publish(mx_page_pool *pool, int32_t page, int32_t node);
void mx_page_withdraw(mx_page_pool *pool, int32_t page);

#endif
