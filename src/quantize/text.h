#ifndef MX_QUANTIZE_TEXT_H
#define MX_QUANTIZE_TEXT_H

#include "tokenizer/tokenizer.h"

/* A calibration text as windows of token ids, none of which sees another. */
typedef struct mx_passages {
    mx_ids ids;
    int64_t *first; /* [count + 1] window i is ids.data[first[i] .. first[i + 1]) */
    int count;
} mx_passages;

/* At most `tokens` ids in windows of at most `window`. A path that ends in .jsonl: one JSON object a line, from the
 * first on, with "text", or "messages" (roles system, developer, user, assistant; "content" is a string, an assistant's
 * "reasoning_content" or "thinking", too), which are rendered as a harmony conversation; each begins a window. Any
 * other: UTF-8 text, from which the windows are taken in equal distances where it is longer than they are together.
 * MX_INVALID_FILE: no such text, or too short for a window of 2 tokens. */
mx_status mx_passages_read(const char *path, const mx_tokenizer *tokenizer, int64_t tokens, int64_t window,
                           mx_passages *out, mx_error *error);
void mx_passages_free(mx_passages *w); /* all zeros allowed */

#endif
