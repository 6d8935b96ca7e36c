#ifndef MX_SERVER_EXCHANGE_H
#define MX_SERVER_EXCHANGE_H

#include "api/answer.h"
#include "api/chat.h"
#include "api/replay.h"
#include "base/json.h"
#include "grammar/grammar.h"

/* The inner border of the server. On one side HTTP and the engine (http.c, work.c ...), which know no protocol; on the
 * other the protocols (OpenAI, Anthropic, Ollama ...), each a table of endpoints, which know neither sockets nor
 * threads:
 *
 *     bytes ──http──► exchange ──handle()──► mx_api_request ──mx_exchange_work()──► engine
 *       ▲                                                                            │ events, by the engine's thread
 *       └── body or server-sent events ◄──── mx_form: begin, piece, ended, finish ◄──┘
 *
 * handle() runs in a thread of HTTP's, for large bodies in one of its own, once the whole body is there, and ends in
 * exactly one of mx_exchange_reply, mx_exchange_refuse, mx_exchange_fail, mx_exchange_work. The functions of a form run
 * in the engine's thread (`begin` in handle()'s, so that a client has it while the engine is in a long step), one at a
 * time, and never wait. */
typedef struct mx_exchange mx_exchange; /* one HTTP request and what becomes of it */

/* ---- what all of them share -------------------------------------------------------------------------------------- */
typedef struct mx_server_parts {
    mx_engine *engine;
    mx_engine_info info;
    const mx_tokenizer *tokenizer;
    mx_vocabulary *vocabulary; /* NULL: the tokenizer has no tokens for it; no grammars then */
    mx_api_settings settings;  /* sampling, limits, stop tokens, the model's name; .conversation: the template of chats,
                                  NULL: no chat format. Read only */
    const char *model;         /* its name for clients, as settings.model */
    const char *model_path;
    int64_t model_created;               /* seconds since 1970: of the model's files */
    mx_replay *replay;                   /* the model's own tokens of answers that come back */
    struct mx_response_store *responses; /* /v1/responses */
    struct mx_metrics *metrics;
    bool dates; /* nobody gave --date: chats have the day they began */
} mx_server_parts;
const mx_server_parts *mx_exchange_parts(const mx_exchange *x);

/* ---- the request ------------------------------------------------------------------------------------------------- */
const char *mx_exchange_path(const mx_exchange *x);     /* "/v1/responses/resp_12" */
const char *mx_exchange_variable(const mx_exchange *x); /* what stands for {…} in the endpoint's path */
const char *mx_exchange_header(const mx_exchange *x, const char *name); /* NULL: absent; valid while handle() runs */
const char *mx_exchange_query(const mx_exchange *x, const char *name);
const mx_bytes *mx_exchange_body(const mx_exchange *x); /* empty once it was read as JSON */
/* The body as a JSON object, valid while handle() runs. NULL: it is none, the client has been told; return at once. */
const mx_json *mx_exchange_json(mx_exchange *x);
/* 32 hexadecimal digits, unique: ids of answers ("chatcmpl-ID"), calls and messages are made of it, and the header
 * x-request-id. */
const char *mx_exchange_id(const mx_exchange *x);
int64_t mx_exchange_created(const mx_exchange *x); /* seconds since 1970 */

/* ---- the reply --------------------------------------------------------------------------------------------------- */
/* Before the reply: one more header. */
void mx_exchange_add_header(mx_exchange *x, const char *name, const char *value);
/* Takes `body` over (its memory; *body is empty then). */
void mx_exchange_reply(mx_exchange *x, int http_status, const char *content_type, mx_bytes *body);
/* An error in the form of the endpoint's protocol. 429 and 503 get Retry-After. */
void mx_exchange_refuse(mx_exchange *x, const mx_api_problem *problem);
/* A status that is our fault, such as no memory (500). MX_CONTEXT_FULL becomes 400 context_length_exceeded,
 * MX_INVALID_ARGUMENT 400. */
void mx_exchange_fail(mx_exchange *x, const mx_error *error);

/* ---- answers of the model ---------------------------------------------------------------------------------------- */
/* Answers at work. */
typedef struct mx_work {
    const mx_server_parts *parts;
    mx_api_request request;
    mx_api_answer *answers; /* [count]: best_of for each prompt, those of a prompt together */
    int count;
    const char *id; /* mx_exchange_id */
    int64_t created;
    double started; /* mx_seconds() */
    bool stream;
    void *state; /* of the form */
} mx_work;

/* How a protocol says answers. Each appends to `out` and returns false where memory is out: the exchange then ends with
 * an error. Where the client wants no stream only `finish` is called. What is appended goes to the client at once. */
typedef struct mx_form {
    const char *stream_type; /* content type of streams: "text/event-stream"; Ollama's "application/x-ndjson" */
    const char *keep_alive;  /* what a stream is kept open with where nothing happens for a while: ": keep-alive\n\n" */
    bool (*begin)(mx_work *work, mx_bytes *out); /* the answers are accepted: opening events; may be NULL */
    /* A part of an answer's message. Tokens whose logprobs are wanted are in answer->tokens by now. */
    bool (*piece)(mx_work *work, mx_api_answer *answer, const mx_piece *piece, mx_bytes *out);
    bool (*ended)(mx_work *work, mx_api_answer *answer, mx_bytes *out); /* this answer is complete; may be NULL */
    bool (*finish)(mx_work *work, mx_bytes *out); /* all are: closing events, or the whole body (JSON) */
    /* The stream has begun and the engine failed: an error event. */
    bool (*broken)(mx_work *work, const mx_api_problem *problem, mx_bytes *out);
    void (*free)(void *state); /* may be NULL */
} mx_form;

/* Begins to answer. Takes `request` and `state` over in any case (also where it is refused: a queue that is full is
 * 429, a prompt that does not fit 400, request->problem its own). The rules of the request become constraints, answers
 * that are complete go to parts->replay. A client that goes away ends it. */
void mx_exchange_work(mx_exchange *x, mx_api_request *request, bool stream, const mx_form *form, void *state);

/* ---- endpoints --------------------------------------------------------------------------------------------------- */
typedef struct mx_endpoint {
    const char *method; /* "GET", "POST", "DELETE"; NULL ends a table */
    const char *path;   /* "/v1/responses/{id}": what is in braces stands for anything without a slash; "{id...}", at
                         the end, for anything */
    void (*handle)(mx_exchange *x);
    bool (*problem)(mx_bytes *out, const mx_api_problem *problem); /* a whole error body in its protocol's form */
    bool open;                                                     /* no API key is asked for: /health, the page */
} mx_endpoint;

extern const mx_endpoint mx_openai_endpoints[];    /* openai.c: chat/completions, completions, models */
extern const mx_endpoint mx_responses_endpoints[]; /* responses.c */
extern const mx_endpoint mx_anthropic_endpoints[]; /* anthropic.c: messages, count_tokens */
extern const mx_endpoint mx_ollama_endpoints[];    /* ollama.c: /api/... */
extern const mx_endpoint mx_tool_endpoints[];      /* tools.c: tokenize, detokenize, openapi.json */
extern const mx_endpoint mx_status_endpoints[];    /* status.c: health, ready, metrics */
extern const mx_endpoint mx_page_endpoints[];      /* page.c: / and its files */

/* {"error": {...}}, as OpenAI has it: for the endpoints of no other protocol, too. */
bool mx_openai_problem(mx_bytes *out, const mx_api_problem *problem);

#endif
