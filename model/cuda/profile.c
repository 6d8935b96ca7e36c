/* Where the time of steps goes, without a profiler: MXRUN_CUDA_PROFILE=1. An event is recorded behind each group of
 * launches; what lies between two of them is the group's. The host must be ahead of the device, or its own pace would
 * be measured: so in front of each step the device is kept busy for a while. Graphs are off. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/cuda/backend_private.h"

enum {
    MARKS = 4096, /* events that are recorded before any is looked at: a dozen steps of 36 layers */
    MOST_ROUNDS = 1 << 24,
    DECODING = 0, /* kinds of steps: of at most MX_CUDA_GRAPH_ROWS rows, and larger ones */
    PROMPTS,
    KINDS
};
static const double AHEAD = 5; /* milliseconds, in which the host queues a step */

static const char *const name_of[MX_CUDA_GROUPS] = {
    [MX_CUDA_BEGIN] = "embedding",
    [MX_CUDA_NORM] = "norm",
    [MX_CUDA_PROJECT] = "qkv",
    [MX_CUDA_ATTEND] = "attention",
    [MX_CUDA_O] = "o",
    [MX_CUDA_ROUTER] = "router",
    [MX_CUDA_ROUTE] = "routing",
    [MX_CUDA_GATE_UP] = "gate_up",
    [MX_CUDA_DOWN] = "down",
    [MX_CUDA_LAST_NORM] = "last norm",
    [MX_CUDA_LM_HEAD] = "lm_head",
    [MX_CUDA_SAMPLE] = "sampling",
};

struct mx_cuda_profile {
    mx_gpu_event *event[MARKS]; /* made when first used */
    uint8_t group[MARKS];       /* what ended there; MX_CUDA_START: nothing */
    uint8_t kind[MARKS];
    int marks;
    int now;                      /* the kind of the step */
    int rounds;                   /* of multiplying, for AHEAD milliseconds */
    double bytes[MX_CUDA_GROUPS]; /* of weights that one call of a group reads in this step; 0: not known */
    struct {
        int64_t steps, rows, calls[MX_CUDA_GROUPS];
        double ms[MX_CUDA_GROUPS], bytes[MX_CUDA_GROUPS];
    } sum[KINDS];
    mx_error failed; /* why nothing more is measured */
};

/* ---- weights ----------------------------------------------------------------------------------------------------- */

static double matrix_bytes(const mx_cuda_matrix *w) {
    return (double)(mx_cuda_data_bytes(w->format, w->rows, w->cols) + mx_cuda_scale_bytes(w->format, w->rows, w->cols));
}

/* Of experts, as many as rows choose when they choose evenly: exactly top_k for one row. */
static void weigh(struct mx_cuda_profile *p, const mx_cuda_backend *b, int rows) {
    const mx_cuda_layer *l = &b->weights->layer[0];
    const double experts = b->config.experts, chosen = experts * (1 - pow(1 - b->config.top_k / experts, rows));
    memset(p->bytes, 0, sizeof p->bytes);
    p->bytes[MX_CUDA_PROJECT] = matrix_bytes(&l->qkv);
    p->bytes[MX_CUDA_O] = matrix_bytes(&l->o);
    p->bytes[MX_CUDA_ROUTER] = matrix_bytes(&l->router);
    p->bytes[MX_CUDA_GATE_UP] = chosen * matrix_bytes(&l->gate_up);
    p->bytes[MX_CUDA_DOWN] = chosen * matrix_bytes(&l->down);
    p->bytes[MX_CUDA_LM_HEAD] = matrix_bytes(&b->weights->lm_head);
}

/* ---- measuring --------------------------------------------------------------------------------------------------- */

/* What is recorded is added up; waits for it. */
static mx_status collect(struct mx_cuda_profile *p, mx_error *error) {
    mx_status status = p->marks ? mx_gpu_event_wait(p->event[p->marks - 1], error) : MX_OK;
    for (int i = 1; !status && i < p->marks; i++) {
        const int group = p->group[i], kind = p->kind[i];
        float ms = 0;
        if (group == MX_CUDA_START) continue;
        status = mx_gpu_event_ms(p->event[i - 1], p->event[i], &ms, error);
        p->sum[kind].ms[group] += (double)ms;
    }
    p->marks = 0;
    return status;
}

static mx_status mark(struct mx_cuda_profile *p, mx_gpu_stream *stream, mx_cuda_group group, mx_error *error) {
    const int i = p->marks;
    mx_status status = p->event[i] ? MX_OK : mx_gpu_event_create(&p->event[i], error);
    if (!status) status = mx_gpu_event_record(p->event[i], stream, error);
    if (status) return status;
    p->group[i] = (uint8_t)group;
    p->kind[i] = (uint8_t)p->now;
    p->marks++;
    if (group != MX_CUDA_START) {
        p->sum[p->now].calls[group]++;
        p->sum[p->now].bytes[group] += p->bytes[group];
    }
    if (p->marks < MARKS) return MX_OK;
    status = collect(p, error);
    return status ? status : mark(p, stream, MX_CUDA_START, error);
}

void mx_cuda_profile_mark(mx_cuda_backend *b, mx_cuda_group group) {
    struct mx_cuda_profile *p = b->profile;
    if (!p->failed.status) p->failed.status = mark(p, b->stream, group, &p->failed);
}

void mx_cuda_profile_step(mx_cuda_backend *b, int rows) {
    struct mx_cuda_profile *p = b->profile;
    if (p->failed.status) return;
    if (p->marks > MARKS / 2) p->failed.status = collect(p, &p->failed);
    p->now = rows <= MX_CUDA_GRAPH_ROWS ? DECODING : PROMPTS;
    p->sum[p->now].steps++;
    p->sum[p->now].rows += rows;
    weigh(p, b, rows);
    mx_cuda_measure_multiply(1, p->rounds, b->s.x, b->stream);
    mx_cuda_profile_mark(b, MX_CUDA_START);
}

/* The first run only makes the kernel ready. */
static mx_status find_rounds(struct mx_cuda_profile *p, mx_cuda_backend *b, mx_error *error) {
    float ms = 0;
    mx_status status = MX_OK;
    p->rounds = 16;
    for (bool warm = false; !status && (!warm || ((double)ms < AHEAD && p->rounds < MOST_ROUNDS)); warm = true) {
        if (warm) p->rounds *= 2;
        p->marks = 0;
        status = mark(p, b->stream, MX_CUDA_START, error);
        if (status) break;
        mx_cuda_measure_multiply(1, p->rounds, b->s.x, b->stream);
        status = mark(p, b->stream, MX_CUDA_START, error);
        if (!status) status = mx_gpu_event_wait(p->event[1], error);
        if (!status) status = mx_gpu_event_ms(p->event[0], p->event[1], &ms, error);
        if (!status) status = mx_gpu_check("profiling", error);
    }
    p->marks = 0;
    return status;
}

mx_status mx_cuda_profile_create(mx_cuda_backend *b, mx_error *error) {
    b->profile = calloc(1, sizeof *b->profile);
    if (!b->profile) return mx_fail(error, MX_NO_MEMORY, "no memory for the GPU's profile");
    return find_rounds(b->profile, b, error);
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static void say(const struct mx_cuda_profile *p, int kind) {
    const int64_t steps = p->sum[kind].steps;
    double all = 0;
    if (!steps) return;
    for (int g = 0; g < MX_CUDA_GROUPS; g++) all += p->sum[kind].ms[g];
    mx_log(MX_LOG_INFO, "GPU profile, steps of %s %d rows: %lld of %.1f rows, %.3f ms each",
           kind == DECODING ? "at most" : "more than", MX_CUDA_GRAPH_ROWS, (long long)steps,
           (double)p->sum[kind].rows / (double)steps, all / (double)steps);
    mx_log(MX_LOG_INFO, "  %-10s %9s %12s %8s%s", "", "calls", "ms", "share", kind == DECODING ? "  weights read" : "");
    for (int g = 0; g < MX_CUDA_GROUPS; g++) {
        const double ms = p->sum[kind].ms[g], bytes = kind == DECODING ? p->sum[kind].bytes[g] : 0;
        char rate[40] = "";
        if (!p->sum[kind].calls[g]) continue;
        if (bytes > 0 && ms > 0) snprintf(rate, sizeof rate, "  %.0f GB/s", bytes / ms * 1e-6);
        mx_log(MX_LOG_INFO, "  %-10s %9lld %12.3f %7.1f%%%s", name_of[g], (long long)p->sum[kind].calls[g], ms,
               all > 0 ? 100 * ms / all : 0, rate);
    }
}

void mx_cuda_profile_destroy(mx_cuda_backend *b) {
    struct mx_cuda_profile *p = b->profile;
    if (!p) return;
    if (!p->failed.status && !b->lost.status) p->failed.status = collect(p, &p->failed);
    for (int kind = 0; kind < KINDS; kind++) say(p, kind);
    if (p->failed.status) mx_log(MX_LOG_WARNING, "GPU profile: it ended early: %s", p->failed.text);
    for (int i = 0; i < MARKS; i++) mx_gpu_event_destroy(p->event[i]);
    free(p);
    b->profile = NULL;
}
