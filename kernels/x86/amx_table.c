/* The tier of AMX (tiles of BF16 and INT8) on top of AVX-512 with BF16, VNNI and VBMI. Exact fp32 products, F32
 * weights and all that is no product are the AVX-512 tier's, products of Q8_0 too, or those of AVX-512 with BF16. */
#include "kernels/int8.h"
#include "kernels/scalar/scalar.h"
#include "kernels/tiers.h"
#include "kernels/x86/amx.h"
#include "kernels/x86/avx512bf16.h"

#define AVX512(format, precision) [precision] = &mx_avx512_product[format][precision]
#define BY_BF16(format, product)                                                                                       \
    {                                                                                                                  \
        AVX512(format, MX_X_FP32), [MX_X_BF16X2] = &(product)[MX_X_BF16X2], [MX_X_BF16] = &(product)[MX_X_BF16]        \
    }
#define LARGER(a, b)              ((int)(a) > (int)(b) ? (int)(a) : (int)(b))

const mx_kernels MX_AMX(kernels) = {
#ifdef MX_AMX_MODEL
    .name = "amx model",
#else
    .name = "amx",
#endif
    .product =
        {
            [MX_F32] = {AVX512(MX_F32, MX_X_FP32), AVX512(MX_F32, MX_X_BF16X2), AVX512(MX_F32, MX_X_BF16)},
            [MX_F16] = {AVX512(MX_F16, MX_X_FP32), AVX512(MX_F16, MX_X_BF16X2), AVX512(MX_F16, MX_X_BF16)},
            [MX_BF16] = {AVX512(MX_BF16, MX_X_FP32), [MX_X_BF16X2] = &MX_AMX(bf16_product)[0],
                         [MX_X_BF16] = &MX_AMX(bf16_product)[1]},
            [MX_MXFP4] = {AVX512(MX_MXFP4, MX_X_FP32), [MX_X_BF16X2] = &MX_AMX(mxfp4_product)[0],
                          [MX_X_BF16] = &MX_AMX(mxfp4_product)[1], [MX_X_INT8] = &MX_AMX(int8_product)},
            [MX_Q8_0] = {AVX512(MX_Q8_0, MX_X_FP32), AVX512(MX_Q8_0, MX_X_BF16X2), [MX_X_BF16] = &mx_avx512bf16_q8_0},
            [MX_MXFP4_GGML] = {AVX512(MX_MXFP4_GGML, MX_X_FP32), [MX_X_BF16X2] = &MX_AMX(mxfp4_ggml_product)[0],
                               [MX_X_BF16] = &MX_AMX(mxfp4_ggml_product)[1], [MX_X_INT8] = &MX_AMX(int8_ggml_product)},
            [MX_E2M1] = BY_BF16(MX_E2M1, mx_avx512bf16_e2m1),
            [MX_E2M3] = BY_BF16(MX_E2M3, mx_avx512bf16_fp6),
            [MX_E3M2] = BY_BF16(MX_E3M2, mx_avx512bf16_fp6),
            [MX_E4M3] = BY_BF16(MX_E4M3, mx_avx512bf16_fp8),
            [MX_E5M2] = BY_BF16(MX_E5M2, mx_avx512bf16_fp8),
            [MX_INT8] = {AVX512(MX_INT8, MX_X_FP32), AVX512(MX_INT8, MX_X_BF16X2), AVX512(MX_INT8, MX_X_BF16)},
            [MX_INT4] = {AVX512(MX_INT4, MX_X_FP32), AVX512(MX_INT4, MX_X_BF16X2), AVX512(MX_INT4, MX_X_BF16)},
        },
    .matmul_scratch = LARGER(MX_AVX512_MATMUL_SCRATCH, MX_AMX_MATMUL_SCRATCH),
    MX_AVX512_BUT_PRODUCTS,
};
