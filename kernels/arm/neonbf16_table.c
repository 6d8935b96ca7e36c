#include "kernels/arm/neon.h"
#include "kernels/scalar/scalar.h"
#include "kernels/tiers.h"

#define BY_BFMMLA(format, products, ...)                                                                               \
    {                                                                                                                  \
        [MX_X_FP32] = &mx_neon_product[format][MX_X_FP32], [MX_X_BF16X2] = &(products)[0],                             \
        [MX_X_BF16] = &(products)[1], __VA_ARGS__                                                                      \
    }

const mx_kernels mx_kernels_neonbf16 = {
    .name = "neonbf16",
    .product = {[MX_F32] = {&mx_neon_product[MX_F32][MX_X_FP32], &mx_neon_product[MX_F32][MX_X_BF16X2],
                            &mx_neon_product[MX_F32][MX_X_BF16]},
                [MX_F16] = {&mx_neon_product[MX_F16][MX_X_FP32], &mx_neon_product[MX_F16][MX_X_BF16X2],
                            &mx_neon_product[MX_F16][MX_X_BF16]},
                [MX_BF16] = BY_BFMMLA(MX_BF16, mx_neonbf16_dense, ),
                [MX_MXFP4] = BY_BFMMLA(MX_MXFP4, mx_neonbf16_mxfp4, [MX_X_INT8] = &mx_neonbf16_int8),
                [MX_Q8_0] = BY_BFMMLA(MX_Q8_0, mx_neonbf16_q8_0, ),
                [MX_MXFP4_GGML] =
                    BY_BFMMLA(MX_MXFP4_GGML, mx_neonbf16_mxfp4_ggml, [MX_X_INT8] = &mx_neonbf16_int8_ggml),
                MX_SCALAR_BLOCK_PRODUCTS},
    .matmul_scratch = MX_NEONBF16_MATMUL_SCRATCH,
    MX_NEON_BUT_PRODUCTS,
};

_Static_assert(MX_NEONBF16_MATMUL_SCRATCH >= MX_NEON_MATMUL_SCRATCH, "room for the products of either tier");
