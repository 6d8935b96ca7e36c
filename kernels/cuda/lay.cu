/* Weights from their order in a file to that of layout.h. */
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device.cuh"

int64_t mx_cuda_data_bytes(mx_cuda_format format, int64_t rows, int64_t cols) {
    const int64_t unit = format == MX_CUDA_BF16 ? MX_UNIT_BF16 : format == MX_CUDA_MXFP4 ? MX_UNIT_MXFP4 : MX_UNIT_Q8_0;
    return mx_cuda_row_tiles(rows) * mx_cuda_units(cols) * unit;
}

int64_t mx_cuda_scale_bytes(mx_cuda_format format, int64_t rows, int64_t cols) {
    const int64_t unit = format == MX_CUDA_BF16    ? 0
                         : format == MX_CUDA_MXFP4 ? MX_UNIT_MXFP4_SCALES
                                                   : MX_UNIT_Q8_0_SCALES;
    return mx_cuda_row_tiles(rows) * mx_cuda_units(cols) * unit;
}

MX_DEVICE uint32_t load_bytes(const uint8_t *p, int bytes) { /* at any alignment */
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint32_t)p[i] << 8 * i;
    return v;
}

/* Code c of a word's eight, to the bits where layout.h has it. */
MX_DEVICE uint32_t place_code(uint32_t code, int c) {
    const uint32_t spread = ((code & 8) << 12 | (code & 7) << 6) << 16 * (c % 2);
    if (c / 2 == 0) return spread;
    if (c / 2 == 1) return spread >> 6;
    if (c / 2 == 2) return spread >> 10 | spread << 22;
    return (spread & 0x81808180u) >> 4 | (spread & 0x00400040u) << 4;
}

/* Where a thread's block of 32 columns goes: rows g + 8 high, block b of unit `unit`. */
struct lay_place {
    int64_t unit;
    int g, high, b;
};

/* `codes`: 16 bytes in one of MXFP4's two orders; NULL: columns beyond the matrix. */
MX_DEVICE void lay_mxfp4(const mx_cuda_lay &l, const lay_place &to, const uint8_t *codes, uint32_t scale) {
    for (int t = 0; t < 4; t++) {
        uint32_t word = 0;
        for (int c = 0; codes && c < 8; c++) {
            const int col = 8 * t + c, byte = l.from == MX_MXFP4 ? col / 2 : col % 16;
            const int high = l.from == MX_MXFP4 ? col % 2 : col / 16;
            word |= place_code(codes[byte] >> 4 * high & 15, c);
        }
        uint8_t *lane = l.data + to.unit * MX_UNIT_MXFP4 + (to.g * 4 + t) * 16;
        *(uint32_t *)(lane + (to.b * 2 + to.high) * 4) = word;
    }
    l.scale_data[to.unit * MX_UNIT_MXFP4_SCALES + to.g * 4 + to.b * 2 + to.high] = (uint8_t)scale;
}

MX_DEVICE void lay_bf16(const mx_cuda_lay &l, const lay_place &to, const uint8_t *from) {
    uint8_t *block = l.data + to.unit * MX_UNIT_BF16 + to.b * 1024;
    for (int i = 0; i < 16; i++) { /* pair i % 4 of lane t = i / 4 */
        const int lane = to.g * 4 + i / 4, step = i % 4 / 2, pair = i % 2;
        *(uint32_t *)(block + (step * 32 + lane) * 16 + pair * 8 + to.high * 4) =
            from ? load_bytes(from + 4 * i, 4) : 0;
    }
}

MX_DEVICE void lay_q8_0(const mx_cuda_lay &l, const lay_place &to, const uint8_t *from) {
    for (int t = 0; t < 4; t++) {
        uint8_t *lane = l.data + to.unit * MX_UNIT_Q8_0 + to.b * 512 + (to.g * 4 + t) * 16;
        uint32_t *out = (uint32_t *)(lane + 8 * to.high);
        for (int i = 0; i < 2; i++) out[i] = from ? load_bytes(from + 2 + 8 * t + 4 * i, 4) : 0;
    }
    uint16_t *scale = (uint16_t *)(l.scale_data + to.unit * MX_UNIT_Q8_0_SCALES);
    scale[to.g * 4 + to.b * 2 + to.high] = (uint16_t)(from ? load_bytes(from, 2) : 0);
}

/* mx_columns_bytes of 32. */
MX_DEVICE int block_bytes(mx_format format) {
    return format == MX_BF16 ? 64 : format == MX_Q8_0 ? MX_Q8_0_BYTES : format == MX_MXFP4 ? 16 : MX_MXFP4_GGML_BYTES;
}

/* A thread for each block of 32 columns of a row; blocks beyond `cols` of its last unit become zeros. */
static __global__ void __launch_bounds__(256) lay_rows(const mx_cuda_lay l) {
    mx_begin();
    const int64_t blocks = 2 * mx_cuda_units(l.cols), at = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (at >= l.count * blocks) return;
    const int64_t i = at / blocks, block = at % blocks;
    const int64_t row = l.row_base + mx_cuda_row(l.order, l.head_dim, l.first + i);
    const lay_place to = {row / MX_UNIT_ROWS * (blocks / 2) + block / 2, (int)(row % 8), (int)(row % 16 / 8),
                          (int)(block % 2)};
    const uint8_t *from = nullptr;
    if (32 * block < l.cols) from = l.rows + i * l.row_stride + block * block_bytes(l.from);
    if (l.from == MX_BF16)
        lay_bf16(l, to, from);
    else if (l.from == MX_Q8_0)
        lay_q8_0(l, to, from);
    else if (l.from == MX_MXFP4)
        lay_mxfp4(l, to, from, from ? l.scales[i * l.scale_stride + block] : 0);
    else
        lay_mxfp4(l, to, from ? from + 1 : nullptr, from ? from[0] : 0);
}

static __global__ void __launch_bounds__(256)
    lay_bias(float *bias, const uint8_t *values, mx_format from, int64_t first, int64_t count, mx_row_order order,
             int head_dim, int64_t row_base) {
    mx_begin();
    const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    const uint32_t bits = from == MX_F32 ? load_bytes(values + 4 * i, 4) : load_bytes(values + 2 * i, 2);
    bias[row_base + mx_cuda_row(order, head_dim, first + i)] = from == MX_F32    ? mx_float(bits)
                                                               : from == MX_BF16 ? mx_bf16_low(bits)
                                                                                 : mx_f16_low(bits);
}

/* 4096 bytes a block, neighbours side by side. */
static __global__ void __launch_bounds__(256) largest_scale(const uint8_t *scales, int64_t bytes, uint32_t *found) {
    mx_begin();
    uint32_t largest = 0;
    for (int i = 0; i < 16; i++) {
        const int64_t at = (int64_t)blockIdx.x * 4096 + i * 256 + threadIdx.x;
        if (at < bytes && scales[at] > largest) largest = scales[at];
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        const uint32_t other = mx_shuffle_xor(largest, mask);
        if (other > largest) largest = other;
    }
    if (mx_lane() == 0 && largest > 0) mx_atomic_max(found, largest);
}

static unsigned blocks_of(int64_t things, int each) {
    return (unsigned)((things + each - 1) / each);
}

void mx_cuda_lay_rows(const mx_cuda_lay *l, mx_gpu_stream *s) {
    const int64_t threads = l->count * 2 * mx_cuda_units(l->cols);
    if (threads > 0) mx_launch(s, dim3(blocks_of(threads, 256)), 256, 0, lay_rows, *l);
}

void mx_cuda_lay_bias(float *bias, const uint8_t *values, mx_format from, int64_t first, int64_t count,
                      mx_row_order order, int head_dim, int64_t row_base, mx_gpu_stream *s) {
    if (count > 0)
        mx_launch(s, dim3(blocks_of(count, 256)), 256, 0, lay_bias, bias, values, from, first, count, order, head_dim,
                  row_base);
}

void mx_cuda_largest_scale(const uint8_t *scales, int64_t bytes, uint32_t *found, mx_gpu_stream *s) {
    if (bytes > 0) mx_launch(s, dim3(blocks_of(bytes, 4096)), 256, 0, largest_scale, scales, bytes, found);
}
