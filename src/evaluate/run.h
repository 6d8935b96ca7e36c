#ifndef MX_EVALUATE_RUN_H
#define MX_EVALUATE_RUN_H

#include "evaluate/statistics.h"
#include "evaluate/windows.h"

/* mx_evaluate once the windows are made: what it measures of each token comes back, too. `tokenizer`: a hash of the
 * vocabulary. Free `measured` in any case. */
mx_status mx_evaluate_windows(mx_engine *engine, const mx_windows *windows, uint64_t tokenizer,
                              const mx_evaluate_options *options, mx_measured *measured, mx_evaluation *out,
                              mx_error *error);
void mx_measured_free(mx_measured *m);

#endif
