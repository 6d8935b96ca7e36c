#include "kernels/x86/avx512bf16_matmul.h"

void mx_avx512bf16_pack_mxfp4_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, MX_MXFP4, true);
}
void mx_avx512bf16_pack_mxfp4_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, MX_MXFP4, false);
}
static void matmul_bf16(const mx_matmul *m) {
    matmul(m, MX_MXFP4, false);
}
static void matmul_bf16x2(const mx_matmul *m) {
    matmul(m, MX_MXFP4, true);
}

const mx_product mx_avx512bf16_mxfp4[3] = {
    [MX_X_BF16X2] = {mx_avx512bf16_packed_bf16x2, mx_avx512bf16_pack_mxfp4_bf16x2, matmul_bf16x2, true},
    [MX_X_BF16] = {mx_avx512bf16_packed_bf16, mx_avx512bf16_pack_mxfp4_bf16, matmul_bf16, true},
};
