#include "bench/windows.h"

#include <math.h>

static const double steady = 0.10; /* relative difference of the two samples around a window that is kept */

mx_window mx_window_make(double tokens, double seconds, double bytes, double flops, double by_flops, double before,
                         double after) {
    const double by_bytes = bytes / ((before + after) / 2);
    return (mx_window){.speed = tokens / seconds,
                       .floor = tokens / fmax(by_bytes, by_flops),
                       .matrix = flops / seconds,
                       .steady = fabs(after - before) <= steady * fmax(after, before),
                       .by_memory = by_bytes >= by_flops};
}

mx_bench_range mx_window_range(double *values, int n) {
    if (!n) return (mx_bench_range){0};
    const double median = mx_median(values, n);
    return (mx_bench_range){median, values[0], values[n - 1]};
}

void mx_windows_sum_up(const mx_window *w, int count, double peak, double *room, mx_bench_result *out) {
    int n, by_memory = 0;
    out->windows = count;
    out->dropped = 0;
    if (!count) return;
    for (int i = 0; i < count; i++) out->dropped += !w[i].steady;
    /* A prompt is held against the multipliers, and is long: nothing of it is dropped. */
    out->unsteady = !out->test.prompt && out->dropped == count;
    if (out->test.prompt || out->unsteady) out->dropped = 0;
    const bool all = !out->dropped;
#define COLLECT(value)                                                                                                 \
    n = 0;                                                                                                             \
    for (int i = 0; i < count; i++) {                                                                                  \
        if (all || w[i].steady) room[n++] = (value);                                                                   \
    }
    COLLECT(w[i].speed)
    out->speed = mx_window_range(room, n);
    COLLECT(w[i].floor)
    out->floor = mx_median(room, n);
    COLLECT(100 * w[i].speed / w[i].floor)
    out->percent = mx_median(room, n);
    COLLECT(w[i].matrix)
    if (peak > 0) out->matrix_percent = 100 * mx_median(room, n) / peak;
#undef COLLECT
    for (int i = 0; i < count; i++) by_memory += w[i].by_memory && (all || w[i].steady);
    out->by_memory = 2 * by_memory >= count - out->dropped;
}
