/* E2M3 and E3M2. */
#include "kernels/x86/avx512bf16_codes.h"

DEFINE_TILES(tiles, MX_E2M3, false)
DEFINE_TILES(tiles_split, MX_E2M3, true)

static void matmul_of(const mx_matmul *m, bool split) {
    const mx_format format = coded_format(&m->w);
    if (format == (mx_format)ANY_CODES)
        mx_avx512bf16_codes_any(m, split);
    else
        matmul_codes(m, format, split, split ? tiles_split : tiles);
}
static void matmul_bf16(const mx_matmul *m) {
    matmul_of(m, false);
}
static void matmul_bf16x2(const mx_matmul *m) {
    matmul_of(m, true);
}

const mx_product mx_avx512bf16_fp6[3] = {
    [MX_X_BF16X2] = {mx_avx512bf16_packed_bf16x2, mx_avx512bf16_pack_bf16x2, matmul_bf16x2, true},
    [MX_X_BF16] = {mx_avx512bf16_packed_bf16, mx_avx512bf16_pack_bf16, matmul_bf16, true},
};
