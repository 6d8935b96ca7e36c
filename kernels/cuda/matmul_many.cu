/* Products for many activation rows, at the speed of the tensor core.
 *
 * A block is eight warps, four ways over 64 * MT weight rows and two ways over 16 * NT activation rows; a warp has MT
 * row tiles and NT tiles of activation rows. Units of 64 columns of both go through shared memory in STAGES buffers,
 * copied without waiting. Sums are added in the order of layout.h, the same as in matmul_few.cu: `acc` is that of the
 * part at hand, `total` that of the parts before. */
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/products.cuh"
#include "kernels/cuda/widen.cuh"

enum { THREADS = 256, MOST_SHARED = 99 * 1024 }; /* what a block can have on every GPU that we build for */

template <int KIND, int MT, int NT, int TERMS> struct many {
    using unit_type = mx_unit<KIND>;
    static constexpr int TILES = 4 * MT, ROWS = 16 * NT; /* row tiles and activation rows of a block */
    static constexpr int DATA = TILES * unit_type::BYTES, SCALES = TILES * unit_type::SCALES;
    static constexpr int TERM = ROWS * 128; /* bytes of one term's activations: 64 columns of each row */
    static constexpr int STAGE = DATA + SCALES + TERMS * TERM;
    static constexpr int STAGES = MOST_SHARED / STAGE > 4 ? 4 : MOST_SHARED / STAGE;
    static constexpr int SUMS = THREADS * MT * NT * 16; /* bytes: the finished ones */
    static constexpr int SHARED = STAGES * STAGE > SUMS ? STAGES *STAGE : SUMS;
    static constexpr int GROUP = TERMS == 2 ? 1 : TERMS > 1 ? 2 : 4; /* tiles of activations that are held at once */
    static_assert(STAGES >= 2 && SHARED <= MOST_SHARED, "shared memory");
    static_assert(NT % GROUP == 0, "whole groups");
};

/* A thread's share of COUNT pieces of EACH bytes, cut into chunks of 16: where the chunks lie. */
template <int COUNT, int EACH> struct chunks {
    static constexpr int ALL = COUNT * EACH / 16, COPIES = (ALL + THREADS - 1) / THREADS;
    uint32_t at[COPIES]; /* bytes from where the pieces begin */

    /* Piece i lies at i * stride; of those that are not there, from `pieces` on, the last one once more, for nothing.
     */
    MX_DEVICE void start(int pieces, uint32_t stride) {
        MX_UNROLL
        for (int i = 0; i < COPIES; i++) {
            const int chunk = i * THREADS + threadIdx.x, piece = chunk / (EACH / 16);
            at[i] = (piece < pieces ? piece : pieces - 1) * stride + 16 * (chunk % (EACH / 16));
        }
    }
    MX_DEVICE void copy(uint8_t *to, const uint8_t *from) const {
        MX_UNROLL
        for (int i = 0; i < COPIES; i++) {
            if (ALL % THREADS == 0 || i * THREADS + threadIdx.x < ALL)
                mx_copy16_async(to + 16 * (i * THREADS + threadIdx.x), from + at[i], true);
        }
    }
};

/* Where a thread's share of each unit comes from; the pointers are those of the next unit. */
template <int KIND, int MT, int NT, int TERMS> struct copier {
    using S = many<KIND, MT, NT, TERMS>;
    using unit_type = mx_unit<KIND>;
    static constexpr int COPIES = S::ROWS * 8 / THREADS; /* of activations, in one term */
    const uint8_t *data, *scales;
    const uint16_t *x;
    chunks<S::TILES, unit_type::BYTES> of_data;
    chunks<S::TILES, unit_type::SCALES> of_scales;
    uint32_t at[COPIES]; /* where the rows of the thread's chunks begin, in elements, + the chunk's eight columns */
    int rows;            /* of its rows 0, 32, 64 ... those below this are there */

    MX_DEVICE void start(const mx_cuda_matmul &m, const mx_rows &block, int64_t tile, int units) {
        const int64_t left = mx_cuda_row_tiles(m.w.rows) - tile;
        const int tiles = left < S::TILES ? (int)left : S::TILES;
        data = m.w.data + block.expert * m.w.data_stride + tile * units * unit_type::BYTES;
        of_data.start(tiles, units * unit_type::BYTES);
        if constexpr (S::SCALES > 0) {
            scales = m.w.scales + block.expert * m.w.scale_stride + tile * units * unit_type::SCALES;
            of_scales.start(tiles, units * unit_type::SCALES);
        }
        x = m.x;
        const int row = threadIdx.x / 8;
        rows = block.count - row;
        MX_UNROLL
        for (int i = 0; i < COPIES; i++) {
            const int slot = block.first + (32 * i < rows ? row + 32 * i : 0);
            at[i] = (uint32_t)(m.slot_row ? m.slot_row[slot] : slot) * (uint32_t)(units * 64) + 8 * (threadIdx.x % 8);
        }
    }

    /* A unit to a stage: weights, scales, activations. A row of these is eight chunks, whose halves are exchanged in
     * odd rows: then eight lanes that read four chunks of two rows meet in no bank. */
    MX_DEVICE void next(uint8_t *stage, int64_t x_term) {
        of_data.copy(stage, data);
        data += unit_type::BYTES;
        if constexpr (S::SCALES > 0) {
            of_scales.copy(stage + S::DATA, scales);
            scales += unit_type::SCALES;
        }
        const int row = threadIdx.x / 8, chunk = threadIdx.x % 8 ^ ((row & 1) << 2);
        uint8_t *to = stage + S::DATA + S::SCALES + row * 128 + chunk * 16;
        MX_UNROLL
        for (int i = 0; i < TERMS * COPIES; i++)
            mx_copy16_async(to + i / COPIES * S::TERM + i % COPIES * 32 * 128, x + i / COPIES * x_term + at[i % COPIES],
                            32 * (i % COPIES) < rows);
        x += 64;
    }
};

/* acc += the unit in `stage`, whose row tiles m_first .. and activation rows n_first .. are the warp's. */
template <int KIND, int MT, int NT, int TERMS>
MX_DEVICE void multiply_stage(float acc[MT][NT][4], const uint8_t *stage, int m_first, int n_first, int lane) {
    using S = many<KIND, MT, NT, TERMS>;
    using unit_type = mx_unit<KIND>;
    unit_type unit[MT];
    MX_UNROLL
    for (int i = 0; i < MT; i++)
        unit[i].template load<false>(stage + (m_first + i) * unit_type::BYTES,
                                     stage + S::DATA + (m_first + i) * unit_type::SCALES, lane);
    const int row = n_first + lane / 4;
    const uint8_t *x_rows = stage + S::DATA + S::SCALES + row * 128;
    MX_UNROLL
    for (int b = 0; b < 2; b++) {
        uint32_t a[MT][2][4];
        MX_UNROLL
        for (int i = 0; i < MT; i++) unit[i].widen(b, a[i]);
        const uint8_t *x_chunk = x_rows + ((4 * b + lane % 4) ^ ((row & 1) << 2)) * 16;
        MX_UNROLL
        for (int n = 0; n < NT; n += S::GROUP) {
            uint4 x[S::GROUP][TERMS];
            MX_UNROLL
            for (int i = 0; i < S::GROUP * TERMS; i++)
                x[i / TERMS][i % TERMS] = *(const uint4 *)(x_chunk + i % TERMS * S::TERM + (n + i / TERMS) * 8 * 128);
            mx_block<KIND, MT, S::GROUP, TERMS, NT>(acc, n, unit, b, a, x);
        }
    }
}

template <int KIND, int MT, int NT, int TERMS>
__global__ void __launch_bounds__(THREADS) many_rows(const mx_cuda_matmul m) {
    mx_begin();
    using S = many<KIND, MT, NT, TERMS>;
    MX_DYNAMIC_SHARED(shared);
    const int lane = mx_lane(), warp = mx_warp();
    /* Dense: neighbours share weights; grouped: they share activations, and the tiles of an expert follow another. */
    const int64_t tile = (int64_t)(m.tile ? blockIdx.x : blockIdx.y) * S::TILES;
    mx_rows rows;
    if (!mx_rows_of_block(m, m.tile ? blockIdx.y : blockIdx.x, blockIdx.z, S::ROWS, &rows)) return;

    const int units = (int)mx_cuda_units(m.w.cols), m_first = warp / 2 * MT, n_first = warp % 2 * NT * 8;
    copier<KIND, MT, NT, TERMS> from;
    from.start(m, rows, tile, units);
    for (int i = 0; i < S::STAGES - 1; i++) {
        if (i < units) from.next(shared + i * S::STAGE, m.x_term);
        mx_copy_commit();
    }
    float acc[MT][NT][4] = {}, total[MT][NT][4] = {};
    int u = 0, stage = 0, ahead = S::STAGES - 1; /* the stages of units u and u + STAGES - 1 */
    for (int part = 0; part < MX_CUDA_PARTS; part++) {
        for (const int end = mx_cuda_part(units, part + 1); u < end; u++) {
            mx_copy_wait<S::STAGES - 2>();
            mx_sync(); /* unit u is there for all, and nobody reads u - 1 any more */
            if (u + S::STAGES - 1 < units) from.next(shared + ahead * S::STAGE, m.x_term);
            mx_copy_commit();
            multiply_stage<KIND, MT, NT, TERMS>(acc, shared + stage * S::STAGE, m_first, n_first, lane);
            stage = stage + 1 < S::STAGES ? stage + 1 : 0;
            ahead = ahead + 1 < S::STAGES ? ahead + 1 : 0;
        }
        MX_UNROLL
        for (int i = 0; i < MT * NT * 4; i++) {
            float *sum = &acc[i / 4 / NT][i / 4 % NT][i % 4], *all = &total[i / 4 / NT][i / 4 % NT][i % 4];
            *all = part == 0 ? *sum : *all + *sum;
            *sum = 0.0f;
        }
    }

    mx_copy_wait<0>();
    mx_sync();
    float4 *sums = (float4 *)shared + (warp * MT * NT) * 32 + lane; /* of this lane alone */
    MX_UNROLL
    for (int i = 0; i < MT * NT; i++) {
        const float *c = total[i / NT][i % NT];
        sums[i * 32] = float4{c[0], c[1], c[2], c[3]};
    }
    for (int i = 0; i < MT * NT; i++) {
        const int64_t row_tile = tile + m_first + i / NT;
        if (row_tile < mx_cuda_row_tiles(m.w.rows))
            mx_finish(m, rows, row_tile, lane, n_first + i % NT * 8, sums[i * 32]);
    }
}

template <int KIND, int MT, int NT, int TERMS> static void launch(const mx_cuda_matmul *m, mx_gpu_stream *s) {
    using S = many<KIND, MT, NT, TERMS>;
    const int row_blocks = (int)((mx_cuda_row_tiles(m->w.rows) + S::TILES - 1) / S::TILES);
    const dim3 grid = m->tile ? dim3(row_blocks, m->most_tiles, (m->tile_rows + S::ROWS - 1) / S::ROWS)
                              : dim3((m->rows + S::ROWS - 1) / S::ROWS, row_blocks);
    mx_launch(s, grid, THREADS, S::SHARED, many_rows<KIND, MT, NT, TERMS>, *m);
}

template <int KIND> static void launch_kind(const mx_cuda_matmul *m, mx_gpu_stream *s) {
    constexpr int NT = KIND == MX_KIND_Q8_0 ? 4 : 8; /* what there are registers for */
    if (m->terms == 1) return launch<KIND, 2, NT, 1>(m, s);
    if (m->terms == 2) return launch<KIND, 2, NT, 2>(m, s);
    launch<KIND, 2, 4, 3>(m, s);
}

void mx_many_launch(const mx_cuda_matmul *m, mx_gpu_stream *s) {
    if (m->w.format == MX_CUDA_BF16) return launch_kind<MX_KIND_BF16>(m, s);
    if (m->w.format == MX_CUDA_Q8_0) return launch_kind<MX_KIND_Q8_0>(m, s);
    if (m->w.wide_scales) return launch_kind<MX_KIND_MXFP4_WIDE>(m, s);
    launch_kind<MX_KIND_MXFP4>(m, s);
}
