#include "kernels/scalar/scalar.h"
#include "kernels/tiers.h"
#include "kernels/x86/avx512.h"

const mx_kernels mx_kernels_avx512 = {
    .name = "avx512",
    .pack = mx_avx512_pack,
    .matmul = {[MX_F32] = mx_avx512_matmul_f32, [MX_BF16] = mx_avx512_matmul_bf16, [MX_MXFP4] = mx_avx512_matmul_mxfp4},
    .matmul_scratch = MX_AVX512_MATMUL_SCRATCH,
    .attention = mx_avx512_attention,
    .attention_scratch = mx_avx512_attention_scratch,
    .kv_write = mx_avx512_kv_write,
    .rmsnorm = mx_avx512_rmsnorm,
    .rope = mx_avx512_rope,
    .router_topk = mx_scalar_router_topk,
    .argmax = mx_avx512_argmax,
    .exp_sum = mx_avx512_exp_sum,
    .add = mx_avx512_add,
    .widen = mx_avx512_widen,
};
