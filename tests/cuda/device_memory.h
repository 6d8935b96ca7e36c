#ifndef TESTS_CUDA_DEVICE_MEMORY_H
#define TESTS_CUDA_DEVICE_MEMORY_H

/* For tests of kernels: memory on the device, numbers to put there, and where it is (target.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/cuda_kernels.h"
#include "tests/cuda/target.h"

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        mx_error error_ = {0};                                                                                         \
        if (call) fail_msg("%s: %s", #call, error_.text);                                                              \
    } while (0)

enum { MOST_BUFFERS = 64 };
typedef struct device {
    mx_gpu_stream *stream;
    void *buffer[MOST_BUFFERS];
    int buffers;
} device;

static inline device device_open(void) {
    device d = {0};
    CHECK(mx_gpu_use(0, &error_));
    CHECK(mx_gpu_stream_create(&d.stream, &error_));
    return d;
}

/* Everything since then; waits. */
static inline void device_close(device *d) {
    CHECK(mx_gpu_stream_wait(d->stream, &error_));
    mx_gpu_stream_destroy(d->stream);
    while (d->buffers > 0) mx_gpu_free(d->buffer[--d->buffers]);
}

/* Belongs to the device; `from` NULL: what nobody wrote (NaN in the emulation). */
static inline void *on_device(device *d, const void *from, size_t bytes) {
    void *p = NULL;
    assert_true(d->buffers < MOST_BUFFERS);
    CHECK(mx_gpu_alloc(&p, bytes, "a test", &error_));
    d->buffer[d->buffers++] = p;
    if (from) CHECK(mx_gpu_copy(p, from, bytes, d->stream, &error_));
    return p;
}

/* Waits for what was queued before. */
static inline void from_device(device *d, void *to, const void *from, size_t bytes) {
    CHECK(mx_gpu_check("the test's kernels", &error_));
    CHECK(mx_gpu_copy(to, from, bytes, d->stream, &error_));
    CHECK(mx_gpu_stream_wait(d->stream, &error_));
}

/* ---- numbers: xorshift ---- */
typedef struct rng {
    uint64_t state;
} rng;

static inline uint32_t rng_bits(rng *r) {
    r->state ^= r->state << 13;
    r->state ^= r->state >> 7;
    r->state ^= r->state << 17;
    return (uint32_t)(r->state >> 32);
}
static inline rng rng_seeded(uint64_t n) {
    rng r = {n * 0x9e3779b97f4a7c15u + 1};
    for (int i = 0; i < 8; i++) rng_bits(&r);
    return r;
}
static inline int rng_below(rng *r, int n) {
    return (int)((uint64_t)rng_bits(r) * (uint64_t)n >> 32);
}
/* Roughly normal, variance 1. */
static inline float rng_normal(rng *r) {
    float sum = 0;
    for (int i = 0; i < 6; i++) sum += (float)(rng_bits(r) >> 8) * 0x1p-24f;
    return (sum - 3.0f) * 1.41421356f;
}

#endif
