#ifndef MX_SERVER_RESPONSES_H
#define MX_SERVER_RESPONSES_H

#include "api/write.h"
#include "server/exchange.h"
#include "server/responses_store.h"

/* OpenAI's Responses API: /v1/responses. A request's input are items (messages, calls, their results, reasoning), an
 * answer's output, too: one for each message that the model wrote and that is not empty. Items of the answer ID are
 * called "rs_ID_N", "msg_ID_N", "fc_ID_N", so that an item that comes back tells whose it is. */

/* What becomes of an answer: the state of mx_responses_form. */
typedef struct mx_responses_state {
    mx_response_store *responses;
    mx_stored_response *previous; /* held; NULL: none */
    bool store;
    mx_bytes input; /* the request's items as a JSON array, each with an id */
    mx_bytes echo;  /* members of the response object that repeat the request: "\"instructions\":null,..." */
    /* Of a stream: */
    int64_t sequence; /* events so far */
    int messages;     /* of the turn, that are over */
    int items, calls; /* of the output, that are complete */
    bool open;        /* the item of the message that is being written was announced */
    mx_bytes text;    /* of this message */
    size_t sent;      /* of it, bytes that were told */
    int tokens;       /* whose logprobs were told */
} mx_responses_state;
void mx_responses_free(void *state);

extern const mx_form mx_responses_form;

/* The body as a request; what is wrong with it is in out->problem. The caller frees `out` in any case. */
mx_status mx_responses_read(const mx_server_parts *parts, const char *id, const mx_json *body, mx_api_request *out,
                            mx_responses_state *state, mx_error *error);

/* ---- items ------------------------------------------------------------------------------------------------------- */
typedef struct mx_responses_item {
    const mx_json *json;
    int index; /* in the request's input; -1: of a response before */
} mx_responses_item;

/* All items of a conversation, those of responses before first. */
typedef struct mx_responses_items {
    mx_responses_item *item; /* [count], owned */
    int count, capacity;
    mx_json_document **documents; /* [document_count], owned: where they are */
    int document_count;
} mx_responses_items;
void mx_responses_items_free(mx_responses_items *items);

/* Reads "input" into state->input and, with what came before (state->previous), `items`. */
mx_status mx_responses_read_input(const mx_json *input, const char *id, mx_responses_state *state,
                                  mx_responses_items *items, mx_api_problem *problem, mx_error *error);

/* Adds the items from `first` on to a chat. */
mx_status mx_responses_add_items(const mx_responses_items *items, int first, mx_api_chat *chat, mx_api_problem *problem,
                                 mx_error *error);
/* Is it a message of the user's? There an old beginning may be cut off. */
bool mx_responses_is_user(const mx_responses_item *item);

#endif
