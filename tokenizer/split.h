#ifndef MX_SPLIT_H
#define MX_SPLIT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

/* The split pattern of a tokenizer.json, compiled. Immutable; each thread brings its own mx_split_state. */
typedef struct mx_splitter mx_splitter;

mx_status mx_splitter_create(const char *pattern, size_t size, mx_splitter **out, mx_error *error);
void mx_splitter_free(mx_splitter *s); /* NULL allowed */

/* Walks over one text, which must be valid UTF-8. */
typedef struct mx_split_state {
    const mx_splitter *splitter;
    const char *text;
    size_t size, at;
    size_t match_begin, match_end; /* a match found behind a stretch that matches nothing */
    const void *code;
    void *match_data, *match_context;
} mx_split_state;

mx_status mx_split_open(mx_split_state *state, const mx_splitter *s, mx_error *error);
void mx_split_close(mx_split_state *state);
void mx_split_begin(mx_split_state *state, const char *text, size_t size);

/* The next piece, which begins where the last one ended; *size is 0 at the end of the text. */
mx_status mx_split_next(mx_split_state *state, const char **piece, size_t *size, mx_error *error);

#endif
