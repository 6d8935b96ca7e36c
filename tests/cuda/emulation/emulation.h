#ifndef MX_TESTS_EMULATION_H
#define MX_TESTS_EMULATION_H

/* What a C++ compiler gets in place of nvcc's side of kernels/cuda/device.cuh, so that the tests run the very same
 * kernels on the CPU. The threads of a block are fibres of one of a few worker threads; a warp primitive is done once,
 * when all 32 lanes have come to it, and mx_sync lets go on when all threads of the block have. What a GPU would answer
 * with wrong numbers or with waiting forever ends the process with a message that names kernel, block and thread:
 *
 * - lanes of a warp at different primitives, or some at one and others at the end of the kernel; warps of a block so at
 *   mx_sync;
 * - addresses that are not aligned as their instruction wants;
 * - (address sanitizer) reading or writing outside of an allocation, of shared memory or of the stack.
 *
 * These show as wrong numbers:
 * - Races between threads: the order in which lanes, warps and blocks run is MX_EMULATION_ORDER = up (the default),
 * down or random; a kernel must give the same bits in all of them (mx_emulation_set_order).
 * - Asynchronous copies nobody waited for: a copy is done as late as can be (up), as early as can be (down), or at one
 *   of the two (random).
 * - What nobody wrote: dynamic shared memory begins each block as bytes 0xFF, which as floats are NaN, and device
 * memory does so when it is allocated. Variables that are __shared__ begin with what an earlier block left.
 *
 * MX_EMULATION_THREADS (2): workers. */
#include <functional>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <tuple>

#include "kernels/cuda/gpu.h"

#include "order.h"

#define __global__
#define __device__
#define __host__
#define __constant__    static const
#define __shared__      static thread_local                   /* the threads of a block are fibres of one thread */
#define __forceinline__ inline __attribute__((always_inline)) /* files may have different ones of one name */
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define MX_DEVICE __device__ __forceinline__
#define MX_UNROLL
#define MX_DYNAMIC_SHARED(name) uint8_t *name = mx_emulated_shared()

/* ---- types ---- */
struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}
static inline float2 make_float2(float x, float y) {
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

/* ---- the running thread ---- */
struct mx_emulated_place {
    uint3 thread, block;
    dim3 threads, blocks;
};
extern __thread const mx_emulated_place *mx_emulated_now;
#define threadIdx (mx_emulated_now->thread)
#define blockIdx  (mx_emulated_now->block)
#define blockDim  (mx_emulated_now->threads)
#define gridDim   (mx_emulated_now->blocks)

uint8_t *mx_emulated_shared();
/* Ends the process: "mxrun emulation: KERNEL, block (x, y, z), thread t: ...". */
[[noreturn]] void mx_emulated_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- launches ---- */
/* Runs `body` for each thread of the grid. `name` is what the message of a failure calls the kernel. */
void mx_emulated_run(const char *name, dim3 grid, int threads, size_t shared, const std::function<void()> &body);
/* Does `work` at once, or records it where the stream captures (gpu.cpp). */
void mx_emulated_queue(mx_gpu_stream *s, std::function<void()> work);
/* Whether a GPU would take such a launch; what is wrong is what mx_gpu_check reports (gpu.cpp). */
bool mx_emulated_accept(const char *name, dim3 grid, int threads, size_t shared);

template <typename... P, typename... A>
static inline void mx_emulated_launch(const char *name, mx_gpu_stream *s, dim3 grid, int threads, size_t shared,
                                      void (*kernel)(P...), A &&...arguments) {
    if (!mx_emulated_accept(name, grid, threads, shared)) return;
    const std::tuple<P...> values{P(arguments)...};
    mx_emulated_queue(s, [=] { mx_emulated_run(name, grid, threads, shared, [&] { std::apply(kernel, values); }); });
}
#define MX_EMULATED_TEXT_(x) #x
#define MX_EMULATED_TEXT(x)  MX_EMULATED_TEXT_(x)
#define mx_launch(...)                                                                                                 \
    mx_emulated_launch(__FILE__ ":" MX_EMULATED_TEXT(__LINE__) ": mx_launch(" #__VA_ARGS__ ")", __VA_ARGS__)

/* ---- what all lanes come to ---- */
/* The lane leaves a pointer to what it brings; when the last of 32 has come with the same `what`, `work` gets all of
 * them, by lane. They stay valid until it returns. */
void mx_emulated_warp(const char *what, void *mine, void (*work)(void *const lanes[32]));
void mx_sync();
/* Nothing but that a kernel of kernels/cuda in which a thread ends without it ends the test. */
void mx_begin();

static inline int mx_lane() {
    return (int)(threadIdx.x & 31);
}
static inline int mx_warp() {
    return (int)(threadIdx.x >> 5);
}
static inline void mx_sync_warp() {
    mx_emulated_warp("mx_sync_warp", nullptr, nullptr);
}

template <typename T> struct mx_emulated_lane {
    T in, out;
    int argument;
};
template <typename T, int (*FROM)(int lane, int argument)>
static inline T mx_emulated_shuffle(const char *what, T v, int argument) {
    mx_emulated_lane<T> mine = {v, v, argument};
    mx_emulated_warp(what, &mine, [](void *const lanes[32]) {
        for (int i = 0; i < 32; i++) {
            mx_emulated_lane<T> *to = (mx_emulated_lane<T> *)lanes[i];
            to->out = ((mx_emulated_lane<T> *)lanes[FROM(i, to->argument)])->in;
        }
    });
    return mine.out;
}
static inline int mx_emulated_from_lane(int, int lane) {
    return lane & 31;
}
static inline int mx_emulated_from_xor(int lane, int mask) {
    return (lane ^ mask) < 32 ? lane ^ mask : lane;
}
static inline int mx_emulated_from_above(int lane, int delta) {
    return lane >= delta ? lane - delta : lane;
}
template <typename T> static inline T mx_shuffle(T v, int lane) {
    return mx_emulated_shuffle<T, mx_emulated_from_lane>("mx_shuffle", v, lane);
}
template <typename T> static inline T mx_shuffle_xor(T v, int mask) {
    return mx_emulated_shuffle<T, mx_emulated_from_xor>("mx_shuffle_xor", v, mask);
}
template <typename T> static inline T mx_shuffle_up(T v, int delta) {
    return mx_emulated_shuffle<T, mx_emulated_from_above>("mx_shuffle_up", v, delta);
}
uint32_t mx_ballot(bool v);

static inline int mx_count_bits(uint32_t v) {
    return __builtin_popcount(v);
}
static inline int mx_first_bit(uint32_t v) {
    return __builtin_ffs((int)v) - 1;
}

/* ---- memory ---- */
static inline void mx_emulated_aligned(const void *p, uintptr_t bytes, const char *what) {
    if (((uintptr_t)p & (bytes - 1)) != 0)
        mx_emulated_fail("%s: address %p is not %d-byte aligned", what, p, (int)bytes);
}
template <typename T> static inline T mx_emulated_load(const void *p, const char *what) {
    mx_emulated_aligned(p, sizeof(T), what);
    return *(const T *)p;
}
static inline uint4 mx_load16(const void *p) {
    return mx_emulated_load<uint4>(p, "mx_load16");
}
static inline uint2 mx_load8(const void *p) {
    return mx_emulated_load<uint2>(p, "mx_load8");
}
static inline uint32_t mx_load4(const void *p) {
    return mx_emulated_load<uint32_t>(p, "mx_load4");
}
static inline uint4 mx_load16_once(const void *p) {
    return mx_emulated_load<uint4>(p, "mx_load16_once");
}
static inline uint32_t mx_load4_once(const void *p) {
    return mx_emulated_load<uint32_t>(p, "mx_load4_once");
}
void mx_copy16_async(void *shared, const void *global, bool valid);
void mx_copy_commit();
void mx_emulated_copy_wait(int newest);
template <int N> static inline void mx_copy_wait() {
    mx_emulated_copy_wait(N);
}
static inline uint32_t mx_atomic_max(uint32_t *p, uint32_t v) {
    mx_emulated_aligned(p, 4, "mx_atomic_max");
    uint32_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (old < v && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
static inline uint32_t mx_atomic_add(uint32_t *p, uint32_t v) {
    mx_emulated_aligned(p, 4, "mx_atomic_add");
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}

/* ---- numbers ---- */
static inline uint32_t mx_bits(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}
static inline float mx_float(uint32_t v) {
    float f;
    memcpy(&f, &v, 4);
    return f;
}
/* To nearest even; NaN becomes 0x7FFF. */
static inline uint32_t mx_emulated_to_bf16(float v) {
    const uint32_t bits = mx_bits(v);
    return v != v ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
uint32_t mx_emulated_to_f16(float v); /* to nearest even; beyond 65504, as device.cuh says, 65504; NaN: 0x7fff */
float mx_emulated_from_f16(uint32_t half);

static inline uint32_t mx_pack_bf16(float low, float high) {
    return mx_emulated_to_bf16(low) | mx_emulated_to_bf16(high) << 16;
}
static inline uint32_t mx_pack_f16(float low, float high) {
    return mx_emulated_to_f16(low) | mx_emulated_to_f16(high) << 16;
}
static inline float mx_bf16_low(uint32_t v) {
    return mx_float(v << 16);
}
static inline float mx_bf16_high(uint32_t v) {
    return mx_float(v & 0xffff0000u);
}
static inline float mx_f16_low(uint32_t v) {
    return mx_emulated_from_f16(v & 0xffff);
}
static inline float mx_f16_high(uint32_t v) {
    return mx_emulated_from_f16(v >> 16);
}
/* A product of two BF16 numbers has 16 significant bits: the float is exact but for subnormal ones, whose last bits lie
 * too far below BF16's to make a tie. */
static inline uint32_t mx_mul_bf16x2(uint32_t a, uint32_t b) {
    return mx_pack_bf16(mx_bf16_low(a) * mx_bf16_low(b), mx_bf16_high(a) * mx_bf16_high(b));
}
static inline float mx_exp2(float x) {
    const float v = exp2f(x);
    return v < 1.17549435e-38f ? 0.0f : v;
}

/* ---- tensor core ---- */
void mx_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]);
void mx_mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2]);

#endif
