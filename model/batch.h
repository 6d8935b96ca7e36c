#ifndef MX_MODEL_BATCH_H
#define MX_MODEL_BATCH_H

#include "model/model.h"

/* What every backend checks of a batch before it computes it, but for pages: rows, tokens, sequences, positions, and
 * how many logits are wanted. `drawn`: a row may have MX_TOKEN_DRAWN(d) for d below it. MX_INVALID_ARGUMENT names the
 * first that is wrong. */
mx_status mx_rows_check(const mx_config *config, const mx_batch *batch, int max_rows, int max_wanted, int drawn,
                        mx_error *error);

/* Rows of one sequence from row `start` on: how many. */
int mx_rows_run(const mx_batch *batch, int start);

#endif
