#ifndef MX_MASKS_H
#define MX_MASKS_H

#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/threads.h"
#include "engine/task.h"

/* What may be drawn for each of a step's draws, as bits of tokens. */
typedef struct mx_mask {
    const mx_task *task;
    bool made, narrowed; /* narrowed: something is forbidden */
    double seconds;      /* that it took */
} mx_mask;

typedef struct mx_masks {
    mx_mask *mask;  /* [most], by draw */
    uint32_t *bits; /* [most][words] */
    int words;
    int32_t vocab;
    int *job;     /* [most] draws whose masks are asked for in this step */
    int added;    /* of them */
    int first;    /* of them, those that the thread did not begin */
    double price; /* of a mask lately, seconds */
    bool overlap; /* there are processors that the pool does not have */
    cpu_set_t processors;
    pthread_t thread; /* started when it is first wanted */
    bool started, locked;

    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int next, count; /* of the jobs: the next that the thread may begin */
    bool busy, stop;
} mx_masks;

/* All zeros before. `threads`: of the pool. false: no memory, or no lock; free it in any case. */
bool mx_masks_init(mx_masks *m, int most, int32_t vocab, int threads);
void mx_masks_free(mx_masks *m);

/* Of a step, in this order, by the thread that steps. What its draws will be: */
void mx_masks_add(mx_masks *m, const mx_task *task, int draw);
void mx_masks_begin(mx_masks *m);              /* they are made from now on; their tasks stay as they are */
void mx_masks_end(mx_masks *m, mx_pool *pool); /* they are made; pool may be NULL */
/* The mask of a draw, made now where it was not. NULL: everything may be drawn. The caller may clear bits. */
uint32_t *mx_masks_take(mx_masks *m, const mx_task *task, int draw);

#endif
