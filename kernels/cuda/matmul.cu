/* Which kernel a product gets. */
#include <atomic>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/products.cuh"

static std::atomic<int> forced{0}; /* 0: by size; 'f': few; 'm': many */

mx_status mx_cuda_matmul_choose(mx_error *error) {
    const char *rows = getenv("MXRUN_CUDA_ROWS");
    if (rows && strcmp(rows, "few") != 0 && strcmp(rows, "many") != 0)
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "MXRUN_CUDA_ROWS=%s: expected few or many (rows that products are made for), or nothing", rows);
    forced = rows ? *rows : 0;
    return MX_OK;
}

/* A dense product has many row tiles but for the router, whose blocks are made small instead, so that there are enough
 * of them to go round; with many rows the kernel of many wants a block's worth for most multiprocessors of a GPU. */
enum { ENOUGH = 128 };

/* Tiles of eight activation rows for a block of the kernel of few. */
static int few_tiles(const mx_cuda_matmul *m) {
    const int rows = m->tile ? m->tile_rows : m->rows;
    const int64_t row_tiles = mx_cuda_row_tiles(m->w.rows);
    int tiles = 8;
    while (tiles > 1 &&
           (4 * tiles >= rows || (!m->tile && row_tiles * ((rows + 8 * tiles - 1) / (8 * tiles)) < ENOUGH)))
        tiles /= 2;
    return tiles;
}

static bool is_many(const mx_cuda_matmul *m) {
    if (forced) return forced == 'm';
    if (m->tile) return m->tile_rows > 64;
    const int64_t row_tiles = mx_cuda_row_tiles(m->w.rows);
    return m->rows > 64 && row_tiles > 8 && (m->rows > 512 || (row_tiles + 7) / 8 * ((m->rows + 127) / 128) >= ENOUGH);
}

void mx_cuda_matmul_few(const mx_cuda_matmul *m, mx_gpu_stream *s) {
    mx_few_launch(m, few_tiles(m), s);
}

void mx_cuda_matmul_many(const mx_cuda_matmul *m, mx_gpu_stream *s) {
    mx_many_launch(m, s);
}

void mx_cuda_matmul_run(const mx_cuda_matmul *m, mx_gpu_stream *s) {
    if (is_many(m))
        mx_cuda_matmul_many(m, s);
    else
        mx_cuda_matmul_few(m, s);
}
