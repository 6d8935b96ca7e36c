#ifndef MX_TASK_H
#define MX_TASK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/mxrun.h"
#include "model/model.h"

/* A submitted request: copies of what the caller gave, its progress, and what it produced until mx_poll takes it.
 * Everything is allocated when it is submitted, so that a step need not. */

/* How often each token occurred, as a list of distinct ones. */
typedef struct mx_tally {
    mx_token_count *item;
    int64_t count;
    int32_t *index; /* [vocab]: place in the list plus 1, 0: not in it; NULL: this tally is not kept */
} mx_tally;

typedef struct mx_produced {
    int32_t token;
    float logprob;
} mx_produced;

typedef struct mx_task {
    mx_handle handle;
    mx_request request; /* its pointers are to the copies below */
    int32_t *prompt, *stop;
    mx_logit_bias *bias;
    mx_tally seen, generated;
    int64_t limit; /* most tokens it may generate */

    /* of the step's thread */
    bool started;
    double start_time, first_time;

    /* under the engine's lock */
    mx_produced *produced; /* [limit] */
    int64_t produced_count, polled;
    bool cancelled, ended, failed;
    mx_finish finish;
    struct mx_usage usage;
    mx_error error; /* failed */
    struct mx_task *next;
} mx_task;

/* Checks and copies a request. MX_INVALID_ARGUMENT: something in it is wrong; MX_CONTEXT_FULL: the prompt leaves no
 * room for a token; MX_NO_MEMORY. Free with mx_task_free. */
mx_status mx_task_create(const mx_request *request, int64_t context, int32_t vocab, mx_task **out, mx_error *error);
void mx_task_free(mx_task *task); /* NULL allowed; the constraint is not its business */

/* The rules for the token at `position`. Pointers are into the task. */
mx_sample_spec mx_task_sample_spec(const mx_task *task, int64_t position);

/* Counts a token of the answer. Allocates nothing. */
void mx_task_count(mx_task *task, int32_t token);
bool mx_task_stops_at(const mx_task *task, int32_t token);

#endif
