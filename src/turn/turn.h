#ifndef MX_TURN_H
#define MX_TURN_H

#include <signal.h>
#include <stdbool.h>

#include "engine/mxrun.h"
#include "tokenizer/harmony.h"
#include "tokenizer/tokenizer.h"

/* One answer of the model: sampled tokens in, what a user sees out (thinking, text, tool calls), with stop strings
 * found across token borders. A header that names another role than the assistant's ends it: what the model would have
 * the user or a tool say is no answer. It knows ids and text, not the engine's state; any number of turns may run at once. */
typedef struct mx_turn mx_turn;

typedef enum mx_piece_kind { MX_PIECE_THINKING, MX_PIECE_TEXT, MX_PIECE_TOOL_CALL } mx_piece_kind;

/* A part of one message, in the order it is written. Every message has one piece with `first` and one with `last`
 * (perhaps the same), which may be empty. */
typedef struct mx_piece {
    mx_piece_kind kind;
    bool first, last;
    const char *text; /* whole UTF-8 characters; of a tool call its arguments. Valid during the call */
    size_t size;
    const char *name; /* of a tool call: "get_weather"; NULL otherwise */
    bool cut;         /* with `last`: the model had not ended the message when the turn was over */
    bool preamble;    /* TEXT said on the commentary channel, before a call: not the answer */
} mx_piece;

typedef struct mx_turn_options {
    const mx_tokenizer *tokenizer; /* borrowed */
    bool raw;                      /* no harmony: every token is text, special ones by their name */
    const mx_ids *stop_tokens;     /* borrowed; of mx_turn_stop_tokens. They end the answer and are never text */
    const char *const *stop;       /* end the answer where they appear in its TEXT (not in thinking or tool calls) */
    int stop_count;
    int64_t min_tokens; /* stop strings are not looked for in what the first so many tokens bring */
    /* Called from mx_turn_push and mx_turn_end; may be NULL. false: nobody reads any more, the turn is over. */
    bool (*piece)(void *user, const mx_piece *piece);
    void *user;
} mx_turn_options;

typedef enum mx_turn_finish {
    MX_TURN_STOP, /* the model was done, or a stop string appeared */
    MX_TURN_TOOL_CALLS,
    MX_TURN_LENGTH,  /* max_tokens */
    MX_TURN_CONTEXT, /* the context is full */
    MX_TURN_CANCELLED,
} mx_turn_finish;
const char *mx_turn_finish_name(mx_turn_finish finish); /* "stop", "tool_calls", "length", "context", "cancelled" */

typedef struct mx_tool_call {
    char *name;         /* without "functions." */
    mx_bytes arguments; /* as the model wrote them: JSON if it did well */
    bool incomplete;    /* cut by max_tokens, the end of the context or a cancellation: do not make this call */
} mx_tool_call;

typedef struct mx_turn_result {
    mx_bytes text, thinking; /* several messages of a kind are joined by an empty line */
    mx_tool_call *tool_calls;
    int tool_call_count;
    mx_turn_finish finish;
    bool stop_string;        /* it was a stop string that ended it: */
    int stop_index;          /* of mx_turn_options.stop this one */
    mx_ids ids;              /* the model's own tokens, the stop token included */
    struct mx_usage usage;   /* of mx_turn_run */
    double seconds_to_first; /* of mx_turn_run: from submitting to the first token */
} mx_turn_result;

mx_status mx_turn_create(const mx_turn_options *options, mx_turn **out, mx_error *error);
void mx_turn_free(mx_turn *t); /* NULL allowed */

mx_status mx_turn_push(mx_turn *t, int32_t token, mx_error *error);
/* A stop string appeared, the model goes on as somebody else, or nobody reads any more: cancel the request. Further tokens are ignored. */
bool mx_turn_over(const mx_turn *t);
/* Was the last pushed token content of a message (and of which kind), or, false, of the format around it? */
bool mx_turn_token_kind(const mx_turn *t, mx_piece_kind *kind);
/* Which message it was of, from 0; 0 for a raw turn. */
int mx_turn_token_message(const mx_turn *t);
/* The engine's last word; delivers what was held back. */
mx_status mx_turn_end(mx_turn *t, mx_finish finish, mx_error *error);

const mx_turn_result *mx_turn_get_result(const mx_turn *t);
const mx_tokenizer *mx_turn_tokenizer(const mx_turn *t);
/* The answer's messages; NULL for a raw turn. */
const mx_harmony_parser *mx_turn_parser(const mx_turn *t);
/* One message as its pieces delivered it; valid until the turn is freed. */
typedef struct mx_turn_message {
    mx_piece_kind kind;
    bool preamble, cut; /* as mx_piece has them */
    const char *text;
    size_t size;
    int call; /* of TOOL_CALL: which of the result's tool_calls */
} mx_turn_message;
/* The messages that are over, in order; a raw turn tells none. */
int mx_turn_message_count(const mx_turn *t);
mx_turn_message mx_turn_message_at(const mx_turn *t, int index);
/* Text of the message that a stop string cut; *size bytes of it. */
const char *mx_turn_cut_text(const mx_turn *t, size_t *size);

/* Submits the request, steps until it is over and pushes its tokens into `t`, for programs with one request at a
 * time. Stops early when *interrupted (may be NULL) becomes non-zero: finish is then MX_TURN_CANCELLED, not an error.
 */
mx_status mx_turn_run(mx_turn *t, mx_engine *engine, const mx_request *request,
                      const volatile sig_atomic_t *interrupted, mx_error *error);

/* The tokens that end an answer: <|return|>, <|call|>, <|endoftext|> (where the vocabulary has them) and the
 * checkpoint's own eos tokens but <|end|>, behind which an answer goes on. Appends to `out`; false: no memory. */
struct mx_config;
bool mx_turn_stop_tokens(const mx_tokenizer *t, const struct mx_config *config, mx_ids *out);

#endif
