#ifndef MX_SERVER_ANTHROPIC_H
#define MX_SERVER_ANTHROPIC_H

#include "api/write.h"
#include "server/exchange.h"

/* Anthropic's Messages API: /v1/messages. An answer is a list of blocks, one for each message that the model wrote and
 * that is not empty. Thinking is told to clients that ask for it ("thinking"); to the others only where it is all there
 * is because the tokens were used up. A call is told once it is complete, because its input is an object: arguments
 * that are none (they were cut off) become text. */

/* What becomes of an answer: the state of mx_anthropic_form. */
typedef struct mx_anthropic_state {
    bool thinking; /* is told */
    /* Of a stream: */
    int blocks;    /* that are complete */
    bool open;     /* one more is announced */
    int calls;     /* that the model has written */
    bool any_call; /* one was told */
    mx_bytes text; /* arguments of the call that is being written */
} mx_anthropic_state;
void mx_anthropic_free(void *state);

extern const mx_form mx_anthropic_form;

/* The body as a request; what is wrong with it is in out->problem. `counted`: only its tokens are wanted, max_tokens
 * may be missing. The caller frees `out` in any case. */
mx_status mx_anthropic_read(const mx_server_parts *parts, const char *id, const mx_json *body, bool counted,
                            mx_api_request *out, mx_anthropic_state *state, mx_error *error);

/* Adds body's "system" and "messages" to a chat. */
mx_status mx_anthropic_add_messages(const mx_json *body, mx_api_chat *chat, mx_api_problem *problem, mx_error *error);

/* {"type": "error", "error": {"type", "message"}, "request_id"} */
bool mx_anthropic_problem(mx_bytes *out, const mx_api_problem *problem);

/* What thinking is signed with: tells whose answer it was when it comes back. */
#define MX_ANTHROPIC_SIGNATURE "mxrun_"

#endif
