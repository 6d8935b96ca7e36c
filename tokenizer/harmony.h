#ifndef MX_HARMONY_H
#define MX_HARMONY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "tokenizer/tokenizer.h"

/* The harmony format: conversations to ids (render) and ids to messages (parse).
 * Exact behaviour: openai-harmony 0.0.8 (its conformance sets pass). */

/* ---- render -------------------------------------------------------------------------------------------------- */
typedef struct mx_render_options {
    bool auto_drop_analysis; /* the library's rule: drop analysis before the first final when the last assistant
                                message is a final */
    bool drop_all_analysis;  /* what mxrun chat wants: drop every analysis message before the LAST final (analysis
                                after it, an ongoing tool loop, stays) */
    bool training;           /* last token <|return|> instead of <|end|> after an assistant final */
    const char *next_role;   /* "assistant": ends in <|start|>assistant; NULL: ends after the last message */
} mx_render_options;

/* Renders {"messages": [...]} (the JSON of the harmony library, as in render_golden.jsonl) and appends the ids. */
mx_status mx_harmony_render(const mx_tokenizer *t, const mx_json *conversation, const mx_render_options *options,
                            mx_ids *out, mx_error *error);

/* The JSON schema of a function's parameters as TypeScript (harmony's json_schema_to_typescript). */
mx_status mx_schema_to_typescript(const mx_json *schema, mx_bytes *out, mx_error *error);

/* ---- parse --------------------------------------------------------------------------------------------------- */
/* One finished message. Strings are UTF-8, owned by the parser, NUL-terminated (sizes count, they may hold NUL);
 * NULL where absent. */
typedef struct mx_harmony_message {
    const char *role, *name, *channel, *recipient, *content_type;
    mx_bytes content;          /* text, invalid UTF-8 replaced */
    int64_t first_id, last_id; /* the tokens [first, last) it was made of, counted from the first one pushed */
} mx_harmony_message;

/* What one pushed token did, as the library's streaming view tells it. Valid until the next push. */
typedef struct mx_harmony_delta {
    const char *role, *channel, *recipient; /* of the message being read, outside content NULL but for the role hint.
                                               Lenient: of the message that `text` belongs to, where there is text;
                                               a token that ends a message may bring its last text */
    const char *text;                       /* content this token completed; NULL: none */
    size_t text_size;
} mx_harmony_delta;

typedef struct mx_harmony_parser mx_harmony_parser;

typedef enum mx_harmony_mode {
    MX_HARMONY_STRICT,     /* the library's strict = true */
    MX_HARMONY_NOT_STRICT, /* the library's strict = false */
    MX_HARMONY_LENIENT,    /* mxrun's own: never fails (but for memory) and never loses text. What cannot be parsed is
                              delivered as content of the channel it appeared in, or, outside every header, of an
                              assistant's message on "final"; harmony_lenient.c tells the rules. <|endoftext|> ends a
                              message too. The messages' token ranges follow each other without a gap */
} mx_harmony_mode;

/* `role` is the role hint ("assistant" when the prompt ended in <|start|>assistant), or NULL. */
mx_status mx_harmony_parser_create(const mx_tokenizer *t, mx_harmony_mode mode, const char *role,
                                   mx_harmony_parser **out, mx_error *error);
void mx_harmony_parser_free(mx_harmony_parser *p);
mx_status mx_harmony_push(mx_harmony_parser *p, int32_t id, mx_harmony_delta *delta, mx_error *error);
/* The text is over: a message still open becomes a message. */
mx_status mx_harmony_end(mx_harmony_parser *p, mx_harmony_delta *delta, mx_error *error);
int mx_harmony_message_count(const mx_harmony_parser *p);
const mx_harmony_message *mx_harmony_message_at(const mx_harmony_parser *p, int index);

#endif
