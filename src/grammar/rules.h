#ifndef MX_GRAMMAR_RULES_H
#define MX_GRAMMAR_RULES_H

#include "engine/mxrun.h"
#include "grammar/grammar.h"

/* What an answer in harmony must be like: which channels and recipients may open, and what stands in a message. As a
 * constraint for the engine, which knows it only as such. Thinking stays free: a grammar holds behind <|message|> of
 * the final channel, or of a tool call's arguments. */
typedef enum mx_tool_choice {
    MX_TOOLS_AUTO,     /* calls or an answer, as the model likes */
    MX_TOOLS_NONE,     /* no recipients */
    MX_TOOLS_REQUIRED, /* behind thinking only a call of one of the tools may open */
    MX_TOOLS_NAMED,    /* of this one */
} mx_tool_choice;

typedef struct mx_rules_tool {
    char *name;            /* owned; without "functions." */
    mx_grammar *arguments; /* owned; NULL: free text ("strict": false) */
} mx_rules_tool;

typedef struct mx_rules_headers mx_rules_headers;

/* Immutable once made; shared by the answers to a request, reference-counted. */
typedef struct mx_rules {
    int references;
    bool raw;         /* no harmony: `text` holds from the first token on (completions) */
    mx_grammar *text; /* owned; of the final message; NULL: free */
    mx_tool_choice choice;
    char *named;          /* owned; NAMED */
    mx_rules_tool *tools; /* [tool_count], owned */
    int tool_count;
    mx_rules_headers *headers; /* rules.c's own, made with the first constraint */
} mx_rules;
mx_rules *mx_rules_create(void); /* AUTO, no tools, nothing constrained; NULL: no memory */
mx_rules *mx_rules_keep(mx_rules *rules);
void mx_rules_free(mx_rules *rules); /* NULL allowed */
/* Does it constrain anything? Where not, no constraint is needed. */
bool mx_rules_bind(const mx_rules *rules);

/* One answer's constraint, destroyed by the engine. The rules are kept; tokenizer, vocabulary and stop tokens are
 * borrowed and must outlive it. `stop`: the tokens that end an answer (mx_turn_stop_tokens). */
mx_status mx_rules_constraint(mx_rules *rules, const mx_tokenizer *tokenizer, mx_vocabulary *vocabulary,
                              const mx_ids *stop, mx_constraint *out, mx_error *error);

#endif
