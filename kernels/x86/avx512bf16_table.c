/* The tier of AVX-512 with BF16, VNNI and VBMI. Products in fp32, those of F32 weights and all that is no product are
 * the AVX-512 tier's. */
#include "kernels/int8.h"
#include "kernels/scalar/scalar.h"
#include "kernels/tiers.h"
#include "kernels/x86/avx512bf16.h"

#define AVX512(format, precision) [precision] = &mx_avx512_product[format][precision]

const mx_kernels mx_kernels_avx512bf16 = {
    .name = "avx512bf16",
    .product =
        {
            [MX_F32] = {AVX512(MX_F32, MX_X_FP32), AVX512(MX_F32, MX_X_BF16X2), AVX512(MX_F32, MX_X_BF16)},
            [MX_BF16] = {AVX512(MX_BF16, MX_X_FP32), [MX_X_BF16X2] = &mx_avx512bf16_bf16[MX_X_BF16X2],
                         [MX_X_BF16] = &mx_avx512bf16_bf16[MX_X_BF16]},
            [MX_MXFP4] = {AVX512(MX_MXFP4, MX_X_FP32), [MX_X_BF16X2] = &mx_avx512bf16_mxfp4[MX_X_BF16X2],
                          [MX_X_BF16] = &mx_avx512bf16_mxfp4[MX_X_BF16], [MX_X_INT8] = &mx_avx512vnni_int8},
        },
    .matmul_scratch = MX_AVX512_MATMUL_SCRATCH,
    .attention = mx_avx512_attention,
    .attention_scratch = mx_avx512_attention_scratch,
    .attention_segment = mx_avx512_attention_segment,
    .attention_join = mx_avx512_attention_join,
    .kv_write = mx_avx512_kv_write,
    .rmsnorm = mx_avx512_rmsnorm,
    .rope = mx_avx512_rope,
    .router_topk = mx_scalar_router_topk,
    .argmax = mx_avx512_argmax,
    .exp_sum = mx_avx512_exp_sum,
    .add = mx_avx512_add,
    .widen = mx_avx512_widen,
};
