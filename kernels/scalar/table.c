#include "kernels/int8.h"
#include "kernels/scalar/scalar.h"
#include "kernels/tiers.h"

#define EVERY(...)                                                                                                     \
    {                                                                                                                  \
        [MX_X_FP32] = &mx_scalar_product[MX_X_FP32], [MX_X_BF16X2] = &mx_scalar_product[MX_X_BF16X2],                  \
        [MX_X_BF16] = &mx_scalar_product[MX_X_BF16], __VA_ARGS__                                                       \
    }

const mx_kernels mx_kernels_scalar = {
    .name = "scalar",
    .product = {[MX_F32] = EVERY(),
                [MX_F16] = EVERY(),
                [MX_BF16] = EVERY(),
                [MX_MXFP4] = EVERY([MX_X_INT8] = &mx_scalar_int8),
                [MX_Q8_0] = EVERY(),
                [MX_MXFP4_GGML] = EVERY([MX_X_INT8] = &mx_scalar_int8_ggml),
                MX_SCALAR_BLOCK_PRODUCTS},
    .matmul_scratch = 0,
    .attention = mx_scalar_attention,
    .attention_scratch = mx_scalar_attention_scratch,
    .attention_segment = mx_scalar_attention_segment,
    .attention_join = mx_scalar_attention_join,
    .kv_write = mx_scalar_kv_write,
    .rmsnorm = mx_scalar_rmsnorm,
    .rope = mx_scalar_rope,
    .router_topk = mx_scalar_router_topk,
    .argmax = mx_scalar_argmax,
    .exp_sum = mx_scalar_exp_sum,
    .add = mx_scalar_add,
    .widen = mx_scalar_widen,
};
