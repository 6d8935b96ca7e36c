/* Arithmetic peak of this machine per number of threads.
 *
 *     peak [THREADS]
 *
 * Rates are per second of processor time, added over the threads: other work on the machine does not lower them,
 * shared units and lower clocks do. */
#include <stdio.h>
#include <stdlib.h>

#include "base/threads.h"
#include "peak.h"

enum { MAX_THREADS = 1024, REPETITIONS = 20 };

typedef struct job {
    mx_peak_loop loop;
    double rate[MAX_THREADS];
} job;

static void run(void *arg, int64_t begin, int64_t end, int thread) {
    job *j = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++) j->rate[i] = mx_peak_run(j->loop, REPETITIONS);
}

int main(int argc, char **argv) {
    static job j;
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
        for (j.loop = 0; j.loop < MX_PEAK_LOOPS; j.loop++) {
            if (!mx_peak_here(j.loop)) continue;
            double sum = 0;
            mx_parallel_for(pool, threads, 1, run, &j);
            for (int i = 0; i < threads; i++) sum += j.rate[i];
            printf("%d thread%s  %-18s %8.1f GFLOP/s\n", threads, threads > 1 ? "s" : " ", mx_peak_name(j.loop),
                   sum / 1e9);
        }
        mx_pool_destroy(pool);
    }
    return 0;
}
