/* How fast this machine reads memory from front to back, with 1 to N threads.
 *
 *     bandwidth [--seconds S] [--mib N] [--threads N] [--json]
 *
 * The buffer is on huge pages and much larger than the caches. Every way of reading it (bench/measure.h) runs in turn
 * until the time is over; of the way with the highest median the median, the minimum and the maximum over its passes
 * are printed. Decode cannot be faster than this: it reads every active weight once a token. */
#include <popt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/cpu.h"
#include "base/threads.h"
#include "bench/measure.h"

enum { MAX_PASSES = 1000 };

struct result {
    const mx_read_way *way;
    int passes;
    double median, lowest, highest; /* GB/s, 1e9 bytes */
};

static struct {
    double seconds;
    int mib, threads, json;
} option = {.seconds = 2, .mib = 1024};

static const struct poptOption table[] = {
    {"seconds", 0, POPT_ARG_DOUBLE | POPT_ARGFLAG_SHOW_DEFAULT, &option.seconds, 0, "time for each number of threads",
     "S"},
    {"mib", 0, POPT_ARG_INT | POPT_ARGFLAG_SHOW_DEFAULT, &option.mib, 0, "size of the buffer in MiB", "N"},
    {"threads", 0, POPT_ARG_INT, &option.threads, 0, "most threads (default: all cores)", "N"},
    {"json", 0, POPT_ARG_NONE, &option.json, 0, "one JSON object a line", NULL},
    POPT_AUTOHELP POPT_TABLEEND,
};

/* Passes over buf in every way until the time is over, at least three each; the way with the highest median. */
static struct result measure(mx_pool *pool, const void *buf, size_t size) {
    static double rate[MX_READ_WAYS][MAX_PASSES];
    double end = mx_seconds() + option.seconds;
    int passes = 0;
    while (passes < MAX_PASSES && (passes < 3 || mx_seconds() < end)) {
        for (int w = 0; w < MX_READ_WAYS; w++)
            rate[w][passes] = mx_measure_read(pool, buf, size, &mx_read_ways[w]) / 1e9;
        passes++;
    }
    struct result best = {0};
    for (int w = 0; w < MX_READ_WAYS; w++) {
        double median = mx_median(rate[w], passes); /* sorts */
        if (median > best.median)
            best = (struct result){&mx_read_ways[w], passes, median, rate[w][0], rate[w][passes - 1]};
    }
    return best;
}

static void print(int threads, const struct result *r) {
    char way[60];
    mx_read_way_name(way, r->way);
    if (option.json)
        printf("{\"threads\":%d,\"way\":\"%s\",\"passes\":%d,\"gb_s\":{\"median\":%.2f,\"min\":%.2f,\"max\":%.2f}}\n",
               threads, way, r->passes, r->median, r->lowest, r->highest);
    else
        printf("%3d thread%s  median %7.2f  min %7.2f  max %7.2f GB/s  (%d passes, %s)\n", threads,
               threads > 1 ? "s" : " ", r->median, r->lowest, r->highest, r->passes, way);
    fflush(stdout);
}

/* 1, 2, 4 ... and `most`. */
static mx_status measure_all(const void *buf, size_t size, int most, mx_error *error) {
    for (int threads = 1; threads <= most; threads = threads < most && threads * 2 > most ? most : threads * 2) {
        mx_pool *pool;
        mx_status status = mx_pool_create(threads, &pool, error);
        if (status) return status;
        struct result r = measure(pool, buf, size);
        mx_pool_destroy(pool);
        print(threads, &r);
    }
    return MX_OK;
}

static int wrong(const char *text) {
    fprintf(stderr, "bandwidth: %s (see bandwidth --help)\n", text);
    return 2;
}

int main(int argc, const char **argv) {
    poptContext context = poptGetContext("bandwidth", argc, argv, table, 0);
    int rc = poptGetNextOpt(context);
    bool extra = poptPeekArg(context) != NULL;
    poptFreeContext(context);
    if (rc < -1) return wrong(poptStrerror(rc));
    if (extra) return wrong("there are no arguments");
    if (!(option.seconds > 0 && option.seconds <= 3600))
        return wrong("--seconds: more than 0 and at most 3600 expected");
    if (option.mib < 16 || option.mib > 1 << 20) return wrong("--mib: 16 to 1048576 expected");
    if (option.threads < 0) return wrong("--threads: at least 1 expected");

    mx_arena arena;
    mx_error error;
    size_t size = (size_t)option.mib << 20;
    mx_status status = mx_arena_create(size, &arena, &error);
    if (!status) {
        memset(arena.base, 1, size);
        status = measure_all(arena.base, size, option.threads ? option.threads : mx_cpu_count(), &error);
        mx_arena_destroy(&arena);
    }
    if (status) fprintf(stderr, "bandwidth: %s\n", error.text);
    return status ? 1 : 0;
}
