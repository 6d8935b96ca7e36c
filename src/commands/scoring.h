#ifndef MX_SCORING_H
#define MX_SCORING_H

#include "base/json.h"
#include "commands/command.h"
#include "evaluate/evaluate.h"

/* What commands that let models predict text have in common: options, the engine they want, and the texts. */

/* --protocol --window --stride --separator --tokens --base-top */
extern const struct poptOption mx_scoring_options[];
/* Into protocol, window, stride, most_tokens and base_top (0: not given) of `out`. false: the user has been told. */
bool mx_scoring_check(const mx_command *command, mx_evaluate_options *out);

/* Where none was given, the window that a model of so many positions has by default: for several models, of which the
 * one with the fewest decides. That of llama.cpp stays, for it is the protocol's. */
void mx_scoring_window(int positions, mx_evaluate_options *options);

/* An engine for windows of these sizes of the model at `path`: no more keys and values than they need, many windows in
 * one step. All else stays as it is in `out`. */
mx_status mx_scoring_engine(const char *path, const mx_evaluate_options *options, mx_engine_options *out,
                            mx_error *error);

/* The texts of files. What they point to lies in `files` and `documents`. */
typedef struct mx_corpus {
    mx_bytes *files; /* [file_count] */
    int file_count;
    mx_json_document **documents; /* [count]; NULL: the text is a part of a file */
    mx_evaluate_text *texts;      /* [count] */
    char **names;                 /* [count]; NULL: the text has the file's */
    int count, capacity;
} mx_corpus;

/* Files in order (`paths` ends in NULL); "-" is stdin. Each line of a .jsonl is a text of its own: a string, an object
 * with "text", or, for harmony, one with "messages", which stays JSON. Any other file is one text, or the parts between
 * what --separator says that are not empty. `command` warns of what is not UTF-8. Free with mx_corpus_free, also after
 * a failure. */
mx_status mx_corpus_read(const mx_command *command, const char *const *paths, mx_protocol protocol, mx_corpus *out,
                         mx_error *error);
void mx_corpus_free(mx_corpus *c); /* all zeros is allowed */

#endif
