#ifndef MX_SERVER_OPENAI_H
#define MX_SERVER_OPENAI_H

#include "server/exchange.h"

/* Answers of /v1/chat/completions and /v1/completions, whole or as a stream of chunks (openai_stream.c). */
extern const mx_form mx_openai_form;

/* State of the form, for a request that was read. NULL: no memory. */
void *mx_openai_state(const mx_server_parts *parts, const mx_api_request *request, const char *id, int64_t created);

#endif
