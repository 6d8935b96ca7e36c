#ifndef MX_RULES_PRIVATE_H
#define MX_RULES_PRIVATE_H

#include "grammar/rules.h"

/* The words of headers, of which ordinary tokens are made in whichever way: one small grammar for each place between
 * two format tokens. NULL: no word may stand there. */
typedef enum mx_header_place {
    MX_HEADER_ROLE,      /* behind <|start|>: assistant[ to=functions.NAME] */
    MX_HEADER_TO,        /* behind the prompt, which ends with the role: [ to=functions.NAME] */
    MX_HEADER_FIRST,     /* behind <|channel|>, before anything was thought */
    MX_HEADER_LATER,     /* the same where thinking is over */
    MX_HEADER_CALL,      /* the same where the recipient stands before it */
    MX_HEADER_CONSTRAIN, /* behind <|constrain|>: json */
    MX_HEADER_PLACES
} mx_header_place;

struct mx_rules_headers {
    mx_grammar *at[MX_HEADER_PLACES];
};

static const char MX_RECIPIENT[] = " to=functions."; /* and the tool's name */

/* Makes rules->headers, once; from any thread. `constrain`: the vocabulary has <|constrain|>. */
mx_status mx_rules_make_headers(mx_rules *rules, bool constrain, mx_error *error);

/* May this tool be called? */
bool mx_rules_may_call(const mx_rules *rules, const mx_rules_tool *tool);
/* Must the answer come to its point after one message of thinking: a call, or a text of the grammar? */
bool mx_rules_think_once(const mx_rules *rules);

#endif
