#ifndef MX_TASK_H
#define MX_TASK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/heap.h"
#include "engine/kv.h"
#include "engine/mxrun.h"
#include "engine/speculate.h"
#include "model/model.h"

/* A submitted request: copies of what the caller gave, its progress, and what it produced until mx_poll takes it.
 * Everything is allocated when it is submitted, so that a step need not.
 *
 * It waits, runs (then its sequence holds pages), perhaps waits again when it was set back, and ends. Until it has
 * ended it belongs to the thread that steps, but for the fields under the lock; afterwards to mx_poll. */

enum { MX_REJECTIONS = 64 }; /* tokens that a constraint may refuse for one position */

/* How often each token occurred, as a list of distinct ones. */
typedef struct mx_tally {
    mx_token_count *item;
    int64_t count;
    int32_t *index; /* [vocab]: place in the list plus 1, 0: not in it; NULL: this tally is not kept */
} mx_tally;

typedef struct mx_task {
    mx_handle handle;   /* ascending in the order of arrival */
    mx_request request; /* its pointers are to the copies below */
    int32_t *stop;
    mx_logit_bias *bias;
    mx_tally seen, generated;
    int64_t limit;   /* most tokens it may generate */
    double deadline; /* mx_seconds at which it ends; 0: none */
    double submit_time;

    /* By position, [prompt + limit]. Tokens behind `known` are guesses; what is said of a token is there when it was
     * drawn or, with prompt_logprobs, computed. */
    int32_t *tokens;
    float *logprob;
    mx_alternative *top; /* [top_count] each; NULL: not wanted */
    int top_count;

    /* of the step's thread */
    mx_sequence sequence;
    int64_t known;      /* prompt and generated tokens */
    int64_t scored;     /* of the prompt, tokens whose logprob is there; all of it unless prompt_logprobs. Never
                           less than before, nor is what is there written again: mx_poll may have it */
    int64_t observed;   /* the first position of the prompt that prompt_logits has still to see; prompt_count: none */
    bool started;       /* has had a first step */
    bool reading;       /* runs, but has no rows before what the store has of its prefix was read */
    bool computing;     /* has drawn nothing since it runs: others may wait for its prefix */
    int64_t turn;       /* of mx_candidate */
    int rows;           /* of this step */
    int drafted;        /* tokens guessed behind the known ones */
    int matched;        /* tokens that they were found by */
    int first_wanted;   /* of the rows whose logits are wanted */
    int draw;           /* of the engine's; -1: none in this step */
    int ahead;          /* rows behind the sequence's that are computed now (ahead.c); with `draw`, the last of
                           them says the token behind the known ones */
    int rejected_count; /* tokens that the constraint refused for the position behind the known ones */
    int32_t rejected[MX_REJECTIONS];
    struct mx_task *waits_for; /* runs, and computes what this one begins with; NULL: nobody is waited for */
    int64_t wait_until;        /* positions that it must have computed, or INT64_MAX: until it draws */
    mx_heap waiters;           /* those that wait for this one, by `wait_until` */
    mx_lookup *lookup;         /* while it runs, one of the engine's; NULL: nothing is guessed */
    mx_draft_luck luck;
    double start_time, first_time;
    bool ending, failed; /* was ended in this step, with ... */
    mx_finish finish;
    struct mx_usage usage;
    mx_error error; /* failed */
    bool changed;   /* is in the list of those with news for mx_poll */
    struct mx_task *next_changed;

    /* under the engine's lock */
    int64_t visible, polled;                           /* positions that mx_poll may take and has taken */
    bool waiting, timed, cancelled, ended, has_events; /* timed: is in the engine's `timed` */
    mx_heap_link place;                                /* while it waits: in the engine's `queue` or in `waiters` */
    mx_heap_link by_deadline;
    struct mx_task *next_with_events;
    struct mx_task *next_to_end;
    struct mx_task *next_of_bucket; /* and, once all was polled, of those to be freed */
} mx_task;

typedef struct mx_task_options {
    mx_kv *kv;
    int64_t context;
    int32_t vocab;
} mx_task_options;

/* Checks and copies a request. MX_INVALID_ARGUMENT: something in it is wrong; MX_CONTEXT_FULL: the prompt leaves no
 * room for a token; MX_NO_MEMORY. Free with mx_task_free. */
mx_status mx_task_create(const mx_request *request, const mx_task_options *options, mx_task **out, mx_error *error);
void mx_task_free(mx_task *task); /* NULL allowed; the constraint is not its business */

/* The first position whose row is wanted, for it says what comes next: the last known token's, with prompt_logprobs
 * that before the first token that was not scored yet, with prompt_logits the first that was not observed yet. So many
 * known tokens may come out of the cache. */
int64_t mx_task_wanted_from(const mx_task *task);
/* Are there rows of the prompt, beside the last, whose logits are still to be looked at? */
bool mx_task_is_scored(const mx_task *task);

/* Tokens that have no row yet, one that is being drawn too. */
int64_t mx_task_unknown(const mx_task *task);
bool mx_task_decodes(const mx_task *task); /* its next row is of its last token */

/* The rules for the token at `position`. Pointers are into the task. */
mx_sample_spec mx_task_sample_spec(const mx_task *task, int64_t position);

/* Counts a token of the answer. Allocates nothing. */
void mx_task_count(mx_task *task, int32_t token);
bool mx_task_may_stop(const mx_task *task); /* stop tokens may be drawn: min_tokens are there */
bool mx_task_stops_at(const mx_task *task, int32_t token);

/* The higher priority, then the one that came first. */
bool mx_task_is_senior(const mx_task *a, const mx_task *b);

#endif
