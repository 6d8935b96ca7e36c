/* The tier of NEON with dot products of bytes (Cortex-A76, Neoverse N1): int8 products by SDOT, all else is base
 * NEON's. */
#include "kernels/arm/neon.h"
#include "kernels/scalar/scalar.h"
#include "kernels/tiers.h"

#define EVERY(format, ...)                                                                                             \
    {                                                                                                                  \
        [MX_X_FP32] = &mx_neon_product[format][MX_X_FP32], [MX_X_BF16X2] = &mx_neon_product[format][MX_X_BF16X2],      \
        [MX_X_BF16] = &mx_neon_product[format][MX_X_BF16], __VA_ARGS__                                                 \
    }

const mx_kernels mx_kernels_neondot = {
    .name = "neondot",
    .product = {[MX_F32] = EVERY(MX_F32, ),
                [MX_F16] = EVERY(MX_F16, ),
                [MX_BF16] = EVERY(MX_BF16, ),
                [MX_MXFP4] = EVERY(MX_MXFP4, [MX_X_INT8] = &mx_neondot_int8),
                [MX_Q8_0] = EVERY(MX_Q8_0, ),
                [MX_MXFP4_GGML] = EVERY(MX_MXFP4_GGML, [MX_X_INT8] = &mx_neondot_int8_ggml),
                MX_SCALAR_BLOCK_PRODUCTS},
    .matmul_scratch = MX_NEON_MATMUL_SCRATCH,
    MX_NEON_BUT_PRODUCTS,
};
