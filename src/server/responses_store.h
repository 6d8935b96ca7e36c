#ifndef MX_SERVER_RESPONSES_STORE_H
#define MX_SERVER_RESPONSES_STORE_H

#include <stdbool.h>

#include "base/bytes.h"
#include "base/status.h"

/* Responses that clients may ask for again or go on from, in bounded memory: the ones that were not asked for longest
 * go first. A response keeps those it went on from, also when they can no longer be found themselves. Used by any
 * number of threads. */
typedef struct mx_response_store mx_response_store;
mx_status mx_response_store_create(uint64_t bytes, mx_response_store **out, mx_error *error);
void mx_response_store_free(mx_response_store *s); /* NULL allowed; no response is held any more */

typedef struct mx_stored_response {
    char id[48];                         /* "resp_..." */
    mx_bytes input;                      /* items, a JSON array */
    mx_bytes body;                       /* the response object, JSON; its output are the items that follow */
    struct mx_stored_response *previous; /* NULL: it began the conversation */
    /* the store's own */
    int references;
    struct mx_stored_response *chain, *newer, *older; /* in its bucket; in the order of use */
} mx_stored_response;

/* Immutable until mx_stored_response_release. NULL: there is none. `s` may be NULL: then there never is. */
mx_stored_response *mx_response_store_find(mx_response_store *s, const char *id);
void mx_stored_response_release(mx_response_store *s, mx_stored_response *r); /* NULL allowed */

/* Keeps a response; `previous` (NULL allowed) gets a reference of its own. Takes over the memory of input and body. One
 * that is larger than an eighth of all memory would push out too many others and is not kept; a failure (no memory)
 * keeps nothing. */
void mx_response_store_put(mx_response_store *s, const char *id, mx_stored_response *previous, mx_bytes *input,
                           mx_bytes *body);
bool mx_response_store_delete(mx_response_store *s, const char *id); /* false: there is none */

#endif
