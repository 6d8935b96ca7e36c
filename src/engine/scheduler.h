#ifndef MX_SCHEDULER_H
#define MX_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

/* Which rows the next step computes. It knows numbers alone: no tokens, no pages, no locks.
 *
 * Every request that decodes gets its row. What is left of the step's budget goes to prompts: of tokens,
 * `batch_tokens`; of time, so that a step with decoders in it ends within the larger of 3 pure decode steps and 250 ms,
 * but prompts get at least 30 % of it. Higher priorities first; among equals prompts that were begun before those that
 * were not, and the one that came first, but a short prompt behind a long one gets a share of each step (fair: by
 * tokens). How long rows take is learnt from the steps themselves. */

typedef struct mx_candidate {
    int64_t unknown; /* rows until it decodes: tokens that are known and not computed; 1 for one that decodes */
    bool decodes;
    int drafted;     /* rows more that it would like, behind its own */
    int priority;    /* the higher go first */
    int64_t order;   /* of arrival */
    int64_t granted; /* rows that were given to it so far, for fairness */
    int rows;        /* out: of this step, `drafted` ones included; 0: none */
} mx_candidate;

typedef struct mx_scheduler {
    int batch_tokens;
    double least_seconds;  /* a step with decoders may always take so long: 0.25 */
    double decode_seconds; /* of a step that only decodes; 0: not known yet */
    int64_t chunk;         /* prompt rows beside decoders that kept within the time */
} mx_scheduler;

void mx_scheduler_init(mx_scheduler *s, int batch_tokens);

/* Sets every candidate's `rows`. Returns the rows of all: at most batch_tokens, at least 1 when there are candidates.
 */
int mx_scheduler_plan(mx_scheduler *s, mx_candidate *candidate, int count);

/* What the planned step took, of so many rows. */
void mx_scheduler_measured(mx_scheduler *s, int decode_rows, int prompt_rows, double seconds);

#endif
