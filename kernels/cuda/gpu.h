#ifndef MX_GPU_H
#define MX_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* What the host does with a GPU: memory, copies, streams, events, graphs. Two implementations: kernels/cuda/gpu.cu on
 * the CUDA runtime, and tests/cuda/emulation/gpu.cpp, in which the "device" is this process: its memory comes from
 * malloc, a stream does everything at once but what it captures.
 *
 * Work in one stream happens in its order, and the host does not wait for it unless a call says so. Calls that only
 * queue (copies, fills, launches) report what is wrong at once; what goes wrong on the device later shows in the next
 * call that waits. One device for a thread: mx_gpu_use. */
#ifdef __cplusplus
extern "C" {
#endif

typedef struct mx_gpu_stream mx_gpu_stream;
typedef struct mx_gpu_event mx_gpu_event;
typedef struct mx_gpu_graph mx_gpu_graph;

typedef struct mx_gpu_info {
    char name[128];   /* "NVIDIA H100 80GB HBM3" */
    int major, minor; /* compute capability */
    int multiprocessors;
    uint64_t memory, memory_free; /* bytes, the latter now */
    uint64_t shared_most;         /* bytes of shared memory that one block may have */
} mx_gpu_info;

/* MX_UNSUPPORTED with the reason (no driver, an old one) where none can be used. */
mx_status mx_gpu_count(int *out, mx_error *error);
mx_status mx_gpu_get_info(int device, mx_gpu_info *out, mx_error *error);
/* The device of the calling thread from now on. MX_UNSUPPORTED: the kernels were not built for it. */
mx_status mx_gpu_use(int device, mx_error *error);

/* Device memory, 256-byte aligned, not cleared. MX_NO_MEMORY names `what`, the bytes, and what is free. */
mx_status mx_gpu_alloc(void **out, size_t bytes, const char *what, mx_error *error);
void mx_gpu_free(void *p); /* NULL allowed */
/* Host memory that the device can read and write by itself at full speed. */
mx_status mx_gpu_alloc_host(void **out, size_t bytes, const char *what, mx_error *error);
void mx_gpu_free_host(void *p);

mx_status mx_gpu_stream_create(mx_gpu_stream **out, mx_error *error);
void mx_gpu_stream_destroy(mx_gpu_stream *s);                    /* NULL allowed; waits for its work */
mx_status mx_gpu_stream_wait(mx_gpu_stream *s, mx_error *error); /* the host waits until all of it is done */

/* Queued. Any direction; host memory that is not from mx_gpu_alloc_host is read or written before the call returns. */
mx_status mx_gpu_copy(void *to, const void *from, size_t bytes, mx_gpu_stream *s, mx_error *error);
mx_status mx_gpu_fill(void *to, int byte, size_t bytes, mx_gpu_stream *s, mx_error *error);
/* Kernels that this thread queues from now on may begin while the one before them in the stream is still ending, on
 * GPUs of 9.0 and newer (programmatic dependent launch): each waits by itself, in mx_begin. Off at first. */
void mx_gpu_overlap(bool on);
bool mx_gpu_overlapping(void);

/* Of the launches in this thread since the last call, the first that was refused. */
mx_status mx_gpu_check(const char *what, mx_error *error);

mx_status mx_gpu_event_create(mx_gpu_event **out, mx_error *error);
void mx_gpu_event_destroy(mx_gpu_event *e); /* NULL allowed */
mx_status mx_gpu_event_record(mx_gpu_event *e, mx_gpu_stream *s, mx_error *error);
mx_status mx_gpu_event_wait(mx_gpu_event *e, mx_error *error);                                /* the host waits */
mx_status mx_gpu_event_follow(mx_gpu_stream *s, mx_gpu_event *e, mx_error *error);            /* the stream waits */
mx_status mx_gpu_event_ms(mx_gpu_event *from, mx_gpu_event *to, float *out, mx_error *error); /* both recorded, done */

/* Between the two calls what is queued in `s` is not done but recorded (pinned memory and device memory only: the
 * recorded copies read it anew each time). */
mx_status mx_gpu_capture_begin(mx_gpu_stream *s, mx_error *error);
mx_status mx_gpu_capture_end(mx_gpu_stream *s, mx_gpu_graph **out, mx_error *error);
mx_status mx_gpu_graph_launch(mx_gpu_graph *g, mx_gpu_stream *s, mx_error *error);
void mx_gpu_graph_destroy(mx_gpu_graph *g); /* NULL allowed */

#ifdef __cplusplus
}
#endif
#endif
