#ifndef MX_MODEL_CUDA_BACKEND_PRIVATE_H
#define MX_MODEL_CUDA_BACKEND_PRIVATE_H

#include "model/cuda/cuda_private.h"

/* Private to the GPU's backend: its memory, what a step is told, and the step that works with it. One stream does
 * everything in its order; the host waits only where it wants results. */

enum {
    MX_CUDA_SLOTS = 2,         /* blocks of input, or queued draws, that the host fills in turn */
    MX_CUDA_GRAPH_ROWS = 64,   /* rows of a step up to which it may be a graph */
    MX_CUDA_BUCKETS = 9,       /* numbers of rows that graphs are made for */
    MX_CUDA_SPAN_BUCKETS = 32, /* powers of two */
    MX_CUDA_CLEARS = 8192,     /* pages that are cleared together at most */
    MX_CUDA_DRAWS = 64         /* draws that there is scratch for at a time */
};

/* Activations on the device. T = max_rows and S = T * top_k slots, W = max_wanted; both rounded up to a bucket of
 * graphs where one may be used. Terms of rows of `cols` columns: [terms][T][mx_cuda_padded(cols)] BF16. */
typedef struct mx_cuda_scratch {
    uint16_t *normed, *attended, *act;            /* terms of [T, hidden], [T, heads * head_dim], [S, intermediate] */
    int64_t normed_term, attended_term, act_term; /* numbers from term to term */
    int32_t *tables;                              /* [sequences][layers][tiles] page ids: tables.c */
    double *inv_freq;                             /* [head_dim / 2] */
    int32_t *ascending;                           /* [T] 0, 1, 2 ... */
    float *x;                                     /* [T, hidden] the residual stream */
    float *q;                                     /* [T, heads * head_dim] */
    float *cos, *sin;                             /* [T, head_dim / 2] */
    float *x_kept, *q_kept;                       /* [W] rows that the last layer goes on with */
    float *router;                                /* [T, experts] */
    int32_t *expert;                              /* [T, top_k] */
    float *weight;                                /* [T, top_k] */
    int32_t *slot_row;                            /* [S] */
    float *slot_weight;                           /* [S] */
    int32_t *row_slot;                            /* [T, top_k] */
    mx_cuda_tile *tile;                           /* [most] */
    int32_t *tiles;                               /* [1] */
    float *expert_out;                            /* [S, hidden] */
    float *parts;                                 /* [part_pairs, kv_heads, mx_cuda_attention_part()] */
    float *logits;                                /* [W, vocab] */
    uint8_t *input;                               /* a step's block: input.c */
    float *adjusted;                              /* [MX_CUDA_DRAWS, mx_cuda_sample_scratch(vocab)] the sampler's */
    mx_cuda_draw *draw;                           /* [W] */
    uint8_t *lists;                               /* [lists_bytes] what the draws point to */
    mx_cuda_drawn *drawn;                         /* [W] of `draw`, [W] of `sample` behind them */
    int32_t *token;                               /* the same, tokens alone: the first [W] are read by the next step */
    mx_cuda_token_value *top;                     /* [MX_CUDA_MOST_TOP] */
    mx_cuda_drawn *top_drawn;                     /* [1] */
} mx_cuda_scratch;

/* What of page tables is on the device: tables.c */
typedef struct mx_cuda_table {
    const int32_t *table; /* of the mx_sequence_view; NULL: this place was never used */
    uint64_t used;        /* the step that used it last */
} mx_cuda_table;

/* A step as the host prepared it; pointers are into the block on the device. */
typedef struct mx_cuda_plan {
    int rows, wanted;                        /* of a graph: its rows */
    int singles, runs;                       /* rows that are attended each by itself, and the rest */
    int spans;                               /* in which a single row of a layer without window sees keys, at most */
    bool keep;                               /* the last layer goes on with wanted rows alone */
    bool listed;                             /* singles are in `single`; else all rows are */
    int bucket, span_bucket;                 /* of the graph; -1: none */
    const int32_t *token, *position, *table; /* [rows] */
    const int32_t *single;                   /* [singles] */
    const int32_t *want, *want_position, *want_table; /* [wanted]; want NULL: all rows */
    const mx_cuda_run *run;                           /* [runs] */
    int kept_spans;
    const mx_batch *recorded; /* the batch that wants diagnostics; NULL: none does */
} mx_cuda_plan;

/* One call of `draw`, in pinned memory. */
typedef struct mx_cuda_draws {
    mx_cuda_draw *draw;   /* [W] as the device reads them */
    mx_cuda_drawn *drawn; /* [W] results */
    mx_status *status;    /* [W] what was wrong with a spec */
    mx_error error;       /* the first of them */
    uint8_t *lists;       /* pinned, grows */
    size_t lists_bytes;
    mx_gpu_event *done;
    int count;
} mx_cuda_draws;

typedef struct mx_cuda_backend {
    mx_backend base;
    mx_cuda_weights *weights;
    mx_config config;
    mx_backend_options options;
    mx_precisions precision;
    int terms[MX_CLASSES];
    double concentration;
    int rows, wanted_rows; /* T and W */
    bool graphs, overlap;
    int64_t page_bytes;
    mx_gpu_stream *stream;
    mx_error lost; /* status MX_OK: the device works. Else why not: what every later call says */

    uint8_t *pages;
    int32_t *cleared; /* [MX_CUDA_CLEARS] pages that the next step clears before anything else */
    int clears;
    void *memory; /* the scratch */
    mx_cuda_scratch s;
    int64_t part_pairs;  /* (row, span) pairs that one call of attention has room for */
    int64_t zeroed;      /* bytes of the scratch that begin as zeros */
    int64_t lists_bytes; /* of s.lists */

    /* tables.c */
    int sequences;        /* that have a place: W */
    int64_t tiles;        /* of a table: the model's positions */
    int32_t *mirror;      /* [sequences][layers][tiles] what s.tables holds, or will when the queue is done */
    mx_cuda_table *place; /* [sequences] */
    uint64_t step;        /* counts */

    /* input.c: pinned blocks, and what of the current one is filled */
    uint8_t *input[MX_CUDA_SLOTS];
    mx_gpu_event *input_copied[MX_CUDA_SLOTS];
    int input_at;          /* whose turn it is */
    int64_t input_bytes;   /* of what a step's rows take at most */
    mx_cuda_entry *change; /* [most_changes] of page tables, behind the rows of the block being filled */
    int changes, most_changes;

    mx_gpu_graph *graph[MX_CUDA_BUCKETS][MX_CUDA_SPAN_BUCKETS];

    int wanted; /* rows of the last step whose logits are kept */
    int drawn;  /* draws of the last `draw` */

    /* sampling.c */
    mx_cuda_draws draws[MX_CUDA_SLOTS + 1]; /* the last one: of `sample` */
    int first_draws, queued_draws;          /* not fetched yet */
    float *logits;                          /* pinned: [vocab] */
    mx_cuda_token_value *top;               /* pinned: [MX_CUDA_MOST_TOP] */
    mx_cuda_drawn *top_drawn;               /* pinned */
    float *top_scratch;                     /* [vocab] */
} mx_cuda_backend;

static inline mx_cuda_backend *mx_cuda_self(mx_backend *b) {
    return (mx_cuda_backend *)b;
}

/* backend.c. At the entry of every operation: the device, or what lost it. */
mx_status mx_cuda_enter(mx_cuda_backend *b, mx_error *error);
/* `status` of something queued, or waited for: when it is none, the device is lost from now on. Returns it. */
mx_status mx_cuda_note(mx_cuda_backend *b, mx_status status, mx_error *error);
/* The smallest graph that has so many rows, and how many it has; -1: there is none, *of = rows. */
int mx_cuda_bucket(int rows, int *of);

/* tables.c. A place on the device for the sequence, which this step keeps. */
int mx_cuda_table_place(mx_cuda_backend *b, const mx_sequence_view *view);
/* What rows at positions first .. last look at or write becomes the place's; changes are put behind the block of
 * input. MX_INVALID_ARGUMENT: a page that is none. */
mx_status mx_cuda_table_update(mx_cuda_backend *b, int place, const mx_sequence_view *view, int first, int last,
                               mx_error *error);
/* They are queued with the block's copy, which took them to `entry` on the device. */
void mx_cuda_tables_queue(mx_cuda_backend *b, const mx_cuda_entry *entry);

/* input.c */
int64_t mx_cuda_input_bytes(const mx_cuda_backend *b); /* of a block without changes of tables */
/* Checks the batch, chooses how it is computed, and queues what the device needs to know of it. */
mx_status mx_cuda_input(mx_cuda_backend *b, const mx_batch *batch, mx_cuda_plan *plan, mx_error *error);

/* step.c: queues the forward pass. */
mx_status mx_cuda_forward(mx_cuda_backend *b, const mx_cuda_plan *plan, mx_error *error);

/* sampling.c */
mx_status mx_cuda_sampling_create(mx_cuda_backend *b, mx_error *error);
void mx_cuda_sampling_destroy(mx_cuda_backend *b);
mx_status mx_cuda_op_draw(mx_backend *b, const mx_draw *draw, int count, mx_error *error);
mx_status mx_cuda_op_drawn(mx_backend *b, mx_draw *draw, int count, mx_error *error);
mx_status mx_cuda_op_sample(mx_backend *b, int wanted, const mx_sample_spec *spec, mx_sampled *out, mx_error *error);
void mx_cuda_op_sample_all(mx_backend *b, mx_draw *draw, int count);
mx_status mx_cuda_op_top(mx_backend *b, int wanted, int k, mx_alternative *out, int32_t token, float *logprob,
                         mx_error *error);
const float *mx_cuda_op_logits(mx_backend *b, int wanted);

#endif
