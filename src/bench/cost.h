#ifndef MX_BENCH_COST_H
#define MX_BENCH_COST_H

#include "bench/peak.h"
#include "model/model.h"

/* What steps must read and multiply at least, counted from the batch that was run. */
typedef struct mx_cost {
    double bytes;             /* memory that must be read, once for each step */
    double flops[MX_CLASSES]; /* multiplications and additions of matrix products, by class */
    double exact[MX_CLASSES]; /* those of them that BF16 cannot do: F32 and F16 weights, those not bf16_safe */
    double q8_0[MX_CLASSES];  /* those of Q8_0 weights, which some tiers' BF16 does at one precision only */
    double attention;         /* those of scores and sums of values */
    double experts;           /* different ones that were read, of all layers together */
} mx_cost;

/* Adds one step. Bytes: every matrix, bias and norm that takes part, of the experts those that some row chose, the rows
 * of the embedding, and the keys and values in sight of each sequence (behind a sliding window none). Flops: of the
 * rows that go through each matrix; in the last layer rows that nobody wants logits of need keys and values only.
 *
 * `experts` [layers, rows, top_k]: which ones were chosen, as mx_batch.experts records; NULL where the step has one
 * row, whose experts are always top_k different ones. */
void mx_cost_add(mx_cost *cost, const mx_weights *w, mx_format kv, const mx_batch *batch, const int32_t *experts);

double mx_cost_matrix_flops(const mx_cost *cost);

/* The instructions by which a class of products is measured: those that the tier's kernels use at this precision, where
 * this machine has them, and how often each multiplication is done (bf16x2: twice). */
typedef struct mx_cost_units {
    mx_peak_loop loop;
    double times;
} mx_cost_units;
mx_cost_units mx_cost_unit(const char *tier, mx_precision precision);

/* Peaks of this machine, flops per second, by loop; 0: not there. */
typedef struct mx_peaks {
    double of[MX_PEAK_LOOPS];
} mx_peaks;

/* Does this tier multiply dense weights of this format in fp32 at this precision, although it has BF16? */
bool mx_cost_by_fma(const char *tier, mx_format format, mx_precision precision);

/* Multiplications and additions as they are done: those of bf16x2 count twice. */
double mx_cost_operations(const mx_cost *cost, const char *tier, const mx_precisions *precision);

/* Seconds that these take at the peaks of the instructions in use: the sum over the classes, attention at the FMA peak.
 * 0 where one of the peaks that are needed is not known: mx_cost_lacking tells which. */
double mx_cost_seconds(const mx_cost *cost, const char *tier, const mx_precisions *precision, const mx_peaks *peaks);

/* The key of a peak that is needed and not known ("dpbf16"); "" of one that no loop here measures; NULL: none. */
const char *mx_cost_lacking(const mx_cost *cost, const char *tier, const mx_precisions *precision,
                            const mx_peaks *peaks);

#endif
