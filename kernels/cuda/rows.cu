/* The rows of a step: the embedding and RoPE's angles at its beginning, and RMSNorm with what comes before it (the
 * experts' results joined into the residual) and behind it (the terms that products read). */
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device.cuh"

/* ---- the beginning of a step ------------------------------------------------------------------------------------- */

enum { BEGIN_THREADS = 256 };

/* Eight columns of a row at a time: they are in a row in a unit (layout.h). Columns 8 chunk .. 8 chunk + 7 of `row`;
 * `half`: rows 8..15 of the unit. */
struct place {
    int64_t unit; /* in the matrix */
    int g, half, block, t;
};

MX_DEVICE place place_of(int64_t row, int chunk, int64_t units) {
    place p;
    p.unit = row / MX_UNIT_ROWS * units + chunk / (MX_UNIT_COLS / 8);
    p.g = (int)(row % 8);
    p.half = (int)(row % MX_UNIT_ROWS / 8);
    p.block = chunk % 8 / 4;
    p.t = chunk % 4;
    return p;
}

MX_DEVICE void widen_bf16(float out[8], const mx_cuda_matrix &m, const place &p) {
    const int lane = p.g * 4 + p.t;
    MX_UNROLL
    for (int i = 0; i < 4; i++) {
        const uint8_t *step = m.data + p.unit * MX_UNIT_BF16 + ((p.block * 2 + i / 2) * 32 + lane) * 16;
        const uint32_t pair = mx_load4(step + (i % 2 * 2 + p.half) * 4);
        out[2 * i] = mx_bf16_low(pair);
        out[2 * i + 1] = mx_bf16_high(pair);
    }
}

MX_DEVICE void widen_q8_0(float out[8], const mx_cuda_matrix &m, const place &p) {
    const int lane = p.g * 4 + p.t;
    const uint2 v = mx_load8(m.data + p.unit * MX_UNIT_Q8_0 + (p.block * 32 + lane) * 16 + p.half * 8);
    const uint32_t pair = mx_load4(m.scales + p.unit * MX_UNIT_Q8_0_SCALES + (p.g * 2 + p.block) * 4);
    const float scale = p.half ? mx_f16_high(pair) : mx_f16_low(pair);
    const uint32_t word[2] = {v.x, v.y};
    MX_UNROLL
    for (int i = 0; i < 8; i++) out[i] = scale * (float)(int8_t)(word[i / 4] >> (i % 4 * 8));
}

/* Blocks (row, 0) copy the row's embedding, a thread eight columns at a time; blocks (row, 1) make its angles. A hole
 * has zeros and the angles of position 0: finite, whatever is computed with them. */
__global__ void __launch_bounds__(BEGIN_THREADS) begin_rows(mx_cuda_begin b) {
    mx_begin();
    const int row = blockIdx.x, position = b.position[row];
    if (blockIdx.y == 1) {
        const int half = b.head_dim / 2;
        for (int i = threadIdx.x; i < half; i += blockDim.x) {
            const double angle = (position < 0 ? 0 : position) * b.inv_freq[i];
            b.cos[(int64_t)row * half + i] = (float)(cos(angle) * b.concentration);
            b.sin[(int64_t)row * half + i] = (float)(sin(angle) * b.concentration);
        }
        return;
    }
    int token = b.token[row];
    if (position >= 0 && token < 0) token = b.drawn[-1 - token];
    const int64_t units = mx_cuda_units(b.hidden);
    float4 *x = (float4 *)(b.x + (int64_t)row * b.hidden);
    for (int chunk = threadIdx.x; chunk < b.hidden / 8; chunk += blockDim.x) {
        float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        const place p = place_of(token, chunk, units);
        if (position >= 0 && b.embedding.format == MX_CUDA_BF16) widen_bf16(v, b.embedding, p);
        if (position >= 0 && b.embedding.format == MX_CUDA_Q8_0) widen_q8_0(v, b.embedding, p);
        x[2 * chunk] = make_float4(v[0], v[1], v[2], v[3]);
        x[2 * chunk + 1] = make_float4(v[4], v[5], v[6], v[7]);
    }
}

extern "C" void mx_cuda_begin_rows(const mx_cuda_begin *b, mx_gpu_stream *s) {
    if (b->rows > 0) mx_launch(s, dim3(b->rows, 2), BEGIN_THREADS, 0, begin_rows, *b);
}

/* ---- RMSNorm ----------------------------------------------------------------------------------------------------- */

/* A block a row. Thread i holds columns 4 i .. 4 i + 3 and, CHUNKS 2, those 4096 further on; columns that are not there
 * count as zeros. Sums go over a thread's columns in ascending order, then over its warp in mx_warp_sum's tree, then in
 * the same tree over the 32 warps that a block of 1024 threads has: warps that a shorter row needs not are zeros, so
 * that the order is the same for every hidden. */
enum { NORM_THREADS = 1024, NORM_MOST = 8192 };

MX_DEVICE int column_of(int chunk) {
    return 4 * ((int)threadIdx.x + chunk * NORM_THREADS);
}

MX_DEVICE float4 add4(const float4 &a, const float4 &b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

MX_DEVICE float4 load_float4(const float *p) {
    const uint4 v = mx_load16(p);
    return make_float4(mx_float(v.x), mx_float(v.y), mx_float(v.z), mx_float(v.w));
}

/* v[i] += the sum of the columns of chunk i of the slots, added in their order; lane j holds slot j. All lanes call it.
 * Four slots at a time, so that their loads are under way together. */
template <int CHUNKS> MX_DEVICE void add_experts(float4 v[CHUNKS], const mx_cuda_norm &n, int slot) {
    enum { TOGETHER = 4 };
    float4 sum[CHUNKS];
    MX_UNROLL
    for (int i = 0; i < CHUNKS; i++) sum[i] = make_float4(-0.0f, -0.0f, -0.0f, -0.0f); /* what adding does not change */
    for (int first = 0; first < n.top_k; first += TOGETHER) {
        const float *from[TOGETHER];
        MX_UNROLL
        for (int j = 0; j < TOGETHER; j++)
            from[j] = n.expert_out + (int64_t)mx_shuffle(slot, (first + j) & 31) * n.hidden;
        MX_UNROLL
        for (int i = 0; i < CHUNKS; i++) {
            const int col = column_of(i);
            if (col >= n.hidden) continue;
            float4 got[TOGETHER];
            MX_UNROLL
            for (int j = 0; j < TOGETHER; j++)
                if (first + j < n.top_k) got[j] = load_float4(from[j] + col);
            MX_UNROLL
            for (int j = 0; j < TOGETHER; j++)
                if (first + j < n.top_k) sum[i] = add4(sum[i], got[j]);
        }
    }
    MX_UNROLL
    for (int i = 0; i < CHUNKS; i++) v[i] = add4(v[i], sum[i]);
}

/* Over the block; `part` is shared memory. All threads call it, and all get the result. */
template <typename T> MX_DEVICE T block_sum(T v, T part[32]) {
    MX_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) v += mx_shuffle_xor(v, mask);
    if (mx_lane() == 0) part[mx_warp()] = v;
    mx_sync();
    v = mx_lane() < (int)blockDim.x / 32 ? part[mx_lane()] : (T)0;
    MX_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) v += mx_shuffle_xor(v, mask);
    return v;
}

MX_DEVICE void square(double *sum, float v) {
    *sum += (double)v * v;
}

/* 1 / sqrt(mean square + eps). Where the squares leave what fp32 holds (rows of zeros, of tiny and of huge numbers, and
 * what is not finite) they are summed again in double, which takes long but comes never in a model that works. */
template <int CHUNKS> MX_DEVICE float norm_factor(const float4 v[CHUNKS], int hidden, float eps) {
    __shared__ float part[32];
    __shared__ double exact_part[32];
    float sum = 0;
    MX_UNROLL
    for (int i = 0; i < CHUNKS; i++)
        sum = fmaf(v[i].w, v[i].w, fmaf(v[i].z, v[i].z, fmaf(v[i].y, v[i].y, fmaf(v[i].x, v[i].x, sum))));
    sum = block_sum(sum, part);
    if (sum > 1e-20f && sum < 1e37f) return 1.0f / sqrtf(sum / (float)hidden + eps);
    double exact = 0;
    MX_UNROLL
    for (int i = 0; i < CHUNKS; i++) {
        square(&exact, v[i].x);
        square(&exact, v[i].y);
        square(&exact, v[i].z);
        square(&exact, v[i].w);
    }
    exact = block_sum(exact, exact_part);
    return (float)(1.0 / sqrt(exact / hidden + eps));
}

template <int TERMS> MX_DEVICE void store_terms(uint16_t *out, int64_t out_term, const float4 &v) {
    uint32_t first[TERMS], second[TERMS];
    mx_split_bf16<TERMS>(v.x, v.y, first);
    mx_split_bf16<TERMS>(v.z, v.w, second);
    MX_UNROLL
    for (int i = 0; i < TERMS; i++) *(uint2 *)(out + i * out_term) = make_uint2(first[i], second[i]);
}

/* Nothing waits for another load but what is asked of the slots' rows. */
template <int CHUNKS, int TERMS> __global__ void __launch_bounds__(NORM_THREADS) norm_rows(mx_cuda_norm n) {
    mx_begin();
    const int r = blockIdx.x, t = n.row ? n.row[r] : r;
    const bool hole = n.position && n.position[t] < 0;
    const int slot = n.row_slot && mx_lane() < n.top_k ? n.row_slot[(int64_t)t * n.top_k + mx_lane()] : 0;
    float *x = n.x + (int64_t)t * n.hidden;
    float4 v[CHUNKS], gain[CHUNKS];
    MX_UNROLL
    for (int i = 0; i < CHUNKS; i++) {
        const int col = column_of(i);
        v[i] = gain[i] = make_float4(0, 0, 0, 0);
        if (col >= n.hidden) continue;
        v[i] = *(const float4 *)(x + col);
        if (n.gain) gain[i] = load_float4(n.gain + col);
    }
    if (hole) return;
    if (n.row_slot) {
        add_experts<CHUNKS>(v, n, slot);
        MX_UNROLL
        for (int i = 0; i < CHUNKS; i++)
            if (column_of(i) < n.hidden) *(float4 *)(x + column_of(i)) = v[i];
    }
    if (!n.gain) return;
    const float factor = norm_factor<CHUNKS>(v, n.hidden, n.eps);
    MX_UNROLL
    for (int i = 0; i < CHUNKS; i++) {
        const int col = column_of(i);
        if (col >= n.hidden) continue;
        const float4 y = make_float4(v[i].x * factor * gain[i].x, v[i].y * factor * gain[i].y,
                                     v[i].z * factor * gain[i].z, v[i].w * factor * gain[i].w);
        store_terms<TERMS>(n.out + r * mx_cuda_padded(n.hidden) + col, n.out_term, y);
    }
}

template <int CHUNKS> static void launch_norm(const mx_cuda_norm *n, mx_gpu_stream *s) {
    const int needed = (n->hidden / 4 + 31) / 32 * 32, threads = needed < NORM_THREADS ? needed : NORM_THREADS;
    if (n->terms == 1)
        mx_launch(s, dim3(n->rows), threads, 0, norm_rows<CHUNKS, 1>, *n);
    else if (n->terms == 2)
        mx_launch(s, dim3(n->rows), threads, 0, norm_rows<CHUNKS, 2>, *n);
    else
        mx_launch(s, dim3(n->rows), threads, 0, norm_rows<CHUNKS, 3>, *n);
}

extern "C" void mx_cuda_norm_rows(const mx_cuda_norm *n, mx_gpu_stream *s) {
    if (n->rows <= 0) return;
    if (n->hidden <= NORM_MOST / 2)
        launch_norm<1>(n, s);
    else
        launch_norm<2>(n, s);
}
