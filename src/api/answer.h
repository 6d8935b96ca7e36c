#ifndef MX_API_ANSWER_H
#define MX_API_ANSWER_H

#include "api/request.h"

/* One answer to one prompt, as it comes out of the engine. */

/* A token with its logprob and the likeliest alternatives. */
typedef struct mx_api_token {
    int32_t token;
    float logprob;
    bool shown;               /* content of a TEXT message */
    int message;              /* which message it is of */
    int64_t offset;           /* where it begins in that message, bytes */
    int top_first, top_count; /* in mx_api_tokens.top */
} mx_api_token;

typedef struct mx_api_tokens {
    mx_api_token *item; /* [count] */
    int count, capacity;
    mx_alternative *top; /* [top_count] */
    int top_count, top_capacity;
} mx_api_tokens;

typedef struct mx_api_answer {
    void *owner;       /* the caller's */
    int prompt, index; /* which prompt of the request; which answer to it */
    mx_handle handle;  /* 0: not submitted */
    bool cancelled, ended;
    mx_turn *turn;
    mx_api_tokens tokens, prompt_tokens; /* filled where logprobs are wanted */
    int64_t thinking_tokens;
    double logprob_sum; /* of all tokens of the answer */
    mx_finish finish;
    struct mx_usage usage;
    mx_constraint constraint; /* of the request's rules; the engine's once `handle` is there */
} mx_api_answer;

/* `piece`: as mx_turn_options has it, with the answer as its user; NULL: nobody listens. */
mx_status mx_api_answer_init(mx_api_answer *answer, const mx_api_settings *settings, const mx_api_request *request,
                             bool (*piece)(void *answer, const mx_piece *piece), mx_error *error);
void mx_api_answer_free(mx_api_answer *answer);

/* What the engine is asked; its pointers are into request, prompt and settings. */
mx_request mx_api_answer_request(mx_api_answer *answer, const mx_api_settings *settings, const mx_api_request *request);

/* Takes one event of the answer. With FINISHED `ended` is set; FAILED is not for here. */
mx_status mx_api_answer_take(mx_api_answer *answer, const mx_api_settings *settings, const mx_api_request *request,
                             const mx_event *event, mx_error *error);

int64_t mx_api_answer_count(const mx_api_answer *answer); /* tokens, the stop token included */
double mx_api_answer_mean(const mx_api_answer *answer);   /* logprob per token */
/* As the short form has it; OpenAI knows no "deadline" and gets "length". */
const char *mx_api_answer_finish(const mx_api_answer *answer, bool openai);

#endif
