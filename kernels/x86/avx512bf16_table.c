/* The tier of AVX-512 with BF16, VNNI and VBMI. Products in fp32, those of F32 and F16 weights, Q8_0 at bf16x2 and all
 * that is no product are the AVX-512 tier's. */
#include "kernels/int8.h"
#include "kernels/scalar/scalar.h"
#include "kernels/tiers.h"
#include "kernels/x86/avx512bf16.h"

#define AVX512(format, precision) [precision] = &mx_avx512_product[format][precision]
#define BY_BF16(format, product)                                                                                       \
    { AVX512(format, MX_X_FP32), [MX_X_BF16X2] = &(product)[MX_X_BF16X2], [MX_X_BF16] = &(product)[MX_X_BF16] }
#define ALL_AVX512(format)                                                                                             \
    { AVX512(format, MX_X_FP32), AVX512(format, MX_X_BF16X2), AVX512(format, MX_X_BF16) }

const mx_kernels mx_kernels_avx512bf16 = {
    .name = "avx512bf16",
    .product =
        {
            [MX_F32] = {AVX512(MX_F32, MX_X_FP32), AVX512(MX_F32, MX_X_BF16X2), AVX512(MX_F32, MX_X_BF16)},
            [MX_F16] = {AVX512(MX_F16, MX_X_FP32), AVX512(MX_F16, MX_X_BF16X2), AVX512(MX_F16, MX_X_BF16)},
            [MX_BF16] = {AVX512(MX_BF16, MX_X_FP32), [MX_X_BF16X2] = &mx_avx512bf16_bf16[MX_X_BF16X2],
                         [MX_X_BF16] = &mx_avx512bf16_bf16[MX_X_BF16]},
            [MX_MXFP4] = {AVX512(MX_MXFP4, MX_X_FP32), [MX_X_BF16X2] = &mx_avx512bf16_mxfp4[MX_X_BF16X2],
                          [MX_X_BF16] = &mx_avx512bf16_mxfp4[MX_X_BF16], [MX_X_INT8] = &mx_avx512vnni_int8},
            [MX_Q8_0] = {AVX512(MX_Q8_0, MX_X_FP32), AVX512(MX_Q8_0, MX_X_BF16X2), [MX_X_BF16] = &mx_avx512bf16_q8_0},
            [MX_MXFP4_GGML] =
                {AVX512(MX_MXFP4_GGML, MX_X_FP32), [MX_X_BF16X2] = &mx_avx512bf16_mxfp4_ggml[MX_X_BF16X2],
                 [MX_X_BF16] = &mx_avx512bf16_mxfp4_ggml[MX_X_BF16], [MX_X_INT8] = &mx_avx512vnni_int8_ggml},
            [MX_E2M1] = BY_BF16(MX_E2M1, mx_avx512bf16_e2m1),
            [MX_E2M3] = BY_BF16(MX_E2M3, mx_avx512bf16_fp6),
            [MX_E3M2] = BY_BF16(MX_E3M2, mx_avx512bf16_fp6),
            [MX_E4M3] = BY_BF16(MX_E4M3, mx_avx512bf16_fp8),
            [MX_E5M2] = BY_BF16(MX_E5M2, mx_avx512bf16_fp8),
            [MX_INT8] = ALL_AVX512(MX_INT8),
            [MX_INT4] = ALL_AVX512(MX_INT4),
        },
    .matmul_scratch = MX_AVX512_MATMUL_SCRATCH,
    MX_AVX512_BUT_PRODUCTS,
};
