/* What a step moves about: changed entries of page tables, and the rows that its last layer goes on with. */
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device.cuh"

enum { THREADS = 256 };

static __global__ void __launch_bounds__(THREADS) set_entries(int32_t *to, const mx_cuda_entry *entry, int count) {
    const int i = (int)blockIdx.x * THREADS + (int)threadIdx.x;
    if (i < count) to[entry[i].at] = entry[i].value;
}

void mx_cuda_set_entries(int32_t *to, const mx_cuda_entry *entry, int count, mx_gpu_stream *s) {
    if (count > 0)
        mx_launch(s, dim3((unsigned)(count + THREADS - 1) / THREADS), THREADS, 0, set_entries, to, entry, count);
}

/* Block (x, r): 16 bytes a thread of row r. */
static __global__ void __launch_bounds__(THREADS)
    gather_rows(float *to, const float *from, const int32_t *row, int64_t width) {
    const int64_t r = blockIdx.y, at = 4 * ((int64_t)blockIdx.x * THREADS + threadIdx.x);
    if (at < width) *(float4 *)(to + r * width + at) = *(const float4 *)(from + (int64_t)row[r] * width + at);
}

void mx_cuda_gather_rows(float *to, const float *from, const int32_t *row, int rows, int64_t width, mx_gpu_stream *s) {
    const unsigned blocks = (unsigned)((width / 4 + THREADS - 1) / THREADS);
    enum { MOST = 65535 }; /* blocks in y */
    for (int at = 0; at < rows; at += MOST) {
        const unsigned count = (unsigned)(rows - at < MOST ? rows - at : MOST);
        mx_launch(s, dim3(blocks, count), THREADS, 0, gather_rows, to + at * width, from, row + at, width);
    }
}
