#ifndef MX_BENCH_REPORT_H
#define MX_BENCH_REPORT_H

#include "base/bytes.h"
#include "base/json.h"
#include "bench/bench.h"

/* What mxrun bench prints: a table for people, Markdown for documents, JSON for programs and for --compare. */

/* One number of threads with one precision. */
typedef struct mx_bench_run_report {
    int threads;
    char precision[MX_PRECISION_NAME];
    mx_bench_machine machine;
    mx_bench_result *result; /* [tests] */
} mx_bench_run_report;

typedef struct mx_bench_report {
    const char *model; /* as the user named it */
    bool synthetic;
    uint64_t seed; /* of synthetic weights */
    int layers, all_layers;
    double weight_bytes;
    double load_seconds; /* to open, or make, the weights */
    double memory;       /* peak resident bytes, without what measures the bandwidth */
    const char *device;  /* the GPU's name; "": the CPU */
    double gpu_memory;   /* of it, bytes taken: weights, keys and values, scratch */
    const char *kv;
    bool openblas;
    mx_bench_run_report *run;
    int runs, tests;
    bool energy;           /* joules were measured: of processor packages and their memory, or of the GPU */
    int gpus;              /* with an energy counter; no run on the CPU counts them */
    double in_caches;      /* bytes that the caches hold */
    const mx_json *before; /* what --compare names; NULL: nothing */
    const char *before_name;
} mx_bench_report;

/* "AMD EPYC 9554 64-Core Processor", or the architecture where the kernel tells no name. */
void mx_cpu_name(char out[static 100]);

/* Does this JSON have the form of ours? `name` is the file's. */
mx_status mx_bench_before_check(const char *name, const mx_json *root, mx_error *error);

/* false: no memory. */
bool mx_bench_table(mx_bytes *out, const mx_bench_report *r, bool markdown);
bool mx_bench_json(mx_bytes *out, const mx_bench_report *r);

#endif
