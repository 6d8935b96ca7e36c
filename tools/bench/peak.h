#ifndef MX_BENCH_PEAK_H
#define MX_BENCH_PEAK_H

/* Loops that touch nothing but registers: what the arithmetic units can do at most. Each keeps 12 independent sums. */
typedef enum mx_peak_loop { MX_PEAK_FMA256, MX_PEAK_FMA512, MX_PEAK_DPBF16, MX_PEAK_LOOPS } mx_peak_loop;

const char *mx_peak_name(mx_peak_loop loop);
_Bool mx_peak_here(mx_peak_loop loop); /* this machine has the instructions */

/* Multiplications and additions per second of this thread's own processor time, the best of `repetitions` runs of a
 * few milliseconds; 0 where the machine lacks it. */
double mx_peak_run(mx_peak_loop loop, int repetitions);

double mx_thread_seconds(void); /* processor time of the calling thread */

#endif
