#ifndef MX_TURN_STOP_H
#define MX_TURN_STOP_H

#include <stdbool.h>

#include "base/bytes.h"
#include "base/status.h"

/* Finds stop strings in a text that arrives in pieces. Text that may be the beginning of a stop string is held back
 * until that is decided. Where the pieces are cut makes no difference: the stop string that is complete first wins,
 * of several that end on the same byte the longest; it and all behind it are dropped. */
typedef struct mx_stop_string {
    mx_bytes text;
    size_t *border; /* [text.size]: of the beginning that ends here, its longest beginning that is its end, too */
    size_t matched; /* so many bytes of it end the text so far; fewer than all */
} mx_stop_string;

typedef struct mx_stop {
    mx_stop_string *strings; /* owned */
    int count;
    mx_bytes held; /* shorter than the longest string */
    int found;     /* which string it was, once one was found */
} mx_stop;

/* Copies the strings. Empty ones are MX_INVALID_ARGUMENT. */
mx_status mx_stop_create(const char *const *strings, int count, mx_stop *out, mx_error *error);
void mx_stop_free(mx_stop *s); /* all zeros allowed */

/* Appends to `out` what may be shown after `size` more bytes. *found: a stop string is complete; what was before it is
 * in `out`, nothing is held any more. false: no memory. */
bool mx_stop_add(mx_stop *s, const char *text, size_t size, mx_bytes *out, bool *found);

/* The text is over: appends what is still held, which was no stop string after all. */
bool mx_stop_end(mx_stop *s, mx_bytes *out);

#endif
