#include "kernels/x86/avx512bf16_codes.h"

DEFINE_TILES(tiles, MX_E2M1, false)
DEFINE_TILES(tiles_split, MX_E2M1, true)
DEFINE_TILES(tiles_wide, (mx_format)E2M1_WIDE, false)
DEFINE_TILES(tiles_wide_split, (mx_format)E2M1_WIDE, true)
DEFINE_TILES(tiles_sides, (mx_format)E2M1_SIDES, false)
DEFINE_TILES(tiles_sides_split, (mx_format)E2M1_SIDES, true)

static void matmul_of(const mx_matmul *m, bool split) {
    const mx_format format = coded_format(&m->w);
    if (format == (mx_format)ANY_CODES)
        mx_avx512bf16_codes_any(m, split);
    else if (format == (mx_format)E2M1_SIDES)
        matmul_codes(m, format, split, split ? tiles_sides_split : tiles_sides);
    else if (format == MX_E2M1)
        matmul_codes(m, format, split, split ? tiles_split : tiles);
    else
        matmul_codes(m, format, split, split ? tiles_wide_split : tiles_wide);
}
static void matmul_bf16(const mx_matmul *m) {
    matmul_of(m, false);
}
static void matmul_bf16x2(const mx_matmul *m) {
    matmul_of(m, true);
}

const mx_product mx_avx512bf16_e2m1[3] = {
    [MX_X_BF16X2] = {mx_avx512bf16_packed_bf16x2, mx_avx512bf16_pack_mxfp4_bf16x2, matmul_bf16x2, true},
    [MX_X_BF16] = {mx_avx512bf16_packed_bf16, mx_avx512bf16_pack_mxfp4_bf16, matmul_bf16, true},
};
