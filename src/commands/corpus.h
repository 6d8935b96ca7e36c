#ifndef MX_CORPUS_H
#define MX_CORPUS_H

#include "base/json.h"
#include "evaluate/evaluate.h"

/* The texts of files that models are to predict. What they point to lies in `files` and `documents`. */
typedef struct mx_corpus {
    mx_bytes *files; /* [file_count] */
    int file_count;
    mx_json_document **documents; /* [count]; NULL: the text is a part of a file */
    mx_evaluate_text *texts;      /* [count] */
    char **names;                 /* [count]; NULL: the text has the file's */
    int count, capacity;
} mx_corpus;

/* Files in order; "-" is stdin. Each line of a .jsonl is a text of its own: a string, an object with "text", or, for
 * harmony, one with "messages", which stays JSON. Any other file is one text, or several with `separator` between them
 * (\n, \t and \\ mean what they do in C), of which empty ones do not count; NULL: none. Free with mx_corpus_free, also
 * after a failure. */
mx_status mx_corpus_read(const char *const *paths, int count, const char *separator, bool harmony, mx_corpus *out,
                         mx_error *error);
void mx_corpus_free(mx_corpus *c); /* all zeros is allowed */

#endif
