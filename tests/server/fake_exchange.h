#ifndef TESTS_SERVER_FAKE_EXCHANGE_H
#define TESTS_SERVER_FAKE_EXCHANGE_H

#include "server/exchange.h"

/* The inner border of the server (server/exchange.h) without HTTP and without an engine: what a protocol does with a
 * request, and what it says of tokens that are given. Programs link this instead of exchange.c and work.c. */
typedef struct fake_reply {
    int status;      /* 0: none yet */
    char type[80];   /* of the body */
    mx_bytes body;   /* all that was said, of a stream too */
    mx_bytes prompt; /* of the first one that was to be answered: its ids, native int32 */
    bool worked;     /* the model was asked */
} fake_reply;
void fake_reply_free(fake_reply *reply);

typedef struct fake_request {
    const mx_endpoint *endpoint;
    const char *path, *variable;
    const void *body;
    size_t size;
    /* What the model says to every prompt; ends with `finish`. */
    const int32_t *tokens;
    int count;
    mx_finish finish;
    bool fails; /* in the end the engine fails instead */
} fake_request;

/* The exchange's id is 32 digits of `number`. */
void fake_exchange(const mx_server_parts *parts, const fake_request *request, uint64_t number, fake_reply *reply);

#endif
