#ifndef DEFERRED_H
#define DEFERRED_H

#include "model/model.h"

/* A backend that runs ahead (mx_backend_ops.draw), made of one that does not: it does everything in the order in which
 * it was queued, but as late as it may, when somebody waits for it. What it is given is copied where the contract says
 * so and nowhere else, and what is not fetched yet is no token. */

typedef struct deferred_counts {
    int64_t steps, draws; /* done */
    int64_t drawn_rows;   /* rows whose token was not known when they were queued */
    int64_t under_way;    /* most steps that were queued and not done */
    int64_t lost_rows;    /* of drawn_rows, those of draws that failed */
    int fail_queue_in;    /* the call of `step` that fails, counted down; 0: none */
    int fail_draw_in;     /* the call of `draw` likewise */
} deferred_counts;

/* `inner` becomes its own. `config` is borrowed. */
mx_backend *deferred_create(mx_backend *inner, const mx_config *config);
deferred_counts *deferred_counts_of(mx_backend *deferred);
const mx_backend *deferred_inner(const mx_backend *deferred);

#endif
