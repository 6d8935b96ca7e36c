#ifndef MX_KERNELS_SCALAR_H
#define MX_KERNELS_SCALAR_H

#include "kernels/kernels.h"

/* The scalar tier, function by function: what other tiers name where they have nothing better. */
extern const mx_product mx_scalar_product[3]; /* MX_X_FP32, MX_X_BF16X2, MX_X_BF16; of every format */
/* Entries of mx_kernels.product for the element codes: what a tier has that has nothing better for them. */
#define MX_SCALAR_EVERY                                                                                                \
    {                                                                                                                  \
        [MX_X_FP32] = &mx_scalar_product[MX_X_FP32], [MX_X_BF16X2] = &mx_scalar_product[MX_X_BF16X2],                  \
        [MX_X_BF16] = &mx_scalar_product[MX_X_BF16]                                                                    \
    }
#define MX_SCALAR_BLOCK_PRODUCTS                                                                                       \
    [MX_E2M1] = MX_SCALAR_EVERY, [MX_E2M3] = MX_SCALAR_EVERY, [MX_E3M2] = MX_SCALAR_EVERY,                             \
    [MX_E4M3] = MX_SCALAR_EVERY, [MX_E5M2] = MX_SCALAR_EVERY, [MX_INT8] = MX_SCALAR_EVERY, [MX_INT4] = MX_SCALAR_EVERY
extern const float mx_e4m3_values[256]; /* of codes */
void mx_scalar_attention(const mx_attention *a);
void mx_scalar_attention_segment(const mx_attention *a, int64_t segment);
void mx_scalar_attention_join(const mx_attention *a);
int64_t mx_scalar_attention_scratch(int head_dim, int group);
void mx_scalar_kv_write(uint8_t *head_tile, mx_format kv, int head_dim, int slot, const float *k, const float *v);
void mx_scalar_rmsnorm(float *out, const float *x, const float *gain, int64_t n, float eps);
void mx_scalar_rope(float *x, const float *cos, const float *sin, int64_t heads, int head_dim);
void mx_scalar_router_topk(const float *logits, int n, int k, int32_t *expert, float *weight);
/* The softmax of the k chosen logits, best first: every tier's, so that the weights have the same bits. */
void mx_router_weights(const float *logits, int k, const int32_t *expert, float *weight);
int64_t mx_scalar_argmax(const float *x, int64_t n);
double mx_scalar_exp_sum(float *p, const float *x, int64_t n, float shift, float scale);
void mx_scalar_add(float *y, const float *x, int64_t n);
void mx_scalar_widen(float *out, const uint8_t *in, mx_format format, int64_t n);

/* The epilogue: what becomes of the sums of outputs n0 ... n0 + count - 1 of row t. */
void mx_scalar_finish_row(const mx_matmul *m, int64_t t, int64_t n0, int64_t count, const float *sum);

/* For tiers that multiply in fp32: rounded activations stay fp32, so that all precisions share one matmul. */
int64_t mx_packed_floats(int64_t cols); /* 4 bytes a column */
void mx_scalar_pack_fp32(uint8_t *out, const float *x, int64_t rows, int64_t cols);
void mx_scalar_pack_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols);
void mx_scalar_pack_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols);
#define MX_SCALAR_PACKED(matmul)                                                                                       \
    {                                                                                                                  \
        [MX_X_FP32] = {mx_packed_floats, mx_scalar_pack_fp32, matmul, false},                                          \
        [MX_X_BF16X2] = {mx_packed_floats, mx_scalar_pack_bf16x2, matmul, false},                                      \
        [MX_X_BF16] = {mx_packed_floats, mx_scalar_pack_bf16, matmul, false},                                          \
    }
void mx_round_to_bf16(float *out, const float *x, int64_t n);   /* out may be x */
void mx_round_to_bf16x2(float *out, const float *x, int64_t n); /* out may be x */

#endif
