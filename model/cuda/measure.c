#include "model/cuda/cuda_private.h"

/* The peaks of the instructions that the kernels use, measured beside what is held against them. The tensor cores of
 * Hopper and Blackwell multiply faster by wgmma and tcgen05 than by mma.sync, which is what is measured. */

enum { RUNS = 5, FEWEST_ROUNDS = 16, BLOCKS_PER_PROCESSOR = 4 };
static const double LONG_ENOUGH = 1e-3;         /* seconds of multiplying */
static const uint64_t MOST = (uint64_t)2 << 30; /* bytes read in a run: many times the caches */

typedef struct meter {
    mx_gpu_stream *stream;
    mx_gpu_event *begin, *end;
    uint32_t *out; /* device */
} meter;

static mx_status open_meter(meter *m, mx_error *error) {
    *m = (meter){0};
    void *out = NULL;
    mx_status status = mx_gpu_stream_create(&m->stream, error);
    if (!status) status = mx_gpu_event_create(&m->begin, error);
    if (!status) status = mx_gpu_event_create(&m->end, error);
    if (!status) status = mx_gpu_alloc(&out, 256, "measuring", error);
    m->out = out;
    return status;
}

static void close_meter(meter *m) {
    mx_gpu_free(m->out);
    mx_gpu_event_destroy(m->begin);
    mx_gpu_event_destroy(m->end);
    mx_gpu_stream_destroy(m->stream);
}

static mx_status time_since(meter *m, double *seconds, mx_error *error) {
    float ms = 0;
    mx_status status = mx_gpu_check("measuring", error);
    if (!status) status = mx_gpu_event_record(m->end, m->stream, error);
    if (!status) status = mx_gpu_event_wait(m->end, error);
    if (!status) status = mx_gpu_event_ms(m->begin, m->end, &ms, error);
    *seconds = ms > 0 ? ms * 1e-3 : 1e-9;
    return status;
}

/* Of several runs the best counts: something else can only slow one down. */
static mx_status read_once(meter *m, const void *memory, int64_t bytes, int blocks, mx_cuda_rates *best,
                           mx_error *error) {
    double seconds;
    mx_status status = mx_gpu_event_record(m->begin, m->stream, error);
    if (status) return status;
    mx_cuda_measure_read(memory, bytes, blocks, m->out, m->stream);
    status = time_since(m, &seconds, error);
    if (!status && (double)bytes / seconds > best->read) best->read = (double)bytes / seconds;
    return status;
}

static mx_status multiply_once(meter *m, int blocks, int rounds, double *seconds, mx_cuda_rates *best,
                               mx_error *error) {
    *seconds = 1;
    mx_status status = mx_gpu_event_record(m->begin, m->stream, error);
    if (status) return status;
    const double flops = mx_cuda_measure_multiply(blocks, rounds, (float *)(void *)m->out, m->stream);
    status = time_since(m, seconds, error);
    if (!status && flops / *seconds > best->multiply) best->multiply = flops / *seconds;
    return status;
}

mx_status mx_cuda_measure(const mx_cuda_weights *w, mx_cuda_rates *out, mx_error *error) {
    mx_gpu_info info;
    meter m;
    *out = (mx_cuda_rates){0};
    mx_status status = mx_gpu_use(w->device, error);
    if (!status) status = mx_gpu_get_info(w->device, &info, error);
    if (status) return status;
    const int64_t bytes = (int64_t)((w->bytes < MOST ? w->bytes : MOST) / 16 * 16);
    const int blocks = info.multiprocessors * BLOCKS_PER_PROCESSOR;
    status = open_meter(&m, error);
    for (int i = 0; i < RUNS && !status; i++) status = read_once(&m, w->memory, bytes, blocks, out, error);
    int rounds = FEWEST_ROUNDS;
    for (int i = 0; i < RUNS && !status;) {
        double seconds;
        status = multiply_once(&m, blocks, rounds, &seconds, out, error);
        if (seconds < LONG_ENOUGH)
            rounds *= 4;
        else
            i++;
    }
    close_meter(&m);
    return status;
}
