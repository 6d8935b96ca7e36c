#ifndef MX_BATCH_REQUEST_H
#define MX_BATCH_REQUEST_H

#include "base/json.h"
#include "batch/batch.h"

/* One line as a request: its prompts as token ids and everything that says how to answer them. */
typedef enum mx_batch_form {
    MX_FORM_UNKNOWN, /* the line is no JSON object */
    MX_FORM_OPENAI,  /* {"custom_id", "method", "url", "body"} */
    MX_FORM_SHORT,   /* {"id", "prompt" | "messages", ...} */
} mx_batch_form;

/* OpenAI's error object. */
typedef struct mx_batch_problem {
    int http_status;  /* 400: the request is wrong, 500: we failed; 0: no problem */
    char param[80];   /* "messages[2].content"; empty: none in particular */
    const char *code; /* a constant */
    char text[1000];
} mx_batch_problem;
/* Returns false. `param` may be NULL. */
bool mx_batch_wrong(mx_batch_problem *problem, const char *param, const char *code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

typedef struct mx_batch_request {
    mx_batch_form form;
    mx_bytes id;               /* custom_id or id, as JSON; empty: none */
    bool chat;                 /* else its prompts are continued as they stand */
    const char *prompts_field; /* where they are from: "messages" or "prompt" */
    mx_ids *prompts;
    int prompt_count;
    mx_sampling sampling; /* .bias is owned here, .seed is of the first answer */
    mx_logit_bias *bias;
    int64_t max_tokens; /* 0: until the context is full */
    bool no_answer;     /* max_tokens was 0: only the prompt's logprobs are wanted */
    int64_t min_tokens;
    int priority;
    double deadline;
    char **stop; /* [stop_count], owned */
    int stop_count;
    int n, best_of; /* answers a prompt that are returned and that are computed */
    bool echo;
    int logprobs; /* alternatives beside each token; -1: no logprobs at all */
    mx_batch_problem problem;
} mx_batch_request;

/* What lines that say nothing about it have. */
typedef struct mx_batch_reader {
    const mx_batch_settings *settings;
    char *developer, *reasoning; /* owned; NULL: no chats */
    mx_json_document *tools;     /* NULL: none */
    bool own_tools;              /* the conversation's are a line's */
} mx_batch_reader;
mx_status mx_batch_reader_init(mx_batch_reader *reader, const mx_batch_settings *settings, mx_error *error);
void mx_batch_reader_free(mx_batch_reader *reader); /* all zeros allowed */

/* `number` is the line's, for the seed. What is wrong with the line is in out->problem; the status is about memory and
 * the like. Free with mx_batch_request_free in any case. */
mx_status mx_batch_read(mx_batch_reader *reader, int64_t number, const char *text, size_t size, mx_batch_request *out,
                        mx_error *error);
void mx_batch_request_free(mx_batch_request *request);

/* The messages of a chat and what its settings are, to ids. `fields`: where "tools" and "reasoning_effort" are. */
mx_status mx_batch_read_chat(mx_batch_reader *reader, const mx_json *fields, const mx_json *messages, mx_ids *out,
                             mx_batch_problem *problem, mx_error *error);
/* The same with one message of the user. */
mx_status mx_batch_read_user(mx_batch_reader *reader, const mx_json *fields, const char *text, size_t size, mx_ids *out,
                             mx_batch_problem *problem, mx_error *error);

/* The seed of the k-th answer to a prompt: of the first the request's own. */
uint64_t mx_batch_seed(const mx_batch_request *request, int prompt, int k);

#endif
