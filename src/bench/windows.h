#ifndef MX_BENCH_WINDOWS_H
#define MX_BENCH_WINDOWS_H

#include "bench/bench.h"

/* What one measurement makes of the times that it took. A machine's bandwidth may jump from second to second, so the
 * work is cut into windows with a sample of the bandwidth before and after each; where these differ by more than 10 %,
 * the window is not compared with anything. */
enum { MX_WINDOW_TOKENS = 5 }; /* decoded by each stream; a prompt is one window */

typedef struct mx_window {
    double speed, floor, matrix; /* tokens a second; matrix: flops a second */
    bool steady, by_memory;
} mx_window;

/* Tokens in `seconds`, for which `bytes` were read and `flops` of matrices done, which takes `by_flops` seconds at the
 * peaks; before, after: bytes a second. */
mx_window mx_window_make(double tokens, double seconds, double bytes, double flops, double by_flops, double before,
                         double after);

/* Sorts values[0..n); zeros of none. */
mx_bench_range mx_window_range(double *values, int n);

/* Fills in what out->windows, dropped, unsteady, speed, floor, percent, matrix_percent (of `peak`, unless that is 0)
 * and by_memory say of windows of out->test. `room` holds `count` doubles. */
void mx_windows_sum_up(const mx_window *w, int count, double peak, double *room, mx_bench_result *out);

#endif
