/* What a step moves about: changed entries of page tables, zeros for new pages, and the rows that its last layer goes
 * on with. */
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device.cuh"

enum { THREADS = 256, MOST_Y = 65535 }; /* blocks in y */

static __global__ void __launch_bounds__(THREADS) set_entries(int32_t *to, const mx_cuda_entry *entry, int count) {
    mx_begin();
    const int i = (int)blockIdx.x * THREADS + (int)threadIdx.x;
    if (i < count) to[entry[i].at] = entry[i].value;
}

void mx_cuda_set_entries(int32_t *to, const mx_cuda_entry *entry, int count, mx_gpu_stream *s) {
    if (count > 0)
        mx_launch(s, dim3((unsigned)(count + THREADS - 1) / THREADS), THREADS, 0, set_entries, to, entry, count);
}

/* Block (x, i): 16 bytes a thread of page i. */
static __global__ void __launch_bounds__(THREADS) clear_pages(uint8_t *pages, int64_t page_bytes, const int32_t *page) {
    mx_begin();
    const int64_t at = 16 * ((int64_t)blockIdx.x * THREADS + threadIdx.x);
    if (at < page_bytes) *(uint4 *)(pages + page[blockIdx.y] * page_bytes + at) = make_uint4(0, 0, 0, 0);
}

void mx_cuda_clear_pages(uint8_t *pages, int64_t page_bytes, const int32_t *page, int count, mx_gpu_stream *s) {
    const unsigned blocks = (unsigned)((page_bytes / 16 + THREADS - 1) / THREADS);
    for (int at = 0; at < count; at += MOST_Y) {
        const unsigned some = (unsigned)(count - at < MOST_Y ? count - at : MOST_Y);
        mx_launch(s, dim3(blocks, some), THREADS, 0, clear_pages, pages, page_bytes, page + at);
    }
}

/* Block (x, r): 16 bytes a thread of row r. */
static __global__ void __launch_bounds__(THREADS)
    gather_rows(float *to, const float *from, const int32_t *row, int64_t width) {
    mx_begin();
    const int64_t r = blockIdx.y, at = 4 * ((int64_t)blockIdx.x * THREADS + threadIdx.x);
    if (at < width) *(float4 *)(to + r * width + at) = *(const float4 *)(from + (int64_t)row[r] * width + at);
}

void mx_cuda_gather_rows(float *to, const float *from, const int32_t *row, int rows, int64_t width, mx_gpu_stream *s) {
    const unsigned blocks = (unsigned)((width / 4 + THREADS - 1) / THREADS);
    for (int at = 0; at < rows; at += MOST_Y) {
        const unsigned count = (unsigned)(rows - at < MOST_Y ? rows - at : MOST_Y);
        mx_launch(s, dim3(blocks, count), THREADS, 0, gather_rows, to + at * width, from, row + at, width);
    }
}
