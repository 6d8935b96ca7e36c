#ifndef MX_SCHEDULER_H
#define MX_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

/* Which rows the next step computes. It knows numbers alone: no tokens, no pages, no locks.
 *
 * Every request that decodes gets its row. What is left of the step's budget goes to prompts: of tokens,
 * `batch_tokens`; of time, so that a step with decoders in it ends within the larger of 3 pure decode steps and
 * `least_seconds`. Three quarters of that are aimed at, which leaves prompts more than half of the time. How long rows
 * take is learnt from the steps themselves: now and then, and when the number of decoders has changed, a step only
 * decodes, to measure the others by. Steps without decoders have no limit but the tokens.
 *
 * What the step has taken before its rows are computed (spent: ending, admitting, reading from the disk) is taken from
 * the prompts' time, so that all of it keeps the limit.
 *
 * Rows whose logits are kept are few: one of each request that has any, and some more. Where these are all given, a
 * prompt whose every row is wanted waits, and other prompts have its rows.
 *
 * Higher priorities go first. Among equals the prompt that came first gets half of the rows, and the other half goes to
 * those that are nearest to their end: neither does a short prompt wait for the long one before it, nor a long one for
 * all the short ones behind it. */

typedef struct mx_candidate {
    int64_t unknown; /* tokens that are known and not computed, at least 1; 1: it decodes */
    int64_t order;   /* of arrival */
    int64_t turn; /* in and out: of its last row in a step that had none for some decoders, 0: none; the least first */
    int priority; /* the higher go first */
    int drafted;  /* rows more that it would like, behind its own */
    bool scored;  /* the logits of all its rows are kept, not of the last alone ... */
    int64_t unscored; /* ... but for its first so many */
    int rows;         /* out: of this step, drafted ones included; 0: none */
} mx_candidate;

typedef struct mx_scheduler {
    int batch_tokens;
    int max_wanted;       /* rows whose logits are kept */
    double least_seconds; /* a step with decoders may always take so long */

    double decode_seconds; /* of a step that only decodes; 0: not known yet */
    int decode_rows;       /* that it had */
    int since_decode;      /* steps since it was measured */
    int64_t chunk;         /* prompt rows beside decoders */
    int64_t allowed;       /* of them in this step, the time that was spent before taken off */
    int64_t too_many;      /* of them were too slow, when last tried */
    int since_too_many;    /* steps */
    int64_t turn;          /* the newest of a candidate */
    double credit;         /* rows that prompts are owed, where decoders alone could fill the steps */
} mx_scheduler;

/* least_seconds 0: 0.25. max_wanted: at least batch_tokens or as many as there are ever candidates. */
void mx_scheduler_init(mx_scheduler *s, int batch_tokens, int max_wanted, double least_seconds);

/* Sets every candidate's `rows`, and `turn`, which it brings back next time. Returns the rows of all: at most
 * batch_tokens, at least 1 when there are candidates. `spent`: seconds of this step that are over. */
int mx_scheduler_plan(mx_scheduler *s, mx_candidate *candidate, int count, double spent);

/* What a step took: rows that decoded, were drafted, and were of prompts. Where another was planned since, `allowed`
 * must be again what it was for this one. */
void mx_scheduler_measured(mx_scheduler *s, int decode_rows, int drafted_rows, int prompt_rows, double seconds);

#endif
