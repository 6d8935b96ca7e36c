/* Made-up weights, byte for byte those of model/synthetic.c: blocks of 64 KiB, each of eight lanes of xorshift128+
 * that make 64 bytes in a step. */
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device.cuh"

/* mx_noise of model/synthetic_private.h, which kernels do not know. */
enum { NOISE_BF16, NOISE_GAIN, NOISE_CODES, NOISE_SCALES };
enum { BLOCK = 1 << 16, STEP = 64, LANES = 8, THREADS = 256 };

/* What becomes of eight random bytes r: ((r & keep) + base) - (r & less). No carry goes from one number to the next:
 * the exponent of the largest power is at least 3, the least scale at most 252. */
struct shaping {
    uint64_t keep, base, less;
};

static shaping shaping_of(int noise, int base) {
    const uint64_t halves = 0x0001000100010001u, bytes = 0x0101010101010101u;
    switch (noise) {
    case NOISE_BF16: /* sign and mantissa, and of the powers one of four */
        return {0x807f * halves, ((uint64_t)base << 7) * halves, 0x0180 * halves};
    case NOISE_GAIN:
        return {0x00ff * halves, 0x3f00 * halves, 0};
    case NOISE_SCALES:
        return {0x03 * bytes, (uint64_t)base * bytes, 0};
    default:
        return {~(uint64_t)0, 0, 0};
    }
}

/* The output of splitmix64 `steps` steps behind state `key`. */
MX_DEVICE uint64_t splitmix64(uint64_t key, uint64_t steps) {
    uint64_t z = key + steps * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A thread is one lane of one block: a warp writes 64 bytes in a row in each of four blocks. */
__global__ void __launch_bounds__(THREADS)
    fill(uint8_t *out, shaping shape, uint64_t key, uint64_t first_block, uint64_t bytes) {
    mx_begin();
    const uint64_t thread = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    const uint64_t block = thread / LANES, lane = thread % LANES, at = block * BLOCK;
    if (at >= bytes) return;
    const uint64_t left = bytes - at, steps = ((left < BLOCK ? left : (uint64_t)BLOCK) + STEP - 1) / STEP;
    const uint64_t seed = splitmix64(key + first_block + block, 1);
    uint64_t a = splitmix64(seed, 2 * lane + 1), b = splitmix64(seed, 2 * lane + 2);
    uint64_t *to = (uint64_t *)(out + at) + lane;
    for (uint64_t i = 0; i < steps; i++, to += LANES) {
        const uint64_t r = a + b;
        *to = (r & shape.keep) + shape.base - (r & shape.less);
        a ^= a << 23;
        a ^= b ^ (a >> 18) ^ (b >> 5);
        const uint64_t next = a;
        a = b;
        b = next;
    }
}

extern "C" void mx_cuda_synthetic(uint8_t *out, int noise, int base, uint64_t key, uint64_t first_block, uint64_t bytes,
                                  mx_gpu_stream *s) {
    const uint64_t threads = (bytes + BLOCK - 1) / BLOCK * LANES;
    if (threads)
        mx_launch(s, dim3((unsigned)((threads + THREADS - 1) / THREADS)), THREADS, 0, fill, out,
                  shaping_of(noise, base), key, first_block, bytes);
}
