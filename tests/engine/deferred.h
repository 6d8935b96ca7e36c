#ifndef DEFERRED_H
#define DEFERRED_H

#include "model/model.h"

/* A backend that runs ahead (mx_backend_ops.draw), made of one that does not: it does everything in the order in which
 * it was queued, but as late as it may, when somebody waits for it. What it is given is copied where the contract says
 * so and nowhere else, and what is not fetched yet is no token. */

/* What it did, and how it is to do it. */
typedef struct deferred_device {
    int64_t steps, draws; /* done */
    int64_t drawn_rows;   /* rows whose token was not known when they were queued */
    int64_t under_way;    /* most steps that were queued and not done */
    int64_t lost_rows;    /* of drawn_rows, those of draws that failed */
    int fail_queue_in;    /* the call of `step` that fails, counted down; 0: none */
    int fail_draw_in;     /* the call of `draw` likewise */

    /* With wait_until, a device that computes beside the host, by mx_seconds: a step takes so long from when it was
     * queued or the one before was done, and who asks for its results waits until then. */
    double step_seconds, row_seconds;
    void (*wait_until)(double seconds);
} deferred_device;

/* `inner` becomes its own. `config` is borrowed. */
mx_backend *deferred_create(mx_backend *inner, const mx_config *config);
deferred_device *deferred_device_of(mx_backend *deferred);
const mx_backend *deferred_inner(const mx_backend *deferred);

#endif
