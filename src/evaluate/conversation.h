#ifndef MX_EVALUATE_CONVERSATION_H
#define MX_EVALUATE_CONVERSATION_H

#include "evaluate/evaluate.h"

/* Appends a text as MX_PROTOCOL_HARMONY has it: the prompt, then from out [*answer] on the answer's text, which ends
 * the ids. Without a date, so that it is the same every day. MX_INVALID_FILE: messages that are none; MX_UNSUPPORTED:
 * a tokenizer without harmony's tokens. */
mx_status mx_evaluate_conversation(const mx_tokenizer *tokenizer, const mx_evaluate_text *text, mx_ids *out,
                                   int64_t *answer, mx_error *error);

#endif
