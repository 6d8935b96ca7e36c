#ifndef MX_BATCH_LINES_H
#define MX_BATCH_LINES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"

/* The lines of a file or a pipe, with their numbers and hashes. */
enum { MX_LINE_LIMIT = 256 << 20 }; /* bytes of a line that are looked at */

typedef struct mx_line {
    int64_t number;   /* from 1 */
    const char *text; /* without \n or \r\n, and without a byte order mark; valid until the next call */
    size_t size;
    uint64_t hash;
    bool too_long; /* only its first MX_LINE_LIMIT bytes are here */
} mx_line;

typedef struct mx_lines {
    const char *path; /* borrowed; as in messages */
    int fd;
    bool regular; /* can be read twice */
    int64_t start;
    uint64_t seed; /* of the hashes */
    mx_bytes buffer;
    size_t begin, scanned; /* of the line that is next; how far it holds no newline */
    int64_t number;
    bool ended;
} mx_lines;

typedef enum mx_next { MX_NEXT_LINE, MX_NEXT_END, MX_NEXT_LATER } mx_next;

mx_status mx_lines_open(mx_lines *lines, const char *path, uint64_t seed, mx_error *error);
void mx_lines_close(mx_lines *lines); /* all zeros with fd -1 allowed */
/* From the first line again; regular files only. */
mx_status mx_lines_rewind(mx_lines *lines, mx_error *error);

/* The next line that is not blank. MX_NEXT_LATER: a pipe holds no whole line now; with `wait` only after a fifth of a
 * second or a signal: one that came just before cannot be missed, whichever thread had it. */
mx_status mx_lines_next(mx_lines *lines, bool wait, mx_line *line, mx_next *out, mx_error *error);

#endif
