#include "kernels/x86/avx512bf16_matmul.h"

int64_t mx_avx512bf16_packed_bf16x2(int64_t cols) {
    return packed_bytes_bf16x2(cols);
}
void mx_avx512bf16_pack_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, MX_BF16, true);
}
int64_t mx_avx512bf16_packed_bf16(int64_t cols) {
    return packed_bytes(cols, false);
}
void mx_avx512bf16_pack_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack(out, x, rows, cols, MX_BF16, false);
}
static void matmul_bf16(const mx_matmul *m) {
    matmul(m, MX_BF16, false);
}
static void matmul_bf16x2(const mx_matmul *m) {
    matmul(m, MX_BF16, true);
}

const mx_product mx_avx512bf16_bf16[3] = {
    [MX_X_BF16X2] = {mx_avx512bf16_packed_bf16x2, mx_avx512bf16_pack_bf16x2, matmul_bf16x2, true},
    [MX_X_BF16] = {mx_avx512bf16_packed_bf16, mx_avx512bf16_pack_bf16, matmul_bf16, true},
};
