#include "kernels/int8.h"
#include "kernels/scalar/scalar.h"
#include "kernels/tiers.h"
#include "kernels/x86/avx512.h"

#define EVERY(format, ...)                                                                                             \
    {                                                                                                                  \
        [MX_X_FP32] = &mx_avx512_product[format][MX_X_FP32], [MX_X_BF16X2] = &mx_avx512_product[format][MX_X_BF16X2],  \
        [MX_X_BF16] = &mx_avx512_product[format][MX_X_BF16], __VA_ARGS__                                               \
    }

const mx_kernels mx_kernels_avx512 = {
    .name = "avx512",
    .product = {[MX_F32] = EVERY(MX_F32, ),
                [MX_F16] = EVERY(MX_F16, ),
                [MX_BF16] = EVERY(MX_BF16, ),
                [MX_MXFP4] = EVERY(MX_MXFP4, [MX_X_INT8] = &mx_avx512_int8),
                [MX_Q8_0] = EVERY(MX_Q8_0, ),
                [MX_MXFP4_GGML] = EVERY(MX_MXFP4_GGML, [MX_X_INT8] = &mx_avx512_int8_ggml),
                [MX_E2M1] = EVERY(MX_E2M1, ),
                [MX_E2M3] = EVERY(MX_E2M3, ),
                [MX_E3M2] = EVERY(MX_E3M2, ),
                [MX_E4M3] = EVERY(MX_E4M3, ),
                [MX_E5M2] = EVERY(MX_E5M2, ),
                [MX_INT8] = EVERY(MX_INT8, ),
                [MX_INT4] = EVERY(MX_INT4, )},
    .matmul_scratch = MX_AVX512_MATMUL_SCRATCH,
    MX_AVX512_BUT_PRODUCTS,
};
