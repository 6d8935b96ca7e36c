#ifndef MX_ENGINE_STATE_H
#define MX_ENGINE_STATE_H

#include <pthread.h>

#include "engine/engine_internal.h"
#include "engine/masks.h"
#include "engine/scheduler.h"
#include "engine/task.h"

/* What the files of the engine share: engine.c has the calls that any thread may make, queue.c who runs and who waits,
 * step.c the step, plan.c its rows and pages, draw.c what is drawn from them, ahead.c the step where a device computes
 * while the host does something else.
 *
 * The lock guards what stands below it here and in mx_task. It is not held during a forward pass, nor while keys and
 * values are looked for, nor while a constraint is called: all else belongs to the thread that steps. */

enum { MX_TASK_BUCKETS = 4096 };

/* A step that was queued and whose draws were not fetched yet (ahead.c). */
typedef struct mx_flight {
    mx_task **task; /* [max_running] those with rows in it; NULL: one that does not want them any more */
    int count;      /* 0: nothing is under way */
    int draws;
    int decode_rows, prompt_rows;
    int64_t allowed; /* of the scheduler, when it planned these */
    double queued;   /* mx_seconds */
} mx_flight;

/* A row whose logits a request's prompt_logits is to see. */
typedef struct mx_observed_row {
    mx_task *task;
    int64_t position;
    int wanted; /* of the step's */
} mx_observed_row;

enum { MX_OBSERVED_COPIES = 32 }; /* rows that are fetched from a device before they are looked at together */

struct mx_engine {
    mx_engine_parts parts;
    mx_kv *kv;
    int full_layers, sliding_layers;

    mx_task **running; /* [max_running], the most senior first */
    int running_count;
    mx_candidate *candidate; /* [max_running] */
    mx_task **planned;       /* [max_running] those with rows in this step */
    mx_row *row;             /* [batch_tokens] */
    mx_sequence_view *view;  /* [max_running] */
    mx_draw *draw;           /* [max_running] of this step: the next token of those that have one */
    mx_masks masks;          /* for them */
    uint32_t *tokens;        /* bits of the ids that have one; NULL: all */
    mx_lookup *lookup;       /* [max_running]; NULL: nothing is guessed ahead */
    mx_lookup **free_lookup; /* stack of those that no running task has */
    int free_lookups;
    mx_observed_row *observed; /* [max_wanted] of this step: rows that prompt_logits is to see */
    float *observed_copy;      /* [MX_OBSERVED_COPIES][vocab] of a device's; NULL: not wanted so far */
    mx_scheduler scheduler;
    mx_draft_cost draft_cost;
    double last_seconds;   /* of the step before */
    mx_flight flight;      /* of a backend that runs ahead */
    double last_completed; /* mx_seconds when its results were there */
    bool carefully;        /* something failed: the next step does not run ahead, and finds out what */
    mx_task *changed;      /* have news for mx_poll */
    mx_engine_stats count; /* as far as this thread counts */

    pthread_mutex_t lock;
    pthread_cond_t work;                           /* something was submitted */
    mx_task *bucket[MX_TASK_BUCKETS];              /* all tasks, by their handles */
    mx_heap queue;                                 /* tasks that wait for nobody but to run, the most senior first */
    mx_heap timed;                                 /* those with a deadline that have not ended, the next one first */
    mx_task *first_with_events, *last_with_events; /* in the order in which they got them */
    mx_task *to_end;                               /* cancelled since the last step */
    mx_task *polled;                               /* whole: freed by the next mx_poll */
    mx_handle newest;
    int64_t open, waiting; /* tasks that have not ended; of them, wait to run */
    int64_t events;        /* that wait for mx_poll */
    bool stepping;
    uint64_t kv_bytes_used;
    mx_engine_stats stats;
    int event_fd; /* readable while events > 0 */
};

/* ---- queue.c --------------------------------------------------------------------------------------------------------
 */
void mx_queue_init(mx_engine *e);

/* With the lock held. */
void mx_queue_add(mx_engine *e, mx_task *task);
void mx_queue_remove(mx_engine *e, mx_task *task);       /* in the thread that steps */
void mx_queue_add_deadline(mx_engine *e, mx_task *task); /* where it has one */
void mx_queue_forget_deadline(mx_engine *e, mx_task *task);
mx_task *mx_queue_take_overdue(mx_engine *e, double now); /* its deadline is forgotten; NULL: there is none */

/* Of the thread that steps. */
void mx_queue_admit(mx_engine *e);                   /* lets those run that can */
void mx_queue_set_back(mx_engine *e, mx_task *task); /* one that runs waits again */
void mx_queue_stop_running(mx_engine *e, mx_task *task);

/* ---- step.c ---------------------------------------------------------------------------------------------------------
 */
void mx_task_has_news(mx_engine *e, mx_task *task);
/* A running task ends. `keep`: what was computed is right, as far as it goes. */
void mx_task_end(mx_engine *e, mx_task *task, bool keep);
void mx_task_fail(mx_engine *e, mx_task *task, const mx_error *error, bool keep);
/* From the choice of rows, at mx_seconds `start` or a little later, to their tokens. */
void mx_step_at_once(mx_engine *e, double start);

/* ---- plan.c ---------------------------------------------------------------------------------------------------------
 */
/* Sets the rows of all that run, for a step that began at `start`. */
void mx_plan_rows(mx_engine *e, double start);
/* Pages for them, behind what is under way. false: there are not enough. */
bool mx_plan_fits(mx_engine *e);
/* Pages for them while nothing is under way; the most junior ones are set back where there are not enough. */
void mx_plan_pages(mx_engine *e);

/* ---- draw.c ---------------------------------------------------------------------------------------------------------
 */
/* The rules for the token behind the known ones, which row `wanted` says. `draw`: of the engine's. */
void mx_draw_prepare(mx_engine *e, const mx_task *task, mx_draw *draw, int wanted);
/* What becomes of a drawn token: rejected are ids that have none, and what the constraint rejects, which sees the
 * others.
 */
mx_verdict mx_draw_verdict(const mx_engine *e, const mx_task *task, int32_t token);
/* It was rejected: it is masked out, in this draw and in later ones for the same position, and so are all ids that have
 * no token. Fails when there were too many. */
mx_status mx_draw_rejected(mx_engine *e, mx_task *task, mx_draw *draw, mx_error *error);
/* The token behind the known ones is known. true: the task finishes with it. */
bool mx_draw_known(mx_engine *e, mx_task *task, const mx_sampled *sampled, mx_verdict verdict);
/* Of so many fetched draws: `status` where their step failed, MX_OK where only some of them did. */
mx_status mx_draw_step_status(const mx_engine *e, int draws, mx_status status);

/* ---- observe.c ------------------------------------------------------------------------------------------------------
 */
/* With the lock held: memory for what a step needs to show logits. false: there is none. */
bool mx_observe_prepare(mx_engine *e);
/* Shows the logits of these tasks' planned and computed rows to those who want to see them. */
mx_status mx_observe(mx_engine *e, mx_task **tasks, int count, mx_error *error);

/* ---- ahead.c --------------------------------------------------------------------------------------------------------
 */
void mx_step_ahead(mx_engine *e, double start);    /* mx_step_at_once, but that results come a step later */
void mx_ahead_forget(mx_engine *e, mx_task *task); /* its rows that are computed now are not wanted */

/* ---- engine.c -------------------------------------------------------------------------------------------------------
 */
void mx_task_end_constraint(mx_task *task);
void mx_engine_change_events(mx_engine *e, int64_t count); /* with the lock held: so many more wait */

#endif
