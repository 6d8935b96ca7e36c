#ifndef MX_EVALUATE_WINDOWS_H
#define MX_EVALUATE_WINDOWS_H

#include "evaluate/evaluate.h"

/* What of texts is computed and scored: all token ids in one row, and windows on them. */
typedef struct mx_window {
    int64_t begin, end; /* tokens of the window; the last has no row, for nothing is asked behind it */
    int64_t first;      /* tokens first .. end - 1 are scored; first > begin */
    int64_t scored;     /* of all windows before */
} mx_window;

typedef struct mx_windows {
    mx_protocol protocol;
    int64_t window, stride; /* in force */
    mx_ids ids;
    mx_window *window_at; /* [count] */
    int64_t count, capacity;
    int64_t scored; /* tokens of all windows */
    int64_t bytes;  /* of the scored tokens' text */
    uint64_t hash;  /* of the ids and of what of them is scored */
} mx_windows;

/* `longest`: most tokens of a window; `vocab`: of the model. MX_INVALID_ARGUMENT: a protocol without sense, or nothing
 * that can be scored. Free with mx_windows_free, after a failure, too. */
mx_status mx_windows_make(const mx_tokenizer *tokenizer, const mx_evaluate_text *texts, int count,
                          const mx_evaluate_options *options, int64_t longest, int32_t vocab, mx_windows *out,
                          mx_error *error);
void mx_windows_free(mx_windows *w);

/* The parts of that, for tests. begin: sets protocol, window and stride. add: windows on the ids from `begin` on, of
 * which first .. end - 1 are scored. end: counts, hashes, and cuts to `most` scored tokens (0: all). */
mx_status mx_windows_begin(const mx_evaluate_options *options, int64_t longest, mx_windows *out, mx_error *error);
mx_status mx_windows_add(mx_windows *w, int64_t begin, int64_t first, mx_error *error);
void mx_windows_end(mx_windows *w, int64_t most);

/* "strided, window 2048, stride 1024" */
void mx_windows_describe(const mx_windows *w, char *out, size_t size);

#endif
