#ifndef MX_API_WRITE_H
#define MX_API_WRITE_H

#include "api/answer.h"

/* Answers as JSON in OpenAI's form. A failure (no memory) stays in the writer, so that only the end asks. */
typedef struct mx_api_writer {
    mx_bytes *out;
    const mx_api_settings *settings;
    const mx_api_request *request;
    const char *id;  /* of the request, without a prefix: those of the body ("chatcmpl-ID") and of tool calls are made
                        of it */
    int64_t created; /* seconds since 1970 */
    bool failed;
    const char *fingerprint; /* of mx_api_fingerprint; NULL: not said */
} mx_api_writer;

/* What answers depend on beside the request: the model and the setup. */
void mx_api_fingerprint(const mx_api_settings *settings, char out[static 20]);

void mx_api_put(mx_api_writer *w, const char *text);
void mx_api_put_string(mx_api_writer *w, const void *text, size_t size); /* with quotes; text NULL: "" */
#define mx_api_putf(w, ...) ((w)->failed |= !mx_bytes_addf((w)->out, __VA_ARGS__))

/* The arguments of a call as JSON text for a client, none as {}: what the model wrote, but for an object that it put
 * into a JSON string. Who streams them holds back what begins with a quotation mark until the call is complete. */
bool mx_api_add_arguments(mx_bytes *out, const char *arguments, size_t size);

/* "call_ID_ANSWER_INDEX", at most 40 characters: of the call with this index in the answer's turn. */
void mx_api_call_id(const mx_api_writer *w, const mx_api_answer *a, int index, char out[static 80]);

void mx_api_put_text(mx_api_writer *w, const mx_api_answer *a); /* behind the prompt's, where that is echoed */
void mx_api_put_tool_calls(mx_api_writer *w, const mx_api_answer *a);
/* [{"token", "logprob", "bytes", "top_logprobs": [...]}] of what is content. */
void mx_api_put_chat_tokens(mx_api_writer *w, const mx_api_tokens *tokens);
/* {"tokens", "token_logprobs", "top_logprobs", "text_offset"} of an echoed prompt's (NULL: none) and an answer's tokens;
 * *begin is the first's offset in characters, and afterwards that behind the last. */
void mx_api_put_completion_tokens(mx_api_writer *w, const mx_api_tokens *prompt, const mx_api_tokens *answer,
                                  int64_t *begin);
/* The text of a prompt. */
bool mx_api_add_prompt(const mx_api_writer *w, int index, mx_bytes *out);
/* The "logprobs" of a choice. `learned`: the answer to the same prompt that has the prompt's. */
void mx_api_put_logprobs(mx_api_writer *w, const mx_api_answer *a, const mx_api_answer *learned);
/* "usage":{...}. Prompts count once, however many answers they got; answers count all that were computed. */
void mx_api_put_usage(mx_api_writer *w, const mx_api_answer *answers);
/* {"id", "object", "created", "model", "choices", "usage"}; `chosen` of mx_api_choose. */
void mx_api_put_body(mx_api_writer *w, const mx_api_answer *answers, const mx_api_answer **chosen);
/* OpenAI's error object, {"message", "type", "param", "code"}. */
void mx_api_put_problem(mx_api_writer *w, const mx_api_problem *problem);

/* The answers to return: n for each prompt, all in order or the best first. The caller frees the array. NULL: no
 * memory. */
const mx_api_answer **mx_api_choose(const mx_api_request *request, const mx_api_answer *answers);

#endif
