#ifndef MX_CUDA_DEVICE_CUH
#define MX_CUDA_DEVICE_CUH

/* What kernels are written in: a few primitives, each one instruction of the GPU. Under nvcc they are that instruction;
 * a C++ compiler gets tests/cuda/emulation/emulation.h instead, in which the threads of a block are fibres and each
 * primitive is what PTX's documentation says of it. Kernels use nothing of CUDA but these, __global__, __device__,
 * __shared__, __launch_bounds__, threadIdx, blockIdx, blockDim, gridDim, dim3, float2, float4, uint2, uint4, and
 * ordinary C++17. Shared memory of a size known only to the host: MX_DYNAMIC_SHARED.
 *
 * All 32 lanes of a warp take part in each primitive that says "warp", all threads of a block in mx_sync. */
#include <stdint.h>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/layout.h"

#ifndef __CUDACC__
#include "emulation.h"
#else
#include <cuda_runtime.h>
#include <math.h>

#define MX_DEVICE __device__ __forceinline__
#define MX_UNROLL _Pragma("unroll")
/* `name` becomes a uint8_t pointer to the block's dynamic shared memory, 128-byte aligned. */
#define MX_DYNAMIC_SHARED(name)                                                                                        \
    extern __shared__ __align__(128) uint8_t mx_dynamic[];                                                             \
    uint8_t *name = mx_dynamic

/* Queues a kernel: mx_launch(stream, grid, threads, dynamic shared bytes, kernel<...>, arguments...). */
template <typename... P, typename... A>
static inline void mx_launch(mx_gpu_stream *s, dim3 grid, int threads, size_t shared, void (*kernel)(P...),
                             A &&...arguments) {
    if (shared > 48 * 1024) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (!mx_gpu_overlapping()) {
        kernel<<<grid, threads, shared, (cudaStream_t)s>>>(P(arguments)...);
        return;
    }
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = (cudaStream_t)s;
    config.attrs = &early;
    config.numAttrs = 1;
    cudaLaunchKernelEx(&config, kernel, P(arguments)...);
}

/* Every thread of every kernel calls it once, before it touches memory that an earlier kernel may write, and before it
 * ends: what the kernels before this one in the stream have written is there from then on. The next kernel may come as
 * soon as there is room for it, and waits there (mx_gpu_overlap). */
MX_DEVICE void mx_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
MX_DEVICE int mx_lane() {
    return threadIdx.x & 31;
} /* blocks are one-dimensional */
MX_DEVICE int mx_warp() {
    return threadIdx.x >> 5;
}
MX_DEVICE void mx_sync() {
    __syncthreads();
}
MX_DEVICE void mx_sync_warp() {
    __syncwarp();
}

/* ---- warp: what other lanes hold ---- */
template <typename T> MX_DEVICE T mx_shuffle(T v, int lane) {
    return __shfl_sync(0xffffffffu, v, lane);
}
template <typename T> MX_DEVICE T mx_shuffle_xor(T v, int mask) {
    return __shfl_xor_sync(0xffffffffu, v, mask);
}
/* Of the lane `delta` below; the first `delta` lanes get their own. */
template <typename T> MX_DEVICE T mx_shuffle_up(T v, int delta) {
    return __shfl_up_sync(0xffffffffu, v, delta);
}
MX_DEVICE uint32_t mx_ballot(bool v) {
    return __ballot_sync(0xffffffffu, v);
}
MX_DEVICE int mx_count_bits(uint32_t v) {
    return __popc(v);
}
MX_DEVICE int mx_first_bit(uint32_t v) {
    return __ffs((int)v) - 1;
} /* -1: none */

/* ---- memory ---- */
MX_DEVICE uint4 mx_load16(const void *p) {
    return __ldg((const uint4 *)p);
} /* read-only data, 16-byte aligned */
MX_DEVICE uint2 mx_load8(const void *p) {
    return __ldg((const uint2 *)p);
}
MX_DEVICE uint32_t mx_load4(const void *p) {
    return __ldg((const uint32_t *)p);
}
/* Of weights that nobody reads again soon: past L1. */
MX_DEVICE uint4 mx_load16_once(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
MX_DEVICE uint32_t mx_load4_once(const void *p) {
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
/* 16 bytes from global to shared memory without waiting; `valid` false: zeros. Groups: everything copied since the last
 * mx_copy_commit; mx_copy_wait<N>: all of this thread's groups but the N newest are there (others see it after
 * mx_sync). */
MX_DEVICE void mx_copy16_async(void *shared, const void *global, bool valid) {
    const uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
MX_DEVICE void mx_copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> MX_DEVICE void mx_copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
/* Integers only: sums of floats depend on their order. */
MX_DEVICE uint32_t mx_atomic_max(uint32_t *p, uint32_t v) {
    return atomicMax(p, v);
}
MX_DEVICE uint32_t mx_atomic_add(uint32_t *p, uint32_t v) {
    return atomicAdd(p, v);
}

/* ---- numbers ---- */
/* Two 16-bit floats in a word, the first in the low half, rounded to nearest even (F16: beyond 65504 becomes 65504);
 * NaN becomes 0x7fff. */
MX_DEVICE uint32_t mx_pack_bf16(float low, float high) {
    uint32_t v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}
MX_DEVICE float mx_clamp_f16(float v) { /* to +-65504; NaN stays NaN */
    float above, within;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(above) : "f"(v), "f"(-65504.0f));
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(within) : "f"(above), "f"(65504.0f));
    return within;
}
MX_DEVICE uint32_t mx_pack_f16(float low, float high) {
    uint32_t v;
    low = mx_clamp_f16(low);
    high = mx_clamp_f16(high);
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}
MX_DEVICE float mx_bf16_low(uint32_t v) {
    return __uint_as_float(v << 16);
}
MX_DEVICE float mx_bf16_high(uint32_t v) {
    return __uint_as_float(v & 0xffff0000u);
}
MX_DEVICE float mx_f16_low(uint32_t v) {
    float f;
    asm("{ .reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(f) : "r"(v));
    return f;
}
MX_DEVICE float mx_f16_high(uint32_t v) {
    float f;
    asm("{ .reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h; }" : "=f"(f) : "r"(v));
    return f;
}
/* Both halves multiplied, subnormals kept, to nearest even. */
MX_DEVICE uint32_t mx_mul_bf16x2(uint32_t a, uint32_t b) {
    uint32_t v;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(0x80008000u)); /* a b + -0 */
    return v;
}
MX_DEVICE uint32_t mx_bits(float v) {
    return __float_as_uint(v);
}
MX_DEVICE float mx_float(uint32_t v) {
    return __uint_as_float(v);
}
MX_DEVICE float mx_exp2(float x) { /* within 2 ulp; subnormal results are 0 */
    float v;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}

/* ---- warp: tensor core ---- */
/* c[16][8] += a[16][16] b[16][8], fp32 sums. With g = lane / 4, t = lane % 4 (PTX ISA, mma.m16n8k16):
 * a[0]: row g, k = 2t, 2t+1; a[1]: row g + 8, the same; a[2]: row g, k = 2t+8, 2t+9; a[3]: row g + 8, the same;
 * b[0]: k = 2t, 2t+1 of column g; b[1]: k = 2t+8, 2t+9;
 * c[0], c[1]: row g, columns 2t, 2t+1; c[2], c[3]: row g + 8.
 *
 * PTX leaves the rounding of sums open, and hardware does not round but truncates: products and c are shifted to the
 * largest one's exponent and cut off there, with 1 (A100) or 2 (H100) bits beyond fp32's, and so is the sum: each mma
 * may lose about an ulp, always towards zero. The emulation rounds once, to nearest. */
MX_DEVICE void mx_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
MX_DEVICE void mx_mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif /* __CUDACC__ */

/* ---- on top of them ---- */
/* a - b, rounded once, also where `a` is a product that the compiler would make one fused operation with it. */
MX_DEVICE float mx_sub(float a, float b) {
#ifdef __CUDACC__
    return __fsub_rn(a, b);
#else
    return a - b;
#endif
}

/* mx_pack_f16 of what lies within +-65504. */
MX_DEVICE uint32_t mx_pack_f16_within(float low, float high) {
#ifdef __CUDACC__
    uint32_t v;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
#else
    return mx_pack_f16(low, high);
#endif
}

/* Both halves added, to nearest even. */
MX_DEVICE uint32_t mx_add_bf16x2(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
    uint32_t v;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(0x3f803f80u), "r"(b)); /* a 1 + b */
    return v;
#else
    return mx_pack_bf16(mx_bf16_low(a) + mx_bf16_low(b), mx_bf16_high(a) + mx_bf16_high(b));
#endif
}

/* The terms of two numbers, packed (cuda_kernels.h): term[0] the largest part. */
template <int TERMS> MX_DEVICE void mx_split_bf16(float low, float high, uint32_t term[TERMS]) {
    MX_UNROLL
    for (int i = 0; i < TERMS; i++) {
        term[i] = mx_pack_bf16(low, high);
        low = mx_sub(low, mx_bf16_low(term[i]));
        high = mx_sub(high, mx_bf16_high(term[i]));
    }
}

/* Over the lanes of a warp, in a fixed tree: every lane gets the result. */
MX_DEVICE float mx_warp_sum(float v) {
    MX_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) v += mx_shuffle_xor(v, mask);
    return v;
}
MX_DEVICE float mx_warp_max(float v) {
    MX_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) v = fmaxf(v, mx_shuffle_xor(v, mask));
    return v;
}
MX_DEVICE uint32_t mx_warp_largest(uint32_t v) {
#ifdef __CUDACC__
    return __reduce_max_sync(0xffffffffu, v);
#else
    for (int mask = 16; mask > 0; mask /= 2) {
        const uint32_t other = mx_shuffle_xor(v, mask);
        v = other > v ? other : v;
    }
    return v;
#endif
}

#endif
