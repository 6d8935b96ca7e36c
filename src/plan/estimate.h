#ifndef MX_PLAN_ESTIMATE_H
#define MX_PLAN_ESTIMATE_H

#include "bench/cost.h"
#include "plan/machine.h"
#include "plan/model.h"

/* What a model needs on a machine, and how fast it will be there: arithmetic alone, from two structures. */

typedef struct mx_plan_request {
    int64_t context; /* tokens of each stream, prompt and answer; at most the model's maximum is counted */
    int streams;     /* answered at once */
    mx_format kv;    /* MX_F16, MX_BF16, MX_F32 */
} mx_plan_request;

/* Rows of one step, as the engine has them by default. */
enum { MX_PLAN_ROWS = 512 };

/* ---- memory -------------------------------------------------------------------------------------------------- */

typedef struct mx_plan_memory {
    double weights;
    double kv;      /* pages that the streams need at most, sliding layers trimmed to their window and a step's rows */
    double scratch; /* what steps compute in */
    double program; /* mxrun itself, and the tokenizer */
    double sum;
    double room;     /* what is free where it shall lie */
    double left;     /* room - sum; negative: it does not fit */
    int64_t context; /* the most that a stream may have so that all of it fits, with the program's part of it; 0: not
                        even a short one does */
} mx_plan_memory;

/* KV bytes of one sequence of so many tokens. */
double mx_plan_kv_bytes(const mx_config *c, mx_format kv, int64_t tokens);

/* In the processor's memory. MX_NO_MEMORY only. */
mx_status mx_plan_memory_cpu(const mx_plan_model *m, const mx_plan_machine *machine, const mx_plan_request *r,
                             mx_plan_memory *out, mx_error *error);
/* In that of a GPU: weights, KV, and for activations and the driver's own a fixed part. `room` 0: not known, then it
 * fits nothing. */
void mx_plan_memory_gpu(const mx_plan_model *m, const mx_plan_gpu *gpu, const mx_plan_request *r, mx_plan_memory *out);

/* ---- speed ------------------------------------------------------------------------------------------------------- */

/* One step on the processor, in seconds: bytes / bandwidth and operations / peak overlap,
 *     t = sqrt(t_bytes^2 + t_operations^2),   t_operations = (MANY + ONE / rows) t_matrices + ATTENTION t_attention.
 * The factors are how much slower than the peak mxrun's kernels are: with one row most of the work is to bring weights
 * into registers. All three are fitted, to a few percent, to the README's table of speeds (2 cores of Zen 5,
 * avx512bf16, mixed): decode 12.2 tokens/s at 50 GB/s and 17.7 at 83, behind 32,768 tokens 9.4 and 13.3, 39.7 with 8
 * streams, 74.2 with 32, a prompt of 512 with 124. For the tiers avx512 and avx2 they are borrowed and the range is
 * wider; for all others nothing was measured, and speeds are not known. */
#define MX_PLAN_MANY      1.16
#define MX_PLAN_ONE       2.6
#define MX_PLAN_ATTENTION 1.6

typedef struct mx_plan_step {
    double rows;
    double bytes;                   /* weights, keys and values that are read */
    double operations;              /* multiplications and additions, bf16x2 counted twice */
    double by_bytes, by_operations; /* seconds: each alone, at the median bandwidth and the peaks; 0: not known */
    double slowness;                /* what by_operations becomes in kernels, divided by it; 0: not known */
    double seconds;                 /* both together */
} mx_plan_step;

typedef struct mx_plan_speed {
    mx_plan_step prompt, decode; /* a prompt's step of up to MX_PLAN_ROWS; a token of each stream, half of the context
                                    behind it */
    mx_plan_range prompt_rate, decode_rate; /* tokens/s, of all streams; zeros: not known */
    double cold_start;                      /* seconds: bytes / disk; 0: not known */
    bool borrowed;                          /* the factors are those of other kernels: a wider range */
    char unknown[MX_PLAN_TEXT];             /* why nothing is known of rates; "": they are known */
    bool from_disk; /* weights that do not fit are read again for every step, which decode_rate takes into account */
} mx_plan_speed;

void mx_plan_speed_cpu(const mx_plan_model *m, const mx_plan_machine *machine, const mx_plan_request *r,
                       mx_plan_speed *out);

/* What becomes of it where the memory is too small: a step reads from the disk, at most all that it needs, at least
 * that part of the weights that has no room. Prompts as well, of which nothing is said any more. */
void mx_plan_speed_from_disk(const mx_plan_model *m, const mx_plan_machine *machine, const mx_plan_memory *memory,
                             mx_plan_speed *out);

#endif
