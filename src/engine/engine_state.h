#ifndef MX_ENGINE_STATE_H
#define MX_ENGINE_STATE_H

#include <pthread.h>

#include "engine/engine_internal.h"
#include "engine/scheduler.h"
#include "engine/task.h"

/* What the files of the engine share: engine.c has the calls that any thread may make, queue.c who runs and who waits,
 * step.c the step.
 *
 * The lock guards what stands below it here and in mx_task. It is not held during a forward pass, nor while keys and
 * values are looked for, nor while a constraint is called: all else belongs to the thread that steps. */

enum { MX_TASK_BUCKETS = 4096 };

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
    uint32_t *mask;          /* [max_running][mask_words] for them */
    int mask_words;
    mx_lookup *lookup;       /* [max_running]; NULL: nothing is guessed ahead */
    mx_lookup **free_lookup; /* stack of those that no running task has */
    int free_lookups;
    mx_scheduler scheduler;
    mx_draft_cost draft_cost;
    double last_seconds;   /* of the step before */
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

/* ---- engine.c -------------------------------------------------------------------------------------------------------
 */
void mx_task_end_constraint(mx_task *task);
void mx_engine_change_events(mx_engine *e, int64_t count); /* with the lock held: so many more wait */

#endif
