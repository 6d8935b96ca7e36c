/* Products of F32, F16, BF16, MXFP4 and Q8_0, and the table of all. */
#include "kernels/x86/avx2_matmul.h"

#include "kernels/scalar/scalar.h"

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* For MXFP4 in GGML's layout each 32 columns are 0, 16, 1, 17 ... 15, 31, the order of nibbles; out may be x. For all
 * else they are in their own. */
static void pair_halves(float *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += 32) {
        __m256 low[4];
        for (int k = 0; k < 4; k++) low[k] = _mm256_loadu_ps(x + i + 8 * k);
        for (int k = 0; k < 2; k++) {
            __m256 a = _mm256_unpacklo_ps(low[k], low[2 + k]), b = _mm256_unpackhi_ps(low[k], low[2 + k]);
            _mm256_storeu_ps(out + i + 16 * k, _mm256_permute2f128_ps(a, b, 0x20));
            _mm256_storeu_ps(out + i + 16 * k + 8, _mm256_permute2f128_ps(a, b, 0x31));
        }
    }
}

static void pack_ggml_fp32(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pair_halves((float *)out, x, rows * cols);
}
static void pack_ggml_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    mx_round_to_bf16x2((float *)out, x, rows * cols);
    pair_halves((float *)out, (const float *)out, rows * cols);
}
static void pack_ggml_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    mx_round_to_bf16((float *)out, x, rows * cols);
    pair_halves((float *)out, (const float *)out, rows * cols);
}

/* ---- products -----------------------------------------------------------------------------------------------------
 */

static void matmul_f32(const mx_matmul *m) {
    matmul(m, (kind){.format = MX_F32});
}
static void matmul_f16(const mx_matmul *m) {
    matmul(m, (kind){.format = MX_F16});
}
static void matmul_bf16(const mx_matmul *m) {
    matmul(m, (kind){.format = MX_BF16});
}
static void matmul_mxfp4(const mx_matmul *m) {
    matmul(m, (kind){.format = MX_MXFP4});
}
static void matmul_q8_0(const mx_matmul *m) {
    matmul(m, (kind){.format = MX_Q8_0});
}
static void matmul_mxfp4_ggml(const mx_matmul *m) {
    mx_matmul apart = mx_mxfp4_ggml_apart(m);
    matmul(&apart, (kind){.format = MX_MXFP4_GGML});
}

const mx_product mx_avx2_product[MX_FORMATS][3] = {
    [MX_F32] = MX_SCALAR_PACKED(matmul_f32),
    [MX_F16] = MX_SCALAR_PACKED(matmul_f16),
    [MX_BF16] = MX_SCALAR_PACKED(matmul_bf16),
    [MX_MXFP4] = MX_SCALAR_PACKED(matmul_mxfp4),
    [MX_Q8_0] = MX_SCALAR_PACKED(matmul_q8_0),
    [MX_MXFP4_GGML] = {[MX_X_FP32] = {mx_packed_floats, pack_ggml_fp32, matmul_mxfp4_ggml, false},
                       [MX_X_BF16X2] = {mx_packed_floats, pack_ggml_bf16x2, matmul_mxfp4_ggml, false},
                       [MX_X_BF16] = {mx_packed_floats, pack_ggml_bf16, matmul_mxfp4_ggml, false}},
    [MX_E2M1] = MX_SCALAR_PACKED(mx_avx2_matmul_e2m1),
    [MX_E2M3] = MX_SCALAR_PACKED(mx_avx2_matmul_e2m3),
    [MX_E3M2] = MX_SCALAR_PACKED(mx_avx2_matmul_e3m2),
    [MX_E4M3] = MX_SCALAR_PACKED(mx_avx2_matmul_e4m3),
    [MX_E5M2] = MX_SCALAR_PACKED(mx_avx2_matmul_e5m2),
    [MX_INT8] = MX_SCALAR_PACKED(mx_avx2_matmul_int8),
    [MX_INT4] = MX_SCALAR_PACKED(mx_avx2_matmul_int4),
};
