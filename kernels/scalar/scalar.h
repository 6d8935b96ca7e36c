#ifndef MX_KERNELS_SCALAR_H
#define MX_KERNELS_SCALAR_H

#include "kernels/kernels.h"

/* The scalar tier, function by function: what other tiers name where they have nothing better. */
void mx_scalar_pack(float *out, const float *x, int64_t rows, int64_t cols);
void mx_scalar_matmul(const mx_matmul *m);
void mx_scalar_attention(const mx_attention *a);
int64_t mx_scalar_attention_scratch(int head_dim, int group);
void mx_scalar_kv_write(uint8_t *head_tile, mx_format kv, int head_dim, int slot, const float *k, const float *v);
void mx_scalar_rmsnorm(float *out, const float *x, const float *gain, int64_t n, float eps);
void mx_scalar_rope(float *x, const float *cos, const float *sin, int64_t heads, int head_dim);
void mx_scalar_router_topk(const float *logits, int n, int k, int32_t *expert, float *weight);
int64_t mx_scalar_argmax(const float *x, int64_t n);
double mx_scalar_exp_sum(float *p, const float *x, int64_t n, float shift, float scale);
void mx_scalar_add(float *y, const float *x, int64_t n);
void mx_scalar_widen(float *out, const uint8_t *in, mx_format format, int64_t n);

#endif
