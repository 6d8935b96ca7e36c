/* Products for few activation rows, at the speed of memory.
 *
 * A block is four warps and works on MT row tiles and up to NT * 8 activation rows: warp p sums part p of the columns
 * (layout.h), units of weights straight from memory to registers, DEPTH of them under way; then the four parts meet
 * in shared memory. */
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/products.cuh"
#include "kernels/cuda/widen.cuh"

/* The lane's eight columns of block b of unit u, of NT tiles of activation rows: at[n] is where its row begins, in
 * elements. */
template <int NT, int TERMS>
MX_DEVICE void load_rows(uint4 x[NT][TERMS], const mx_cuda_matmul &m, const uint32_t *at, int u, int b) {
    MX_UNROLL
    for (int i = 0; i < NT * TERMS; i++)
        x[i / TERMS][i % TERMS] = mx_load16(m.x + i % TERMS * m.x_term + at[i / TERMS] + (u * 64 + b * 32));
}

template <int KIND, int MT, int NT, int TERMS>
MX_DEVICE void multiply_unit(float acc[MT][NT][4], const mx_unit<KIND> unit[MT], const mx_cuda_matmul &m,
                             const uint32_t at[NT], int u) {
    constexpr int GROUP = NT * TERMS <= 4 ? NT : TERMS == 1 ? 4 : 2; /* tiles whose activations are held at once */
    MX_UNROLL
    for (int b = 0; b < 2; b++) {
        uint32_t a[MT][2][4];
        MX_UNROLL
        for (int i = 0; i < MT; i++) unit[i].widen(b, a[i]);
        MX_UNROLL
        for (int n = 0; n < NT; n += GROUP) {
            uint4 x[GROUP][TERMS];
            load_rows<GROUP, TERMS>(x, m, at + n, u, b);
            mx_block<KIND, MT, GROUP, TERMS, NT>(acc, n, unit, b, a, x);
        }
    }
}

/* A warp's way through the units of MT row tiles, one behind the other. */
template <int KIND, int MT> struct weight_stream {
    using unit_type = mx_unit<KIND>;
    const uint8_t *data, *scales; /* of the next unit */
    uint32_t second;              /* units from it to the one of the second row tile */

    MX_DEVICE void start(const mx_cuda_matmul &m, const mx_rows &rows, int units, int begin) {
        const int64_t tile = (int64_t)blockIdx.x * MT, tiles = mx_cuda_row_tiles(m.w.rows);
        second = tile + 1 < tiles ? units : 0; /* beyond the matrix: the first once more, for nothing */
        data = m.w.data + rows.expert * m.w.data_stride + (tile * units + begin) * unit_type::BYTES;
        scales = m.w.scales + rows.expert * m.w.scale_stride + (tile * units + begin) * unit_type::SCALES;
    }
    MX_DEVICE void next(unit_type unit[MT], int lane) {
        MX_UNROLL
        for (int i = 0; i < MT; i++)
            unit[i].template load<true>(data + i * second * unit_type::BYTES, scales + i * second * unit_type::SCALES,
                                        lane);
        data += unit_type::BYTES;
        scales += unit_type::SCALES;
    }
};

template <int KIND, int MT, int NT, int TERMS, int DEPTH, int BLOCKS>
__global__ void __launch_bounds__(128, BLOCKS) few_rows(const mx_cuda_matmul m) {
    __shared__ float4 part[MX_CUDA_PARTS][MT * NT][32];
    const int lane = mx_lane(), warp = mx_warp();
    mx_rows rows;
    if (m.tile) mx_begin(); /* else the first weights, which nobody writes, are on their way before */
    if (!mx_rows_of_block(m, blockIdx.y, blockIdx.z, NT * 8, &rows)) return;

    const int units = (int)mx_cuda_units(m.w.cols);
    uint32_t at[NT];
    MX_UNROLL
    for (int n = 0; n < NT; n++) {
        const int row = n * 8 + lane / 4; /* that is not there: the first, whose columns nobody sees */
        const int slot = rows.first + (row < rows.count ? row : 0);
        at[n] = (uint32_t)(m.slot_row ? m.slot_row[slot] : slot) * (uint32_t)(units * 64) + 8 * (lane % 4);
    }

    const int begin = mx_cuda_part(units, warp), end = mx_cuda_part(units, warp + 1);
    weight_stream<KIND, MT> weights;
    mx_unit<KIND> unit[DEPTH][MT];
    float acc[MT][NT][4] = {};
    weights.start(m, rows, units, begin);
    MX_UNROLL
    for (int d = 0; d < DEPTH; d++) {
        if (begin + d < end) weights.next(unit[d], lane);
    }
    if (!m.tile) mx_begin();
    for (int u = begin; u < end; u += DEPTH) {
        MX_UNROLL
        for (int d = 0; d < DEPTH; d++) {
            if (u + d < end) {
                multiply_unit<KIND, MT, NT, TERMS>(acc, unit[d], m, at, u + d);
                if (u + d + DEPTH < end) weights.next(unit[d], lane);
            }
        }
    }

    MX_UNROLL
    for (int i = 0; i < MT * NT; i++) {
        const float *c = acc[i / NT][i % NT];
        part[warp][i][lane] = float4{c[0], c[1], c[2], c[3]};
    }
    mx_sync();
    for (int i = warp; i < MT * NT; i += MX_CUDA_PARTS) {
        const int64_t tile = (int64_t)blockIdx.x * MT + i / NT;
        float4 sum = part[0][i][lane];
        MX_UNROLL
        for (int p = 1; p < MX_CUDA_PARTS; p++) {
            const float4 v = part[p][i][lane];
            sum = float4{sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
        }
        if (tile < mx_cuda_row_tiles(m.w.rows)) mx_finish(m, rows, tile, lane, i % NT * 8, sum);
    }
}

template <int KIND, int MT, int NT, int TERMS> static void launch(const mx_cuda_matmul *m, mx_gpu_stream *s) {
    /* What there are registers for. DEPTH units of MT row tiles for each warp are under way from memory. */
    constexpr int BLOCKS = NT > 4 || TERMS > 2 ? 2 : NT > 2 ? (KIND == MX_KIND_Q8_0 ? 2 : 3) : 4;
    constexpr bool BF16 = KIND == MX_KIND_BF16;
    constexpr int MOST = BF16 && NT > 1 ? 2 : 4;
    constexpr int DEPTH = TERMS == 1 ? MOST : BF16 && NT * TERMS > 4 ? 1 : NT > 2 ? 2 : MOST;
    const int tiles = (int)mx_cuda_row_tiles(m->w.rows), room = NT * 8;
    const dim3 grid((tiles + MT - 1) / MT, m->tile ? m->most_tiles : (m->rows + room - 1) / room,
                    m->tile ? (m->tile_rows + room - 1) / room : 1);
    mx_launch(s, grid, 128, 0, few_rows<KIND, MT, NT, TERMS, DEPTH, BLOCKS>, *m);
}

/* What is asked for seldom has fewer kernels, and with several terms there are no registers for as many rows. */
template <int KIND, int TERMS, bool ALL>
static void launch_tiles(const mx_cuda_matmul *m, int tiles, mx_gpu_stream *s) {
    constexpr int MT = KIND == MX_KIND_Q8_0 ? 1 : 2;
    if (tiles <= 1) return launch<KIND, 1, 1, TERMS>(m, s);
    if constexpr (ALL) {
        if (tiles <= 2) return launch<KIND, 1, 2, TERMS>(m, s);
    }
    if constexpr (TERMS == 1) {
        if (tiles > 4) return launch<KIND, MT, 8, TERMS>(m, s);
    }
    launch<KIND, (TERMS > 2 ? 1 : MT), (TERMS > 2 ? 2 : 4), TERMS>(m, s);
}

template <int KIND, bool ALL> static void launch_kind(const mx_cuda_matmul *m, int tiles, mx_gpu_stream *s) {
    if (m->terms == 1) return launch_tiles<KIND, 1, ALL>(m, tiles, s);
    if (m->terms == 2) return launch_tiles<KIND, 2, ALL>(m, tiles, s);
    launch_tiles<KIND, 3, false>(m, tiles, s);
}

void mx_few_launch(const mx_cuda_matmul *m, int tiles, mx_gpu_stream *s) {
    if (m->w.format == MX_CUDA_BF16) return launch_kind<MX_KIND_BF16, true>(m, tiles, s);
    if (m->w.format == MX_CUDA_Q8_0) return launch_kind<MX_KIND_Q8_0, false>(m, tiles, s);
    if (m->w.wide_scales) return launch_kind<MX_KIND_MXFP4_WIDE, false>(m, tiles, s);
    launch_kind<MX_KIND_MXFP4, true>(m, tiles, s);
}
