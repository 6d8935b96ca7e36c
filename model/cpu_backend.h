#ifndef MX_CPU_BACKEND_H
#define MX_CPU_BACKEND_H

#include "base/arena.h"
#include "model/model.h"

/* Private to the CPU backend: its memory, and the step that works in it. */

/* Rows of one sequence at consecutive positions: what one call of the attention kernel takes, cut to MX_RUN_ROWS. */
enum { MX_RUN_ROWS = 16 };
typedef struct mx_run {
    const mx_sequence_view *sequence;
    int row, rows; /* first row in the batch, how many */
    int position;  /* of the first */
    /* In the layer at hand: tasks first_task + head * segments + segment. */
    int64_t first_task;
    int64_t first_segment, segments; /* that become parts; 1: one task walks the whole past of a KV head */
    int64_t first_part;              /* of head 0 in s.parts */
} mx_run;

/* One product of a parallel region. */
typedef struct mx_job {
    mx_matmul m;
    const mx_product *product;
} mx_job;

/* The forms in which a matrix product's input was packed, each once however many products read it. */
enum { MX_MOST_PACKINGS = 3 };
typedef struct mx_packings {
    const mx_product *product[MX_MOST_PACKINGS]; /* one that reads the form */
    int count;
} mx_packings;

/* Activations of one step, fp32. T = max_rows, S = T * top_k slots (one a row and chosen expert, grouped by expert). */
typedef struct mx_scratch {
    float *x;                          /* [T, hidden] the residual stream */
    uint8_t *packed[MX_MOST_PACKINGS]; /* [T, packed_bytes(widest input)] inputs of products */
    float *q;                          /* [T, heads, head_dim] */
    float *k, *v;                      /* [T, kv_heads, head_dim] */
    float *attended;                   /* [T, heads, head_dim] */
    float *cos, *sin;                  /* [T, head_dim / 2] */
    float *router;                     /* [T, experts] */
    int32_t *expert;                   /* [T, top_k] best first */
    float *weight;                     /* [T, top_k] */
    int32_t *first;                    /* [experts + 1] first slot of each expert */
    int32_t *slot_row;                 /* [S] the row a slot belongs to */
    float *slot_weight;                /* [S] */
    int32_t *row_slot;                 /* [T, top_k] a row's slots, experts ascending */
    int32_t *row_slots;                /* [T] how many of them are filled in */
    float *act;                        /* [S, intermediate] */
    uint8_t *act_packed;               /* [S, packed_bytes(intermediate)] */
    float *expert_out;                 /* [S, hidden] */
    mx_run *run;                       /* [T] */
    int32_t *cut;                      /* [T] runs that are attended by segments */
    float *parts;                      /* [parts_held, mx_attention_part()] */
    int64_t parts_held;                /* parts that there is room for */
    mx_row *kept;                      /* [max_wanted] rows that the last layer goes on with */
    float *wanted;                     /* [max_wanted, hidden] */
    float *logits;                     /* [max_wanted, vocab] */
    float *probabilities;              /* [threads, vocab rounded up to 16], for the sampler */
    mx_job *job;                       /* [max(experts, 3)] the products of one parallel region */
    int64_t *first_tile;               /* [nodes, products] then the end: of a NUMA node's share of a product */
    int64_t *first_of_node;            /* [nodes + 1] */
    float *thread;                     /* [threads, thread_floats] the kernels' own */
    int64_t thread_floats;
} mx_scratch;

typedef struct mx_cpu_backend {
    mx_backend base;
    const mx_weights *weights;
    mx_pool *pool;
    int threads, nodes; /* the pool's */
    const mx_kernels *kernels;
    mx_precisions precision;
    const mx_product *openblas; /* for dense weights; NULL: the kernels' own */
    mx_backend_options options;
    int64_t page_bytes, head_bytes;
    double *inv_freq; /* [head_dim / 2] */
    float *ones;      /* [hidden] gain of norms that an observer wants to see without theirs; else NULL */
    double concentration;
    mx_arena pages, memory;
    mx_scratch s;
    int wanted; /* rows whose logits are kept */
} mx_cpu_backend;

/* How weights of this format are multiplied here. `bf16_safe`: see mx_matrix and mx_experts. */
const mx_product *mx_cpu_product(const mx_cpu_backend *b, mx_class class, mx_format format, bool bf16_safe);

/* One forward pass over a batch that was checked; leaves the wanted rows' logits in s.logits. (gpt_oss.c) */
void mx_gpt_oss_step(mx_cpu_backend *b, const mx_batch *batch);

#endif
