#ifndef MX_BENCH_PEAK_H
#define MX_BENCH_PEAK_H

#include "base/threads.h"

/* Loops that touch nothing but registers (and tiles): what the arithmetic units can do at most. */
typedef enum mx_peak_loop {
    MX_PEAK_FMA128,     /* aarch64: fp32, NEON */
    MX_PEAK_FMA256,     /* fp32, AVX2 */
    MX_PEAK_FMA512,     /* fp32, AVX-512 */
    MX_PEAK_SDOT,       /* aarch64: fours of int8 into int32 */
    MX_PEAK_BFMMLA,     /* aarch64: two by two rows of BF16 into fp32 */
    MX_PEAK_SMMLA,      /* aarch64: two by two rows of int8 into int32 */
    MX_PEAK_MADDUBS256, /* pairs of int8 into int16 and a sum of these, AVX2 */
    MX_PEAK_MADDUBS512, /* the same, AVX-512 */
    MX_PEAK_DPBF16,     /* pairs of BF16 into fp32, AVX-512 */
    MX_PEAK_VNNI,       /* fours of int8 into int32, AVX-512 */
    MX_PEAK_AMX_BF16,
    MX_PEAK_AMX_INT8,
    MX_PEAK_MMA, /* BF16 into fp32 on a GPU's tensor cores by mma.sync: mx_cuda_rates.multiply */
    MX_PEAK_LOOPS
} mx_peak_loop;

const char *mx_peak_name(mx_peak_loop loop); /* "FMA 512" */
const char *mx_peak_key(mx_peak_loop loop);  /* "fma512", for JSON */
_Bool mx_peak_here(mx_peak_loop loop);       /* this machine's processor has the instructions */

/* The widest fp32 loop that this machine has; MX_PEAK_LOOPS where it has none of them. */
mx_peak_loop mx_peak_fp32(void);

/* Multiplications and additions per second of this thread's own processor time, the best of `repetitions` runs of a
 * few milliseconds; 0 where the machine lacks it. */
double mx_peak_run(mx_peak_loop loop, int repetitions);

/* The same of all threads of the pool at once, added up: other work on the machine does not lower it, shared units and
 * lower clocks do. */
double mx_peak_pool(mx_pool *pool, mx_peak_loop loop, int repetitions);

double mx_thread_seconds(void); /* processor time of the calling thread */

#endif
