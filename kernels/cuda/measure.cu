/* What the device can do at most: reading its memory, and multiplying on its tensor cores with nothing else to do. */
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device.cuh"

enum { READ_THREADS = 512, READ_AHEAD = 8, MMA_THREADS = 256 };

/* Every thread reads READ_AHEAD pieces of 16 bytes at a time, neighbours side by side. What it found goes to *out in a
 * case that does not happen, so that the compiler must read. */
__global__ void __launch_bounds__(READ_THREADS) read_all(const uint8_t *data, int64_t pieces, uint32_t *out) {
    mx_begin();
    const int64_t step = (int64_t)gridDim.x * READ_THREADS;
    uint32_t all = 0;
    for (int64_t at = (int64_t)blockIdx.x * READ_THREADS + threadIdx.x; at < pieces; at += step * READ_AHEAD) {
        uint4 piece[READ_AHEAD];
        MX_UNROLL
        for (int i = 0; i < READ_AHEAD; i++) {
            const int64_t mine = at + i * step;
            piece[i] = mx_load16_once(data + 16 * (mine < pieces ? mine : at));
        }
        MX_UNROLL
        for (int i = 0; i < READ_AHEAD; i++) all |= piece[i].x ^ piece[i].y ^ piece[i].z ^ piece[i].w;
    }
    if (all == 0x12345678u && data == nullptr) *out = all;
}

void mx_cuda_measure_read(const uint8_t *data, int64_t bytes, int blocks, uint32_t *out, mx_gpu_stream *s) {
    mx_launch(s, dim3((unsigned)blocks), READ_THREADS, 0, read_all, data, bytes / 16, out);
}

/* Eight products at a time that do not wait for each other. */
__global__ void __launch_bounds__(MMA_THREADS) multiply(int rounds, float *out) {
    mx_begin();
    float sum[8][4] = {};
    uint32_t a[4], b[2];
    MX_UNROLL
    for (int i = 0; i < 4; i++) a[i] = 0x3f003f00u + threadIdx.x; /* about 0.5 */
    b[0] = b[1] = 0x3f003f00u;
    for (int round = 0; round < rounds; round++) {
        MX_UNROLL
        for (int i = 0; i < 8; i++) mx_mma_bf16(sum[i], a, b);
    }
    float all = 0;
    MX_UNROLL
    for (int i = 0; i < 8; i++) all += sum[i][0] + sum[i][1] + sum[i][2] + sum[i][3];
    if (all == -1) *out = all;
}

double mx_cuda_measure_multiply(int blocks, int rounds, float *out, mx_gpu_stream *s) {
    mx_launch(s, dim3((unsigned)blocks), MMA_THREADS, 0, multiply, rounds, out);
    return (double)blocks * (MMA_THREADS / 32) * rounds * 8 * 2 * 16 * 8 * 16;
}
