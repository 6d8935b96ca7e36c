#ifndef MX_API_REQUEST_H
#define MX_API_REQUEST_H

#include "base/json.h"
#include "grammar/rules.h"
#include "turn/conversation.h"

/* What answers depend on, too, and the machine may decide. Every record's id says it, so that a run that goes on
 * elsewhere does the same or is refused. */
typedef struct mx_api_setup {
    int64_t context;               /* of the engine; 0: none */
    char tier[24], precision[120]; /* mx_engine_info's */
} mx_api_setup;

/* What holds for all lines, unless they say otherwise. */
typedef struct mx_api_settings {
    const mx_tokenizer *tokenizer;
    const mx_conversation *conversation; /* the settings of chats. NULL: no chats */
    bool raw;             /* a "prompt" of the short form is continued as it stands, not answered in a chat */
    const char *model;    /* its name, for the records */
    mx_sampling sampling; /* the seed of a line is mixed of this one and the line's number */
    int64_t max_tokens;   /* 0: until the context is full */
    const char *const *stop;
    int stop_count;
    const mx_ids *stop_tokens;
    int32_t vocab;             /* of the model; 0: not known yet */
    mx_vocabulary *vocabulary; /* for grammars; NULL: none, requests with rules are refused, but for: */
    mx_vocabulary **later;     /* made here when the first answer needs it, by the one thread that makes answers; the
                                  caller frees it. NULL: not so */
    mx_api_setup setup;
} mx_api_settings;

/* One line as a request: its prompts as token ids and everything that says how to answer them. */
typedef enum mx_api_form {
    MX_FORM_UNKNOWN, /* the line is no JSON object */
    MX_FORM_OPENAI,  /* {"custom_id", "method", "url", "body"} */
    MX_FORM_SHORT,   /* {"id", "prompt" | "messages", ...} */
} mx_api_form;

/* OpenAI's error object. */
typedef struct mx_api_problem {
    int http_status;  /* 400: the request is wrong, 500: we failed; 0: no problem */
    char param[80];   /* "messages[2].content"; empty: none in particular */
    const char *code; /* a constant */
    char text[1000];
    const char *request_id; /* mx_exchange_id, set where a server tells the problem; NULL: not so */
} mx_api_problem;
/* Returns false. `param` may be NULL. */
bool mx_api_wrong(mx_api_problem *problem, const char *param, const char *code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Of a request's texts that end answers. */
enum { MX_API_MOST_STOPS = 64, MX_API_LONGEST_STOP = 1024 }; /* bytes; OpenAI allows 4 of them */
/* A text or an array of them. false: the problem with `param` is told. */
bool mx_api_check_stop(mx_api_problem *problem, const char *param, const mx_json *stop);

/* A function's name to the model and to the client. */
typedef struct mx_api_name {
    char *harmony, *client; /* owned */
} mx_api_name;

typedef struct mx_api_request {
    mx_api_form form;
    mx_bytes id;               /* custom_id or id, as JSON; empty: none */
    bool has_calls;            /* of a chat: somebody called a function before */
    bool chat;                 /* else its prompts are continued as they stand */
    const char *prompts_field; /* where they are from: "messages" or "prompt" */
    mx_ids *prompts;
    int prompt_count;
    bool beyond; /* a prompt is longer than the context; it was not tokenised to its end, but has more ids than fit */
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
    int logprobs;               /* alternatives beside each token; -1: no logprobs at all */
    mx_rules *rules;            /* owned; what the answers must be like; NULL: anything */
    bool stream, include_usage; /* of a server: answer in pieces; the last of them with the usage */
    mx_api_name *names;         /* [name_count], owned: what mx_api_client_name looks up */
    int name_count;
    mx_api_problem problem;
} mx_api_request;

/* How requests are read. */
typedef struct mx_api_reader {
    const mx_api_settings *settings;
    struct mx_replay *replay; /* the model's own tokens of what comes back; NULL: none */
    bool dated;               /* chats have the day on which they began */
    bool streams;             /* answers may be wanted in pieces */
} mx_api_reader;

/* `number` is the line's, for the seed. What is wrong with the line is in out->problem; the status is about memory and
 * the like. Free with mx_api_request_free in any case. */
mx_status mx_api_read(const mx_api_reader *reader, int64_t number, const char *text, size_t size, mx_api_request *out,
                      mx_error *error);
/* The same for the body of a request to a server, an object: of /v1/chat/completions (`chat`) or /v1/completions. A
 * request without a seed gets this one. */
mx_status mx_api_read_body(const mx_api_reader *reader, bool chat, uint64_t seed, const mx_json *body,
                           mx_api_request *out, mx_error *error);
/* Bytes from which on a text is looked at before it is tokenised to its end, for it may be far beyond the context and
 * take seconds. What is shorter is told with its exact number of tokens. */
size_t mx_api_long_text(int64_t context);
/* A prompt that leaves no room for an answer is a problem, in the words that clients look for. `context` 0: none. */
bool mx_api_check_room(mx_api_request *request, int64_t context);
void mx_api_request_free(mx_api_request *request);

/* The client's own name of a function that the model calls: every protocol tells calls under it. */
const char *mx_api_client_name(const mx_api_request *request, const char *name);

/* The seed of the k-th answer to a prompt: of the first the request's own. */
uint64_t mx_api_seed(const mx_api_request *request, int prompt, int k);

#endif
