#ifndef MX_TESTS_CUDA_STEPPER_H
#define MX_TESTS_CUDA_STEPPER_H

/* Whole steps of small models in tests: models on the GPU (target.h), backends for them, sequences with page tables. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/threads.h"
#include "model/cuda/backend_private.h"
#include "tests/cuda/target.h"
#include "tests/model/golden.h"

typedef struct model {
    const char *name;
    mx_weights *weights;
    mx_cuda_weights *device;
    mx_checkpoint *goldens;
} model;
void model_open(model *m, const char *name); /* base, mqa, top1, stories */
void model_close(model *m);
void model_golden(const model *m, const char *name, golden_case *g);

enum { MAX_ROWS = 512, MAX_WANTED = 16 };

/* What a test wants otherwise than "mixed", F16, MAX_ROWS, MAX_WANTED, graphs. */
typedef struct wishes {
    const char *precision;
    mx_format kv; /* MX_F32 is 0: with `f32` false it is F16 */
    bool f32, no_graphs, cpu;
    int rows, wanted;
} wishes;

/* A backend, and pages for so many sequences of so many positions. */
typedef struct stepper {
    const model *m;
    mx_pool *pool; /* of the CPU's */
    mx_backend *backend;
    int sequences, tiles;
    int32_t *table;         /* [sequences][layers][tiles] */
    mx_sequence_view *view; /* [sequences] */
} stepper;
void stepper_open(stepper *s, const model *m, int sequences, int positions, wishes w);
void stepper_close(stepper *s);
/* The table of a sequence for a step that begins at `position`: scrambled pages, sliding layers' old tiles gone. */
void stepper_tables(stepper *s, int sequence, int position);
/* Computes rows of any sequences; fails the test where the backend does. */
void stepper_step(stepper *s, const mx_row *row, int rows);
/* A run of a sequence's tokens, of which the last is wanted. */
void stepper_tokens(stepper *s, int sequence, const int32_t *token, int count, int position);
const float *stepper_logits(stepper *s, int wanted);
/* Writes memory of the device, behind what is queued. */
void stepper_write(stepper *s, void *device, const void *from, size_t bytes);

/* Runs a golden in chunks; logits of its rows go to out [row_count, vocab], the experts of all rows to `experts` when
 * it is not NULL. */
void stepper_golden(stepper *s, const golden_case *g, int chunk, float *out, int32_t *experts);

#endif
