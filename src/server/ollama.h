#ifndef MX_SERVER_OLLAMA_H
#define MX_SERVER_OLLAMA_H

#include "api/write.h"
#include "server/exchange.h"

/* Ollama's protocol: /api/chat and /api/generate, and what its clients ask about models. What Ollama says of itself is
 * in its docs/api.md; where gpt-oss is special there it is so here (think: "low", "medium", "high"). */

/* What becomes of an answer: the state of mx_ollama_form. */
typedef struct mx_ollama_answer {
    bool chat;          /* {"message": {...}}; else generate's {"response": ...} */
    bool hide_thinking; /* think: false */
    /* Of a stream: */
    bool any_text, any_thinking; /* was some sent? */
    mx_bytes call;               /* arguments of the tool call that is being written */
    int calls, tokens;           /* calls, and logprobs, that were sent */
} mx_ollama_answer;

extern const mx_form mx_ollama_form;

/* Is there the name of a model? There is one model, and it answers under any, as in OpenAI's endpoints; false: the
 * problem is told. */
bool mx_ollama_check_model(const mx_server_parts *parts, const mx_json *name, mx_api_problem *problem);

/* The bodies of the two, as a request; what is wrong with it is in out->problem. `answer` gets its wishes. The caller
 * frees out in any case. *load: the body asks for no answer, only that the model be there; then out is empty. */
mx_status mx_ollama_read_chat(const mx_server_parts *parts, const char *id, const mx_json *body, mx_api_request *out,
                              mx_ollama_answer *answer, bool *load, mx_error *error);
mx_status mx_ollama_read_generate(const mx_server_parts *parts, const char *id, const mx_json *body,
                                  mx_api_request *out, mx_ollama_answer *answer, bool *load, mx_error *error);

/* "model":"...","created_at":"2026-11-27T23:12:34.123456789Z" */
void mx_ollama_put_head(mx_api_writer *w);
/* seconds as RFC 3339, quoted */
void mx_ollama_put_time(mx_api_writer *w, int64_t seconds, long nanoseconds);

/* The endpoints about models (ollama_models.c). */
void mx_ollama_version(mx_exchange *x);
void mx_ollama_tags(mx_exchange *x);
void mx_ollama_ps(mx_exchange *x);
void mx_ollama_show(mx_exchange *x);

#endif
