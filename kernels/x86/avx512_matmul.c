#include "kernels/x86/avx512_matmul.h"

static void pack_fp32(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    float *to = (float *)out;
    for (int64_t i = 0; i < rows * cols; i += 16) {
        _mm512_store_ps(to + i, _mm512_permutexvar_ps(COLUMNS, _mm512_loadu_ps(x + i)));
    }
}

static void pack_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    mx_round_to_bf16x2((float *)out, x, rows * cols);
    pack_fp32(out, (const float *)out, rows, cols);
}

static void pack_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    mx_round_to_bf16((float *)out, x, rows * cols);
    pack_fp32(out, (const float *)out, rows, cols);
}

static void pack_ggml_fp32(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    const __m512i first = _mm512_setr_epi32(0, 4, 16, 20, 1, 5, 17, 21, 2, 6, 18, 22, 3, 7, 19, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    float *to = (float *)out;
    for (int64_t i = 0; i < rows * cols; i += 32) {
        __m512 low = _mm512_loadu_ps(x + i), high = _mm512_loadu_ps(x + i + 16);
        _mm512_store_ps(to + i, _mm512_permutex2var_ps(low, first, high));
        _mm512_store_ps(to + i + 16, _mm512_permutex2var_ps(low, second, high));
    }
}

static void pack_ggml_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    mx_round_to_bf16x2((float *)out, x, rows * cols);
    pack_ggml_fp32(out, (const float *)out, rows, cols);
}

static void pack_ggml_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    mx_round_to_bf16((float *)out, x, rows * cols);
    pack_ggml_fp32(out, (const float *)out, rows, cols);
}

static void matmul_f32(const mx_matmul *m) {
    matmul(m, MX_F32);
}
static void matmul_f16(const mx_matmul *m) {
    matmul(m, MX_F16);
}
static void matmul_bf16(const mx_matmul *m) {
    matmul(m, MX_BF16);
}

#define PRODUCTS(matmul)                                                                                               \
    {                                                                                                                  \
        [MX_X_FP32] = {mx_packed_floats, pack_fp32, matmul, false},                                                    \
        [MX_X_BF16X2] = {mx_packed_floats, pack_bf16x2, matmul, false},                                                \
        [MX_X_BF16] = {mx_packed_floats, pack_bf16, matmul, false},                                                    \
    }

const mx_product mx_avx512_product[MX_FORMATS][3] = {
    [MX_F32] = PRODUCTS(matmul_f32),
    [MX_F16] = MX_SCALAR_PACKED(matmul_f16),
    [MX_BF16] = PRODUCTS(matmul_bf16),
    [MX_MXFP4] = PRODUCTS(mx_avx512_matmul_mxfp4),
    [MX_Q8_0] = MX_SCALAR_PACKED(mx_avx512_matmul_q8_0),
    [MX_MXFP4_GGML] = {[MX_X_FP32] = {mx_packed_floats, pack_ggml_fp32, mx_avx512_matmul_ggml, false},
                       [MX_X_BF16X2] = {mx_packed_floats, pack_ggml_bf16x2, mx_avx512_matmul_ggml, false},
                       [MX_X_BF16] = {mx_packed_floats, pack_ggml_bf16, mx_avx512_matmul_ggml, false}},
    [MX_E2M1] = PRODUCTS(mx_avx512_matmul_e2m1),
    [MX_E2M3] = MX_SCALAR_PACKED(mx_avx512_matmul_fp6),
    [MX_E3M2] = MX_SCALAR_PACKED(mx_avx512_matmul_fp6),
    [MX_E4M3] = MX_SCALAR_PACKED(mx_avx512_matmul_fp8),
    [MX_E5M2] = MX_SCALAR_PACKED(mx_avx512_matmul_fp8),
    [MX_INT8] = MX_SCALAR_PACKED(mx_avx512_matmul_int8),
    [MX_INT4] = PRODUCTS(mx_avx512_matmul_int4),
};
