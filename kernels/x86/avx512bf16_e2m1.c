#include "kernels/x86/avx512bf16_codes.h"

DEFINE_TILES(tiles, MX_E2M1, false)
DEFINE_TILES(tiles_split, MX_E2M1, true)

static int64_t packed_bf16x2(int64_t cols) {
    return packed_bytes_bf16x2(cols);
}
static void pack_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, MX_MXFP4, true);
}
static void pack_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, MX_MXFP4, false);
}
static void matmul_bf16(const mx_matmul *m) {
    if (codes_are_fast(&m->w))
        matmul_codes(m, false, false, tiles);
    else
        mx_avx512bf16_codes_any(m, false);
}
static void matmul_bf16x2(const mx_matmul *m) {
    if (codes_are_fast(&m->w))
        matmul_codes(m, false, true, tiles_split);
    else
        mx_avx512bf16_codes_any(m, true);
}

const mx_product mx_avx512bf16_e2m1[3] = {
    [MX_X_BF16X2] = {packed_bf16x2, pack_bf16x2, matmul_bf16x2, true},
    [MX_X_BF16] = {mx_avx512bf16_packed_bf16, pack_bf16, matmul_bf16, true},
};
