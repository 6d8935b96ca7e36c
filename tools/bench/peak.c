/* Arithmetic peak of this machine per number of threads.
 *
 *     peak [THREADS]
 *
 * Rates are per second of processor time, added over the threads: other work on the machine does not lower them,
 * shared units and lower clocks do. */
#include <stdio.h>
#include <stdlib.h>

#include "base/threads.h"
#include "bench/peak.h"

enum { MAX_THREADS = 1024, REPETITIONS = 20 };

int main(int argc, char **argv) {
    mx_error error;
    mx_pool *pool;
    int most = argc > 1 ? atoi(argv[1]) : 0;
    if (most < 0 || most > MAX_THREADS || mx_pool_create(most, &pool, &error)) {
        fprintf(stderr, "peak: %s\n", most < 0 || most > MAX_THREADS ? "usage: peak [THREADS]" : error.text);
        return 1;
    }
    most = mx_pool_threads(pool);
    mx_pool_destroy(pool);
    for (int threads = 1; threads <= most; threads = threads < most && threads * 2 > most ? most : threads * 2) {
        if (mx_pool_create(threads, &pool, &error)) {
            fprintf(stderr, "peak: %s\n", error.text);
            return 1;
        }
        for (int loop = 0; loop < MX_PEAK_LOOPS; loop++) {
            if (!mx_peak_here((mx_peak_loop)loop)) continue;
            printf("%d thread%s  %-18s %8.1f GFLOP/s\n", threads, threads > 1 ? "s" : " ",
                   mx_peak_name((mx_peak_loop)loop), mx_peak_pool(pool, (mx_peak_loop)loop, REPETITIONS) / 1e9);
        }
        mx_pool_destroy(pool);
    }
    return 0;
}
