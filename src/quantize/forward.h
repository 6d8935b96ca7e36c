#ifndef MX_QUANTIZE_FORWARD_H
#define MX_QUANTIZE_FORWARD_H

#include "model/model.h"
#include "quantize/text.h"

/* Runs the windows of a text through a model, in fp32 on the CPU, each at once and for itself. */
typedef struct mx_forward {
    mx_backend *backend;
    const mx_config *config;
    int max_rows, max_wanted;
    int first, last; /* layers that steps run; 0 both: all */
    float *residual; /* [tokens of the text, layers + 1, hidden], by steps; owned; NULL: first is 0 */
    bool keep;       /* steps of the whole model leave the residual stream there, with which others begin */
    float *stream;   /* [tokens of the text, hidden], instead: every step leaves the residual stream behind its last
                        layer there, and begins with what is there where first is not 0; owned; NULL: none */
    int64_t pages;   /* of a layer */
    int32_t *table;  /* [layers, pages] */
    mx_row *row;     /* [max_rows] */
    mx_sequence_view *view;
} mx_forward;

/* `max_rows`: of a step; no window is longer. Weights, pool and observer (may be NULL) are borrowed. */
mx_status mx_forward_open(const mx_weights *weights, mx_pool *pool, const mx_observer *observer, int max_rows,
                          int max_wanted, mx_forward *out, mx_error *error);
/* Room for the residual stream of `tokens` tokens. */
mx_status mx_forward_keep(mx_forward *f, int64_t tokens, mx_error *error);
/* The same for f->stream alone. */
mx_status mx_forward_resume(mx_forward *f, int64_t tokens, mx_error *error);
void mx_forward_close(mx_forward *f); /* all zeros allowed */

/* One step with the windows from `at` on that it holds; *next: the first that it does not. `every`: the logits of
 * tokens whose place in `w` is a multiple of it are wanted (backend->ops->logits, in ascending order), as far as the
 * token after them is in the same window; 0: none but that of the last row. */
mx_status mx_forward_step(mx_forward *f, const mx_passages *w, int at, int64_t every, int *next, int *wanted,
                          mx_error *error);

/* Why does a model compute what is not finite? MX_INVALID_FILE, in words that name the first of its weights that is NaN
 * or infinite. `path`: the model's. */
mx_status mx_forward_not_finite(const char *path, const mx_weights *weights, mx_error *error);

/* Is the prediction of the token at place i wanted? */
static inline bool mx_forward_wanted(int64_t i, int64_t end, int64_t every) {
    return every && i % every == 0 && i + 1 < end;
}

#endif
